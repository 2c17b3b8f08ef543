//! Instances that come and go in order, under load: lanes move one at a time, and nothing is repeated for it.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::load::Load;
use crate::scene::{LANES, Scene};
use crate::watch::{ask, recovery};

/// Lanes of one that stops in order are given up, and do not wait for its lease. What is in flight is finished first.
const GIVEN_WITHIN: Duration = Duration::from_secs(3);

#[test]
fn instances_come_and_go_and_are_restarted_one_by_one_and_nothing_is_lost_or_repeated() {
    let mut scene = Scene::start(3);
    let load = Load::new(scene.addresses(), scene.listeners());
    load.run(|| {
        let asked = scene.addresses()[0];
        load.learn_lanes(|path| Some(ask(asked, path)?.json()));
        // One more.
        load.pass_over(scene.subscriber.count());
        let before = scene.instances[0].seen();
        scene.add();
        scene.wait_for_shares();
        let after = scene.instances[0].seen();
        let moved = before.owners.iter().filter(|(lane, owner)| after.owners.get(*lane) != Some(*owner)).count();
        assert!(moved <= LANES / 4 + 1, "no more move than have to: {before:?} {after:?}");
        load.wait_until_all_lanes_deliver(&scene.subscriber, LANES);
        *load.addresses.lock().unwrap() = scene.addresses();
        *load.listeners.lock().unwrap() = scene.listeners();
        // One goes in order, and then each of the others, and all come back.
        for at in [3, 0, 1, 2] {
            load.pass_over(scene.subscriber.count());
            let began = Instant::now();
            scene.instances[at].tidings.terminate();
            let well: Vec<usize> = (0..4).filter(|number| *number != at).collect();
            let took = recovery(&scene, &load, began, &well);
            println!("{at} stops in order: {took:?}");
            assert!(took.owned <= GIVEN_WITHIN + took.stall, "{took:?}");
            assert_eq!(scene.instances[at].tidings.end(), Some(0));
            sleep(Duration::from_millis(500));
            scene.instances[at].run();
            scene.wait_for_shares();
            load.wait_until_all_lanes_deliver(&scene.subscriber, LANES);
        }
    });
    load.check(&scene.subscriber, false);
    scene.wind_up();
}
