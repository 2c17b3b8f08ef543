//! The body of a decision: a JSON object of a few names, read to its end before anything is done.

use std::error::Error as _;
use std::time::Duration;

use axum::body::{Body, HttpBody, to_bytes};
use axum::http::StatusCode;
use bytes::Bytes;
use serde::de::DeserializeOwned;

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

/// What the body says. `expected` is an example of what it may.
///
/// # Errors
/// 400 if it is no such object.
pub fn object<T: DeserializeOwned>(bytes: &[u8], expected: &str) -> Result<T, ApiError> {
    let read: Result<Object<T>, _> = serde_json::from_slice(bytes);
    read.map(|Object(read)| read)
        .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", format!("expected {expected}: {error}")))
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
