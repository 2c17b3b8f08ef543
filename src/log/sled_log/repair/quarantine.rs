//! What could not be saved, as raw bytes in a file of its own: one JSON object a line.
//!
//! ```text
//! {"file":"g…/db","offset":4096,"events":[17,20],"bytes":"f1544944…"}     where a page stands, or once stood, that holds lost events
//! {"file":"identity","bytes":"…"}                                        a file of the store that is not what was written
//! ```
//! The damaged store itself is kept as well; this is to find in it what is worth a second look.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use serde::Serialize;

use crate::core::types::Seq;
use crate::log::codec::MAX_PAGE;
use crate::log::sled_log::fsck::{Examination, Survey};
use crate::log::sled_log::open::folder_name;
use crate::log::sled_log::scan::each_broken;
use crate::log::sled_log::seal;

/// The small files of a store are smaller than this.
const MAX_SMALL_FILE: u64 = 64 * 1024;

#[derive(Serialize)]
struct Line {
    file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<(u64, u64)>,
    bytes: String,
}

/// Writes the file, synced.
pub(super) fn write(path: &Path, survey: &Survey, examination: &Examination) -> io::Result<()> {
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut out = BufWriter::new(file);
    for finding in &survey.findings.listed {
        if let Some(name) = &finding.file
            && let Ok(bytes) = fs::read(survey.store.join(name))
            && bytes.len() as u64 <= MAX_SMALL_FILE
        {
            line(&mut out, &Line { file: name.clone(), offset: None, events: None, bytes: hex(&bytes) })?;
        }
    }
    for part in examination.parts.iter().filter(|part| !part.is_missing) {
        let gaps: Vec<(Seq, Seq)> = examination.gaps.iter().copied().filter(|gap| gap.0 < part.end && gap.1 >= part.first).collect();
        if !gaps.is_empty() {
            generation(&mut out, survey, part.first, &gaps)?;
        }
    }
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

fn generation(out: &mut impl Write, survey: &Survey, first: Seq, gaps: &[(Seq, Seq)]) -> io::Result<()> {
    let folder = survey.folder(first);
    let file = match File::open(folder.join("db")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let gap_of = |seq: Seq| gaps.iter().find(|(first, last)| (*first..=*last).contains(&seq)).map(|(first, last)| (first.0, last.0));
    let name = format!("{}/db", folder_name(first));
    // Where they stood by the seal, whatever is there now.
    let sealed = seal::read_all(&folder, survey.tag)?.map(|(_, pages)| pages).unwrap_or_default();
    let mut written = Vec::new();
    for page in sealed.iter().filter(|page| gap_of(page.first).is_some()) {
        let mut bytes = vec![0; (page.len as usize).min(MAX_PAGE)];
        if file.read_exact_at(&mut bytes, page.offset).is_ok() {
            written.push(page.offset);
            line(out, &Line { file: name.clone(), offset: Some(page.offset), events: gap_of(page.first), bytes: hex(&bytes) })?;
        }
    }
    // Whatever begins like a page of them.
    let mut failed = Ok(());
    each_broken(&file, survey.tag, |offset, seq, bytes| {
        if failed.is_ok() && !written.contains(&offset) && gap_of(seq).is_some() {
            failed = line(out, &Line { file: name.clone(), offset: Some(offset), events: gap_of(seq), bytes: hex(bytes) });
        }
    })?;
    failed
}

fn line(out: &mut impl Write, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
