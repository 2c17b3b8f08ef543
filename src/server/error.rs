//! The one shape of every error that leaves over HTTP: `{"error":{"code","message","field"}}`.
//!
//! `code` is stable and for machines; `message` is for people, and says what to do; `field` names the part of the request that is
//! wrong, where it is one part.

use std::borrow::Cow;
use std::fmt::Display;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};

/// An error as it leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    what: ErrorBody,
    retry_after: Option<Duration>,
    closes: bool,
}

/// The error as the body says it; also how the command line reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// Stable, for machines.
    pub code: Cow<'static, str>,
    /// For people.
    pub message: String,
    /// What of the request is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

/// The body of an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorAnswer {
    /// The error.
    pub error: ErrorBody,
}

impl ApiError {
    /// An error.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let what = ErrorBody { code: Cow::Borrowed(code), message: message.into(), field: None };
        ApiError { status, what, retry_after: None, closes: false }
    }

    /// Names what of the request is wrong.
    pub fn field(self, field: Option<String>) -> Self {
        ApiError { what: ErrorBody { field, ..self.what }, ..self }
    }

    /// What it says to people.
    pub fn message(&self) -> &str {
        &self.what.message
    }

    /// Says when to try again.
    pub fn retry_after(self, after: Duration) -> Self {
        ApiError { retry_after: Some(after), ..self }
    }

    /// Ends the connection after this answer: a part of the request was not read.
    pub fn closing(self) -> Self {
        ApiError { closes: true, ..self }
    }

    /// There is no such route.
    pub fn not_found() -> Self {
        ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is nothing here; reports go to POST /v1/reports")
    }

    /// The route is there, for another method.
    pub fn method_not_allowed() -> Self {
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this route does not take that method; see the Allow header")
    }

    /// A fault of ours.
    pub fn internal(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }
}

/// Something in a question is wrong: 422 `invalid_query`, with the name of the part.
pub fn invalid(field: &str, message: impl Display) -> ApiError {
    let error = ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_query", format!("{field}: {message}"));
    error.field(Some(field.to_owned()))
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let mut response = json(self.status, &ErrorAnswer { error: self.what });
        let headers = response.headers_mut();
        if let Some(after) = self.retry_after {
            // Whole seconds, at least one: 0 would invite to hammer.
            headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            // RFC 9110 §11.6.1 wants it, and RFC 6750 names the way.
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.closes {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// An answer in JSON.
pub fn json(status: StatusCode, body: &impl Serialize) -> Response<Body> {
    let text = serde_json::to_vec(body).expect("answers are plain data with text keys");
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
