//! What is asked: the body of a decision, a JSON object of a few names that is read to its end before anything is done; and the names of a query.

use std::error::Error as _;
use std::time::Duration;

use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::StatusCode;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use serde_json::{Map, Value};

use super::error::{ApiError, invalid};
use super::object::Object;

/// It has to arrive within this.
const ARRIVES_WITHIN: Duration = Duration::from_secs(10);

/// A reason in the history, in bytes.
const LONGEST_REASON: usize = 500;

/// Reads a body of at most `limit` bytes. `advice` says what to do about one that is larger.
///
/// # Errors
/// 413 for a larger one, before it is read if it says so; 408 if it does not arrive; 400 if it ends early.
pub async fn read(body: Body, limit: usize, advice: &str) -> Result<Bytes, ApiError> {
    let too_large = || {
        let message = format!("a body of more than {limit} bytes: {advice}");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message).closing()
    };
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let bytes = tokio::time::timeout(ARRIVES_WITHIN, to_bytes(body, limit)).await;
    let bytes = bytes.map_err(|_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "the body did not arrive").closing())?;
    bytes.map_err(|error| match error.source().is_some_and(|cause| cause.to_string().contains("length limit")) {
        true => too_large(),
        false => ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", "the body is broken off").closing(),
    })
}

/// What the body says. `expected` is an example of what it may; `code` is for one that is JSON and says something else.
///
/// # Errors
/// 400 if it is no JSON; 422, with the name that is wrong where it is one, if it is no such object.
pub fn object<T: DeserializeOwned>(bytes: &[u8], expected: &str, code: &'static str) -> Result<T, ApiError> {
    let read: Result<Object<T>, _> = serde_json::from_slice(bytes);
    read.map(|Object(read)| read).map_err(|error| {
        let message = format!("expected {expected}: {error}");
        match error.classify() {
            Category::Data => {
                let field = named_in(&error.to_string()).or_else(|| name_of_wrong_value::<T>(bytes));
                ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, code, message).field(field)
            }
            Category::Syntax | Category::Eof | Category::Io => ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", message),
        }
    })
}

/// What a query says. `hint` goes behind what is wrong.
///
/// # Errors
/// 422, with the name that is wrong.
pub fn query<T>(query: Result<Query<T>, QueryRejection>, hint: &str) -> Result<T, ApiError> {
    query.map(|Query(query)| query).map_err(|rejection| {
        let message = rejection.body_text();
        let field = message.split_once(": ").and_then(|(_, what)| named_in(what.split_once(": ").map_or(what, |(_, what)| what)));
        ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_query", format!("{message}; {hint}")).field(field)
    })
}

/// The name that serde complains of, where its complaint is about a name.
fn named_in(complaint: &str) -> Option<String> {
    let about = ["unknown field `", "missing field `", "duplicate field `"].iter().find_map(|kind| complaint.strip_prefix(kind))?;
    about.split_once('`').map(|(name, _)| name.to_owned())
}

/// The name of the value that is of the wrong type: alone it is wrong, too.
fn name_of_wrong_value<T: DeserializeOwned>(bytes: &[u8]) -> Option<String> {
    let all: Map<String, Value> = serde_json::from_slice(bytes).ok()?;
    all.into_iter().find_map(|(name, value)| {
        let alone = Value::Object(Map::from_iter([(name.clone(), value)]));
        let error = serde_json::from_value::<Object<T>>(alone).err()?;
        named_in(&error.to_string()).is_none().then_some(name)
    })
}

/// A reason as it will stand in the history, if one was given.
///
/// # Errors
/// 422 if it is empty, longer than 500 bytes, or more than a line.
pub fn reason(given: Option<String>) -> Result<Option<String>, ApiError> {
    let is_text = |text: &String| !text.trim().is_empty() && text.len() <= LONGEST_REASON && !text.chars().any(char::is_control);
    match given.as_ref().is_none_or(is_text) {
        true => Ok(given),
        false => Err(invalid("reason", format!("expected 1 to {LONGEST_REASON} bytes of text in one line"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Wanted {
        #[allow(dead_code)]
        from: String,
        #[allow(dead_code)]
        count: Option<u8>,
    }

    #[test]
    fn json_that_says_something_else_is_named_and_what_is_no_json_is_told_apart() {
        for (body, status, field) in [
            (r#"{"from":"a","tenat":1}"#, 422, Some("tenat")),
            (r#"{"count":1}"#, 422, Some("from")),
            (r#"{"from":"a","from":"b"}"#, 422, Some("from")),
            (r#"{"from":"a","count":"many"}"#, 422, Some("count")),
            (r#"{"from":"a","count":"unknown field `x`"}"#, 422, Some("count")),
            (r#"{"count":300,"from":"a"}"#, 422, Some("count")),
            (r#"["a",1]"#, 422, None),
            (r#"{"from":"#, 400, None),
            ("from", 400, None),
            ("", 400, None),
        ] {
            let error = object::<Wanted>(body.as_bytes(), "{}", "invalid_move").unwrap_err();
            let code = if status == 400 { "invalid_json" } else { "invalid_move" };
            let expected = ApiError::new(StatusCode::from_u16(status).unwrap(), code, error.message()).field(field.map(str::to_owned));
            assert_eq!(error, expected, "{body}");
        }
    }
}
