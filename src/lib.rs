//! Tidings delivers CI reports over MQTT and loses none.

pub mod cli;
pub mod config;
pub mod core;
