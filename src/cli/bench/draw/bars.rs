//! One picture of all ratios, each with its spread and its bar: what is promised at a glance.

use super::svg::{CONTROL, GRID, INK, MISSED, OURS, Svg};
use crate::cli::bench::row::{Bar, Row, short};

/// Where the bars begin: names stand before that.
const LEFT: f64 = 330.0;
const WIDTH: f64 = 860.0;
const ROW: f64 = 30.0;
const TOP: f64 = 40.0;

/// The picture; none if nothing was compared and has a bar.
pub fn picture(rows: &[Row]) -> Option<String> {
    let rows: Vec<(&Row, f64, Bar)> = rows.iter().filter_map(|row| Some((row, row.ratio?, row.bar?))).collect();
    if rows.is_empty() {
        return None;
    }
    let mark = |bar: Bar| match bar {
        Bar::AtLeast(bar) | Bar::AtMost(bar) => bar,
    };
    // The longest fills the picture, but for its number.
    let most =
        rows.iter().map(|(row, ratio, bar)| ratio.max(mark(*bar)).max(row.spread.ratio.map_or(0.0, |[_, high]| high))).fold(1.0, f64::max);
    let scale = (WIDTH - LEFT - 90.0) / most;
    let height = TOP + ROW * rows.len() as f64 + 30.0;
    let mut svg = Svg::new(WIDTH, height);
    svg.words([12.0, 22.0], "start", INK, "Tidings ÷ control: median of the rounds, their spread, and what is promised");
    svg.line([LEFT + scale, TOP - 8.0], [LEFT + scale, height - 24.0], GRID, 1.0);
    svg.words([LEFT + scale, height - 10.0], "middle", CONTROL, "1");
    for (place, (row, ratio, bar)) in rows.iter().enumerate() {
        let y = TOP + ROW * place as f64;
        let colour = if row.met == Some(false) { MISSED } else { OURS };
        svg.words([LEFT - 8.0, y + 14.0], "end", INK, &row.name);
        svg.rectangle([LEFT, y + 3.0], [ratio * scale, 16.0], colour);
        if let Some([low, high]) = row.spread.ratio {
            svg.line([LEFT + low * scale, y + 11.0], [LEFT + high * scale, y + 11.0], INK, 1.0);
        }
        svg.line([LEFT + mark(*bar) * scale, y - 1.0], [LEFT + mark(*bar) * scale, y + 23.0], INK, 2.0);
        let end = ratio.max(mark(*bar)).max(row.spread.ratio.map_or(0.0, |[_, high]| high));
        svg.words([LEFT + end * scale + 6.0, y + 15.0], "start", INK, &format!("{} ({})", short(*ratio), bar.words()));
    }
    Some(svg.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::plan::Section;
    use crate::cli::bench::row::Measured;

    #[test]
    fn what_is_missed_is_seen_and_what_has_no_bar_is_left_out() {
        let mut met = Measured::rate(Section::Append, "met & so on", 1).bar(Bar::AtLeast(0.6));
        met.compare(2.0, 1.0);
        assert!(!picture(&[met.row()]).unwrap().contains(MISSED));
        let mut missed = Measured::rate(Section::Append, "missed", 1).bar(Bar::AtLeast(0.6));
        missed.compare(1.0, 2.0);
        let mut without = Measured::rate(Section::Append, "without", 1);
        without.compare(1.0, 2.0);
        let picture = picture(&[met.row(), missed.row(), without.row()]).unwrap();
        assert!(picture.contains(MISSED) && picture.contains("met &amp; so on") && !picture.contains("without"), "{picture}");
        assert!(super::picture(&[without.row()]).is_none());
    }
}
