//! Kills at each named point, under load, and a proof that the process died there.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use tidings::failpoint::Point;

use crate::books::SOURCE_SHIFT;
use crate::from_environment;
use crate::scene::{Scene, Trouble};
use crate::support::mosquitto::free_port;
use crate::support::tidings::{Reply, named_connection};

pub const CRASH_AT: &str = "TIDINGS_CRASH_AT";

/// What has to be done so that a point is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// By a service under load.
    Load,
    /// By one that is told to stop.
    Stop,
    /// By one that is asked for a backup.
    Backup,
    /// By one that is asked to move what waits.
    Move,
    /// By one that is asked for a replay; see `tests/deliveries/replays.rs`, where reports are meant to arrive a second time.
    Replay,
    /// By a command; see `commands`.
    Command,
    /// By a migration, which needs steps that only the log's own tests have; see `src/log/sled_log/tests/migrating.rs`.
    Migration,
}

use By::{Backup, Command, Load, Migration, Move, Replay, Stop};

/// Each point, how it is reached, and at which times the process dies there.
const POINTS: &[(Point, By, &[u64])] = &[
    (Point::BeforeBatch, Load, &[1, 2, 20]),
    (Point::AfterBatch, Load, &[1, 2, 5, 40]),
    (Point::AfterFlush, Load, &[1, 2, 5, 40]),
    (Point::AfterSync, Load, &[1, 2, 5, 40]),
    (Point::BeforeWitness, Load, &[1, 5, 40]),
    (Point::BeforeAnswer, Load, &[1, 2, 5, 40]),
    (Point::BeforeListenerAck, Load, &[1, 2, 5]),
    (Point::BeforeReleased, Load, &[1, 2, 5, 20]),
    (Point::BeforePubrel, Load, &[1, 2, 5, 20]),
    (Point::BeforeDelivered, Load, &[1, 2, 5]),
    (Point::GenerationFolder, Load, &[1, 2]),
    (Point::GenerationCheckpoint, Load, &[1]),
    (Point::GenerationMade, Load, &[1]),
    (Point::GenerationBegun, Load, &[1, 2]),
    (Point::BeforeSeal, Load, &[1]),
    (Point::BeforeRename, Load, &[1]),
    (Point::GenerationDisowned, Load, &[1]),
    (Point::GenerationTrashed, Load, &[1]),
    (Point::StartAnnounced, Load, &[1]),
    (Point::StartShown, Load, &[1]),
    (Point::ClosingCheckpoint, Stop, &[1]),
    (Point::ClosingSealed, Stop, &[1]),
    (Point::BackupBegun, Backup, &[1]),
    (Point::Carried, Load, &[1]),
    (Point::MovePiece, Move, &[1]),
    (Point::ReplayAsked, Replay, &[1]),
    (Point::ReplayPiece, Replay, &[1, 3]),
    (Point::ReplayEnded, Replay, &[1]),
    (Point::StoreGeneration, Command, &[1]),
    (Point::StoreWitness, Command, &[1]),
    (Point::BackupGeneration, Command, &[1, 2]),
    (Point::BackupManifest, Command, &[1]),
    (Point::RestoreIdentity, Command, &[1]),
    (Point::RepairBegun, Command, &[1]),
    (Point::RepairCleared, Command, &[1]),
    (Point::RepairWritten, Command, &[1]),
    (Point::RepairSwapped, Command, &[1]),
    (Point::MigrationCopied, Migration, &[1]),
    (Point::MigrationMarked, Migration, &[1]),
    (Point::MigrationRun, Migration, &[1, 2]),
    (Point::MigrationRecorded, Migration, &[1]),
];

/// Bytes of noise in a report, at most: so that generations fill within a second or two, or hardly.
const LARGE: u64 = 16_000;
const LITTLE: u64 = 300;

/// Reached as generations fill.
fn fills_generations(point: Point) -> bool {
    use Point::*;
    matches!(
        point,
        GenerationFolder
            | GenerationCheckpoint
            | GenerationMade
            | GenerationBegun
            | BeforeSeal
            | BeforeRename
            | GenerationDisowned
            | GenerationTrashed
            | Carried
    )
}

/// Something waits here for a broker that never comes: it is carried forward, and moved in the end.
fn waiting() -> String {
    named_connection("away", free_port(), "") + "[[pipeline]]\nname = \"stays\"\nsuccess.away = { topic = \"stays/{project}\", qos = 2 }\n"
}

/// Reports for the connection whose broker is away.
fn leave_something(trouble: &mut Trouble, batch: u64) {
    let numbers: Vec<u64> = (0..20).map(|number| 9 << SOURCE_SHIFT | (batch * 20 + number)).collect();
    let report = |number: &u64| {
        format!(r#"{{"action":"success","tenant":"acme","pipeline":"stays","project":"p{}","change":"{number}"}}"#, number % 3)
    };
    let bodies: Vec<String> = numbers.iter().map(report).collect();
    let entries = numbers.iter().map(|number| (*number, trouble.sources.entry(&format!("stays/p{}", number % 3), 2)));
    trouble.sources.books().entries.extend(entries);
    trouble.sources.post_until_accepted(&numbers, &bodies.join("\n"), &format!("stays-{batch}"));
}

/// The service dies at the point; whatever is asked of it meanwhile is asked once it answers.
fn die_at(trouble: &mut Trouble, point: Point, by: By, times: u64) {
    let order = format!("{}:{times}", point.name());
    let told = format!("{CRASH_AT}: the process dies at {}", point.name());
    trouble.catch_up();
    let before = trouble.tidings.logged(&told).len();
    let mut is_asked = false;
    let exit = trouble.run_to_the_end(CRASH_AT, &order, |trouble| {
        // A service that is told to stop while it starts has nothing to close.
        if is_asked || trouble.tidings.get("/readyz").is_none_or(|reply| reply.status != 200) {
            return;
        }
        is_asked = true;
        match by {
            Stop => trouble.tidings.terminate(),
            Backup => assert_unanswered(trouble.tidings.post("/v1/backups", "")),
            Move => assert_unanswered(trouble.tidings.post("/v1/moves", r#"{"from":"away","to":"mqtt","by":"ops"}"#)),
            _ => {}
        }
    });
    assert_eq!(exit, None, "{order}: it was to die, and has ended");
    assert_eq!(trouble.tidings.logged(&told).len(), before + 1, "{order}: it died somewhere else");
}

fn assert_unanswered(reply: Option<Reply>) {
    assert!(reply.is_none(), "it was to die before it answers: {reply:?}");
}

fn die_at_each(protocol: &str, is_wanted: fn(Point) -> bool) {
    let wanted = from_environment("TIDINGS_CRASH_POINT_ROUNDS", 1);
    let mut scene = Scene::start(protocol, LITTLE, &waiting());
    scene.under_load(|trouble| {
        for (batch, (point, by, times)) in (0..wanted).flat_map(|_| POINTS).enumerate() {
            if matches!(by, Command | Migration | Replay) || !is_wanted(*point) {
                continue;
            }
            // What waits keeps its generation, so nothing does before it is needed.
            if matches!(point, Point::Carried | Point::MovePiece) {
                leave_something(trouble, batch as u64);
            }
            let noise = if fills_generations(*point) { LARGE } else { LITTLE };
            trouble.sources.noise.store(noise, Ordering::Relaxed);
            for times in *times {
                die_at(trouble, *point, *by, *times);
            }
        }
        let (code, said) = trouble.tidings.command(&["move", "--from", "away", "--to", "mqtt"]);
        assert_eq!(code, Some(0), "{said}");
    });
    scene.check(&format!("named points over MQTT {protocol}"), false);
}

#[test]
fn a_kill_at_any_named_point_loses_nothing_and_repeats_no_qos_2() {
    die_at_each("5", |_| true);
}

#[test]
fn a_kill_at_any_point_of_a_lane_loses_nothing_and_repeats_no_qos_2_over_mqtt_3_1_1() {
    die_at_each("3.1.1", |point| {
        matches!(point, Point::BeforeReleased | Point::BeforePubrel | Point::BeforeDelivered | Point::StartShown | Point::ClosingSealed)
    });
}

#[test]
fn each_point_of_the_code_has_its_place_among_these_tests() {
    let tested: BTreeSet<&str> = POINTS.iter().map(|(point, ..)| point.name()).collect();
    let known: BTreeSet<&str> = Point::ALL.iter().map(|point| point.name()).collect();
    assert_eq!(tested, known);
    assert_eq!(tested.len(), POINTS.len(), "each has one line");
}
