//! What is asked for, read from a query string or a body, and every mistake named.

use serde::{Deserialize, Serialize};

use super::scan::Wanted;
use crate::core::search::{Filter, State, TopicFilter};
use crate::core::types::{Millis, Seq};
use crate::server::error::{ApiError, invalid};
use crate::server::time::moment;

/// Rows of one answer if nobody says.
const USUAL_ROWS: usize = 100;

/// Rows of one answer at most.
pub const MOST_ROWS: usize = 1_000;

/// A value in a filter, in bytes: the longest topic.
const LONGEST: usize = 65_535;

/// The names and values of a filter, as they come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Asked {
    /// See [`Filter`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// See [`Filter`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<String>,
    /// See [`Filter`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// See [`Filter`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// See [`Filter`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<String>,
    /// See [`Filter`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<String>,
    /// How long ago, or a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// How long ago, or a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

/// The query of a list.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ListQuery {
    state: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
    tenant: Option<String>,
    pipeline: Option<String>,
    action: Option<String>,
    topic: Option<String>,
    change: Option<String>,
    connection: Option<String>,
    since: Option<String>,
    until: Option<String>,
}

impl Asked {
    /// The same, with times that mean the same whenever they are read.
    ///
    /// # Errors
    /// 422 `invalid_query`, with the field.
    pub fn at(self, now: Millis) -> Result<Asked, ApiError> {
        let time = |field: &str, value: Option<String>| {
            value.map(|value| moment(&value, now.0).map(|at| Millis(at).rfc3339()).map_err(|error| invalid(field, error))).transpose()
        };
        Ok(Asked { since: time("since", self.since)?, until: time("until", self.until)?, ..self })
    }

    /// The filter that is meant; times are relative to `now`.
    ///
    /// # Errors
    /// 422 `invalid_query`, with the field.
    pub fn filter(self, now: Millis) -> Result<Filter, ApiError> {
        let Asked { tenant, pipeline, action, topic, change, connection, since, until } = self;
        let text = |field: &str, value: Option<String>| match value {
            Some(value) if value.len() > LONGEST => Err(invalid(field, format!("longer than {LONGEST} bytes"))),
            value => Ok(value),
        };
        let time = |field: &str, value: Option<String>| {
            value.map(|value| moment(&value, now.0).map(Millis).map_err(|error| invalid(field, error))).transpose()
        };
        let topic = topic.map(|topic| TopicFilter::parse(&topic).map_err(|error| invalid("topic", error))).transpose()?;
        let (since, until) = (time("since", since)?, time("until", until)?);
        if let (Some(since), Some(until)) = (since, until)
            && since >= until
        {
            return Err(invalid("until", "nothing lies between since and until, because that is not the later one"));
        }
        Ok(Filter {
            tenant: text("tenant", tenant)?,
            pipeline: text("pipeline", pipeline)?,
            action: text("action", action)?,
            change: text("change", change)?,
            connection: text("connection", connection)?.map(|name| name.as_str().into()),
            topic,
            since,
            until,
            within: None,
        })
    }
}

impl ListQuery {
    /// What is meant.
    pub(super) fn wanted(self, now: Millis) -> Result<Wanted, ApiError> {
        let ListQuery { state, limit, cursor, tenant, pipeline, action, topic, change, connection, since, until } = self;
        let state = match state {
            None => None,
            Some(name) => Some(State::by_name(&name).ok_or_else(|| {
                let known: Vec<&str> = State::ALL.iter().map(|state| state.name()).collect();
                invalid("state", format!("expected one of {}, found {name:?}", known.join(", ")))
            })?),
        };
        let limit = match limit {
            None => USUAL_ROWS,
            Some(text) => {
                let limit = text.parse().ok().filter(|limit| (1..=MOST_ROWS).contains(limit));
                limit.ok_or_else(|| invalid("limit", format!("expected a number from 1 to {MOST_ROWS}, found {text:?}")))?
            }
        };
        let before = match cursor {
            None => None,
            Some(text) => Some(read_cursor(&text).ok_or_else(|| invalid("cursor", "expected the next_cursor of an earlier answer"))?),
        };
        let filter = Asked { tenant, pipeline, action, topic, change, connection, since, until }.filter(now)?;
        Ok(Wanted { filter, state, limit, before })
    }
}

/// A position as a cursor. Clients have no use for what it means.
pub fn cursor(at: Seq) -> String {
    format!("c{:x}", at.0)
}

/// The position of a cursor, if it is one.
pub fn read_cursor(text: &str) -> Option<Seq> {
    let digits = text.strip_prefix('c').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
    u64::from_str_radix(digits, 16).ok().map(Seq)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written_and_nothing_else_is_one() {
        for at in [0, 1, 77, u64::MAX] {
            assert_eq!(read_cursor(&cursor(Seq(at))), Some(Seq(at)));
        }
        for wrong in ["", "c", "1f", "c+1", "cg", "c11111111111111111", "c 1"] {
            assert_eq!(read_cursor(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn every_mistake_is_named_with_its_field() {
        let field = |query: ListQuery| format!("{:?}", query.wanted(Millis(10_000)).unwrap_err());
        let text = |text: &str| Some(text.to_owned());
        for (query, name) in [
            (ListQuery { state: text("gone"), ..ListQuery::default() }, "state"),
            (ListQuery { limit: text("0"), ..ListQuery::default() }, "limit"),
            (ListQuery { limit: text("1001"), ..ListQuery::default() }, "limit"),
            (ListQuery { limit: text("-1"), ..ListQuery::default() }, "limit"),
            (ListQuery { cursor: text("x"), ..ListQuery::default() }, "cursor"),
            (ListQuery { topic: text("a#"), ..ListQuery::default() }, "topic"),
            (ListQuery { since: text("tomorrow"), ..ListQuery::default() }, "since"),
            (ListQuery { since: text("1s"), until: text("2s"), ..ListQuery::default() }, "until"),
            (ListQuery { tenant: Some("x".repeat(65_536)), ..ListQuery::default() }, "tenant"),
        ] {
            assert!(field(query).contains(&format!("field: Some(\"{name}\")")), "{name}");
        }
    }
}
