//! Leases: when an instance takes a lane, and when it gives one up, where several work over one log.
//!
//! This is liveness alone. That two owners never harm each other is the log's doing (see [`Owners`]); what is decided here may be late, or wrong, and then
//! a lane changes hands for nothing.
//!
//! # Heartbeats
//! Each instance counts up a number of its own in a place that all can read, every [`RENEW_MS`]. Nobody compares clocks: a reader takes the time on its own
//! steady clock from when it first saw a number to when it last saw the same one. Once that is [`LEASE_MS`], the instance is taken for gone. Who has
//! not looked for a lease itself knows nothing, and begins to count anew; who can't write its own number takes nothing.
//!
//! ```text
//!   a number is new ──▶ alive ── the same at every look for a lease ──▶ gone: its lanes are free, and it is declared left in the log
//!                         ▲                                               │
//!                         └────────────── a number is new ────────────────┘   (it joins again)
//! ```
//!
//! # Who gets what
//! A free lane goes to the live instance that owns the fewest. Where one owns two more than another, the one that owns most gives up one lane, and no
//! further one before that has been taken: it finishes what is in flight first. So a lane that an instance has lost is owned again within a lease and
//! a renewal, and one that moves is without an owner for a round trip.
//!
//! Whose turn it is may not take it: it is busy with what an operator has asked for, or its configuration does not have the connection. So each has its turn
//! for [`TURN_MS`], and then the next one has. Nothing of that connection is given up in favour of one that has let its turn pass, for [`DECLINED_MS`] at first, and
//! for twice as long each time, until it takes one after all.

use std::collections::BTreeMap;

use super::outbox::Owners;
use super::types::{ConnectionName, InstanceId, LaneKey, Millis};

/// So long an instance may be silent. Longer than a broker's or a disk's hiccup; with a renewal on top it stays below five seconds.
pub const LEASE_MS: u64 = 3_000;

/// So often it speaks up: two may be lost.
pub const RENEW_MS: u64 = 1_000;

/// A free lane is the next one's after this. Several looks: who takes it as it should is faster.
pub const TURN_MS: u64 = 750;

/// Who has let its turn pass may merely have been slow.
pub const DECLINED_MS: u64 = 5_000;

/// And so long it is passed over at most: meanwhile a reload may have given it the connection.
pub const DECLINED_AT_MOST_MS: u64 = 300_000;

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Say in the log that this instance is there.
    Join,
    /// Say in the log that another one is gone.
    DeclareLeft(InstanceId),
    /// Take a lane, with this term.
    Take {
        /// The lane.
        lane: LaneKey,
        /// Its next term.
        term: u64,
    },
    /// Finish what is in flight on a lane, and give it up.
    GiveUp {
        /// The lane.
        lane: LaneKey,
        /// The term that ends.
        term: u64,
    },
}

/// What an instance knows of the others. Its times are those of its own steady clock.
#[derive(Debug)]
pub struct Leases {
    me: InstanceId,
    /// This instance's number, counted up with each renewal.
    beat: u64,
    /// When the last renewal was begun.
    begun: Option<Millis>,
    /// When the last one was begun that was written.
    kept: Option<Millis>,
    looked: Option<Millis>,
    seen: BTreeMap<InstanceId, Seen>,
    /// Since when lanes are seen to be free.
    free: BTreeMap<LaneKey, Millis>,
    /// Who has let a lane of which connection lie.
    declined: BTreeMap<(InstanceId, ConnectionName), Declined>,
}

/// An instance has let its turn pass.
#[derive(Debug, Clone, Copy)]
struct Declined {
    until: Millis,
    wait_ms: u64,
    /// So many lanes of the connection it owns, at least since then: with one more it has taken one.
    owned: usize,
}

/// An instance, as it was seen.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// Its number; none if it had none.
    beat: Option<u64>,
    /// When that was first seen.
    since: Millis,
}

impl Leases {
    /// An instance that knows of nobody yet.
    pub fn new(me: InstanceId) -> Leases {
        Leases {
            me,
            beat: 0,
            begun: None,
            kept: None,
            looked: None,
            seen: BTreeMap::new(),
            free: BTreeMap::new(),
            declined: BTreeMap::new(),
        }
    }

    /// The number to write now, if it is time. Ask [`Leases::renewed`] once it is written.
    pub fn renewal(&mut self, now: Millis) -> Option<u64> {
        if self.begun.is_some_and(|begun| now.since(begun) < RENEW_MS) {
            return None;
        }
        self.begun = Some(now);
        self.beat += 1;
        Some(self.beat)
    }

    /// The last number is written. The lease is counted from when that was begun.
    pub fn renewed(&mut self) {
        self.kept = self.begun;
    }

    /// What all have written, as read now, and who has joined.
    pub fn look(&mut self, now: Millis, beats: &BTreeMap<InstanceId, u64>, owners: &Owners) {
        let knows_nothing = self.looked.is_none_or(|looked| now.since(looked) >= LEASE_MS);
        self.seen.retain(|instance, _| !knows_nothing && owners.is_member(*instance));
        for instance in owners.members() {
            let beat = beats.get(&instance).copied();
            let seen = self.seen.entry(instance).or_insert(Seen { beat, since: now });
            if seen.beat != beat {
                *seen = Seen { beat, since: now };
            }
        }
        self.looked = Some(now);
    }

    /// Whether it has been heard of within a lease of the last look.
    pub fn is_live(&self, instance: InstanceId) -> bool {
        let Some(looked) = self.looked else { return true };
        instance == self.me || self.seen.get(&instance).is_none_or(|seen| looked.since(seen.since) < LEASE_MS)
    }

    /// Whether the others still hear of this instance. If not they are about to take its lanes, and it had better send nothing more.
    pub fn is_kept(&self, now: Millis) -> bool {
        self.kept.is_some_and(|kept| now.since(kept) < LEASE_MS)
    }

    /// What is to be done, as of the last look, so that every one of `lanes` has an owner that is there, and all have about as many.
    pub fn steps<'a>(&mut self, now: Millis, owners: &Owners, lanes: impl Iterator<Item = &'a LaneKey>) -> Vec<Step> {
        if !self.is_kept(now) || self.looked.is_none_or(|looked| now.since(looked) >= LEASE_MS) {
            return Vec::new();
        }
        if !owners.is_member(self.me) {
            return vec![Step::Join];
        }
        let (live, gone): (Vec<_>, Vec<_>) = owners.members().partition(|instance| self.is_live(*instance));
        // All that each owns, whoever else knows the connection: everybody has to come to the same.
        let mut counts: BTreeMap<InstanceId, usize> =
            live.into_iter().map(|instance| (instance, owners.lanes_of(instance).count())).collect();
        let (mut free, mut mine) = (Vec::new(), Vec::new());
        for lane in lanes {
            let owner = owners.of(lane);
            if owner.instance.is_none_or(|instance| !counts.contains_key(&instance)) {
                free.push((lane, owner.term));
            }
            if owner.instance == Some(self.me) {
                mine.push((lane, owner.term));
            }
        }
        self.free.retain(|lane, _| free.iter().any(|(free, _)| *free == lane));
        self.forget_declined(owners);
        let mut steps: Vec<Step> = gone.into_iter().map(Step::DeclareLeft).collect();
        if free.is_empty() {
            let most = counts.iter().max_by_key(|(instance, count)| (**count, **instance));
            let wants =
                |lane: &LaneKey, than: usize| counts.iter().any(|(other, count)| count + 2 <= than && !self.declines(now, *other, lane));
            if let Some((most, count)) = most
                && *most == self.me
                && let Some((lane, term)) = mine.iter().rfind(|(lane, _)| wants(lane, *count))
            {
                steps.push(Step::GiveUp { lane: (*lane).clone(), term: *term });
            }
        }
        // Everybody comes to the same; where they know different things, the term lets one of them win.
        for (lane, term) in free {
            let since = *self.free.entry(lane.clone()).or_insert(now);
            let turn = usize::try_from(now.since(since) / TURN_MS).unwrap_or(0);
            let mut order: Vec<InstanceId> = counts.keys().copied().collect();
            order.sort_by_key(|instance| (counts[instance], spread(*instance, lane)));
            let Some(next) = order.get(turn % order.len().max(1)) else { break };
            *counts.entry(*next).or_default() += 1;
            if *next == self.me {
                steps.push(Step::Take { lane: lane.clone(), term: term + 1 });
                order[..turn % order.len()].iter().for_each(|other| self.note_declined(now, owners, *other, lane));
            }
        }
        steps
    }

    fn note_declined(&mut self, now: Millis, owners: &Owners, instance: InstanceId, lane: &LaneKey) {
        let key = (instance, lane.connection.clone());
        let wait_ms = match self.declined.get(&key) {
            // The same one, of several lanes.
            Some(known) if now < known.until => return,
            Some(known) => (known.wait_ms * 2).min(DECLINED_AT_MOST_MS),
            None => DECLINED_MS,
        };
        let owned = owned(owners, &key);
        self.declined.insert(key, Declined { until: now.plus(wait_ms), wait_ms, owned });
    }

    fn declines(&self, now: Millis, instance: InstanceId, lane: &LaneKey) -> bool {
        self.declined.get(&(instance, lane.connection.clone())).is_some_and(|known| now < known.until)
    }

    /// Forgets it of those who have left, or taken a lane since.
    fn forget_declined(&mut self, owners: &Owners) {
        self.declined.retain(|key, known| {
            let now_owned = owned(owners, key);
            let has_taken = now_owned > known.owned;
            known.owned = now_owned;
            owners.is_member(key.0) && !has_taken
        });
    }
}

/// How many lanes of a connection an instance owns.
fn owned(owners: &Owners, (instance, connection): &(InstanceId, ConnectionName)) -> usize {
    owners.lanes_of(*instance).filter(|lane| lane.connection == *connection).count()
}

/// Among those that own as few, so that it is not always the same one.
fn spread(instance: InstanceId, lane: &LaneKey) -> u64 {
    (instance.0 ^ (u64::from(lane.lane) << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::{Event, LanePurpose};
    use crate::core::outbox::Outbox;

    const LANES: u32 = 8;
    /// How often each looks.
    const LOOK_MS: u64 = 250;

    /// Instances with clocks of their own over one fold, and a place for their numbers.
    struct Cluster {
        now: u64,
        outbox: Outbox,
        beats: BTreeMap<InstanceId, u64>,
        /// Each with how far its clock is off, and until when it is stopped.
        instances: BTreeMap<InstanceId, (Leases, u64, u64)>,
        /// Who takes none, of any connection or of one that it does not know.
        declines: Option<(InstanceId, Option<ConnectionName>)>,
        moved: usize,
    }

    impl Cluster {
        fn new() -> Cluster {
            let mut outbox = Outbox::new();
            let lanes =
                Event::LanesChanged { connection: "mqtt".into(), first: 0, count: LANES, purpose: LanePurpose::Fresh, at: Millis(0) };
            outbox.apply(&lanes).unwrap();
            Cluster { now: 1, outbox, beats: BTreeMap::new(), instances: BTreeMap::new(), declines: None, moved: 0 }
        }

        fn start(&mut self, id: u64) {
            let instance = InstanceId(id);
            // One is an hour ahead of the next.
            self.instances.insert(instance, (Leases::new(instance), id * 3_600_000, 0));
        }

        fn pause(&mut self, id: u64, ms: u64) {
            self.instances.get_mut(&InstanceId(id)).unwrap().2 = self.now + ms;
        }

        fn run(&mut self, ms: u64) {
            for _ in 0..ms / LOOK_MS {
                self.now += LOOK_MS;
                for (instance, (leases, ahead, until)) in &mut self.instances {
                    if *until > self.now {
                        continue;
                    }
                    let now = Millis(self.now + *ahead);
                    if let Some(beat) = leases.renewal(now) {
                        self.beats.insert(*instance, beat);
                        leases.renewed();
                    }
                    leases.look(now, &self.beats, self.outbox.owners());
                    let declines = self.declines.as_ref().filter(|(declining, _)| declining == instance).map(|(_, connection)| connection);
                    let is_known = |lane: &LaneKey| declines.is_none_or(|of| of.as_ref() != Some(&lane.connection));
                    let lanes: Vec<LaneKey> = self.outbox.lanes().map(|(lane, _)| lane).filter(is_known).collect();
                    if declines == Some(&None) {
                        continue;
                    }
                    for step in leases.steps(now, self.outbox.owners(), lanes.iter()) {
                        let (instance, at) = (*instance, now);
                        let event = match step {
                            Step::Join => Event::InstanceJoined { instance, name: String::new(), at },
                            Step::DeclareLeft(gone) => Event::InstanceLeft { instance: gone, by: instance, at },
                            Step::Take { lane, term } => {
                                self.moved += 1;
                                Event::LaneTaken { lane, instance, term, at }
                            }
                            Step::GiveUp { lane, term } => Event::LaneLeft { lane, instance, term, at },
                        };
                        self.outbox.check_from(instance, &event).unwrap();
                        self.outbox.apply(&event).unwrap();
                    }
                }
            }
        }

        /// How many lanes each owns.
        fn shares(&self) -> Vec<usize> {
            let owners = self.outbox.owners();
            let shares: Vec<usize> = self.instances.keys().map(|instance| owners.lanes_of(*instance).count()).collect();
            assert_eq!(shares.iter().sum::<usize>(), self.outbox.lanes().count(), "every lane has an owner: {shares:?}");
            shares
        }
    }

    #[test]
    fn lanes_spread_evenly_over_those_who_come_and_move_one_at_a_time() {
        let mut cluster = Cluster::new();
        cluster.start(1);
        cluster.run(1_000);
        assert_eq!(cluster.shares(), [8]);
        cluster.start(2);
        cluster.run(5_000);
        assert_eq!((cluster.shares(), cluster.moved), (vec![4, 4], 8 + 4), "no more move than have to");
        cluster.start(3);
        cluster.run(5_000);
        let mut shares = cluster.shares();
        shares.sort_unstable();
        assert_eq!((shares, cluster.moved), (vec![2, 3, 3], 8 + 4 + 2));
        cluster.run(60_000);
        assert_eq!(cluster.moved, 8 + 4 + 2, "and then they stay");
    }

    #[test]
    fn the_lanes_of_one_that_is_silent_for_a_lease_are_owned_again_within_five_seconds() {
        for silent in 1..=3 {
            let mut cluster = Cluster::new();
            (1..=3).for_each(|id| cluster.start(id));
            cluster.run(10_000);
            cluster.pause(silent, 30_000);
            cluster.run(2_000);
            let before = cluster.moved;
            assert!(cluster.outbox.owners().lanes_of(InstanceId(silent)).count() >= 2, "not before its lease is over");
            cluster.run(3_000);
            let shares = cluster.shares();
            assert_eq!(shares[silent as usize - 1], 0);
            assert!(shares.iter().all(|share| [0, 4].contains(share)), "{shares:?}");
            assert!(!cluster.outbox.owners().is_member(InstanceId(silent)));
            assert!(cluster.moved <= before + 3, "nobody else's move");
            // It comes back, joins again, and gets its share.
            cluster.run(35_000);
            assert!(cluster.shares().iter().all(|share| [2, 3].contains(share)), "{:?}", cluster.shares());
        }
    }

    #[test]
    fn lanes_that_are_left_to_one_that_is_busy_are_owned_by_another_within_five_seconds_and_stay_there() {
        for (busy, silent) in [(1, 2), (2, 3), (3, 1)] {
            let mut cluster = Cluster::new();
            (1..=3).for_each(|id| cluster.start(id));
            cluster.run(10_000);
            let before = cluster.moved;
            cluster.declines = Some((InstanceId(busy), None));
            cluster.pause(silent, 600_000);
            cluster.run(5_000);
            cluster.shares();
            cluster.run(60_000);
            assert!(cluster.moved - before <= 12, "{} moves", cluster.moved - before);
            // It is at work again, and gets its share.
            cluster.declines = None;
            cluster.run(60_000);
            assert_eq!(cluster.shares().iter().filter(|share| **share == 4).count(), 2, "{:?}", cluster.shares());
        }
    }

    #[test]
    fn lanes_of_a_connection_that_one_instance_does_not_have_are_the_others_and_stay_there() {
        let mut cluster = Cluster::new();
        (1..=3).for_each(|id| cluster.start(id));
        cluster.declines = Some((InstanceId(2), Some("spare".into())));
        cluster.run(10_000);
        let lanes = Event::LanesChanged { connection: "spare".into(), first: 0, count: 6, purpose: LanePurpose::Fresh, at: Millis(0) };
        cluster.outbox.apply(&lanes).unwrap();
        cluster.run(5_000);
        let shares = cluster.shares();
        assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 2, "{shares:?}");
        let spare =
            |cluster: &Cluster| cluster.outbox.owners().lanes_of(InstanceId(2)).filter(|lane| lane.connection.as_str() == "spare").count();
        assert_eq!(spare(&cluster), 0);
        let before = cluster.moved;
        cluster.run(600_000);
        assert!(cluster.moved - before <= 10, "{} moves", cluster.moved - before);
        // A reload gives it the connection.
        cluster.declines = None;
        cluster.run(600_000);
        let shares = cluster.shares();
        assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1, "{shares:?}");
    }

    #[test]
    fn who_has_not_looked_knows_nothing_and_who_is_not_heard_takes_nothing() {
        let mut cluster = Cluster::new();
        cluster.start(1);
        cluster.start(2);
        cluster.run(10_000);
        let (one, two) = (InstanceId(1), InstanceId(2));
        let lanes: Vec<LaneKey> = cluster.outbox.lanes().map(|(lane, _)| lane).collect();
        let owners = cluster.outbox.owners().clone();
        let (leases, ahead, _) = cluster.instances.get_mut(&one).unwrap();
        let later = |ms: u64| Millis(10_001 + *ahead + ms);
        // It comes back after a minute, in which the other one may have been stopped as well.
        assert_eq!(leases.steps(later(60_000), &owners, lanes.iter()), []);
        leases.renewal(later(60_000));
        leases.renewed();
        leases.look(later(60_000), &cluster.beats, &owners);
        assert!(leases.is_live(two));
        leases.look(later(62_000), &cluster.beats, &owners);
        assert!(leases.is_live(two) && leases.steps(later(62_000), &owners, lanes.iter()).is_empty());
        leases.look(later(63_000), &cluster.beats, &owners);
        assert!(!leases.is_live(two));
        assert!(!leases.is_kept(later(63_000)) && leases.steps(later(63_000), &owners, lanes.iter()).is_empty(), "it is not heard itself");
        leases.renewal(later(63_000));
        leases.renewed();
        let steps = leases.steps(later(63_000), &owners, lanes.iter());
        assert!(steps.contains(&Step::DeclareLeft(two)) && steps.len() == 5, "{steps:?}");
        // One number that is new, and it is alive.
        *cluster.beats.get_mut(&two).unwrap() += 1;
        leases.look(later(63_250), &cluster.beats, &owners);
        assert!(leases.is_live(two));
    }
}
