//! What doesn't work, and the option that is named.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::certificates::{Authority, LOCAL, Wanted};
use crate::setup::{Site, assert_refused, assert_says};
use crate::support::mosquitto::Mosquitto;

const MUTUAL: &str = "require_certificate true\ncafile @/ca.pem\n";

/// A server that reads a little, answers this to everybody, and closes.
fn server_that_says(words: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // It ends with the test's process.
    std::thread::spawn(move || {
        let answer = |mut stream: TcpStream| {
            let _ = stream
                .read(&mut [0; 1_024])
                .and_then(|_| stream.write_all(words))
                .and_then(|()| stream.shutdown(std::net::Shutdown::Write));
            // Until the other side has closed, too: what it sent would reset the connection before it has read.
            let _ = stream.read_to_end(&mut Vec::new());
        };
        listener.incoming().map_while(Result::ok).for_each(|stream| drop(std::thread::spawn(move || answer(stream))));
    });
    port
}

fn without_tls(site: &Site, port: u16) -> String {
    site.connection_to(&format!("server = \"127.0.0.1\"\nport = {port}"))
}

#[test]
fn a_certificate_of_another_authority_names_ca_certs() {
    let site = Site::new();
    let _broker = site.broker("");
    // Also one that calls itself the same.
    for name in ["another", "authority"] {
        Authority::new(name).write(&site.path("ca.pem"));
        assert_says(&site.connection(""), "(CN=broker) was not issued by an authority in `ca_certs`");
    }
}

#[test]
fn a_certificate_for_another_host_names_server_and_whom_it_is_for() {
    let site = Site::new();
    let other = Wanted { hosts: &["broker.example.com", "192.0.2.1"], ..LOCAL };
    site.write(&site.authority.issue(&other), "broker");
    let _broker = site.broker("");
    let said = |host: &str| {
        format!(
            "the broker's certificate is for broker.example.com, 192.0.2.1, and not for {host}: `server` has to be a name that it is for"
        )
    };
    assert_says(&site.connection(""), &said("127.0.0.1"));
    let by_name = site.connection_to(&format!("server = \"localhost\"\nport = {}\nca_certs = \"@/ca.pem\"", site.port));
    assert_says(&by_name, &said("localhost"));
}

#[test]
fn a_certificate_out_of_its_time_says_so() {
    for (days, text) in [((-20, -10), "(CN=broker), has expired on "), ((10, 20), "(CN=broker), is not valid before ")] {
        let site = Site::new();
        site.write(&site.authority.issue(&Wanted { days, ..LOCAL }), "broker");
        let _broker = site.broker("");
        assert_says(&site.connection(""), text);
    }
}

#[test]
fn a_client_without_a_certificate_is_told_to_set_certfile() {
    let missing = "the broker wants a client's certificate: set `certfile` and `keyfile`";
    for start in [Site::broker, Site::broker_of_tls_1_2] {
        let site = Site::new();
        let _broker = start(&site, MUTUAL);
        assert_says(&site.connection(""), missing);
    }
}

#[test]
fn a_client_whose_certificate_the_broker_does_not_take_is_told_to_look_at_it() {
    for start in [Site::broker, Site::broker_of_tls_1_2] {
        let site = Site::new();
        let _broker = start(&site, MUTUAL);
        site.write(&Authority::new("another").issue(&LOCAL), "client");
        let config = site.connection("certfile = \"@/client.pem\"\nkeyfile = \"@/client.key\"");
        assert_says(&config, "the broker does not take the client's certificate (");
    }
}

#[test]
fn an_encrypted_key_is_named_as_such() {
    let site = Site::new();
    let client = site.authority.issue(&LOCAL);
    site.write(&client, "client");
    client.write_encrypted(&site.path("client.key"));
    let config = site.connection("certfile = \"@/client.pem\"\nkeyfile = \"@/client.key\"");
    assert_refused(&config, "client.key is encrypted; Tidings has nobody to ask for its passphrase: decrypt it with `openssl pkey`");
}

#[test]
fn a_cipher_that_the_broker_does_not_share_names_ciphers() {
    let site = Site::new();
    let _broker = site.broker_of_tls_1_2("ciphers ECDHE-ECDSA-AES256-GCM-SHA384\n");
    assert_says(&site.connection("ciphers = \"ECDHE-ECDSA-CHACHA20-POLY1305\""), "no cipher in common with `ciphers`");
    assert_refused(&site.connection("ciphers = \"NO-SUCH\""), "connection.mqtt.ciphers: OpenSSL can select no cipher by this list");
}

#[test]
fn a_broker_in_the_clear_on_the_port_of_tls_names_port_and_ca_certs() {
    let site = Site::new();
    let mosquitto = Mosquitto::start("");
    let config = site.connection_to(&format!("server = \"127.0.0.1\"\nport = {}\nca_certs = \"@/ca.pem\"", mosquitto.port));
    assert_says(&config, "what answers there does not speak TLS (");
}

#[test]
fn a_broker_with_tls_that_is_spoken_to_in_the_clear_names_ca_certs() {
    let site = Site::new();
    let _broker = site.broker("");
    assert_says(&without_tls(&site, site.port), "`ca_certs`");
    // An alert, as other servers send it: protocol_version.
    let port = server_that_says(&[21, 3, 1, 0, 2, 2, 70]);
    assert_says(&without_tls(&site, port), "that is an alert of TLS: set `ca_certs`, or look at `port`");
}

#[test]
fn garbage_on_the_port_is_named_as_what_it_is() {
    let site = Site::new();
    let port = server_that_says(b"SSH-2.0-OpenSSH_9.2\r\n");
    assert_says(&without_tls(&site, port), "what it sent is no MQTT packet: look at `port`");
    let chatty =
        server_that_says(b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\nBad Request");
    assert_says(&without_tls(&site, chatty), "the broker sent ");
    let config = site.connection_to(&format!("server = \"127.0.0.1\"\nport = {port}\nca_certs = \"@/ca.pem\""));
    assert_says(&config, "what answers there does not speak TLS (");
}

#[test]
fn nobody_on_the_port_and_a_name_that_is_not_known_name_server_and_port() {
    let site = Site::new();
    assert_says(&site.connection(""), "look at `server` and `port`, and whether the broker runs");
    let config = site.connection_to("server = \"broker.invalid\"\nca_certs = \"@/ca.pem\"");
    assert_says(&config, "the name broker.invalid can't be resolved (");
}
