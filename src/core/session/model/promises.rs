//! What has to be so: at every step, and in the end.

use super::*;

impl World {
    pub(in crate::core::session) fn check_books(&self) {
        let totals = &self.outbox.connections()[&lane_key().connection].totals;
        assert!(totals.balance(), "{totals:?}");
        let lane = self.outbox.lane(&lane_key()).unwrap();
        assert_eq!(lane.pending(), totals.pending);
    }

    /// Nothing is pending. Or nothing gets through any more but what the broker hangs up at, and what waits behind that: then the lane is
    /// suspended.
    pub(in crate::core::session) fn is_at_rest(&self) -> bool {
        let lane = self.outbox.lane(&lane_key()).unwrap();
        if lane.pending() == 0 {
            return true;
        }
        if self.suspended == 0 || !self.calm {
            return false;
        }
        let topic = |id: &Seq| match &self.log[id.0 as usize - 1] {
            Event::Accepted(accepted) => accepted.topic.clone(),
            other => panic!("{other:?} is no delivery"),
        };
        let ended = self.expired.iter().copied().chain(lane.dead().values().map(|dead| dead.id));
        let done: BTreeSet<Seq> = self.arrived.iter().copied().chain(ended).collect();
        let held_up: BTreeSet<String> = self.poisoned.iter().filter(|id| !done.contains(id)).map(topic).collect();
        let ids = (1..=self.log.len() as u64).map(Seq).filter(|id| matches!(self.log[id.0 as usize - 1], Event::Accepted(_)));
        let others = ids.filter(|id| !done.contains(id) && !held_up.contains(&topic(id)));
        self.appending.is_empty() && others.count() == 0
    }

    pub(in crate::core::session) fn check_promises(&self) {
        let lane = self.outbox.lane(&lane_key()).unwrap();
        assert!(self.is_at_rest(), "a run that is left in peace ends with an empty backlog: {:?}", self.session);
        if lane.pending() > 0 {
            return;
        }
        let mut counts: BTreeMap<Seq, u32> = BTreeMap::new();
        for id in &self.arrived {
            *counts.entry(*id).or_default() += 1;
        }
        let totals = self.outbox.connections()[&lane_key().connection].totals;
        assert!(totals.balance(), "{totals:?}");
        assert_eq!(totals.expired, self.expired.len() as u64);
        let dead: BTreeSet<Seq> = lane.dead().values().map(|dead| dead.id).collect();
        let mut last: HashMap<&str, Seq> = HashMap::new();
        for (index, event) in self.log.iter().enumerate() {
            let Event::Accepted(accepted) = event else { continue };
            let id = Seq(index as u64 + 1);
            let count = counts.get(&id).copied().unwrap_or(0);
            match accepted.qos {
                Qos::AtMostOnce => {}
                _ if dead.contains(&id) => {}
                _ if self.expired.contains(&id) => assert!(accepted.expiry_s.is_some()),
                asked if asked > self.maximum_qos && self.story.downgrade => {}
                Qos::AtLeastOnce => assert!(count >= 1, "report {id} was lost"),
                Qos::ExactlyOnce if self.has_broker_forgotten || self.repeated.contains(&id) => {
                    assert!(count >= 1, "report {id} was lost");
                }
                Qos::ExactlyOnce => assert_eq!(count, 1, "report {id} arrived {count} times"),
            }
        }
        // In order of first arrival, but for what was refused and what was in flight behind that.
        let is_downgraded = self.story.downgrade && self.maximum_qos < Qos::ExactlyOnce;
        if self.refused.is_empty() && self.poisoned.is_empty() && !is_downgraded && self.repeated.is_empty() && !self.has_broker_forgotten {
            let mut seen = BTreeSet::new();
            for id in self.arrived.iter().filter(|id| !self.strays.contains(id) && seen.insert(**id)) {
                let Event::Accepted(accepted) = &self.log[id.0 as usize - 1] else { continue };
                let before = last.insert(&accepted.topic, *id);
                assert!(before.is_none_or(|before| before < *id), "report {id} of {} arrived after {before:?}", accepted.topic);
            }
        }
    }

    pub(in crate::core::session) fn steps_until(&mut self, what: &str, mut is_so: impl FnMut(&World) -> bool) {
        for _ in 0..200_000 {
            if is_so(self) {
                return;
            }
            self.step();
        }
        panic!("{what}: {:?}", self.session);
    }

    pub(in crate::core::session) fn pending(&self) -> u64 {
        self.outbox.lane(&lane_key()).unwrap().pending()
    }

    pub(in crate::core::session) fn dead(&self) -> Vec<Seq> {
        self.outbox.lane(&lane_key()).unwrap().dead().values().map(|dead| dead.id).collect()
    }

    pub(in crate::core::session) fn arrived_times(&self, id: Seq) -> usize {
        self.arrived.iter().filter(|arrived| **arrived == id).count()
    }
}
