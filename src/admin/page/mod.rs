//! `GET /`: the dashboard, one page that is part of the program.
//!
//! ```text
//!   browser ─▶ GET / and what it loads (open to all: it holds no data) ─▶ the page asks the same API as everybody, with a token if one is needed
//! ```
//! What it shows was written by strangers: reports, topics, what brokers say. So two things keep that from being run, each by itself: the page makes
//! text of it and never markup (`dom.js`), and the policy that it comes with lets a browser run nothing but these files.
//!
//! | File | Holds |
//! |---|---|
//! | `index.html`, `style.css` | what is there before anything is known, and how it looks |
//! | `main.js` | which view is shown, and when what is asked |
//! | `dom.js`, `format.js` | elements out of text; numbers, times and sizes in words |
//! | `api.js`, `token.js` | one request; who asks |
//! | `fresh.js` | how old what is shown is, and that everybody sees it |
//! | `stream.js` | server-sent events, resumed |
//! | `samples.js`, `charts.js` | figures over time, and drawn |
//! | `overview.js`, `live.js` | verdict, connections and lanes; what happens |
//! | `cluster.js` | several instances over one log |
//! | `list.js`, `filters.js`, `deliveries.js`, `delivery.js`, `decide.js` | deliveries and dead letters, and what is decided about them |
//! | `replays.js` | replays |

use axum::Router;
use axum::body::Body;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use axum::routing::get;
use xxhash_rust::xxh3::xxh3_64;

/// What a browser may do with the page: run and show its own files, and ask its own service. Nothing of it may be made from text, and nobody may put
/// it into a frame, where clicks could be led.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// One file of the page.
struct File {
    path: &'static str,
    content_type: &'static str,
    text: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

const FILES: &[File] = &[
    File { path: "/", content_type: HTML, text: include_str!("index.html") },
    File { path: "/page/style.css", content_type: CSS, text: include_str!("style.css") },
    File { path: "/page/api.js", content_type: SCRIPT, text: include_str!("api.js") },
    File { path: "/page/charts.js", content_type: SCRIPT, text: include_str!("charts.js") },
    File { path: "/page/cluster.js", content_type: SCRIPT, text: include_str!("cluster.js") },
    File { path: "/page/decide.js", content_type: SCRIPT, text: include_str!("decide.js") },
    File { path: "/page/deliveries.js", content_type: SCRIPT, text: include_str!("deliveries.js") },
    File { path: "/page/delivery.js", content_type: SCRIPT, text: include_str!("delivery.js") },
    File { path: "/page/dom.js", content_type: SCRIPT, text: include_str!("dom.js") },
    File { path: "/page/filters.js", content_type: SCRIPT, text: include_str!("filters.js") },
    File { path: "/page/format.js", content_type: SCRIPT, text: include_str!("format.js") },
    File { path: "/page/fresh.js", content_type: SCRIPT, text: include_str!("fresh.js") },
    File { path: "/page/list.js", content_type: SCRIPT, text: include_str!("list.js") },
    File { path: "/page/live.js", content_type: SCRIPT, text: include_str!("live.js") },
    File { path: "/page/main.js", content_type: SCRIPT, text: include_str!("main.js") },
    File { path: "/page/overview.js", content_type: SCRIPT, text: include_str!("overview.js") },
    File { path: "/page/replays.js", content_type: SCRIPT, text: include_str!("replays.js") },
    File { path: "/page/samples.js", content_type: SCRIPT, text: include_str!("samples.js") },
    File { path: "/page/stream.js", content_type: SCRIPT, text: include_str!("stream.js") },
    File { path: "/page/token.js", content_type: SCRIPT, text: include_str!("token.js") },
];

/// The page and what it loads. None of it needs a token.
pub fn routes() -> Router {
    FILES.iter().fold(Router::new(), |router, file| {
        let tag =
            HeaderValue::from_str(&format!("\"{:016x}\"", xxh3_64(file.text.as_bytes()))).expect("a quoted number is a header's value");
        router.route(file.path, get(move |headers: HeaderMap| async move { answer(file, tag, &headers) }))
    })
}

fn answer(file: &'static File, tag: HeaderValue, asked: &HeaderMap) -> Response<Body> {
    let is_known = asked.get_all(IF_NONE_MATCH).iter().any(|known| names(known, &tag));
    let mut response = Response::new(if is_known { Body::empty() } else { Body::from(file.text) });
    if is_known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(ETAG, tag);
    let fixed: [(HeaderName, &'static str); 5] = [
        (CONTENT_TYPE, file.content_type),
        // Kept, and asked about each time: after an upgrade no old script may meet a new page.
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Whether an `If-None-Match` names this tag. A proxy that compresses may have made it weak.
fn names(known: &HeaderValue, tag: &HeaderValue) -> bool {
    let (Ok(known), Ok(tag)) = (known.to_str(), tag.to_str()) else { return false };
    known.split(',').map(|each| each.trim().trim_start_matches("W/")).any(|each| each == tag || each == "*")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_file_of_the_folder_is_served_and_what_a_file_loads_is_there() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin/page");
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let there: BTreeSet<String> =
            names.filter(|name| name != "mod.rs" && name != "index.html").map(|name| format!("/page/{name}")).collect();
        let served: BTreeSet<String> = FILES.iter().map(|file| file.path.to_owned()).filter(|path| path != "/").collect();
        assert_eq!(there, served);
        for file in FILES {
            for part in file.text.split("from \"./").skip(1).chain(file.text.split("=\"/page/").skip(1)) {
                let name = part.split('"').next().unwrap();
                assert!(served.contains(&format!("/page/{name}")), "{} loads {name}", file.path);
            }
        }
    }

    #[test]
    fn nothing_is_made_of_text_but_text_and_nothing_is_loaded_from_elsewhere() {
        for file in FILES {
            for word in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "new Function",
                "DOMParser",
                "http://",
                "https://",
            ] {
                // The name of what SVG elements are is no address.
                let text = file.text.replace("\"http://www.w3.org/2000/svg\"", "");
                assert!(!text.contains(word), "{} holds {word}", file.path);
            }
        }
    }
}
