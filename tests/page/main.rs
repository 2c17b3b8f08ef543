//! The dashboard, in a real browser: what somebody sees, presses and types.
//!
//! ```text
//!   test ──WebDriver──▶ chromedriver ──▶ chromium ──HTTP──▶ (Door ──▶) Tidings (the binary) ──▶ mosquitto, or a broker that refuses
//! ```
//!
//! | Module | Claims about |
//! |---|---|
//! | `outage` | an outage and its end; a service that hangs, is killed, and starts again |
//! | `decisions` | dead letters: requeued and discarded, one, some and all, by mouse and by keyboard |
//! | `strangers` | reports that are scripts |
//! | `access` | tokens and roles |
//! | `replays` | the form and the jobs |
//! | `looks` | narrow screens, the keyboard, what is loaded |
//! | `cluster` | several instances over one log |
//! | `history` | the figures that are drawn |
//!
//! `browser` drives the browser; `door` stands before the service where a test needs it to answer otherwise.

#[path = "../support/mod.rs"]
mod support;

mod access;
mod browser;
mod cluster;
mod decisions;
mod door;
mod history;
mod looks;
mod outage;
mod replays;
mod strangers;
