//! Idempotency keys: the same request again gets the first answer.
//!
//! A request with a key is recognised for a day, within a bounded window that the outbox keeps (see
//! [`DEDUPE_WINDOW_KEYS`](crate::core::outbox::DEDUPE_WINDOW_KEYS)). Nothing is stored for it but what each delivery carries: hashes of key and body, its line, and
//! how many reports there were. That is enough to say again what was said first, whatever has happened to routes and lanes since.
//!
//! What left no delivery behind can't be recognised: a request of which no reporter wanted anything is looked at anew when it comes again.

use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::accept::{Answer, Delivery};
use super::batch::Shape;
use crate::core::event::{Dedupe, Event};
use crate::core::outbox::Request;
use crate::core::types::Seq;
use crate::log::committer::{Committed, LogHandle};
use crate::log::{Page, ReadError};
use crate::server::idempotency::IdempotencyKey;

/// What the log recognises a request by. `scope` is who asked: the same key of somebody else is another key.
pub fn recognise(key: &IdempotencyKey, scope: &str, body: &Bytes, lines: usize, shape: Shape) -> Dedupe {
    let mut text = Vec::with_capacity(scope.len() + 1 + key.as_str().len());
    text.extend_from_slice(scope.as_bytes());
    text.push(0);
    text.extend_from_slice(key.as_str().as_bytes());
    let lines = u32::try_from(lines).expect("a batch has at most ten thousand lines");
    Dedupe { key: xxh3_128(&text), body: xxh3_64(body), line: 0, lines, batch: shape == Shape::Ndjson }
}

/// What was answered when the request came first, read from the log.
///
/// # Errors
/// [`ReadError::Gone`] if it has gone past the retention this very moment; the window forgets it with that, so a repeat is then new.
pub async fn first_answer(log: &LogHandle, key: u128, known: Committed<Request>) -> Result<Committed<Answer>, ReadError> {
    let log = log.clone();
    let request = *known.get();
    let reading = tokio::task::spawn_blocking(move || read_answer(&log, key, request));
    let answer = reading.await.map_err(|error| ReadError::Io(format!("the reading thread failed: {error}")))??;
    Ok(known.map(|_| answer))
}

fn read_answer(log: &LogHandle, key: u128, request: Request) -> Result<Answer, ReadError> {
    let mut answer: Option<Answer> = None;
    let mut at = request.first;
    while at <= request.last {
        let page = log.page(at)?.ok_or_else(|| ReadError::Damaged { seq: at, what: "the event is missing".into() })?.into_inner();
        for (seq, dedupe, delivery) in deliveries_of(&page, key) {
            if seq < request.first || seq > request.last {
                continue;
            }
            let lines = usize::try_from(dedupe.lines).unwrap_or_default();
            let shape = if dedupe.batch { Shape::Ndjson } else { Shape::Single };
            let answer = answer.get_or_insert_with(|| Answer { shape, reports: vec![Vec::new(); lines] });
            let line = usize::try_from(dedupe.line).unwrap_or(usize::MAX);
            let report = answer
                .reports
                .get_mut(line)
                .ok_or_else(|| ReadError::Damaged { seq, what: format!("a delivery of report {} of {}", dedupe.line, dedupe.lines) })?;
            report.push(delivery);
        }
        at = page.last().next();
    }
    answer.ok_or_else(|| ReadError::Damaged { seq: request.first, what: "the deliveries of a request should be here".into() })
}

fn deliveries_of(page: &Arc<Page>, key: u128) -> impl Iterator<Item = (Seq, Dedupe, Delivery)> {
    page.events.iter().enumerate().filter_map(move |(offset, event)| {
        let Event::Accepted(accepted) = event else { return None };
        let dedupe = accepted.dedupe.filter(|dedupe| dedupe.key == key)?;
        let seq = Seq(page.first.0 + offset as u64);
        Some((seq, dedupe, Delivery { id: seq, accepted: Arc::clone(accepted) }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_key_of_somebody_else_is_another_key() {
        let key =
            |scope: &str, key: &str| recognise(&IdempotencyKey::parse(key.as_bytes()).unwrap(), scope, &Bytes::new(), 1, Shape::Single).key;
        assert_eq!(key("ci", "1"), key("ci", "1"));
        assert_ne!(key("ci", "1"), key("", "1"));
        assert_ne!(key("c", "i1"), key("ci", "1"));
    }
}
