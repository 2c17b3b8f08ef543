//! The file `seal` of a generation that is not being written: where each page stands, and what the files must look like.
//!
//! A sealed generation is never written again, and opening it with sled would write to it. So it is read without sled: its pages are
//! verbatim in the file `db`, each with its checksum, and the seal says where. That makes reading it cheap (no recovery, a few KiB of
//! memory), keeps a backup of a running service simple, and leaves damaged files as they are.
//!
//! # Format
//! ```text
//!   magic 8 · tag 8 · [length 4 · CRC32C 4 · Head in postcard] · [length 4 · CRC32C 4 · pages in postcard]
//! ```
//! A seal is put in place whole. One that is missing after a kill is made again by the same scan.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::durable;
use super::scan::scan;
use crate::core::types::{Millis, Seq};
use crate::failpoint::{self, Point};
use crate::log::codec::MAX_PAGE;

pub(super) const SEAL: &str = "seal";
const MAGIC: [u8; 8] = *b"TIDSEAL\x01";
/// Bounds what a damaged length can make a reader allocate: 64 bytes for each page of a generation of 4 GiB.
const MAX_FRAME: usize = 256 * 1024 * 1024;

/// What a start wants to know of a generation without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) first: Seq,
    /// The position after its last event.
    pub(super) next: Seq,
    pub(super) newest: Option<Millis>,
    /// The bytes of its pages, without the checkpoint that it begins with.
    pub(super) stored: u64,
    pub(super) files: Vec<FileSum>,
}

/// What a file looks like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileSum {
    pub(super) name: String,
    pub(super) len: u64,
    pub(super) crc: u32,
}

/// Where a page stands in `db`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct PageAt {
    pub(super) first: Seq,
    pub(super) part: u32,
    pub(super) offset: u64,
    pub(super) len: u32,
}

/// A sealed generation, open for reading.
pub(super) struct SealedFile {
    db: File,
    pages: Vec<PageAt>,
}

/// Why a generation could not be sealed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SealError {
    /// Events that must be in it are not.
    #[error("{0}")]
    Missing(String),
    /// The disk failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Seals the generation of `first..next` in `folder`, which sled has closed. Syncs what it names.
pub(super) fn make(folder: &Path, tag: u64, first: Seq, next: Seq) -> Result<Head, SealError> {
    durable::sync_folder_and_files(folder)?;
    let found = scan(folder, tag)?;
    let places = if next > first { found.covering(first, Seq(next.0 - 1)).map_err(SealError::Missing)? } else { Vec::new() };
    let page_at = |place: &super::scan::Place| PageAt {
        first: place.header.first,
        part: place.header.part,
        offset: place.offset,
        len: u32::try_from(place.header.page_len()).expect("a page's length is bounded"),
    };
    let pages: Vec<PageAt> = places.iter().map(page_at).collect();
    let head = Head {
        first,
        next,
        newest: places.iter().filter_map(|place| place.newest).max(),
        stored: pages.iter().map(|page| u64::from(page.len)).sum::<u64>() + found.closing_checkpoints_len(),
        files: sums(folder)?,
    };
    let write = |file: &mut File| {
        file.write_all(&MAGIC)?;
        file.write_all(&tag.to_le_bytes())?;
        write_frame(file, &head)?;
        write_frame(file, &pages)
    };
    failpoint::pass(Point::BeforeSeal)?;
    durable::replace(folder, SEAL, write)?;
    Ok(head)
}

/// What the seal of a generation with so many stored bytes takes at most: a page has 72 bytes and an index at least, and takes 26 in the seal.
pub(super) fn most_bytes(stored: u64) -> u64 {
    stored / 3 + (64 << 10)
}

/// The head of the seal in `folder`; none if there is no seal, or not the one that was written.
pub(super) fn read_head(folder: &Path, tag: u64) -> io::Result<Option<Head>> {
    let Some(mut file) = open(folder, tag)? else { return Ok(None) };
    read_frame(&mut file)
}

/// The whole seal in `folder`: its head, and where the pages stand.
pub(super) fn read_all(folder: &Path, tag: u64) -> io::Result<Option<(Head, Vec<PageAt>)>> {
    let Some(mut file) = open(folder, tag)? else { return Ok(None) };
    let Some(head) = read_frame(&mut file)? else { return Ok(None) };
    Ok(read_frame(&mut file)?.map(|pages| (head, pages)))
}

/// What is wrong with the length of the generation's files, if anything is.
pub(super) fn wrong_lengths(folder: &Path, head: &Head) -> Option<String> {
    head.files.iter().find_map(|sum| match fs::metadata(folder.join(&sum.name)) {
        Ok(meta) if meta.len() == sum.len => None,
        Ok(meta) => Some(format!("its file `{}` has {} bytes and must have {}", sum.name, meta.len(), sum.len)),
        Err(error) => Some(format!("its file `{}`: {error}", sum.name)),
    })
}

/// What is wrong with the generation's files, if anything is: reads all of them.
pub(super) fn wrong_content(folder: &Path, head: &Head) -> io::Result<Option<String>> {
    if let Some(wrong) = wrong_lengths(folder, head) {
        return Ok(Some(wrong));
    }
    for sum in &head.files {
        let crc = checksum(&folder.join(&sum.name))?.1;
        if crc != sum.crc {
            return Ok(Some(format!("its file `{}` has been changed since it was closed (checksum)", sum.name)));
        }
    }
    Ok(None)
}

/// Takes the seal away, because the generation is going to be written again.
pub(super) fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_file(folder.join(SEAL)) {
        Ok(()) => durable::sync_folder(folder),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

impl SealedFile {
    /// Opens a sealed generation for reading.
    pub(super) fn open(folder: &Path, tag: u64) -> io::Result<Option<SealedFile>> {
        let Some(mut file) = open(folder, tag)? else { return Ok(None) };
        if read_frame::<Head>(&mut file)?.is_none() {
            return Ok(None);
        }
        let Some(pages) = read_frame(&mut file)? else { return Ok(None) };
        Ok(Some(SealedFile { db: File::open(folder.join("db"))?, pages }))
    }

    /// The bytes of the page that holds `seq`: its parts in order. Nobody has checked them yet.
    pub(super) fn parts(&self, seq: Seq) -> io::Result<Vec<Vec<u8>>> {
        let after = self.pages.partition_point(|page| page.first <= seq);
        let Some(last) = after.checked_sub(1).map(|at| self.pages[at]) else { return Ok(Vec::new()) };
        let from = after.saturating_sub(last.part as usize + 1);
        let read = |page: &PageAt| {
            let mut bytes = vec![0; (page.len as usize).min(MAX_PAGE)];
            self.db.read_exact_at(&mut bytes, page.offset).map(|()| bytes)
        };
        self.pages[from..after].iter().map(read).collect()
    }
}

fn open(folder: &Path, tag: u64) -> io::Result<Option<File>> {
    let mut file = match File::open(folder.join(SEAL)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut start = [0; 16];
    let whole = read_whole(&mut file, &mut start)?;
    Ok((whole && start[..8] == MAGIC && start[8..] == tag.to_le_bytes()).then_some(file))
}

fn write_frame<T: Serialize>(file: &mut File, value: &T) -> io::Result<()> {
    let bytes = postcard::to_stdvec(value).map_err(io::Error::other)?;
    let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    file.write_all(&len.to_le_bytes())?;
    file.write_all(&crc32c::crc32c(&bytes).to_le_bytes())?;
    file.write_all(&bytes)
}

fn read_frame<T: DeserializeOwned>(file: &mut File) -> io::Result<Option<T>> {
    let mut start = [0; 8];
    if !read_whole(file, &mut start)? {
        return Ok(None);
    }
    let number = |at: usize| u32::from_le_bytes(start[at..at + 4].try_into().expect("four bytes"));
    let len = number(0) as usize;
    if len > MAX_FRAME || len as u64 > file.metadata()?.len() {
        return Ok(None);
    }
    let mut bytes = vec![0; len];
    if !read_whole(file, &mut bytes)? || crc32c::crc32c(&bytes) != number(4) {
        return Ok(None);
    }
    Ok(postcard::from_bytes(&bytes).ok())
}

/// Fills `bytes`; false if the file ends before.
fn read_whole(file: &mut File, bytes: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn sums(folder: &Path) -> io::Result<Vec<FileSum>> {
    let mut sums = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_file() && !name.starts_with(SEAL) {
            let (len, crc) = checksum(&entry.path())?;
            sums.push(FileSum { name, len, crc });
        }
    }
    sums.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(sums)
}

/// Length and CRC32C of a file.
pub(super) fn checksum(path: &Path) -> io::Result<(u64, u32)> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    let (mut len, mut crc) = (0, 0);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((len, crc));
        }
        crc = crc32c::crc32c_append(crc, &buffer[..read]);
        len += read as u64;
    }
}
