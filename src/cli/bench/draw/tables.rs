//! The tables: one a section.

use crate::cli::bench::row::{Results, Row, short};

/// Everything as Markdown.
pub fn tables(results: &Results) -> String {
    let settings = &results.settings;
    let mut text = format!(
        "Measured with {}. Reports of about {} bytes, {} of them in the largest measurements, {} rounds, seed {}.\n\n",
        results.machine.line(),
        short(settings.size as f64),
        short(settings.reports as f64),
        settings.rounds,
        settings.seed
    );
    let mut rest = &results.rows[..];
    while let Some(first) = rest.first() {
        let count = rest.iter().take_while(|row| row.section == first.section).count();
        let (section, others) = rest.split_at(count);
        text.push_str(&table(section));
        rest = others;
    }
    text
}

fn table(rows: &[Row]) -> String {
    let section = &rows[0].section;
    let is_compared = rows.iter().any(|row| row.control.is_some());
    let mut text = format!("### `{section}`\n\n");
    text.push_str(match is_compared {
        true => "| | Tidings | Control | Ratio (median, spread) | Bar |\n|---|---|---|---|---|\n",
        false => "| | Tidings (median, spread) | Bar |\n|---|---|---|\n",
    });
    for row in rows {
        let [_, name, ours, control, ratio, spread, bar, met] = row.cells();
        let bar = [bar, met].join(" ").trim().to_owned();
        let control = match &row.against {
            Some(against) => format!("{control} ({against})"),
            None => control,
        };
        text.push_str(&match (is_compared, row.control.is_some()) {
            (true, true) => format!("| {name} | {ours} | {control} | **{ratio}** ({spread}) | {bar} |\n"),
            (true, false) => format!("| {name} | {ours} ({spread}) | | | {bar} |\n"),
            (false, _) => format!("| {name} | {ours} ({spread}) | {bar} |\n"),
        });
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::plan::Section;
    use crate::cli::bench::row::{Bar, Better, Measured};

    #[test]
    fn a_table_has_a_control_where_anything_was_compared() {
        let mut compared = Measured::rate(Section::Append, "1 producer", 10).against("raw append").bar(Bar::AtLeast(0.6));
        compared.compare(1_200.0, 1_500.0);
        let mut alone = Measured::new(Section::Append, "memory", "MiB", Better::Less, 10);
        alone.note(42.0);
        let expected = "### `append`\n\n| | Tidings | Control | Ratio (median, spread) | Bar |\n|---|---|---|---|---|\n\
                        | 1 producer | 1,200 reports/s | 1,500 (raw append) | **0.8** (0.8–0.8) | ≥ 0.6 met |\n\
                        | memory | 42 MiB (42–42) | | |  |\n\n";
        assert_eq!(table(&[compared.row(), alone.row()]), expected);
        assert!(table(&[alone.row()]).contains("| memory | 42 MiB (42–42) |  |\n"));
    }
}
