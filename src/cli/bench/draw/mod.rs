//! Results for readers: tables in Markdown between two marks of `performance.md`, and pictures in SVG beside it.
//!
//! | Module | Holds |
//! |---|---|
//! | `tables` | the tables |
//! | `bars` | one picture of all ratios with their bars |
//! | `curves` | a picture for each group of curves |

mod bars;
mod curves;
mod svg;
mod tables;

use std::fs;
use std::path::Path;

use super::row::Results;
use super::{BenchError, tell};

/// The document that the tables are written into.
const DOCUMENT: &str = "performance.md";

/// What is between these is written by the bench.
const MARKS: [&str; 2] = ["<!-- what follows is written by `tidings bench --draw`: don't edit -->\n", "<!-- up to here -->\n"];

/// Pictures begin with this.
const PICTURES: &str = "performance-";

/// Draws everything into a folder, and writes the tables into its `performance.md`, which is made if it is not there.
///
/// # Errors
/// If a file can't be written.
pub fn draw(results: &Results, folder: &Path) -> Result<(), BenchError> {
    fs::create_dir_all(folder).map_err(BenchError::file(format!("{} can't be made", folder.display())))?;
    let mut pictures = Vec::new();
    if let Some(picture) = bars::picture(&results.rows) {
        pictures.push(("ratios".to_owned(), "Ratios against the controls".to_owned(), picture));
    }
    pictures.extend(curves::pictures(&results.rows));
    for (name, _, picture) in &pictures {
        let file = folder.join(format!("{PICTURES}{name}.svg"));
        fs::write(&file, picture).map_err(BenchError::file(format!("{} can't be written", file.display())))?;
    }
    let mut text = tables::tables(results);
    for (name, title, _) in &pictures {
        text.push_str(&format!("![{title}]({PICTURES}{name}.svg)\n\n"));
    }
    let file = folder.join(DOCUMENT);
    let before = fs::read_to_string(&file).unwrap_or_else(|_| MARKS.concat());
    fs::write(&file, put_between(&before, &text)).map_err(BenchError::file(format!("{} can't be written", file.display())))?;
    tell(&format!("{} and {} pictures were written", file.display(), pictures.len()));
    Ok(())
}

/// The document with `text` between its marks; at its end, with marks, if it has none.
fn put_between(document: &str, text: &str) -> String {
    let [begin, end] = MARKS;
    let parts = document.split_once(begin).and_then(|(before, rest)| Some((before, rest.split_once(end)?.1)));
    match parts {
        Some((before, after)) => format!("{before}{begin}\n{}\n{end}{after}", text.trim_end()),
        None => format!("{}\n\n{begin}\n{}\n{end}", document.trim_end(), text.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_around_the_marks_stays_and_what_is_between_them_goes() {
        let document = format!("# Title\n\n{}old\n{}\nThe end.\n", MARKS[0], MARKS[1]);
        let once = put_between(&document, "new\n\n");
        assert_eq!(once, format!("# Title\n\n{}\nnew\n{}\nThe end.\n", MARKS[0], MARKS[1]));
        assert_eq!(put_between(&once, "new"), once);
        assert_eq!(put_between("# Title\n", "new"), format!("# Title\n\n{}\nnew\n{}", MARKS[0], MARKS[1]));
    }
}
