//! The file `identity`: what the store is, and whether it is still where it was made.
//!
//! ```text
//! tidings store
//! format 2
//! store 0123456789abcdef          public: part of every MQTT client id
//! tag 0123456789abcdef            private: part of every page, so that no payload can pose as one
//! segment 8388608                 bytes, fixed at creation
//! created 1767225600000           milliseconds since the epoch
//! home 131074 1767225600123456789 inode and birth time of this very file: a copy has others
//! crc 1a2b3c4d                    CRC32C of the lines above
//! ```
//! The first two lines stay as they are in every format, so that any release can name the version of any store. The file is written last
//! when a store is created: without it there is no store.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use crate::core::types::Millis;
use crate::log::StoreId;

pub(super) const IDENTITY: &str = "identity";
const FIRST_LINE: &str = "tidings store";

/// What the file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) format: u32,
    pub(super) store: StoreId,
    pub(super) tag: u64,
    pub(super) segment_size: usize,
    pub(super) created: Millis,
}

/// What was found in its place.
#[derive(Debug)]
pub(super) enum Found {
    /// No such file.
    Missing,
    /// A store of this or an unknown format.
    Store {
        /// What it says.
        identity: Identity,
        /// Whether it was written as another file.
        is_copy: bool,
    },
    /// The format is not the one known here; nothing else of it was read.
    OtherFormat(u32),
    /// It is no identity, or not what was written.
    Damaged(String),
}

/// Where a file was made: a copy has another inode or another birth time.
fn home(file: &File) -> io::Result<(u64, u128)> {
    let meta = file.metadata()?;
    // Some file systems keep no birth time; the inode has to do there.
    let born = meta.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |age| age.as_nanos());
    Ok((meta.ino(), born))
}

impl Identity {
    /// Reads the file in the store's folder. `known` is the format that can be read.
    pub(super) fn read(store: &Path, known: u32) -> io::Result<Found> {
        let path = store.join(IDENTITY);
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Missing),
            Err(error) => return Err(error),
        };
        let mut lines = text.lines();
        if lines.next() != Some(FIRST_LINE) {
            return Ok(Found::Damaged(format!("the file `identity` does not begin with \"{FIRST_LINE}\"")));
        }
        let Some(format) = lines.next().and_then(|line| line.strip_prefix("format ")).and_then(|number| number.parse().ok()) else {
            return Ok(Found::Damaged("the file `identity` names no format".into()));
        };
        if format != known {
            return Ok(Found::OtherFormat(format));
        }
        let Some((identity, stored_home)) = Self::parse(&text, format) else {
            return Ok(Found::Damaged("the file `identity` is not what was written: its checksum or a line is wrong".into()));
        };
        let is_copy = home(&File::open(&path)?)? != stored_home;
        Ok(Found::Store { identity, is_copy })
    }

    fn parse(text: &str, format: u32) -> Option<(Identity, (u64, u128))> {
        let (content, crc) = text.split_at(text.rfind("crc ")?);
        if u32::from_str_radix(crc.strip_prefix("crc ")?.trim(), 16).ok()? != crc32c::crc32c(content.as_bytes()) {
            return None;
        }
        let field = |name: &str| content.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let (inode, born) = field("home")?.split_once(' ')?;
        let identity = Identity {
            format,
            store: StoreId(u64::from_str_radix(field("store")?, 16).ok()?),
            tag: u64::from_str_radix(field("tag")?, 16).ok()?,
            segment_size: field("segment")?.parse().ok()?,
            created: Millis(field("created")?.parse().ok()?),
        };
        Some((identity, (inode.parse().ok()?, born.parse().ok()?)))
    }

    /// Writes the file, for the place where it stands from then on.
    pub(super) fn write(&self, store: &Path) -> io::Result<()> {
        self.write_at(store, home)
    }

    /// Writes the file as that of a copy: no file has inode 0, so it is seen as one wherever it stands, on any file system.
    pub(super) fn write_as_copy(&self, store: &Path) -> io::Result<()> {
        self.write_at(store, |_| Ok((0, 0)))
    }

    fn write_at(&self, store: &Path, home: impl Fn(&File) -> io::Result<(u64, u128)>) -> io::Result<()> {
        super::durable::replace(store, IDENTITY, |file| {
            let (inode, born) = home(file)?;
            let content = format!(
                "{FIRST_LINE}\nformat {}\nstore {}\ntag {:016x}\nsegment {}\ncreated {}\nhome {inode} {born}\n",
                self.format, self.store, self.tag, self.segment_size, self.created.0
            );
            writeln!(file, "{content}crc {:08x}", crc32c::crc32c(content.as_bytes()))
        })
    }
}

/// Whether the file ends with the checksum of what stands before it, as it does in every format.
pub(super) fn is_whole(store: &Path) -> io::Result<bool> {
    let bytes = fs::read(store.join(IDENTITY))?;
    let text = String::from_utf8_lossy(&bytes);
    let Some((content, crc)) = text.rfind("crc ").map(|at| text.split_at(at)) else { return Ok(false) };
    let said = crc.strip_prefix("crc ").and_then(|crc| u32::from_str_radix(crc.trim(), 16).ok());
    Ok(said == Some(crc32c::crc32c(content.as_bytes())))
}

/// Records another format in the file, and nothing else: the first two lines and the last are the same in every format, and so is `home`.
pub(super) fn set_format(store: &Path, format: u32) -> io::Result<()> {
    let path = store.join(IDENTITY);
    let text = fs::read_to_string(&path)?;
    let (inode, born) = home(&File::open(&path)?)?;
    let here = format!("home {inode} {born}");
    super::durable::replace(store, IDENTITY, |file| {
        let (inode, born) = home(file)?;
        let mut content = String::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.starts_with("crc ")) {
            match line {
                _ if number == 1 => content.push_str(&format!("format {format}")),
                // A copy stays one: only a store that is at home moves in here.
                _ if line == here => content.push_str(&format!("home {inode} {born}")),
                _ => content.push_str(line),
            }
            content.push('\n');
        }
        writeln!(file, "{content}crc {:08x}", crc32c::crc32c(content.as_bytes()))
    })
}
