//! Tidings delivers CI reports over MQTT and loses none.

pub mod config;
pub mod core;
