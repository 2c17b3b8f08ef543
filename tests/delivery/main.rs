//! Delivery from end to end: the real binary against a real mosquitto, and against brokers that misbehave on purpose.
//!
//! | Module | Claims about |
//! |---|---|
//! | `arrival` | what is posted arrives: bytes, topic, QoS, retain, protocols, several connections |
//! | `order` | order per topic |
//! | `outage` | brokers that are away, frozen, or restarted |
//! | `refusal` | reports that the broker refuses |
//! | `sad` | brokers that misbehave |
//! | `silence` | brokers that fall silent: the tests that wait for time limits |
//! | `restart` | stopping and starting the service |
//! | `damage` | stores that can't be opened |

#[path = "../support/mod.rs"]
mod support;

mod arrival;
mod damage;
mod order;
mod outage;
mod refusal;
mod restart;
mod sad;
mod silence;
