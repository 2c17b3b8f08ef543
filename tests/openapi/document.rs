//! The document has what the service has, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::described::Document;
use super::support::python::{OPENAPI, python};
use super::support::tidings::{PIPELINES, Tidings, connection};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn service() -> Tidings {
    Tidings::start(&(connection(1, "") + PIPELINES))
}

/// Every `.route("PATH", METHOD(…).METHOD(…))` of the sources.
fn routes_of_the_sources(folder: &Path, found: &mut BTreeMap<String, BTreeSet<String>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            routes_of_the_sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            // Files of a page are listed; below /page/ nothing is meant for programs.
            for path in code.split("File { path: \"").skip(1).filter_map(|file| file.split('"').next()) {
                if !path.starts_with("/page/") {
                    found.entry(path.to_owned()).or_default().insert("GET".to_owned());
                }
            }
            for call in code.split(".route(").skip(1) {
                let Some((route, rest)) = call.trim_start().strip_prefix('"').and_then(|call| call.split_once('"')) else { continue };
                // Up to the parenthesis that closes `.route(`.
                let mut depth = 1;
                let end = rest.find(|c| {
                    depth += i32::from(c == '(') - i32::from(c == ')');
                    depth == 0
                });
                let methods = found.entry(route.to_owned()).or_default();
                for method in ["get", "post", "put", "delete", "patch"] {
                    if words_before_parentheses(&rest[..end.unwrap()]).any(|word| word == method) {
                        methods.insert(method.to_uppercase());
                    }
                }
            }
        }
    }
}

/// `get(list).post(start)` → get, post.
fn words_before_parentheses(text: &str) -> impl Iterator<Item = &str> {
    text.split('(').map(|part| part.rsplit(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or_default())
}

#[test]
fn every_route_of_the_code_is_in_the_document_and_no_other() {
    let mut routes = BTreeMap::new();
    routes_of_the_sources(&root().join("src"), &mut routes);
    assert!(routes.len() >= 15, "only {routes:?} were found");
    assert_eq!(Document::of(&service()).routes(), routes);
}

#[test]
fn a_method_that_is_not_in_the_document_is_refused_with_those_that_are() {
    let service = service();
    let agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().new_agent();
    for (path, methods) in Document::of(&service).routes() {
        let url = format!("http://{}{}", service.address(), path.replace("{id}", "1"));
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"].into_iter().filter(|method| !methods.contains(*method))
        {
            let request = ureq::http::Request::builder().method(method).uri(&url).body(()).unwrap();
            let response = agent.run(request).unwrap();
            assert_eq!(response.status().as_u16(), 405, "{method} {path}");
            let allowed = response.headers().get("allow").unwrap().to_str().unwrap();
            let allowed: BTreeSet<String> = allowed.split(',').map(str::to_owned).filter(|allowed| allowed != "HEAD").collect();
            assert_eq!(allowed, methods, "{path}");
        }
    }
}

/// The codes of the table in `ops/http.md`, each with its status.
fn codes_of_the_table() -> BTreeMap<String, BTreeSet<u16>> {
    let text = fs::read_to_string(root().join("ops/http.md")).unwrap();
    let rows = text.split("## Errors").nth(1).unwrap().lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let mut codes: BTreeMap<String, BTreeSet<u16>> = BTreeMap::new();
    for (code, rest) in rows {
        if let Some(status) = rest.get(..3).and_then(|status| status.parse().ok()) {
            codes.entry(code.to_owned()).or_default().insert(status);
        }
    }
    codes
}

#[test]
fn every_error_code_of_the_table_is_in_the_document_with_its_status_and_no_other() {
    let document = Document::of(&service());
    let mut described: BTreeMap<String, BTreeSet<u16>> = BTreeMap::new();
    for operation in document.operations() {
        for (status, response) in document.responses(&operation) {
            let codes = document.codes(response);
            let where_ = format!("{} {} {status}", operation.method, operation.path);
            // The two that say how the service is are no errors.
            assert!(
                status < 400 || !codes.is_empty() || ["/healthz", "/readyz"].contains(&operation.path.as_str()),
                "{where_} has no codes"
            );
            assert!(
                codes.iter().all(|code| code != "not_found" && code != "method_not_allowed"),
                "{where_}: what is no route has no operation"
            );
            for code in codes {
                described.entry(code).or_default().insert(status);
            }
        }
    }
    let mut table = codes_of_the_table();
    table.remove("not_found");
    table.remove("method_not_allowed");
    // A second status, of which the table speaks in words.
    table.entry("forbidden_origin".to_owned()).or_default().insert(400);
    assert_eq!(described, table);
}

#[test]
fn what_holds_for_every_route_is_said_of_every_route() {
    let document = Document::of(&service());
    for operation in document.operations() {
        let where_ = format!("{} {}", operation.method, operation.path);
        let responses = document.responses(&operation);
        let codes = |status: u16| responses.get(&status).map(|response| document.codes(response)).unwrap_or_default();
        for (status, code) in
            [(400, "invalid_host"), (400, "forbidden_origin"), (403, "forbidden_host"), (403, "forbidden_origin"), (500, "internal")]
        {
            assert!(codes(status).iter().any(|known| known == code), "{where_} can be answered with {status} {code}");
        }
        assert_eq!(codes(401).is_empty(), operation.is_public(), "{where_}: 401 where a token may be asked for");
        assert_eq!(codes(429).is_empty(), operation.is_public(), "{where_}: 429 where a token may be asked for");
        assert_eq!(
            codes(403).iter().any(|code| code == "forbidden"),
            !operation.is_public(),
            "{where_}: forbidden where a token may be asked for"
        );
        for (status, response) in &responses {
            assert_eq!([429, 503].contains(status), document.brings(response, "Retry-After"), "{where_} {status}: Retry-After");
            assert_eq!(*status == 401, document.brings(response, "WWW-Authenticate"), "{where_} {status}: WWW-Authenticate");
        }
    }
}

#[test]
fn every_route_of_the_document_stands_in_the_table_of_http_md() {
    let text = fs::read_to_string(root().join("ops/http.md")).unwrap();
    for (path, methods) in Document::of(&service()).routes() {
        for method in methods {
            assert!(text.contains(&format!("`{method} {path}`")), "ops/http.md has no `{method} {path}`");
        }
    }
}

#[test]
fn it_is_an_openapi_document_with_every_part_that_there_is() {
    let interpreter = python(OPENAPI);
    let folder = tempfile::tempdir().unwrap();
    let served = folder.path().join("openapi.json");
    fs::write(&served, Document::of(&service()).text()).unwrap();
    // Also with the parts whose routes are not there yet.
    let script = r"
import json, pathlib, sys
from openapi_spec_validator import validate
def once(pairs):
    assert len(dict(pairs)) == len(pairs), f'given twice: {[name for name, _ in pairs]}'
    return dict(pairs)
whole = json.load(open(sys.argv[1]))
validate(whole)
for part in sorted(pathlib.Path(sys.argv[2]).glob('*.json')):
    part = json.loads(part.read_text(), object_pairs_hook=once)
    whole['paths'].update(part.get('paths', {}))
    for kind, members in part.get('components', {}).items():
        whole['components'].setdefault(kind, {}).update(members)
validate(whole)
";
    let checked = Command::new(interpreter).args(["-c", script]).arg(&served).arg(root().join("src/admin/openapi")).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}
