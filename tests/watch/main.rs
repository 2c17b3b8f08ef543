//! Who watches: a real Prometheus with the alerts as they are, scraping the binary, which delivers to a real mosquitto.
//!
//! ```text
//!   load ──▶ Tidings ──▶ mosquitto (stopped, started)
//!               ▲ /metrics, each second
//!           Prometheus: alerts.rules.yml, its `for` in seconds instead of minutes
//!               ▲ /api/v1/alerts, /api/v1/query
//!             test
//! ```
//!
//! | Module | Claims about |
//! |---|---|
//! | `outage` | an outage is seen in `tidings status`, in Prometheus and by an alert, and so is its end |
//! | `dashboard` | every query of the dashboard has data; every metric is documented, and the other way round |
//! | `status` | `tidings status` and its `--watch` |
//! | `prometheus` | Prometheus as a process |
//! | `load` | reports, for as long as they are wanted |

#[path = "../support/certificates.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod certificates;
mod dashboard;
mod load;
mod outage;
mod prometheus;
mod status;
#[path = "../support/mod.rs"]
mod support;
