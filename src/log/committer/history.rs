//! What is told of a delivery that is carried forward: its refusals, deaths and requeues, one line each. The events that say so go with their generation.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::event::Event;
use crate::core::types::Seq;
use crate::log::{LogReader, ReadError};

/// So many lines are kept of one delivery: the last ones.
pub(super) const LINES: usize = 16;

/// So long is a line at most, in bytes.
const LINE_BYTES: usize = 200;

/// So many pages are looked at, without being decoded: some seconds at most. What would need more is carried without its history.
const GLIMPSES: usize = 200_000;

/// And so many are decoded.
const PAGES: usize = 10_000;

/// What the log says about these deliveries in `from..to`.
pub(super) fn tell(reader: &dyn LogReader, ids: &BTreeSet<Seq>, from: Seq, to: Seq) -> Result<BTreeMap<Seq, Vec<String>>, ReadError> {
    let mut told: BTreeMap<Seq, Vec<String>> = BTreeMap::new();
    let (mut at, mut pages) = (from, 0);
    for _ in 0..GLIMPSES {
        if ids.is_empty() || at >= to || pages >= PAGES {
            break;
        }
        let Some(glimpse) = reader.glimpse(at)? else { break };
        let mut named = glimpse.index.touched.iter().filter_map(|touched| touched.ids);
        if named.any(|(low, high)| ids.range(low..=high).next().is_some()) {
            pages += 1;
            let Some(page) = reader.page(at)? else { break };
            for (id, line) in page.events.iter().filter_map(line).filter(|(id, _)| ids.contains(id)) {
                let lines = told.entry(id).or_default();
                lines.push(line);
                if lines.len() > LINES {
                    lines.remove(0);
                }
            }
        }
        at = glimpse.last.next();
    }
    Ok(told)
}

/// Earlier lines and later ones, the last of both. What an earlier copy tells may stand in the log still, and is told once.
pub(super) fn join(earlier: Vec<String>, later: Option<&Vec<String>>) -> Vec<String> {
    let new: Vec<String> = later.into_iter().flatten().filter(|line| !earlier.contains(line)).cloned().collect();
    let mut all = earlier;
    all.extend(new);
    all.split_off(all.len().saturating_sub(LINES))
}

fn line(event: &Event) -> Option<(Seq, String)> {
    let (id, at, says) = match event {
        Event::Refused { delivery, code, attempts, at, .. } => {
            (delivery.id, at, format!("the broker refused it with 0x{code:02x}; {attempts} refusals were charged to it"))
        }
        Event::DeadLettered { delivery, reason, attempts, at } => {
            (delivery.id, at, format!("given up after {attempts} refusals: {}", reason.message))
        }
        Event::Requeued { delivery, by, at } => (delivery.id, at, format!("requeued by {by}")),
        _ => return None,
    };
    let mut line = format!("{}  {says}", at.rfc3339());
    if line.len() > LINE_BYTES {
        let end = (0..=LINE_BYTES).rev().find(|end| line.is_char_boundary(*end)).unwrap_or(0);
        line.truncate(end);
        line.push('…');
    }
    Some((id, line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::{DeadReason, DeliveryRef};
    use crate::core::types::{LaneKey, Millis, SendNo};

    #[test]
    fn a_history_stays_short_whatever_a_broker_says_and_however_often() {
        let delivery = DeliveryRef { lane: LaneKey { connection: "mqtt".into(), lane: 0 }, send: SendNo(1), id: Seq(7), located: Seq(7) };
        let reason = DeadReason { code: "refused".into(), broker_code: None, message: "é".repeat(1_000) };
        let (id, dead) = line(&Event::DeadLettered { delivery, reason, attempts: 3, at: Millis(0) }).unwrap();
        assert!(
            id == Seq(7) && dead.len() < LINE_BYTES + 4 && dead.starts_with("1970-01-01T00:00:00.000Z  given up after 3 refusals: é"),
            "{dead}"
        );
        let lines = |count: usize, text: &str| (0..count).map(|number| format!("{text}{number}")).collect::<Vec<_>>();
        let joined = join(lines(LINES, "a"), Some(&lines(3, "b")));
        assert_eq!((joined.len(), joined[0].as_str(), joined[LINES - 1].as_str()), (LINES, "a3", "b2"));
        assert!(join(Vec::new(), None).is_empty());
    }
}
