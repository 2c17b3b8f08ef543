//! Brokers that are away, frozen, or restarted. Reports are accepted all the while, and delivered in order afterwards.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::support::ledger::{Ledger, action_for, report};
use crate::support::mosquitto::{AWAY, IN_ORDER, Mosquitto, PERSISTENT, WITH_PACKETS};
use crate::support::subscriber::Subscriber;
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection};
use crate::support::wait_until;

fn reports(numbers: std::ops::Range<u64>) -> Vec<String> {
    numbers.map(|number| report(action_for(if number % 8 < 4 { 1 } else { 2 }), &format!("p{}", number % 8), number)).collect()
}

#[test]
fn a_broker_that_is_not_there_at_the_start_gets_everything_later() {
    let mut mosquitto = Mosquitto::start(&[PERSISTENT, IN_ORDER].concat());
    let subscriber = Subscriber::start(mosquitto.port);
    mosquitto.stop();
    let tidings = Tidings::start(&(connection(mosquitto.port, "") + SOON + PIPELINES));
    let mut ledger = Ledger::default();
    ledger.post_many(&tidings.client(), &reports(0..300));
    assert_eq!(tidings.get("/readyz").unwrap().status, 200, "taking reports now is what it is for");
    wait_until("the metrics show the backlog", || tidings.metric(r#"tidings_backlog_deliveries{connection="mqtt"}"#) == 300.0);
    wait_until("and its age", || tidings.metric(r#"tidings_oldest_pending_age_seconds{connection="mqtt"}"#) > 0.2);
    wait_until("and that nothing is connected", || !tidings.logged("can't be reached").is_empty());
    assert_eq!(tidings.metric(r#"tidings_connection_up{connection="mqtt",lane="0"}"#), 0.0);
    mosquitto.run();
    wait_until("all arrive", || subscriber.count() >= 300);
    tidings.wait_until_delivered();
    let found = ledger.assert_kept(&subscriber.arrivals());
    assert!(found.repeated.is_empty(), "{found:?}");
    assert_eq!(tidings.metric(r#"tidings_backlog_deliveries{connection="mqtt"}"#), 0.0);
    tidings.assert_balanced();
}

/// Posts one report after the other while `trouble` goes on in this thread, which sees how many were accepted; gives the ledger.
fn under_load(tidings: &Tidings, trouble: impl FnOnce(&AtomicU64)) -> Ledger {
    let client = tidings.client();
    let (is_over, accepted) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let producer = scope.spawn(|| {
            let mut ledger = Ledger::default();
            for number in 0.. {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                ledger.post_many(&client, &reports(number..number + 1));
                accepted.fetch_add(1, Ordering::Relaxed);
            }
            ledger
        });
        trouble(&accepted);
        is_over.store(true, Ordering::Relaxed);
        producer.join().unwrap()
    })
}

/// The broker is not there, and will not be before this returns.
fn wait_until_accepts_go_on(accepted: &AtomicU64) {
    let before = accepted.load(Ordering::Relaxed);
    wait_until("reports are accepted without the broker", || accepted.load(Ordering::Relaxed) > before + 50);
}

#[test]
fn a_broker_that_goes_away_under_load_and_comes_back_gets_everything_in_order() {
    let mut mosquitto = Mosquitto::start(&[PERSISTENT, WITH_PACKETS].concat());
    let subscriber = Subscriber::start(mosquitto.port);
    let tidings = Tidings::start(&(connection(mosquitto.port, "") + SOON + PIPELINES));
    let ledger = under_load(&tidings, |accepted| {
        for _ in 0..2 {
            let before = subscriber.count();
            wait_until("reports flow", || subscriber.count() > before + 50);
            mosquitto.stop();
            wait_until_accepts_go_on(accepted);
            std::thread::sleep(AWAY);
            mosquitto.run();
        }
        let before = subscriber.count();
        wait_until("reports flow again", || subscriber.count() > before + 50);
    });
    tidings.wait_until_delivered();
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    ledger.assert_kept_in_any_order(&subscriber.arrivals());
    mosquitto.assert_taken_in_order(&ledger.topics_with_refused(&tidings));
    assert_eq!(tidings.metric(r#"tidings_possible_duplicates_total{connection="mqtt"}"#), 0.0, "mosquitto keeps its sessions");
    assert!(tidings.metric(r#"tidings_reconnects_total{connection="mqtt"}"#) > 0.0);
    tidings.assert_balanced();
}

#[test]
fn a_frozen_broker_holds_up_delivery_and_nothing_else() {
    let mosquitto = Mosquitto::start(&[PERSISTENT, IN_ORDER].concat());
    let subscriber = Subscriber::start(mosquitto.port);
    let tidings = Tidings::start(&(connection(mosquitto.port, "") + SOON + PIPELINES));
    let ledger = under_load(&tidings, |accepted| {
        wait_until("reports flow", || subscriber.count() > 50);
        mosquitto.freeze();
        wait_until_accepts_go_on(accepted);
        std::thread::sleep(AWAY);
        assert!(tidings.total("pending") > 0);
        mosquitto.thaw();
        let before = subscriber.count();
        wait_until("reports flow again", || subscriber.count() > before + 50);
    });
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    ledger.assert_kept_exactly(&subscriber.arrivals());
    tidings.wait_until_delivered();
    tidings.assert_balanced();
}
