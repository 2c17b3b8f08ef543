//! WebSocket and Unix sockets.

use std::sync::atomic::Ordering;

use crate::bridge::{Bridge, Manners};
use crate::certificates::Authority;
use crate::setup::{Broker, Site, assert_delivers, assert_says};
use crate::support::wait_until;

fn at(site: &Site, address: &str, lines: &str) -> String {
    site.connection_to(&format!("server = \"{address}\"\n{lines}"))
}

#[test]
fn reports_arrive_over_websocket_in_whatever_pieces_and_pings_are_answered() {
    let (site, broker) = (Site::new(), Broker::start(""));
    let bridge = Bridge::start(broker.port(), None, Manners::Usual);
    for protocol in ["5", "3.1.1"] {
        let address = format!("ws://127.0.0.1:{}", bridge.port);
        assert_delivers(&broker, &at(&site, &address, &format!("protocol = \"{protocol}\"")));
    }
    wait_until("pings are answered", || bridge.pongs.load(Ordering::Relaxed) > 10);
}

#[test]
fn reports_arrive_over_websocket_and_tls() {
    let (site, broker) = (Site::new(), Broker::start(""));
    let bridge = Bridge::start(broker.port(), Some(&site), Manners::Usual);
    let address = format!("wss://localhost:{}/mqtt", bridge.port);
    let said = assert_delivers(&broker, &at(&site, &address, "ca_certs = \"@/ca.pem\""));
    assert!(said.contains(&format!("to {address}: ok: MQTT 5 over TLSv1.3")), "{said}");
    Authority::new("another").write(&site.path("ca.pem"));
    assert_says(&at(&site, &address, "ca_certs = \"@/ca.pem\""), "was not issued by an authority in `ca_certs`");
}

#[test]
fn a_path_without_websocket_a_server_without_mqtt_and_text_are_named() {
    let (site, broker) = (Site::new(), Broker::start(""));
    let start = |manners| Bridge::start(broker.port(), None, manners);
    let address = |bridge: &Bridge, path: &str| at(&site, &format!("ws://127.0.0.1:{}{path}", bridge.port), "");
    let bridge = start(Manners::Usual);
    assert_says(&address(&bridge, "/other"), "the server answers HTTP 404 and not with WebSocket: look at host, port and path of `server`");
    let bridge = start(Manners::NoSubprotocol);
    assert_says(&address(&bridge, ""), "does not agree on the WebSocket subprotocol `mqtt`: look at the path of `server`");
    let bridge = start(Manners::Text);
    assert_says(&address(&bridge, ""), "a text frame arrived, where MQTT has binary ones");
    // A broker that speaks MQTT itself.
    let config = at(&site, &format!("ws://127.0.0.1:{}", broker.port()), "");
    assert_says(&config, "the WebSocket upgrade failed (");
}

#[test]
fn reports_arrive_by_a_unix_socket() {
    let site = Site::new();
    let socket = site.path("m.sock");
    let config = at(&site, &format!("unix:{}", socket.display()), "");
    assert_says(&config, "look at `server`, at the rights of the file, and whether the broker runs");
    let broker = Broker::start(&format!("listener 0 {}\n", socket.display()));
    wait_until("the socket is there", || socket.exists());
    assert_delivers(&broker, &config);
}
