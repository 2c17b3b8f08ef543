//! The walk: every generation from the oldest to the newest, every page, every event, and the fold over them.

use std::collections::BTreeMap;

use super::{Checked, Finding, Findings, Item, Progress, Raw, Survey};
use crate::core::event::Event;
use crate::core::outbox::salvage::{Salvage, is_placeholder};
use crate::core::ranges::RangeSet;
use crate::core::types::{LaneKey, SendNo, Seq};
use crate::log::codec::{Decoder, Kind};
use crate::log::committer::decode_checkpoint;
use crate::log::sled_log::open::{At, folder_name};
use crate::log::{Checkpoint, OpenError, Page};

/// What a repair writes in place of a checkpoint of which nothing is known. The committer reads no such version.
pub(in crate::log::sled_log) const UNKNOWN_CHECKPOINT: &[u8] = &[0];

/// One generation: where it begins and ends, and what is to be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::log::sled_log) struct Part {
    pub(in crate::log::sled_log) first: Seq,
    /// The position after its last one.
    pub(in crate::log::sled_log) end: Seq,
    /// Its folder is gone.
    pub(in crate::log::sled_log) is_missing: bool,
    /// All its files are as they were sealed, and everything in it fits.
    pub(in crate::log::sled_log) is_whole: bool,
    /// A fold that begins with its checkpoint does not come to the next one, and no event of it is missing.
    pub(in crate::log::sled_log) is_disowned: bool,
    /// Its events that do not fit what came before.
    pub(in crate::log::sled_log) misfits: Vec<Seq>,
}

/// What the walk has found.
pub(in crate::log::sled_log) struct Examination {
    pub(in crate::log::sled_log) findings: Findings,
    pub(in crate::log::sled_log) checked: Checked,
    /// The outbox by all that is left.
    pub(in crate::log::sled_log) state: Salvage,
    /// The sends of each lane whose report can be read where it was accepted.
    pub(in crate::log::sled_log) readable: BTreeMap<LaneKey, RangeSet>,
    pub(in crate::log::sled_log) parts: Vec<Part>,
    /// The last position that there was.
    pub(in crate::log::sled_log) last: Seq,
    /// Events that an earlier repair found lost.
    pub(in crate::log::sled_log) placeholders: u64,
    /// The highest number of a start that has written to it.
    pub(in crate::log::sled_log) newest_run: u64,
    /// Events that can't be read.
    pub(in crate::log::sled_log) gaps: Vec<(Seq, Seq)>,
    /// The newest generation, the identity and the witness have no finding, so that sled can be asked.
    pub(in crate::log::sled_log) is_newest_whole: bool,
    /// sled does not show what is there.
    pub(in crate::log::sled_log) distrusts_newest: bool,
}

struct Walk<'a> {
    survey: &'a Survey,
    decoder: Decoder,
    found: Examination,
    /// Where the checkpoint stands that the fold began with.
    since: Option<Seq>,
}

/// Walks through the store.
pub(in crate::log::sled_log) fn examine(survey: &Survey, progress: &dyn Progress) -> Result<Examination, OpenError> {
    let at = At { store: &survey.store };
    let size = |first: &Seq| std::fs::metadata(survey.folder(*first).join("db")).map_or(0, |meta| meta.len());
    progress.begins("reading", survey.generations.iter().map(size).sum());
    let lowest = survey.testimony.map(|said| said.lowest).or(survey.generations.first().copied()).unwrap_or(Seq::FIRST);
    let state = if lowest == Seq::FIRST { Salvage::from_the_first() } else { Salvage::unknown(lowest) };
    let found = Examination {
        findings: survey.findings.clone(),
        checked: Checked::default(),
        state,
        readable: BTreeMap::new(),
        parts: Vec::new(),
        last: Seq(lowest.0.saturating_sub(1)),
        placeholders: 0,
        newest_run: 0,
        gaps: Vec::new(),
        is_newest_whole: false,
        distrusts_newest: false,
    };
    let decoder = Decoder::new().map_err(|error| at.io(error))?;
    let mut walk = Walk { survey, decoder, found, since: None };
    for (n, &first) in survey.generations.iter().enumerate() {
        walk.missing_before(first);
        walk.generation(first, survey.generations.get(n + 1).copied(), progress)
            .map_err(|error| at.io(format!("{}: {error}", folder_name(first))))?;
    }
    walk.missing_at_the_end();
    if let Some(what) = walk.found.state.outbox().imbalance() {
        walk.add("books", None, None, None, what);
    }
    Ok(walk.found)
}

impl Walk<'_> {
    fn add(
        &mut self,
        code: &'static str,
        generation: Option<Seq>,
        file: Option<&str>,
        events: Option<(Seq, Seq)>,
        what: impl Into<String>,
    ) {
        let finding = Finding { code, generation, file: file.map(str::to_owned), events, what: what.into() };
        self.found.findings.add(finding);
    }

    /// The folder of a generation between the last one and `first` is missing.
    fn missing_before(&mut self, first: Seq) {
        let begin = self.found.last.next();
        if begin < first {
            self.lose_generation(begin, first);
        }
    }

    fn missing_at_the_end(&mut self) {
        let Some(said) = self.survey.testimony else { return };
        let begin = self.found.last.next();
        let knows = self.survey.generations.contains(&said.generation);
        if !knows && said.generation >= begin {
            if said.generation > begin {
                self.lose_generation(begin, said.generation);
            }
            self.lose_generation(said.generation, said.last.next());
        }
    }

    fn lose_generation(&mut self, first: Seq, end: Seq) {
        let has_events = first < end;
        let events = has_events.then(|| (first, Seq(end.0 - 1)));
        self.add("generation_missing", Some(first), None, events, "its folder is missing");
        if first > self.found.parts.first().map_or(first, |part| part.first) {
            self.found.state.begin_generation();
        }
        if has_events {
            self.lose(first, Seq(end.0 - 1));
        }
        let part = Part { first, end, is_missing: true, is_whole: false, is_disowned: false, misfits: Vec::new() };
        self.found.parts.push(part);
        self.found.last = self.found.last.max(Seq(end.0 - 1));
    }

    fn lose(&mut self, first: Seq, last: Seq) {
        self.found.gaps.push((first, last));
        self.found.state.gap(last.next());
    }

    fn generation(&mut self, first: Seq, next: Option<Seq>, progress: &dyn Progress) -> std::io::Result<()> {
        let raw = Raw::read(&self.survey.folder(first), first, self.survey.tag, progress)?;
        let before = self.found.findings.count();
        self.found.checked.generations += 1;
        self.found.checked.bytes += raw.bytes;
        self.files(first, next, &raw);

        let is_begun = !self.found.parts.is_empty();
        self.found.parts.push(Part { first, end: first, is_missing: false, is_whole: false, is_disowned: false, misfits: Vec::new() });
        if is_begun {
            self.found.state.begin_generation();
        }
        let mut checkpoints = raw.checkpoints().into_iter().peekable();
        match raw.opening(first) {
            Some(stored) => self.checkpoint(first, &raw, &stored),
            None if first == Seq::FIRST => self.since = Some(first),
            None => self.add("checkpoint", Some(first), Some("db"), None, "the checkpoint that it begins with is not in it"),
        }
        let said = self.survey.testimony;
        let certain = said.filter(|said| said.generation == first).map(|said| said.last);
        let end = raw.sealed_next().filter(|end| next.is_none_or(|next| *end <= next)).or(next);
        // The one that is written, or was when a kill came, may hold more than the witness has seen.
        let end = end.or_else(|| said.filter(|said| said.generation > first).map(|said| said.generation));
        for item in raw.items(first, end, certain) {
            self.found.newest_run = self.found.newest_run.max(item.run().unwrap_or_default());
            match item {
                Item::Gap { first: from, last } => {
                    self.add("page", Some(first), Some("db"), Some((from, last)), "no whole page of these events is in it");
                    self.lose(from, last);
                }
                Item::Page { first: from, last, parts } => {
                    while let Some(stored) = checkpoints.next_if(|stored| stored.next <= from) {
                        if stored.kind == Kind::Checkpoint && stored.next == from {
                            self.checkpoint(first, &raw, &stored);
                        }
                    }
                    let bytes = raw.bytes_of(&parts)?;
                    self.found.checked.pages += bytes.len() as u64;
                    match self.decoder.page(self.survey.tag, &bytes) {
                        Ok(page) => self.page(first, &page),
                        Err(error) => {
                            self.add("page", Some(first), Some("db"), Some((from, last)), error.to_string());
                            self.lose(from, last);
                        }
                    }
                }
            }
        }
        let end = self.found.state.outbox().next();
        for stored in checkpoints.filter(|stored| stored.kind == Kind::Checkpoint && stored.next == end) {
            self.checkpoint(first, &raw, &stored);
        }
        self.found.last = self.found.last.max(Seq(end.0 - 1));
        let is_clean = self.found.findings.count() == before;
        let part = self.found.parts.last_mut().expect("it was pushed above");
        part.end = end;
        part.is_whole = is_clean && raw.is_as_sealed();
        self.found.is_newest_whole = is_clean && self.survey.findings.is_empty() && said.is_some_and(|said| said.generation == first);
        Ok(())
    }

    fn files(&mut self, first: Seq, next: Option<Seq>, raw: &Raw) {
        if raw.is_seal_damaged {
            self.add("seal", Some(first), Some("seal"), None, "it is not what was written");
        }
        let said = self.survey.testimony.filter(|said| said.generation == first);
        if let (Some(said), None) = (said.filter(|said| said.clean), &raw.seal)
            && !raw.is_seal_damaged
        {
            let what = format!("the generation was closed in order with event {}, and its seal is missing", said.last);
            self.add("seal", Some(first), Some("seal"), None, what);
        }
        if let Some(said) = self.survey.testimony.filter(|said| said.generation < first) {
            let what = format!("it holds events or a checkpoint, and the witness knows generations up to {}", folder_name(said.generation));
            if raw.items(first, None, None).iter().any(|item| matches!(item, Item::Page { .. })) {
                self.add("witness", Some(first), Some("witness"), None, what);
            }
        }
        if let (Some(end), Some(next)) = (raw.sealed_next(), next)
            && end > next
        {
            self.add(
                "seal",
                Some(first),
                Some("seal"),
                None,
                format!("it ends with event {}, and the next generation begins with {next}", end.0 - 1),
            );
        }
        for (name, what) in &raw.wrong_files {
            self.add("file_damaged", Some(first), Some(name), None, what.clone());
        }
        if !raw.wrong_files.is_empty() {
            for page in raw.moved_pages() {
                let what = format!("the page of event {} at byte {} is not what was written", page.first, page.offset);
                self.add("page_moved", Some(first), Some("db"), Some((page.first, page.first)), what);
            }
        }
    }

    fn checkpoint(&mut self, generation: Seq, raw: &Raw, stored: &super::raw::Stored) {
        let bytes = raw.checkpoint_bytes(stored, &mut self.decoder);
        if bytes.as_deref() == Ok(UNKNOWN_CHECKPOINT) {
            return self.found.state.doubt();
        }
        let said = bytes.and_then(|bytes| decode_checkpoint(&Checkpoint { next: stored.next, bytes }).map_err(|error| error.to_string()));
        match said {
            Ok(said) => {
                if let Some(what) = self.found.state.checkpoint(said) {
                    let since = self.since;
                    let what = format!("the checkpoint before event {} is not what the events before it make: {what}", stored.next);
                    self.add("checkpoint", Some(generation), Some("db"), None, what);
                    if let Some(part) = self.found.parts.iter_mut().find(|part| Some(part.first) == since) {
                        part.is_disowned = true;
                    }
                }
                self.since = Some(generation);
            }
            Err(what) => self.add("checkpoint", Some(generation), Some("db"), None, what),
        }
    }

    fn page(&mut self, generation: Seq, page: &Page) {
        self.found.state.gap(page.first);
        if let Err(what) = self.found.state.page(&page.sends) {
            self.misfit(generation, page.first, what);
        }
        let mut numbers: BTreeMap<&LaneKey, SendNo> = page.sends.iter().map(|(lane, next)| (lane, *next)).collect();
        for (seq, event) in (page.first.0..).map(Seq).zip(&page.events) {
            self.found.checked.events += 1;
            self.found.placeholders += u64::from(is_placeholder(event));
            if let Err(what) = self.found.state.event(event) {
                self.misfit(generation, seq, format!("it does not fit what came before: {what}"));
            }
            let lane = match event {
                Event::Accepted(accepted) => &accepted.lane,
                Event::Resent { delivery, .. } => &delivery.lane,
                _ => continue,
            };
            let Some(number) = numbers.get_mut(lane) else {
                self.misfit(generation, seq, "its page does not say which send it is".into());
                continue;
            };
            if matches!(event, Event::Accepted(_)) {
                if let Some(readable) = self.found.readable.get_mut(lane) {
                    readable.insert(number.0);
                } else {
                    self.found.readable.entry(lane.clone()).or_default().insert(number.0);
                }
            }
            *number = number.next();
        }
    }

    fn misfit(&mut self, generation: Seq, seq: Seq, what: String) {
        self.add("event", Some(generation), Some("db"), Some((seq, seq)), what);
        if let Some(part) = self.found.parts.last_mut() {
            part.misfits.push(seq);
        }
    }
}
