//! A status in words and tables, for somebody who was woken: what is wrong, since when, what waits, and which command helps.

use std::time::{Duration, Instant};

use crate::admin::status::cluster::{Cluster, Instance, Replica, Stream};
use crate::admin::status::verdict::{Flow, Reason, Verdict, between};
use crate::admin::status::{Connection, Status};
use crate::cli::output;

/// A store is nearly full above so many percent of its limit: the history of delivered reports makes room at 90.
const NEARLY_FULL_PERCENT: u64 = 95;

/// What was seen of the servers before so many seconds is said to be old.
const OLD_S: u64 = 10;

/// A status that was shown before, for rates.
pub(super) struct Before {
    /// When.
    pub at: Instant,
    /// What it was.
    pub status: Status,
}

pub(super) fn describe(status: &Status, before: Option<&Before>) -> String {
    let (store, seconds) = (&status.store, Duration::from_secs);
    let verdict = Verdict::of(status);
    let mut text = first_line(status, &verdict);
    if let Some(detail) = verdict.reasons.first().and_then(|reason| reason.detail.as_ref()) {
        text.push_str(&format!("  {detail}\n"));
    }
    for line in verdict.reasons.iter().skip(1).map(|reason| said(status, reason)).chain(troubles(status)) {
        text.push_str(&format!("! {line}\n"));
    }
    text.push_str(&format!(
        "\ntidings {}, up {}, store {}\n",
        status.version,
        output::age(seconds(status.uptime_seconds)),
        status.store_id
    ));
    text.push_str(&format!(
        "store: {} of {}, {} free on its disk; delivered reports stay {}\n",
        output::size(store.bytes),
        output::size(store.max_bytes),
        output::size(store.free_bytes),
        output::age(seconds(store.retention_seconds))
    ));
    if let Some(listener) = &status.listener {
        let connections = match listener.connections {
            1 => "1 publisher is".to_owned(),
            count => format!("{count} publishers are"),
        };
        text.push_str(&format!("listener: {}, {connections} connected\n", listener.address));
    }
    if let Some(cluster) = &status.cluster {
        text.push_str(&instances(cluster));
    }
    if status.replays > 0 {
        let jobs = output::count(status.replays as u64, "replay is", "replays are");
        text.push_str(&format!("{jobs} under way, in the gaps that fresh reports leave: `tidings replay --list`\n"));
    }
    if !status.connections.is_empty() {
        let mut heading = vec!["CONNECTION", "BACKLOG", "OLDEST", "IN FLIGHT", "DEAD", "CREATED", "ACKNOWLEDGED", "SENT"];
        if before.is_some() {
            heading.extend(["IN/S", "OUT/S"]);
        }
        let rows: Vec<_> = status.connections.iter().map(|each| connection(each, before)).collect();
        text.push_str(&format!("\n{}", output::table(&heading, &rows)));
    }
    let lanes: Vec<_> = status.connections.iter().flat_map(|connection| lanes(status, connection)).collect();
    if !lanes.is_empty() {
        let heading = ["LANE", "STATE", "FOR", "MQTT", "SERVER", "PENDING", "IN FLIGHT", "WAITING", "LAST TROUBLE"];
        text.push_str(&format!("\n{}", output::table(&heading, &lanes)));
    }
    text
}

/// The instances and the servers that hold the log, in a line each.
fn instances(cluster: &Cluster) -> String {
    let instance = |instance: &Instance| {
        let mut said = vec![output::count(instance.lanes as u64, "lane", "lanes")];
        said.extend((instance.id == cluster.instance).then(|| "this one".to_owned()));
        said.extend(instance.is_leader.then(|| "leads".to_owned()));
        said.extend((!instance.is_live).then(|| "SILENT".to_owned()));
        format!("{}: {}", instance.name, said.join(", "))
    };
    let all: Vec<String> = cluster.instances.iter().map(instance).collect();
    let all = if all.is_empty() { "nobody has joined yet".to_owned() } else { all.join("; ") };
    let unowned = cluster.lanes.iter().filter(|lane| lane.owner.is_none()).count() as u64;
    let unowned = if unowned > 0 { format!("; {} WITHOUT OWNER", output::count(unowned, "lane", "lanes")) } else { String::new() };
    format!("instances: {all}{unowned}\n{}", cluster.stream.as_ref().map(servers).unwrap_or_default())
}

fn servers(stream: &Stream) -> String {
    let replica = |replica: &Replica| match replica {
        Replica { is_offline: true, name, .. } => format!("; {name} is OFFLINE"),
        Replica { is_current: false, name, lag, .. } => format!("; {name} is {lag} operations behind"),
        Replica { name, .. } => format!("; {name} is up to date"),
    };
    let leader = stream.leader.as_ref().map_or_else(|| "NO LEADER".to_owned(), |leader| format!("{leader} leads"));
    let replicas: String = stream.replicas.iter().map(replica).collect();
    let seen = if stream.age_s > OLD_S { format!(" (seen {} ago)", output::age(Duration::from_secs(stream.age_s))) } else { String::new() };
    format!("stream: {leader}{replicas}{seen}\n")
}

/// Whether reports flow, and if not: since when, why, and what waits.
fn first_line(status: &Status, verdict: &Verdict) -> String {
    let word = match verdict.flow {
        Flow::Flowing => "flowing",
        Flow::Partly => "PARTLY FLOWING",
        Flow::NotFlowing => "NOT FLOWING",
    };
    let waits = waiting(status);
    match verdict.reasons.first() {
        None => format!("{word}: reports are accepted and delivered; {waits}\n"),
        Some(reason) => {
            let is_refused = ["store_failed", "stopping", "store_full", "no_quorum", "cut_off"].contains(&reason.code.as_str());
            let kept = if is_refused { "" } else { "reports are accepted and kept, " };
            format!("{word}{}; {kept}{waits}\n", since_and_why(status, reason))
        }
    }
}

fn since_and_why(status: &Status, reason: &Reason) -> String {
    let since = reason.lasts(&status.now).map(|lasts| format!(" for {}", output::age(lasts))).unwrap_or_default();
    format!("{since}: {}", reason.message)
}

/// A further reason.
fn said(status: &Status, reason: &Reason) -> String {
    let since = reason.lasts(&status.now).map(|lasts| format!(", for {}", output::age(lasts))).unwrap_or_default();
    let detail = reason.detail.as_ref().map(|detail| format!(": {detail}")).unwrap_or_default();
    format!("{}{since}{detail}", reason.message)
}

fn waiting(status: &Status) -> String {
    let backlog: u64 = status.connections.iter().map(|connection| connection.backlog).sum();
    let ages = status.connections.iter().filter_map(|connection| connection.oldest_pending_age_seconds);
    let oldest = ages.max_by(f64::total_cmp).and_then(|age| Duration::try_from_secs_f64(age).ok());
    match (backlog, oldest) {
        (0, _) => "nothing waits".to_owned(),
        (1, Some(oldest)) => format!("1 delivery waits, for {}", output::age(oldest)),
        (many, Some(oldest)) => format!("{many} deliveries wait, the oldest for {}", output::age(oldest)),
        (many, None) => format!("{} to be delivered", output::count(many, "report waits", "reports wait")),
    }
}

/// What an operator should know beside the verdict.
fn troubles(status: &Status) -> Vec<String> {
    let mut troubles = Vec::new();
    let store = &status.store;
    if !store.full && store.max_bytes > 0 && store.bytes / 100 >= store.max_bytes / 10_000 * NEARLY_FULL_PERCENT {
        troubles.push(format!(
            "the store is nearly full: {} of {}; beyond that reports are refused (`store.max_size`)",
            output::size(store.bytes),
            output::size(store.max_bytes)
        ));
    }
    if !store.full && store.free_bytes < store.reserved_bytes / 4 * 5 {
        troubles.push(format!(
            "the disk is nearly full: {} are free, and below {} reports are refused",
            output::size(store.free_bytes),
            output::size(store.reserved_bytes)
        ));
    }
    let config = &status.config;
    troubles.extend(config.mistakes.iter().map(|mistake| format!("the configuration was not reloaded: {mistake}")));
    if !config.restart_needed.is_empty() {
        troubles.push(format!("restart needed for: {}", config.restart_needed.join(", ")));
    }
    for connection in &status.connections {
        let name = &connection.name;
        if connection.dead_letters > 0 {
            let letters = output::count(connection.dead_letters, "dead letter", "dead letters");
            troubles.push(format!("{letters} of {name}: see `tidings dead list --connection {name}`, then requeue or discard"));
        }
        if !connection.totals.balanced {
            troubles.push(format!("the books of {name} do not balance: please report it"));
        }
    }
    troubles
}

fn connection(connection: &Connection, before: Option<&Before>) -> Vec<String> {
    let age = connection.oldest_pending_age_seconds.and_then(|age| Duration::try_from_secs_f64(age).ok());
    let mut row = vec![
        connection.name.clone(),
        connection.backlog.to_string(),
        age.map_or_else(|| "-".to_owned(), output::age),
        connection.inflight.to_string(),
        connection.dead_letters.to_string(),
        connection.totals.created.to_string(),
        connection.totals.acknowledged.to_string(),
        connection.totals.sent.to_string(),
    ];
    if let Some(before) = before {
        let was = before.status.connections.iter().find(|was| was.name == connection.name);
        // Another service may have taken its place.
        let rate = |of: fn(&Connection) -> u64| {
            let done = of(connection).checked_sub(of(was?))?;
            Some(format!("{:.1}", done as f64 / before.at.elapsed().as_secs_f64().max(0.001)))
        };
        let of = [rate(|connection| connection.totals.created), rate(|connection| connection.totals.acknowledged + connection.totals.sent)];
        row.extend(of.map(|rate| rate.unwrap_or_else(|| "-".to_owned())));
    }
    row
}

/// The lanes of a connection. What all of them say stands there once.
fn lanes(status: &Status, connection: &Connection) -> Vec<Vec<String>> {
    let mut last = None;
    let mut rows = Vec::new();
    for lane in &connection.lanes {
        let error = lane.last_error.as_ref();
        let message = error.map(|error| error.message.as_str());
        let said = if message.is_some() && last == message { Some("the same") } else { message };
        last = message.or(last);
        let ago = |at: &str| between(at, &status.now).map_or_else(|| at.to_owned(), |span| format!("{} ago", output::age(span)));
        let trouble = error.zip(said).map(|(error, said)| format!("{}: {said}", ago(&error.at)));
        let since = lane.since.as_deref().and_then(|since| between(since, &status.now));
        rows.push(vec![
            format!("{}/{}{}", connection.name, lane.lane, if lane.replay { " (replay)" } else { "" }),
            lane.owner.as_ref().map_or_else(|| lane.state.clone(), |owner| format!("at {owner}")),
            since.map_or_else(|| "-".to_owned(), output::age),
            lane.protocol.clone().unwrap_or_else(|| "-".to_owned()),
            lane.server.clone().unwrap_or_else(|| "-".to_owned()),
            lane.pending.to_string(),
            lane.in_flight.to_string(),
            lane.waiting.to_string(),
            trouble.unwrap_or_default(),
        ]);
    }
    rows
}

#[cfg(test)]
pub(super) use tests::status as example;

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub(in crate::cli::status) fn status() -> Value {
        json!({
            "version": "0.1.0", "store_id": "00000000000000ab", "now": "2026-01-01T00:03:05.000Z", "uptime_seconds": 3_700, "stopping": false,
            "store": { "bytes": 1_536, "free_bytes": 1u64 << 30, "reserved_bytes": 128 << 20, "max_bytes": 10u64 << 30,
                "retention_seconds": 604_800, "committed": "12", "full": false, "full_reason": null, "failed": null },
            "config": { "file": "tidings.toml", "since": "2026-01-01T00:00:00.000Z", "last_reload_successful": true,
                "refused_at": null, "mistakes": [], "restart_needed": [] },
            "listener": { "address": "127.0.0.1:1884", "connections": 2 },
            "connections": [{ "name": "mqtt", "configured": true, "backlog": 1_203, "oldest_pending_age_seconds": 184.5, "inflight": 2,
                "dead_letters": 0, "totals": { "created": 1_205, "accepted": 1_205, "replayed": 0, "acknowledged": 1, "sent": 1, "dead": 0,
                    "expired": 0, "discarded": 0, "pending": 1_203, "possible_duplicates": 0, "balanced": true },
                "lanes": [{ "lane": 0, "state": "backing_off", "since": "2026-01-01T00:00:00.000Z", "protocol": "5", "server": "broker:1883",
                    "pending": 1_203, "in_flight": 2, "waiting": 0,
                    "last_error": { "at": "2026-01-01T00:02:55.000Z", "message": "connection refused" } }] }],
            "replays": 0
        })
    }

    fn lines(status: Value, before: Option<&Before>) -> Vec<String> {
        describe(&serde_json::from_value(status).unwrap(), before).lines().map(str::to_owned).collect()
    }

    #[test]
    fn an_outage_is_the_first_line_with_since_when_and_what_waits() {
        let expected = "\
NOT FLOWING for 3m 5s: no lane of mqtt is connected to its broker; reports are accepted and kept, 1203 deliveries wait, the oldest for 3m 4s
  connection refused

tidings 0.1.0, up 1h 1m, store 00000000000000ab
store: 1.5 KiB of 10.0 GiB, 1.0 GiB free on its disk; delivered reports stay 7days
listener: 127.0.0.1:1884, 2 publishers are connected

CONNECTION  BACKLOG  OLDEST  IN FLIGHT  DEAD  CREATED  ACKNOWLEDGED  SENT
mqtt        1203     3m 4s   2          0     1205     1             1

LANE    STATE        FOR    MQTT  SERVER       PENDING  IN FLIGHT  WAITING  LAST TROUBLE
mqtt/0  backing_off  3m 5s  5     broker:1883  1203     2          0        10s ago: connection refused
mqtt/1  connecting   3m 5s  -     -            0        0          0        1s ago: the same
";
        let mut status = status();
        let lanes = status["connections"][0]["lanes"].as_array_mut().unwrap();
        lanes.push(
            json!({ "lane": 1, "state": "connecting", "since": "2026-01-01T00:00:00.000Z", "protocol": null, "pending": 0, "in_flight": 0,
            "waiting": 0, "last_error": { "at": "2026-01-01T00:03:04.000Z", "message": "connection refused" } }),
        );
        assert_eq!(describe(&serde_json::from_value(status).unwrap(), None), expected);
    }

    #[test]
    fn a_service_that_does_well_says_so_and_dead_letters_wait_below() {
        let mut status = status();
        status["connections"][0]["lanes"][0]["state"] = json!("connected");
        status["connections"][0]["oldest_pending_age_seconds"] = json!(2.5);
        assert_eq!(lines(status.clone(), None)[0], "flowing: reports are accepted and delivered; 1203 deliveries wait, the oldest for 2s");
        (status["connections"][0]["backlog"], status["connections"][0]["oldest_pending_age_seconds"]) = (json!(0), Value::Null);
        status["connections"][0]["dead_letters"] = json!(2);
        let lines = lines(status, None);
        assert_eq!(lines[0], "flowing: reports are accepted and delivered; nothing waits");
        assert_eq!(lines[1], "! 2 dead letters of mqtt: see `tidings dead list --connection mqtt`, then requeue or discard");
    }

    /// Three instances, of which the first says this, and four lanes.
    fn cluster() -> Value {
        let instance = |id: &str, is_live: bool, lanes: u32| {
            json!({ "id": id, "name": format!("host-{id}"), "since": "2026-01-01T00:00:00.000Z", "is_live": is_live, "is_leader": id == "b",
                "lanes": lanes })
        };
        let replica = |name: &str, is_offline: bool, lag: u32| json!({ "name": name, "is_current": !is_offline && lag == 0, "is_offline": is_offline, "lag": lag });
        json!({ "instance": "a", "name": "host-a", "leader": "b", "is_kept": true,
            "instances": [instance("a", true, 1), instance("b", true, 2)],
            "lanes": [{ "lane": "mqtt/0", "owner": "a", "term": 3 }, { "lane": "mqtt/1", "owner": "b", "term": 4 },
                { "lane": "mqtt/2", "owner": "b", "term": 1 }],
            "stream": { "leader": "nats-1", "replicas": [replica("nats-2", false, 0), replica("nats-3", false, 12)], "age_s": 1, "bytes": 5,
                "max_bytes": 9 } })
    }

    fn of_several() -> Value {
        let mut status = status();
        status["cluster"] = cluster();
        let mut lane = status["connections"][0]["lanes"][0].clone();
        (lane["state"], lane["last_error"]) = (json!("connected"), Value::Null);
        let mut other = lane.clone();
        (other["lane"], other["state"], other["owner"], other["since"]) = (json!(1), json!("elsewhere"), json!("host-b"), Value::Null);
        let mut third = other.clone();
        third["lane"] = json!(2);
        status["connections"][0]["lanes"] = json!([lane, other, third]);
        status["connections"][0]["oldest_pending_age_seconds"] = json!(2.0);
        status
    }

    #[test]
    fn of_several_instances_it_says_who_leads_and_who_has_which_lane() {
        let lines = lines(of_several(), None);
        assert_eq!(lines[0], "flowing: reports are accepted and delivered; 1203 deliveries wait, the oldest for 2s");
        assert!(lines.contains(&"instances: host-a: 1 lane, this one; host-b: 2 lanes, leads".to_owned()), "{lines:#?}");
        assert!(lines.contains(&"stream: nats-1 leads; nats-2 is up to date; nats-3 is 12 operations behind".to_owned()), "{lines:#?}");
        let of_lane =
            |lane: &str| lines.iter().find(|line| line.starts_with(lane)).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(of_lane("mqtt/0").starts_with("mqtt/0 connected"), "{lines:#?}");
        assert!(of_lane("mqtt/1").starts_with("mqtt/1 at host-b"), "{lines:#?}");
    }

    #[test]
    fn an_instance_without_lanes_does_not_say_that_nothing_is_delivered() {
        let mut status = of_several();
        let lanes = status["connections"][0]["lanes"].as_array_mut().unwrap();
        (lanes[0]["state"], lanes[0]["owner"]) = (json!("elsewhere"), json!("host-b"));
        assert!(lines(status, None)[0].starts_with("flowing: "));
    }

    #[test]
    fn who_is_silent_what_nobody_has_and_servers_without_a_majority_are_said_first() {
        let mut status = of_several();
        status["cluster"]["instances"][1]["is_live"] = json!(false);
        assert_eq!(
            lines(status.clone(), None)[0],
            "PARTLY FLOWING: host-b is silent; others take over its 2 lanes within seconds; reports are accepted and kept, 1203 deliveries wait, \
             the oldest for 2s"
        );
        (status["connections"][0]["lanes"][1]["state"], status["connections"][0]["lanes"][1]["owner"]) = (json!("unowned"), Value::Null);
        status["cluster"]["lanes"][1]["owner"] = Value::Null;
        let said = lines(status.clone(), None);
        assert!(said[0].starts_with("PARTLY FLOWING: lane 1 of mqtt has no owner; "), "{said:#?}");
        assert!(
            said.contains(&"instances: host-a: 1 lane, this one; host-b: 2 lanes, leads, SILENT; 1 lane WITHOUT OWNER".to_owned()),
            "{said:#?}"
        );
        (status["cluster"]["is_kept"], status["cluster"]["stream"]["leader"]) = (json!(false), Value::Null);
        status["cluster"]["stream"]["replicas"][0]["is_offline"] = json!(true);
        let said = lines(status.clone(), None);
        let expected = "NOT FLOWING: the servers that hold the log have no majority, and reports are refused until it is back; 1203 deliveries wait, \
                        the oldest for 2s";
        assert_eq!(said[0], expected);
        assert!(said.contains(&"stream: NO LEADER; nats-2 is OFFLINE; nats-3 is 12 operations behind".to_owned()), "{said:#?}");
        status["cluster"]["stream"]["leader"] = json!("nats-1");
        let said = lines(status, None);
        assert!(
            said[0].starts_with("NOT FLOWING: host-a can't write to the log and refuses reports; others take its lanes if they can; 1203"),
            "{said:#?}"
        );
    }

    #[test]
    fn a_full_store_comes_first_and_every_other_trouble_has_a_line() {
        let mut status = status();
        status["store"]["full"] = json!(true);
        status["store"]["full_reason"] = json!("it takes too much");
        status["store"]["full_since"] = json!("2026-01-01T00:02:05.000Z");
        status["config"]["mistakes"] = json!(["tidings.toml:3: store.max_size: wrong"]);
        status["config"]["restart_needed"] = json!(["store.path", "http.listen"]);
        let mut gone = status["connections"][0].clone();
        (gone["name"], gone["configured"]) = (json!("old"), json!(false));
        status["connections"].as_array_mut().unwrap().push(gone);
        let lines = lines(status, None);
        let expected = "NOT FLOWING for 1m: the store is full, and reports are refused; 2406 deliveries wait, the oldest for 3m 4s
  it takes too much
! no lane of mqtt is connected to its broker, for 3m 5s: connection refused
! 1203 deliveries wait for old, which is no longer configured: configure it again, or `tidings move --from old --to CONNECTION`
! the configuration was not reloaded: tidings.toml:3: store.max_size: wrong
! restart needed for: store.path, http.listen";
        assert_eq!(lines[..6].join("\n"), expected);
    }

    #[test]
    fn a_store_or_a_disk_that_is_nearly_full_is_said_before_reports_are_refused() {
        let mut status = status();
        status["store"]["bytes"] = json!((10u64 << 30) / 100 * 96);
        assert!(lines(status.clone(), None)[2].starts_with("! the store is nearly full: 9.6 GiB of 10.0 GiB;"));
        status["store"]["bytes"] = json!((10u64 << 30) / 100 * 92);
        status["store"]["free_bytes"] = json!(150 << 20);
        assert!(lines(status, None)[2].starts_with("! the disk is nearly full: 150.0 MiB are free, and below 128.0 MiB"));
    }

    #[test]
    fn rates_are_what_has_happened_since_the_last_look() {
        let before = Before { at: Instant::now() - Duration::from_secs(10), status: serde_json::from_value(status()).unwrap() };
        let mut now = status();
        now["connections"][0]["totals"]["created"] = json!(1_205 + 100_000);
        now["connections"][0]["totals"]["acknowledged"] = json!(0);
        let lines = lines(now, Some(&before));
        assert!(lines[7].ends_with("SENT  IN/S    OUT/S") || lines[7].ends_with("IN/S     OUT/S"), "{}", lines[7]);
        let cells: Vec<&str> = lines[8].split_whitespace().collect();
        let rate: f64 = cells[cells.len() - 2].parse().unwrap();
        assert!((5_000.0..=10_000.0).contains(&rate), "{lines:?}");
        assert_eq!(cells.last(), Some(&"-"), "another service");
    }
}
