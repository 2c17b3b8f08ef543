//! `kill -9` at random moments, and brokers that come and go.

use std::time::{Duration, Instant};

use crate::from_environment;
use crate::scene::{Scene, Trouble};
use crate::support::wait_until;

fn one_round(trouble: &mut Trouble) {
    trouble.catch_up();
    trouble.chance.wait_ms(40, 240);
    let what_else = trouble.chance.below(16);
    match what_else {
        // Away, and the service is killed meanwhile or not.
        0 | 1 => {
            trouble.stop_broker();
            trouble.chance.wait_ms(20, 200);
            if what_else == 0 {
                trouble.kill_and_start();
                trouble.chance.wait_ms(0, 100);
            }
            trouble.run_broker();
            trouble.chance.wait_ms(0, 100);
        }
        // Silent, and the service is killed meanwhile or not.
        2..=4 => {
            trouble.freeze_broker();
            trouble.chance.wait_ms(20, 200);
            if what_else == 2 {
                trouble.kill_and_start();
            }
            trouble.thaw_broker();
            trouble.chance.wait_ms(0, 50);
        }
        _ => {}
    }
    trouble.kill_and_start();
}

/// All report all the time; the service is killed at random moments, and now and then the broker is away.
fn kills_under_load(protocol: &str) {
    let rounds = from_environment("TIDINGS_CRASH_ROUNDS", 100);
    let mut scene = Scene::start(protocol, 1_500, "");
    scene.under_load(|trouble| (0..rounds).for_each(|_| one_round(trouble)));
    scene.check(&format!("{rounds} rounds over MQTT {protocol}"), false);
}

#[test]
fn kills_and_broker_stops_under_load_lose_nothing_and_repeat_no_qos_2_over_mqtt_5() {
    kills_under_load("5");
}

#[test]
fn kills_and_broker_stops_under_load_lose_nothing_and_repeat_no_qos_2_over_mqtt_3_1_1() {
    kills_under_load("3.1.1");
}

#[test]
fn kills_while_the_broker_is_away_lose_nothing() {
    let seconds = from_environment("TIDINGS_CRASH_OUTAGE_SECONDS", 6);
    let kills = from_environment("TIDINGS_CRASH_OUTAGE_KILLS", 4);
    let mut scene = Scene::start("auto", 200, "");
    scene.under_load(|trouble| {
        wait_until("reports flow", || trouble.subscriber.count() > 200);
        trouble.stop_broker();
        let began = Instant::now();
        for _ in 0..kills {
            let spread = seconds * 1_000 / (kills + 1);
            trouble.chance.wait_ms(spread / 2, spread + 1);
            trouble.kill_and_start();
        }
        std::thread::sleep(Duration::from_secs(seconds).saturating_sub(began.elapsed()));
        trouble.run_broker();
    });
    scene.check(&format!("{seconds} s of outage with {kills} kills"), true);
}
