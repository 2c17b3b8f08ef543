//! `Idempotency-Key`: by what a request is recognised when it comes again.

use axum::http::{HeaderMap, StatusCode};

use super::error::ApiError;

/// A key has so many characters at most. A UUID has 36.
pub const MAX_KEY: usize = 255;

/// An `Idempotency-Key`: 1 to 255 visible ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey(String);

/// The header is no idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an Idempotency-Key is 1 to {MAX_KEY} visible ASCII characters, given once; a UUID does well")]
pub struct InvalidKey;

impl IdempotencyKey {
    /// Reads a key.
    ///
    /// # Errors
    /// If it is empty, too long, or has other characters than visible ASCII.
    pub fn parse(text: &[u8]) -> Result<Self, InvalidKey> {
        let is_visible = text.iter().all(u8::is_ascii_graphic);
        if text.is_empty() || text.len() > MAX_KEY || !is_visible {
            return Err(InvalidKey);
        }
        String::from_utf8(text.to_vec()).map(IdempotencyKey).map_err(|_| InvalidKey)
    }

    /// The key of a request, if it has one.
    ///
    /// # Errors
    /// If it is none, or there are several.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, InvalidKey> {
        let mut values = headers.get_all("idempotency-key").iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => Self::parse(value.as_bytes()).map(Some),
            (Some(_), Some(_)) => Err(InvalidKey),
        }
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<InvalidKey> for ApiError {
    fn from(error: InvalidKey) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_idempotency_key", error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_1_to_255_visible_ascii_characters() {
        for good in [&b"a"[..], b"8ff4e1c2-0b7e-4f0c", &[b'~'; 255]] {
            assert!(IdempotencyKey::parse(good).is_ok());
        }
        for bad in [&b""[..], b"a b", b"\tx", "é".as_bytes(), b"\xff", &[b'a'; 256]] {
            assert_eq!(IdempotencyKey::parse(bad), Err(InvalidKey));
        }
    }

    #[test]
    fn a_request_has_one_key_or_none() {
        let mut headers = HeaderMap::new();
        assert_eq!(IdempotencyKey::of(&headers), Ok(None));
        headers.append("idempotency-key", "a".parse().unwrap());
        assert_eq!(IdempotencyKey::of(&headers).unwrap().unwrap().as_str(), "a");
        headers.append("idempotency-key", "a".parse().unwrap());
        assert_eq!(IdempotencyKey::of(&headers), Err(InvalidKey));
    }
}
