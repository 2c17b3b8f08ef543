//! Tidings delivers CI reports over MQTT and loses none.

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod core;
pub mod delivery;
pub mod ingest;
pub mod log;
pub mod metrics;
#[path = "../migrations/mod.rs"]
pub mod migrations;
pub mod server;
pub mod telemetry;
