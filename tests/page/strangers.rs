//! Reports are whatever somebody sent. What is a script to a browser is text on the page, and would not run if it were not.

use serde_json::{Value, json};

use crate::browser::Browser;
use crate::support::scripted::{Act, ScriptedBroker};
use crate::support::tidings::{SOON, Tidings, connection};

/// Wherever one of these is taken for markup, it says so.
const SCRIPTS: [&str; 4] = [
    "<img src=x onerror=\"window.canary='img'\">",
    "<script>window.canary='script'</script>",
    "\"><svg onload=\"window.canary='svg'\">",
    "<a href=\"javascript:window.canary='link'\" autofocus onfocus=\"window.canary='focus'\">here</a>",
];

/// What reads like another word, or hides.
const TURNED: &str = "main\u{202e}gnp.exe";

const PIPELINES: &str = r#"
[[pipeline]]
name = "check"
success.mqtt = { topic = "zuul/{project}", qos = 2 }
failure.mqtt = { topic = "zuul/{project}", qos = 1 }
"#;

fn report(action: &str, number: usize) -> String {
    let script = SCRIPTS[number % SCRIPTS.len()];
    let build = json!({ "job_name": script, "voting": true, "uuid": "u", "result": script, "log_url": script });
    json!({
        "action": action, "tenant": script, "pipeline": "check", "project": script, "branch": TURNED, "change": format!("{number}{script}"),
        "message": script, "change_url": script, "patchset": "1", "ref": script, "zuul_ref": "Z", "buildset": { "uuid": "b", "builds": [build] },
    })
    .to_string()
}

/// Nothing has run, nothing has become an element, and the browser has complained of nothing.
#[track_caller]
fn assert_harmless(browser: &Browser, place: &str) {
    assert_eq!(browser.run("return window.canary ?? null;"), Value::Null, "a report has run: {place}");
    let strange = browser.run(
        "return [...document.querySelectorAll('img, iframe, script:not([src=\"/page/main.js\"]), svg[onload], [onerror], [onfocus], [autofocus], a:not([href^=\"#\"])')]
            .map(each => each.outerHTML);",
    );
    assert_eq!(strange, json!([]), "a report has become a part of the page: {place}");
    assert_eq!(browser.logged(), [""; 0], "{place}");
}

#[test]
fn a_report_that_is_a_script_is_shown_as_text_everywhere_and_runs_nowhere() {
    let broker = ScriptedBroker::start(|packet| match packet.publish() {
        Some(publish) if publish.qos == 2 => vec![Act::Refuse(0x90)],
        _ => vec![Act::Usual],
    });
    let tidings = Tidings::start(&(connection(broker.port, "workers = 1") + SOON + PIPELINES));
    let browser = Browser::open(&format!("http://{}/#live", tidings.address()));
    browser.wait_until("it is live", "document.querySelector('#live-state').dataset.live === 'true'");
    for number in 0..SCRIPTS.len() {
        for action in ["success", "failure"] {
            assert_eq!(tidings.post("/v1/reports", &report(action, number)).unwrap().status, 202);
        }
    }
    tidings.wait_for_total("dead", SCRIPTS.len() as u64);
    tidings.wait_for_total("acknowledged", SCRIPTS.len() as u64);
    browser.wait_until(
        "they are seen live",
        "[...document.querySelectorAll('#live-rows tr')].filter(row => row.innerText.includes('dead')).length === 4",
    );
    browser.wait_for_text("#live-rows", SCRIPTS[0]);
    assert_harmless(&browser, "live");
    for view in ["dead", "deliveries", "overview"] {
        browser.view(view);
        if view != "overview" {
            browser.wait_for_text(&format!("#{view}-list tbody"), SCRIPTS[1]);
        }
        assert_harmless(&browser, view);
    }
    // Each by itself, with its payload; also in the question what is to be done with it.
    let rows = tidings.get("/v1/deliveries?state=dead").unwrap().json();
    for row in rows["deliveries"].as_array().unwrap() {
        browser.view(&format!("delivery/{}", row["id"].as_str().unwrap()));
        browser.wait_for_text("#delivery-facts", row["topic"].as_str().unwrap());
        browser.click("#payload-open");
        browser.wait_for_text("#payload-text", "\"buildset\": {");
        assert_harmless(&browser, "a delivery");
    }
    browser.wait_for_text("#payload-text", "\\u{202e}");
    // What stands in the address is a stranger's, too: a link may have led here.
    for address in [format!("delivery/{}", SCRIPTS[0]), format!("dead?topic={}", SCRIPTS[2]), format!("{}?{}", SCRIPTS[1], SCRIPTS[1])] {
        browser.view(&address);
        assert_harmless(&browser, &address);
    }
    browser.view("dead");
    browser.run("document.querySelector('#dead-filter').open = true;");
    browser.type_into("#dead-tenant", SCRIPTS[0]);
    browser.click("#dead-form .primary");
    browser.wait_until("one is found", "document.querySelectorAll('#dead-list tbody tr').length === 1");
    browser.click("[data-every=discard]");
    browser.wait_for_text("#decide-which", SCRIPTS[0]);
    browser.wait_for_text("#decide-count", "1 dead letter is given up");
    assert_harmless(&browser, "a decision");
}

#[test]
fn what_got_into_the_page_all_the_same_would_not_run() {
    let tidings = Tidings::start(&(connection(crate::support::mosquitto::free_port(), "") + PIPELINES));
    let browser = Browser::open(&format!("http://{}/", tidings.address()));
    let policy = browser.wait_for("return (await fetch('/')).headers.get('content-security-policy');");
    for part in [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ] {
        assert!(policy.as_str().unwrap().split("; ").any(|each| each == part), "{part} is missing: {policy}");
    }
    let tries = [
        "document.body.innerHTML += `<img src=x onerror=\"window.canary=1\">`",
        "const s = document.createElement('script'); s.textContent = 'window.canary=1'; document.body.append(s)",
        "const a = document.createElement('img'); a.setAttribute('onerror', 'window.canary=1'); a.src = 'x'; document.body.append(a)",
        "location.href = 'javascript:window.canary=1'",
        "const f = document.createElement('iframe'); f.srcdoc = '<script>parent.canary=1</script>'; document.body.append(f)",
        "setTimeout('window.canary=1', 0)",
    ];
    for script in tries {
        browser.run(&format!("try {{ {script} }} catch {{ }}"));
    }
    // A timer that was set afterwards comes after what those would have done.
    browser.wait_for("await new Promise(done => setTimeout(done, 200));");
    assert_eq!(browser.run("return window.canary ?? null;"), Value::Null);
}
