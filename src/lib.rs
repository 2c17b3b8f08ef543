//! Tidings delivers CI reports over MQTT and loses none.

pub mod core;
pub mod log;
#[path = "../migrations/mod.rs"]
pub mod migrations;
