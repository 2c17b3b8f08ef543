//! A disk of its own for a store, mounted where the store is to be, that can be filled to the last byte.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::support::image::Image;

pub struct SmallDisk {
    image: Image,
    mount: PathBuf,
}

impl SmallDisk {
    /// Mounts an empty disk of so many MiB at `mount`. None if the machine has no loop devices and `TIDINGS_WITHOUT_LOOP=1` says so.
    pub fn mount(mount: &Path, mib: u64) -> Option<SmallDisk> {
        SmallDisk::mount_with(mount, mib, &[])
    }

    /// The same, with these further options of mkfs.
    pub fn mount_with(mount: &Path, mib: u64, features: &[&str]) -> Option<SmallDisk> {
        let image = Image::mount(mount, mib, features)?;
        Some(SmallDisk { image, mount: mount.to_owned() })
    }

    fn filler(&self) -> PathBuf {
        self.mount.join("lost+found").join("filler")
    }

    /// Takes all that is left, to the last byte.
    pub fn fill(&self) {
        self.fill_but(0);
        let mut file = File::options().append(true).open(self.filler()).unwrap();
        for len in [1 << 16, 1 << 10, 1] {
            while file.write_all(&vec![0x5a; len]).is_ok() && file.sync_data().is_ok() {}
        }
    }

    /// Takes what is left but for so many bytes, or as much of that as there is.
    pub fn fill_but(&self, bytes: u64) {
        let mut file = File::options().append(true).create(true).open(self.filler()).unwrap();
        let chunk = vec![0x5a; 256 << 10];
        while self.left() > bytes + chunk.len() as u64 && file.write_all(&chunk).is_ok() {}
        let _ = file.sync_data();
    }

    /// Gives back what was taken.
    pub fn free(&self) {
        match fs::remove_file(self.filler()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
    }

    /// Takes from the databases of a store what is allocated behind their ends.
    pub fn truncate_databases(&self, store: &Path) {
        for generation in fs::read_dir(store).unwrap().map(|entry| entry.unwrap().path()) {
            if let Ok(file) = File::options().write(true).open(generation.join("db")) {
                file.set_len(file.metadata().unwrap().len()).unwrap();
            }
        }
    }

    pub fn left(&self) -> u64 {
        self.image.left()
    }
}
