//! `tidings init`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tidings::cli::init::written::LISTENER_SECTION;
use tidings::config::Config;

use super::certificates::{Authority, LOCAL};
use super::{CONF, Files, ways};

/// What the command printed to standard output and error, and its exit code.
fn init(files: &Files, arguments: &[&str]) -> (String, String, Option<i32>) {
    let output = files.tidings(&[&["init"], arguments].concat(), &[]);
    let text = |bytes: Vec<u8>| files.without_folder(&String::from_utf8(bytes).unwrap());
    (text(output.stdout), text(output.stderr), output.status.code())
}

/// The arguments for a `zuul.conf`.
const FROM_ZUUL: [&str; 4] = ["--from-zuul", "zuul.conf", "--output", "new.toml"];

/// Loads the written file.
fn written(files: &Files) -> Config {
    files.load(&files.read("new.toml"))
}

#[test]
fn without_anything_it_writes_a_file_that_check_has_no_mistake_in() {
    let files = Files::new();
    let (stdout, stderr, code) = init(&files, &[]);
    assert_eq!((stderr.as_str(), code), ("", Some(0)));
    assert!(stdout.starts_with("wrote ./tidings.toml\n"), "{stdout}");
    let checked = files.tidings(&["check"], &[]);
    assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stderr));
    assert!(!String::from_utf8(checked.stdout).unwrap().contains("note:"));
    let config = files.load(&files.read("tidings.toml"));
    assert_eq!((config.connections.len(), ways(&config, "acme", "check", "success").len()), (1, 1));
    assert!(!files.read("tidings.toml").contains(LISTENER_SECTION));
}

#[test]
fn what_zuul_conf_says_is_what_the_new_file_says() {
    let files = Files::conf(
        r#"[connection gerrit]
driver=gerrit
[connection mqtt]
driver=mqtt
server=broker.example.com
port=8883
keepalive=30
user=zuul "the \ first"
password=hunter2 %%
ca_certs=@ca.pem
certfile=@client.pem
keyfile=@client.key
ciphers=ECDHE+AESGCM
client_id=zuul
[connection second.one]
driver=mqtt
server=2001:db8::1
"#,
    );
    let folder = files.path("").display().to_string();
    files.write("zuul.conf", &files.read("zuul.conf").replace('@', &folder));
    let authority = Authority::new("authority");
    authority.write(&files.path("ca.pem"));
    authority.issue(&LOCAL).write(&files.path(""), "client");
    let (stdout, stderr, code) = init(&files, &FROM_ZUUL);
    assert_eq!((stderr.as_str(), code), ("", Some(0)));
    let (from_zuul, config) = (files.load(CONF), written(&files));
    assert_eq!(config.connections, from_zuul.connections);
    assert_eq!(config.connections[0].password.as_ref().unwrap().expose(), "hunter2 %");

    // The password is in its own file, which is its owner's alone, and nowhere else.
    assert!(stdout.contains("wrote mqtt.password, which only its owner can read"), "{stdout}");
    assert_eq!(fs::metadata(files.path("mqtt.password")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(files.read("mqtt.password"), "hunter2 %\n");
    assert!(!stdout.contains("hunter2") && !files.read("new.toml").contains("hunter2"));

    // The listener leads to the first.
    let text = files.read("new.toml");
    assert!(text.contains("\n[listener]\nlisten = \"127.0.0.1:1884\"\nconnection = \"mqtt\"\n"), "{text}");
}

#[test]
fn the_lines_to_change_in_zuul_conf_are_said_with_what_they_were() {
    let files = Files::conf(
        "[DEFAULT]\nport=1885\n[connection mqtt]\ndriver=mqtt\n\nserver=broker.example.com\n[connection 'archive']\ndriver=mqtt\nserver=a\n",
    );
    let (stdout, _, code) = init(&files, &FROM_ZUUL);
    assert_eq!(code, Some(0));
    for line in [
        "To have Zuul publish to Tidings, which passes it on to connection mqtt, change in [connection mqtt]:",
        "  zuul.conf:6: server=127.0.0.1    (was: broker.example.com)",
        "  zuul.conf:3: add below: port=1884    (was, from [DEFAULT] in line 2: 1885)",
        "zuul.conf:7: leave [connection 'archive'] as it is: the listener leads to connection mqtt alone, so Zuul goes on publishing there by itself.",
    ] {
        assert!(stdout.lines().any(|found| found == line), "{line}\n{stdout}");
    }
    let files = Files::conf("[connection mqtt]\ndriver=mqtt\n");
    let (stdout, ..) = init(&files, &FROM_ZUUL);
    assert!(
        stdout.contains("  zuul.conf:1: add below: server=127.0.0.1    (was not there)\n  zuul.conf:1: add below: port=1884"),
        "{stdout}"
    );
}

#[test]
fn zuul_conf_as_advised_publishes_to_the_listener_over_plain_mqtt() {
    let files = Files::conf("");
    let authority = Authority::new("authority");
    authority.write(&files.path("ca.pem"));
    let ca = files.path("ca.pem").display().to_string();
    let conf = format!("[DEFAULT]\nciphers=HIGH\n[connection mqtt]\ndriver=mqtt\nserver=broker.example.com\nca_certs={ca}\n");
    files.write("zuul.conf", &conf);
    let (stdout, stderr, _) = init(&files, &FROM_ZUUL);
    assert_eq!(stderr, "");
    // What the advice says, done.
    let mut lines: Vec<String> = conf.lines().map(str::to_owned).collect();
    let mut below = Vec::new();
    for advice in stdout.lines().filter_map(|line| line.strip_prefix("  zuul.conf:")) {
        let (line, what) = advice.split_once(": ").unwrap();
        let line = line.parse::<usize>().unwrap() - 1;
        let setting = what.split("    (").next().unwrap();
        if let Some(added) = setting.strip_prefix("add below: ") {
            below.push((line, added.to_owned()));
        } else {
            lines[line] = if setting.starts_with("take out: ") { String::new() } else { setting.to_owned() };
        }
    }
    for (line, added) in below {
        lines[line] += &format!("\n{added}");
    }
    files.write("zuul.conf", &lines.join("\n"));
    let config = files.load(CONF);
    assert_eq!((config.connections[0].servers[0].written().as_str(), config.connections[0].tls.as_ref()), ("127.0.0.1:1884", None));
    // And a second time it would lead round in a circle.
    let (stdout, stderr, code) = init(&files, &["--from-zuul", "zuul.conf", "--output", "again.toml"]);
    assert_eq!((stdout.as_str(), code), ("", Some(2)));
    let message = ": connection.mqtt.server: leads back to Tidings, which is to listen at 127.0.0.1:1884: put in where the broker is\n";
    assert!(stderr.starts_with("zuul.conf:") && stderr.ends_with(message), "{stderr}");
    assert!(!files.path("again.toml").exists());
}

#[test]
fn nothing_is_overwritten_and_nothing_is_left_half() {
    let files = Files::conf("[connection mqtt]\ndriver=mqtt\nuser=u\npassword=p\n");
    files.write("new.toml", "mine");
    let (stdout, stderr, code) = init(&files, &FROM_ZUUL);
    assert_eq!((stdout.as_str(), code), ("", Some(1)));
    assert_eq!(stderr, "error: new.toml is there already and stays as it is: move it away, or name another file with --output\n");
    assert_eq!((files.read("new.toml").as_str(), files.path("mqtt.password").exists()), ("mine", false));

    fs::remove_file(files.path("new.toml")).unwrap();
    files.write("mqtt.password", "mine");
    let (_, stderr, code) = init(&files, &FROM_ZUUL);
    assert_eq!(code, Some(1));
    assert!(stderr.starts_with("error: mqtt.password is there already"), "{stderr}");
    assert_eq!((files.read("mqtt.password").as_str(), files.path("new.toml").exists()), ("mine", false));

    let (_, stderr, code) = init(&files, &["--output", "nowhere/new.toml"]);
    assert_eq!(code, Some(1));
    assert!(stderr.starts_with("error: nowhere/new.toml can't be written: "), "{stderr}");

    // A password file that was written already goes away with a failure after it.
    let files = Files::conf("[connection a]\ndriver=mqtt\nuser=u\npassword=p\n[connection b]\ndriver=mqtt\nuser=u\npassword=p\n");
    files.write("b.password", "mine");
    assert_eq!(init(&files, &FROM_ZUUL).2, Some(1));
    assert!(!files.path("a.password").exists() && !files.path("new.toml").exists());
}

#[test]
fn mistakes_in_zuuls_files_are_named_and_nothing_is_written() {
    let files = Files::conf("[connection mqtt]\ndriver=mqtt\nport=x\n");
    let (stdout, stderr, code) = init(&files, &FROM_ZUUL);
    assert_eq!((stdout.as_str(), code), ("", Some(2)));
    assert_eq!(stderr, "zuul.conf:3: connection.mqtt.port: expected a whole number from 1 to 65535, found \"x\"\n");
    files.write("zuul.conf", "[connection gerrit]\ndriver=gerrit\n");
    assert_eq!(init(&files, &FROM_ZUUL).1, "zuul.conf: has no connection with `driver=mqtt`\n");
    files.write("p.yaml", "- pipeline: {name: p, start: {mqtt: {topic: t, qos: 3}}}\n");
    let (_, stderr, code) = init(&files, &["--pipelines", "p.yaml", "--output", "new.toml"]);
    assert_eq!((stderr.as_str(), code), ("p.yaml:1: pipeline.p.start.mqtt.qos: expected 0, 1 or 2, found 3\n", Some(2)));
    assert!(init(&files, &["--from-zuul", "nowhere", "--output", "new.toml"]).1.starts_with("nowhere: can't be read: "));
    assert!(!files.path("new.toml").exists());
}

#[test]
fn shells_complete_it() {
    for shell in ["bash", "zsh", "fish"] {
        let output = Files::new().tidings(&["completions", shell], &[]);
        assert!(String::from_utf8(output.stdout).unwrap().contains("from-zuul"), "{shell}");
    }
}

#[test]
fn pipelines_are_taken_over_as_they_are() {
    let files = Files::conf("[connection mqtt]\ndriver=mqtt\n[connection b.c]\ndriver=mqtt\n[connection gerrit]\ndriver=gerrit\n");
    files.write(
        "zuul.d/p.yaml",
        r#"- pipeline:
    name: check "one"
    start:
      gerrit: {}
      mqtt: {topic: "{tenant}/\"quoted\\\"/é"}
    merge-failure:
      b.c: {topic: t, qos: 2, include-returned-data: true}
"#,
    );
    files.write("q.yaml", "- pipeline: {name: gate, success: {mqtt: {topic: gate, qos: 1}}}\n");
    let (stdout, stderr, code) = init(&files, &[&FROM_ZUUL[..], &["--pipelines", "zuul.d", "q.yaml"]].concat());
    assert_eq!((stderr.as_str(), code), ("", Some(0)), "{stdout}");
    let read = files.load(&format!("{CONF}pipelines = ['@/zuul.d', '@/q.yaml']\n"));
    assert_eq!(written(&files).routes.entries(), read.routes.entries());
    assert_eq!(read.routes.entries().len(), 2);
}
