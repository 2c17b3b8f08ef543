//! Books kept beside the service, by whoever sees everything: what has come to be durable, what has left, what has arrived. They are kept the plain
//! way, delivery by delivery, and every promise is held against them at every step.

use std::collections::{BTreeMap, BTreeSet};

use tidings::core::event::{Accepted, Event, Proof};
use tidings::core::outbox::{Outbox, Totals};
use tidings::core::types::{ConnectionName, LaneKey, Qos, SendNo, Seq};

use crate::disk::Durable;
use crate::story::Story;
use crate::trace::violated;

/// What has become of a delivery, as the disk has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Pending,
    Waiting,
    Dead,
    Acknowledged,
    Sent,
    Expired,
    Discarded,
}

/// A delivery.
#[derive(Debug, Clone)]
pub struct Known {
    pub lane: LaneKey,
    pub topic: usize,
    pub qos: Qos,
    /// Of the report in it.
    pub number: u64,
    pub state: State,
    /// It was handed to the network.
    was_sent: bool,
    /// The client id that it was sent under last, and the connection.
    client: Option<u32>,
    link: u64,
    arrivals: u32,
    /// The start of the service in which it was sent last, and in how many it was.
    sent_in: u64,
    starts: u32,
    /// It was refused, and is not done; as the disk has it, and as the service has it.
    is_refused: bool,
    is_refused_now: bool,
    /// It was refused, and is not sent again yet.
    is_waiting_now: bool,
    /// A broker has refused it at some time: it may come out of order.
    was_refused: bool,
    /// An operator has given it back: it holds nothing up and may come out of order.
    was_requeued: bool,
    /// The service knows that it is done.
    is_done_now: bool,
    /// The service has its PUBREC.
    is_recorded_now: bool,
    /// The log has said that it may arrive twice.
    is_counted: bool,
    /// There was a reason for that: a session was lost, or given up as it may be.
    is_excused: bool,
    /// A session was lost, and so was the word of it: see the documentation of the session.
    is_unknowable: bool,
}

#[derive(Debug, Default)]
struct LaneBooks {
    next: u64,
    /// Send numbers that are not settled, and what they stand for.
    pending: BTreeMap<u64, Seq>,
    waiting: BTreeMap<u64, Seq>,
    dead: BTreeMap<u64, Seq>,
    released: Vec<u64>,
    epoch: u32,
}

#[derive(Debug, Default)]
struct TopicBooks {
    /// Deliveries that are not done.
    open: BTreeSet<Seq>,
    /// The latest that has arrived in order.
    arrived: Option<Seq>,
}

/// See the module.
pub struct Oracle {
    /// The fold of all that ever was durable, from the beginning.
    fold: Outbox,
    deliveries: BTreeMap<Seq, Known>,
    lanes: BTreeMap<LaneKey, LaneBooks>,
    totals: BTreeMap<ConnectionName, Totals>,
    topics: Vec<TopicBooks>,
    topic_names: BTreeMap<(ConnectionName, String), usize>,
    /// Deliveries by the number of their report.
    reports: BTreeMap<u64, Vec<Seq>>,
    /// Reports that are given to another connection, which makes new deliveries of them.
    pub moved: BTreeSet<u64>,
    /// Client ids, numbered.
    clients: BTreeMap<String, u32>,
    /// Lost sessions whose loss has not been written down: client id, and the deliveries in them.
    unheard: BTreeMap<u32, (LaneKey, u32, Vec<Seq>)>,
    run: u64,
    commits: u64,
    /// A generation was dropped since the newest one was begun.
    has_dropped: bool,
    /// Acknowledgements are given in order, so deliveries arrive so as well.
    pub arrives_in_order: BTreeMap<ConnectionName, bool>,
}

/// The number of the report that a payload holds: `"message":"17"`, or the payload itself.
pub fn number_of(payload: &[u8]) -> u64 {
    let text = std::str::from_utf8(payload).unwrap_or_default();
    let digits = text.split_once("\"message\":\"").map_or(text, |(_, rest)| rest);
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap_or_else(|_| violated(format!("a payload that nobody has published: {text}")))
}

impl Oracle {
    pub fn new() -> Self {
        Oracle {
            fold: Outbox::new(),
            deliveries: BTreeMap::new(),
            lanes: BTreeMap::new(),
            totals: BTreeMap::new(),
            topics: Vec::new(),
            topic_names: BTreeMap::new(),
            reports: BTreeMap::new(),
            moved: BTreeSet::new(),
            clients: BTreeMap::new(),
            unheard: BTreeMap::new(),
            run: 0,
            commits: 0,
            has_dropped: false,
            arrives_in_order: BTreeMap::new(),
        }
    }

    pub fn known(&self, id: Seq) -> &Known {
        self.deliveries.get(&id).unwrap_or_else(|| violated(format!("delivery {id} is not durable")))
    }

    fn known_mut(&mut self, id: Seq) -> &mut Known {
        self.deliveries.get_mut(&id).unwrap_or_else(|| violated(format!("delivery {id} is not durable")))
    }

    pub fn is_durable(&self, id: Seq) -> bool {
        self.deliveries.contains_key(&id)
    }

    /// The deliveries of a report that are durable.
    pub fn of_report(&self, number: u64) -> &[Seq] {
        self.reports.get(&number).map_or(&[], |known| &known[..])
    }

    pub fn pending(&self) -> u64 {
        self.totals.values().map(|totals| totals.pending).sum()
    }

    pub fn dead(&self) -> Vec<(LaneKey, u64, Seq)> {
        let of_lane =
            |(key, lane): (&LaneKey, &LaneBooks)| lane.dead.iter().map(|(send, id)| (key.clone(), *send, *id)).collect::<Vec<_>>();
        self.lanes.iter().flat_map(of_lane).collect()
    }

    fn client(&mut self, name: &str) -> u32 {
        if let Some(known) = self.clients.get(name) {
            return *known;
        }
        let number = self.clients.len() as u32;
        self.clients.insert(name.to_owned(), number);
        number
    }

    // -- the disk --

    /// Takes down what has become durable.
    pub fn take_down(&mut self, durable: Vec<Durable>) {
        for what in durable {
            match what {
                Durable::Begun => {
                    self.fold.begin_generation();
                    self.has_dropped = false;
                }
                Durable::Dropped => {
                    self.fold.drop_oldest_generation();
                    self.has_dropped = true;
                }
                Durable::Events(page) => {
                    if page.first != self.fold.next() {
                        violated(format!("a page begins with event {}, and {} is the next", page.first, self.fold.next()));
                    }
                    for event in &page.events {
                        let seq = self
                            .fold
                            .apply(event)
                            .unwrap_or_else(|error| violated(format!("what is durable does not fold: {error}: {event:?}")));
                        self.note(seq, event);
                    }
                }
            }
        }
    }

    fn note(&mut self, seq: Seq, event: &Event) {
        match event {
            Event::Accepted(accepted) => self.note_accepted(seq, accepted),
            Event::Released { lane, sends } => {
                for send in sends {
                    let books = self.lanes.get_mut(lane).expect("folded");
                    books.released.push(send.0);
                    let id = books.pending[&send.0];
                    self.known_mut(id).is_recorded_now = true;
                }
            }
            Event::Delivered { lane, sends, proof, .. } => {
                let state = if *proof == Proof::Flushed { State::Sent } else { State::Acknowledged };
                sends.iter().for_each(|send| self.settle(lane, send, state));
            }
            Event::Expired { lane, sends, .. } => sends.iter().for_each(|send| self.settle(lane, send, State::Expired)),
            Event::Refused { delivery, .. } => {
                let books = self.lanes.get_mut(&delivery.lane).expect("folded");
                books.released.retain(|released| *released != delivery.send.0);
                let id = books.pending.remove(&delivery.send.0).expect("folded");
                books.waiting.insert(delivery.send.0, id);
                same(id, delivery.id);
                let known = self.known_mut(id);
                (known.state, known.is_refused, known.is_refused_now, known.was_refused) = (State::Waiting, true, true, true);
            }
            Event::Resent { delivery, .. } => {
                let books = self.lanes.get_mut(&delivery.lane).expect("folded");
                let id = books.waiting.remove(&delivery.send.0).or_else(|| books.pending.remove(&delivery.send.0)).expect("folded");
                books.pending.insert(books.next, id);
                books.next += 1;
                same(id, delivery.id);
                self.known_mut(id).state = State::Pending;
            }
            Event::DeadLettered { delivery, .. } => {
                let books = self.lanes.get_mut(&delivery.lane).expect("folded");
                let id = books.waiting.remove(&delivery.send.0).or_else(|| books.pending.remove(&delivery.send.0)).expect("folded");
                books.dead.insert(delivery.send.0, id);
                same(id, delivery.id);
                self.end(id, State::Dead);
            }
            Event::Requeued { delivery, .. } => {
                let books = self.lanes.get_mut(&delivery.lane).expect("folded");
                let id = books.dead.remove(&delivery.send.0).expect("folded");
                books.waiting.insert(delivery.send.0, id);
                let totals = self.totals.get_mut(&delivery.lane.connection).expect("folded");
                (totals.dead, totals.pending) = (totals.dead - 1, totals.pending + 1);
                let known = self.known_mut(id);
                (known.state, known.was_requeued, known.is_refused, known.is_refused_now) = (State::Waiting, true, false, false);
                (known.is_done_now, known.is_recorded_now, known.is_waiting_now) = (false, false, false);
                let topic = known.topic;
                self.topics[topic].open.insert(id);
            }
            Event::Discarded { lane, sends, dead, .. } => {
                for send in sends.iter() {
                    let books = self.lanes.get_mut(lane).expect("folded");
                    let id =
                        if *dead { books.dead.remove(&send) } else { books.waiting.remove(&send).or_else(|| books.pending.remove(&send)) };
                    books.released.retain(|released| *released != send);
                    if *dead {
                        let totals = self.totals.get_mut(&lane.connection).expect("folded");
                        (totals.dead, totals.pending) = (totals.dead - 1, totals.pending + 1);
                    }
                    self.end(id.expect("folded"), State::Discarded);
                }
            }
            Event::Carried(carried) => {
                let known = self.known(carried.id);
                if known.lane != carried.accepted.lane || number_of(&carried.accepted.payload) != known.number {
                    violated(format!("delivery {} was carried forward as something else", carried.id));
                }
            }
            Event::SessionOpened { lane, epoch, repeated, .. } => {
                let totals = self.totals.entry(lane.connection.clone()).or_default();
                totals.possible_duplicates += repeated.count();
                let books = self.lanes.get_mut(lane).expect("folded");
                books.epoch = *epoch;
                books.released.retain(|send| !repeated.iter().any(|again| again == *send));
                let ids: Vec<Seq> = repeated.iter().filter_map(|send| books.pending.get(&send).copied()).collect();
                for id in ids {
                    let known = self.known_mut(id);
                    known.is_counted = true;
                    known.is_recorded_now = false;
                }
                self.unheard.retain(|_, (of, lost, _)| of != lane || *lost >= *epoch);
            }
            Event::LanesChanged { connection, first, count, .. } => {
                self.totals.entry(connection.clone()).or_default();
                let key = |lane| LaneKey { connection: connection.clone(), lane };
                self.lanes.extend((*first..first + count).map(|lane| (key(lane), LaneBooks::default())));
            }
            Event::EpochBumped { .. } => {
                self.lanes.values_mut().for_each(|books| books.epoch += 1);
                // The sessions are left to the original.
                for known in self.deliveries.values_mut() {
                    known.is_excused = true;
                }
            }
            Event::ReplayStarted { .. }
            | Event::ReplayProgress { .. }
            | Event::ReplayEnded { .. }
            | Event::Received { .. }
            | Event::ReleasedIn { .. }
            | Event::Audit { .. }
            | Event::InstanceJoined { .. }
            | Event::InstanceLeft { .. }
            | Event::LaneTaken { .. }
            | Event::LaneLeft { .. }
            | Event::GenerationBegun { .. }
            | Event::GenerationDropped { .. } => {}
        }
    }

    fn note_accepted(&mut self, seq: Seq, accepted: &Accepted) {
        let number = number_of(&accepted.payload);
        let connection = accepted.lane.connection.clone();
        let place = self.topics.len();
        let topic = *self.topic_names.entry((connection.clone(), accepted.topic.clone())).or_insert(place);
        if topic == place {
            self.topics.push(TopicBooks::default());
        }
        let books = self.lanes.get_mut(&accepted.lane).expect("folded");
        books.pending.insert(books.next, seq);
        books.next += 1;
        let known = Known {
            lane: accepted.lane.clone(),
            topic,
            qos: accepted.qos,
            number,
            state: State::Pending,
            was_sent: false,
            client: None,
            link: 0,
            arrivals: 0,
            sent_in: 0,
            starts: 0,
            is_refused: false,
            is_refused_now: false,
            is_waiting_now: false,
            was_refused: false,
            was_requeued: self.moved.contains(&number),
            is_done_now: false,
            is_recorded_now: false,
            is_counted: false,
            is_excused: false,
            is_unknowable: false,
        };
        self.deliveries.insert(seq, known);
        self.topics[topic].open.insert(seq);
        self.reports.entry(number).or_default().push(seq);
        let totals = self.totals.entry(connection).or_default();
        (totals.accepted, totals.pending) = (totals.accepted + 1, totals.pending + 1);
    }

    fn settle(&mut self, lane: &LaneKey, send: u64, state: State) {
        let books = self.lanes.get_mut(lane).expect("folded");
        books.released.retain(|released| *released != send);
        let id = books.pending.remove(&send).expect("folded");
        self.end(id, state);
    }

    fn end(&mut self, id: Seq, state: State) {
        let known = self.known_mut(id);
        known.state = state;
        known.is_done_now = true;
        let (topic, connection) = (known.topic, known.lane.connection.clone());
        self.topics[topic].open.remove(&id);
        let totals = self.totals.get_mut(&connection).expect("folded");
        totals.pending -= 1;
        match state {
            State::Acknowledged => totals.acknowledged += 1,
            State::Sent => totals.sent += 1,
            State::Dead => totals.dead += 1,
            State::Expired => totals.expired += 1,
            State::Discarded => totals.discarded += 1,
            State::Pending | State::Waiting => violated("no end".into()),
        }
    }

    /// Holds what a start has recovered against the fold of what is durable. That a generation was dropped is no event, so where one was since the
    /// last checkpoint they may have other anchors, which must lead to the same deliveries.
    pub fn compare_recovered(&mut self, recovered: &Outbox, what: &str) {
        if self.has_dropped {
            let (mine, theirs) = (without_anchors(&self.fold), without_anchors(recovered));
            if mine != theirs {
                violated(format!("{what} is not the fold of what is durable: {}", difference(&theirs, &mine)));
            }
            self.fold = recovered.clone();
        }
        self.compare(recovered, what);
    }

    /// Holds the service's outbox against the fold of what is durable, and both against the plain books.
    pub fn compare(&mut self, live: &Outbox, what: &str) {
        self.commits += 1;
        // In a long run all of it is too much for every commit.
        let is_large = self.deliveries.len() > 2_000;
        if (!is_large || self.commits.is_multiple_of(512)) && *live != self.fold {
            violated(format!(
                "{what} is not the fold of what is durable: {}",
                difference(&format!("{live:?}"), &format!("{:?}", self.fold))
            ));
        }
        if live.next() != self.fold.next() {
            violated(format!("{what} is at {}, and what is durable at {}", live.next(), self.fold.next()));
        }
        for (name, mine) in &self.totals {
            let Some(connection) = live.connections().get(name) else { violated(format!("{what} does not know {name}")) };
            let totals = connection.totals;
            if totals != *mine {
                violated(format!("{what} has other books of {name}: {totals:?}, and not {mine:?}"));
            }
            if !totals.balance() {
                violated(format!("created = pending + delivered + dead + expired + discarded does not hold for {name}: {totals:?}"));
            }
        }
        if is_large {
            return;
        }
        for (key, books) in &self.lanes {
            let Some(lane) = live.lane(key) else { violated(format!("{what} does not know lane {key}")) };
            let pending = (books.pending.len() + books.waiting.len()) as u64;
            let is_same = lane.next_send().0 == books.next
                && lane.pending() == pending
                && lane.released().iter().map(|send| send.0).eq(books.released.iter().copied())
                && lane.waiting().iter().map(|(send, known)| (send.0, known.id)).eq(books.waiting.iter().map(|(send, id)| (*send, *id)))
                && lane.dead().iter().map(|(send, known)| (send.0, known.id)).eq(books.dead.iter().map(|(send, id)| (*send, *id)))
                && books.pending.keys().all(|send| lane.is_pending(SendNo(*send)));
            let is_found = |(send, id): (&u64, &Seq)| {
                let send = SendNo(*send);
                lane.moved().contains_key(&send) || lane.anchor_for(send).is_some_and(|anchor| anchor <= *id)
            };
            if !books.pending.iter().all(is_found) {
                violated(format!("{what} does not find what is pending on lane {key}: {lane:?}"));
            }
            if !is_same {
                violated(format!("{what} has lane {key} otherwise: {lane:?}, and not {books:?}"));
            }
        }
    }

    /// Whether a packet identifier may stand for something that is in doubt, now or after some restarts more.
    pub fn may_be_in_doubt(&self, lane: &LaneKey, packet_id: u16, story: &Story) -> bool {
        let Some(books) = self.lanes.get(lane) else { return true };
        let first = books.pending.keys().next().copied().unwrap_or(books.next);
        let reach = 6 * u64::from(story.window);
        let near = first..first + reach;
        let sent = books.pending.iter().filter(|(_, id)| self.deliveries[*id].was_sent || self.deliveries[*id].was_refused);
        near.chain(sent.map(|(send, _)| *send)).any(|send| SendNo(send).packet_id(story.packet_ids) == packet_id)
    }

    /// Whether the log says that PUBREL may leave for this send.
    pub fn is_released(&self, lane: &LaneKey, send: u64) -> bool {
        self.lanes.get(lane).is_some_and(|books| books.released.contains(&send))
    }

    // -- the service --

    /// The service starts: what it knew and had not made durable is gone.
    pub fn restarted(&mut self, run: u64) {
        self.run = run;
        let released: BTreeSet<Seq> = self.lanes.values().flat_map(|books| books.released.iter().map(|send| books.pending[send])).collect();
        let open: Vec<Seq> = self.topics.iter().flat_map(|topic| topic.open.iter().copied()).collect();
        for id in open {
            let known = self.known_mut(id);
            known.is_done_now = false;
            known.is_refused_now = known.is_refused;
            known.is_waiting_now = known.is_refused && known.state == State::Waiting;
            known.is_recorded_now = released.contains(&id);
        }
    }

    /// A lane starts anew within the same start of the service, and knows what the log knows.
    pub fn lane_restarted(&mut self, lane: &LaneKey) {
        let Some(books) = self.lanes.get(lane) else { return };
        let released: Vec<Seq> = books.released.iter().map(|send| books.pending[send]).collect();
        let open: Vec<Seq> = books.pending.values().chain(books.waiting.values()).copied().collect();
        for id in open {
            let is_released = released.contains(&id);
            let known = self.known_mut(id);
            (known.is_done_now, known.is_refused_now, known.is_recorded_now) = (false, known.is_refused, is_released);
            known.is_waiting_now = known.is_refused && known.state == State::Waiting;
        }
    }

    /// A PUBLISH is handed to the network.
    pub fn publishes(&mut self, id: Seq, link: u64, client: &str, is_in_doubt: bool) {
        let client = self.client(client);
        let publish = self.known(id).clone();
        if matches!(publish.state, State::Acknowledged | State::Sent | State::Dead | State::Expired | State::Discarded) {
            violated(format!("delivery {id} is sent, and is {:?} already", publish.state));
        }
        for other in self.topics[publish.topic].open.range(..id) {
            let before = &self.deliveries[other];
            if before.was_requeued || publish.was_requeued || before.is_done_now {
                continue;
            }
            let words = |what: &str| {
                let (qos, before) = (publish.qos.level(), before.qos.level());
                format!("delivery {id} (QoS {qos}) {what} delivery {other} (QoS {before}) of the same topic, which came before it")
            };
            if !publish.was_sent && !before.was_sent {
                violated(words("is sent before"));
            }
            // What is sent again in a resumed session, or after it was lost, may have been in flight behind it, as far as the log can tell.
            if !publish.was_sent && before.is_waiting_now && !is_in_doubt && !publish.is_counted {
                violated(words("overtakes"));
            }
            if before.was_sent && before.qos != publish.qos && !before.is_refused_now && !publish.is_refused_now {
                violated(words("is sent while not done is"));
            }
            let is_in_doubt = before.was_sent && !before.is_recorded_now && !before.is_refused_now;
            if is_in_doubt && !publish.is_refused_now && before.link != link && before.qos != Qos::AtMostOnce {
                violated(words("is sent again on this connection before"));
            }
        }
        let run = self.run;
        let known = self.known_mut(id);
        if known.sent_in != run {
            known.sent_in = run;
            known.starts += 1;
        }
        (known.was_sent, known.is_waiting_now, known.client, known.link) = (true, false, Some(client), link);
    }

    /// The service knows that a delivery is done.
    pub fn done(&mut self, id: Seq) {
        self.known_mut(id).is_done_now = true;
    }

    /// The service has its PUBREC.
    pub fn recorded(&mut self, id: Seq) {
        self.known_mut(id).is_recorded_now = true;
    }

    /// The service knows that a delivery was refused.
    pub fn refused(&mut self, id: Seq) {
        let known = self.known_mut(id);
        (known.is_refused_now, known.is_waiting_now, known.was_refused) = (true, true, true);
    }

    /// The service has given a session up: what was in it is published again.
    pub fn given_up(&mut self, lane: &LaneKey) {
        let Some(books) = self.lanes.get(lane) else { return };
        let open: Vec<Seq> = books.pending.values().copied().collect();
        for id in open {
            self.known_mut(id).is_recorded_now = false;
        }
    }

    // -- the brokers --

    /// There is a reason for which deliveries of a client id may arrive twice.
    pub fn excuse(&mut self, client: &str) {
        let client = self.client(client);
        for known in self.deliveries.values_mut() {
            known.is_excused |= known.client == Some(client) && matches!(known.state, State::Pending | State::Waiting);
        }
    }

    /// The same for all that is pending on a lane.
    pub fn excuse_lane(&mut self, lane: &LaneKey) {
        let Some(books) = self.lanes.get(lane) else { return };
        let open: Vec<Seq> = books.pending.values().copied().collect();
        for id in open {
            self.known_mut(id).is_excused = true;
        }
    }

    /// A client is given a new session, and had one with something in it.
    pub fn is_given_an_empty_session(&mut self, client: &str, lane: &LaneKey) {
        let client = self.client(client);
        let Some(books) = self.lanes.get(lane) else { return };
        let is_in_it = |id: &&Seq| self.deliveries[*id].client == Some(client);
        let lost: Vec<Seq> = books.pending.values().filter(is_in_it).copied().collect();
        if !lost.is_empty() {
            self.unheard.insert(client, (lane.clone(), books.epoch, lost));
        }
    }

    /// A client is told that its session is there. If it is the empty one, nobody can know any more.
    pub fn is_given_its_session(&mut self, client: &str) {
        let client = self.client(client);
        for id in self.unheard.remove(&client).map(|(_, _, lost)| lost).unwrap_or_default() {
            self.known_mut(id).is_unknowable = true;
        }
    }

    /// The broker refuses a delivery.
    pub fn is_refused(&mut self, id: Seq) {
        self.known_mut(id).was_refused = true;
    }

    /// Somebody who subscribes gets it.
    pub fn arrives(&mut self, id: Seq) {
        let known = self.known_mut(id);
        known.arrivals += 1;
        if known.arrivals > 1 {
            let is_twice = match known.qos {
                // A crash may come before the word that it is sent.
                Qos::AtMostOnce => known.starts == 1,
                Qos::AtLeastOnce => false,
                Qos::ExactlyOnce => !(known.is_unknowable || known.is_counted && known.is_excused),
            };
            if is_twice {
                let (qos, counted, excused) = (known.qos.level(), known.is_counted, known.is_excused);
                violated(format!("delivery {id} of QoS {qos} arrives twice (counted: {counted}, a session was lost: {excused})"));
            }
            return;
        }
        let is_in_order = !known.was_refused && !known.was_requeued && known.qos != Qos::AtMostOnce && !known.is_unknowable;
        let (topic, connection) = (known.topic, known.lane.connection.clone());
        if !is_in_order || !self.arrives_in_order[&connection] {
            return;
        }
        let latest = self.topics[topic].arrived;
        if let Some(latest) = latest.filter(|latest| *latest > id) {
            violated(format!("delivery {id} arrives after delivery {latest} of the same topic"));
        }
        self.topics[topic].arrived = Some(id);
    }

    // -- the end --

    /// Nothing is left, and nothing that was accepted is missing.
    pub fn is_over(&self) {
        for (id, known) in &self.deliveries {
            match known.state {
                State::Pending | State::Waiting => violated(format!("delivery {id} is still pending at the end")),
                State::Acknowledged if known.arrivals == 0 && !known.is_unknowable => {
                    violated(format!("delivery {id} of QoS {} was acknowledged and has not arrived", known.qos.level()))
                }
                _ => {}
            }
        }
    }

    /// How much is kept that is not done.
    pub fn live_state(&self) -> usize {
        let lanes = self.lanes.values().map(|books| books.pending.len() + books.waiting.len() + books.dead.len() + books.released.len());
        lanes.sum()
    }

    pub fn deliveries(&self) -> usize {
        self.deliveries.len()
    }
}

fn without_anchors(outbox: &Outbox) -> String {
    let text = format!("{outbox:?}");
    let mut parts = text.split("anchors: [");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| all + part.split_once(']').map_or(part, |(_, rest)| rest))
}

/// Where two texts part.
fn difference(one: &str, other: &str) -> String {
    let at = one.bytes().zip(other.bytes()).take_while(|(one, other)| one == other).count();
    let around = |text: &str| String::from_utf8_lossy(&text.as_bytes()[at.saturating_sub(200)..text.len().min(at + 200)]).into_owned();
    format!("…{}… and not …{}…", around(one), around(other))
}

fn same(mine: Seq, theirs: Seq) {
    if mine != theirs {
        violated(format!("an event names delivery {theirs}, and its send number stands for {mine}"));
    }
}
