//! A measurement: what the rounds gave, and what they come to.

use serde::{Deserialize, Serialize};

use super::place::Machine;
use super::plan::{Section, Settings};
use crate::cli::output;

/// The version of what `--json` prints. A field that is taken out, or means something else, makes it another.
pub const FORMAT: u32 = 1;

/// What is to be reached: of the ratio, or of ours where there is no control.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bar {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

impl Bar {
    fn is_met_by(self, value: f64) -> bool {
        match self {
            Bar::AtLeast(bar) => value >= bar,
            Bar::AtMost(bar) => value <= bar,
        }
    }

    /// In words, such as `≥ 0.6`.
    pub fn words(self) -> String {
        match self {
            Bar::AtLeast(bar) => format!("≥ {}", short(bar)),
            Bar::AtMost(bar) => format!("≤ {}", short(bar)),
        }
    }
}

/// What is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// A rate.
    More,
    /// A time, or what something takes.
    Less,
}

/// One row while it is being measured.
#[derive(Debug, Clone)]
pub struct Measured {
    section: Section,
    name: String,
    unit: &'static str,
    better: Better,
    against: Option<&'static str>,
    bar: Option<Bar>,
    count: u64,
    curve: Option<(&'static str, f64)>,
    ours: Vec<f64>,
    control: Vec<f64>,
}

impl Measured {
    /// A row that has not been measured yet; `count` is how many reports each round has.
    pub fn new(section: Section, name: impl Into<String>, unit: &'static str, better: Better, count: u64) -> Self {
        let (ours, control) = (Vec::new(), Vec::new());
        Measured { section, name: name.into(), unit, better, against: None, bar: None, count, curve: None, ours, control }
    }

    /// A rate of reports.
    pub fn rate(section: Section, name: impl Into<String>, count: u64) -> Self {
        Measured::new(section, name, "reports/s", Better::More, count)
    }

    /// It is compared with this.
    pub fn against(mut self, control: &'static str) -> Self {
        self.against = Some(control);
        self
    }

    /// It is to reach this.
    pub fn bar(mut self, bar: Bar) -> Self {
        self.bar = Some(bar);
        self
    }

    /// It is a point of a curve.
    pub fn at(mut self, series: &'static str, x: f64) -> Self {
        self.curve = Some((series, x));
        self
    }

    /// What a round gave.
    pub fn note(&mut self, ours: f64) {
        self.ours.push(ours);
    }

    /// What a round gave, and its control.
    pub fn compare(&mut self, ours: f64, control: f64) {
        self.ours.push(ours);
        self.control.push(control);
    }

    /// What it comes to.
    pub fn row(&self) -> Row {
        let ratios: Vec<f64> = self.ours.iter().zip(&self.control).map(|(ours, control)| ours / control).collect();
        let (ours, ratio) = (median(&self.ours), (!ratios.is_empty()).then(|| median(&ratios)));
        let is_compared = !self.control.is_empty();
        Row {
            section: self.section.name().into(),
            name: self.name.clone(),
            unit: self.unit.into(),
            better: self.better,
            ours,
            control: is_compared.then(|| median(&self.control)),
            against: self.against.filter(|_| is_compared).map(Into::into),
            ratio,
            bar: self.bar,
            met: self.bar.map(|bar| bar.is_met_by(ratio.unwrap_or(ours))),
            spread: Spread {
                ours: span(&self.ours),
                control: is_compared.then(|| span(&self.control)),
                ratio: is_compared.then(|| span(&ratios)),
            },
            rounds: self.ours.len(),
            count: self.count,
            series: self.curve.map(|(series, _)| series.into()),
            x: self.curve.map(|(_, x)| x),
        }
    }
}

/// A row of the results, as it is printed: see the module's documentation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields of the JSON, which `cli::bench` describes")]
pub struct Row {
    pub section: String,
    pub name: String,
    pub unit: String,
    pub better: Better,
    pub ours: f64,
    pub control: Option<f64>,
    pub against: Option<String>,
    pub ratio: Option<f64>,
    pub bar: Option<Bar>,
    pub met: Option<bool>,
    pub spread: Spread,
    pub rounds: usize,
    pub count: u64,
    pub series: Option<String>,
    pub x: Option<f64>,
}

/// The lowest and the highest of the rounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Of ours.
    pub ours: [f64; 2],
    /// Of the control.
    pub control: Option<[f64; 2]>,
    /// Of the ratio.
    pub ratio: Option<[f64; 2]>,
}

/// Everything that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`FORMAT`].
    pub format: u32,
    /// Where.
    pub machine: Machine,
    /// How.
    pub settings: Settings,
    /// What came of it.
    pub rows: Vec<Row>,
}

impl Results {
    /// For machines.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("numbers and text are JSON") + "\n"
    }

    /// For people.
    pub fn text(&self) -> String {
        let heading = ["SECTION", "", "TIDINGS", "CONTROL", "RATIO", "SPREAD", "BAR", ""];
        let rows: Vec<Vec<String>> = self.rows.iter().map(|row| row.cells().to_vec()).collect();
        format!("{}\n\n{}", self.machine.line(), output::table(&heading, &rows))
    }
}

impl Row {
    /// What stands in its columns for people.
    pub fn cells(&self) -> [String; 8] {
        let spread = self.spread.ratio.unwrap_or(self.spread.ours);
        [
            self.section.clone(),
            self.name.clone(),
            format!("{} {}", short(self.ours), self.unit),
            self.control.map(short).unwrap_or_default(),
            self.ratio.map(short).unwrap_or_default(),
            format!("{}–{}", short(spread[0]), short(spread[1])),
            self.bar.map(Bar::words).unwrap_or_default(),
            self.met.map(|met| if met { "met" } else { "missed" }).unwrap_or_default().to_owned(),
        ]
    }
}

/// The middle of some numbers; of two, their mean.
pub fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    match sorted.len() {
        0 => 0.0,
        count if count % 2 == 1 => sorted[count / 2],
        count => (sorted[count / 2 - 1] + sorted[count / 2]) / 2.0,
    }
}

/// The value below which a share of the others lies (nearest rank); 0 of none.
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let sorted = sorted(values);
    let rank = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1));
    sorted.get(rank - 1).copied().unwrap_or(0.0)
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted
}

fn span(values: &[f64]) -> [f64; 2] {
    let sorted = sorted(values);
    [sorted.first().copied().unwrap_or(0.0), sorted.last().copied().unwrap_or(0.0)]
}

/// A number with three digits that count: `12,345`, `1.53`, `0.021`.
pub fn short(value: f64) -> String {
    if value.abs() < 100.0 {
        let places = match value.abs() {
            0.0 => 0,
            tiny if tiny < 0.1 => 3,
            small if small < 10.0 => 2,
            _ => 1,
        };
        let text = format!("{value:.places$}");
        return if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text };
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_the_median_of_ratios_and_not_the_ratio_of_medians() {
        let mut measured = Measured::rate(Section::Append, "1 producer", 10).against("raw").bar(Bar::AtLeast(0.6));
        for (ours, control) in [(10.0, 10.0), (30.0, 60.0), (20.0, 100.0)] {
            measured.compare(ours, control);
        }
        let row = measured.row();
        assert_eq!((row.ours, row.control, row.ratio, row.met), (20.0, Some(60.0), Some(0.5), Some(false)));
        assert_eq!((row.spread.ratio, row.rounds), (Some([0.2, 1.0]), 3));
    }

    #[test]
    fn without_a_control_the_bar_is_for_what_was_measured() {
        let mut measured = Measured::new(Section::Start, "memory", "MiB", Better::Less, 1).bar(Bar::AtMost(200.0));
        measured.note(150.0);
        measured.note(170.0);
        let row = measured.row();
        assert_eq!((row.ours, row.control, row.ratio, row.met), (160.0, None, None, Some(true)));
        assert_eq!((row.spread.ours, row.spread.ratio), ([150.0, 170.0], None));
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|share| percentile(&hundred, share)), [1.0, 50.0, 99.0, 100.0]);
        assert_eq!((percentile(&[7.0], 0.99), percentile(&[], 0.99)), (7.0, 0.0));
    }

    #[test]
    fn numbers_are_as_long_as_they_mean_something() {
        let texts = [0.0, 0.0213, 0.6, 1.534, 42.04, 100.0, 1_234.5, 1_234_567.0].map(short);
        assert_eq!(texts, ["0", "0.021", "0.6", "1.53", "42", "100", "1,234", "1,234,567"]);
    }

    #[test]
    fn results_that_were_printed_are_read_again() {
        let mut measured = Measured::rate(Section::Scaling, "16 producers", 10).at("producers", 16.0).bar(Bar::AtLeast(1.0));
        measured.note(5.0);
        let row = measured.row();
        let text = serde_json::to_string(&row).unwrap();
        assert!(text.contains(r#""bar":{"at_least":1.0}"#), "{text}");
        assert_eq!(serde_json::from_str::<Row>(&text).unwrap(), row);
    }
}
