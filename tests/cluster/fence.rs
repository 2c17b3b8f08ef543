//! An owner that is stopped with PUBRECs in its socket, and comes back when another has finished its work.
//!
//! ```text
//!   owner    PUBLISH ─▶ broker            ─ stopped ─                                  goes on: reads PUBREC, is refused `Released`, ends its lanes,
//!            ◀─ PUBREC, held, then in its socket                                        joins again and gets lanes again
//!   others                       take its lanes, resume its sessions, PUBLISH DUP, PUBREL ─▶ delivered
//! ```

use std::thread::sleep;
use std::time::Duration;

use crate::from_environment;
use crate::scene::Scene;
use crate::support::ledger::{Ledger, action_for, report};
use crate::support::relay::Passage;
use crate::support::wait_until;

/// Many topics, all lanes; at QoS 2, but for every fifth.
fn reports(numbers: std::ops::Range<u64>) -> Vec<String> {
    numbers.map(|number| report(action_for(if number % 5 == 0 { 1 } else { 2 }), &format!("p{}", number % 40), number)).collect()
}

#[test]
fn an_owner_that_was_stopped_with_pubrecs_in_its_socket_does_no_harm_when_it_comes_back() {
    let stopped = Duration::from_secs(from_environment("TIDINGS_CLUSTER_STOP_SECONDS", 8));
    let mut scene = Scene::start(2);
    let mut ledger = Ledger::default();
    let other = scene.instances[1].tidings.client();
    ledger.post_many(&other, &reports(0..100));
    wait_until("all arrive", || ledger.is_complete(&scene.subscriber.arrivals()));
    let me = scene.instances[0].seen().me;
    for round in 1..=2u64 {
        let owner = &scene.instances[0];
        // What the broker says is on its way, and the owner is stopped before it comes.
        owner.to_broker.set(Passage::HeldBack);
        ledger.post_many(&other, &reports(round * 1_000..round * 1_000 + 200));
        wait_until("its window is in flight", || {
            let lanes = owner.tidings.status("mqtt")["lanes"].clone();
            lanes.as_array().unwrap().iter().filter(|lane| lane["in_flight"].as_u64() > Some(0)).count() >= 2
        });
        owner.tidings.freeze();
        owner.to_broker.set(Passage::Open);
        let began = std::time::Instant::now();
        wait_until("the other one completes its work", || ledger.is_complete(&scene.subscriber.arrivals()));
        println!("round {round}: all has arrived {:.1} s after it was stopped", began.elapsed().as_secs_f64());
        sleep(stopped.saturating_sub(began.elapsed()));
        ledger.assert_kept(&scene.subscriber.arrivals());
        owner.tidings.thaw();
        scene.wait_for_shares();
        assert!(!scene.instances[0].tidings.has_ended(), "it goes on");
        ledger.post_many(&scene.instances[0].tidings.client(), &reports(round * 1_000 + 500..round * 1_000 + 600));
        wait_until("all arrive", || ledger.is_complete(&scene.subscriber.arrivals()));
        ledger.assert_kept(&scene.subscriber.arrivals());
    }
    println!("it was {me} and is {:?}", scene.instances[0].view().map(|view| view.me));
    scene.wind_up();
    ledger.assert_kept(&scene.subscriber.arrivals());
}
