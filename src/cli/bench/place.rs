//! The scratch folder, the file system under it, and the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::BenchError;

/// What was killed a moment ago may still hold a file: so often is the folder tried to be deleted,
const TRIES: u32 = 50;

/// and so long is waited in between.
const AGAIN: Duration = Duration::from_millis(20);

/// A folder that is gone with this.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A new folder in `parent`.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn new(parent: &Path) -> Result<Scratch, BenchError> {
        let path = parent.join(format!("tidings-bench-{}", std::process::id()));
        fs::create_dir(&path).map_err(BenchError::file(format!("the scratch folder {} can't be made", path.display())))?;
        // Absolute, because programs are started with it.
        let path = fs::canonicalize(&path).map_err(BenchError::file(format!("{} can't be looked at", path.display())))?;
        Ok(Scratch { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A folder in it, which is emptied if it is there.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn folder(&self, name: &str) -> Result<PathBuf, BenchError> {
        let path = self.path.join(name);
        delete(&path);
        fs::create_dir(&path).map_err(BenchError::file(format!("{} can't be made", path.display())))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        delete(&self.path);
        if self.path.exists() {
            super::tell(&format!("the scratch folder {} could not be deleted", self.path.display()));
        }
    }
}

/// Deletes a folder, if it is there.
pub fn delete(folder: &Path) {
    for _ in 0..TRIES {
        // Whether it worked is seen by whether it is still there.
        let _ = fs::remove_dir_all(folder);
        if !folder.exists() {
            return;
        }
        sleep(AGAIN);
    }
}

/// Where it was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// How many of it there are for this process.
    pub cores: usize,
    /// Memory in bytes.
    pub memory: u64,
    /// The kernel.
    pub kernel: String,
    /// The file system of the scratch folder: its type, its device, where it is mounted.
    pub file_system: String,
    /// Whether that is in memory.
    pub is_in_memory: bool,
    /// The version of Tidings.
    pub tidings: String,
    /// `release` or `debug`.
    pub build: String,
    /// The version of mosquitto, if it is installed.
    pub mosquitto: Option<String>,
}

impl Machine {
    /// Looks at this machine, and at the disk of a folder.
    pub fn look(folder: &Path) -> Machine {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let value = |text: &str, key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key))?;
            Some(line.trim_start_matches([' ', '\t', ':']).to_owned())
        };
        let memory = value(&text("/proc/meminfo"), "MemTotal").and_then(|line| line.split(' ').next()?.parse::<u64>().ok());
        let mounted = mount_of(folder, &text("/proc/self/mountinfo"));
        Machine {
            processor: value(&text("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory: memory.unwrap_or(0) * 1_024,
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            is_in_memory: mounted.as_ref().is_some_and(|mount| ["tmpfs", "ramfs"].contains(&mount.kind.as_str())),
            file_system: mounted.map_or_else(|| "an unknown file system".into(), |mount| mount.words()),
            tidings: env!("CARGO_PKG_VERSION").into(),
            build: if cfg!(debug_assertions) { "debug" } else { "release" }.into(),
            mosquitto: super::mosquitto::version(),
        }
    }

    /// In one line.
    pub fn line(&self) -> String {
        let Machine { processor, cores, memory, kernel, file_system, tidings, build, mosquitto, .. } = self;
        let memory = crate::cli::output::size(*memory);
        let broker = mosquitto.as_ref().map_or_else(String::new, |version| format!("; mosquitto {version}"));
        format!("tidings {tidings} ({build}) on {cores} × {processor}, {memory}, Linux {kernel}, {file_system}{broker}")
    }
}

/// A line of `/proc/self/mountinfo`.
struct Mount {
    kind: String,
    device: String,
    at: String,
}

impl Mount {
    fn words(&self) -> String {
        format!("{} ({} at {})", self.kind, self.device, self.at)
    }
}

/// The file system that a folder is on: of those whose place the folder's path begins with, the longest; of two at one place, the one that was mounted
/// last.
fn mount_of(folder: &Path, mounts: &str) -> Option<Mount> {
    let parsed = mounts.lines().filter_map(|line| {
        // 36 35 98:0 /root /mount/point options - ext4 /dev/device options: see proc(5).
        let (before, after) = line.split_once(" - ")?;
        let at = before.split(' ').nth(4)?.replace("\\040", " ");
        let mut after = after.split(' ');
        Some(Mount { kind: after.next()?.to_owned(), device: after.next()?.to_owned(), at })
    });
    parsed.filter(|mount| folder.starts_with(&mount.at)).max_by_key(|mount| mount.at.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
                          30 22 0:25 / /tmp rw,nosuid shared:12 - tmpfs tmpfs rw,size=10%\n\
                          31 22 8:2 / /tmp/my\\040disk rw - xfs /dev/sdb rw\n";

    #[test]
    fn the_file_system_of_a_folder_is_the_nearest_mount_above_it() {
        for (folder, expected) in [
            ("/home/work", "ext4 (/dev/sda1 at /)"),
            ("/tmp/scratch", "tmpfs (tmpfs at /tmp)"),
            ("/tmp/my disk/x", "xfs (/dev/sdb at /tmp/my disk)"),
            ("/tmpfiles", "ext4 (/dev/sda1 at /)"),
        ] {
            assert_eq!(mount_of(Path::new(folder), MOUNTS).unwrap().words(), expected, "{folder}");
        }
    }

    #[test]
    fn the_scratch_folder_is_gone_with_what_is_in_it() {
        let parent = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(parent.path()).unwrap();
        fs::write(scratch.folder("store").unwrap().join("file"), "x").unwrap();
        let again = scratch.folder("store").unwrap();
        assert!(fs::read_dir(again).unwrap().next().is_none());
        assert!(Scratch::new(parent.path()).is_err(), "it is never somebody else's");
        drop(scratch);
        assert!(fs::read_dir(parent.path()).unwrap().next().is_none());
    }
}
