//! A lane at work, as `delivery::lane` drives it: the real session, fed by the real feed. Where that waits for whatever comes first, here the world
//! says what comes first.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tidings::core::event::Event;
use tidings::core::outbox::Lane as LaneState;
use tidings::core::session::{Incoming, Input, Note, Outgoing, Output, Session, Settings};
use tidings::core::types::{LaneKey, Millis, Qos, SendNo, Seq};
use tidings::delivery::feed::{Feed, Payload};
use tidings::log::ReadError;
use tidings::log::committer::{Appended, CommitError, Committed, Ticket};

use crate::network::Packet;
use crate::trace::{say, violated};
use crate::world::{What, World};

/// A lane whose reading was overtaken starts anew after this.
const ANEW_MS: u64 = 200;

/// What comes of something that waits for the committer.
pub type Waiting<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

type Snapshot = Result<Committed<Option<(LaneState, Seq)>>, CommitError>;

/// Looks whether it has come. Whatever the runtime thinks of somebody who looks so often.
pub fn look<T>(waiting: &mut Waiting<'_, T>) -> Option<T> {
    match std::pin::pin!(tokio::task::unconstrained(waiting)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(what) => Some(what),
        Poll::Pending => None,
    }
}

pub struct Lane {
    pub settings: Settings,
    /// Its set begins when those below this number are empty.
    pub after: Option<u32>,
    pub work: Work,
    timer: Option<u64>,
}

pub enum Work {
    /// Earlier sets have something left.
    Idle,
    /// It has asked what the log knows of it.
    Asking(Waiting<'static, Snapshot>),
    /// It starts anew in a moment.
    Anew,
    At(Box<AtWork>),
    Ended,
}

pub struct AtWork {
    session: Session,
    feed: Feed,
    is_at_end: bool,
    is_reading: bool,
    payloads: BTreeMap<SendNo, Payload>,
    permits: BTreeMap<SendNo, Committed<()>>,
    appends: VecDeque<Ticket>,
    link: Option<u64>,
    client: String,
    /// What each packet identifier stands for on this connection.
    wire: BTreeMap<u16, (Seq, Qos)>,
    /// Its clock is the wall clock at its start, and steady from then on.
    clock_ms: u64,
    is_drained: bool,
    /// What had a new number was pending at its start.
    has_resent: bool,
    /// The session on this connection goes on where the last one ended.
    is_resumed: bool,
}

impl Lane {
    pub fn new(settings: Settings, after: Option<u32>) -> Self {
        Lane { settings, after, work: Work::Idle, timer: None }
    }

    pub fn link(&self) -> Option<u64> {
        match &self.work {
            Work::At(at) => at.link,
            _ => None,
        }
    }
}

impl World {
    /// Hands something to a lane, if it is there and at work.
    fn with_lane(&mut self, key: &LaneKey, act: impl FnOnce(&mut World, &mut Lane)) {
        let Some(mut lane) = self.process.as_mut().and_then(|process| process.lanes.remove(key)) else { return };
        act(self, &mut lane);
        if let Some(process) = &mut self.process
            && !matches!(lane.work, Work::Ended)
        {
            process.lanes.insert(key.clone(), lane);
        }
    }

    fn with_work(&mut self, key: &LaneKey, act: impl FnOnce(&mut World, &mut Lane, &mut AtWork)) {
        self.with_lane(key, |world, lane| match std::mem::replace(&mut lane.work, Work::Ended) {
            Work::At(mut at) => {
                act(world, lane, &mut at);
                // It may have begun anew.
                if matches!(lane.work, Work::Ended) {
                    world.settle_lane(lane, at);
                }
            }
            other => lane.work = other,
        });
    }

    /// The lane of a connection, if it is still the one that has made it.
    fn lane_of(&self, link: u64) -> Option<LaneKey> {
        let lanes = &self.process.as_ref()?.lanes;
        lanes.iter().find(|(_, lane)| lane.link() == Some(link)).map(|(key, _)| key.clone())
    }

    pub fn lane_is_connected(&mut self, link: u64) {
        match self.lane_of(link) {
            Some(key) => self.with_work(&key, |world, lane, at| world.give(lane, at, Input::Opened)),
            // Nobody waits for it any more.
            None => self.close(link),
        }
    }

    pub fn lane_is_closed(&mut self, link: u64, reason: &str) {
        let Some(key) = self.lane_of(link) else { return };
        self.with_work(&key, |world, lane, at| {
            at.link = None;
            world.give(lane, at, Input::Closed { reason: reason.into() });
        });
    }

    pub fn lane_has_flushed(&mut self, link: u64, sends: Vec<SendNo>) {
        let Some(key) = self.lane_of(link) else { return };
        self.with_work(&key, |world, lane, at| world.give(lane, at, Input::Flushed(sends)));
    }

    pub fn lane_receives(&mut self, link: u64, incoming: Incoming) {
        let Some(key) = self.lane_of(link) else { return };
        say!(self, "lane {key} reads on connection {link}: {incoming:?}");
        self.with_work(&key, |world, lane, at| {
            if let Incoming::PubRec(ack) = &incoming
                && (ack.code < 0x80 || ack.code == tidings::core::retry::code::ID_IN_USE)
                && let Some((id, Qos::ExactlyOnce)) = at.wire.get(&ack.packet_id)
            {
                world.oracle.recorded(*id);
            }
            world.give(lane, at, Input::Received(vec![incoming]));
        });
    }

    pub fn on_lane_timer(&mut self, run: u64, key: &LaneKey, due: u64) {
        if self.run != run {
            return;
        }
        self.with_lane(key, |world, lane| {
            if lane.timer != Some(due) {
                return;
            }
            lane.timer = None;
            match std::mem::replace(&mut lane.work, Work::Ended) {
                Work::At(mut at) => {
                    if at.session.deadline().is_some_and(|deadline| deadline.0 <= at.clock_ms + world.now) {
                        world.give(lane, &mut at, Input::Tick);
                    }
                    world.settle_lane(lane, at);
                }
                other => lane.work = other,
            }
        });
    }

    pub fn drain_lanes(&mut self, which: impl Fn(&LaneKey) -> bool) {
        let keys: Vec<LaneKey> = self.process.iter().flat_map(|process| process.lanes.keys()).filter(|key| which(key)).cloned().collect();
        for key in keys {
            self.with_lane(&key, |world, lane| {
                // A lane that has not begun never does.
                if let Work::At(mut at) = std::mem::replace(&mut lane.work, Work::Ended) {
                    at.is_drained = true;
                    world.give(lane, &mut at, Input::Drain);
                    world.settle_lane(lane, at);
                }
            });
        }
    }

    /// Looks after lanes that wait for the committer, when that has done something.
    pub fn wake_lanes(&mut self) {
        let keys: Vec<LaneKey> = self.process.iter().flat_map(|process| process.lanes.keys().cloned()).collect();
        for key in keys {
            self.with_lane(&key, |world, lane| world.wake_lane(lane));
        }
    }

    fn wake_lane(&mut self, lane: &mut Lane) {
        match std::mem::replace(&mut lane.work, Work::Ended) {
            Work::Idle => {
                lane.work = Work::Idle;
                if self.has_turn_come(lane) {
                    self.ask_for_start(lane);
                }
            }
            Work::Asking(mut asking) => match look(&mut asking) {
                None => lane.work = Work::Asking(asking),
                Some(Ok(snapshot)) => self.start_lane(lane, snapshot),
                // The log has stopped.
                Some(Err(_)) => {}
            },
            Work::At(mut at) => {
                while let Some(ticket) = at.appends.front_mut() {
                    let mut answer: Waiting<_> = Box::pin(ticket.answer());
                    let Some(result) = look(&mut answer) else { break };
                    drop(answer);
                    let Ok(appended) = result else { return };
                    at.appends.pop_front();
                    self.committed(lane, &mut at, appended);
                }
                // The log has grown.
                at.is_at_end = false;
                self.settle_lane(lane, at);
            }
            other @ (Work::Anew | Work::Ended) => lane.work = other,
        }
    }

    fn has_turn_come(&self, lane: &Lane) -> bool {
        let (Some(after), Some(process)) = (lane.after, &self.process) else { return true };
        let progress = process.handle.progress();
        let known = progress.borrow();
        let books = known.connections.get(&lane.settings.lane.connection);
        books.is_none_or(|books| books.lanes.range(..after).all(|(_, pending)| *pending == 0))
    }

    pub fn on_anew(&mut self, run: u64, key: &LaneKey) {
        if self.run == run {
            self.with_lane(key, |world, lane| world.ask_for_start(lane));
        }
    }

    fn ask_for_start(&mut self, lane: &mut Lane) {
        let Some(process) = &self.process else { return };
        let (handle, asked) = (process.handle.clone(), lane.settings.lane.clone());
        let mut asking: Waiting<Snapshot> =
            Box::pin(
                async move { handle.ask_in_order(move |outbox| outbox.lane(&asked).cloned().map(|lane| (lane, outbox.next()))).await },
            );
        let answer = look(&mut asking);
        assert!(answer.is_none(), "the committer has not been at work");
        lane.work = Work::Asking(asking);
        self.commit_soon();
    }

    fn start_lane(&mut self, lane: &mut Lane, snapshot: Committed<Option<(LaneState, Seq)>>) {
        let Some(process) = &self.process else { return };
        let key = lane.settings.lane.clone();
        let released = snapshot.map_ref(|_| ());
        let Some((state, next)) = snapshot.into_inner() else { violated(format!("lane {key} is not in the log")) };
        let mut feed = Feed::new(process.handle.clone(), key.clone(), state, Seq(next.0 - 1), false);
        let (mut start, payloads) = match feed.start() {
            Ok(start) => start,
            Err(error) => return self.begin_anew(lane, &error),
        };
        let wall = self.wall().0;
        start.at = Millis(wall);
        let latest = Millis(wall).plus(lane.settings.retry.max_ms);
        for (_, retry_at, _) in &mut start.waiting {
            *retry_at = latest.min(*retry_at);
        }
        say!(self, "lane {key} starts: {start:?}");
        let has_resent = !start.resent.is_empty();
        let permits = start.released.iter().map(|send| (*send, released.map_ref(|()| ()))).collect();
        self.oracle.lane_restarted(&key);
        let mut at = Box::new(AtWork {
            session: Session::new(lane.settings.clone(), start),
            feed,
            is_at_end: false,
            is_reading: false,
            payloads: payloads.into_iter().collect(),
            permits,
            appends: VecDeque::new(),
            link: None,
            client: String::new(),
            wire: BTreeMap::new(),
            clock_ms: wall - self.now,
            is_drained: false,
            has_resent,
            is_resumed: false,
        });
        self.give(lane, &mut at, Input::Tick);
        self.settle_lane(lane, at);
    }

    fn begin_anew(&mut self, lane: &mut Lane, error: &ReadError) {
        if !matches!(error, ReadError::Gone(_)) {
            violated(format!("lane {} can't read what is in the log: {error}", lane.settings.lane));
        }
        say!(self, "lane {} begins anew: {error}", lane.settings.lane);
        lane.work = Work::Anew;
        self.after(ANEW_MS, What::Anew { run: self.run, lane: lane.settings.lane.clone() });
    }

    fn committed(&mut self, lane: &mut Lane, at: &mut AtWork, appended: Committed<Appended>) {
        let proof = appended.map_ref(|_| ());
        let resent = match appended.into_inner() {
            Appended::New { resent, .. } => resent,
            Appended::Known(_) => Vec::new(),
        };
        let jitter = self.chance.next() as u32;
        at.session.handle(Millis(at.clock_ms + self.now), jitter, Input::Committed { resent });
        while let Some(output) = at.session.next_output() {
            match output {
                Output::Note(Note::Releasable { sends }) => {
                    at.permits.extend(sends.into_iter().map(|send| (send, proof.map_ref(|()| ()))));
                }
                other => self.act(lane, at, other),
            }
        }
    }

    fn give(&mut self, lane: &mut Lane, at: &mut AtWork, input: Input) {
        let jitter = self.chance.next() as u32;
        at.session.handle(Millis(at.clock_ms + self.now), jitter, input);
        while let Some(output) = at.session.next_output() {
            self.act(lane, at, output);
        }
    }

    fn act(&mut self, lane: &mut Lane, at: &mut AtWork, output: Output) {
        match output {
            Output::Open { .. } => {
                let broker = self.broker_of(&lane.settings.lane.connection);
                at.link = Some(self.connect(lane.settings.lane.clone(), broker));
                at.wire.clear();
            }
            Output::Close => {
                if let Some(link) = at.link.take() {
                    self.close(link);
                }
            }
            Output::Look { .. } => violated("there is one server, and another is looked for".into()),
            Output::Append(events) => self.append(lane, at, events),
            Output::Send(packet) => self.send(lane, at, packet),
            Output::Note(note) => self.note(lane, at, note),
        }
    }

    fn append(&mut self, lane: &Lane, at: &mut AtWork, events: Vec<Event>) {
        let Some(process) = &self.process else { return };
        say!(self, "lane {} records {events:?}", lane.settings.lane);
        let handle = process.handle.clone();
        let mut submitting: Waiting<Result<Ticket, CommitError>> = Box::pin(async move { handle.submit(events).await });
        if let Some(Ok(ticket)) = look(&mut submitting) {
            at.appends.push_back(ticket);
        }
        self.commit_soon();
    }

    fn send(&mut self, lane: &Lane, at: &mut AtWork, packet: Outgoing) {
        let key = &lane.settings.lane;
        let Some(link) = at.link else { violated(format!("lane {key} writes without a connection: {packet:?}")) };
        let mut id = None;
        match &packet {
            Outgoing::Connect { client_id, .. } => {
                at.client.clone_from(client_id);
                if let Some(link) = self.links.get_mut(&link) {
                    link.client.clone_from(client_id);
                }
            }
            Outgoing::Publish { send, packet_id, dup, qos, .. } => {
                let Some(payload) = at.payloads.get(send) else { violated(format!("lane {key} has no payload for send {send}")) };
                let published = payload.get().stamp().id;
                let accepted = payload.get().accepted().expect("it was accepted, and can be decoded");
                let known = self.oracle.known(published);
                if *qos != known.qos || crate::oracle::number_of(&accepted.payload) != known.number || accepted.lane != known.lane {
                    violated(format!("delivery {published} is sent as something else"));
                }
                let expected = (*qos != Qos::AtMostOnce).then(|| send.packet_id(self.story.packet_ids));
                if *packet_id != expected {
                    violated(format!("send {send} has packet id {packet_id:?}, and not {expected:?}"));
                }
                let is_in_doubt = *dup || (at.is_resumed && *qos == Qos::AtMostOnce);
                self.oracle.publishes(published, link, &at.client, is_in_doubt);
                if let Some(packet_id) = packet_id {
                    at.wire.insert(*packet_id, (published, *qos));
                }
                id = Some(published);
            }
            Outgoing::PubRel { send, packet_id } => {
                if !at.permits.contains_key(send) || !self.oracle.is_released(key, send.0) {
                    violated(format!("PUBREL of send {send} of lane {key} leaves, and its release is not durable"));
                }
                let released = at.payloads.get(send).map(|payload| payload.get().stamp().id);
                if let Some(released) = released {
                    at.wire.insert(*packet_id, (released, Qos::ExactlyOnce));
                }
                id = released;
            }
            Outgoing::PingReq | Outgoing::Disconnect { .. } => {}
        }
        say!(self, "lane {key} writes on connection {link}: {packet:?} {}", id.map(|id| format!("(delivery {id})")).unwrap_or_default());
        self.write(link, Packet { outgoing: packet, id });
    }

    fn note(&mut self, lane: &Lane, at: &mut AtWork, note: Note) {
        say!(self, "lane {}: {note:?}", lane.settings.lane);
        match note {
            Note::Done { send, .. } => {
                let Some(payload) = at.payloads.get(&send) else { return };
                self.oracle.done(payload.get().stamp().id);
            }
            Note::Connected { resumed, .. } => at.is_resumed = resumed,
            Note::Refused { id, .. } => self.oracle.refused(id),
            Note::Dead { id, .. } | Note::Expired { id, .. } => self.oracle.done(id),
            Note::SessionLost { reason, .. } => {
                self.oracle.given_up(&lane.settings.lane);
                self.judge_loss(lane, at, &reason);
            }
            Note::Settled { sends } => {
                for send in sends {
                    at.payloads.remove(&send);
                    at.permits.remove(&send);
                }
            }
            Note::Renumbered { from, to } => {
                if let Some(payload) = at.payloads.remove(&from) {
                    at.payloads.insert(to, payload);
                }
            }
            _ => {}
        }
    }

    /// A session is given up. That is right where the broker has lost it, which the broker knows best; where it could not be resumed; and after a
    /// copy. Anything else is to be followed by nothing that arrives twice.
    fn judge_loss(&mut self, lane: &Lane, at: &AtWork, reason: &str) {
        // With few packet identifiers one that was given anew can meet a fresh one, and which of them was sent the log does not say.
        if reason.contains("the same packet identifier") && !at.has_resent {
            violated(format!("lane {} gives up a session: {reason}", lane.settings.lane));
        }
        let is_right =
            ["the same packet identifier", "resuming the session failed again", "the broker hangs up at", "or the store was copied"]
                .iter()
                .any(|known| reason.contains(known));
        if is_right {
            // At its start it has no client id yet; it is about all that is pending.
            match at.client.as_str() {
                "" => self.oracle.excuse_lane(&lane.settings.lane),
                client => self.oracle.excuse(client),
            }
        }
    }

    /// After whatever has happened to a lane: its timer, its reading, its end.
    fn settle_lane(&mut self, lane: &mut Lane, mut at: Box<AtWork>) {
        if lane.settings.is_retired && !at.is_drained && at.is_at_end && at.session.is_empty() {
            at.is_drained = true;
            self.give(lane, &mut at, Input::Retire);
        }
        if at.session.is_drained() {
            say!(self, "lane {} has ended", lane.settings.lane);
            if let Some(link) = at.link.take() {
                self.close(link);
            }
            return;
        }
        let key = lane.settings.lane.clone();
        if at.session.wants() > 0 && !at.is_at_end && !std::mem::replace(&mut at.is_reading, true) {
            let delay = self.chance.below(3);
            self.after(delay, What::Read { run: self.run, lane: key.clone(), wanted: at.session.wants() });
        }
        let due = at.session.deadline().map(|deadline| deadline.0.saturating_sub(at.clock_ms).max(self.now));
        if let Some(due) = due.filter(|due| lane.timer.is_none_or(|timer| timer > *due)) {
            lane.timer = Some(due);
            self.at(due, What::LaneTimer { run: self.run, lane: key, due });
        }
        lane.work = Work::At(at);
    }

    pub fn on_read(&mut self, run: u64, key: &LaneKey, wanted: usize) {
        if self.run != run {
            return;
        }
        self.with_work(key, |world, lane, at| {
            at.is_reading = false;
            let piece = match at.feed.read(wanted) {
                Ok(piece) => piece,
                Err(error) => {
                    if let Some(link) = at.link.take() {
                        world.vanish(link);
                    }
                    return world.begin_anew(lane, &error);
                }
            };
            at.is_at_end = piece.is_at_end;
            for (delivery, retry_at, payload) in piece.requeued {
                at.payloads.insert(delivery.send, payload);
                world.give(lane, at, Input::OfferWaiting { delivery, retry_at });
            }
            if piece.fresh.is_empty() {
                return;
            }
            let mut fresh = Vec::with_capacity(piece.fresh.len());
            for (delivery, payload) in piece.fresh {
                at.payloads.insert(delivery.send, payload);
                fresh.push(delivery);
            }
            world.give(lane, at, Input::Offer(fresh));
        });
    }
}
