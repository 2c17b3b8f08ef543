//! Another configuration while the service runs, and backlogs that change hands: the real binary, told by SIGHUP and over HTTP.
//!
//! | Module | Claims about |
//! |---|---|
//! | `config` | files that are read again: mistakes, routes, limits, what needs a restart |
//! | `connections` | connections that come, go and change, and other numbers of workers |
//! | `moves` | backlogs that are given to another connection |

#[path = "../support/mod.rs"]
mod support;

mod config;
mod connections;
mod moves;

/// One reporter for each QoS on this connection, all to the same topic: the action chooses.
fn pipelines(connection: &str) -> String {
    pipelines_to(connection, "zuul/{project}")
}

/// As [`pipelines`], to another topic.
fn pipelines_to(connection: &str, topic: &str) -> String {
    let reporter = |action: &str, qos: u8| format!("{action}.{connection} = {{ topic = \"{topic}\", qos = {qos} }}\n");
    format!(
        "[[pipeline]]\nname = \"check\"\n{}",
        ["start", "failure", "success"].iter().zip(0..).map(|(action, qos)| reporter(action, qos)).collect::<String>()
    )
}
