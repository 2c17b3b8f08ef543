//! Ingest: bytes in, accept out, after commit.
//!
//! ```text
//!   bytes ─▶ reports ─▶ deliveries ─▶ Accepted events ─▶ LOG ─▶ Committed<Answer> ─▶ 202
//!            (parse)     (route)       all of one request         │
//!                                      in one commit              └ the same request again: the first answer, read from the log
//! ```
//!
//! A request is accepted as a whole or refused as a whole. The 202 is made from a
//! [`Committed`](crate::log::committer::Committed) answer, which only the committer can make, so an accept before the report is durable
//! does not compile.
//!
//! | Module | Holds |
//! |---|---|
//! | [`accept`] | one request, from its bytes to its durable answer |
//! | [`batch`] | one report or NDJSON: where each report begins and ends |
//! | [`routing`] | what a request is handled by, replaced as a whole while requests come in |
//! | [`lanes`] | which lane a topic goes to, for ever |
//! | [`repeat`] | idempotency keys, and the first answer out of the log |
//! | [`http`] | `POST /v1/reports` |
//! | [`mqtt`] | the MQTT listener |
//! | [`body`] | a request's body, within limits of size, time and memory |
//! | [`finish`] | work that goes on when nobody waits for it any more |

pub mod accept;
pub mod batch;
pub mod body;
pub mod finish;
pub mod http;
pub mod lanes;
pub mod mqtt;
pub mod repeat;
pub mod routing;
