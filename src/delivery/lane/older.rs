//! The lanes of before a change of `workers`: the new ones begin when these are empty, so that each topic keeps its order.

use super::{LaneConfig, Surroundings};
use crate::core::event::LanePurpose;
use crate::core::types::ConnectionName;
use crate::log::committer::{Committed, LogHandle, Progress};

/// Waits until earlier sets of lanes are empty, but for what an operator has given back to them; false if the service stops before.
pub(super) async fn turn_has_come(config: &LaneConfig, around: &Surroundings) -> bool {
    let Some(after) = config.after else { return true };
    around.turn.say(false);
    let (mut progress, mut drain) = (around.log.progress(), around.drain.clone());
    let connection = &config.settings.lane.connection;
    loop {
        let older = pending_before(&progress.borrow_and_update(), connection, after);
        let is_empty = older.iter().all(|(_, pending)| *pending == 0);
        if is_empty || is_out_of_order(&around.log, connection, after).await {
            around.turn.say(true);
            return true;
        }
        let changed = async { progress.wait_for(|known| pending_before(known, connection, after) != older).await.is_ok() };
        tokio::select! {
            is_alive = changed => if !is_alive { return false },
            _ = drain.wait_for(|drain| *drain) => return false,
        }
    }
}

/// How much is pending on the lanes below a number, but for those of replays.
fn pending_before(known: &Progress, connection: &ConnectionName, after: u32) -> Vec<(u32, u64)> {
    let Some(books) = known.connections.get(connection) else { return Vec::new() };
    let older = books.lanes.range(..after).filter(|(lane, _)| !books.replay_lanes.contains(lane));
    older.map(|(lane, pending)| (*lane, *pending)).collect()
}

/// Whether all that is pending on the lanes below a number was given back by an operator: it is out of its order anyway, and nobody waits for it.
async fn is_out_of_order(log: &LogHandle, connection: &ConnectionName, after: u32) -> bool {
    let connection = connection.clone();
    let asked = log.ask(move |outbox| {
        let Some(known) = outbox.connections().get(&connection) else { return true };
        let older = known.sets.iter().filter(|set| set.first < after && set.purpose == LanePurpose::Fresh);
        let mut lanes = older.flat_map(|set| set.first..set.first + set.count).filter_map(|number| known.lanes.get(&number));
        lanes.all(|lane| lane.pending_in_order() == 0)
    });
    asked.await.is_ok_and(Committed::into_inner)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::sync::Arc;

    use super::*;
    use crate::core::event::{Accepted, DeadReason, DeliveryRef, Event};
    use crate::core::types::{LaneKey, Millis, Qos, SendNo, Seq};
    use crate::log::committer::{Limits, recover, start};
    use crate::log::memory_log::{Disk, MemoryLog};
    use crate::metrics::Metrics;

    /// A connection with a lane, and after a change of `workers` another.
    async fn log(connection: &ConnectionName) -> LogHandle {
        let opened = MemoryLog::open(&Disk::new(64 << 20)).unwrap();
        let outbox = recover(&opened).unwrap();
        let limits = Limits { max_size: u64::MAX, retention_ms: u64::MAX };
        let log = start(opened.log, outbox, limits, Arc::new(Metrics::new())).unwrap();
        let set = |first| {
            let (connection, count) = (connection.clone(), NonZeroU32::MIN.get());
            Event::LanesChanged { connection, first, count, purpose: LanePurpose::Fresh, at: Millis(0) }
        };
        log.record(vec![set(0), set(1)]).await.unwrap();
        log
    }

    #[tokio::test]
    async fn what_an_operator_has_given_back_to_an_older_lane_is_not_waited_for() {
        let connection = ConnectionName::from("mqtt");
        let lane = LaneKey { connection: connection.clone(), lane: 0 };
        let log = log(&connection).await;
        assert!(is_out_of_order(&log, &connection, 1).await, "there is nothing");
        let accepted = Accepted::plain(lane.clone(), "topic", Qos::AtLeastOnce, Millis(1));
        log.record(vec![Event::Accepted(Arc::new(accepted))]).await.unwrap();
        assert!(!is_out_of_order(&log, &connection, 1).await, "it has its place");
        let id = log.ask(|outbox| Seq(outbox.next().0 - 1)).await.unwrap().into_inner();
        let delivery = DeliveryRef { lane, send: SendNo(0), id, located: id };
        let reason = DeadReason { code: "refused".into(), broker_code: Some(0x87), message: "no".into() };
        let dead = Event::DeadLettered { delivery: delivery.clone(), reason, attempts: 1, at: Millis(2) };
        log.record(vec![dead]).await.unwrap();
        log.record(vec![Event::Requeued { delivery, by: "admin".into(), at: Millis(3) }]).await.unwrap();
        assert_eq!(pending_before(&log.progress().borrow(), &connection, 1), [(0, 1)]);
        assert!(is_out_of_order(&log, &connection, 1).await, "it has lost its place");
    }
}
