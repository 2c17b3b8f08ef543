//! A disk, and the log on it: pages as they are stored, in generations, by the real codec. It stands where sled stands.
//!
//! ```text
//!   append ─▶ pages ─▶ synced: they last                              ┐
//!                └──▶ the machine stops, or the sync fails: a prefix  ├─▶ opened again: pages that are whole, of commits that are whole
//!                     of them lasts, and perhaps a piece of the next  ┘
//! ```
//! What a start finds here it takes page by page, by checksum and by the commit's own count of pages; it ends where anything is missing. A
//! generation whose opening checkpoint is not whole was never begun.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tidings::core::event::Event;
use tidings::core::types::{LaneKey, Millis, SendNo, Seq};
use tidings::log::codec::{Decoder, Encoder, Kind, Limits, StoredPage, parse};
use tidings::log::{
    AppendError, Checkpoint, EventLog, Generation, Glimpse, LastStop, LogReader, Opened, Page, ReadError, Space, StoreId, Urgency,
};

/// Small pages, so that a commit has several.
const SEGMENT: usize = Limits::MIN_SEGMENT;

/// Stands in every page.
const TAG: u64 = 0x7469_6469_6e67_7321;

/// What is free on a disk with room.
const PLENTY: u64 = 1 << 40;

/// What becomes of the pages of the next write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// They last.
    Lasts,
    /// The sync fails, or the power does: so many pages last, and so many bytes of the one after.
    Breaks { pages: usize, bytes: usize },
}

/// How much room there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Plenty,
    /// What is left is kept for outcomes.
    Reserve,
    Nothing,
}

/// What has come to be durable, for whoever keeps books of it.
pub enum Durable {
    Events(Arc<Page>),
    /// A generation was begun.
    Begun,
    /// The oldest generation was dropped.
    Dropped,
}

#[derive(Clone)]
pub struct Disk(Arc<Mutex<Content>>);

struct Content {
    run: u64,
    generation_bytes: u64,
    generations: Vec<Stored>,
    last: Seq,
    is_clean: bool,
    is_copy: bool,
    fate: Fate,
    room: Room,
    durable: Vec<Durable>,
    /// Where the newest generation begins that somebody has been told of.
    begun: Seq,
    decoder: Decoder,
    /// Of the start that is under way.
    encoder: Encoder,
}

struct Stored {
    first: Seq,
    /// As they are on the disk: synced, all but for what a failed write has left at the end.
    pages: Vec<Vec<u8>>,
    decoded: BTreeMap<Seq, Arc<Page>>,
    bytes: u64,
    newest: Option<Millis>,
}

impl Stored {
    fn new(first: Seq) -> Self {
        Stored { first, pages: Vec::new(), decoded: BTreeMap::new(), bytes: 0, newest: None }
    }
}

/// What stands at the end of a generation that was written to when the machine stopped.
struct Found {
    checkpoint: Option<Checkpoint>,
    pages: Vec<Arc<Page>>,
    /// So many stored pages are whole.
    whole: usize,
    ends_with_checkpoint: bool,
}

impl Disk {
    /// An empty disk, on which a generation is full after so many bytes.
    pub fn new(generation_bytes: u64) -> Self {
        Disk(Arc::new(Mutex::new(Content {
            run: 0,
            generation_bytes,
            generations: vec![Stored::new(Seq::FIRST)],
            last: Seq(0),
            is_clean: false,
            is_copy: false,
            fate: Fate::Lasts,
            room: Room::Plenty,
            durable: Vec::new(),
            begun: Seq::FIRST,
            decoder: Decoder::new().expect("memory for a decoder"),
            encoder: encoder(0),
        })))
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().expect("nobody panics while holding it")
    }

    /// What becomes of the next write; the ones after it last.
    pub fn set_fate(&self, fate: Fate) {
        self.content().fate = fate;
    }

    pub fn set_room(&self, room: Room) {
        self.content().room = room;
    }

    pub fn room(&self) -> Room {
        self.content().room
    }

    /// The next start finds that the store is a copy.
    pub fn mark_as_copy(&self) {
        self.content().is_copy = true;
    }

    /// What has become durable since this was asked last.
    pub fn take_durable(&self) -> Vec<Durable> {
        std::mem::take(&mut self.content().durable)
    }

    /// Where the oldest generation begins that is still there.
    pub fn oldest(&self) -> Seq {
        self.content().generations[0].first
    }

    /// What the log takes, in bytes.
    pub fn bytes(&self) -> u64 {
        self.content().generations.iter().map(|generation| generation.bytes).sum()
    }

    /// Opens what is there, as after a stop or a crash.
    pub fn open(&self) -> Opened {
        let mut content = self.content();
        let content = &mut *content;
        content.run += 1;
        content.fate = Fate::Lasts;
        let found = loop {
            let newest = content.generations.last().expect("there is always one");
            let found = find(&mut content.decoder, newest);
            if newest.first == Seq::FIRST || found.checkpoint.is_some() {
                break found;
            }
            // It was not begun.
            content.generations.pop();
        };
        let known = content.last;
        let newest = content.generations.last_mut().expect("there is always one");
        newest.pages.truncate(found.whole);
        newest.bytes = newest.pages.iter().map(|page| page.len() as u64).sum();
        newest.decoded = found.pages.iter().map(|page| (page.first, Arc::clone(page))).collect();
        let last = found.pages.last().map_or(Seq(newest.first.0 - 1), |page| page.last());
        assert!(last >= known, "the disk has kept what was synced");
        // What was written and synced, and nobody had been told of it.
        if newest.first > content.begun {
            content.begun = newest.first;
            content.durable.push(Durable::Begun);
        }
        let unheard = found.pages.iter().filter(|page| page.first > known).cloned().map(Durable::Events);
        content.durable.extend(unheard);
        content.last = last;
        let last_stop = match (content.run, content.is_clean && found.ends_with_checkpoint) {
            (1, _) => LastStop::Fresh,
            (_, true) => LastStop::Clean,
            _ => LastStop::Unclean,
        };
        content.is_clean = false;
        content.encoder = encoder(content.run);
        let log = Log { disk: Arc::downgrade(&self.0), is_dead: false };
        Opened { log: Box::new(log), checkpoint: found.checkpoint, last_stop, is_copy: content.is_copy }
    }
}

fn encoder(run: u64) -> Encoder {
    Encoder::new(TAG, run, Limits::for_segment(SEGMENT)).expect("memory for an encoder")
}

/// Reads a generation from its first page to where something is missing.
fn find(decoder: &mut Decoder, stored: &Stored) -> Found {
    let mut found = Found { checkpoint: None, pages: Vec::new(), whole: 0, ends_with_checkpoint: false };
    let mut at = 0;
    while let Some(commit) = commit_at(&stored.pages[at..]) {
        let pages = &stored.pages[at..at + commit];
        let first = parse(TAG, &pages[0]).expect("looked at").header;
        found.ends_with_checkpoint = first.kind != Kind::Events;
        if first.kind == Kind::Events {
            let mut part = 0;
            while part < pages.len() {
                let parts = parse(TAG, &pages[part]).expect("looked at").header.parts as usize;
                let page = decoder.page(TAG, &pages[part..part + parts]).expect("whole pages hold what was written");
                found.pages.push(Arc::new(page));
                part += parts;
            }
        } else {
            let mut bytes = Vec::new();
            for page in pages {
                let parsed = parse(TAG, page).expect("looked at");
                decoder.checkpoint_part(&parsed, &mut bytes).expect("whole pages hold what was written");
            }
            found.checkpoint = Some(Checkpoint { next: first.first, bytes });
        }
        at += commit;
        found.whole = at;
    }
    found
}

/// How many pages the commit has that begins here; none if it is not whole.
fn commit_at(pages: &[Vec<u8>]) -> Option<usize> {
    let count = parse(TAG, pages.first()?).ok()?.header.pages as usize;
    let is_whole = |(number, page): (usize, &Vec<u8>)| {
        parse(TAG, page).is_ok_and(|parsed| parsed.header.page as usize == number && parsed.header.pages as usize == count)
    };
    (pages.len() >= count && pages[..count].iter().enumerate().all(is_whole)).then_some(count)
}

impl LogReader for Disk {
    fn page(&self, seq: Seq) -> Result<Option<Arc<Page>>, ReadError> {
        let mut content = self.content();
        if seq > content.last {
            return Ok(None);
        }
        let after = content.generations.partition_point(|generation| generation.first <= seq);
        let at = after.checked_sub(1).ok_or(ReadError::Gone(seq))?;
        let content = &mut *content;
        let generation = &mut content.generations[at];
        if generation.decoded.is_empty() {
            // Sealed before this start: read from its bytes.
            let found = find(&mut content.decoder, generation);
            generation.decoded = found.pages.into_iter().map(|page| (page.first, page)).collect();
        }
        Ok(generation.decoded.range(..=seq).next_back().map(|(_, page)| Arc::clone(page)))
    }

    fn durable(&self) -> Seq {
        self.content().last
    }

    fn glimpse(&self, seq: Seq) -> Result<Option<Glimpse>, ReadError> {
        let Some(page) = self.page(seq)? else { return Ok(None) };
        let content = self.content();
        let pages = content.generations.iter().flat_map(|generation| &generation.pages);
        let headers = pages.filter_map(|bytes| parse(TAG, bytes).ok()).filter(|parsed| parsed.header.kind == Kind::Events);
        // Of an event that spans several pages the first has the index.
        let index = headers.into_iter().find(|parsed| parsed.header.first == page.first).and_then(|parsed| parsed.index().ok());
        Ok(Some(Glimpse { first: page.first, last: page.last(), index: index.ok_or(ReadError::Gone(seq))? }))
    }

    fn generation(&self, seq: Seq) -> Option<(Seq, Option<Millis>)> {
        let content = self.content();
        let at = content.generations.partition_point(|generation| generation.first <= seq).checked_sub(1)?;
        let generation = &content.generations[at];
        Some((generation.first, generation.newest.filter(|_| at + 1 < content.generations.len())))
    }
}

/// The log of one start. After a failure the committer leaks it, so it holds on to nothing.
struct Log {
    disk: std::sync::Weak<Mutex<Content>>,
    is_dead: bool,
}

impl Log {
    fn on<T>(&self, act: impl FnOnce(&mut Content) -> T) -> T {
        act(&mut self.disk.upgrade().expect("the disk outlives its log").lock().expect("nobody panics while holding it"))
    }

    /// Writes pages, as far as they last.
    fn write(&mut self, pages: &[StoredPage]) -> Result<(), AppendError> {
        if self.is_dead {
            return Err(AppendError::Io("the log is dead".into()));
        }
        let outcome = self.on(|content| {
            let fate = std::mem::replace(&mut content.fate, Fate::Lasts);
            let generation = content.generations.last_mut().expect("there is always one");
            let (whole, torn) = match fate {
                Fate::Lasts => (pages.len(), 0),
                Fate::Breaks { pages: whole, bytes } => (whole.min(pages.len()), bytes),
            };
            for page in &pages[..whole] {
                generation.bytes += page.bytes.len() as u64;
                generation.pages.push(page.bytes.clone());
            }
            if let Some(page) = pages.get(whole).filter(|_| torn > 0) {
                generation.pages.push(page.bytes[..torn.min(page.bytes.len() - 1)].to_vec());
            }
            match fate {
                Fate::Lasts => Ok(()),
                Fate::Breaks { .. } => Err(AppendError::Io("the disk failed".into())),
            }
        });
        self.is_dead |= outcome.is_err();
        outcome
    }
}

impl EventLog for Log {
    fn store_id(&self) -> StoreId {
        StoreId(1)
    }

    fn next_seq(&self) -> Seq {
        self.on(|content| content.last.next())
    }

    fn append(&mut self, events: &[Event], next_send: &dyn Fn(&LaneKey) -> SendNo) -> Result<Seq, AppendError> {
        let first = self.next_seq();
        let pages = self.on(|content| content.encoder.events(first, events, next_send))?;
        self.write(&pages)?;
        Ok(self.on(|content| {
            let generation = content.generations.last_mut().expect("there is always one");
            generation.newest = generation.newest.max(pages.iter().filter_map(|page| page.newest).max());
            let mut at = 0;
            while at < pages.len() {
                // What is read is what the bytes say, and not what was given to be written.
                let parts = parse(TAG, &pages[at].bytes).expect("just written").header.parts as usize;
                let bytes: Vec<&[u8]> = pages[at..at + parts].iter().map(|page| &page.bytes[..]).collect();
                let page = Arc::new(content.decoder.page(TAG, &bytes).expect("what was just written can be read"));
                generation.decoded.insert(page.first, Arc::clone(&page));
                content.durable.push(Durable::Events(page));
                at += parts;
            }
            content.last = Seq(content.last.0 + events.len() as u64);
            content.last
        }))
    }

    fn is_generation_full(&self) -> bool {
        self.on(|content| {
            let newest = content.generations.last().expect("there is always one");
            newest.bytes >= content.generation_bytes && newest.first <= content.last
        })
    }

    fn begin_generation(&mut self, checkpoint: &[u8]) -> Result<(), AppendError> {
        let next = self.next_seq();
        if self.on(|content| content.generations.last().is_some_and(|newest| newest.first == next)) {
            return Ok(());
        }
        let pages = self.on(|content| content.encoder.checkpoint(Kind::OpeningCheckpoint, next, checkpoint))?;
        self.on(|content| content.generations.push(Stored::new(next)));
        self.write(&pages)?;
        self.on(|content| {
            content.begun = next;
            content.durable.push(Durable::Begun);
        });
        Ok(())
    }

    fn generations(&self) -> Vec<Generation> {
        let seen = |stored: &Stored| Generation { first: stored.first, newest: stored.newest, bytes: stored.bytes };
        self.on(|content| content.generations.iter().map(seen).collect())
    }

    fn drop_oldest_generation(&mut self) -> Result<(), AppendError> {
        self.on(|content| {
            content.generations.remove(0);
            content.durable.push(Durable::Dropped);
        });
        Ok(())
    }

    fn space(&self) -> Space {
        self.on(|content| Space {
            used: content.generations.iter().map(|stored| stored.bytes).sum(),
            free: if content.room == Room::Plenty { PLENTY } else { 0 },
            ballast: 0,
        })
    }

    fn make_room(&mut self, _bytes: u64, urgency: Urgency) -> Result<bool, AppendError> {
        Ok(self.on(|content| match content.room {
            Room::Plenty => true,
            Room::Reserve => urgency == Urgency::LastResort,
            Room::Nothing => false,
        }))
    }

    fn make_room_to_begin(&mut self, _bytes: u64) -> Result<bool, AppendError> {
        Ok(self.on(|content| content.room != Room::Nothing))
    }

    fn tick(&mut self) -> Result<(), AppendError> {
        Ok(())
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        Arc::new(Disk(self.disk.upgrade().expect("the disk outlives its log")))
    }

    fn adopt_copy(&mut self) -> Result<(), AppendError> {
        self.on(|content| content.is_copy = false);
        Ok(())
    }

    fn close(mut self: Box<Self>, checkpoint: &[u8]) -> Result<(), AppendError> {
        let next = self.next_seq();
        let pages = self.on(|content| content.encoder.checkpoint(Kind::Checkpoint, next, checkpoint))?;
        self.write(&pages)?;
        self.on(|content| content.is_clean = true);
        Ok(())
    }
}
