//! The books that are kept outside: what was accepted, what arrived, and whether the one followed from the other as promised.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::tidings::{Client, Tidings};

/// A PUBLISH as it arrived at a broker or a subscriber.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub retain: bool,
}

/// A delivery that Tidings has accepted: it answered 202.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// Rises in the order of acceptance.
    pub id: u64,
    pub connection: String,
    pub topic: String,
    pub qos: u8,
    pub payload: Vec<u8>,
}

#[derive(Debug, Default)]
pub struct Ledger {
    pub accepted: Vec<Accepted>,
}

/// What an action means in [`PIPELINES`](super::tidings::PIPELINES).
pub fn action_for(qos: u8) -> &'static str {
    ["start", "failure", "success"][usize::from(qos)]
}

/// A report that no other is like: `number` is the test's own.
pub fn report(action: &str, project: &str, number: u64) -> String {
    format!(r#"{{"action":"{action}","tenant":"acme","pipeline":"check","project":"{project}","change":"{number}"}}"#)
}

impl Ledger {
    /// Posts one report, which has to be accepted.
    pub fn post(&mut self, tidings: &Tidings, qos: u8, project: &str, number: u64) {
        self.post_raw(&tidings.client(), &report(action_for(qos), project, number));
    }

    /// Posts one report as it stands, which has to be accepted.
    pub fn post_raw(&mut self, client: &Client, body: &str) {
        let reply = client.post(body.as_bytes(), "application/json", None).expect("the service answers");
        assert_eq!(reply.status, 202, "{reply:?}");
        self.enter(body.as_bytes(), &reply.json()["deliveries"]);
    }

    /// Posts many reports in bodies of 250, all of which have to be accepted.
    pub fn post_many(&mut self, client: &Client, reports: &[String]) {
        for batch in reports.chunks(250) {
            let reply = client.post(batch.join("\n").as_bytes(), "application/x-ndjson", None).expect("the service answers");
            assert_eq!(reply.status, 202, "{reply:?}");
            let answer = reply.json();
            let answers = answer["reports"].as_array().unwrap();
            assert_eq!(answers.len(), batch.len());
            for (report, answer) in batch.iter().zip(answers) {
                self.enter(report.as_bytes(), &answer["deliveries"]);
            }
        }
    }

    /// Notes the deliveries that an accept named.
    pub fn enter(&mut self, payload: &[u8], deliveries: &serde_json::Value) {
        for delivery in deliveries.as_array().unwrap() {
            self.accepted.push(Accepted {
                id: delivery["id"].as_str().unwrap().parse().unwrap(),
                connection: delivery["connection"].as_str().unwrap().to_owned(),
                topic: delivery["topic"].as_str().unwrap().to_owned(),
                qos: u8::try_from(delivery["qos"].as_u64().unwrap()).unwrap(),
                payload: payload.to_vec(),
            });
        }
    }

    /// Topics of which the broker has refused a report, as the service has logged it.
    pub fn topics_with_refused(&self, tidings: &Tidings) -> HashSet<String> {
        let refused = tidings.logged("the broker refused a report");
        let ids: HashSet<u64> = refused.iter().map(|line| line["delivery"].as_str().unwrap().parse().unwrap()).collect();
        self.accepted.iter().filter(|known| ids.contains(&known.id)).map(|known| known.topic.clone()).collect()
    }

    pub fn is_complete(&self, arrivals: &[Arrival]) -> bool {
        self.compare(arrivals).missing.is_empty()
    }

    /// What is wrong, and what is not as nice as it could be.
    pub fn compare(&self, arrivals: &[Arrival]) -> Comparison {
        let key = |topic: &str, payload: &[u8]| (topic.to_owned(), payload.to_vec());
        let accepted: HashMap<_, &Accepted> = self.accepted.iter().map(|known| (key(&known.topic, &known.payload), known)).collect();
        assert_eq!(accepted.len(), self.accepted.len(), "each report of a test is unlike the others");
        let mut times: HashMap<u64, u64> = HashMap::new();
        let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
        let mut found = Comparison { accepted: accepted.len(), arrived: arrivals.len(), ..Comparison::default() };
        for arrival in arrivals {
            let Some(known) = accepted.get(&key(&arrival.topic, &arrival.payload)) else {
                found.unknown.push(format!("{}: {}", arrival.topic, String::from_utf8_lossy(&arrival.payload)));
                continue;
            };
            let count = times.entry(known.id).or_default();
            *count += 1;
            if *count > 1 {
                match known.qos {
                    2 => found.twice.push(known.id),
                    _ => found.repeated.push(known.id),
                }
                continue;
            }
            let newest = newest.entry(&arrival.topic).or_default();
            match known.id < *newest {
                true => found.out_of_order.push(format!("{}: {} (QoS {}) after {newest}", arrival.topic, known.id, known.qos)),
                false => *newest = known.id,
            }
        }
        found.missing =
            self.accepted.iter().filter(|known| known.qos > 0 && !times.contains_key(&known.id)).map(|known| known.id).collect();
        found.missing_qos_0 = self.accepted.iter().filter(|known| known.qos == 0 && !times.contains_key(&known.id)).count();
        found
    }

    /// Everything accepted at QoS 1 and 2 has arrived, in order per topic, at QoS 2 once, and nothing else has.
    pub fn assert_kept(&self, arrivals: &[Arrival]) -> Comparison {
        let found = self.compare(arrivals);
        let is_kept = found.missing.is_empty() && found.twice.is_empty() && found.out_of_order.is_empty() && found.unknown.is_empty();
        assert!(is_kept, "the promise is broken: {found:#?}");
        found
    }

    /// As [`Ledger::assert_kept`], but for the order, which is looked at elsewhere: mosquitto may turn it round for a subscriber that is behind.
    pub fn assert_kept_in_any_order(&self, arrivals: &[Arrival]) -> Comparison {
        let found = self.compare(arrivals);
        let is_kept = found.missing.is_empty() && found.twice.is_empty() && found.unknown.is_empty();
        assert!(is_kept, "the promise is broken: {found:#?}");
        found
    }

    /// As [`Ledger::assert_kept`], and QoS 0 and 1 too have arrived exactly once.
    pub fn assert_kept_exactly(&self, arrivals: &[Arrival]) {
        let found = self.assert_kept(arrivals);
        assert!(found.repeated.is_empty() && found.missing_qos_0 == 0, "{found:#?}");
    }
}

/// What came of it. The lists hold ids.
#[derive(Debug, Default)]
pub struct Comparison {
    pub accepted: usize,
    pub arrived: usize,
    /// Accepted at QoS 1 or 2, and never arrived.
    pub missing: Vec<u64>,
    /// Of QoS 2, arrived again.
    pub twice: Vec<u64>,
    /// Of QoS 0 or 1, arrived again.
    pub repeated: Vec<u64>,
    pub out_of_order: Vec<String>,
    /// Arrived, and never accepted.
    pub unknown: Vec<String>,
    pub missing_qos_0: usize,
}
