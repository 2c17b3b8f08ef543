//! Dead letters: what somebody decides about them, how many it says that there are, and that nothing is done unasked.

use serde_json::Value;

use crate::browser::{Browser, ENTER, SPACE, TAB};
use crate::support::ledger::Ledger;
use crate::support::scripted::{Act, ScriptedBroker};
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection};
use crate::support::wait_until;

/// So many reports are dead, and the broker takes what comes now.
fn dead_letters(count: u64) -> (ScriptedBroker, Tidings, Vec<String>) {
    let broker = ScriptedBroker::start(|packet| match packet.publish() {
        Some(_) => vec![Act::Refuse(0x90)],
        None => vec![Act::Usual],
    });
    let tidings = Tidings::start(&(connection(broker.port, "workers = 1") + SOON + PIPELINES));
    let mut ledger = Ledger::default();
    (0..count).for_each(|number| ledger.post(&tidings, 2, "one", number));
    tidings.wait_for_total("dead", count);
    broker.behave();
    (broker, tidings, ledger.accepted.iter().map(|known| known.id.to_string()).collect())
}

fn shown(browser: &Browser, what: &str, ids: &[&String]) {
    let expected: Vec<String> = ids.iter().map(|id| format!("'{id}'")).collect();
    let rows = "[...document.querySelectorAll('#dead-list tbody tr')].map(row => row.dataset.key)";
    browser.wait_until(what, &format!("JSON.stringify({rows}) === JSON.stringify([{}])", expected.join(",")));
}

fn history(tidings: &Tidings, id: &str) -> Vec<Value> {
    tidings.get(&format!("/v1/deliveries/{id}")).unwrap().json()["history"].as_array().unwrap().clone()
}

#[test]
fn a_dead_letter_is_requeued_and_others_are_discarded_after_the_page_has_said_how_many() {
    let (_broker, tidings, ids) = dead_letters(5);
    let browser = Browser::open(&format!("http://{}/", tidings.address()));
    browser.wait_for_text("#dead-count", "5");
    browser.click("nav a[href='#dead']");
    shown(&browser, "all are listed, newest first", &[&ids[4], &ids[3], &ids[2], &ids[1], &ids[0]]);
    browser.wait_for_text("#dead-list tbody", "zuul/one");
    // One, by its button.
    browser.click(&format!("[data-act=requeue][data-id='{}']", ids[2]));
    browser.wait_for_text("#decide-count", "1 dead letter goes back to its lane");
    browser.picture("requeue.png");
    // Without a name nothing is done.
    browser.click("#decide-go");
    assert!(
        browser
            .run("return document.querySelector('#decide').open && !document.querySelector('#decide-by').checkValidity();")
            .as_bool()
            .unwrap()
    );
    browser.type_into("#decide-by", "anna");
    browser.type_into("#decide-reason", "the broker is mended");
    assert_eq!(tidings.total("dead"), 5);
    browser.click("#decide-go");
    browser.wait_for_text("#notices", "1 dead letter requeued");
    shown(&browser, "it is gone from the list", &[&ids[4], &ids[3], &ids[1], &ids[0]]);
    tidings.wait_for_total("acknowledged", 1);
    let requeued = history(&tidings, &ids[2]).into_iter().find(|chapter| chapter["event"] == "requeued").unwrap();
    assert_eq!(requeued["by"], "anna");
    // Two, chosen; and then given up on.
    browser.click(&format!("#dead-list input[value='{}']", ids[0]));
    browser.click(&format!("#dead-list input[value='{}']", ids[3]));
    browser.wait_for_text("#dead-selected", "2 chosen");
    browser.click("[data-chosen=discard]");
    browser.wait_for_text("#decide-count", "2 dead letters are given up for good");
    browser.click("#decide-cancel");
    assert_eq!(tidings.total("dead"), 4, "a cancelled decision does nothing");
    // Decided after all: the name is known now.
    browser.click("[data-chosen=discard]");
    browser.wait_for_text("#decide-go", "Discard 2");
    browser.click("#decide-go");
    browser.wait_for_text("#notices", "2 dead letters discarded");
    shown(&browser, "two are left", &[&ids[4], &ids[1]]);
    assert_eq!((tidings.total("discarded"), tidings.total("dead")), (2, 2));
    // All of a filter that finds none, and then all.
    browser.click("#dead-filter summary");
    browser.type_into("#dead-topic", "zuul/other");
    browser.click("#dead-form .primary");
    browser.wait_for_text("#dead-list .note", "None.");
    browser.click("[data-every=requeue]");
    browser.wait_for_text("#decide-count", "0 dead letters");
    assert!(browser.run("return document.querySelector('#decide-go').disabled;").as_bool().unwrap());
    browser.click("#decide-cancel");
    browser.click("#dead-form [type=reset]");
    shown(&browser, "two are shown again", &[&ids[4], &ids[1]]);
    browser.click("[data-every=requeue]");
    browser.wait_for_text("#decide-go", "Requeue 2");
    browser.click("#decide-go");
    shown(&browser, "none is left", &[]);
    tidings.wait_for_total("acknowledged", 3);
    tidings.assert_balanced();
    assert_eq!(browser.logged(), [""; 0]);
}

#[test]
fn a_dead_letter_is_found_read_and_requeued_by_keyboard_alone() {
    let (_broker, tidings, ids) = dead_letters(1);
    let browser = Browser::open(&format!("http://{}/#deliveries", tidings.address()));
    browser.wait_until("it is found", "document.querySelector('#deliveries-list tbody a')");
    let until = |what: &str, is_there: &str| {
        for _ in 0..60 {
            if browser.run(&format!("return document.activeElement.matches({});", serde_json::json!(is_there))) == true {
                let seen = browser.run("const style = getComputedStyle(document.activeElement); return style.outlineStyle !== 'none' && style.outlineWidth !== '0px';");
                assert_eq!(seen, true, "the focus on {what} can be seen");
                return;
            }
            browser.keys(TAB);
        }
        panic!("{what} is not reached by the tabulator");
    };
    browser.keys(TAB);
    until("the way past the head of the page", ".skip");
    browser.keys(ENTER);
    until("the delivery", "#deliveries-list tbody a");
    browser.keys(ENTER);
    browser.wait_for_text("#delivery-history", "given up after");
    until("its payload", "#payload-open");
    browser.keys(SPACE);
    browser.wait_for_text("#payload-text", "\"project\": \"one\"");
    // Back to the top of the view: the focus goes round.
    until("the decision", "#delivery-acts [data-act=requeue]");
    browser.keys(ENTER);
    browser.wait_for_text("#decide-go", "Requeue 1");
    browser.keys("otto");
    browser.keys(ENTER);
    browser.wait_for_text("#delivery-facts", "delivered");
    browser.wait_for_text("#delivery-history", "otto");
    wait_until("it is delivered", || tidings.total("acknowledged") == 1);
    assert_eq!(history(&tidings, &ids[0]).last().unwrap()["event"], "delivered");
    assert_eq!(browser.logged(), [""; 0]);
}
