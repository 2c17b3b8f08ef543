//! A disk of its own for a store: an image with ext4 in it, mounted where the store is to be. What is on it is gone with the test.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

pub struct SmallDisk {
    image: TempDir,
    mount: PathBuf,
}

impl SmallDisk {
    /// Mounts an empty disk of so many MiB at `mount`. None if the machine has no loop devices and `TIDINGS_WITHOUT_LOOP=1` says so.
    pub fn mount(mount: &Path, mib: u64) -> Option<SmallDisk> {
        if std::env::var("TIDINGS_WITHOUT_LOOP").is_ok_and(|value| value == "1") {
            println!("TIDINGS_WITHOUT_LOOP=1: passed over");
            return None;
        }
        let image = tempfile::tempdir().unwrap();
        let file = image.path().join("image");
        File::create(&file).unwrap().set_len(mib << 20).unwrap();
        fs::create_dir_all(mount).unwrap();
        // Nothing is set aside for root, which these tests run as.
        run("e2fsprogs", Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&file));
        run("mount", Command::new("mount").args(["-o", "loop"]).arg(&file).arg(mount));
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
        let stat = rustix::fs::statvfs(&self.mount).unwrap();
        stat.f_bavail * stat.f_frsize
    }
}

fn run(package: &str, command: &mut Command) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = command.env("PATH", path).output().unwrap_or_else(|error| {
        panic!(
            "{:?}: {error}: it is in Debian's package `{package}`; TIDINGS_WITHOUT_LOOP=1 passes these tests over",
            command.get_program()
        )
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{:?}: {said}: these tests need root and loop devices; TIDINGS_WITHOUT_LOOP=1 passes them over",
        command.get_program()
    );
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The service may still be going: lazily.
        let _ = Command::new("umount").arg("-l").arg(&self.mount).status();
        let _ = self.mount.parent().map(fs::remove_dir_all);
        let _ = &self.image;
    }
}
