//! The service's configuration in the demo: a `tidings.toml` like anybody's, read like anybody's.

use std::net::SocketAddr;
use std::path::Path;

use super::reports::PIPELINES;
use crate::config::{self, Config, ConfigErrors};

/// The configuration of a service that keeps its reports in `store` and delivers to `broker`.
///
/// # Errors
/// If it is wrong, which a test excludes.
pub fn settings(store: &Path, broker: SocketAddr) -> Result<Config, ConfigErrors> {
    let mut config = config::from_str(&text(broker), "the demo's tidings.toml")?;
    // Not part of the text: a path may hold what TOML would have to escape.
    config.store.path = store.to_owned();
    Ok(config)
}

fn text(broker: SocketAddr) -> String {
    let (server, port) = (broker.ip(), broker.port());
    format!(
        r#"
[http]
listen = "127.0.0.1:0"

[connection.mqtt]
driver = "mqtt"
server = "{server}"
port = {port}

# Shorter than the defaults: nobody wants to watch a broker stay away for a minute.
[retry]
initial = "100ms"
max = "1s"
{PIPELINES}"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::reports::Generator;
    use crate::core::report::Report;

    #[test]
    fn every_report_takes_the_one_way_that_the_checker_expects() {
        let config = settings(Path::new("/a \"path\""), "127.0.0.1:1883".parse().unwrap()).unwrap();
        for report in Generator::new("0a1b", 1_700_000_000.0).take(500) {
            let ways = config.routes.route(&Report::parse(report.payload).unwrap()).unwrap();
            let [way] = &ways[..] else { panic!("{} ways", ways.len()) };
            assert_eq!((way.connection.as_str(), way.topic.as_str(), way.qos), ("mqtt", &*report.topic, report.qos));
        }
    }
}
