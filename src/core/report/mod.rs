//! A report: one message about one item of one pipeline, as Zuul's MQTT reporter makes it.
//!
//! [`Report::parse`] reads the bytes once, in one pass and without building a tree: it checks the schema (`schema.rs`) on the way and keeps
//! only what routing and topics need. The bytes themselves stay as they were posted, because they are what is published.
//!
//! # What is asked of a report
//! - It is JSON in UTF-8 ([RFC 8259](https://www.rfc-editor.org/rfc/rfc8259)), an object, and nested at most [`MAX_NESTING`] deep.
//! - `action`, `tenant` and `pipeline` are there: without them nobody could say where it goes.
//! - What the schema names has the schema's type, or is null, or is missing. Zuul leaves out or empties what an item doesn't have:
//!   a tag has no branch, a periodic run no change, a report of a start no times.
//! - What the schema names is named once. Of two values of one key, the reader of the topic and the reader of the payload could take different ones.
//! - What the schema doesn't name is nobody's business but the subscriber's, and passes.

mod cut;
mod number;
mod schema;
mod walk;

#[cfg(test)]
mod tests;

use bytes::Bytes;
use thiserror::Error;

use schema::Slot;
use walk::{Kept, Plain};

/// How deep objects and lists may be nested. Zuul needs 5 and what jobs return a few more; most JSON readers, subscribers' among
/// them, give up somewhere between a hundred and a thousand.
pub const MAX_NESTING: usize = 100;

/// Why bytes are not a report.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReportError {
    /// Not JSON, or not in UTF-8, or nested too deep.
    #[error("{message}")]
    InvalidJson {
        /// What is wrong, with line and column.
        message: String,
    },
    /// JSON, but not a report.
    #[error("{}{}{message}", field.as_deref().unwrap_or(""), if field.is_some() { ": " } else { "" })]
    InvalidReport {
        /// The path of the value that is wrong, such as `buildset.builds[0].voting`; none if it is the whole.
        field: Option<String>,
        /// What was expected, and what was found.
        message: String,
    },
}

impl ReportError {
    /// Stable, for machines.
    pub fn code(&self) -> &'static str {
        match self {
            ReportError::InvalidJson { .. } => "invalid_json",
            ReportError::InvalidReport { .. } => "invalid_report",
        }
    }

    /// The path of the value that is wrong, where it is one value.
    pub fn field(&self) -> Option<&str> {
        match self {
            ReportError::InvalidJson { .. } => None,
            ReportError::InvalidReport { field, .. } => field.as_deref(),
        }
    }
}

/// A report that has been checked, with the bytes that it came in.
#[derive(Debug, Clone)]
pub struct Report {
    payload: Bytes,
    /// What routing and topics need of it. `action`, `tenant` and `pipeline` are always there.
    kept: Kept,
}

/// What [`Report::change_value`] comes upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeValue<'r> {
    /// `changes` is not that long.
    NoSuchChange {
        /// How many there are.
        count: usize,
    },
    /// There is nothing under that name: it is missing, null or empty.
    Nothing,
    /// A plain value, as text.
    Text(&'r str),
    /// A list or an object: says which.
    NotPlain(&'static str),
}

impl Report {
    /// Checks the bytes and keeps them.
    ///
    /// # Errors
    /// The first thing that is wrong, with its path in the report or its line and column in the text.
    pub fn parse(payload: Bytes) -> Result<Report, ReportError> {
        let text = std::str::from_utf8(&payload).map_err(|error| ReportError::InvalidJson {
            message: format!("a report is JSON in UTF-8: byte {} is not UTF-8", error.valid_up_to()),
        })?;
        let kept = walk::walk(text)?;
        for slot in [Slot::Action, Slot::Tenant, Slot::Pipeline] {
            if kept.named[slot as usize].is_none() {
                return Err(ReportError::InvalidReport {
                    field: Some(slot.key().to_owned()),
                    message: "a report needs it to find its way: expected a non-empty string, found nothing".to_owned(),
                });
            }
        }
        Ok(Report { kept, payload })
    }

    /// What was posted, byte for byte.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The payload without `returned_data` in `buildset.builds[]` and `buildset.retry_builds[]`; every other value, its spelling
    /// and the order of keys stay. Where there is none, these are the very bytes that were posted.
    pub fn payload_without_returned_data(&self) -> Bytes {
        cut::without(&self.payload, &self.kept.returned_data)
    }

    /// The reporter's action: `start`, `success`, `failure`, …
    pub fn action(&self) -> &str {
        self.named(Slot::Action).unwrap_or_default()
    }

    /// The tenant's name.
    pub fn tenant(&self) -> &str {
        self.named(Slot::Tenant).unwrap_or_default()
    }

    /// The pipeline's name.
    pub fn pipeline(&self) -> &str {
        self.named(Slot::Pipeline).unwrap_or_default()
    }

    /// The project's name; none where it is missing, null or empty, as with all that follow.
    pub fn project(&self) -> Option<&str> {
        self.named(Slot::Project)
    }

    /// The branch; tags have none.
    pub fn branch(&self) -> Option<&str> {
        self.named(Slot::Branch)
    }

    /// The change's number, as text; branches and tags have none.
    pub fn change(&self) -> Option<&str> {
        self.named(Slot::Change)
    }

    /// The patchset: a number with Gerrit, a commit with GitHub.
    pub fn patchset(&self) -> Option<&str> {
        self.named(Slot::Patchset)
    }

    /// The git reference: `refs/changes/03/3/1`, `refs/tags/1.0`.
    pub fn ref_(&self) -> Option<&str> {
        self.named(Slot::Ref)
    }

    /// The value under any key of one of the report's changes, counted from 0.
    pub fn change_value(&self, index: usize, key: &str) -> ChangeValue<'_> {
        if index >= self.kept.changes {
            return ChangeValue::NoSuchChange { count: self.kept.changes };
        }
        // Of a key given twice the last one counts, as in Python and in JavaScript.
        let found = self.kept.members.iter().rev().find(|member| member.change == index && member.key.within(&self.payload) == key);
        match found.map(|member| &member.value) {
            None | Some(Plain::Null) => ChangeValue::Nothing,
            Some(Plain::Nested(kind)) => ChangeValue::NotPlain(kind),
            Some(Plain::Text(text)) => match text.within(&self.payload) {
                "" => ChangeValue::Nothing,
                text => ChangeValue::Text(text),
            },
        }
    }

    fn named(&self, slot: Slot) -> Option<&str> {
        let text = self.kept.named[slot as usize].as_ref()?.within(&self.payload);
        (!text.is_empty()).then_some(text)
    }
}
