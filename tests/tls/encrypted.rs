//! What works, and how it is taken up when it is renewed.

use std::time::{SystemTime, UNIX_EPOCH};

use openssl::dh::Dh;

use crate::bridge::{Bridge, Manners};
use crate::certificates::{LOCAL, Wanted};
use crate::setup::{Broker, Site, assert_delivers};
use crate::support::ledger::{Ledger, report};
use crate::support::tidings::Tidings;
use crate::support::wait_until;

const MUTUAL: &str = "require_certificate true\ncafile @/ca.pem\n";
const IDENTITY: &str = "certfile = \"@/client.pem\"\nkeyfile = \"@/client.key\"\n";

const CLIENT: Wanted<'static> = Wanted { name: "tidings", hosts: &[], days: (-1, 30) };

#[test]
fn reports_arrive_over_tls_with_an_authority_alone() {
    let site = Site::new();
    let broker = site.broker("");
    for (protocol, shown) in [("5", "MQTT 5 over TLSv1.3 with TLS_AES_256_GCM_SHA384"), ("3.1.1", "MQTT 3.1.1 over TLSv1.3 with")] {
        let said = assert_delivers(&broker, &site.connection(&format!("protocol = \"{protocol}\"")));
        assert!(said.contains(shown), "{said}");
    }
}

#[test]
fn reports_arrive_where_both_sides_show_a_certificate() {
    let site = Site::new();
    site.write(&site.authority.issue(&CLIENT), "client");
    let broker = site.broker(MUTUAL);
    for protocol in ["5", "3.1.1"] {
        assert_delivers(&broker, &site.connection(&format!("protocol = \"{protocol}\"\n{IDENTITY}")));
    }
}

#[test]
fn the_brokers_certificate_may_be_for_its_host_name_or_for_either_kind_of_address() {
    let site = Site::new();
    // The listener is on 127.0.0.1; the names lead there.
    let broker = site.broker("");
    for server in ["localhost", "127.0.0.1"] {
        let config = site.connection_to(&format!("server = \"{server}\"\nport = {}\nca_certs = \"@/ca.pem\"", site.port));
        assert_delivers(&broker, &config);
    }
}

#[test]
fn a_folder_of_authorities_is_as_good_as_a_file() {
    let site = Site::new();
    std::fs::create_dir(site.path("authorities")).unwrap();
    site.authority.write(&site.path("authorities/own.crt"));
    let broker = site.broker("");
    let config = site.connection_to(&format!("server = \"127.0.0.1\"\nport = {}\nca_certs = \"@/authorities\"", site.port));
    assert_delivers(&broker, &config);
}

#[test]
fn the_cipher_list_chooses_what_tls_1_2_encrypts_with() {
    let site = Site::new();
    site.write(&site.authority.issue_rsa(&LOCAL), "broker");
    std::fs::write(site.path("dh.pem"), Dh::get_2048_256().unwrap().params_to_pem().unwrap()).unwrap();
    let broker = site.broker_of_tls_1_2("tls_version tlsv1.2\ndhparamfile @/dh.pem\n");
    let said = assert_delivers(&broker, &site.connection("ciphers = \"DHE+AESGCM\""));
    assert!(said.contains("over TLSv1.2 with DHE-RSA-AES256-GCM-SHA384"), "{said}");
    let said = assert_delivers(&broker, &site.connection("ciphers = \"ECDHE-RSA-AES128-SHA256\""));
    assert!(said.contains("over TLSv1.2 with ECDHE-RSA-AES128-SHA256"), "{said}");
}

#[test]
fn the_cipher_list_does_not_govern_tls_1_3_as_in_pythons_ssl() {
    let site = Site::new();
    let broker = site.broker("tls_version tlsv1.3\n");
    let said = assert_delivers(&broker, &site.connection("ciphers = \"DHE+AESGCM\""));
    assert!(said.contains("over TLSv1.3"), "{said}");
}

#[test]
fn certificates_that_were_renewed_on_disk_are_used_at_the_next_connect() {
    let site = Site::new();
    let short = Wanted { days: (-2, -1), ..CLIENT };
    site.write(&site.authority.issue(&short), "client");
    let broker = site.broker(MUTUAL);
    let tidings = Tidings::start(&site.connection(IDENTITY));
    let mut ledger = Ledger::default();
    ledger.post(&tidings, 2, "widgets", 1);
    wait_until("the broker refuses what has expired", || !tidings.logged("does not take the client's certificate").is_empty());
    // Half-way through the renewal the files don't fit.
    let renewed = site.authority.issue(&CLIENT);
    std::fs::write(site.path("client.pem"), renewed.certificate.to_pem().unwrap()).unwrap();
    wait_until("it is said which file does not fit", || !tidings.logged("is not the key of the certificate in").is_empty());
    assert_eq!(broker.subscriber.count(), 0);
    site.write(&renewed, "client");
    tidings.wait_until_delivered();
    wait_until("it arrives", || ledger.is_complete(&broker.subscriber.arrivals()));
    ledger.assert_kept(&broker.subscriber.arrivals());
    // The broker's was seen at the handshake, and is good for a month.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let ends = tidings.metric("tidings_certificate_expiry_timestamp_seconds{name=\"mqtt\",option=\"server\",place=\"connection\"}");
    assert!((29.0..31.0).contains(&((ends - now) / 86_400.0)), "{ends}");
}

/// Large reports at every QoS, to a broker that reads nothing for a while: what waits is written in pieces, and read meanwhile.
fn assert_large_reports_arrive(broker: &Broker, config: &str) {
    let tidings = Tidings::start(config);
    let mut ledger = Ledger::default();
    let large = |number: u64| {
        let action = ["start", "failure", "success"][number as usize % 3];
        let padding = format!("{{\"padding\":\"{}\",", "x".repeat(150_000));
        report(action, &format!("widgets-{}", number % 3), number).replacen('{', &padding, 1)
    };
    ledger.post(&tidings, 2, "first", 0);
    tidings.wait_until_delivered();
    broker.mosquitto.freeze();
    for batch in 0..3 {
        ledger.post_many(&tidings.client(), &(0..20).map(|number| large(20 * batch + number)).collect::<Vec<_>>());
    }
    let in_flight = || tidings.status("mqtt")["lanes"][0]["in_flight"].as_u64().unwrap();
    wait_until("reports are on their way", || in_flight() >= 20);
    broker.mosquitto.thaw();
    tidings.wait_until_delivered();
    wait_until("the reports arrive", || ledger.is_complete(&broker.subscriber.arrivals()));
    ledger.assert_kept_in_any_order(&broker.subscriber.arrivals());
    assert!(tidings.logged("no connection to the broker").is_empty());
}

#[test]
fn large_reports_arrive_over_tls_after_the_broker_has_paused() {
    let site = Site::new();
    let broker = site.broker("");
    assert_large_reports_arrive(&broker, &site.connection(""));
}

#[test]
fn large_reports_arrive_over_websocket_and_tls_after_the_broker_has_paused() {
    let (site, broker) = (Site::new(), Broker::start(""));
    let bridge = Bridge::start(broker.port(), Some(&site), Manners::Usual);
    let lines = format!("server = \"wss://127.0.0.1:{}\"\nca_certs = \"@/ca.pem\"", bridge.port);
    assert_large_reports_arrive(&broker, &site.connection_to(&lines));
}
