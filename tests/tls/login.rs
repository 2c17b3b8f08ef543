//! User and password, over TLS as they should be.

use std::process::Command;

use crate::setup::{Broker, Site, assert_delivers, assert_says, check};
use crate::support::tidings::Tidings;

/// Anonymous ones are let in, too: the tests' subscriber is one. A wrong password is not.
fn broker_with_login(site: &Site) -> Broker {
    let path = format!("{}:/usr/sbin:/usr/local/sbin", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("mosquitto_passwd");
    command.args(["-b", "-c"]).arg(site.path("users")).args(["tidings", "hunter2"]).env("PATH", path);
    let made = command.status().expect("mosquitto_passwd is there (Debian's package `mosquitto`)");
    assert!(made.success());
    site.broker("password_file @/users\n")
}

#[test]
fn the_right_password_is_let_in_wherever_it_stands() {
    let site = Site::new();
    let broker = broker_with_login(&site);
    std::fs::write(site.path("password"), "hunter2\n").unwrap();
    for password in ["password = \"hunter2\"", "password_file = \"@/password\""] {
        for protocol in ["5", "3.1.1"] {
            assert_delivers(&broker, &site.connection(&format!("user = \"tidings\"\n{password}\nprotocol = \"{protocol}\"")));
        }
    }
}

#[test]
fn a_password_may_come_from_the_environment() {
    let site = Site::new();
    let _broker = broker_with_login(&site);
    let tidings = Tidings::prepare(&site.connection("user = \"tidings\"\npassword = { env = \"THE_PASSWORD\" }"));
    for (password, code) in [("hunter2", 0), ("hunter3", 1)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
        command.args(["check", "--connect", "--config"]).arg(tidings.config_file()).env("THE_PASSWORD", password);
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(!said.contains(password), "{said}");
    }
    assert_eq!(check(&tidings, &[]).status.code(), Some(2), "it is not set");
}

#[test]
fn a_wrong_password_names_user_and_password_and_is_not_shown() {
    let site = Site::new();
    let _broker = broker_with_login(&site);
    for protocol in ["5", "3.1.1"] {
        let lines = format!("user = \"tidings\"\npassword = \"swordfish\"\nprotocol = \"{protocol}\"");
        assert_says(&site.connection(&lines), " `user` and `password`");
        let tidings = Tidings::prepare(&site.connection(&lines));
        for more in [&[][..], &["--json"]] {
            assert!(!String::from_utf8(check(&tidings, more).stdout).unwrap().contains("swordfish"));
        }
    }
}
