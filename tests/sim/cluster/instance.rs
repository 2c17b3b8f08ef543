//! An instance: its committer, its heartbeats, its lanes, and the producers that have asked it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidings::core::event::{Accepted, Dedupe, Event, Properties, Source};
use tidings::core::lease::{Leases, Step};
use tidings::core::outbox::Owner;
use tidings::core::types::{InstanceId, LaneKey, Millis, Qos};
use tidings::log::committer::{Appended, CommitError, Committed, Limits, LogHandle, Stepped, Ticket, recover, stepped_shared};
use tidings::log::memory_log::MemoryLog;
use tidings::metrics::Metrics;

use super::lane::Driver;
use super::{LANES, World, key};
use crate::lane::{Waiting, look};

const LIMITS: Limits = Limits { max_size: u64::MAX, retention_ms: 0 };
/// A producer asks another instance after this.
const PATIENCE_MS: u64 = 1_500;

struct Post {
    number: u64,
    /// None if somebody else has been asked since; what it has asked for may still happen.
    since: Option<u64>,
    waiting: Waiting<'static, Result<Committed<Appended>, CommitError>>,
}

pub(super) struct Node {
    pub(super) id: InstanceId,
    pub(super) log: LogHandle,
    stepped: Stepped,
    leases: Leases,
    /// How far its clock is off.
    pub(super) ahead: u64,
    pub(super) stopped_until: u64,
    pub(super) cut_until: u64,
    /// It does not reach the broker.
    pub(super) dark_until: u64,
    look_at: u64,
    asked: Vec<Ticket>,
    pub(super) lanes: BTreeMap<u32, Driver>,
    /// What lanes have handed in before they ended.
    pub(super) orphans: Vec<(u32, Ticket)>,
    posts: Vec<Post>,
}

impl Node {
    /// What producers wait for.
    pub(super) fn posted(self) -> Vec<u64> {
        self.posts.into_iter().filter(|post| post.since.is_some()).map(|post| post.number).collect()
    }
}

impl World {
    pub(super) fn start(&mut self) -> Node {
        self.starts += 1;
        let id = InstanceId(self.starts);
        let opened = MemoryLog::open_shared(&self.disk).expect("it is in memory");
        let outbox = recover(&opened).expect("it is whole");
        let (log, stepped) = stepped_shared(opened.log, outbox, LIMITS, Arc::new(Metrics::new()), id);
        Node {
            id,
            log,
            stepped,
            leases: Leases::new(id),
            ahead: self.chance.below(100) * 3_600_000,
            stopped_until: 0,
            cut_until: 0,
            dark_until: 0,
            look_at: 0,
            asked: Vec::new(),
            lanes: BTreeMap::new(),
            orphans: Vec::new(),
            posts: Vec::new(),
        }
    }

    /// A producer asks one of the instances.
    pub(super) fn post(&mut self, number: u64) {
        let lane = (number % u64::from(LANES)) as u32;
        let qos = if (number / 8).is_multiple_of(4) { Qos::AtLeastOnce } else { Qos::ExactlyOnce };
        let dedupe = Some(Dedupe { key: u128::from(number), body: 1, line: 0, lines: 1, batch: false });
        let event = Event::Accepted(Arc::new(Accepted {
            at: Millis(number),
            source: Source::Http,
            user: String::new(),
            tenant: String::new(),
            pipeline: String::new(),
            action: String::new(),
            project: String::new(),
            change: String::new(),
            lane: key(lane),
            topic: format!("topic/{}", number % 8),
            qos,
            retain: false,
            expiry_s: None,
            properties: Properties::default(),
            payload: number.to_string().into(),
            dedupe,
            replay_of: None,
        }));
        let at = self.chance.below(self.nodes.len() as u64) as usize;
        let log = self.nodes[at].log.clone();
        let mut waiting: Waiting<_> = Box::pin(async move { log.accept(vec![event]).await });
        assert!(look(&mut waiting).is_none(), "nothing is accepted before it is durable");
        self.nodes[at].posts.push(Post { number, since: Some(self.now), waiting });
    }

    pub(super) fn work(&mut self, at: usize) {
        let is_cut = self.nodes[at].cut_until > self.now;
        let mut has_followed = false;
        if !is_cut {
            if self.chance.percent(25) {
                while self.nodes[at].stepped.step() {}
            }
            // Lanes read what the committer has read, and no more.
            has_followed = self.chance.percent(20);
            if has_followed {
                self.nodes[at].stepped.follow();
            }
            self.read_on();
        }
        self.look_after_posts(at);
        self.look_after_orphans(at);
        for lane in 0..LANES {
            let node = &self.nodes[at];
            let Owner { instance, term } = node.stepped.outbox().expect("it is not stopped").owners().of(&key(lane));
            let (is_ours, runs) = (instance == Some(node.id), node.lanes.get(&lane).map(|driver| driver.term));
            let is_leaving = !node.asked.is_empty();
            // It hears of it a moment after its committer has.
            if runs.is_some() && (!is_ours || runs != Some(term)) && self.chance.percent(30) {
                self.lane_ends(at, lane);
            }
            if is_ours && !is_leaving && !self.nodes[at].lanes.contains_key(&lane) {
                self.lane_starts(at, lane, term);
            }
            if self.lane_goes_on(at, lane, has_followed) {
                let term = self.nodes[at].lanes.get(&lane).map_or(0, |driver| driver.term);
                self.lane_ends(at, lane);
                let node = &mut self.nodes[at];
                let left = World::lane_left(lane, node.id, term, Millis(self.now + node.ahead));
                node.asked.push(submit(&node.log, vec![left]));
            }
        }
        if self.nodes[at].look_at <= self.now {
            self.nodes[at].look_at = self.now + 200 + self.chance.below(100);
            self.lead_a_life(at, is_cut);
        }
    }

    fn look_after_posts(&mut self, at: usize) {
        let (mut again, now) = (Vec::new(), self.now);
        let accepted = &mut self.accepted;
        self.nodes[at].posts.retain_mut(|post| match look(&mut post.waiting) {
            Some(Ok(_)) => {
                accepted.insert(post.number);
                false
            }
            Some(Err(CommitError::Conflict)) => panic!("it is the same report"),
            Some(Err(_)) => {
                again.extend(post.since.map(|_| post.number));
                false
            }
            None => {
                if post.since.is_some_and(|since| now > since + PATIENCE_MS) {
                    again.push(post.number);
                    post.since = None;
                }
                true
            }
        });
        again.into_iter().for_each(|number| self.post(number));
    }

    /// Heartbeats, and what follows from those of others.
    fn lead_a_life(&mut self, at: usize, is_cut: bool) {
        let node = &mut self.nodes[at];
        let now = Millis(self.now + node.ahead);
        let owners = node.stepped.outbox().expect("it is not stopped").owners().clone();
        let renewal = node.leases.renewal(now);
        if !is_cut {
            if let Some(beat) = renewal {
                self.peers.put_beat(node.id, beat).expect("it is in memory");
                node.leases.renewed();
            }
            node.leases.look(now, &self.peers.beats().expect("they are in memory"), &owners);
        }
        node.asked.retain_mut(|ticket| {
            let mut answer: Waiting<_> = Box::pin(ticket.answer());
            look(&mut answer).is_none()
        });
        if !node.asked.is_empty() {
            return;
        }
        let lanes: Vec<LaneKey> = (0..LANES).map(key).collect();
        for step in node.leases.steps(now, &owners, lanes.iter()) {
            let (instance, at) = (node.id, now);
            let event = match step {
                Step::Join => Event::InstanceJoined { instance, name: instance.to_string(), at },
                Step::DeclareLeft(gone) => Event::InstanceLeft { instance: gone, by: instance, at },
                // What an earlier term's session still says would pass for the new one's: that has to end first.
                Step::Take { lane, .. } if node.lanes.contains_key(&lane.lane) => continue,
                Step::Take { lane, term } => Event::LaneTaken { lane, instance, term, at },
                Step::GiveUp { lane, .. } => {
                    if let Some(driver) = node.lanes.get_mut(&lane.lane) {
                        driver.is_draining = true;
                    }
                    continue;
                }
            };
            node.asked.push(submit(&node.log, vec![event]));
        }
    }

    pub(super) fn all_come_to_the_same(&mut self) {
        for node in &mut self.nodes {
            while node.stepped.step() {}
        }
        for node in &mut self.nodes {
            node.stepped.follow();
        }
        self.read_on();
        for node in &self.nodes {
            assert_eq!(node.stepped.outbox(), Some(&self.books), "everybody comes to the same");
        }
    }
}

/// Hands events in, which are committed when the committer is at work.
pub(super) fn submit(log: &LogHandle, events: Vec<Event>) -> Ticket {
    let log = log.clone();
    let mut submitting: Waiting<Result<Ticket, CommitError>> = Box::pin(async move { log.submit(events).await });
    look(&mut submitting).expect("there is a place").expect("the log is at work")
}
