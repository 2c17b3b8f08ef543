//! Without a majority of the servers nothing is accepted, everybody stays, and all goes on by itself when it is back.

use std::time::{Duration, Instant};

use crate::load::Load;
use crate::scene::{LANES, Scene};
use crate::support::wait_until;
use crate::watch::ask;

/// What is refused is refused in this time.
const REFUSED_WITHIN: Duration = Duration::from_secs(1);

/// Posts until it is refused clearly and at once, as all are by and by.
fn wait_until_refused(scene: &Scene, at: usize) {
    let address = scene.instances[at].tidings.address();
    let agent =
        ureq::Agent::config_builder().http_status_as_error(false).proxy(None).timeout_global(Some(REFUSED_WITHIN)).build().new_agent();
    let mut number = 0;
    wait_until("a report is refused at once", || {
        number += 1;
        let body = crate::support::ledger::report("success", "late", (9 + at as u64) << 40 | number);
        let key = format!("late-{at}-{number}");
        let request = agent.post(format!("http://{address}/v1/reports")).content_type("application/json").header("Idempotency-Key", &key);
        let Ok(mut reply) = request.send(body.as_bytes()) else { return false };
        let text = reply.body_mut().read_to_string().unwrap();
        assert_ne!(reply.status().as_u16(), 202, "accepted without a majority: {text}");
        let has_advice = reply.headers().contains_key("retry-after");
        let error: serde_json::Value = serde_json::from_str(&text).unwrap();
        reply.status().as_u16() == 503 && has_advice && error["error"]["code"] == "overloaded"
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
        for at in 0..3 {
            wait_until_refused(&scene, at);
        }
        let began = Instant::now();
        // Longer than a lease: nobody takes anything, since nobody hears of anybody.
        while began.elapsed() < Duration::from_secs(6) {
            for instance in &mut scene.instances {
                let health = ask(instance.tidings.address(), "/healthz");
                assert!(health.is_some_and(|reply| reply.status == 200), "it is alive");
                assert!(!instance.tidings.has_ended(), "it stays");
            }
            std::thread::sleep(Duration::from_millis(200));
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
