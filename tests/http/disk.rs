//! A log in memory whose disk does what the test says: fills up, fails, or takes its time. It outlives the service, as a disk does.

use std::sync::{Arc, Condvar, Mutex};

use tidings::core::event::Event;
use tidings::core::types::{LaneKey, Millis, SendNo, Seq};
use tidings::log::{AppendError, EventLog, Generation, Glimpse, LastStop, LogReader, Opened, Page, ReadError, Space, StoreId};

#[derive(Clone, Default)]
pub struct Disk(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    pages: Vec<Arc<Page>>,
    is_held: bool,
    is_broken: bool,
    used: u64,
    /// Appends that have begun, finished or not.
    begun: usize,
}

impl State {
    fn next(&self) -> Seq {
        self.pages.last().map_or(Seq::FIRST, |page| page.last().next())
    }
}

impl Disk {
    pub fn open(&self) -> Opened {
        Opened { log: Box::new(self.clone()), checkpoint: None, last_stop: LastStop::Unclean, is_copy: false }
    }

    /// Everything that is durable.
    pub fn events(&self) -> Vec<Event> {
        self.0.state.lock().unwrap().pages.iter().flat_map(|page| page.events.clone()).collect()
    }

    /// The payloads of all accepted deliveries.
    pub fn payloads(&self) -> Vec<Vec<u8>> {
        let events = self.events().into_iter();
        events.filter_map(|event| if let Event::Accepted(accepted) = event { Some(accepted.payload.to_vec()) } else { None }).collect()
    }

    /// Appends wait until it is let go.
    pub fn hold(&self) {
        self.0.state.lock().unwrap().is_held = true;
    }

    pub fn let_go(&self) {
        self.0.state.lock().unwrap().is_held = false;
        self.0.changed.notify_all();
    }

    /// Waits until so many appends have begun in all.
    pub fn wait_for_appends(&self, count: usize) {
        let state = self.0.state.lock().unwrap();
        let (_state, waited) = self.0.changed.wait_timeout_while(state, super::service::PATIENCE, |state| state.begun < count).unwrap();
        assert!(!waited.timed_out(), "no append began");
    }

    pub fn appends(&self) -> usize {
        self.0.state.lock().unwrap().begun
    }

    pub fn break_down(&self) {
        self.0.state.lock().unwrap().is_broken = true;
    }

    pub fn fill(&self, used: u64) {
        self.0.state.lock().unwrap().used = used;
    }
}

impl EventLog for Disk {
    fn store_id(&self) -> StoreId {
        StoreId(0xab)
    }

    fn next_seq(&self) -> Seq {
        self.0.state.lock().unwrap().next()
    }

    fn append(&mut self, events: &[Event], next_send: &dyn Fn(&LaneKey) -> SendNo) -> Result<Seq, AppendError> {
        let mut state = self.0.state.lock().unwrap();
        state.begun += 1;
        self.0.changed.notify_all();
        state = self.0.changed.wait_while(state, |state| state.is_held).unwrap();
        if state.is_broken {
            return Err(AppendError::Io("the disk is broken".into()));
        }
        let mut sends: Vec<(LaneKey, SendNo)> = Vec::new();
        for event in events {
            if let Event::Accepted(accepted) = event
                && !sends.iter().any(|(lane, _)| *lane == accepted.lane)
            {
                sends.push((accepted.lane.clone(), next_send(&accepted.lane)));
            }
        }
        // Small pages, so that a request spans several.
        for (number, events) in events.chunks(3).enumerate() {
            let page = Page { first: state.next(), events: events.to_vec(), sends: if number == 0 { sends.clone() } else { Vec::new() } };
            state.pages.push(Arc::new(page));
        }
        Ok(Seq(state.next().0 - 1))
    }

    fn is_generation_full(&self) -> bool {
        false
    }

    fn begin_generation(&mut self, _checkpoint: &[u8]) -> Result<(), AppendError> {
        Ok(())
    }

    fn generations(&self) -> Vec<Generation> {
        vec![Generation { first: Seq::FIRST, newest: None, bytes: 0 }]
    }

    fn drop_oldest_generation(&mut self) -> Result<(), AppendError> {
        Ok(())
    }

    fn space(&self) -> Space {
        Space { used: self.0.state.lock().unwrap().used, free: 1 << 40, ballast: 0 }
    }

    fn tick(&mut self) -> Result<(), AppendError> {
        Ok(())
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        Arc::new(self.clone())
    }

    fn adopt_copy(&mut self) -> Result<(), AppendError> {
        Ok(())
    }

    fn close(self: Box<Self>, _checkpoint: &[u8]) -> Result<(), AppendError> {
        Ok(())
    }
}

impl LogReader for Disk {
    fn page(&self, seq: Seq) -> Result<Option<Arc<Page>>, ReadError> {
        let state = self.0.state.lock().unwrap();
        Ok(state.pages.iter().find(|page| page.first <= seq && seq <= page.last()).cloned())
    }

    fn durable(&self) -> Seq {
        self.0.state.lock().unwrap().pages.iter().map(|page| page.last()).max().unwrap_or_default()
    }

    fn glimpse(&self, seq: Seq) -> Result<Option<Glimpse>, ReadError> {
        unreachable!("nobody searches this log, as for {seq}")
    }

    fn generation(&self, _seq: Seq) -> Option<(Seq, Option<Millis>)> {
        None
    }
}
