//! A write or a sync that fails at the n-th commit: nothing of that commit is answered, the service ends with 1, and a restart has all that was
//! accepted.
//!
//! What fails is not done, so an answer that was given all the same is missing in the end.

use tidings::failpoint::Point;

use crate::scene::Scene;

const FAIL_AT: &str = "TIDINGS_FAIL_AT";

/// What fails comes right behind the point; at which times, and with which error.
const FAILURES: &[(Point, &[(u64, &str)])] = &[
    (Point::BeforeBatch, &[(1, "EIO"), (2, "ENOSPC"), (7, "EIO"), (40, "ENOSPC")]),
    (Point::AfterBatch, &[(1, "ENOSPC"), (2, "EIO"), (7, "ENOSPC"), (40, "EIO")]),
    (Point::AfterFlush, &[(1, "EIO"), (2, "EIO"), (7, "EIO"), (40, "EIO")]),
    (Point::BeforeWitness, &[(1, "ENOSPC"), (2, "EIO"), (40, "ENOSPC")]),
    (Point::BeforeSeal, &[(1, "EIO")]),
    (Point::BeforeRename, &[(1, "ENOSPC")]),
];

#[test]
fn a_write_or_sync_that_fails_ends_the_service_with_1_and_a_restart_has_all_that_was_accepted() {
    let mut scene = Scene::start("auto", 8_000, "");
    scene.under_load(|trouble| {
        for (point, times) in FAILURES {
            for (times, error) in *times {
                trouble.catch_up();
                let order = format!("{}:{times}:{error}", point.name());
                let told = format!("{FAIL_AT}: what follows {} fails", point.name());
                // "the store failed: …"; a seal that a kill broke off is made at the next start, where it is "opening the store … failed: …".
                let [injected, reported] = [&told, "failed: "].map(|text| trouble.tidings.logged(text).len());
                let exit = trouble.run_to_the_end(FAIL_AT, &order, |_| ());
                assert_eq!(exit, Some(1), "{order}");
                assert_eq!(trouble.tidings.logged(&told).len(), injected + 1, "{order}: it ended for another reason");
                let said = &trouble.tidings.logged("failed: ")[reported..];
                let words = if *error == "EIO" { "Input/output error" } else { "No space left on device" };
                assert!(said.iter().any(|line| line["level"] == "ERROR" && line.to_string().contains(words)), "{order}: {said:?}");
            }
        }
    });
    scene.check("failed writes and syncs", false);
}
