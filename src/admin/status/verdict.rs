//! Whether reports flow: the first thing that somebody wants to know who was woken.
//!
//! ```text
//!   in:   refused (the store failed, is full or out of reach, the service stops) ▶ not flowing
//!   out:  of the configured connections   none delivers ─────────────────────────▶ not flowing
//!                                         some don't, or not on all lanes, or late ▶ partly
//!                                         all do ─────────────────────────────────▶ flowing
//! ```
//! Of several instances each judges what it drives itself: a lane that another one drives counts as one that delivers, until that one is silent.
//!
//! It is made of the [`Status`] alone, so that whoever reads that can make it, too. Dead letters are no reason: they wait for a decision, and
//! hold nothing up.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::cluster::Instance;
use super::{Connection, Lane, Status};

/// A report that has waited for longer on lanes that are connected is late, in seconds: the longest wait between two tries is a minute by default.
const LATE: f64 = 60.0;

/// What was seen of the servers so many seconds ago is old: they are looked at each second, so they don't answer.
const UNANSWERED_S: u64 = 4;

/// Whether reports flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flow {
    /// They are accepted, and delivered on every lane.
    Flowing,
    /// They are accepted; some are not delivered, or late.
    Partly,
    /// They are refused, or nothing is delivered.
    NotFlowing,
}

/// Whether reports flow, and why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether.
    pub flow: Flow,
    /// Why not, the gravest first.
    pub reasons: Vec<Reason>,
}

/// Why reports don't flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Stable: `store_failed`, `stopping`, `store_full`, `no_quorum`, `cut_off`, `lane_stopped`, `lane_suspended`, `lane_unowned`, `broker_away`,
    /// `instance_silent`, `not_configured`, `late`.
    pub code: String,
    /// The connection, where it is about one.
    pub connection: Option<String>,
    /// Since when (RFC 3339), where that is known.
    pub since: Option<String>,
    /// For people.
    pub message: String,
    /// What was seen last of it: what a broker, a network or a disk has said.
    #[serde(default)]
    pub detail: Option<String>,
}

impl Verdict {
    /// What a status comes to.
    pub fn of(status: &Status) -> Verdict {
        let intake = intake(status);
        let configured: Vec<&Connection> = status.connections.iter().filter(|connection| connection.configured).collect();
        let silent = configured.iter().filter(|connection| !delivers(connection)).count();
        let mut reasons: Vec<Reason> = intake.into_iter().collect();
        let refused = !reasons.is_empty();
        // Whoever can't write to the log has ended its lanes on purpose: the broker has no part in that.
        let is_driving = status.cluster.as_ref().is_none_or(|cluster| cluster.is_kept);
        let outlets = status.connections.iter().filter(|connection| is_driving || !connection.configured).flat_map(outlet);
        let mut found: Vec<Reason> = outlets.chain(silent_instances(status)).collect();
        // What needs somebody before what passes by itself.
        found.sort_by_key(|reason| match reason.code.as_str() {
            "lane_stopped" => 0,
            "lane_suspended" => 1,
            "lane_unowned" => 2,
            "broker_away" => 3,
            "instance_silent" => 4,
            "not_configured" => 5,
            _ => 6,
        });
        reasons.extend(found);
        let flow = match () {
            () if reasons.is_empty() => Flow::Flowing,
            () if refused || (silent > 0 && silent == configured.len()) => Flow::NotFlowing,
            () => Flow::Partly,
        };
        Verdict { flow, reasons }
    }
}

impl Reason {
    fn new(code: &str, message: String) -> Self {
        Reason { code: code.to_owned(), connection: None, since: None, message, detail: None }
    }

    /// For how long it has been so, if both times can be read.
    pub fn lasts(&self, now: &str) -> Option<Duration> {
        between(self.since.as_deref()?, now)
    }
}

/// From one time to another (RFC 3339); none if one can't be read, or they are the wrong way round.
pub fn between(from: &str, to: &str) -> Option<Duration> {
    let read = |text: &str| humantime::parse_rfc3339(text).ok();
    read(to)?.duration_since(read(from)?).ok()
}

/// Why reports are refused.
fn intake(status: &Status) -> Option<Reason> {
    let store = &status.store;
    if let Some(failed) = &store.failed {
        let message = "the store has failed, and the service ends".to_owned();
        return Some(Reason { detail: Some(failed.clone()), ..Reason::new("store_failed", message) });
    }
    if status.stopping {
        return Some(Reason::new("stopping", "the service is stopping: reports are refused".to_owned()));
    }
    if let Some(full) = &store.full_reason {
        let message = "the store is full, and reports are refused".to_owned();
        return Some(Reason { since: store.full_since.clone(), detail: Some(full.clone()), ..Reason::new("store_full", message) });
    }
    let cluster = status.cluster.as_ref()?;
    let unled = cluster.stream.as_ref().filter(|stream| stream.leader.is_none());
    if unled.is_some_and(|stream| stream.age_s < UNANSWERED_S) {
        let message = "the servers that hold the log have no majority, and reports are refused until it is back".to_owned();
        return Some(Reason::new("no_quorum", message));
    }
    if cluster.is_kept && unled.is_none() {
        return None;
    }
    let message = format!("{} can't write to the log and refuses reports; others take its lanes if they can", cluster.name);
    let detail = "the servers that hold the log don't answer it, or have no majority: look whether another instance does better".to_owned();
    Some(Reason { detail: Some(detail), ..Reason::new("cut_off", message) })
}

/// Instances whose lanes are about to be taken over.
fn silent_instances(status: &Status) -> Vec<Reason> {
    let silent = status.cluster.iter().flat_map(|cluster| cluster.silent());
    let reason = |instance: &Instance| {
        let lanes = if instance.lanes == 1 { "1 lane".to_owned() } else { format!("{} lanes", instance.lanes) };
        Reason::new("instance_silent", format!("{} is silent; others take over its {lanes} within seconds", instance.name))
    };
    silent.map(reason).collect()
}

fn is_connected(lane: &&Lane) -> bool {
    lane.state == "connected"
}

/// Whether another instance drives it. How that does, it says itself.
fn is_elsewhere(lane: &Lane) -> bool {
    lane.state == "elsewhere"
}

/// Whether anything gets out on it.
fn delivers(connection: &Connection) -> bool {
    connection.lanes.iter().any(|lane| is_connected(&lane) || is_elsewhere(lane))
}

/// Why reports of a connection are not delivered, or late.
fn outlet(connection: &Connection) -> Vec<Reason> {
    let name = &connection.name;
    let reason = |code, message| Reason { connection: Some(name.clone()), ..Reason::new(code, message) };
    let of_lanes =
        |code, message, lanes: &[&Lane]| Reason { since: first_since(lanes), detail: last_error(lanes), ..reason(code, message) };
    if !connection.configured {
        let message = format!("{} deliveries wait for {name}, which is no longer configured", connection.backlog);
        let advice = format!("configure it again, or `tidings move --from {name} --to CONNECTION`");
        let reason = Reason { detail: Some(advice), ..reason("not_configured", message) };
        return if connection.backlog > 0 { vec![reason] } else { Vec::new() };
    }
    let in_state = |states: &[&str]| connection.lanes.iter().filter(|lane| states.contains(&lane.state.as_str())).collect::<Vec<_>>();
    let (stopped, suspended, unowned) = (in_state(&["stopped"]), in_state(&["suspended"]), in_state(&["unowned"]));
    let mut away = in_state(&["connecting", "backing_off"]);
    let mut reasons = Vec::new();
    if !stopped.is_empty() {
        reasons.push(of_lanes("lane_stopped", format!("{} stopped for good", lanes_have(&stopped, name)), &stopped));
    }
    if !suspended.is_empty() {
        reasons.push(of_lanes("lane_suspended", format!("{} been suspended", lanes_have(&suspended, name)), &suspended));
    }
    if !unowned.is_empty() {
        reasons.push(of_lanes("lane_unowned", format!("{} no owner", lanes_have(&unowned, name)), &unowned));
    }
    let elsewhere = connection.lanes.iter().filter(|lane| is_elsewhere(lane)).count();
    if away.is_empty() && reasons.is_empty() && !delivers(connection) {
        away = connection.lanes.iter().collect();
    }
    if !away.is_empty() {
        let message = match away.len() == connection.lanes.len() {
            true => format!("no lane of {name} is connected to its broker"),
            false if elsewhere > 0 => {
                let here = connection.lanes.len() - elsewhere;
                format!("{} of the {here} lanes of {name} that are driven here are not connected to its broker", away.len())
            }
            false => format!("{} of {} lanes of {name} are not connected to its broker", away.len(), connection.lanes.len()),
        };
        reasons.push(of_lanes("broker_away", message, &away));
    }
    if reasons.is_empty() && connection.oldest_pending_age_seconds.is_some_and(|age| age > LATE) {
        let refused: u64 = connection.lanes.iter().map(|lane| lane.waiting).sum();
        let why = match refused {
            0 => "the broker takes them more slowly than they come in, or holds back its acknowledgements".to_owned(),
            1 => "the broker has refused a report, which is tried again, and later ones of its topic wait behind it".to_owned(),
            many => {
                format!("the broker has refused {many} reports, which are tried again, and later ones of their topics wait behind them")
            }
        };
        let here = if elsewhere > 0 { " that is driven here" } else { "" };
        let message = format!("every lane of {name}{here} is connected, and reports are late");
        reasons.push(Reason { detail: Some(why), ..reason("late", message) });
    }
    reasons
}

fn lanes_have(lanes: &[&Lane], connection: &str) -> String {
    match lanes {
        [lane] => format!("lane {} of {connection} has", lane.lane),
        lanes => format!("{} lanes of {connection} have", lanes.len()),
    }
}

/// The newest trouble of these lanes.
fn last_error(lanes: &[&Lane]) -> Option<String> {
    let errors = lanes.iter().filter_map(|lane| lane.last_error.as_ref());
    errors.max_by(|a, b| a.at.cmp(&b.at)).map(|error| error.message.clone())
}

/// Since when it has been so for the first of these lanes.
fn first_since(lanes: &[&Lane]) -> Option<String> {
    let times = lanes.iter().filter_map(|lane| Some((humantime::parse_rfc3339(lane.since.as_ref()?).ok()?, lane.since.clone()?)));
    times.min_by_key(|(at, _): &(SystemTime, String)| *at).map(|(_, text)| text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lane(number: u32, state: &str, since: &str, trouble: Option<&str>) -> serde_json::Value {
        let error = trouble.map(|message| json!({ "at": since, "message": message }));
        json!({ "lane": number, "state": state, "since": since, "protocol": "5", "pending": 0, "in_flight": 0, "waiting": 0, "last_error": error })
    }

    fn connection(name: &str, backlog: u64, age: Option<f64>, lanes: &[serde_json::Value]) -> serde_json::Value {
        json!({ "name": name, "configured": true, "backlog": backlog, "oldest_pending_age_seconds": age, "inflight": 0, "dead_letters": 7,
            "totals": { "created": 0, "accepted": 0, "replayed": 0, "acknowledged": 0, "sent": 0, "dead": 0, "expired": 0, "discarded": 0,
                "pending": 0, "possible_duplicates": 0, "balanced": true }, "lanes": lanes })
    }

    fn status(connections: &[serde_json::Value]) -> Status {
        let status = json!({
            "version": "0.1.0", "store_id": "ab", "now": "2026-01-01T00:10:00.000Z", "uptime_seconds": 3_700, "stopping": false,
            "store": { "bytes": 1, "free_bytes": 1 << 30, "max_bytes": 10u64 << 30, "retention_seconds": 604_800, "committed": "12",
                "full": false, "full_reason": null, "failed": null },
            "config": { "file": null, "since": "2026-01-01T00:00:00.000Z", "last_reload_successful": true, "refused_at": null, "mistakes": [],
                "restart_needed": [] },
            "connections": connections, "replays": 0
        });
        serde_json::from_value(status).unwrap()
    }

    fn codes(verdict: &Verdict) -> Vec<&str> {
        verdict.reasons.iter().map(|reason| reason.code.as_str()).collect()
    }

    const EARLY: &str = "2026-01-01T00:05:00.000Z";
    const LATER: &str = "2026-01-01T00:09:30.000Z";

    #[test]
    fn reports_flow_when_every_lane_is_connected_whatever_is_dead() {
        let up = [lane(0, "connected", EARLY, Some("connection reset")), lane(1, "connected", LATER, None)];
        let verdict = Verdict::of(&status(&[connection("mqtt", 3, Some(2.0), &up)]));
        assert_eq!(verdict, Verdict { flow: Flow::Flowing, reasons: Vec::new() });
    }

    #[test]
    fn nothing_flows_when_no_lane_is_connected_since_the_first_of_them_was_lost() {
        let away = [lane(0, "backing_off", LATER, Some("newer")), lane(1, "connecting", EARLY, Some("older"))];
        let verdict = Verdict::of(&status(&[connection("mqtt", 3, Some(200.0), &away)]));
        assert_eq!((verdict.flow, codes(&verdict)), (Flow::NotFlowing, vec!["broker_away"]));
        let reason = &verdict.reasons[0];
        assert_eq!((reason.connection.as_deref(), reason.since.as_deref()), (Some("mqtt"), Some(EARLY)));
        assert_eq!((reason.message.as_str(), reason.detail.as_deref()), ("no lane of mqtt is connected to its broker", Some("newer")));
        assert_eq!(reason.lasts("2026-01-01T00:10:00.000Z"), Some(Duration::from_secs(300)));
    }

    #[test]
    fn some_flow_when_one_connection_or_one_lane_is_away() {
        let (up, down) = (lane(0, "connected", EARLY, None), lane(1, "backing_off", LATER, Some("refused")));
        let one_lane = Verdict::of(&status(&[connection("mqtt", 0, None, &[up.clone(), down.clone()])]));
        assert_eq!(one_lane.flow, Flow::Partly);
        assert_eq!(one_lane.reasons[0].message, "1 of 2 lanes of mqtt are not connected to its broker");
        let one_connection = Verdict::of(&status(&[connection("a", 0, None, &[up]), connection("b", 5, None, &[down])]));
        assert_eq!((one_connection.flow, codes(&one_connection)), (Flow::Partly, vec!["broker_away"]));
    }

    #[test]
    fn what_needs_somebody_comes_before_what_passes_by_itself() {
        let lanes = [
            lane(0, "backing_off", EARLY, Some("refused")),
            lane(1, "suspended", LATER, Some("the broker closes it")),
            lane(2, "stopped", LATER, Some("unreadable")),
        ];
        let verdict = Verdict::of(&status(&[connection("mqtt", 3, None, &lanes)]));
        assert_eq!((verdict.flow, codes(&verdict)), (Flow::NotFlowing, vec!["lane_stopped", "lane_suspended", "broker_away"]));
        assert_eq!(verdict.reasons[1].message, "lane 1 of mqtt has been suspended");
        assert_eq!(verdict.reasons[1].detail.as_deref(), Some("the broker closes it"));
    }

    #[test]
    fn a_full_store_refuses_whatever_the_lanes_do() {
        let mut status = status(&[connection("mqtt", 0, None, &[lane(0, "connected", EARLY, None)])]);
        (status.store.full_reason, status.store.full_since) = (Some("it takes too much".to_owned()), Some(EARLY.to_owned()));
        let verdict = Verdict::of(&status);
        assert_eq!((verdict.flow, codes(&verdict)), (Flow::NotFlowing, vec!["store_full"]));
        assert_eq!(verdict.reasons[0].since.as_deref(), Some(EARLY));
        status.store.failed = Some("input/output error".to_owned());
        assert_eq!(codes(&Verdict::of(&status)), ["store_failed"]);
    }

    #[test]
    fn reports_that_are_late_on_connected_lanes_have_their_reason() {
        let mut late = connection("mqtt", 9, Some(61.0), &[lane(0, "connected", EARLY, None)]);
        let verdict = Verdict::of(&status(&[late.clone()]));
        assert_eq!((verdict.flow, codes(&verdict)), (Flow::Partly, vec!["late"]));
        assert!(verdict.reasons[0].detail.as_ref().unwrap().contains("more slowly"), "{verdict:?}");
        late["lanes"][0]["waiting"] = json!(1);
        assert!(Verdict::of(&status(&[late.clone()])).reasons[0].detail.as_ref().unwrap().contains("has refused a report"));
        late["configured"] = json!(false);
        assert_eq!(codes(&Verdict::of(&status(&[late]))), ["not_configured"]);
    }
}
