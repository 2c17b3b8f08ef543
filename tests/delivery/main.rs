//! Delivery from end to end: the real binary against a real mosquitto, and against brokers that misbehave on purpose.
//!
//! | Module | Claims about |
//! |---|---|
//! | `ability` | brokers that can't do everything: Maximum QoS, Retain Available, and what is stamped on deliveries |
//! | `arrival` | what is posted arrives: bytes, topic, QoS, retain, protocols, several connections |
//! | `failover` | connections with several servers |
//! | `hardship` | a real mosquitto that is frozen, killed, restarted, short of room, or strict |
//! | `order` | order per topic |
//! | `outage` | brokers that are away, frozen, or restarted |
//! | `poison` | reports at which the broker hangs up |
//! | `reasons` | every reason code that a broker can give, and such as it can't |
//! | `refusal` | reports that the broker refuses |
//! | `sad` | brokers that misbehave |
//! | `silence` | brokers that fall silent: the tests that wait for time limits |
//! | `strange` | brokers that break the rules of the protocol |
//! | `restart` | stopping and starting the service |
//! | `damage` | stores that can't be opened |

#[path = "../support/mod.rs"]
mod support;

mod ability;
mod arrival;
mod damage;
mod failover;
mod hardship;
mod order;
mod outage;
mod poison;
mod reasons;
mod refusal;
mod restart;
mod sad;
mod silence;
mod strange;
