//! Tokens and roles: the page asks for one when it needs one, keeps it for the tab alone, and says what another would allow.

use std::net::SocketAddr;

use serde_json::json;

use crate::browser::Browser;
use crate::door::{Asked, Door};
use crate::support::mosquitto::{Mosquitto, PERSISTENT};
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection};

/// Asks for a token as the service does where tokens are configured: `reader` looks, `boss` decides. What the boss decides it answers by itself, because the
/// service behind it knows of no token, and would ask for a name.
fn door(service: SocketAddr) -> Door {
    Door::before(service, |asked: &Asked| {
        let error =
            |status: u16, code: &str, message: &str| Some((status, json!({ "error": { "code": code, "message": message } }).to_string()));
        match asked.header("authorization") {
            _ if !asked.path.starts_with("/v1/") => None,
            Some("Bearer boss") if asked.method == "POST" => {
                let counted = json!({ "done": 0, "ids": [], "remaining": 0, "in_flight": 0, "skipped": [], "dry_run": true });
                Some((200, counted.to_string()))
            }
            Some("Bearer boss") => None,
            Some("Bearer reader") if asked.method == "GET" => None,
            Some("Bearer reader") => error(403, "forbidden", "the token reader has the role read, and this needs admin"),
            _ => error(401, "unauthorized", "this service asks for a token"),
        }
    })
}

const FLOWS: &str = "document.querySelector('#verdict').dataset.flow === 'flowing' && document.querySelector('#unreachable').hidden";
const ASKS: &str = "document.querySelector('#token').open";

fn give(browser: &Browser, token: &str) {
    browser.run("document.querySelector('#token-text').value = '';");
    browser.type_into("#token-text", token);
    browser.click("#token-form .primary");
}

#[test]
fn a_token_is_asked_for_refused_taken_kept_for_the_tab_and_forgotten() {
    let broker = Mosquitto::start(PERSISTENT);
    let tidings = Tidings::start(&(connection(broker.port, "workers = 1") + SOON + PIPELINES));
    let door = door(tidings.address());
    let browser = Browser::open(&door.url());
    browser.wait_until("it asks", ASKS);
    browser.wait_for_text("#token-why", "This service asks for a token.");
    browser.wait_for_text("#verdict-word", "Not known");
    give(&browser, "wrong");
    browser.wait_for_text("#token-why", "does not take this token");
    give(&browser, "nöt ascii");
    browser.wait_for_text("#token-error", "visible ASCII");
    give(&browser, "reader");
    browser.wait_until("it flows", FLOWS);
    browser.wait_until("events come", "document.querySelector('#live-state').dataset.live === 'true'");
    assert_eq!(browser.run("return document.querySelector('#token').open;"), false);
    assert_eq!(browser.run("return location.href.includes('reader') || document.documentElement.outerHTML.includes('reader');"), false);
    // Whoever may only look is told what is needed to decide.
    browser.view("dead");
    browser.click("[data-every=requeue]");
    browser.wait_for_text("#decide-error", "the token reader has the role read, and this needs admin");
    assert!(browser.run("return document.querySelector('#decide-go').disabled;").as_bool().unwrap());
    browser.click("#decide-cancel");
    browser.reload();
    browser.wait_until("it is kept", FLOWS);
    browser.click("#token-open");
    give(&browser, "boss");
    browser.wait_until("it flows", FLOWS);
    browser.click("[data-every=requeue]");
    browser.wait_for_text("#decide-count", "0 dead letters");
    browser.wait_for_text("#decide-by-hint", "optional");
    let posted = door.asked("POST", "/v1/dead/requeue");
    assert_eq!(posted.last().unwrap().body, r#"{"filter":{},"dry_run":true}"#, "the token's name stands for whoever has it");
    browser.click("#decide-cancel");
    browser.click("#token-open");
    browser.click("#token-forget");
    browser.wait_until("it asks again", ASKS);
    assert_eq!(
        browser.run("return sessionStorage.getItem('tidings-token') === null && localStorage.length === 0 && document.cookie === '';"),
        true
    );
    assert_eq!(browser.logged(), [""; 0]);
}
