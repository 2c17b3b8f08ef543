//! What an operator decides about deliveries: the events of one commit.
//!
//! ```text
//!   Audit       "requeued 3 dead letters (the broker has room again): 17-18, 25"
//!   Requeued    17 · 18 · 25                                             or
//!   Discarded   mqtt/0: sends 4-5 · mqtt/2: send 9
//! ```

use std::collections::BTreeMap;

use super::event::{DeliveryRef, Event};
use super::handover::in_runs;
use super::ranges::RangeSet;
use super::types::{LaneKey, Millis, SendNo, Seq};

/// So many runs of ids are named in the audit; the events behind it name all.
const RUNS: usize = 200;

/// A delivery that something is decided about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// Its id.
    pub id: Seq,
    /// Its lane.
    pub lane: LaneKey,
    /// Its last send number.
    pub send: SendNo,
    /// The event that holds it.
    pub located: Seq,
}

/// Dead letters go back to their lanes.
pub fn requeue(chosen: &[Chosen], by: &str, reason: &str, at: Millis) -> Vec<Event> {
    let requeued = chosen.iter().map(|Chosen { id, lane, send, located }| Event::Requeued {
        delivery: DeliveryRef { lane: lane.clone(), send: *send, id: *id, located: *located },
        by: by.to_owned(),
        at,
    });
    std::iter::once(audit(chosen, "requeued", DEAD, reason, by, at)).chain(requeued).collect()
}

/// They are given up: dead letters, or pending ones.
pub fn discard(chosen: &[Chosen], dead: bool, by: &str, reason: &str, at: Millis) -> Vec<Event> {
    let mut lanes: BTreeMap<&LaneKey, RangeSet> = BTreeMap::new();
    for Chosen { lane, send, .. } in chosen {
        lanes.entry(lane).or_default().insert(send.0);
    }
    let (by, reason) = (by.to_owned(), reason.to_owned());
    let what = if dead { DEAD } else { PENDING };
    let audit = audit(chosen, "discarded", what, &reason, &by, at);
    let discarded = lanes.into_iter().map(|(lane, sends)| Event::Discarded {
        lane: lane.clone(),
        sends: sends.to_ranges(),
        dead,
        by: by.clone(),
        reason: reason.clone(),
        at,
    });
    std::iter::once(audit).chain(discarded).collect()
}

/// One and many of what is decided about.
const DEAD: (&str, &str) = ("dead letter", "dead letters");
const PENDING: (&str, &str) = ("pending delivery", "pending deliveries");

fn audit(chosen: &[Chosen], did: &str, (one, many): (&str, &str), why: &str, by: &str, at: Millis) -> Event {
    let what = if chosen.len() == 1 { one } else { many };
    let mut ids = in_runs(chosen.iter().map(|chosen| chosen.id.0));
    if let Some((end, _)) = ids.match_indices(", ").nth(RUNS - 1) {
        ids.truncate(end);
        ids.push_str(" and others");
    }
    Event::Audit { who: by.to_owned(), what: format!("{did} {} {what} ({why}): {ids}", chosen.len()), at }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ranges::Ranges;

    fn chosen(id: u64, lane: u32, send: u64) -> Chosen {
        Chosen { id: Seq(id), lane: LaneKey { connection: "mqtt".into(), lane }, send: SendNo(send), located: Seq(id) }
    }

    #[test]
    fn the_audit_stands_before_what_was_decided_and_names_who_and_which() {
        let all = [chosen(17, 0, 4), chosen(18, 1, 9), chosen(25, 0, 5)];
        let events = requeue(&all, "ops", "repaired", Millis(7));
        let expected = Event::Audit { who: "ops".into(), what: "requeued 3 dead letters (repaired): 17-18, 25".into(), at: Millis(7) };
        assert_eq!((&events[0], events.len()), (&expected, 4));
        let Event::Audit { what, .. } = &requeue(&all[..1], "ops", "repaired", Millis(7))[0] else { panic!("an audit comes first") };
        assert_eq!(what, "requeued 1 dead letter (repaired): 17");
        let events = discard(&all, false, "ops", "wrong branch", Millis(7));
        let what = "discarded 3 pending deliveries (wrong branch): 17-18, 25".to_owned();
        assert_eq!(events[0], Event::Audit { who: "ops".into(), what, at: Millis(7) });
        let sends: Vec<Ranges> = events[1..]
            .iter()
            .map(|event| match event {
                Event::Discarded { sends, dead: false, by, reason, .. } if by == "ops" && reason == "wrong branch" => sends.clone(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(sends, [Ranges(vec![(4, 5)]), Ranges::one(9)]);
    }

    #[test]
    fn an_audit_stays_short_however_many_there_are() {
        let all: Vec<Chosen> = (0..100_000).map(|number| chosen(number * 2, 0, number)).collect();
        let Event::Audit { what, .. } = &requeue(&all, "ops", "so", Millis(7))[0] else { panic!("an audit comes first") };
        assert!(
            what.len() < 4_096 && what.starts_with("requeued 100000 dead letters (so): 0, 2") && what.ends_with(" and others"),
            "{what}"
        );
    }
}
