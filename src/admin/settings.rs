//! What is configured, as far as admin shows it. The app changes it when the configuration changes.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::core::types::{ConnectionName, Millis};

/// What is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The connections that the configuration names.
    pub connections: BTreeSet<ConnectionName>,
    /// The file that the configuration is from.
    pub file: Option<PathBuf>,
    /// Since when this configuration is in force.
    pub since: Millis,
    /// The last try to change it, if that was refused.
    pub refused: Option<Refused>,
    /// Keys that the file has changed, and that keep their old values until a restart.
    pub restart_needed: Vec<&'static str>,
}

/// A configuration that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// When.
    pub at: Millis,
    /// Every mistake, one a line.
    pub mistakes: String,
}
