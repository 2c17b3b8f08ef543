//! Jobs at work, and what is remembered of those that failed.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::app::patience::Patience;

/// A job under way. Dropped, it takes its task along.
pub(super) struct Worker {
    pub(super) cancel: watch::Sender<bool>,
    pub(super) task: JoinSet<End>,
}

/// How a job has ended for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It was done, or told to end.
    Well,
    Failed,
}

impl Worker {
    /// How it has ended, if it has.
    pub(super) fn try_end(&mut self) -> Option<End> {
        // A panic is a failure, too.
        Some(self.task.try_join_next()?.unwrap_or(End::Failed))
    }

    pub(super) async fn ended(mut self) {
        while self.task.join_next().await.is_some() {}
    }
}

/// The jobs that failed here, and when each is taken up again where the log is shared.
#[derive(Debug, Default)]
pub(super) struct Failures(BTreeMap<u64, Failure>);

#[derive(Debug)]
struct Failure {
    until: Instant,
    patience: Patience,
}

impl Failures {
    /// A job has failed, once more. Returns how long it is left alone.
    pub(super) fn note(&mut self, job: u64, now: Instant) -> Duration {
        let failure = self.0.entry(job).or_insert_with(|| Failure { until: now, patience: Patience::default() });
        let wait = failure.patience.after(Duration::ZERO);
        failure.until = now + wait;
        wait
    }

    /// Whether a job may be taken up now.
    pub(super) fn allow(&self, job: u64, now: Instant) -> bool {
        self.0.get(&job).is_none_or(|failure| failure.until <= now)
    }

    /// Forgets all jobs but those that are under way.
    pub(super) fn keep(&mut self, under_way: &[u64]) {
        self.0.retain(|job, _| under_way.contains(job));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_fails_again_and_again_is_taken_up_every_five_minutes_in_the_end() {
        let (mut failures, mut now) = (Failures::default(), Instant::now());
        assert!(failures.allow(1, now));
        let waits: Vec<u64> = (0..8)
            .map(|_| {
                let wait = failures.note(1, now);
                assert!(!failures.allow(1, now + wait - Duration::from_millis(1)) && failures.allow(2, now));
                now += wait;
                assert!(failures.allow(1, now));
                wait.as_secs()
            })
            .collect();
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 300, 300]);
        failures.keep(&[2]);
        assert_eq!(failures.note(1, now).as_secs(), 5, "a job that had ended begins anew");
    }
}
