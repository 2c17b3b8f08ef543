//! `GET /openapi.json`: the API, described for programs (OpenAPI 3.1).
//!
//! ```text
//!   openapi/base.json ─┐
//!   openapi/reports.json, … ─┴─▶ one document: paths, components ─▶ made once, served as it is
//! ```
//! It is written by hand, a part for each kind of route, and held against the service: `tests/openapi` sees that it has every route and no other,
//! every error code of `ops/http.md`, and has schemathesis ask a running service for everything that it promises.

use std::sync::LazyLock;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, Response};
use bytes::Bytes;
use serde_json::Value;
use serde_json::map::Entry;

/// What all others are put into.
const BASE: &str = include_str!("openapi/base.json");

/// The parts, each with routes that the service has.
const PARTS: [&str; 8] = [
    include_str!("openapi/reports.json"),
    include_str!("openapi/watching.json"),
    include_str!("openapi/deliveries.json"),
    include_str!("openapi/decisions.json"),
    include_str!("openapi/backups.json"),
    include_str!("openapi/replays.json"),
    include_str!("openapi/audit.json"),
    include_str!("openapi/page.json"),
];

/// As it is served.
static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| {
    let parts = PARTS.iter().map(|part| serde_json::from_str(part)).collect::<Result<Vec<Value>, _>>();
    let made = parts.and_then(|parts| Ok(document(serde_json::from_str(BASE)?, parts)));
    Bytes::from(made.expect("the parts are JSON").to_string())
});

pub(super) async fn describe() -> Response<Body> {
    let mut response = Response::new(Body::from(DOCUMENT.clone()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // It changes with the release, and nobody knows when that is.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// One document out of its parts, for the release that runs.
fn document(mut base: Value, parts: Vec<Value>) -> Value {
    base["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    for part in parts {
        put_together(&mut base, part);
    }
    base
}

/// Puts a part into the whole, object by object: paths, methods of a path, kinds of components, components.
fn put_together(whole: &mut Value, part: Value) {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            for (name, value) in part {
                match whole.entry(name) {
                    Entry::Vacant(place) => _ = place.insert(value),
                    Entry::Occupied(mut place) => put_together(place.get_mut(), value),
                }
            }
        }
        // The tests see that no two parts name the same.
        (whole, part) => *whole = part,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    /// The names that a part gives something to: operations, and components.
    fn names(part: &Value) -> Vec<String> {
        let of = |value: &Value| value.as_object().cloned().unwrap_or_default();
        let components = of(&part["components"]);
        let named = of(&part["paths"]).into_iter().chain(components);
        named.flat_map(|(group, members)| of(&members).into_iter().map(move |(name, _)| format!("{group} {name}"))).collect()
    }

    #[test]
    fn the_document_has_what_its_parts_have_and_each_of_it_once() {
        let whole = read(&String::from_utf8_lossy(&DOCUMENT));
        let mut of_the_parts: Vec<String> = std::iter::once(BASE).chain(PARTS).flat_map(|part| names(&read(part))).collect();
        of_the_parts.sort();
        let mut of_the_whole = names(&whole);
        of_the_whole.sort();
        assert_eq!(of_the_parts, of_the_whole);
        assert_eq!(whole["info"]["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(whole["openapi"], "3.1.0");
    }
}
