//! What commands print: tables, ages and sizes for people, and pipes that may be closed.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use super::FAILED;

/// Prints to standard output. Whoever closed the pipe (`| head`) has seen enough: that is no failure.
pub fn print(text: &str) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => complain(&format!("printing failed: {error}")),
    }
}

/// Says on standard error why it failed.
pub fn complain(what: &str) -> ExitCode {
    // With standard error closed there is nobody to tell.
    let _ = writeln!(io::stderr(), "error: {what}");
    ExitCode::from(FAILED)
}

/// Says something on standard error beside what is printed. Nobody has to be there to read it.
pub fn tell(what: &str) {
    let _ = writeln!(io::stderr(), "{what}");
}

/// Asks on standard error, and leaves the cursor behind the question. One that can't be written is not answered either.
pub fn ask(question: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(question.as_bytes()).and_then(|()| stderr.flush());
}

/// A column is no wider than this, in characters: a cell that is longer (a topic may have 65,535) stands over the columns to its right, and costs the other
/// rows no spaces.
const WIDEST: usize = 120;

/// Rows under a heading, in columns that are as wide as they need to be.
pub fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let heading: Vec<String> = heading.iter().map(|name| (*name).to_owned()).collect();
    let width = |column: usize| {
        let cells = rows.iter().chain([&heading]).filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0).min(WIDEST)
    };
    // Not by `{cell:width$}`, which panics beyond 65,535.
    let padded = |cell: &String, width: usize| format!("{cell}{}", " ".repeat(width.saturating_sub(cell.chars().count())));
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let mut text = String::new();
    for row in [&heading].into_iter().chain(rows) {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| padded(cell, *width)).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A number of things: `1 page`, `2 pages`.
pub fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// A span of time, in its two largest units: `2h 3m`.
pub fn age(span: Duration) -> String {
    let text = humantime::format_duration(Duration::from_secs(span.as_secs())).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// A size, in the unit that fits: `12.3 MiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut size, mut unit) = (bytes as f64, 0);
    while size >= 1_024.0 && unit + 1 < UNITS.len() {
        size /= 1_024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{size:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["1".into(), "é".into(), "x".into()], vec!["1000".into(), "b".into(), String::new()]];
        assert_eq!(table(&["ID", "TOPIC", "Z"], &rows), "ID    TOPIC  Z\n1     é      x\n1000  b\n");
    }

    #[test]
    fn a_cell_of_any_length_is_shown_and_costs_the_other_rows_little() {
        let long = "t".repeat(70_000);
        let text = table(&["ID", "TOPIC", "Z"], &[vec!["1".into(), long.clone(), "x".into()], vec!["2".into(), "b".into(), "y".into()]]);
        assert!(text.contains(&format!("1   {long}  x\n")), "it is whole");
        let shorter = text.lines().last().unwrap();
        assert!(shorter.starts_with("2   b ") && shorter.ends_with(" y") && shorter.len() <= WIDEST + 10, "{shorter}");
    }

    #[test]
    fn ages_and_sizes_have_the_unit_that_fits() {
        assert_eq!(age(Duration::from_millis(900)), "0s");
        assert_eq!(age(Duration::from_secs(3 * 3_600 + 125)), "3h 2m");
        assert_eq!([size(0), size(1_023), size(1_536), size(10 << 30)], ["0 B", "1023 B", "1.5 KiB", "10.0 GiB"]);
    }
}
