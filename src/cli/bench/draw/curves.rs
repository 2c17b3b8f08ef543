//! A picture for each thing that was varied, with a curve for each thing that was looked at: both axes logarithmic, since what is varied doubles, and a
//! straight line then means "in proportion".

use std::collections::BTreeMap;

use super::svg::{CONTROL, GRID, INK, OURS, Svg};
use crate::cli::bench::row::{Row, short};

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 40.0;

/// Name, title and picture of each curve.
pub fn pictures(rows: &[Row]) -> Vec<(String, String, String)> {
    let mut series: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        if let Some(name) = &row.series {
            series.entry(name).or_default().push(row);
        }
    }
    let drawn = series.into_iter().filter(|(_, rows)| rows.len() > 1);
    drawn.map(|(name, rows)| (file_of(name), name.to_owned(), picture(name, &rows))).collect()
}

/// `wait over producers, p50` → `wait-over-producers-p50`.
fn file_of(series: &str) -> String {
    let words: Vec<String> =
        series.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase).collect();
    words.join("-")
}

/// A logarithmic axis over some values, from one end of the picture to the other.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, [from, to]: [f64; 2], is_rounded: bool) -> Axis {
        let (low, high) =
            values.filter(|value| *value > 0.0).fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low > high { (1.0, 10.0) } else { (low.log10(), high.log10()) };
        // Whole powers of ten, so that the grid has a beginning and an end.
        let (low, high) = if is_rounded { (low.floor(), high.ceil().max(low.floor() + 1.0)) } else { (low, high.max(low + 0.1)) };
        Axis { low, high, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let share = (value.max(f64::MIN_POSITIVE).log10() - self.low) / (self.high - self.low);
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }
}

fn picture(title: &str, rows: &[&Row]) -> String {
    let x_of = |row: &Row| row.x.unwrap_or(1.0);
    let x = Axis::over(rows.iter().map(|row| x_of(row)), [LEFT, WIDTH - RIGHT], false);
    let all = rows.iter().flat_map(|row| [Some(row.ours), row.control]).flatten();
    let y = Axis::over(all, [HEIGHT - BOTTOM, TOP], true);
    let mut svg = Svg::new(WIDTH, HEIGHT);
    svg.words([LEFT, 22.0], "start", INK, &format!("{title} ({})", rows[0].unit));
    for power in y.low as i32..=y.high as i32 {
        let value = 10_f64.powi(power);
        svg.line([LEFT, y.at(value)], [WIDTH - RIGHT, y.at(value)], GRID, 1.0);
        svg.words([LEFT - 8.0, y.at(value) + 4.0], "end", INK, &short(value));
    }
    for row in rows {
        svg.words([x.at(x_of(row)), HEIGHT - BOTTOM + 20.0], "middle", INK, &short(x_of(row)));
        let [low, high] = row.spread.ours;
        svg.line([x.at(x_of(row)), y.at(low)], [x.at(x_of(row)), y.at(high)], OURS, 1.0);
    }
    let control: Vec<[f64; 2]> = rows.iter().filter_map(|row| Some([x.at(x_of(row)), y.at(row.control?)])).collect();
    if let (false, Some(against)) = (control.is_empty(), &rows[0].against) {
        svg.curve(&control, CONTROL);
        svg.words([WIDTH - RIGHT, 22.0], "end", CONTROL, against);
    }
    let ours: Vec<[f64; 2]> = rows.iter().map(|row| [x.at(x_of(row)), y.at(row.ours)]).collect();
    svg.curve(&ours, OURS);
    svg.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::plan::Section;
    use crate::cli::bench::row::Measured;

    fn rows() -> Vec<Row> {
        let point = |x: f64| {
            let mut row = Measured::rate(Section::Scaling, format!("{x}"), 1).at("append over producers", x);
            row.note(1_000.0 * x);
            row.row()
        };
        [1.0, 4.0, 16.0].map(point).to_vec()
    }

    #[test]
    fn a_curve_has_a_picture_with_all_its_points() {
        let drawn = pictures(&rows());
        let [(name, title, picture)] = &drawn[..] else { panic!("{} pictures", drawn.len()) };
        assert_eq!((name.as_str(), title.as_str()), ("append-over-producers", "append over producers"));
        assert_eq!(picture.matches("<circle").count(), 3);
        assert!(pictures(&rows()[..1]).is_empty(), "one point is no curve");
    }

    #[test]
    fn numbers_that_can_t_be_drawn_logarithmically_stay_inside() {
        let axis = Axis::over([0.0, 0.0].into_iter(), [0.0, 100.0], true);
        assert_eq!((axis.at(0.0), axis.at(f64::MAX)), (0.0, 100.0));
    }
}
