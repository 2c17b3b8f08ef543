//! A disk of a test's own: an image with ext4 in it, mounted through a loop device, of which the power can be cut. What is on it is gone
//! with the test.
//!
//! # How a power cut is made
//! ```text
//!   process ─write─▶ page cache of the mounted ext4 ─writeback, fsync─▶ loop device = the image = what the disk holds
//!                                                    ╳ here it is cut (EXT4_IOC_SHUTDOWN without a flush of the journal)
//! ```
//! From that moment, whatever it comes in the middle of, the file system writes nothing more: no page, no block of its journal. A sync that is
//! under way fails. Then the process is killed and the image mounted again, which replays the journal, as after a real cut. What was only in
//! the page cache is gone: data that nobody has synced, and lengths and names whose transaction was not committed.
//!
//! Copying the image of a stopped process shows the same, but the copy takes its time, and the kernel goes on writing meanwhile.
//!
//! What this can't show: a drive that loses or turns round what it has in its own cache. What was written to it counts as held, flushed or not.
//! So a test looks for lengths, names and data that were never handed over, which is what a missing `fdatasync` costs first.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::wait_until;

pub struct Image {
    folder: TempDir,
    mount: PathBuf,
}

impl Image {
    /// Mounts an empty disk of so many MiB at `mount`, made with these further options of mkfs. None if the machine has no loop devices and
    /// `TIDINGS_WITHOUT_LOOP=1` says so.
    pub fn mount(mount: &Path, mib: u64, features: &[&str]) -> Option<Image> {
        if std::env::var("TIDINGS_WITHOUT_LOOP").is_ok_and(|value| value == "1") {
            println!("TIDINGS_WITHOUT_LOOP=1: passed over");
            return None;
        }
        let image = Image { folder: tempfile::tempdir().unwrap(), mount: mount.to_owned() };
        File::create(image.file()).unwrap().set_len(mib << 20).unwrap();
        fs::create_dir_all(mount).unwrap();
        // Nothing is set aside for root, which these tests run as.
        run("e2fsprogs", Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).args(features).arg(image.file()));
        image.attach("");
        Some(image)
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn attach(&self, options: &str) {
        let options = if options.is_empty() { "loop".to_owned() } else { format!("loop,{options}") };
        run("mount", Command::new("mount").args(["-t", "ext4", "-o", &options]).arg(self.file()).arg(&self.mount));
    }

    /// Takes it away and mounts it again with these options of ext4. Nobody may use it any more.
    pub fn mount_again(&self, options: &str) {
        wait_until("the disk is unmounted", || Command::new("umount").arg(&self.mount).stderr(Stdio::null()).status().unwrap().success());
        self.attach(options);
    }

    /// What cuts its power as soon as it is told to.
    pub fn plug(&self) -> Plug {
        // _IOR('X', 125, __u32), and EXT4_GOING_FLAGS_NOLOGFLUSH.
        const SCRIPT: &str = "import fcntl, os, struct, sys\n\
            disk = os.open(sys.argv[1], os.O_RDONLY)\n\
            print('ready', flush=True)\n\
            if sys.stdin.readline():\n    fcntl.ioctl(disk, 0x8004587d, struct.pack('I', 2))\n";
        let mut command = Command::new("python3");
        command.args(["-c", SCRIPT]).arg(&self.mount).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut waiting = command.spawn().unwrap_or_else(|error| panic!("python3: {error}: it is in Debian's package `python3`"));
        let mut ready = [0; 6];
        std::io::Read::read_exact(waiting.stdout.as_mut().expect("it is piped"), &mut ready).expect("the plug is held");
        Plug(waiting)
    }

    /// Bytes that are free on it.
    pub fn left(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.mount).unwrap();
        stat.f_bavail * stat.f_frsize
    }
}

/// See [`Image::plug`].
pub struct Plug(Child);

impl Plug {
    /// Cuts the power. When this returns nothing more is written, and nothing more can be read.
    pub fn pull(mut self) {
        self.0.stdin.as_mut().expect("it is piped").write_all(b"now\n").unwrap();
        let status = self.0.wait().unwrap();
        assert!(
            status.success(),
            "ext4 did not take EXT4_IOC_SHUTDOWN (root, Linux 4.11 or newer); TIDINGS_WITHOUT_LOOP=1 passes these tests over"
        );
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
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

impl Drop for Image {
    fn drop(&mut self) {
        // The service may still be going: lazily.
        let _ = Command::new("umount").arg("-l").arg(&self.mount).status();
        let _ = self.mount.parent().map(fs::remove_dir_all);
    }
}
