//! A store with a past: deliveries in every state, over a few generations, made as the committer makes them.

use std::collections::BTreeMap;

use super::*;
use crate::core::event::{Accepted, Carried, DeadReason, DeliveryRef, LanePurpose, Proof};
use crate::core::outbox::{Lane, Outbox, Straggler};
use crate::core::ranges::Ranges;
use crate::core::types::{Protocol, Qos};
use crate::log::committer::{encode_checkpoint, recover};
use crate::log::samples::lane;

pub(super) const LANES: u32 = 4;

/// Numbers that look random and come again with the same seed.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound.max(1)
    }
}

/// What is known of one delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) lane: LaneKey,
    pub(super) send: SendNo,
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
    /// The event that holds it.
    pub(super) located: Seq,
    /// It has the number under which it was accepted, and stands where it was accepted.
    pub(super) is_plain: bool,
}

/// What is not done: by id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Undone {
    pub(super) pending: BTreeMap<Seq, Held>,
    pub(super) dead: BTreeMap<Seq, Held>,
}

pub(super) struct Story {
    pub(super) store: tempfile::TempDir,
    pub(super) log: Option<Box<dyn EventLog>>,
    pub(super) outbox: Outbox,
    pub(super) dice: Dice,
    accepted: u64,
    time: u64,
    /// What the next commit is made of, and each lane's next send before it.
    batch: Vec<Event>,
    before: BTreeMap<LaneKey, SendNo>,
}

/// In memory where there is such a place: these stories are about what is read, and a sync takes its time.
pub(super) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

impl Story {
    /// A store of about three generations.
    pub(super) fn told(seed: u64) -> Story {
        let store = scratch();
        let log = open(store.path()).log;
        let dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let outbox = Outbox::new();
        let mut story =
            Story { store, log: Some(log), outbox, dice, accepted: 0, time: 1_767_225_600_000, batch: Vec::new(), before: BTreeMap::new() };
        let at = story.now();
        story.append(vec![Event::LanesChanged { connection: "mq".into(), first: 0, count: LANES, purpose: LanePurpose::Fresh, at }]);
        let generations = 2 + story.dice.below(3);
        for n in 0..=generations {
            for _ in 0..30 + story.dice.below(20) {
                story.step();
            }
            if n < generations {
                story.roll();
                if n == 1 && story.dice.below(2) == 0 {
                    story.drop_oldest();
                }
            }
        }
        story.commit();
        story
    }

    pub(super) fn now(&mut self) -> Millis {
        self.time += 7;
        Millis(self.time)
    }

    pub(super) fn append(&mut self, events: Vec<Event>) {
        if self.batch.is_empty() {
            self.before = self.outbox.lanes().map(|(key, lane)| (key, lane.next_send())).collect();
        }
        for event in &events {
            self.outbox.apply(event).unwrap_or_else(|error| panic!("{error}: {event:?}"));
        }
        self.batch.extend(events);
        if self.dice.below(3) == 0 {
            self.commit();
        }
    }

    fn commit(&mut self) {
        if !self.batch.is_empty() {
            let (events, before) = (std::mem::take(&mut self.batch), &self.before);
            let log = self.log.as_mut().expect("it is open");
            log.append(&events, &|lane| before.get(lane).copied().unwrap_or_default()).unwrap();
        }
    }

    pub(super) fn roll(&mut self) {
        self.commit();
        self.outbox.begin_generation();
        self.log.as_mut().unwrap().begin_generation(&encode_checkpoint(&self.outbox)).unwrap();
    }

    /// Carries forward what is needed of the oldest generation, and drops it.
    fn drop_oldest(&mut self) {
        let undone = self.undone();
        let stragglers: Vec<Straggler> = self.outbox.stragglers().collect();
        let mut events = Vec::new();
        for straggler in stragglers {
            let all = undone.pending.iter().chain(&undone.dead);
            let (id, held) = all.into_iter().find(|(_, held)| held.lane == straggler.lane && held.send == straggler.send).unwrap();
            let page = self.log.as_ref().unwrap().reader().page(held.located).unwrap().unwrap();
            let accepted = delivery_of(page.get(held.located).unwrap()).unwrap().clone();
            events.push(Event::Carried(Box::new(Carried { id: *id, send: held.send, accepted, history: Vec::new() })));
        }
        if !events.is_empty() {
            self.append(events);
        }
        self.commit();
        self.log.as_mut().unwrap().drop_oldest_generation().unwrap();
        self.outbox.drop_oldest_generation();
    }

    fn step(&mut self) {
        let number = (self.dice.below(u64::from(LANES))) as u32;
        let key = lane(number);
        let at = self.now();
        let known = self.outbox.lane(&key).unwrap().clone();
        let pending: Vec<SendNo> = (known.cursor().0..known.next_send().0).map(SendNo).filter(|send| known.is_pending(*send)).collect();
        let pick = pending.get(self.dice.below(6) as usize).copied();
        match (self.dice.below(16), pick) {
            (0..=5, _) | (_, None) => {
                let count = 1 + self.dice.below(4);
                let events = (0..count).map(|_| self.report()).collect();
                self.append(events);
            }
            (6..=8, Some(send)) => {
                let proof = if self.dice.below(2) == 0 { Proof::PubComp } else { Proof::Flushed };
                self.append(vec![Event::Delivered { lane: key, sends: Ranges::one(send.0), proof, at }]);
            }
            (9, Some(send)) if !known.released().contains(&send) => self.append(vec![Event::Released { lane: key, sends: vec![send] }]),
            (10, Some(send)) => {
                let delivery = self.reference(&key, send);
                let sent_through = SendNo(known.next_send().0.saturating_sub(1));
                self.append(vec![Event::Refused { delivery, code: 0x97, attempts: 1, retry_at: at, sent_through, at }]);
            }
            (11, Some(_)) => {
                if let Some((send, waiting)) = known.waiting().first_key_value() {
                    let delivery = DeliveryRef { lane: key, send: *send, id: waiting.id, located: waiting.located };
                    self.append(vec![Event::Resent { delivery, at }]);
                }
            }
            (12, Some(send)) => {
                let delivery = self.reference(&key, send);
                let reason = DeadReason { code: "refused".into(), broker_code: Some(0x87), message: "no".into() };
                self.append(vec![Event::DeadLettered { delivery, reason, attempts: 3, at }]);
            }
            (13, Some(_)) => {
                if let Some((send, dead)) = known.dead().first_key_value() {
                    let delivery = DeliveryRef::to_dead(key, *send, dead);
                    self.append(vec![Event::Requeued { delivery, by: "operator".into(), at }]);
                }
            }
            (14, Some(send)) => self.append(vec![Event::Expired { lane: key, sends: Ranges::one(send.0), at }]),
            (_, Some(_)) => {
                let endpoint = "broker:1883 ".to_owned();
                let repeated = Ranges::default();
                self.append(vec![Event::SessionOpened {
                    lane: key,
                    epoch: known.epoch,
                    protocol: Protocol::V5,
                    endpoint,
                    doubt: 9,
                    repeated,
                    at,
                }]);
            }
        }
    }

    pub(super) fn report(&mut self) -> Event {
        self.accepted += 1;
        let Event::Accepted(mut made) = report(self.accepted) else { unreachable!() };
        let accepted = Arc::make_mut(&mut made);
        accepted.replay_of = None;
        accepted.lane = lane(self.dice.below(u64::from(LANES)) as u32);
        accepted.qos = Qos::ExactlyOnce;
        accepted.at = self.now();
        if self.accepted.is_multiple_of(29) {
            // One that spans several pages.
            let mut noise = vec![0; 9_000];
            noise.iter_mut().for_each(|byte| *byte = self.dice.below(256) as u8);
            accepted.payload = noise.into();
        }
        Event::Accepted(made)
    }

    fn reference(&mut self, key: &LaneKey, send: SendNo) -> DeliveryRef {
        let undone = self.undone();
        let (id, held) = undone.pending.iter().find(|(_, held)| held.lane == *key && held.send == send).unwrap();
        DeliveryRef { lane: key.clone(), send, id: *id, located: held.located }
    }

    /// A clean stop, and a start.
    pub(super) fn restart(&mut self) {
        self.commit();
        self.log.take().unwrap().close(&encode_checkpoint(&self.outbox)).unwrap();
        self.log = Some(open(self.store.path()).log);
    }

    fn undone(&mut self) -> Undone {
        self.commit();
        undone(self.log.as_deref().unwrap(), &self.outbox)
    }

    /// The folder as a kill leaves it, and what was not done.
    pub(super) fn killed(mut self) -> (tempfile::TempDir, Undone) {
        let (undone, target) = (self.undone(), scratch());
        let generations = self.log.as_ref().unwrap().generations().len();
        // Sealing goes on beside appending.
        while sealed(self.store.path()) + 1 < generations {
            std::thread::yield_now();
        }
        copy_folder(self.store.path(), target.path());
        (target, undone)
    }

    /// The folder as a clean stop leaves it.
    pub(super) fn closed(mut self) -> (tempfile::TempDir, Undone) {
        let undone = self.undone();
        let checkpoint = encode_checkpoint(&self.outbox);
        self.log.take().unwrap().close(&checkpoint).unwrap();
        (self.store, undone)
    }
}

pub(super) fn delivery_of(event: &Event) -> Option<&Accepted> {
    match event {
        Event::Accepted(accepted) => Some(accepted),
        Event::Carried(carried) => Some(&carried.accepted),
        _ => None,
    }
}

/// What the store has not done, read as lanes read it. Panics on anything that can't be read.
pub(super) fn undone(log: &dyn EventLog, outbox: &Outbox) -> Undone {
    let reader = log.reader();
    let mut undone = Undone::default();
    let held = |key: &LaneKey, send: SendNo, located: Seq, is_plain: bool| {
        let page = reader.page(located).unwrap_or_else(|error| panic!("{error}")).unwrap();
        let accepted = delivery_of(page.get(located).unwrap()).unwrap_or_else(|| panic!("no delivery at {located}"));
        assert_eq!(accepted.lane, *key);
        Held { lane: key.clone(), send, topic: accepted.topic.clone(), payload: accepted.payload.to_vec(), located, is_plain }
    };
    for (key, lane) in outbox.lanes() {
        for (send, dead) in lane.dead() {
            undone.dead.insert(dead.id, held(&key, *send, dead.located, false));
        }
        for (send, waiting) in lane.waiting() {
            undone.pending.insert(waiting.id, held(&key, *send, waiting.located, false));
        }
        for (send, moved) in lane.moved() {
            undone.pending.insert(moved.id, held(&key, *send, moved.located, false));
        }
        let plain = |lane: &Lane, send: SendNo| lane.is_pending(send) && !lane.moved().contains_key(&send);
        let mut missing = (lane.cursor().0..lane.next_send().0).filter(|send| plain(lane, SendNo(*send))).count();
        let mut at = lane.anchor_for(lane.cursor()).unwrap_or(log.next_seq());
        while at < log.next_seq() {
            let page = reader.page(at).unwrap_or_else(|error| panic!("{error}")).unwrap();
            let mut next = page.sends.iter().find(|(known, _)| *known == key).map(|(_, next)| *next);
            for (offset, event) in page.events.iter().enumerate() {
                let seq = Seq(page.first.0 + offset as u64);
                match event {
                    Event::Accepted(accepted) if accepted.lane == key => {
                        let send = next.unwrap();
                        next = Some(send.next());
                        if plain(lane, send) && seq >= at {
                            undone.pending.insert(seq, held(&key, send, seq, true));
                            missing -= 1;
                        }
                    }
                    Event::Resent { delivery, .. } if delivery.lane == key => next = next.map(SendNo::next),
                    _ => {}
                }
            }
            at = page.last().next();
        }
        assert_eq!(missing, 0, "lane {key}: a pending send is not found by reading on from its anchor");
    }
    undone
}

/// Opens the store and recovers, as the service does.
pub(super) fn recovered(store: &Path) -> (Opened, Outbox) {
    let opened = open(store);
    let outbox = recover(&opened).unwrap_or_else(|error| panic!("{error}"));
    (opened, outbox)
}
