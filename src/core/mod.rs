//! The pure core: what a report, a topic, a delivery and a publisher session *are*.
//!
//! Nothing here knows of tokio, sled, sockets, files, the clock or ambient randomness: `now` and jitter are arguments.
//! That is what lets the whole delivery protocol run under a seeded simulator.
//!
//! | Module | Holds |
//! |---|---|
//! | [`types`] | the small types that everything speaks in: [`Seq`](types::Seq), [`SendNo`](types::SendNo), [`Qos`](types::Qos), [`Millis`](types::Millis) |
//! | [`access`] | what a token allows, and what is kept of it |
//! | [`address`] | where a broker is, parsed once |
//! | [`report`] | the message schema, checked and named precisely |
//! | [`topic`] | topic templates, and topics that are valid by construction |
//! | [`route`] | (tenant, pipeline, action) → reporters |
//! | [`content`] | what of a delivery goes into its PUBLISH |
//! | [`event`] | every event that is ever stored |
//! | [`frame`] | where an MQTT packet begins and ends in a stream of bytes |
//! | [`listener`] | an MQTT publisher's connection to Tidings, as a state machine |
//! | [`keyed`] | a map by small keys, without what guards against chosen ones |
//! | [`ranges`] | a set of numbers as ranges: what is settled, what an outcome covers |
//! | [`outbox`] | `fold(events)`: what is pending, per lane, and the books of every connection |
//! | [`handover`] | deliveries given from one connection to another: the events of one commit |
//! | [`notice`] | what subscribers will not get, told to them |
//! | [`lease`] | when an instance takes a lane of another, and gives one up |
//! | [`search`] | what an operator looks for among deliveries |
//! | [`decision`] | what an operator decides about deliveries: the events of one commit |
//! | [`replay`] | what was delivered, created again: the events of one commit |
//! | [`session`] | the MQTT publisher session as a state machine |
//! | [`span`] | spans of time, as people write them |
//! | [`retry`] | backoff, and what a refusal means |

pub mod access;
pub mod address;
pub mod content;
pub mod decision;
pub mod event;
pub mod frame;
pub mod handover;
pub mod keyed;
pub mod lease;
pub mod listener;
pub mod notice;
pub mod outbox;
pub mod ranges;
pub mod replay;
pub mod report;
pub mod retry;
pub mod route;
pub mod search;
pub mod session;
pub mod span;
pub mod topic;
pub mod types;
