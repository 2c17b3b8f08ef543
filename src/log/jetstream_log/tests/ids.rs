//! Ids of messages: what is published again is known by them, and nothing is stored or not because of an id alone.

use super::*;

#[test]
fn a_page_that_is_taken_for_another_of_its_id_is_stored_under_a_new_one() {
    let options = options();
    let (log, ..) = open::open_log(options, open::Purpose::Serve).unwrap();
    let (pages, base) = (log.pages.clone(), log.end + 1);
    let stored = log.bridge.wait(LONG, async move {
        let mut known = async_nats::HeaderMap::new();
        known.insert(async_nats::header::NATS_MESSAGE_ID, format!("test-{base}-0"));
        let ack = pages.context.publish_with_headers(pages.subject.clone(), known, "another".into()).await.unwrap().await.unwrap();
        assert_eq!(ack.sequence, base);
        let (id, messages, patience) = ("test".to_owned(), vec![Bytes::from_static(b"a page")], PATIENCE);
        Publication { pages: pages.clone(), id, base, messages, patience }.store().await.map(|()| pages)
    });
    let pages = stored.expect("it ends").expect("it is stored");
    let found = log.bridge.wait(PATIENCE, async move { pages.get(base + 1).await });
    assert_eq!(found, Some(Ok(Some(Bytes::from_static(b"a page")))));
}

#[test]
fn a_page_is_not_stored_because_another_of_its_id_stands_at_its_place() {
    let (log, ..) = open::open_log(options(), open::Purpose::Serve).unwrap();
    let (pages, base) = (log.pages.clone(), log.end);
    let stored = log.bridge.wait(LONG, async move {
        let mut known = async_nats::HeaderMap::new();
        known.insert(async_nats::header::NATS_MESSAGE_ID, format!("test-{base}-0"));
        let ack = pages.context.publish_with_headers(pages.subject.clone(), known, "another".into()).await.unwrap().await.unwrap();
        assert_eq!(ack.sequence, base + 1);
        let (id, messages, patience) = ("test".to_owned(), vec![Bytes::from_static(b"a page")], PATIENCE);
        Publication { pages, id, base, messages, patience }.store().await
    });
    assert_eq!(stored, Some(Err(NotStored::Overtaken)));
}

#[test]
fn no_two_commits_of_a_start_have_an_id_in_common() {
    use futures_util::StreamExt;
    let (mut log, ..) = open::open_log(options(), open::Purpose::Serve).unwrap();
    let (bridge, pages) = (Arc::clone(&log.bridge), log.pages.clone());
    let published = bridge.wait(PATIENCE, async move { pages.context.client().subscribe(pages.subject.clone()).await.unwrap() });
    let another = Publication {
        pages: log.pages.clone(),
        id: "another".into(),
        base: log.end,
        messages: vec![Bytes::from_static(b"another")],
        patience: PATIENCE,
    };
    assert_eq!(bridge.wait(LONG, another.store()), Some(Ok(())));
    // Two commits for one place, of which neither can be stored.
    for n in 1..=2 {
        assert!(matches!(log.append(&reports(n..=n), &sends), Err(AppendError::Overtaken)));
    }
    let ids = bridge.wait(PATIENCE, async move {
        let ids = published
            .unwrap()
            .take(3)
            .map(|message| message.headers.unwrap().get(async_nats::header::NATS_MESSAGE_ID).unwrap().to_string());
        ids.collect::<std::collections::BTreeSet<String>>().await
    });
    assert_eq!(ids.map(|ids| ids.len()), Some(3));
}
