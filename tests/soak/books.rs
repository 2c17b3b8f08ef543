//! The books: numbers that were accepted, and numbers that arrived. What a report is follows from its number.

use std::collections::HashMap;
use std::fmt;

use crate::support::ledger::{Arrival, action_for};

/// The QoS of a report.
pub fn qos_of(number: u64) -> u8 {
    u8::try_from(number % 3).unwrap()
}

/// What is published through the listener has numbers from here on: always QoS 2, and a topic of its own.
pub const PUBLISHED: u64 = 1 << 40;

pub fn topic_of(number: u64) -> String {
    if number >= PUBLISHED { "published".to_owned() } else { format!("zuul/p{}", number % 20) }
}

/// Some KiB, half of which does not compress: a generation is full after a few seconds.
pub fn payload_of(number: u64) -> String {
    let mut noise = number;
    let mut hexadecimal = String::new();
    for _ in 0..400 {
        noise = (noise ^ (noise >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9).wrapping_add(number | 1);
        hexadecimal.push_str(&format!("{noise:016x}"));
    }
    let action = action_for(qos_of(number));
    format!(
        r#"{{"action":"{action}","tenant":"acme","pipeline":"check","project":"p{}","change":"{number}","message":"{hexadecimal}"}}"#,
        number % 20
    )
}

#[derive(Default)]
pub struct Books {
    /// Number → how often it has arrived.
    accepted: HashMap<u64, u32>,
    /// Arrived before it was known that they were accepted.
    early: HashMap<u64, u32>,
    published: u64,
}

impl Books {
    pub fn accepted(&mut self, numbers: Vec<u64>) {
        for number in numbers {
            let early = self.early.remove(&number).unwrap_or(0);
            assert!(self.accepted.insert(number, early).is_none(), "{number} was accepted twice");
            self.published += u64::from(number >= PUBLISHED);
        }
    }

    pub fn arrived(&mut self, arrivals: Vec<Arrival>) {
        for Arrival { topic, payload, .. } in arrivals {
            let text = String::from_utf8(payload).unwrap();
            let number = text.split("\"change\":\"").nth(1).and_then(|rest| rest.split('"').next()).and_then(|number| number.parse().ok());
            let number: u64 = number.unwrap_or_else(|| panic!("{topic}: {text}"));
            assert_eq!((&text, &topic), (&payload_of(number), &topic_of(number)), "it arrives as it was");
            *self.accepted.get_mut(&number).unwrap_or_else(|| self.early.entry(number).or_default()) += 1;
        }
    }

    /// Accepted at QoS 1 or 2, and not arrived.
    pub fn missing(&self) -> Vec<u64> {
        let is_missing = |(number, times): (&u64, &u32)| (*times == 0 && (qos_of(*number) > 0 || *number >= PUBLISHED)).then_some(*number);
        self.accepted.iter().filter_map(is_missing).collect()
    }

    pub fn count(&self) -> u64 {
        self.accepted.len() as u64
    }

    fn repeated(&self, of: impl Fn(u64) -> bool) -> usize {
        self.accepted.iter().filter(|(number, times)| **times > 1 && of(**number)).count()
    }

    fn is_exactly_once(number: u64) -> bool {
        number >= PUBLISHED || qos_of(number) == 2
    }

    /// Nothing is lost, nothing of QoS 2 came twice, and nothing came that nobody has accepted.
    pub fn check(&self) {
        let missing = self.missing();
        assert!(missing.is_empty(), "{} of {} are lost: {missing:.20?}", missing.len(), self.count());
        assert_eq!(self.repeated(Books::is_exactly_once), 0, "QoS 2 came twice");
        assert!(self.early.is_empty(), "{} were never accepted: {:?}", self.early.len(), self.early);
        assert!(self.published > 0 && self.count() > self.published, "both ways in were used");
    }
}

impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at_least_once = self.repeated(|number| !Books::is_exactly_once(number));
        write!(
            f,
            "accepted {} ({} of them over MQTT), lost {}, QoS 2 twice {}, QoS 0 and 1 repeated {at_least_once}",
            self.count(),
            self.published,
            self.missing().len(),
            self.repeated(Books::is_exactly_once),
        )
    }
}
