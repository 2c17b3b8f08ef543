//! A set of numbers kept as ranges: small as long as the numbers come in runs, which settled sends do.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A set of `u64` as disjoint, non-adjacent, inclusive ranges in rising order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Ranges", into = "Ranges")]
pub struct RangeSet {
    /// first → last of each range.
    ranges: BTreeMap<u64, u64>,
}

/// The stored form of a [`RangeSet`]: `(first, last)` pairs, rising.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<(u64, u64)>")]
pub struct Ranges(pub Vec<(u64, u64)>);

/// A pair of numbers that is no range: it runs backwards, or to the end of all numbers, behind which there is no next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{first} to {last} is no range")]
pub struct NoRange {
    /// The first number.
    pub first: u64,
    /// The last one.
    pub last: u64,
}

impl RangeSet {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one number; false if it was there already.
    pub fn insert(&mut self, number: u64) -> bool {
        self.insert_range(number, number) == 1
    }

    /// Adds `first..=last`, and says how many numbers were new.
    ///
    /// # Panics
    /// If `first > last`.
    pub fn insert_range(&mut self, first: u64, last: u64) -> u64 {
        assert!(first <= last, "a range runs from low to high");
        let (mut low, mut high) = (first, last);
        let mut known = 0;
        // Ranges that overlap or touch the new one are taken up into it.
        if let Some((&start, &end)) = self.ranges.range(..=low).next_back()
            && end.saturating_add(1) >= low
        {
            known += overlap(start, end, first, last);
            low = start;
            high = high.max(end);
            self.ranges.remove(&start);
        }
        while let Some((&start, &end)) = self.ranges.range(low..).next() {
            if start > high.saturating_add(1) {
                break;
            }
            known += overlap(start, end, first, last);
            high = high.max(end);
            self.ranges.remove(&start);
        }
        self.ranges.insert(low, high);
        last - first + 1 - known
    }

    /// Takes one number out; false if it was not there.
    pub fn remove(&mut self, number: u64) -> bool {
        let Some((&start, &end)) = self.ranges.range(..=number).next_back() else { return false };
        if end < number {
            return false;
        }
        self.ranges.remove(&start);
        if start < number {
            self.ranges.insert(start, number - 1);
        }
        if number < end {
            self.ranges.insert(number + 1, end);
        }
        true
    }

    /// Takes out every number below `bound`.
    pub fn remove_below(&mut self, bound: u64) {
        while let Some((&start, &end)) = self.ranges.first_key_value() {
            if start >= bound {
                break;
            }
            self.ranges.remove(&start);
            if end >= bound {
                self.ranges.insert(bound, end);
            }
        }
    }

    /// Whether the number is in the set.
    pub fn contains(&self, number: u64) -> bool {
        self.ranges.range(..=number).next_back().is_some_and(|(_, &end)| end >= number)
    }

    /// How many numbers of `first..=last` are in the set.
    pub fn count_within(&self, first: u64, last: u64) -> u64 {
        if first > last {
            return 0;
        }
        let before = self.ranges.range(..first).next_back().map_or(0, |(&start, &end)| overlap(start, end, first, last));
        before + self.ranges.range(first..=last).map(|(&start, &end)| overlap(start, end, first, last)).sum::<u64>()
    }

    /// The first number not in the set that is `number` or higher.
    pub fn next_missing(&self, number: u64) -> u64 {
        match self.ranges.range(..=number).next_back() {
            Some((_, &end)) if end >= number => end + 1,
            _ => number,
        }
    }

    /// How many numbers the set holds.
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start + 1).sum()
    }

    /// How many ranges the set takes: its cost in memory.
    pub fn runs(&self) -> usize {
        self.ranges.len()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The lowest number.
    pub fn first(&self) -> Option<u64> {
        self.ranges.first_key_value().map(|(&start, _)| start)
    }

    /// Every number, rising.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.ranges.iter().flat_map(|(&start, &end)| start..=end)
    }

    /// The stored form.
    pub fn to_ranges(&self) -> Ranges {
        Ranges(self.ranges.iter().map(|(&start, &end)| (start, end)).collect())
    }
}

fn overlap(start: u64, end: u64, first: u64, last: u64) -> u64 {
    let low = start.max(first);
    let high = end.min(last);
    if low > high { 0 } else { high - low + 1 }
}

impl Ranges {
    /// One number.
    pub fn one(number: u64) -> Self {
        Ranges(vec![(number, number)])
    }

    /// Every number, in the stored order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().flat_map(|&(first, last)| first..=last)
    }

    /// How many numbers.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|&(first, last)| last.saturating_sub(first).saturating_add(1)).fold(0, u64::saturating_add)
    }

    /// Whether each pair is a range. What was decoded is.
    ///
    /// # Errors
    /// [`NoRange`] for the first that is none.
    pub fn check(&self) -> Result<(), NoRange> {
        match self.0.iter().find(|&&(first, last)| first > last || last == u64::MAX) {
            Some(&(first, last)) => Err(NoRange { first, last }),
            None => Ok(()),
        }
    }
}

impl From<&Ranges> for RangeSet {
    fn from(ranges: &Ranges) -> Self {
        let mut set = RangeSet::new();
        for &(first, last) in &ranges.0 {
            set.insert_range(first, last);
        }
        set
    }
}

impl TryFrom<Vec<(u64, u64)>> for Ranges {
    type Error = NoRange;

    fn try_from(pairs: Vec<(u64, u64)>) -> Result<Self, NoRange> {
        let ranges = Ranges(pairs);
        ranges.check().map(|()| ranges)
    }
}

impl TryFrom<Ranges> for RangeSet {
    type Error = NoRange;

    fn try_from(ranges: Ranges) -> Result<Self, NoRange> {
        ranges.check().map(|()| RangeSet::from(&ranges))
    }
}

impl From<RangeSet> for Ranges {
    fn from(set: RangeSet) -> Self {
        set.to_ranges()
    }
}

impl FromIterator<u64> for RangeSet {
    fn from_iter<I: IntoIterator<Item = u64>>(numbers: I) -> Self {
        let mut set = RangeSet::new();
        for number in numbers {
            set.insert(number);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_stored_and_no_range_is_refused_when_it_is_read() {
        for wrong in ["[[1,2],[5,4]]", "[[0,18446744073709551615]]"] {
            assert!(serde_json::from_str::<Ranges>(wrong).unwrap_err().to_string().contains("is no range"), "{wrong}");
            assert!(serde_json::from_str::<RangeSet>(wrong).is_err(), "{wrong}");
        }
        let right = Ranges(vec![(1, 2), (4, u64::MAX - 1)]);
        let stored = serde_json::to_string(&right).unwrap();
        assert_eq!(serde_json::from_str::<Ranges>(&stored).unwrap(), right);
        assert_eq!(serde_json::from_str::<RangeSet>(&stored).unwrap(), RangeSet::from(&right));
    }

    proptest! {
        #[test]
        fn a_range_set_agrees_with_a_plain_set(steps in prop::collection::vec((0u8..4, 0u64..60, 0u64..12), 0..80)) {
            let mut set = RangeSet::new();
            let mut plain = BTreeSet::new();
            for (step, number, length) in steps {
                match step {
                    0 | 1 => {
                        let fresh = (number..=number + length).filter(|n| plain.insert(*n)).count() as u64;
                        prop_assert_eq!(set.insert_range(number, number + length), fresh);
                    }
                    2 => prop_assert_eq!(set.remove(number), plain.remove(&number)),
                    _ => {
                        set.remove_below(number / 2);
                        plain.retain(|n| *n >= number / 2);
                    }
                }
                prop_assert_eq!(set.iter().collect::<Vec<_>>(), plain.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(set.len(), plain.len() as u64);
                prop_assert_eq!(set.contains(number), plain.contains(&number));
                prop_assert_eq!(set.count_within(number, number + length), plain.range(number..=number + length).count() as u64);
                prop_assert_eq!(set.next_missing(number), (number..).find(|n| !plain.contains(n)).unwrap());
                prop_assert_eq!(&RangeSet::from(&set.to_ranges()), &set);
            }
        }
    }
}
