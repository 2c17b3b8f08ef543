//! Tidings delivers CI reports over MQTT and loses none.
//!
//! # The way of a report
//! ```text
//!   bytes ─ingest─▶ Report ─route─▶ deliveries ─▶ Accepted ══▶ LOG (group commit, fsync) ══▶ 202
//!                                                              │ Committed
//!   outcome ══▶ LOG                                            ▼
//!      ▲                                             lane: feed ─▶ session ─▶ broker
//!      └───────────────── ack ◀───────────────────────────────────────────────┘
//! ```
//! There is one way round, and the log is the only edge that goes back: a lane reads what has been committed, and hands what became
//! of it to the log. It never touches the [`outbox`](core::outbox), which is a fold of the log and the committer's alone.
//!
//! What may leave the process (a 202, a PUBLISH, a PUBREL) is made from a [`Committed`](log::committer::Committed), which only the
//! committer can make. So "answered before it was durable" and "published before it was durable" do not compile.
//!
//! # Rooms
//! | Room | What happens there |
//! |---|---|
//! | [`cli`] | one file a command, each thin: it starts the app, or talks to a running one |
//! | [`app`] | the one place that knows every room: channels, start order, stop order |
//! | [`ingest`] | reports come in over HTTP and are answered once they are durable |
//! | [`delivery`] | lanes: each drives an MQTT session over a socket |
//! | [`admin`] | status, health, metrics, the dashboard; the door for moves, behind which the app is |
//! | [`log`] | the events on disk, and the committer, through which everything goes that is to last |
//! | [`config`] | `tidings.toml`, and Zuul's own files: read, bounded, proven |
//! | [`server`] | HTTP itself: connections, limits, who may ask, the shape of errors; knows nothing of reports |
//! | [`core`] | what a report, a topic, a delivery and a publisher session *are*; pure |
//! | [`metrics`], [`telemetry`] | every metric in one table; log lines |
//! | [`failpoint`] | where a test has the process die or an operation fail; nothing of it is in a release build |
//! | [`migrations`] | the number of the stored format, and the steps from one to the next |
//!
//! # Who may import whom
//! ```text
//!   main ─▶ cli ─▶ app ─▶ admin   ingest   delivery   config   server   metrics ─▶ core
//!                           └────────┴────────┴─▶ log (committer, pages, errors) ───▲
//! ```
//! - `core` imports no room, and no runtime, disk, socket, clock or chance: time and randomness are arguments. That is what lets the
//!   whole delivery protocol run against a model under a seed.
//! - Rooms don't know each other, apart from plain types that they are handed: a [`LogHandle`](log::committer::LogHandle) and pages;
//!   the lanes' [`board`](delivery::board), which admin reads; a [`Secret`](config::Secret) and [`TlsConfig`](config::TlsConfig); [`server`]'s errors; [`metrics`].
//! - Whoever writes, sends or answers may name a [`failpoint`]. `core` names none: there chance is an argument.
//! - Nobody but the app knows which log there is: to all others it is a handle, a reader, and errors.
//!
//! `tests/rooms.rs` holds this, line by line. A new room or a new edge has to be written there first, with its reason.
//!
//! # Where to begin
//! [`log`] and [`log::committer`] for what "durable" means; [`core::session`] for what "delivered" means; [`app`] for how it is put
//! together. Each opens with its states and its tables.

// Where standard error can't be written (a full disk, a pipe that is closed) `eprintln!` panics; what is said there is not worth a thread.
#![cfg_attr(not(test), warn(clippy::print_stderr))]

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod core;
pub mod delivery;
pub mod failpoint;
pub mod ingest;
pub mod log;
pub mod metrics;
#[path = "../migrations/mod.rs"]
pub mod migrations;
pub mod server;
pub mod telemetry;
