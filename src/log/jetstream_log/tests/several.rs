//! Several instances on one stream: signs of life, what has to be there, and servers that don't answer.

use std::time::Instant;

use super::*;
use crate::core::types::InstanceId;

pub(super) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "not within {} s: {what}", PATIENCE.as_secs());
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

#[test]
fn who_leads_deletes_checkpoints_that_nobody_names_and_nobody_will() {
    let options = options();
    let mut log = opened(&options).log;
    log.append(&reports(1..=5), &sends).unwrap();
    assert!(log.keep_generations(Some(b"five")).unwrap());
    let other = opened(&Options { instance: "ci-2".into(), ..options.clone() }).log;
    other.peers().unwrap().put_beat(InstanceId(2), 1).unwrap();
    drop(log);
    let stream = options.stream.clone();
    meddle(&options, move |context| async move {
        let bucket = context.get_key_value(&stream).await.unwrap();
        for left in ["checkpoint.9-9.0", "checkpoint.9-9.1", "checkpoint.1-7.0", "checkpoint.2-1.0"] {
            bucket.put(left, "a part".into()).await.unwrap();
        }
    });
    let (mut log, ..) = open::open_log(options, open::Purpose::Serve).unwrap();
    assert!(log.keep_generations(None).unwrap());
    let (bridge, bucket) = (Arc::clone(&log.bridge), log.bucket.clone());
    wait_until("what is of no use is gone, and what is named, or its instance is at work, stays", || {
        let bucket = bucket.clone();
        let keys = bridge.wait(PATIENCE, async move { bucket.keys("checkpoint.").await }).unwrap().unwrap();
        keys == ["checkpoint.1-1.0", "checkpoint.2-1.0"]
    });
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
    let refused = bridge.wait(PATIENCE, early.store()).unwrap();
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
fn what_a_replica_does_not_give_is_read_from_the_leader() {
    let options = options();
    let bridge = Bridge::new().unwrap();
    // A stream that gives nothing but through its leader, and somebody who takes what replicas are asked for, and does not answer: one that is frozen.
    let asked = options.clone();
    let silent = bridge.wait(PATIENCE, async move {
        let context = servers::connect(&asked).await.unwrap();
        let config = async_nats::jetstream::stream::Config { allow_direct: false, ..servers::wanted(&asked) };
        context.create_stream(config).await.unwrap();
        context.client().subscribe(format!("$JS.API.DIRECT.GET.{}.>", asked.stream)).await.unwrap()
    });
    assert!(silent.is_some(), "it takes what replicas are asked for");
    let mut log = opened(&options).log;
    for n in 1..=3 {
        log.append(&reports(n..=n), &sends).unwrap();
    }
    assert_eq!(read_all(&*opened(&options).log.reader()), reports(1..=3));
    drop(silent);
}

#[test]
fn a_leader_that_answers_and_stores_nothing_lets_another_one_lead() {
    let (_servers, options) = cluster();
    let (log, ..) = open::open_log(options, open::Purpose::Serve).unwrap();
    // What is published here comes to no stream, and the leader says that nothing stands at its place.
    let mut pages = log.pages.clone();
    pages.subject = "nowhere".into();
    let (id, messages, patience) = ("test".to_owned(), vec![Bytes::from_static(b"a page")], PATIENCE);
    let publication = Publication { pages, id, base: log.end, messages, patience };
    let pages = log.pages.clone();
    let led = log.bridge.wait(LONG, async move {
        let before = loop {
            if let Some(leader) = pages.leader().await {
                break leader;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let another = async {
            while pages.leader().await.is_none_or(|leader| leader == before) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            () = another => Ok(()),
            stored = publication.store() => Err(stored),
        }
    });
    assert_eq!(led, Some(Ok(())));
}

#[test]
fn a_server_that_was_killed_after_old_pages_were_deleted_has_all_the_others_when_it_leads() {
    let (mut servers, options) = cluster();
    let (mut log, ..) = open::open_log(options.clone(), open::Purpose::Serve).unwrap();
    for generation in 0..3 {
        for n in generation * 10..(generation + 1) * 10 {
            log.append(&reports(n + 1..=n + 1), &sends).unwrap();
        }
        if generation < 2 {
            log.begin_generation(b"so far").unwrap();
        }
    }
    log.drop_oldest_generation().unwrap();
    let (pages, bucket) = (log.pages.clone(), log.bucket.clone());
    let first = || {
        let pages = pages.clone();
        log.bridge.wait(Duration::from_secs(5), async move { pages.info().await.map(|info| info.state.first_sequence) })
    };
    wait_until("the oldest pages are deleted", || first() == Some(Ok(11)));
    // What the servers do is played again up to what was known to be agreed on when more came.
    log.append(&reports(31..=31), &sends).unwrap();
    log.append(&reports(32..=32), &sends).unwrap();

    let leader = || {
        let pages = pages.clone();
        log.bridge.wait(Duration::from_secs(5), async move { pages.leader().await }).flatten()
    };
    let mut led = None;
    wait_until("somebody leads", || {
        led = leader();
        led.is_some()
    });
    let led = led.unwrap();
    let at = (0..3).find(|at| led != format!("nats-{at}")).expect("there are three");
    servers[at].kill();
    servers[at].run();
    // Reading is from the leader, so it is to lead both.
    let name = format!("nats-{at}");
    wait_until("it leads the pages", || {
        let (pages, name) = (pages.clone(), name.clone());
        let leads = log.bridge.wait(Duration::from_secs(5), async move {
            let info = pages.info().await.ok()?;
            let replicas = info.cluster?;
            let is_near = replicas.replicas.iter().all(|replica| replica.current);
            if replicas.leader.as_ref() != Some(&name) && is_near {
                servers::let_another_lead(&pages.context, &pages.name).await;
            }
            Some(replicas.leader == Some(name))
        });
        leads == Some(Some(true))
    });
    wait_until("it leads the bucket", || {
        let (bucket, name) = (bucket.clone(), name.clone());
        let leads = log.bridge.wait(Duration::from_secs(5), async move {
            let leader = bucket.leader().await;
            if leader.is_some() && leader.as_ref() != Some(&name) {
                bucket.let_another_lead().await;
            }
            leader == Some(name)
        });
        leads == Some(true)
    });
    let opened = JetStreamLog::open(options).unwrap_or_else(|error| panic!("{error}"));
    let found: Vec<Event> =
        (11..=32).map(|seq| opened.log.reader().page(Seq(seq)).unwrap().unwrap().get(Seq(seq)).unwrap().clone()).collect();
    assert_eq!(found, reports(11..=32));
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

#[test]
fn epochs_of_a_copy_that_one_instance_has_bumped_are_not_bumped_by_the_next_though_the_first_one_ended_then() {
    let (_servers, options) = cluster();
    let bump = Event::EpochBumped { reason: "copied".into(), at: crate::core::types::Millis(0) };
    let mut next = 1;
    for place in ["once", "and again"] {
        let bucket = options.stream.clone();
        meddle(&options, move |context| async move {
            let bucket = context.get_key_value(&bucket).await.unwrap();
            bucket.put("home", format!(r#"{{"cluster":"{place}","servers":["ci-1"]}}"#).into()).await.unwrap();
        });
        // Two find that it is one. What others append does not make it one that was bumped, nor does an earlier copy's bump.
        let mut first = opened(&options);
        first.log.append(&reports(next..=next), &sends).unwrap();
        assert!(first.is_copy && opened(&options).is_copy);
        first.log.append(std::slice::from_ref(&bump), &sends).unwrap();
        drop(first);
        assert!(!opened(&options).is_copy);
        let (_, _, _, is_copy) = open::open_log(options.clone(), open::Purpose::Export).unwrap();
        assert!(!is_copy, "and it is at home here");
        next += 2;
    }
}

#[test]
fn a_message_counts_as_deleted_only_if_it_is_gone() {
    let (_servers, clustered) = cluster();
    for options in [options(), clustered] {
        drop(opened(&options));
        let (stream, replicas) = (options.stream.clone(), options.replicas);
        meddle(&options, move |context| async move {
            let subject = format!("{stream}.pages");
            for _ in 0..2 {
                context.publish(subject.clone(), "a page".into()).await.unwrap().await.unwrap();
            }
            // Twice, as after an answer that was lost.
            for at in [1, 1] {
                assert_eq!(servers::delete(&context, &stream, at).await, Ok(()));
            }
            let kept = async_nats::jetstream::stream::Config {
                name: format!("{stream}-kept"),
                deny_delete: true,
                num_replicas: replicas,
                ..Default::default()
            };
            let name = context.create_stream(kept).await.unwrap().cached_info().config.name.clone();
            context.publish(name.clone(), "a page".into()).await.unwrap().await.unwrap();
            let refused = servers::delete(&context, &name, 1).await;
            assert!(refused.is_err(), "an operator is told that the stream denies it");
        });
    }
}
