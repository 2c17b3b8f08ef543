//! Taking back what was folded ahead of the log: where an append to a shared log is overtaken, nothing of it has happened.
//!
//! There are two folds then: one that is ahead by what was to be appended, and one of what is in the log. The first becomes the second by copying what
//! the events have touched, and nothing else: of a store with a hundred thousand idempotency keys a batch touches a few lanes and as many keys as it
//! has reports. Events that touch much and are rare cost a whole copy.

use std::collections::BTreeSet;

use super::Outbox;
use crate::core::event::Event;
use crate::core::types::LaneKey;

impl Outbox {
    /// Takes back `events`, which have been folded into this outbox and not into `confirmed`, in which everything else has: both are the same
    /// afterwards.
    pub fn take_back(&mut self, events: &[Event], confirmed: &Outbox) {
        if events.iter().any(touches_everything) {
            return self.clone_from(confirmed);
        }
        self.next = confirmed.next;
        let lanes: BTreeSet<&LaneKey> = events.iter().filter_map(lane_of).collect();
        for key in lanes {
            let known = confirmed.connections.get(&key.connection).and_then(|known| Some((known.totals, known.lanes.get(&key.lane)?)));
            if let (Some((lane, totals)), Some((before, was))) = (self.lane_mut(key), known) {
                lane.clone_from(was);
                *totals = before;
            }
        }
        self.requests.take_back(events, &confirmed.requests);
        self.publishers.take_back(events, &confirmed.publishers);
        // These are small.
        self.replays.clone_from(&confirmed.replays);
        self.jobs.clone_from(&confirmed.jobs);
        if events.iter().any(is_about_owners) {
            self.owners.clone_from(&confirmed.owners);
        }
    }
}

fn touches_everything(event: &Event) -> bool {
    matches!(
        event,
        Event::LanesChanged { .. } | Event::EpochBumped { .. } | Event::GenerationBegun { .. } | Event::GenerationDropped { .. }
    )
}

fn is_about_owners(event: &Event) -> bool {
    matches!(event, Event::InstanceJoined { .. } | Event::InstanceLeft { .. } | Event::LaneTaken { .. } | Event::LaneLeft { .. })
}

/// The lane whose sends an event changes.
fn lane_of(event: &Event) -> Option<&LaneKey> {
    match event {
        Event::Accepted(accepted) => Some(&accepted.lane),
        Event::Carried(carried) => Some(&carried.accepted.lane),
        Event::Released { lane, .. }
        | Event::Delivered { lane, .. }
        | Event::Discarded { lane, .. }
        | Event::Expired { lane, .. }
        | Event::SessionOpened { lane, .. } => Some(lane),
        Event::Refused { delivery, .. }
        | Event::Resent { delivery, .. }
        | Event::DeadLettered { delivery, .. }
        | Event::Requeued { delivery, .. } => Some(&delivery.lane),
        Event::ReplayStarted { .. }
        | Event::ReplayProgress { .. }
        | Event::ReplayEnded { .. }
        | Event::Received { .. }
        | Event::ReleasedIn { .. }
        | Event::Audit { .. }
        | Event::InstanceJoined { .. }
        | Event::InstanceLeft { .. }
        | Event::LaneTaken { .. }
        | Event::LaneLeft { .. } => None,
        // See `touches_everything`.
        Event::LanesChanged { .. } | Event::EpochBumped { .. } | Event::GenerationBegun { .. } | Event::GenerationDropped { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::core::event::{Accepted, Carried, DeadReason, Dedupe, DeliveryRef, LanePurpose, Proof, Source};
    use crate::core::ranges::Ranges;
    use crate::core::types::{InstanceId, Millis, Protocol, Qos, SendNo, Seq};

    const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

    /// An event of this kind, about something small; many of them do not fit.
    fn event(outbox: &Outbox, kind: u8, what: u64) -> Event {
        let lane = LaneKey { connection: "mqtt".into(), lane: (what % 3) as u32 };
        // Windows of a day are run through in a few events.
        let at = Millis(outbox.next().0 * DAY_MS / 9);
        let send = SendNo(what / 3 % 5);
        let known = outbox.lane(&lane).and_then(|lane| lane.waiting().get(&send).map(|known| known.id));
        let id = known.unwrap_or(Seq(1 + what % 20));
        let delivery = DeliveryRef { lane: lane.clone(), send, id, located: id };
        let instance = InstanceId(what % 2);
        let accepted = |source, dedupe| {
            Event::Accepted(Arc::new(Accepted { source, dedupe, ..Accepted::plain(lane.clone(), "t", Qos::ExactlyOnce, at) }))
        };
        let dedupe = Dedupe { key: u128::from(what % 30) << 64 | 7, body: what % 2, line: (what % 50) as u32, lines: 1, batch: false };
        let client = format!("client {}", what % 4);
        match kind {
            0..4 => accepted(Source::Http, Some(dedupe)),
            4..7 => accepted(Source::Mqtt, Some(dedupe)),
            7 => accepted(Source::Internal, None),
            8 => Event::Released { lane, sends: vec![send] },
            9..11 => Event::Delivered { lane, sends: Ranges::one(send.0), proof: Proof::PubComp, at },
            11 => Event::Refused { delivery, code: 0x80, attempts: 1, retry_at: at, sent_through: send, at },
            12 => Event::Resent { delivery, at },
            13 => Event::DeadLettered {
                delivery,
                reason: DeadReason { code: "refused".into(), broker_code: None, message: String::new() },
                attempts: 1,
                at,
            },
            14 => Event::Requeued { delivery, by: "me".into(), at },
            15 => {
                Event::Discarded { lane, sends: Ranges::one(send.0), dead: what.is_multiple_of(2), by: "me".into(), reason: "".into(), at }
            }
            16 => Event::Expired { lane, sends: Ranges::one(send.0), at },
            17 => {
                let accepted = Accepted::plain(lane, "t", Qos::ExactlyOnce, at);
                Event::Carried(Box::new(Carried { id, send, accepted, history: Vec::new() }))
            }
            18 => Event::SessionOpened {
                lane,
                epoch: what as u32,
                protocol: Protocol::V5,
                endpoint: "e".into(),
                doubt: 1,
                repeated: Ranges::one(send.0),
                at,
            },
            19 => Event::Received { client, packet_id: (what % 3) as u16, at },
            20 => Event::ReleasedIn { client, packet_id: (what % 3) as u16, at },
            21 => Event::InstanceJoined { instance, name: "a".into(), at },
            22 => Event::InstanceLeft { instance, by: instance, at },
            23 => {
                let term = outbox.owners().of(&lane).term + 1;
                Event::LaneTaken { lane, instance, term, at }
            }
            24 => Event::ReplayStarted { job: what % 3, by: "me".into(), filter: "{}".into(), rate: 0, at },
            25 => Event::ReplayProgress { job: what % 3, through: Seq(what), created: what },
            26 => Event::ReplayEnded { job: what % 3, cancelled_by: None, at },
            27 => Event::LanesChanged { connection: "mqtt".into(), first: 3 + what as u32, count: 1, purpose: LanePurpose::Fresh, at },
            28 => Event::GenerationBegun { at },
            29 => Event::GenerationDropped { before: outbox.generations().nth(1).unwrap_or(Seq(1)), at },
            30 => Event::EpochBumped { reason: "copied".into(), at },
            _ => Event::Audit { who: "me".into(), what: "that".into(), at },
        }
    }

    fn fold(outbox: &mut Outbox, choices: &[(u8, u64)]) -> Vec<Event> {
        let mut folded = Vec::new();
        for (kind, what) in choices {
            let event = event(outbox, *kind, *what);
            if outbox.apply(&event).is_ok() {
                folded.push(event);
            }
        }
        folded
    }

    fn with_lanes() -> Outbox {
        let mut outbox = Outbox::new();
        let lanes = Event::LanesChanged { connection: "mqtt".into(), first: 0, count: 3, purpose: LanePurpose::Fresh, at: Millis(0) };
        outbox.apply(&lanes).unwrap();
        outbox
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 512 }))]
        #[test]
        fn what_was_folded_ahead_leaves_nothing_behind(
            before in prop::collection::vec((0..32u8, 0..1_000u64), 0..60),
            // Those that touch everything are left out now and then, so that what is copied piece by piece is what is tested.
            ahead in prop::collection::vec((0..27u8, 0..1_000u64), 1..40),
            rare in prop::collection::vec((27..32u8, 0..1_000u64), 0..2),
        ) {
            let mut confirmed = with_lanes();
            fold(&mut confirmed, &before);
            let mut outbox = confirmed.clone();
            let events = fold(&mut outbox, &[&ahead[..], &rare[..]].concat());
            outbox.take_back(&events, &confirmed);
            prop_assert_eq!(outbox, confirmed);
        }
    }

    #[test]
    #[ignore = "measures, and asserts nothing"]
    fn what_it_costs_in_a_large_store() {
        let mut confirmed = with_lanes();
        for number in 0..262_144u64 {
            let lane = LaneKey { connection: "mqtt".into(), lane: (number % 3) as u32 };
            let source = if number < 100_000 { Source::Http } else { Source::Mqtt };
            let dedupe = Some(Dedupe { key: u128::from(number) << 52, body: 1, line: 1, lines: 1, batch: false });
            let accepted = Accepted { source, dedupe, ..Accepted::plain(lane, "t", Qos::ExactlyOnce, Millis(number)) };
            confirmed.apply(&Event::Accepted(Arc::new(accepted))).unwrap();
        }
        let mut outbox = confirmed.clone();
        let began = std::time::Instant::now();
        outbox.clone_from(&confirmed);
        let whole = began.elapsed();
        let mut events = Vec::new();
        for number in 0..100u64 {
            let lane = LaneKey { connection: "mqtt".into(), lane: (number % 3) as u32 };
            let dedupe = Some(Dedupe { key: u128::from(number) | 1 << 127, body: 1, line: 1, lines: 1, batch: false });
            let source = if number.is_multiple_of(2) { Source::Http } else { Source::Mqtt };
            let accepted = Accepted { source, dedupe, ..Accepted::plain(lane.clone(), "t", Qos::ExactlyOnce, Millis(300_000)) };
            events.push(Event::Accepted(Arc::new(accepted)));
            events.push(Event::Delivered { lane, sends: Ranges::one(number / 3), proof: Proof::PubComp, at: Millis(300_000) });
        }
        events.iter().for_each(|event| _ = outbox.apply(event).unwrap());
        let began = std::time::Instant::now();
        outbox.take_back(&events, &confirmed);
        println!("a whole copy: {whole:?}; taking back {} events: {:?}", events.len(), began.elapsed());
    }
}
