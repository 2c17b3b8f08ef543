//! The service: the real committer over the simulated disk, the real way of a report from its bytes to the log, and the lanes. Started, stopped and
//! crashed by the world; what it does in which order is what `app` does.

use std::collections::BTreeMap;
use std::future::Future;
use std::num::NonZeroU32;
use std::sync::Arc;

use tidings::core::event::{DeliveryRef, Event, LanePurpose};
use tidings::core::outbox::LaneSet;
use tidings::core::ranges::Ranges;
use tidings::core::retry::RetryPolicy;
use tidings::core::session::Settings;
use tidings::core::types::{ConnectionName, LaneKey, SendNo};
use tidings::ingest::accept::{AcceptError, Answer, Ingest};
use tidings::ingest::lanes::LaneSpan;
use tidings::ingest::mqtt::registry::Registry;
use tidings::ingest::mqtt::sessions::Sessions;
use tidings::ingest::mqtt::store::Store;
use tidings::ingest::routing::{InForce, Routing};
use tidings::log::committer::{Appended, CommitError, Committed, Limits, LogHandle, Stepped, recover, stepped};

use crate::client::Listener;
use crate::disk::{Fate, Room};
use crate::lane::{Lane, Waiting, look};
use crate::producer::{connection_name, routes};
use crate::trace::{say, violated};
use crate::world::{ACK_TIMEOUT_MS, What, World, clock};

/// Lanes get so long to finish what is in flight, as in the service.
const DRAIN_MS: u64 = 10_000;

pub type Posted = Waiting<'static, Result<Committed<Answer>, AcceptError>>;

pub struct Process {
    pub handle: LogHandle,
    pub stepped: Stepped,
    pub ingest: Ingest,
    pub lanes: BTreeMap<LaneKey, Lane>,
    /// Requests whose answer is awaited, by request and attempt.
    pub posts: BTreeMap<(usize, u32), Posted>,
    /// MQTT clients.
    pub listener: Listener,
    /// What an operator has asked for.
    operating: Option<Waiting<'static, Result<Committed<Appended>, CommitError>>>,
    is_commit_due: bool,
    pub is_stopping: bool,
}

/// Runs something to its end, with the committer at work.
fn finish<T>(stepped: &mut Stepped, work: impl Future<Output = T> + 'static) -> T {
    let mut work: Waiting<'_, T> = Box::pin(work);
    loop {
        if let Some(done) = look(&mut work) {
            return done;
        }
        if !stepped.step() {
            return look(&mut work).unwrap_or_else(|| violated("the committer does not answer".into()));
        }
    }
}

impl World {
    /// The service starts: whatever the disk has, it has to be found.
    pub fn start(&mut self) {
        self.run += 1;
        if self.disk.room() == Room::Nothing {
            // It gives up its ballast.
            self.disk.set_room(Room::Reserve);
        }
        let opened = self.disk.open();
        self.oracle.take_down(self.disk.take_durable());
        say!(self, "service: start {}, after a stop that was {:?}, at event {}", self.run, opened.last_stop, opened.log.next_seq());
        let outbox = recover(&opened).unwrap_or_else(|error| violated(format!("what is on the disk can't be recovered: {error}")));
        self.oracle.compare_recovered(&outbox, "what a start recovers");
        self.oracle.restarted(self.run);
        let retention_ms = if self.story.retains_nothing { 0 } else { u64::MAX };
        let is_copy = opened.is_copy;
        let (handle, mut stepped) = stepped(opened.log, outbox, Limits { max_size: u64::MAX, retention_ms }, self.metrics.clone());
        if is_copy {
            let (log, at) = (handle.clone(), self.wall());
            finish(&mut stepped, async move {
                log.record(vec![Event::EpochBumped { reason: "the store is a copy of another".into(), at }]).await.expect("it is durable");
                log.adopt_copy().await.expect("it is adopted");
            });
        }
        if self.chance.percent(25) {
            self.story.workers = self.chance.within(1, 3) as u32;
        }
        let (mut lanes, mut spans) = (BTreeMap::new(), Vec::new());
        for number in 0..self.brokers.len() {
            let name = connection_name(number);
            let (span, replaced) = self.newest(&handle, &mut stepped, &name);
            spans.push((name.clone(), span));
            for lane in self.lanes_to_run(&stepped, &name, span, replaced) {
                lanes.insert(lane.settings.lane.clone(), lane);
            }
        }
        let routing =
            Routing { routes: routes(self.brokers.len()), lanes: spans.into_iter().collect(), max_report: 1 << 20, max_batch: 4 << 20 };
        let routing = InForce::new(routing);
        let registry = Arc::new(Registry::counting(self.run << 32));
        let sessions = Sessions::recover(handle.clone(), Arc::clone(&registry), clock);
        let sessions = finish(&mut stepped, sessions).expect("the log knows which sessions there are");
        let connection = connection_name(0);
        let store = Store { log: handle.clone(), connection, routing: routing.clone(), metrics: self.metrics.clone(), clock };
        let listener = Listener::new(store, sessions, registry);
        let ingest = Ingest { log: handle.clone(), routing, metrics: self.metrics.clone() };
        self.process = Some(Process {
            handle,
            stepped,
            ingest,
            lanes,
            posts: BTreeMap::new(),
            listener,
            operating: None,
            is_commit_due: false,
            is_stopping: false,
        });
        self.after(1_000, What::Housekeeping { run: self.run });
        self.see_commit();
    }

    /// As `app::lanes::newest`.
    fn newest(&mut self, handle: &LogHandle, stepped: &mut Stepped, name: &ConnectionName) -> (LaneSpan, Option<LaneSet>) {
        let outbox = stepped.outbox().expect("it has just started");
        let known = outbox.connections().get(name).map(|known| (known.newest_set(LanePurpose::Fresh), known.next_lane()));
        let (set, first) = known.unwrap_or_default();
        let count = NonZeroU32::new(self.story.workers).expect("a connection has workers");
        if let Some(set) = set.filter(|set| set.count == self.story.workers) {
            return (LaneSpan { first: set.first, count }, None);
        }
        let (log, at) = (handle.clone(), self.wall());
        let event = Event::LanesChanged { connection: name.clone(), first, count: count.get(), purpose: LanePurpose::Fresh, at };
        finish(stepped, async move { log.record(vec![event]).await.map(drop).expect("it is durable") });
        (LaneSpan { first, count }, set)
    }

    /// As `app::lanes::to_run`.
    fn lanes_to_run(&self, stepped: &Stepped, name: &ConnectionName, newest: LaneSpan, replaced: Option<LaneSet>) -> Vec<Lane> {
        let known = &stepped.outbox().expect("it has just started").connections()[name];
        let is_to_run = |set: &LaneSet, number: &u32| {
            let lane = &known.lanes[number];
            lane.pending() > 0 || (replaced == Some(*set) && !lane.endpoint.is_empty())
        };
        let older: Vec<(u32, u32)> = known
            .sets
            .iter()
            .filter(|set| set.first != newest.first)
            .flat_map(|set| (set.first..set.first + set.count).filter(|number| is_to_run(set, number)).map(|number| (number, set.first)))
            .collect();
        let lane = |number, after, is_retired| {
            let settings = self.settings(LaneKey { connection: name.clone(), lane: number });
            Lane::new(Settings { is_retired, ..settings }, after)
        };
        let after = (!older.is_empty()).then_some(newest.first);
        let older = older.iter().map(|(number, first)| lane(*number, Some(*first), true));
        older.chain((newest.first..newest.first + newest.count.get()).map(|number| lane(number, after, false))).collect()
    }

    fn settings(&self, lane: LaneKey) -> Settings {
        Settings {
            client_id: format!("tidings-{}", lane.connection),
            lane,
            endpoints: vec!["broker:1883 ".into()],
            failback_ms: 60_000,
            protocol: self.story.protocol,
            keepalive_s: 10,
            window_5: self.story.window,
            window_3_1_1: self.story.window,
            session_expiry_s: 7 * 24 * 3_600,
            connect_timeout_ms: 1_500,
            ack_timeout_ms: ACK_TIMEOUT_MS,
            retry: RetryPolicy { initial_ms: 50, max_ms: 1_000, attempts: 3 },
            downgrade: false,
            is_retired: false,
            packet_ids: self.story.packet_ids,
            claims: false,
        }
    }

    /// There is something for the committer to do.
    pub fn commit_soon(&mut self) {
        let most = self.story.disk_ms;
        let Some(process) = &mut self.process else { return };
        if !std::mem::replace(&mut process.is_commit_due, true) {
            let delay = self.chance.within(most / 4, most);
            self.after(delay, What::Commit { run: self.run });
        }
    }

    pub fn on_commit(&mut self, run: u64) {
        if self.run != run {
            return;
        }
        let Some(process) = &mut self.process else { return };
        process.is_commit_due = false;
        // What writes nothing takes no time.
        let before = process.handle.progress().borrow().committed;
        while process.stepped.step() {
            let progress = process.handle.progress();
            let now = progress.borrow();
            if now.committed > before || now.failed.is_some() {
                break;
            }
        }
        // There may be more.
        if process.stepped.has_more() {
            self.commit_soon();
        }
        self.see_commit();
    }

    pub fn on_housekeeping(&mut self, run: u64) {
        if self.run != run {
            return;
        }
        if let Some(process) = &mut self.process {
            process.stepped.tick();
            self.after(1_000, What::Housekeeping { run });
            self.see_commit();
        }
    }

    /// What follows from what the committer has done.
    fn see_commit(&mut self) {
        let durable = self.disk.take_durable();
        if self.trace.is_on() {
            for what in &durable {
                if let crate::disk::Durable::Events(page) = what {
                    say!(self, "disk: durable from event {}: {:?}", page.first, page.events);
                }
            }
        }
        self.oracle.take_down(durable);
        let Some(process) = &self.process else { return };
        let failed = process.handle.progress().borrow().failed.clone();
        if let Some(what) = failed {
            say!(self, "service: the store has failed ({what}), it stops");
            // Who waits for an answer gets it still, or none.
            self.wake_posts();
            self.wake_conversations();
            return self.crash_now();
        }
        if let Some(outbox) = process.stepped.outbox() {
            self.oracle.compare(outbox, "the live outbox");
        }
        self.wake_posts();
        self.wake_conversations();
        self.wake_lanes();
        if let Some(process) = &mut self.process
            && process.operating.as_mut().is_some_and(|operating| look(operating).is_some())
        {
            process.operating = None;
        }
    }

    // -- the end of it --

    /// Between an answer that is given after `ms` and its outcome on the disk there is little time. A crash is to come just then more often than by
    /// chance.
    pub fn crash_at_a_bad_moment(&mut self, broker: usize, ms: u64) {
        if self.is_calm || self.story.troubles.crash == 0 || !self.chance.percent(25) {
            return;
        }
        let latest = 2 * self.brokers[broker].story.network_ms + self.story.disk_ms;
        let after = ms + self.chance.within(1, latest);
        self.after(after, What::Crash);
    }

    /// The process or the machine stops, whatever is under way.
    pub fn crash(&mut self) {
        let (pages, bytes) = (self.chance.below(3) as usize, self.chance.below(300) as usize);
        let is_writing = self.chance.percent(60);
        if let Some(process) = &mut self.process
            && is_writing
            && process.handle.queue().requests > 0
        {
            // A commit is under way: some of its pages last.
            self.disk.set_fate(Fate::Breaks { pages, bytes });
            process.stepped.step();
        }
        self.crash_now();
    }

    fn crash_now(&mut self) {
        self.process = None;
        for way in self.open_ways() {
            self.client_is_cut_off(way);
        }
        let ours: Vec<u64> = self.links.iter().filter(|(_, link)| link.is_open_here).map(|(number, _)| *number).collect();
        for link in ours {
            self.vanish(link);
        }
        let delay = self.chance.within(1, 400);
        self.after(delay, What::Start);
    }

    /// It is told to stop: no more is accepted, what is in flight is finished.
    pub fn stop(&mut self) {
        let Some(process) = &mut self.process else { return };
        if std::mem::replace(&mut process.is_stopping, true) {
            return;
        }
        say!(self, "service: it is told to stop");
        self.drain_lanes(|_| true);
        self.end_conversations();
        self.after(DRAIN_MS, What::StopNow { run: self.run });
        self.stop_if_drained();
    }

    /// Once nothing is in flight, or at the end of patience.
    pub fn stop_if_drained(&mut self) {
        if self.process.as_ref().is_some_and(|process| process.is_stopping && process.lanes.is_empty()) && !self.has_conversations() {
            self.stop_now();
        }
    }

    pub fn stop_now(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        for way in self.open_ways() {
            self.client_is_cut_off(way);
        }
        drop(process.listener);
        let ours: Vec<u64> = self.links.iter().filter(|(_, link)| link.is_open_here).map(|(number, _)| *number).collect();
        for link in ours {
            self.vanish(link);
        }
        drop(process.lanes);
        let log = process.handle.clone();
        let stopped = finish(&mut process.stepped, async move { log.stop().await });
        self.oracle.take_down(self.disk.take_durable());
        say!(self, "service: it has stopped: {stopped:?}");
        let delay = self.chance.within(1, 400);
        self.after(delay, What::Start);
    }

    // -- the operator --

    /// Gives dead letters back, or up.
    pub fn operate(&mut self) {
        let mut dead = self.oracle.dead();
        let (at, is_requeue) = (self.wall(), self.chance.percent(70));
        let Some(process) = self.process.as_mut().filter(|process| process.operating.is_none() && !process.is_stopping) else { return };
        // A lane of an older set that has ended takes nothing back before the next start.
        dead.retain(|(lane, ..)| !is_requeue || process.lanes.contains_key(lane));
        if dead.is_empty() {
            return;
        }
        let outbox = process.stepped.outbox().expect("it is at work");
        let events = dead
            .into_iter()
            .map(|(lane, send, _)| {
                let known = &outbox.lane(&lane).expect("it has a dead letter").dead()[&SendNo(send)];
                match is_requeue {
                    true => Event::Requeued { delivery: DeliveryRef::to_dead(lane, SendNo(send), known), by: "ops".into(), at },
                    false => {
                        Event::Discarded { lane, sends: Ranges::one(send), dead: true, by: "ops".into(), reason: "of no use".into(), at }
                    }
                }
            })
            .collect();
        let log = process.handle.clone();
        let mut operating: Waiting<_> = Box::pin(async move { log.record(events).await });
        if look(&mut operating).is_none() {
            process.operating = Some(operating);
        }
        say!(self, "operator: dead letters are {}", if is_requeue { "requeued" } else { "discarded" });
        self.commit_soon();
    }

    pub fn disk_has_room_again(&mut self) {
        self.disk.set_room(Room::Plenty);
    }
}
