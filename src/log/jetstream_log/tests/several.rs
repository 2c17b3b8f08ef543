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

#[test]
fn a_commit_that_was_passed_over_can_not_be_completed_any_more() {
    let options = options();
    let (mut a, mut b) = (opened(&options).log, opened(&options).log);
    a.append(&reports(1..=5), &sends).unwrap();
    b.catch_up().unwrap();
    // Its writer stops before its last page.
    let paused = tear(&*a, &options, 2, 3);
    assert!(matches!(a.append(&reports(6..=6), &sends), Err(AppendError::Overtaken)));
    assert!(a.catch_up().unwrap().is_empty());
    a.append(&reports(6..=7), &sends).unwrap();
    assert_eq!(paused.end(), Err(NotStored::Overtaken));
    let caught: Vec<Event> = b.catch_up().unwrap().iter().flat_map(|page| page.events.clone()).collect();
    assert_eq!(caught, reports(6..=7));
    assert_eq!(b.append(&reports(8..=8), &sends).unwrap(), Seq(8));
    drop((a, b));
    assert_eq!(read_all(&*opened(&options).log.reader()), reports(1..=8));
}

#[test]
fn a_commit_that_is_completed_before_others_append_counts_for_all() {
    let options = options();
    let (mut a, mut b) = (opened(&options).log, opened(&options).log);
    let paused = tear(&*a, &options, 2, 3);
    // Both have seen it half, and one has a checkpoint in the middle of it.
    assert!(a.catch_up().unwrap().is_empty() && b.catch_up().unwrap().is_empty());
    a.close(b"before it").unwrap();
    assert_eq!(paused.end(), Ok(()));
    assert!(matches!(b.append(&reports(1..=1), &sends), Err(AppendError::Overtaken)));
    let caught: Vec<Event> = b.catch_up().unwrap().iter().flat_map(|page| page.events.clone()).collect();
    assert_eq!(caught.len(), 3);
    assert_eq!(b.append(&reports(4..=4), &sends).unwrap(), Seq(4));
    let late = opened(&options);
    assert_eq!((late.log.next_seq(), late.last_stop), (Seq(5), LastStop::Unclean));
    assert_eq!(read_all(&*late.log.reader())[..3], caught);
}

/// A page that arrives before the one that it follows is refused; that must not stand in its way later.
fn a_page_that_came_too_early_is_stored_when_it_comes_again(options: &Options) {
    let log = opened(options).log;
    let Torn { bridge, rest } = tear(&*log, options, 1, 3);
    let early = Publication {
        pages: rest.pages.clone(),
        id: rest.id.clone(),
        base: rest.base + 1,
        messages: vec![rest.messages[1].clone()],
        patience: Duration::ZERO,
    };
    let refused = bridge.wait(Duration::from_secs(20), early.store()).unwrap();
    assert!(matches!(&refused, Err(NotStored::Unknown(_))), "{refused:?}");
    assert_eq!(Torn { bridge, rest }.end(), Ok(()));
    assert_eq!(opened(options).log.next_seq(), Seq(4));
}

#[test]
fn a_page_that_came_too_early_is_stored_when_it_comes_again_on_one_server() {
    a_page_that_came_too_early_is_stored_when_it_comes_again(&options());
}

/// Three servers, and options for a stream on them once they have found each other.
fn cluster() -> (Vec<Nats>, Options) {
    let servers = Nats::cluster();
    let addresses = servers.iter().map(Nats::address).collect();
    let options = Options { replicas: 3, servers: addresses, ..on("") };
    wait_until("the cluster takes a stream", || JetStreamLog::open(options.clone()).is_ok());
    (servers, options)
}

#[test]
fn a_page_that_came_too_early_is_stored_when_it_comes_again_on_three() {
    let (_servers, options) = cluster();
    a_page_that_came_too_early_is_stored_when_it_comes_again(&options);
}

#[test]
fn a_server_that_is_frozen_is_left_for_another() {
    let (servers, options) = cluster();
    let (mut log, ..) = open::open_log(options.clone(), open::Purpose::Serve).unwrap();
    log.append(&reports(1..=3), &sends).unwrap();
    let peers = log.peers().unwrap();
    for round in 0..2 {
        let name = log.pages.server();
        let leader = peers.health().and_then(|health| health.leader);
        let frozen = &servers[name.strip_prefix("nats-").unwrap().parse::<usize>().unwrap()];
        frozen.signal("-STOP");
        let begun = Instant::now();
        wait_until("it is with another server", || log.pages.server() != name);
        let other = begun.elapsed();
        wait_until("a beat is written", || peers.put_beat(InstanceId(1), round).is_ok());
        let beat = begun.elapsed();
        let next = log.next_seq().0;
        log.append(&reports(next..=next), &sends).unwrap();
        println!(
            "{name} was frozen, {leader:?} led: another server after {other:?}, a beat after {beat:?}, an append after {:?}",
            begun.elapsed()
        );
        frozen.signal("-CONT");
        wait_until("it is one of them again", || {
            peers.health().is_some_and(|health| health.replicas.len() == 2 && health.replicas.iter().all(|replica| replica.is_current))
        });
    }
    assert_eq!(read_all(&*log.reader()), reports(1..=5));
}

#[test]
fn who_listens_hears_of_what_others_append_and_not_of_its_own() {
    use std::sync::atomic::{AtomicU32, Ordering};
    let options = options();
    let (mut a, mut b) = (opened(&options).log, opened(&options).log);
    let heard: [Arc<AtomicU32>; 2] = Default::default();
    for (log, heard) in [&a, &b].into_iter().zip(&heard) {
        let heard = Arc::clone(heard);
        log.peers().unwrap().on_growth(Box::new(move || _ = heard.fetch_add(1, Ordering::Relaxed)));
    }
    // Listening begins a moment later.
    let mut next = 1;
    wait_until("the other one is heard", || {
        a.append(&reports(next..=next), &sends).unwrap();
        next += 1;
        heard[1].load(Ordering::Relaxed) > 0
    });
    assert_eq!(heard[0].load(Ordering::Relaxed), 0);
    b.catch_up().unwrap();
    b.append(&reports(next..=next), &sends).unwrap();
    wait_until("the first one hears, too", || heard[0].load(Ordering::Relaxed) > 0);
}

#[test]
fn a_stream_that_was_restored_on_other_servers_is_a_copy_until_that_is_adopted() {
    let (_servers, options) = cluster();
    assert!(!opened(&options).is_copy && !opened(&options).is_copy);
    let bucket = options.stream.clone();
    meddle(&options, move |context| async move {
        let bucket = context.get_key_value(&bucket).await.unwrap();
        let home = bucket.get("home").await.unwrap().expect("it is known where the stream was made");
        assert!(String::from_utf8_lossy(&home).contains(r#""cluster":"test","servers":["nats-0","#));
        bucket.put("home", r#"{"cluster":"test","servers":["ci-1","ci-2","ci-3"]}"#.into()).await.unwrap();
    });
    let mut copy = opened(&options);
    assert!(copy.is_copy);
    copy.log.adopt_copy().unwrap();
    assert!(!opened(&options).is_copy);
}
