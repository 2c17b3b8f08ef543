//! Other configurations while several instances work: each reads its own, one after the other.

use std::fs;

use crate::scene::{Instance, Small};
use crate::support::scripted::ScriptedBroker;
use crate::support::tidings::named_connection;
use crate::support::wait_until;

fn reload(instance: &Instance, from: &str, to: &str) {
    let file = instance.tidings.config_file();
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(&file, text.replace(from, to)).unwrap();
    assert!(instance.tidings.reload_file());
}

#[test]
fn lanes_of_a_connection_that_one_instance_has_no_more_are_the_others() {
    let broker = ScriptedBroker::usual();
    let spare = named_connection("spare", broker.port, "workers = 4\n");
    let small = Small::start(2, broker.port, "", &spare);
    let owners = |at: usize| {
        let mut owners = small.instances[at].seen().owners;
        owners.retain(|lane, _| lane.starts_with("spare/"));
        owners.into_values().collect::<Vec<_>>()
    };
    wait_until("each of its lanes has an owner", || owners(0).len() == 4 && owners(0).iter().all(Option::is_some));
    let first = owners(0)[0].clone().unwrap();
    let at = small.instances.iter().position(|instance| instance.seen().me == first).unwrap();
    let other = small.instances[1 - at].seen().me;
    reload(&small.instances[at], &spare, "");
    wait_until("the other one owns them all", || owners(1 - at) == vec![Some(other.clone()); 4]);
}
