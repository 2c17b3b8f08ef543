//! Without a majority of the servers nothing is accepted, everybody stays, and all goes on by itself when it is back.

use std::net::SocketAddr;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::load::Load;
use crate::scene::{LANES, Scene, Small};
use crate::support::ledger::report;
use crate::support::scripted::ScriptedBroker;
use crate::support::{PATIENCE, wait_until};
use crate::watch::{Slowness, ask};

/// What is refused is refused in this time.
const REFUSED_WITHIN: Duration = Duration::from_secs(1);

/// What came before that is answered in this time: 10 s, or 15 s if it is on its way into the log, and some for the work. A busy machine adds to it.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);

/// So long after the servers are gone reports are still taken in, and wait.
const FIRST_SECONDS: Duration = Duration::from_secs(5);

/// What a producer is told.
struct Answer {
    status: u16,
    body: Value,
    has_advice: bool,
    took: Duration,
}

impl Answer {
    /// Its code, if it is a refusal that leaves nothing unclear: come again, and with the same key where it is not known what became of it.
    fn refusal(&self) -> Option<&str> {
        let code = self.body["error"]["code"].as_str()?;
        let says_how = self.body["error"]["message"].as_str()?.contains("with the same Idempotency-Key");
        let is_clear = self.status == 503 && self.has_advice && (code == "overloaded" || code == "commit_timeout" && says_how);
        is_clear.then_some(code)
    }
}

/// Posts a report under a key of its own; none if there is no answer in time.
fn post(address: SocketAddr, number: u64, limit: Duration) -> Option<Answer> {
    let agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).timeout_global(Some(limit)).build().new_agent();
    let (body, key) = (report("success", "late", number), format!("late-{number}"));
    let request = agent.post(format!("http://{address}/v1/reports")).content_type("application/json").header("Idempotency-Key", &key);
    let began = Instant::now();
    let mut reply = request.send(body.as_bytes()).ok()?;
    let (status, has_advice) = (reply.status().as_u16(), reply.headers().contains_key("retry-after"));
    let body = reply.body_mut().read_to_string().ok()?;
    Some(Answer { status, body: serde_json::from_str(&body).unwrap(), has_advice, took: began.elapsed() })
}

fn post_meanwhile(address: SocketAddr, number: u64) -> JoinHandle<Option<Answer>> {
    thread::spawn(move || post(address, number, PATIENCE))
}

/// What was posted was refused clearly; with which code, and after how long.
fn refused(waiting: JoinHandle<Option<Answer>>) -> (String, Duration) {
    let answer = waiting.join().unwrap().expect("it is answered");
    let code = answer.refusal().unwrap_or_else(|| panic!("{} {}", answer.status, answer.body));
    (code.to_owned(), answer.took)
}

/// The answer that took longest came in time, but for what the machine has added.
fn assert_in_time(longest: Duration, slowness: Slowness) {
    let stall = slowness.stall();
    assert!(longest <= ANSWERED_WITHIN + stall, "{longest:?}, of which the machine's are {stall:?}");
}

/// Posts to all instances for as long as they take something in, and gives back who waits for the answers.
fn post_in_the_first_seconds(scene: &Scene) -> Vec<JoinHandle<Option<Answer>>> {
    let began = Instant::now();
    let mut waiting = Vec::new();
    while began.elapsed() < FIRST_SECONDS {
        let number = 90 << 40 | waiting.len() as u64;
        waiting.extend((number..).zip(scene.addresses()).map(|(number, address)| post_meanwhile(address, number)));
        thread::sleep(Duration::from_millis(250));
    }
    waiting
}

/// Posts until it is refused clearly and at once, as all are by and by.
fn wait_until_refused(scene: &Scene, at: usize) {
    let address = scene.instances[at].tidings.address();
    let mut number = (9 + at as u64) << 40;
    wait_until("a report is refused at once", || {
        number += 1;
        let Some(answer) = post(address, number, REFUSED_WITHIN) else { return false };
        assert_ne!(answer.status, 202, "accepted without a majority: {}", answer.body);
        answer.refusal() == Some("overloaded")
    });
}

#[test]
fn without_a_majority_of_the_servers_reports_are_refused_clearly_and_all_goes_on_by_itself_when_it_is_back() {
    let mut scene = Scene::start(3);
    let load = Load::new(scene.addresses(), scene.listeners());
    load.run(|| {
        let asked = scene.addresses()[0];
        load.learn_lanes(|path| Some(ask(asked, path)?.json()));
        for node in [0, 1] {
            scene.servers.nodes[node].kill();
        }
        let slowness = Slowness::start();
        let waiting = post_in_the_first_seconds(&scene);
        for at in 0..3 {
            wait_until_refused(&scene, at);
        }
        let took = waiting.into_iter().map(|waiting| refused(waiting).1);
        assert_in_time(took.max().expect("some were posted"), slowness);
        let began = Instant::now();
        // Longer than a lease: nobody takes anything, since nobody hears of anybody.
        while began.elapsed() < Duration::from_secs(6) {
            for instance in &mut scene.instances {
                let health = instance.tidings.get("/healthz");
                assert!(health.is_some_and(|reply| reply.status == 200), "it is alive");
                assert!(!instance.tidings.has_ended(), "it stays");
            }
            thread::sleep(Duration::from_millis(200));
        }
        for node in [0, 1] {
            scene.servers.nodes[node].run();
        }
        load.wait_until_all_lanes_deliver(&scene.subscriber, LANES);
        scene.wait_for_shares();
        for instance in &mut scene.instances {
            assert!(!instance.tidings.has_ended(), "it went on without a restart");
        }
    });
    // Those that were refused late may have been accepted all the same, as a timeout has it.
    load.check_but_for(&scene.subscriber, Some("zuul/late"), true);
    scene.wind_up();
}

#[test]
fn what_is_on_its_way_when_the_majority_goes_is_said_to_be_unknown_in_time_and_is_there_once_in_the_end() {
    let mut scene = Scene::start(1);
    let address = scene.addresses()[0];
    for node in [0, 1] {
        scene.servers.nodes[node].kill();
    }
    let slowness = Slowness::start();
    let on_its_way = post_meanwhile(address, 1);
    // It is in a commit by then, and that is not so old yet that what comes next is refused at the door.
    thread::sleep(Duration::from_secs(3));
    let (behind_it, on_its_way) = (refused(post_meanwhile(address, 2)), refused(on_its_way));
    assert_eq!(behind_it.0, "overloaded", "nothing of it is anywhere");
    assert_eq!(on_its_way.0, "commit_timeout");
    assert_in_time(behind_it.1.max(on_its_way.1), slowness);
    for node in [0, 1] {
        scene.servers.nodes[node].run();
    }
    for number in [1, 2] {
        wait_until("it is accepted", || post(address, number, ANSWERED_WITHIN).is_some_and(|answer| answer.status == 202));
    }
    assert_eq!(scene.instances[0].tidings.total("created"), 2);
    wait_until("both arrive", || scene.subscriber.count() >= 2);
    scene.wind_up();
    assert_eq!(scene.subscriber.count(), 2);
}

#[test]
fn an_instance_whose_servers_are_gone_can_be_stopped_and_says_that_nothing_is_lost() {
    let broker = ScriptedBroker::usual();
    let mut small = Small::start(1, broker.port, "", "");
    let tidings = &mut small.instances[0].tidings;
    small.node.kill();
    assert_eq!(tidings.stop(), Some(1));
    let said = tidings.logged("the store was not closed within");
    assert!(
        said.iter().any(|line| line["message"].as_str().is_some_and(|said| said.contains("nothing that was accepted is lost"))),
        "{said:?}"
    );
}

#[test]
fn all_servers_and_all_instances_killed_at_once_come_back_with_all_that_was_accepted() {
    let mut scene = Scene::start(3);
    let load = Load::new(scene.addresses(), scene.listeners());
    load.run(|| {
        let asked = scene.addresses()[0];
        load.learn_lanes(|path| Some(ask(asked, path)?.json()));
        scene.servers.nodes.iter_mut().for_each(|node| node.kill());
        scene.instances.iter_mut().for_each(|instance| instance.tidings.kill());
        scene.servers.nodes.iter_mut().for_each(|node| node.run());
        scene.instances.iter_mut().for_each(|instance| instance.run());
        scene.wait_for_shares();
        load.wait_until_all_lanes_deliver(&scene.subscriber, LANES);
    });
    load.check(&scene.subscriber, true);
    scene.wind_up();
}
