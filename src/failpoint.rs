//! Places where a test has the process die, or an operation fail. Nothing of it is in a release build.
//!
//! | Environment | At the named point, when it is reached for the `n`-th time (the first, if no number is given) |
//! |---|---|
//! | `TIDINGS_CRASH_AT=name:n` | the process aborts: nothing unwinds, nothing is flushed or closed, as with `kill -9` |
//! | `TIDINGS_FAIL_AT=name:n`, `name:n:ENOSPC` | what comes next is not done, and fails with EIO, or as the disk is full |
//!
//! Both work only where `debug_assertions` are on: elsewhere the functions here are empty and the variables are not read.
//!
//! To add a point: a line in [`Point`], [`reach`] or [`pass`] where it stands, and a line in the table of `tests/crash/points.rs`, which holds
//! its own list against [`Point::ALL`] and proves of each that a process died there.
//!
//! The crate `fail` was looked at and not taken: of what it can do at a point nothing ends a process at once (its panics are caught here, as
//! those of the database have to be), and it is switched by a feature of the binary, so that the one under test would be another.

use std::io;

macro_rules! points {
    ($($(#[$meaning:meta])* $name:ident = $text:literal,)*) => {
        /// A place in the code that has a name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Point {
            $($(#[$meaning])* $name,)*
        }

        impl Point {
            /// All of them.
            pub const ALL: &[Point] = &[$(Point::$name,)*];

            /// What the variables call it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Point::$name => $text,)*
                }
            }
        }
    };
}

points! {
    /// Pages are about to be given to the database.
    BeforeBatch = "before-batch",
    /// The database has the pages, and nothing is flushed.
    AfterBatch = "after-batch",
    /// The database has flushed, and the file is not synced.
    AfterFlush = "after-flush",
    /// The pages are durable, and nobody knows.
    AfterSync = "after-fdatasync",
    /// The witness is about to be written.
    BeforeWitness = "before-witness",
    /// A commit is durable, and nobody who waits for it is answered.
    BeforeAnswer = "before-answer",
    /// What a publisher sent is durable, and its acknowledgement is not written.
    BeforeListenerAck = "before-listener-ack",
    /// PUBREC has come, and `Released` is not on its way to the log.
    BeforeReleased = "before-released",
    /// `Released` is durable, and PUBREL is not written.
    BeforePubrel = "before-pubrel",
    /// PUBACK or PUBCOMP has come, and `Delivered` is not on its way to the log.
    BeforeDelivered = "before-delivered",
    /// A generation has its folder, without a database.
    GenerationFolder = "generation-folder",
    /// A generation has its opening checkpoint, which may not be durable.
    GenerationCheckpoint = "generation-checkpoint",
    /// A generation is whole, and the witness knows of the one before it only.
    GenerationMade = "generation-made",
    /// The witness knows of a generation, and the one before it is not sealed.
    GenerationBegun = "generation-begun",
    /// A seal is worked out, and not written.
    BeforeSeal = "before-seal",
    /// A file is whole under its temporary name.
    BeforeRename = "before-rename",
    /// The witness asks no longer for a generation, which is still there.
    GenerationDisowned = "generation-disowned",
    /// A generation is moved aside, and not deleted.
    GenerationTrashed = "generation-trashed",
    /// Some of what is left in the oldest generation is carried forward.
    Carried = "carried",
    /// The last checkpoint is written, and not sealed.
    ClosingCheckpoint = "closing-checkpoint",
    /// All is closed and sealed, and the witness does not say so.
    ClosingSealed = "closing-sealed",
    /// A new store has its first generation, and no witness.
    StoreGeneration = "store-generation",
    /// A new store has all but its identity.
    StoreWitness = "store-witness",
    /// The store is proven whole, and is said to be open from here on.
    StartAnnounced = "start-announced",
    /// What the database shows is checked, and nothing is folded.
    StartShown = "start-shown",
    /// A piece of what is moved to another connection is on the other side.
    MovePiece = "move-piece",
    /// A replay was asked for, which is durable, and nobody is answered.
    ReplayAsked = "replay-asked",
    /// A piece of a replay is created, with how far the job is.
    ReplayPiece = "replay-piece",
    /// A replay has created all that it was to.
    ReplayEnded = "replay-ended",
    /// The service holds still what a backup copies, and has not said so.
    BackupBegun = "backup-begun",
    /// A backup, or what is restored, has one more generation.
    BackupGeneration = "backup-generation",
    /// A backup has all but the file that makes it one.
    BackupManifest = "backup-manifest",
    /// A restored store has all but its identity.
    RestoreIdentity = "restore-identity",
    /// A repair has made a folder, without its mark.
    RepairBegun = "repair-begun",
    /// What an unfinished repair has left is deleted, but for its mark.
    RepairCleared = "repair-cleared",
    /// A repaired store is whole, beside the damaged one.
    RepairWritten = "repair-written",
    /// A repaired store has taken the place of the damaged one, with the mark of an unfinished one.
    RepairSwapped = "repair-swapped",
    /// The copy of a store that is to be migrated is whole, and nothing says so.
    MigrationCopied = "migration-copied",
    /// A migration is marked as begun.
    MigrationMarked = "migration-marked",
    /// A step of a migration has run, and its format is not recorded.
    MigrationRun = "migration-run",
    /// The last format is recorded, and the mark stands.
    MigrationRecorded = "migration-recorded",
}

/// A point is reached.
#[inline(always)]
pub fn reach(point: Point) {
    #[cfg(debug_assertions)]
    armed::reach(point);
    #[cfg(not(debug_assertions))]
    let _ = point;
}

/// A point is reached, if it is so.
#[inline(always)]
pub fn reach_if(point: Point, is_so: impl FnOnce() -> bool) {
    #[cfg(debug_assertions)]
    if is_so() {
        armed::reach(point);
    }
    #[cfg(not(debug_assertions))]
    let _ = (point, is_so);
}

/// A point is reached before an operation that can fail.
///
/// # Errors
/// The one that the operation is to fail with, if a test asks for it.
#[inline(always)]
pub fn pass(point: Point) -> io::Result<()> {
    #[cfg(debug_assertions)]
    return armed::pass(point);
    #[cfg(not(debug_assertions))]
    {
        let _ = point;
        Ok(())
    }
}

/// What the environment asks for; read once.
// Only in builds for tests, which read it.
#[allow(clippy::print_stderr)]
#[cfg(debug_assertions)]
mod armed {
    use std::io;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::io::Errno;

    use super::Point;

    const CRASH_AT: &str = "TIDINGS_CRASH_AT";
    const FAIL_AT: &str = "TIDINGS_FAIL_AT";

    #[derive(Debug)]
    pub(super) struct Order {
        pub(super) point: Point,
        /// So many times it is to be reached first.
        pub(super) left: AtomicU64,
        pub(super) error: Errno,
    }

    impl Order {
        /// Reads `name`, `name:n` or `name:n:error`.
        pub(super) fn parse(text: &str) -> Result<Order, String> {
            let mut parts = text.split(':');
            let name = parts.next().unwrap_or_default();
            let known = || Point::ALL.iter().map(|point| point.name()).collect::<Vec<_>>().join(", ");
            let point = Point::ALL.iter().find(|point| point.name() == name);
            let point = *point.ok_or_else(|| format!("there is no point `{name}`; there are {}", known()))?;
            let times = parts.next().unwrap_or("1").parse().ok().filter(|times| *times > 0);
            let left = AtomicU64::new(times.ok_or("what follows the name is how many times it is reached, 1 or more")?);
            let error = match parts.next() {
                None | Some("EIO") => Errno::IO,
                Some("ENOSPC") => Errno::NOSPC,
                Some(other) => return Err(format!("the error `{other}` is neither EIO nor ENOSPC")),
            };
            if parts.next().is_some() { Err("too many colons".into()) } else { Ok(Order { point, left, error }) }
        }

        fn is_due(&self, point: Point) -> bool {
            // Below 0 it wraps round, and is not due for a long time.
            self.point == point && self.left.fetch_sub(1, Ordering::Relaxed) == 1
        }
    }

    fn order(variable: &'static str, cell: &'static OnceLock<Option<Order>>) -> Option<&'static Order> {
        let read = || {
            let text = std::env::var(variable).ok()?;
            Some(Order::parse(&text).unwrap_or_else(|error| {
                eprintln!("{variable}={text}: {error}");
                std::process::exit(2)
            }))
        };
        cell.get_or_init(read).as_ref()
    }

    pub(super) fn reach(point: Point) {
        static CRASH: OnceLock<Option<Order>> = OnceLock::new();
        if order(CRASH_AT, &CRASH).is_some_and(|order| order.is_due(point)) {
            eprintln!("{CRASH_AT}: the process dies at {}", point.name());
            std::process::abort();
        }
    }

    pub(super) fn pass(point: Point) -> io::Result<()> {
        static FAIL: OnceLock<Option<Order>> = OnceLock::new();
        reach(point);
        match order(FAIL_AT, &FAIL) {
            Some(order) if order.is_due(point) => {
                eprintln!("{FAIL_AT}: what follows {} fails", point.name());
                Err(order.error.into())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::Ordering;

    use rustix::io::Errno;

    use super::*;

    #[test]
    fn each_point_has_a_name_of_its_own() {
        let names: BTreeSet<&str> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
    }

    #[test]
    fn an_order_says_where_when_and_how() {
        let order = armed::Order::parse("after-flush").unwrap();
        assert_eq!((order.point, order.left.load(Ordering::Relaxed), order.error), (Point::AfterFlush, 1, Errno::IO));
        let order = armed::Order::parse("before-answer:7:ENOSPC").unwrap();
        assert_eq!((order.point, order.left.load(Ordering::Relaxed), order.error), (Point::BeforeAnswer, 7, Errno::NOSPC));
        for wrong in ["", "nowhere", "after-flush:0", "after-flush:x", "after-flush:1:EPERM", "after-flush:1:EIO:1"] {
            armed::Order::parse(wrong).unwrap_err();
        }
    }
}
