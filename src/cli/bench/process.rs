//! A process of the bench's own: watched, asked by the kernel what it takes, and gone with its value.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::BenchError;

/// How often something is looked at that can't be waited for.
pub const LOOK: Duration = Duration::from_millis(2);

/// So much of what a process has said is told when it fails, in bytes.
const TOLD: usize = 2_000;

/// The kernel counts processor time in ticks of a hundredth of a second (`USER_HZ`, which is 100 wherever Linux runs in practice).
const TICKS_PER_SECOND: f64 = 100.0;

/// A running process. Dropped, it is killed, and waited for.
pub struct Process {
    who: String,
    child: Child,
    /// What it prints.
    said: PathBuf,
}

impl Process {
    /// Starts a program; what it says on standard output and standard error is appended to the file `said`.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start(who: &str, command: &mut Command, said: &Path) -> Result<Process, BenchError> {
        let open = || File::options().create(true).append(true).open(said);
        let opened = open().and_then(|out| Ok((out, open()?))).map_err(BenchError::file(format!("{} can't be written", said.display())))?;
        command.stdout(opened.0).stderr(opened.1);
        let child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound if who == super::mosquitto::NAME => BenchError::Missing {
                program: super::mosquitto::NAME,
                instead: ", or name a broker with --broker HOST:PORT (the section `through` needs a mosquitto of its own for its bridge all the same)",
            },
            io::ErrorKind::NotFound if who == super::nats::NAME => BenchError::Missing { program: super::nats::NAME, instead: "" },
            _ => BenchError::File { what: format!("{who} can't be started"), error },
        })?;
        Ok(Process { who: who.to_owned(), child, said: said.to_owned() })
    }

    /// Its standard input, once.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// What it has said so far.
    pub fn said(&self) -> String {
        fs::read(&self.said).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Something is wrong with it.
    pub fn failed(&self, what: &str) -> BenchError {
        let said = self.said();
        let from = said.char_indices().rev().nth(TOLD).map_or(0, |(at, _)| at);
        BenchError::Part { who: self.who.clone(), what: format!("{what}\n{}", said[from..].trim_end()) }
    }

    /// Waits until it has said something that `find` finds; an error if it ends instead.
    ///
    /// # Errors
    /// If it ends, or takes longer than `limit`.
    pub async fn until_said<T>(&mut self, limit: Duration, find: impl Fn(&str) -> Option<T>) -> Result<T, BenchError> {
        let until = Instant::now() + limit;
        loop {
            let has_ended = self.has_ended();
            if let Some(found) = find(&self.said()) {
                return Ok(found);
            }
            if has_ended {
                return Err(self.failed("ended at once:"));
            }
            if Instant::now() > until {
                return Err(self.failed(&format!("is not ready after {} s:", limit.as_secs())));
            }
            sleep(LOOK).await;
        }
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it has ended with 0.
    ///
    /// # Errors
    /// If it ends with something else, or takes longer than `limit`.
    pub async fn end(&mut self, limit: Duration) -> Result<(), BenchError> {
        let until = Instant::now() + limit;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(self.failed(&format!("failed ({status}):"))),
                Ok(None) if Instant::now() > until => return Err(self.failed(&format!("has not ended after {} s:", limit.as_secs()))),
                Ok(None) => sleep(LOOK).await,
                Err(error) => return Err(BenchError::File { what: format!("{} can't be waited for", self.who), error }),
            }
        }
    }

    /// Asks it to stop (SIGTERM), and waits until it has.
    ///
    /// # Errors
    /// As [`Process::end`].
    pub async fn stop(&mut self, limit: Duration) -> Result<(), BenchError> {
        let told = Command::new("sh").args(["-c", &format!("kill -TERM {}", self.child.id())]).stdin(Stdio::null()).status();
        told.map_err(BenchError::file("no shell can be started"))?;
        self.end(limit).await
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Resident memory now, and the most so far, in MiB.
    pub fn memory(&self) -> [f64; 2] {
        let status = self.proc("status");
        ["VmRSS:", "VmHWM:"].map(|key| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or(0.0) / 1_024.0
        })
    }

    /// Processor time so far, of all its threads, in seconds.
    pub fn processor_time(&self) -> f64 {
        // Nanoseconds, where the kernel keeps them (a thread that has ended is not in it); ticks otherwise.
        let threads = fs::read_dir(format!("/proc/{}/task", self.child.id())).into_iter().flatten().flatten();
        let nanoseconds: Option<Vec<f64>> =
            threads.map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok()?.split(' ').next()?.parse().ok()).collect();
        match nanoseconds {
            Some(counted) if counted.iter().any(|time| *time > 0.0) => counted.iter().sum::<f64>() / 1e9,
            _ => ticks(&self.proc("stat")) / TICKS_PER_SECOND,
        }
    }

    fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `utime` and `stime` of `/proc/PID/stat` (proc(5)): the 12th and 13th fields behind the name, which may hold anything.
fn ticks(stat: &str) -> f64 {
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    after.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_any_name() {
        assert_eq!(ticks("7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 25 17 0 0 20 0 9 0 100 1 1"), 42.0);
        assert_eq!(ticks(""), 0.0);
    }

    #[tokio::test]
    async fn a_process_is_gone_with_its_value_and_says_why_it_failed() {
        let folder = tempfile::tempdir().unwrap();
        let said = folder.path().join("said");
        let mut sleeping = Process::start("sleep", Command::new("sh").args(["-c", "echo ready; exec sleep 600"]), &said).unwrap();
        sleeping.until_said(Duration::from_secs(60), |said| said.contains("ready").then_some(())).await.unwrap();
        assert!(sleeping.memory()[1] > 0.0 && !sleeping.has_ended());
        let proc = format!("/proc/{}", sleeping.child.id());
        drop(sleeping);
        assert!(!Path::new(&proc).exists());
        let mut failing = Process::start("a shell", Command::new("sh").args(["-c", "echo no disk >&2; exit 3"]), &said).unwrap();
        let error = failing.end(Duration::from_secs(60)).await.unwrap_err().to_string();
        assert!(error.starts_with("a shell failed") && error.ends_with("no disk"), "{error}");
    }
}
