//! Pages in memory, bounded by bytes: one reading serves all lanes, and a lane that follows closely never reads.

use crate::core::event::Event;
use crate::core::types::Seq;
use crate::log::AnyPage;
use std::collections::BTreeMap;

/// What an event costs beside its payload: the enum, its box, and about a dozen short strings.
const EVENT_COST: usize = 700;

/// The least recently used pages go first.
pub(super) struct PageCache {
    capacity: usize,
    used: usize,
    clock: u64,
    by_first: BTreeMap<Seq, Entry>,
    by_age: BTreeMap<u64, Seq>,
}

struct Entry {
    page: AnyPage,
    cost: usize,
    age: u64,
}

impl PageCache {
    /// A cache that holds about `capacity` bytes.
    pub(super) fn new(capacity: usize) -> PageCache {
        PageCache { capacity, used: 0, clock: 0, by_first: BTreeMap::new(), by_age: BTreeMap::new() }
    }

    /// The page that holds `seq`.
    pub(super) fn get(&mut self, seq: Seq) -> Option<AnyPage> {
        let (&first, entry) = self.by_first.range_mut(..=seq).next_back()?;
        if seq > entry.page.last() {
            return None;
        }
        self.clock += 1;
        self.by_age.remove(&entry.age);
        self.by_age.insert(self.clock, first);
        entry.age = self.clock;
        Some(entry.page.clone())
    }

    /// Keeps a page.
    pub(super) fn insert(&mut self, page: AnyPage) {
        let cost = match &page {
            AnyPage::Decoded(page) => page.events.iter().map(cost).sum(),
            AnyPage::Raw(page) => page.size(),
        };
        let first = page.first();
        self.clock += 1;
        self.by_age.insert(self.clock, first);
        self.used += cost;
        if let Some(old) = self.by_first.insert(first, Entry { page, cost, age: self.clock }) {
            self.by_age.remove(&old.age);
            self.used -= old.cost;
        }
        while self.used > self.capacity
            && let Some((_, first)) = self.by_age.pop_first()
        {
            let old = self.by_first.remove(&first).expect("both maps hold the same pages");
            self.used -= old.cost;
        }
    }

    /// Forgets the pages before `bound`.
    pub(super) fn remove_below(&mut self, bound: Seq) {
        let kept = self.by_first.split_off(&bound);
        for entry in std::mem::replace(&mut self.by_first, kept).into_values() {
            self.by_age.remove(&entry.age);
            self.used -= entry.cost;
        }
    }
}

fn cost(event: &Event) -> usize {
    EVENT_COST
        + match event {
            Event::Accepted(accepted) => accepted.payload.len(),
            Event::Carried(carried) => carried.accepted.payload.len(),
            _ => 0,
        }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::core::types::Millis;
    use crate::log::Page;

    fn page(first: u64, count: u64) -> AnyPage {
        let event = Event::Audit { who: String::new(), what: String::new(), at: Millis(0) };
        AnyPage::Decoded(Arc::new(Page { first: Seq(first), events: vec![event; count as usize], sends: Vec::new() }))
    }

    #[test]
    fn the_least_recently_used_page_goes_first() {
        let mut cache = PageCache::new(3 * 2 * EVENT_COST);
        for first in [1, 3, 5] {
            cache.insert(page(first, 2));
        }
        assert!(cache.get(Seq(2)).is_some());
        cache.insert(page(7, 2));
        let held: Vec<bool> = (1..=9).map(|seq| cache.get(Seq(seq)).is_some()).collect();
        assert_eq!(held, [true, true, false, false, true, true, true, true, false]);
        cache.remove_below(Seq(7));
        assert_eq!((cache.get(Seq(6)).is_none(), cache.used), (true, 2 * EVENT_COST));
        cache.insert(page(7, 2));
        assert_eq!((cache.by_age.len(), cache.used), (1, 2 * EVENT_COST));
    }
}
