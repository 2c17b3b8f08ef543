//! Narrow screens, light and dark, and what a browser is given.

use serde_json::{Value, json};

use crate::browser::Browser;
use crate::support::ledger::report;
use crate::support::scripted::{Act, ScriptedBroker};
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection};

const VIEWS: [&str; 6] = ["overview", "dead", "deliveries", "replays", "live", "delivery/"];

/// Words that no line can be broken in.
fn long(letter: &str) -> String {
    letter.repeat(180)
}

#[test]
fn nothing_leaves_a_narrow_screen_and_every_text_can_be_read_in_light_and_dark() {
    let broker = ScriptedBroker::start(|packet| match packet.publish() {
        Some(_) => vec![Act::Refuse(0x90)],
        None => vec![Act::Usual],
    });
    let tidings = Tidings::start(&(connection(broker.port, "workers = 4") + SOON + PIPELINES));
    let browser = Browser::open(&format!("http://{}/", tidings.address()));
    browser.wait_until("it is live", "document.querySelector('#live-state').dataset.live === 'true'");
    for number in 0..4 {
        assert_eq!(tidings.post("/v1/reports", &report("success", &long("p"), number)).unwrap().status, 202);
    }
    tidings.wait_for_total("dead", 4);
    let id = tidings.get("/v1/deliveries").unwrap().json()["deliveries"][0]["id"].as_str().unwrap().to_owned();
    broker.change(|_| vec![Act::Close]);
    broker.hang_up();
    browser.wait_until("nothing flows", "document.querySelector('#verdict').dataset.flow === 'not_flowing'");
    for (width, height) in [(360, 740), (768, 1_024), (1_280, 900)] {
        browser.resize(width, height);
        for view in VIEWS {
            browser.view(&if view == "delivery/" { format!("{view}{id}") } else { view.to_owned() });
            let shown = match view {
                "overview" => "document.querySelector('#chart-rates svg')",
                "dead" | "deliveries" => "document.querySelectorAll(`section[data-view]:not([hidden]) tbody tr`).length === 4",
                "live" => "document.querySelectorAll('#live-rows tr').length > 4",
                "replays" => "document.querySelector('#replay-form').checkVisibility()",
                _ => "document.querySelectorAll('#delivery-history li').length === 2",
            };
            browser.wait_until(view, shown);
            if view == "delivery/" {
                browser.click("#payload-open");
                browser.wait_for_text("#payload-text", "ppp");
            }
            let wide = browser.run(&format!(
                "return document.documentElement.scrollWidth <= {width} ? [] : [...document.querySelectorAll('body *')]
                    .filter(each => each.getBoundingClientRect().right > {width}).map(each => each.outerHTML.slice(0, 200));"
            ));
            assert_eq!(wide, json!([]), "{view} at {width}");
            for scheme in ["light", "dark"] {
                browser.prefer(scheme);
                assert_eq!(browser.run(CONTRAST), json!([]), "{view} in {scheme}: what can hardly be read");
                browser.picture(&format!("{}-{width}-{scheme}.png", view.trim_end_matches('/')));
            }
        }
    }
    browser.resize(360, 740);
    browser.view("dead");
    browser.click("[data-every=discard]");
    browser.wait_for_text("#decide-go", "Discard 4");
    assert_eq!(
        browser.run("const box = document.querySelector('#decide').getBoundingClientRect(); return box.left >= 0 && box.right <= 360;"),
        true
    );
    browser.picture("decide-360.png");
    assert_eq!(browser.logged(), [""; 0]);
}

/// Texts whose contrast with their ground is below 4.5 : 1 (WCAG 2.2, 1.4.3), but for what can't be used now.
const CONTRAST: &str = r#"
    const read = (color) => { const [r, g, b, a = 1] = color.match(/[\d.]+/g).map(Number); return { r, g, b, a }; };
    const light = ({ r, g, b }) => [r, g, b].map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4).reduce((sum, v, at) => sum + v * [.2126, .7152, .0722][at], 0);
    const ground = (node) => { for (let each = node; each; each = each.parentElement) { const color = read(getComputedStyle(each).backgroundColor); if (color.a > 0) return color; } return { r: 255, g: 255, b: 255 }; };
    const poor = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const node = walker.currentNode.parentElement;
        if (walker.currentNode.data.trim() === '' || !node.checkVisibility({ visibilityProperty: true }) || node.closest('.unseen, .skip, :disabled, option, noscript, script, style')) continue;
        const style = getComputedStyle(node);
        const [one, two] = [light(read(node.namespaceURI.endsWith('svg') ? style.fill : style.color)), light(ground(node))];
        const contrast = (Math.max(one, two) + .05) / (Math.min(one, two) + .05);
        if (contrast < 4.5) poor.push(`${contrast.toFixed(2)}: ${node.nodeName} ${node.className} ${walker.currentNode.data.trim().slice(0, 40)}`);
    }
    return poor;
"#;

#[test]
fn the_page_asks_nobody_else_and_what_has_not_changed_is_not_sent_again() {
    let broker = ScriptedBroker::usual();
    let tidings = Tidings::start(&(connection(broker.port, "") + PIPELINES));
    let origin = format!("http://{}", tidings.address());
    let browser = Browser::open(&format!("{origin}/"));
    browser.wait_until(
        "it is there",
        "document.querySelector('#chart-rates svg') && document.querySelector('#live-state').dataset.live === 'true'",
    );
    let asked = browser.run("return performance.getEntriesByType('resource').map(each => each.name);");
    let elsewhere: Vec<&Value> = asked
        .as_array()
        .unwrap()
        .iter()
        .filter(|name| !name.as_str().unwrap().starts_with(&origin) && !name.as_str().unwrap().starts_with("data:"))
        .collect();
    assert!(elsewhere.is_empty() && asked.as_array().unwrap().len() > 10, "{asked}");
    let files = browser.run("return ['/', ...performance.getEntriesByType('resource').map(each => new URL(each.name).pathname).filter(path => path.startsWith('/page/'))];");
    for path in files.as_array().unwrap().iter().map(|path| path.as_str().unwrap()) {
        let head = |more: &str| {
            let asked = format!("const answer = await fetch({}, {{ cache: 'no-store', headers: {more} }});", json!(path));
            browser.wait_for(&format!("{asked} return [answer.status, Object.fromEntries(answer.headers), (await answer.text()).length];"))
        };
        let first = head("{}");
        let headers = &first[1];
        let kind = if path.ends_with(".js") {
            "text/javascript; charset=utf-8"
        } else if path.ends_with(".css") {
            "text/css; charset=utf-8"
        } else {
            "text/html; charset=utf-8"
        };
        assert_eq!((&first[0], headers["content-type"].as_str()), (&json!(200), Some(kind)), "{path}");
        assert_eq!((&headers["x-content-type-options"], &headers["referrer-policy"]), (&json!("nosniff"), &json!("no-referrer")), "{path}");
        assert!(headers["content-security-policy"].as_str().unwrap().starts_with("default-src 'none'; script-src 'self'"), "{path}");
        let again = head(&json!({ "If-None-Match": headers["etag"] }).to_string());
        assert_eq!((&again[0], &again[2]), (&json!(304), &json!(0)), "{path}");
        assert_eq!(head(&json!({ "If-None-Match": "\"0000000000000000\"" }).to_string())[0], json!(200), "{path}");
    }
    assert_eq!(browser.logged(), [""; 0]);
}
