//! How large the parts of a store are: they follow from the space that it has.
//!
//! | space | segment | generation | floor | ballast |
//! |---|---|---|---|---|
//! | 32 MiB | 1 MiB | 2 MiB | 4 MiB | 2.5 MiB |
//! | 64 MiB | 2 MiB | 4 MiB | 8 MiB | 5 MiB |
//! | 256 MiB | 8 MiB | 16 MiB | 32 MiB | 20 MiB |
//! | 1 GiB and more | 8 MiB | 64 MiB | 128 MiB | 32 MiB |
//!
//! The space is that of the file system, or `store.max_size` if that is less. The segment size is fixed when a store is created; the rest
//! is worked out anew at each start.

use super::codec::Limits;

/// From this on all disks are large: nothing grows any further.
const LARGE: u64 = 1 << 30;

/// The smallest space that a store is laid out for. In less it may work or not.
const SMALLEST: u64 = 32 << 20;

/// A generation is a sixteenth of the space: it is the piece in which space is given back, and what carrying needs at once.
const GENERATIONS: u64 = 16;

/// Below this, pages hold single reports and nothing compresses. Measured with reports of 2 KiB, stored bytes of each byte taken in, at one
/// report a commit and at eight: 256 KiB 0.93 and 0.93, 1 MiB 1.08 and 0.53, 2 MiB 1.22 and 0.28, 8 MiB 1.46 and 0.28.
const SMALLEST_SEGMENT: u64 = 256 << 10;

/// With segments of 8 MiB a page holds 64 KiB before compression; larger ones compress no better.
const LARGEST_SEGMENT: u64 = 8 << 20;

/// What the outcome of one delivery takes at worst: `Released` and `Delivered` in commits of their own, with what sled writes
/// beside them. Measured by `one_outcome_takes_no_more_than_is_reserved_for_it`; in a lane at work hundreds share a commit.
pub const OUTCOME_BYTES: u64 = 2 << 10;

/// The sizes of a store's parts, in bytes. All but the two that are stored here follow from these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// sled's segments: what it writes and reclaims at once.
    pub segment: u64,
    /// Stored pages after which a generation is full.
    pub generation: u64,
}

impl Default for Sizes {
    /// Those of a large disk.
    fn default() -> Self {
        Sizes::for_space(LARGE)
    }
}

impl Sizes {
    /// The sizes of a store that has `space` bytes.
    pub fn for_space(space: u64) -> Sizes {
        let generation = space.clamp(SMALLEST, LARGE) / GENERATIONS;
        // Two segments a generation at least: sled writes one while it empties another. A power of two, as sled wants it.
        let segment = (1 << (generation / 2).ilog2()).clamp(SMALLEST_SEGMENT, LARGEST_SEGMENT);
        Sizes { segment, generation }
    }

    /// Reports are refused when less than this is free: two generations. One is for the outcomes of what waits in the oldest
    /// generation, after which that one is deleted; one is for what is begun or carried meanwhile.
    pub fn floor(self) -> u64 {
        2 * self.generation
    }

    /// What is to be free before reports are accepted, when `awaited` deliveries of the oldest generation wait for their outcome: once they
    /// have it, that generation goes, and with it comes room for the outcomes of the next. Never more than four generations: so many
    /// deliveries fit one only where hundreds share a commit, and their outcomes will, too.
    pub fn reserve(self, awaited: u64) -> u64 {
        let outcomes = awaited.saturating_mul(OUTCOME_BYTES).saturating_add(self.segment);
        self.floor().max(outcomes.min(4 * self.generation))
    }

    /// When less than this is free, the history of delivered reports makes room, so that reports need not be refused.
    pub fn tight(self, reserve: u64) -> u64 {
        reserve / 2 * 3
    }

    /// What is kept in a file that can be given up on a full disk: what a start needs at worst, and as much as a quarter of a generation
    /// for outcomes.
    pub fn ballast(self) -> u64 {
        self.start() + self.generation / 4
    }

    /// What opening takes at worst: sled writes the rest of the last segment anew and may begin another; its snapshot is small beside that.
    pub fn start(self) -> u64 {
        2 * self.segment
    }

    /// What a commit of `bytes` of events takes at worst. sled writes each page once as it is, and again with its neighbours when it rewrites
    /// their node; a node stays below a quarter of a segment, and so does what is left empty at the end of one. Measured by
    /// `a_commit_takes_no_more_than_was_made_ready_for_it`: three times the bytes and half a segment are not always enough.
    pub fn commit(self, bytes: u64) -> u64 {
        4 * bytes + self.segment
    }

    /// A generation that is being written is replaced to free space only if it takes so many bytes: less is not worth it, and what was
    /// carried out of it just before must not be carried again and again.
    pub fn worth_rolling(self) -> u64 {
        self.generation / 2
    }
}

const _: () = assert!(SMALLEST_SEGMENT as usize >= Limits::MIN_SEGMENT && LARGEST_SEGMENT as usize <= Limits::MAX_SEGMENT);

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn the_parts_fit_a_disk_of_any_size() {
        let mut space = 32 * MIB;
        while space <= 10 * 1024 * GIB {
            let sizes = Sizes::for_space(space);
            assert!(sizes.segment.is_power_of_two(), "sled takes no other");
            // The blob invariant is asserted in there.
            let limits = Limits::for_segment(usize::try_from(sizes.segment).unwrap());
            assert!(limits.body >= 2 * KIB as usize, "pages of {} bytes at {space}", limits.body);
            assert!(limits.index >= 512, "a connection's name of 64 bytes fits the index");
            assert!(sizes.segment * 2 <= sizes.generation);
            assert!(sizes.generation * 8 <= space, "several generations fit");
            assert!(sizes.ballast() > sizes.start() && sizes.ballast() > sizes.commit(4_096), "a start, or an outcome");
            assert!(sizes.floor() >= sizes.ballast());
            assert!((sizes.floor() + sizes.ballast()) * 4 <= space, "most of it is for reports");
            space += space / 7;
        }
    }

    #[test]
    fn a_large_disk_has_what_was_measured_to_be_good() {
        for space in [GIB, 10 * GIB, 10 * 1024 * GIB, u64::MAX] {
            let sizes = Sizes::for_space(space);
            assert_eq!(sizes, Sizes { segment: 8 * MIB, generation: 64 * MIB });
            assert_eq!(sizes.floor(), 128 * MIB);
            assert_eq!(sizes.ballast(), 32 * MIB);
            assert_eq!(sizes.worth_rolling(), 32 * MIB);
        }
    }

    #[test]
    fn a_small_disk_has_what_the_table_says() {
        let of = |space: u64| {
            let sizes = Sizes::for_space(space * MIB);
            [sizes.segment, sizes.generation, sizes.floor(), sizes.ballast()].map(|bytes| bytes / KIB)
        };
        assert_eq!(of(32), [1_024, 2_048, 4_096, 2_560]);
        assert_eq!(of(64), [2_048, 4_096, 8_192, 5_120]);
        assert_eq!(of(256), [8_192, 16_384, 32_768, 20_480]);
        assert_eq!(of(8), of(32), "no store is laid out for less");
    }

    #[test]
    fn the_reserve_grows_with_what_waits_for_its_outcome() {
        let sizes = Sizes::for_space(64 * MIB);
        assert_eq!(sizes.reserve(0), sizes.floor());
        assert_eq!(sizes.reserve(5_000), sizes.segment + 5_000 * OUTCOME_BYTES);
        assert_eq!(sizes.reserve(u64::MAX), 4 * sizes.generation);
    }
}
