//! The service's HTTP server with a handler that reads the body and drops it: what ingest is measured against.

use std::net::Ipv4Addr;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use tokio::net::TcpListener;

use super::Told;
use crate::cli::bench::BenchError;
use crate::server::{Limits, serve};

/// The largest body that it reads, in bytes: the service's own default.
const MAX_BODY: usize = 4 << 20;

/// An answer like the service's to one report, so that as many bytes go back.
const ANSWER: &str =
    r#"{"deliveries":[{"id":"1234567","connection":"mqtt","topic":"tidings-bench/acme/check/web/search/main/1042","qos":1}]}"#;

/// Serves until the bench says a word, or is gone.
///
/// # Errors
/// If there is no port.
pub async fn run(told: &Told) -> Result<String, BenchError> {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.and_then(|listener| {
        let address = listener.local_addr()?;
        Ok((listener, address))
    });
    let (listener, address) = bound.map_err(BenchError::file("there is no free port"))?;
    let app = Router::new().route("/v1/reports", post(drop_body));
    let serving = tokio::spawn(serve(listener, app, Limits::default(), std::future::pending()));
    tokio::task::block_in_place(|| told.wait_to_go(&address.to_string()));
    serving.abort();
    Ok("null".into())
}

async fn drop_body(request: Request<Body>) -> Response {
    match to_bytes(request.into_body(), MAX_BODY).await {
        Ok(_) => (StatusCode::ACCEPTED, [("content-type", "application/json")], ANSWER).into_response(),
        Err(_) => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
    }
}
