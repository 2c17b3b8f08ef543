//! One report or NDJSON: where each report begins and ends.
//!
//! NDJSON is read as `application/x-ndjson` says: one report a line, lines end with `\n` or `\r\n`, the last one may go without.
//! Lines of nothing but white space are passed over; they are counted as lines, and have no report. A report is the bytes of its line
//! without the line's end, and that is what is published.

use bytes::Bytes;

/// One NDJSON body has so many reports at most: bounds how long one commit takes.
pub const MAX_LINES: usize = 10_000;

/// What a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One report, answered with its deliveries.
    Single,
    /// One report a line, answered with a list.
    Ndjson,
}

/// One report of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Its line, counted from 1; none where the body is one report.
    pub line: Option<usize>,
    /// Its bytes, as posted.
    pub bytes: Bytes,
}

/// Why a body can't be taken apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// It has no reports.
    #[error("the batch is empty; NDJSON has one report a line")]
    Empty,
    /// It has too many.
    #[error("the batch has more than {MAX_LINES} reports; send it in parts")]
    TooMany,
    /// One of its reports is larger than a report may be.
    #[error("{}the report has {size} bytes and may have {limit} (`http.max_report`)", line_prefix(*line))]
    TooLarge {
        /// Its line, in a batch.
        line: Option<usize>,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
}

impl BatchError {
    /// Stable name for metrics, logs and HTTP bodies.
    pub fn code(&self) -> &'static str {
        match self {
            BatchError::Empty => "empty_batch",
            BatchError::TooMany => "too_many_reports",
            BatchError::TooLarge { .. } => "too_large",
        }
    }
}

/// How a message begins that is about one line.
pub fn line_prefix(line: Option<usize>) -> String {
    line.map(|line| format!("line {line}: ")).unwrap_or_default()
}

/// The reports of a body, without a look at what is in them.
///
/// # Errors
/// If there are none, too many, or one of them is larger than `max_report` bytes.
pub fn pieces(body: &Bytes, shape: Shape, max_report: usize) -> Result<Vec<Piece>, BatchError> {
    let pieces: Vec<Piece> = match shape {
        Shape::Single => vec![Piece { line: None, bytes: body.clone() }],
        Shape::Ndjson => lines(body).take(MAX_LINES + 1).collect(),
    };
    match pieces.len() {
        0 => return Err(BatchError::Empty),
        count if count > MAX_LINES => return Err(BatchError::TooMany),
        _ => {}
    }
    match pieces.iter().find(|piece| piece.bytes.len() > max_report) {
        Some(piece) => Err(BatchError::TooLarge { line: piece.line, size: piece.bytes.len(), limit: max_report }),
        None => Ok(pieces),
    }
}

fn lines(body: &Bytes) -> impl Iterator<Item = Piece> {
    let mut begin = 0;
    // The last line may go without its end.
    let ends = memchr::memchr_iter(b'\n', body).chain([body.len()]);
    let lines = ends.map(move |end| &body[std::mem::replace(&mut begin, end + 1)..end]);
    lines.enumerate().filter(|(_, line)| !line.trim_ascii().is_empty()).map(|(number, line)| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        // A copy: what follows from one line must not keep the whole body in memory.
        Piece { line: Some(number + 1), bytes: Bytes::copy_from_slice(line) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ndjson(body: &str) -> Result<Vec<(usize, String)>, BatchError> {
        let pieces = pieces(&Bytes::copy_from_slice(body.as_bytes()), Shape::Ndjson, 8)?;
        Ok(pieces.into_iter().map(|piece| (piece.line.unwrap(), String::from_utf8(piece.bytes.to_vec()).unwrap())).collect())
    }

    fn line(number: usize, text: &str) -> (usize, String) {
        (number, text.to_owned())
    }

    #[test]
    fn a_report_is_its_line_without_the_lines_end() {
        assert_eq!(ndjson("{}\n[] \r\n 1"), Ok(vec![line(1, "{}"), line(2, "[] "), line(3, " 1")]));
        assert_eq!(ndjson("{}\n"), Ok(vec![line(1, "{}")]));
    }

    #[test]
    fn blank_lines_are_counted_and_passed_over() {
        assert_eq!(ndjson("\n\r\n{}\n \t\n[]\n\n"), Ok(vec![line(3, "{}"), line(5, "[]")]));
    }

    #[test]
    fn a_batch_of_nothing_is_refused() {
        for nothing in ["", "\n", " \r\n\n"] {
            assert_eq!(ndjson(nothing), Err(BatchError::Empty));
        }
    }

    #[test]
    fn a_report_that_is_too_large_is_named_by_its_line() {
        let error = ndjson("{}\n\n123456789\n").unwrap_err();
        assert_eq!(error, BatchError::TooLarge { line: Some(3), size: 9, limit: 8 });
        assert_eq!(error.to_string(), "line 3: the report has 9 bytes and may have 8 (`http.max_report`)");
    }

    #[test]
    fn a_batch_holds_ten_thousand_reports_and_not_one_more() {
        assert_eq!(ndjson(&"1\n".repeat(MAX_LINES)).map(|pieces| pieces.len()), Ok(MAX_LINES));
        assert_eq!(ndjson(&"1\n".repeat(MAX_LINES + 1)), Err(BatchError::TooMany));
    }

    #[test]
    fn one_report_is_the_whole_body_line_ends_and_all() {
        let body = Bytes::from_static(b"{\n}\n");
        assert_eq!(pieces(&body, Shape::Single, 8), Ok(vec![Piece { line: None, bytes: body.clone() }]));
    }
}
