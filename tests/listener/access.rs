//! Users, certificates, loops.

use std::fs;

use crate::listener;
use crate::publisher::{Hello, Publisher};
use crate::support::mosquitto::{Mosquitto, free_port};
use crate::support::tidings::{SOON, Tidings, connection, named_connection};
use crate::support::{wait_until, wire};

fn login(user: &str, password: &str) -> Option<(String, String)> {
    Some((user.to_owned(), password.to_owned()))
}

#[test]
fn only_the_right_user_and_password_are_let_in() {
    let tidings = Tidings::prepare("");
    let file = tidings.folder().join("password");
    fs::write(&file, "secret\n").unwrap();
    tidings.configure(&(listener(&format!("user = \"ci\"\npassword_file = \"{}\"", file.display())) + &connection(9, "")));
    let mut tidings = tidings;
    tidings.run();
    for (hello, refused) in [(Hello::v4("x"), 5), (Hello::v5("x"), 0x87)] {
        for given in [None, login("ci", "hunter2"), login("other", "secret"), login("", "secret")] {
            let (mut publisher, connack) = Publisher::try_connect(tidings.listener(), &Hello { login: given.clone(), ..hello.clone() });
            assert_eq!(connack[1], refused, "{given:?}");
            assert_eq!(publisher.expect_end(), None);
        }
        let (publisher, _) = Publisher::connect(tidings.listener(), &Hello { login: login("ci", "secret"), ..hello });
        publisher.disconnect();
    }
    let log = format!("{:?}", tidings.logged(""));
    assert!(!log.contains("secret") && !log.contains("hunter2"), "no password is ever logged");
}

#[test]
fn after_a_reload_with_another_password_the_old_one_is_worthless_also_for_who_is_connected() {
    let mut tidings = Tidings::prepare("");
    let (file, port) = (tidings.folder().join("password"), free_port());
    fs::write(&file, "leaked\n").unwrap();
    let with = |port: u16| {
        let config = format!("[listener]\nlisten = \"127.0.0.1:{port}\"\nconnection = \"mqtt\"\nuser = \"ci\"\n");
        format!("{config}password_file = \"{}\"\n{}", file.display(), connection(9, ""))
    };
    tidings.configure(&with(port));
    tidings.run();
    let try_with = |password: &str| Publisher::try_connect(tidings.listener(), &Hello { login: login("ci", password), ..Hello::v5("x") });
    let (mut thief, connack) = try_with("leaked");
    assert_eq!(connack[1], 0);
    fs::write(&file, "fresh\n").unwrap();
    // Where it listens is another matter, and does not keep the password from being in force.
    assert!(tidings.reload(&with(free_port())));
    assert_eq!(tidings.logged("a restart is needed for: listener.listen;").len(), 1);
    assert_eq!(thief.expect_end(), Some(0x87));
    let (_refused, connack) = try_with("leaked");
    assert_eq!(connack[1], 0x87);
    let (_admitted, connack) = try_with("fresh");
    assert_eq!(connack[1], 0);
    let audit = tidings.get("/v1/audit").unwrap().json();
    assert_eq!(audit["audit"][0]["what"], "reloaded the configuration: listener.user and its password");
}

#[test]
fn a_connection_that_leads_back_to_the_listener_is_refused_at_the_start() {
    let tidings = Tidings::prepare("");
    let port = free_port();
    for server in ["127.0.0.1", "localhost"] {
        let config = format!("[listener]\nlisten = \"127.0.0.1:{port}\"\nconnection = \"mqtt\"\n");
        tidings.configure(&(config + &named_connection("mqtt", port, "").replace("127.0.0.1", server)));
        let (code, said) = tidings.refused();
        assert_eq!(code, Some(2));
        assert!(said.contains("listener.listen: connection `mqtt`") && said.contains("leads back to this listener"), "{said}");
    }
}

#[test]
fn a_circle_that_the_configuration_does_not_show_is_refused_by_the_listener() {
    // Something between here and there leads back.
    let (port, between) = (free_port(), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let config = format!("[listener]\nlisten = \"127.0.0.1:{port}\"\nconnection = \"mqtt\"\n");
    let between_port = between.local_addr().unwrap().port();
    let with = |more: &str| config.clone() + &connection(between_port, &format!("workers = 1\n{more}")) + SOON;
    let tidings = Tidings::start(&with(""));
    std::thread::spawn(move || {
        for stream in between.incoming().map_while(Result::ok) {
            let Ok(on) = std::net::TcpStream::connect(("127.0.0.1", port)) else { return };
            let (mut there, mut back) = ((stream.try_clone().unwrap(), on.try_clone().unwrap()), (on, stream));
            std::thread::spawn(move || std::io::copy(&mut there.0, &mut there.1));
            std::thread::spawn(move || std::io::copy(&mut back.0, &mut back.1));
        }
    });
    wait_until("the listener says what is wrong", || {
        tidings.logged("one of its connections leads back to its own listener").iter().any(|line| line["code"] == "own_client_id")
    });
    // And under the client ids that a reload gives it.
    assert!(tidings.reload(&with("client_id = \"another\"")));
    let refused = || tidings.metric("tidings_ingest_rejected_total{code=\"own_client_id\",source=\"mqtt\"}");
    let before = refused();
    wait_until("it is refused again and again", || refused() > before + 1.0);
    assert_eq!(tidings.status("mqtt")["totals"]["created"], 0);
}

#[test]
fn what_nobody_had_to_say_is_nobodys_name() {
    // Without `user` whoever reaches the port may publish, under whatever name; nothing is proven by it, so it owns nothing.
    let broker = Mosquitto::start("");
    let tidings = Tidings::start(&(listener("") + &connection(broker.port, "")));
    let (mut publisher, _) = Publisher::connect(tidings.listener(), &Hello { login: login("anybody", "x"), ..Hello::v4("one") });
    publisher.publish("t", "x", 2, 1, false);
    publisher.expect_ack(wire::PUBREC, 1);
    let (_publisher, had_session) = Publisher::connect(tidings.listener(), &Hello::v4("one"));
    assert!(had_session);
}
