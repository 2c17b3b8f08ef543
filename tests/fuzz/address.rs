//! Where a broker is, as an operator writes it.
//!
//! It holds: what is understood is shown in a way that reads back as the same, has a host or a path, and no port 0; what is not says what
//! would be right.

use tidings::core::address::Address;

use crate::memory::bounded;
use crate::mutate::{Form, Mutator};
use crate::run::{Outcome, assert_readable, run};

const WORDS: &[&str] = &[
    "ws://",
    "wss://",
    "unix:",
    "unix://",
    "mqtt://",
    "://",
    "[",
    "]",
    "::1",
    ":",
    ":1883",
    ":0",
    ":65536",
    ":+1",
    "@",
    "/",
    "//",
    "?",
    "#",
    "%41",
    "\u{e9}",
    "localhost",
    "127.0.0.1",
    "[2001:db8::1]",
    "[::ffff:1.2.3.4]",
    "fe80::1%eth0",
];

fn check(bytes: &[u8]) -> Outcome {
    let Ok(text) = std::str::from_utf8(bytes) else { return Outcome::refused("not UTF-8") };
    for port in [None, Some(1)] {
        if let Ok(address) = Address::of_server(text, port) {
            assert_eq!(Address::parse(&address.written()).as_ref(), Ok(&address), "{text:?}");
        }
    }
    match bounded(text.len(), 16, || Address::parse(text)) {
        Err(error) => {
            assert_readable(&error.to_string());
            Outcome::refused(format!("{error:?}"))
        }
        Ok(address) => {
            let shown = address.written();
            assert_eq!(Address::parse(&shown).as_ref(), Ok(&address), "{text:?} is shown as {shown}");
            assert!(shown.len() <= text.len() + 30);
            assert!(
                !shown.contains(char::is_control) && !shown.contains(char::is_whitespace) || matches!(address, Address::Unix { .. }),
                "{shown:?}"
            );
            let kind = match &address {
                Address::Tcp { port, .. } | Address::WebSocket { port, .. } if *port == 0 => panic!("port 0"),
                Address::Tcp { host, .. } => format!("tcp {} {}", host.contains(':'), address.is_local()),
                Address::WebSocket { host, is_secure, path, .. } => format!("ws {is_secure} {} {}", host.contains(':'), path.contains('?')),
                Address::Unix { .. } => "unix".to_owned(),
            };
            Outcome::accepted(kind)
        }
    }
}

#[test]
fn an_address_that_is_understood_is_shown_so_that_it_reads_back() {
    let seeds = [
        "a",
        "broker.example.com:8883",
        "192.0.2.1:1",
        "[2001:db8::1]:65535",
        "ws://a",
        "wss://a:8084/x/y?token=1",
        "wss://[::1]/mqtt",
        "unix:/run/m.sock",
        "unix:///run/m.sock",
    ];
    run("address", 20_000, seeds.map(|text| text.as_bytes().to_vec()).to_vec(), &Mutator { form: Form::Bytes, words: WORDS }, check);
}
