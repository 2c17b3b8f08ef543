//! `GET /v1/history`: what is drawn, asked for as the page does.

use serde_json::Value;

use crate::support::ledger::Ledger;
use crate::support::mosquitto::free_port;
use crate::support::tidings::{PIPELINES, Tidings, connection};
use crate::support::wait_until;

fn samples(tidings: &Tidings, after: &str) -> (String, Vec<Value>) {
    let answer = tidings.get(&format!("/v1/history{after}")).unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    assert_eq!(answer["step_s"], 5);
    (answer["started_at"].as_str().unwrap().to_owned(), answer["samples"].as_array().unwrap().clone())
}

#[test]
fn figures_are_sampled_and_their_counts_go_on_over_a_restart() {
    let mut tidings = Tidings::start(&(connection(free_port(), "") + PIPELINES));
    wait_until("the first moment is there", || !samples(&tidings, "").1.is_empty());
    let mut ledger = Ledger::default();
    (0..7).for_each(|number| ledger.post(&tidings, 2, "one", number));
    wait_until("a later one knows of them", || {
        let later = samples(&tidings, "?after=1").1;
        later.first().is_some_and(|next| next["n"] == 2) && later.last().is_some_and(|last| last["accepted"] == 7)
    });
    let (run, seen) = samples(&tidings, "");
    let last = seen.last().unwrap();
    assert_eq!((&last["backlog"], &last["delivered"], &last["flow"]), (&7.into(), &0.into(), &"not_flowing".into()));
    assert!(last["oldest_pending_age_seconds"].as_f64().is_some_and(|age| age >= 0.0));
    assert!(samples(&tidings, &format!("?after={}", u64::MAX)).1.is_empty());
    for wrong in ["?after=x", "?after=-1", "?before=3", "?after=1&after=2"] {
        let answer = tidings.get(&format!("/v1/history{wrong}")).unwrap();
        assert_eq!((answer.status, answer.json()["error"]["field"].as_str()), (422, Some("after")), "{wrong}");
    }
    tidings.kill();
    tidings.run();
    wait_until("another run begins anew", || {
        samples(&tidings, "").1.first().is_some_and(|first| first["n"] == 1 && first["accepted"] == 7)
    });
    assert_ne!(samples(&tidings, "").0, run);
}
