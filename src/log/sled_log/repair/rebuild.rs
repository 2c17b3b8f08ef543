//! A sealed generation made anew: its whole pages as they were, in their order, and events that say what is lost in between.
//!
//! Sealed generations are read without sled, by their seal, so the file `db` of such a one need not be a database: it holds the pages, one
//! after the other, and nothing else.

use std::fs::{DirBuilder, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use crate::core::event::Event;
use crate::core::outbox::salvage::placeholder;
use crate::core::types::{LaneKey, Millis, SendNo, Seq};
use crate::log::codec::{Decoder, Encoder, Kind, Limits};
use crate::log::committer::now;
use crate::log::sled_log::Options;
use crate::log::sled_log::fsck::{Item, Part, Raw, Survey, UNKNOWN_CHECKPOINT};

/// So many lost positions are written at once.
const AT_ONCE: u64 = 1_000;

/// Writes the generation of `first..end` to `folder`: of `part`, or, if its folder is gone, as one in which all is lost.
pub(super) fn rebuild(survey: &Survey, part: Option<&Part>, folder: &Path, first: Seq, end: Seq) -> Result<(), String> {
    let io = |error: std::io::Error| error.to_string();
    DirBuilder::new().mode(0o700).create(folder).map_err(io)?;
    let file = File::create(folder.join("db")).map_err(io)?;
    let mut writer = Writer { survey, out: BufWriter::new(file), run: 1, newest: None };
    let raw = match part {
        Some(_) => Some(Raw::read(&survey.folder(first), first, survey.tag, &()).map_err(io)?),
        None => None,
    };
    let (is_disowned, misfits) = part.map_or((false, &[][..]), |part| (part.is_disowned, &part.misfits[..]));
    let items = match &raw {
        Some(raw) => raw.items(first, Some(end), None),
        None => vec![Item::Gap { first, last: Seq(end.0 - 1) }],
    };
    let mut decoder = Decoder::new().map_err(io)?;
    // The pages of a run stand together: what fills a gap belongs to the one before it, or to the first that there is.
    writer.run = items.iter().find_map(Item::run).unwrap_or(1);
    let opening = raw.as_ref().and_then(|raw| raw.opening(first)).filter(|_| !is_disowned);
    match (&raw, opening) {
        (Some(raw), Some(opening)) if raw.checkpoint_bytes(&opening, &mut decoder).is_ok_and(|bytes| is_known(&bytes, first)) => {
            writer.copy(&raw.bytes_of(&opening.parts).map_err(io)?)?;
        }
        _ if first == Seq::FIRST && !is_disowned && raw.is_some() => {}
        _ => writer.checkpoint(first, UNKNOWN_CHECKPOINT)?,
    }
    for item in items {
        let Item::Page { first, last, parts } = item else {
            let Item::Gap { first, last } = item else { continue };
            writer.fill(first, last)?;
            continue;
        };
        let raw = raw.as_ref().expect("only what was read has pages");
        let bytes = raw.bytes_of(&parts).map_err(io)?;
        let Ok(page) = decoder.page(survey.tag, &bytes) else {
            writer.fill(first, last)?;
            continue;
        };
        writer.run = parts[0].header.run;
        writer.newest = parts.iter().filter_map(|place| place.newest).max().or(writer.newest);
        if misfits.iter().any(|seq| (first..=last).contains(seq)) {
            let sends = page.sends;
            let replaced = |(seq, event): (Seq, Event)| if misfits.contains(&seq) { placeholder(writer.time()) } else { event };
            let events: Vec<Event> = (first.0..).map(Seq).zip(page.events).map(replaced).collect();
            writer.events(first, &events, &|lane| sends.iter().find(|(known, _)| known == lane).map_or(SendNo(0), |(_, next)| *next))?;
        } else {
            writer.copy(&bytes)?;
        }
    }
    let file = writer.out.into_inner().map_err(|error| error.to_string())?;
    file.sync_all().map_err(io)
}

fn is_known(checkpoint: &[u8], next: Seq) -> bool {
    let checkpoint = crate::log::Checkpoint { next, bytes: checkpoint.to_vec() };
    crate::log::committer::decode_checkpoint(&checkpoint).is_ok()
}

struct Writer<'a> {
    survey: &'a Survey,
    out: BufWriter<File>,
    run: u64,
    /// The newest time so far.
    newest: Option<Millis>,
}

impl Writer<'_> {
    /// What happened when is lost; not before this, and retention goes by it.
    fn time(&self) -> Millis {
        self.newest.unwrap_or_else(now)
    }

    fn copy(&mut self, parts: &[Vec<u8>]) -> Result<(), String> {
        parts.iter().try_for_each(|bytes| self.out.write_all(bytes)).map_err(|error| error.to_string())
    }

    fn encoder(&self) -> Result<Encoder, String> {
        let segment_size = self.survey.identity.map_or(Options::default().segment_size, |identity| identity.segment_size);
        Encoder::new(self.survey.tag, self.run, Limits::for_segment(segment_size)).map_err(|error| error.to_string())
    }

    fn checkpoint(&mut self, first: Seq, bytes: &[u8]) -> Result<(), String> {
        let pages = self.encoder()?.checkpoint(Kind::OpeningCheckpoint, first, bytes).map_err(|error| error.to_string())?;
        pages.into_iter().try_for_each(|page| self.copy(&[page.bytes]))
    }

    fn events(&mut self, first: Seq, events: &[Event], next_send: &dyn Fn(&LaneKey) -> SendNo) -> Result<(), String> {
        let pages = self.encoder()?.events(first, events, next_send).map_err(|error| error.to_string())?;
        pages.into_iter().try_for_each(|page| self.copy(&[page.bytes]))
    }

    fn fill(&mut self, first: Seq, last: Seq) -> Result<(), String> {
        let event = placeholder(self.time());
        let mut next = first;
        while next <= last {
            let count = AT_ONCE.min(last.0 - next.0 + 1);
            let events = vec![event.clone(); usize::try_from(count).expect("it is at most a thousand")];
            self.events(next, &events, &|_| SendNo(0))?;
            next = Seq(next.0 + count);
        }
        Ok(())
    }
}
