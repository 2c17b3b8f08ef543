//! Reports as Zuul makes them, of any size from 256 bytes to 256 KiB: different ones, and from one seed always the same.
//!
//! What varies in real ones varies here: identifiers, times, log addresses, results, words of messages. What repeats there (keys, job names, hosts) repeats
//! here, so that a page of them compresses about as well as a page of real ones.

use bytes::Bytes;

use crate::cli::busy_zuul::{Dice, JOBS, PLACES};

/// What the reports are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Of about so many bytes, a sixth more or less: starts where there is no room for builds, successes with as many builds as fit.
    Sized(usize),
    /// The start of an item with some jobs.
    Start,
    /// The end of one with so many builds.
    Success(usize),
}

impl Kind {
    /// Bytes of a report, about.
    pub fn size(self) -> usize {
        match self {
            Kind::Sized(size) => size,
            Kind::Start => 2_170,
            Kind::Success(builds) => 950 + builds * 490,
        }
    }

    /// As it stands on a command line.
    pub fn word(self) -> String {
        match self {
            Kind::Sized(size) => size.to_string(),
            Kind::Start => "start".into(),
            Kind::Success(builds) => format!("success-{builds}"),
        }
    }

    /// What such a word means.
    pub fn parse(word: &str) -> Result<Kind, String> {
        let number = |text: &str| text.parse::<usize>().map_err(|error| format!("{text}: {error}"));
        match (word, word.strip_prefix("success-")) {
            ("start", _) => Ok(Kind::Start),
            (_, Some(builds)) => number(builds).map(Kind::Success),
            _ => number(word).map(Kind::Sized),
        }
    }
}

/// One report, and what is known of it.
#[derive(Debug, Clone)]
pub struct Report {
    /// `start` or `success`.
    pub action: &'static str,
    /// The tenant.
    pub tenant: &'static str,
    /// The pipeline.
    pub pipeline: &'static str,
    /// The project.
    pub project: &'static str,
    /// The branch.
    pub branch: &'static str,
    /// The change's number.
    pub change: u64,
    /// What is posted.
    pub payload: Bytes,
}

impl Report {
    /// The topic that [`super::service`]'s template gives it.
    pub fn topic(&self, prefix: &str) -> String {
        let Report { tenant, pipeline, project, branch, change, .. } = self;
        format!("{prefix}/{tenant}/{pipeline}/{project}/{branch}/{change}")
    }
}

/// Different reports that are used again and again have so many bytes together at most,
const POOL_BYTES: usize = 32 << 20;

/// and are so many at most: some thousand pages of a log, far more than compression ever sees at once.
const POOL_REPORTS: usize = 4_096;

/// Some reports to be used in turn: making them must not be what is measured.
pub fn pool(kind: Kind, seed: u64) -> Vec<Report> {
    let count = (POOL_BYTES / kind.size()).clamp(64, POOL_REPORTS);
    Reports::new(kind, seed).take(count).collect()
}

const WORDS: [&str; 16] = [
    "change",
    "depends",
    "on",
    "merged",
    "build",
    "succeeded",
    "rebased",
    "onto",
    "branch",
    "artifact",
    "uploaded",
    "node",
    "retried",
    "test",
    "passed",
    "in",
];

/// Changes under way at once in a place.
const CHANGES: u64 = 50;

/// A report without builds has about so many bytes with everything that Zuul says of an item.
const DESCRIBED: usize = 1_000;

/// Makes reports without end.
struct Reports {
    dice: Dice,
    kind: Kind,
    made: u64,
}

impl Iterator for Reports {
    type Item = Report;

    fn next(&mut self) -> Option<Report> {
        let target = match self.kind {
            Kind::Sized(size) => size - size / 6 + self.dice.below((size / 3).max(1)),
            Kind::Start | Kind::Success(_) => 0,
        };
        // The smallest have no room for anything but what Zuul's documentation shows.
        let target = target.max(256);
        let (tenant, project, branch) = PLACES[self.dice.below(PLACES.len())];
        let pipeline = ["check", "gate"][self.dice.below(2)];
        let change = 1_000 + self.dice.next() % CHANGES;
        let is_start = self.kind == Kind::Start || matches!(self.kind, Kind::Sized(_)) && target < DESCRIBED;
        let action = if is_start { "start" } else { "success" };
        let uuid = self.dice.uuid();
        let now = 1_767_225_600.0 + self.made as f64 * 0.37;
        self.made += 1;
        let mut text = format!(
            "{{\"action\":\"{action}\",\"tenant\":\"{tenant}\",\"pipeline\":\"{pipeline}\",\"project\":\"{project}\",\"branch\":\"{branch}\",\
             \"change\":\"{change}\",\"uuid\":\"{uuid}\""
        );
        let is_described = !matches!(self.kind, Kind::Sized(_)) || target >= DESCRIBED;
        if is_described {
            self.describe(&mut text, project, branch, change, tenant, now);
            text.push_str(&format!(",\"buildset\":{{\"uuid\":\"{}\",\"result\":", self.dice.uuid()));
            text.push_str(if is_start { "null,\"builds\":[" } else { "\"SUCCESS\",\"builds\":[" });
            let mut builds = 0;
            loop {
                let is_enough = match self.kind {
                    Kind::Start => builds == 6,
                    Kind::Success(wanted) => builds == wanted,
                    Kind::Sized(_) => text.len() + 530 > target,
                };
                if is_enough {
                    break;
                }
                if builds > 0 {
                    text.push(',');
                }
                self.build(&mut text, tenant, pipeline, now, is_start);
                builds += 1;
            }
            text.push_str("]}");
        }
        text.push_str(",\"message\":\"");
        text.push_str(if is_start { "Starting jobs." } else { "Build succeeded." });
        while text.len() + 12 < target {
            let word = WORDS[self.dice.below(WORDS.len())];
            let number = self.dice.next() % 100_000;
            text.push_str(&if number < 30_000 { format!(" {word} {number}") } else { format!(" {word}") });
        }
        text.push_str("\"}");
        Some(Report { action, tenant, pipeline, project, branch, change, payload: text.into() })
    }
}

impl Reports {
    fn new(kind: Kind, seed: u64) -> Self {
        Reports { dice: Dice(seed ^ 0x7469_6469_6E67_7321), kind, made: 0 }
    }

    /// What every report of an item says.
    fn describe(&mut self, text: &mut String, project: &str, branch: &str, change: u64, tenant: &str, now: f64) {
        let (commit, patchset) = (self.dice.uuid(), 1 + self.dice.below(9));
        let (reference, url) =
            (format!("refs/changes/{:02}/{change}/{patchset}", change % 100), format!("https://gerrit.example.com/c/{project}/+/{change}"));
        text.push_str(&format!(
            ",\"patchset\":\"{patchset}\",\"ref\":\"{reference}\",\"change_url\":\"{url}\",\"commit_id\":\"{commit}\",\"owner\":\"dana\",\
             \"tenant_web_root\":\"https://zuul.example.com/t/{tenant}\",\"queue\":\"integrated\",\"zuul_ref\":\"Z{}\",\"zuul_event_id\":\"{}\",\
             \"trigger_time\":{},\"enqueue_time\":{},\"timestamp\":{now},\"changes\":[{{\"project\":\"{project}\",\"branch\":\"{branch}\",\
             \"change\":\"{change}\",\"patchset\":\"{patchset}\",\"ref\":\"{reference}\",\"change_url\":\"{url}\",\"commit_id\":\"{commit}\",\
             \"owner\":\"dana\",\"topic\":\"faster-startup\"}}]",
            self.dice.uuid(),
            self.dice.uuid(),
            now - 300.5,
            now - 300.0,
        ));
    }

    fn build(&mut self, text: &mut String, tenant: &str, pipeline: &str, now: f64, is_start: bool) {
        let (job, uuid) = (JOBS[self.dice.below(JOBS.len())], self.dice.uuid());
        let voting = self.dice.below(10) > 0;
        text.push_str(&format!("{{\"job_name\":\"{job}\",\"voting\":{voting},\"dependencies\":[],\"execute_time\":{}", now - 290.0));
        if is_start {
            text.push_str(&format!(",\"web_url\":\"https://zuul.example.com/t/{tenant}/stream/{uuid}?logfile=console.log\"}}"));
            return;
        }
        let log_url = format!("https://logs.example.com/{}/{pipeline}/{job}/{}/", &uuid[..2], &uuid[..7]);
        let took = 30.0 + self.dice.below(2_400) as f64 / 10.0;
        text.push_str(&format!(
            ",\"uuid\":\"{uuid}\",\"result\":\"SUCCESS\",\"start_time\":{},\"end_time\":{},\"log_url\":\"{log_url}\",\
             \"web_url\":\"https://zuul.example.com/t/{tenant}/build/{uuid}\",\"artifacts\":[{{\"name\":\"Test results\",\"url\":\"{log_url}junit.xml\"}}]}}",
            now - took - 1.25,
            now - 1.25,
        ));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn reports_of_every_kind_are_reports_of_about_the_size_that_is_said() {
        let sized = [256, 700, 1_100, 1_536, 4_096, 65_536, 262_144].map(Kind::Sized);
        for kind in sized.into_iter().chain([Kind::Start, Kind::Success(1), Kind::Success(10), Kind::Success(200)]) {
            let reports: Vec<Report> = Reports::new(kind, 1).take(100).collect();
            for report in &reports {
                let parsed = crate::core::report::Report::parse(report.payload.clone()).unwrap_or_else(|error| panic!("{kind:?}: {error}"));
                assert_eq!((parsed.action(), parsed.tenant(), parsed.pipeline()), (report.action, report.tenant, report.pipeline));
                assert_eq!((parsed.project(), parsed.change()), (Some(report.project), Some(report.change.to_string().as_str())));
            }
            let mean = reports.iter().map(|report| report.payload.len()).sum::<usize>() / reports.len();
            assert!(mean.abs_diff(kind.size()) * 5 < kind.size(), "{kind:?}: {mean} bytes");
            let different: HashSet<_> = reports.iter().map(|report| &report.payload).collect();
            assert_eq!(different.len(), reports.len(), "{kind:?}");
        }
    }

    #[test]
    fn a_seed_tells_everything() {
        let payloads = |seed| Reports::new(Kind::Sized(1_536), seed).take(100).map(|report| report.payload).collect::<Vec<_>>();
        assert!(payloads(1) == payloads(1) && payloads(1) != payloads(2));
    }

    #[test]
    fn they_compress_as_reports_do_and_not_as_constant_bytes() {
        let together: Vec<u8> = pool(Kind::Sized(1_536), 1).iter().take(40).flat_map(|report| report.payload.to_vec()).collect();
        let compressed = zstd::bulk::compress(&together, 1).unwrap().len();
        let ratio = together.len() as f64 / compressed as f64;
        assert!((2.5..7.0).contains(&ratio), "{ratio}");
    }

    #[test]
    fn kinds_are_read_as_they_are_written() {
        for kind in [Kind::Sized(256), Kind::Start, Kind::Success(10)] {
            assert_eq!(Kind::parse(&kind.word()), Ok(kind));
        }
        assert!(Kind::parse("large").is_err());
    }
}
