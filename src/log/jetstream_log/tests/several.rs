//! Several instances on one stream: signs of life, what has to be there, and servers that don't answer.

use std::time::Instant;

use super::*;
use crate::core::types::InstanceId;

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < until, "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn instances_hear_of_each_other_until_they_are_forgotten() {
    let options = options();
    let (a, b) = (opened(&options).log, opened(&Options { instance: "ci-2".into(), ..options.clone() }).log);
    let (first, second) = (a.peers().unwrap(), b.peers().unwrap());
    assert!(first.beats().unwrap().is_empty());
    first.put_beat(InstanceId(1), 1).unwrap();
    second.put_beat(InstanceId(0xfe), 1).unwrap();
    first.put_beat(InstanceId(1), 2).unwrap();
    for peers in [&first, &second] {
        assert_eq!(peers.beats().unwrap().into_iter().collect::<Vec<_>>(), [(InstanceId(1), 2), (InstanceId(0xfe), 1)]);
    }
    let stream = options.stream.clone();
    meddle(&options, move |context| async move {
        let bucket = context.get_key_value(&stream).await.unwrap();
        let shown = bucket.get("instance.00000000000000fe").await.unwrap().expect("an operator sees who is there");
        assert!(String::from_utf8_lossy(&shown).contains(r#""name":"ci-2""#));
        bucket.put("instance.00000000000000ff", "rubbish".into()).await.unwrap();
    });
    second.forget_beat(InstanceId(1)).unwrap();
    second.forget_beat(InstanceId(77)).unwrap();
    assert_eq!(first.beats().unwrap().into_iter().collect::<Vec<_>>(), [(InstanceId(0xfe), 1)]);
}

#[test]
fn health_says_who_leads_and_when_nobody_does() {
    let mut server = Nats::start();
    let options = on(&server.address());
    let mut log = opened(&options).log;
    let peers = log.peers().unwrap();
    log.append(&reports(1..=5), &sends).unwrap();
    wait_until("it has looked", || peers.health().is_some_and(|health| health.messages == 1));
    let health = peers.health().unwrap();
    assert!(health.leader.is_some() && health.replicas.is_empty() && health.bytes > 0);
    assert_eq!(health.max_bytes, Some(options.max_bytes()));
    server.kill();
    wait_until("nobody leads", || peers.health().is_some_and(|health| health.leader.is_none()));
    assert!(peers.put_beat(InstanceId(1), 1).is_err() && peers.beats().is_err());
    server.run();
    wait_until("somebody leads", || peers.health().is_some_and(|health| health.leader.is_some()));
    wait_until("a beat is written", || peers.put_beat(InstanceId(1), 2).is_ok());
}

#[test]
fn while_servers_are_away_nothing_is_caught_up_with_and_then_it_goes_on() {
    let mut server = Nats::start();
    let options = on(&server.address());
    let (mut a, mut b) = (opened(&options).log, opened(&options).log);
    a.append(&reports(1..=5), &sends).unwrap();
    server.kill();
    for _ in 0..50 {
        assert!(b.catch_up().unwrap().is_empty());
    }
    server.run();
    wait_until("it catches up", || !b.catch_up().unwrap().is_empty());
    assert_eq!(b.append(&reports(6..=7), &sends).unwrap(), Seq(7));
    assert_eq!(read_all(&*b.reader()), reports(1..=7));
}

#[test]
fn a_slow_instance_does_not_lower_what_has_to_be_there() {
    let options = options();
    let (slow, mut fast) = (opened(&options).log, opened(&options).log);
    for n in 0..3 {
        fast.append(&reports(n * 2 + 1..=n * 2 + 2), &sends).unwrap();
    }
    drop(fast);
    drop(slow);
    let stream = options.stream.clone();
    meddle(&options, move |context| async move {
        let bucket = context.get_key_value(&stream).await.unwrap();
        assert_eq!(bucket.get("witness").await.unwrap().unwrap().as_ref(), br#"{"last":3}"#);
    });
}

#[test]
fn a_checkpoint_of_one_that_is_behind_takes_no_ones_place() {
    let options = options();
    let (slow, mut fast) = (opened(&options).log, opened(&options).log);
    fast.append(&reports(1..=5), &sends).unwrap();
    fast.begin_generation(b"five").unwrap();
    fast.append(&reports(6..=9), &sends).unwrap();
    fast.begin_generation(b"nine").unwrap();
    fast.drop_oldest_generation().unwrap();
    slow.close(b"nothing").unwrap();
    let third = opened(&options);
    assert_eq!(third.checkpoint, Some(Checkpoint { next: Seq(10), bytes: b"nine".to_vec() }));
    assert_eq!(third.last_stop, LastStop::Unclean, "the one that is at work has not closed it");
    // The last one out.
    fast.close(b"nine again").unwrap();
    drop(third);
    let last = opened(&options);
    assert_eq!((last.last_stop, last.checkpoint.unwrap().next), (LastStop::Clean, Seq(10)));
}
