//! What the demo shows while it runs, on standard error: bars on a terminal, a line a second elsewhere.

use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A line so often where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// What there is to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Reports that the service has accepted.
    pub accepted: u64,
    /// Reports that the subscriber has received, each counted once.
    pub delivered: u64,
    /// Deliveries that the service has not done yet.
    pub backlog: u64,
    /// Whether the broker is away.
    pub away: bool,
}

/// The show.
pub enum Progress {
    /// On a terminal.
    Bars(Bars),
    /// Anywhere else.
    Lines(Lines),
}

/// Three bars.
pub struct Bars {
    all: MultiProgress,
    accepted: ProgressBar,
    delivered: ProgressBar,
    backlog: ProgressBar,
}

/// Lines, now and then.
pub struct Lines {
    begin: Instant,
    reports: u64,
    last: Cell<Option<Instant>>,
}

impl Progress {
    /// Of a run of so many reports.
    pub fn new(reports: u64) -> Progress {
        if !io::stderr().is_terminal() {
            return Progress::Lines(Lines { begin: Instant::now(), reports, last: Cell::new(None) });
        }
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let bar = |name: &'static str, colour: &str| {
            let template = format!("  {{prefix:<10}}{{bar:40.{colour}}} {{pos:>7}} {{msg}}");
            let style = ProgressStyle::with_template(&template).expect("the template is a constant, and a test reads it");
            all.add(ProgressBar::new(reports).with_style(style.progress_chars("█▌ ")).with_prefix(name))
        };
        let (accepted, delivered, backlog) = (bar("accepted", "blue"), bar("delivered", "green"), bar("backlog", "yellow"));
        Progress::Bars(Bars { all, accepted, delivered, backlog })
    }

    /// Shows the counts; as often as one likes.
    pub fn show(&self, counts: Counts) {
        match self {
            Progress::Bars(bars) => {
                bars.accepted.set_position(counts.accepted);
                bars.delivered.set_position(counts.delivered);
                bars.backlog.set_position(counts.backlog);
                bars.backlog.set_message(if counts.away { "the broker is away" } else { "" });
            }
            Progress::Lines(lines) => {
                if lines.last.get().is_none_or(|last| last.elapsed() >= LINE_EVERY) {
                    lines.last.set(Some(Instant::now()));
                    lines.print(counts);
                }
            }
        }
    }

    /// Says something, above the bars.
    pub fn say(&self, what: &str) {
        match self {
            // With standard error closed there is nobody to tell.
            Progress::Bars(bars) => _ = bars.all.println(what),
            Progress::Lines(_) => _ = writeln!(io::stderr(), "{what}"),
        }
    }

    /// Leaves the last counts standing.
    pub fn end(&self, counts: Counts) {
        match self {
            Progress::Bars(bars) => {
                for (bar, count) in
                    [(&bars.accepted, counts.accepted), (&bars.delivered, counts.delivered), (&bars.backlog, counts.backlog)]
                {
                    bar.set_message("");
                    bar.set_position(count);
                    bar.abandon();
                }
            }
            Progress::Lines(lines) => lines.print(counts),
        }
    }
}

impl Lines {
    fn print(&self, counts: Counts) {
        let Counts { accepted, delivered, backlog, away } = counts;
        let away = if away { "  (the broker is away)" } else { "" };
        let (seconds, reports) = (self.begin.elapsed().as_secs_f64(), self.reports);
        let _ = writeln!(io::stderr(), "{seconds:5.1}s  accepted {accepted} of {reports}, delivered {delivered}, backlog {backlog}{away}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_of_the_bars_can_be_read() {
        for colour in ["blue", "green", "yellow"] {
            let template = format!("  {{prefix:<10}}{{bar:40.{colour}}} {{pos:>7}} {{msg}}");
            assert!(ProgressStyle::with_template(&template).is_ok());
        }
    }
}
