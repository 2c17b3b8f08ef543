//! What somebody sees who was woken: that reports don't flow, and that they do again; and what the page says when nobody answers it.

use crate::browser::Browser;
use crate::support::ledger::Ledger;
use crate::support::mosquitto::{Mosquitto, PERSISTENT, free_port};
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection};

/// What the service itself says, as `tidings status` prints it.
fn said(tidings: &Tidings) -> String {
    tidings.command(&["status"]).1.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn an_outage_is_seen_as_it_happens_and_so_is_its_end() {
    let mut broker = Mosquitto::start(PERSISTENT);
    let tidings = Tidings::start(&(connection(broker.port, "workers = 2") + SOON + PIPELINES));
    let mut ledger = Ledger::default();
    let browser = Browser::open(&format!("http://{}/", tidings.address()));
    browser.wait_until("reports flow", "document.querySelector('#verdict').dataset.flow === 'flowing'");
    browser.wait_for_text("#verdict-why", "reports are accepted and delivered; nothing waits");
    assert!(said(&tidings).starts_with("flowing"));
    broker.stop();
    browser.wait_until("nothing flows", "document.querySelector('#verdict').dataset.flow === 'not_flowing'");
    (0..5).for_each(|number| ledger.post(&tidings, 2, "one", number));
    browser.wait_for_text("#verdict-why", "no lane of mqtt is connected to its broker; reports are accepted and kept, 5 deliveries wait");
    browser.wait_for_text("#verdict-detail", "refused");
    browser.wait_for_text("#verdict-aloud", "Not flowing. no lane of mqtt is connected");
    assert!(said(&tidings).contains("no lane of mqtt is connected to its broker; reports are accepted and kept, 5 deliveries wait"));
    let figure = |name: &str, value: &str| {
        format!(
            "[...document.querySelectorAll('.figure')].some(each => each.innerText.startsWith('{name}') && each.querySelector('dd').innerText === '{value}')"
        )
    };
    browser.wait_until("the backlog is counted", &figure("Backlog", "5"));
    browser.wait_until("the lanes say so", "document.querySelectorAll('#connections .state.good').length === 0 && document.querySelectorAll('#connections tbody tr').length === 2");
    browser.wait_for_text("#connections", "refused");
    browser.wait_until(
        "it is drawn",
        "document.querySelector('#chart-backlog rect.not_flowing') && document.querySelector('#chart-backlog path.line-0')",
    );
    browser.wait_until("the tab says so", "document.title.startsWith('✗')");
    browser.picture("outage.png");
    broker.run();
    browser.wait_until("reports flow again", "document.querySelector('#verdict').dataset.flow === 'flowing'");
    browser.wait_until("the backlog is gone", &figure("Backlog", "0"));
    browser.wait_for_text("#chart-backlog .readout", "now: 0");
    browser.wait_for_text("#connections", "Acknowledged\n5");
    browser.wait_until("it says that it is live", "document.querySelector('#live-state').dataset.live === 'true'");
    assert_eq!(browser.logged(), [""; 0]);
}

const IS_OLD: &str = "!document.querySelector('#unreachable').hidden && document.body.classList.contains('old') \
                      && document.querySelector('#verdict').dataset.flow === 'unknown'";
const IS_NEW: &str = "document.querySelector('#unreachable').hidden && !document.body.classList.contains('old') \
                      && document.querySelector('#verdict').dataset.flow === 'flowing'";

#[test]
fn old_figures_do_not_pass_for_new_ones_when_the_service_hangs_or_is_gone_and_it_goes_on_after_a_restart() {
    let broker = Mosquitto::start(PERSISTENT);
    let mut tidings = Tidings::prepare("");
    // The page looks for it where it was.
    tidings.listen = format!("127.0.0.1:{}", free_port());
    tidings.configure(&(connection(broker.port, "workers = 1") + SOON + PIPELINES));
    tidings.run();
    let mut ledger = Ledger::default();
    let browser = Browser::open(&format!("http://{}/#live", tidings.address()));
    browser.wait_until("it flows", IS_NEW);
    let live = "document.querySelector('#live-state').dataset.live === 'true'";
    browser.wait_until("it is live", live);
    (0..3).for_each(|number| ledger.post(&tidings, 2, "one", number));
    let accepted = |count: usize| {
        format!("[...document.querySelectorAll('#live-rows tr')].filter(row => row.innerText.includes('accepted')).length === {count}")
    };
    browser.wait_until("three are seen", &accepted(3));
    tidings.freeze();
    browser.wait_until("it is said that nobody answers", IS_OLD);
    browser.wait_for_text("#unreachable", "The service can't be reached: it does not answer.");
    browser.wait_for_text("#unreachable", "What is shown below is from then.");
    browser.wait_for_text("#verdict-word", "Not known");
    tidings.thaw();
    browser.wait_until("it answers again", IS_NEW);
    tidings.kill();
    browser.wait_until("it is said that nobody is there", IS_OLD);
    browser.wait_for_text("#unreachable", "nothing answers at its address");
    browser.wait_until("the tab says so", "document.title.startsWith('?')");
    browser.wait_until("it is not live", &format!("!({live})"));
    browser.picture("unreachable.png");
    tidings.run();
    browser.wait_until("it goes on by itself", IS_NEW);
    browser.wait_until("it is live again", live);
    (3..5).for_each(|number| ledger.post(&tidings, 2, "one", number));
    // It went on behind the last event: none is missing, and none came again.
    browser.wait_until("five are seen", &accepted(5));
    browser.view("overview");
    browser.wait_for_text("#connections", "Acknowledged\n5");
    assert_eq!(browser.logged(), [""; 0]);
}
