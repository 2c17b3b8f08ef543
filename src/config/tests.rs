use super::tls::tests::certificates::{Authority, LOCAL};
use super::*;
use crate::core::address::Address;
use crate::core::report::Report;
use crate::core::route::Action;
use crate::core::types::Qos;

/// The mistakes in a text, as they are printed.
fn mistakes(text: &str) -> Vec<String> {
    let errors = from_str_with(text, "tidings.toml", &|_| None).expect_err("there is a mistake");
    errors.to_string().lines().map(str::to_owned).collect()
}

#[test]
fn of_a_file_that_is_wrong_in_every_line_the_first_mistakes_are_told_and_the_others_counted() {
    let text = (0..50_000).map(|number| format!("a{number} = 1\n")).collect::<String>();
    let found = mistakes(&text);
    assert_eq!(found.len(), 101);
    assert_eq!(found[99], "tidings.toml:100: a99: unknown key");
    assert_eq!(found[100], "tidings.toml: and 49900 more mistakes: mend these first");
}

/// The one mistake in the last line of a text, without the file and the line.
fn mistake(text: &str) -> String {
    let found = mistakes(text);
    assert_eq!(found.len(), 1, "{found:#?}");
    let place = format!("tidings.toml:{}: ", text.trim_end().lines().count());
    found[0].strip_prefix(&place).unwrap_or_else(|| panic!("{} is not in the last line", found[0])).to_owned()
}

/// The one mistake that a line makes in a section.
fn mistake_in(section: &str, line: &str) -> String {
    let driver = if section.contains("connection") { "driver = \"mqtt\"\n" } else { "" };
    mistake(&format!("[{section}]\n{driver}{line}\n"))
}

fn load_text(text: &str) -> Config {
    from_str_with(text, "tidings.toml", &|_| None).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn an_empty_file_means_the_defaults_that_are_documented() {
    let config = load_text("");
    assert_eq!(
        config.http,
        HttpConfig { listen: "127.0.0.1:8470".parse().unwrap(), max_report: 1_048_576, max_batch: 4_194_304, ..HttpConfig::default() }
    );
    assert_eq!(
        config.store,
        StoreConfig {
            backend: Backend::Sled,
            path: "/var/lib/tidings".into(),
            retention_ms: 604_800_000,
            dead_retention_ms: None,
            max_size: 10_737_418_240
        }
    );
    assert_eq!(config.retry, RetryConfig { initial_ms: 500, max_ms: 60_000, attempts: 10 });
    assert!(config.connections.is_empty() && config.routes.entries().is_empty());
    let [connection] = &load_text("connection.mqtt.driver = 'mqtt'").connections[..] else { panic!("one connection") };
    assert_eq!((&connection.servers[..], connection.tls.as_ref()), (&[Address::tcp("localhost", 1883)][..], None));
    assert_eq!(connection.keepalive_s, 60);
    assert_eq!((connection.user.as_ref(), connection.password.as_ref(), connection.client_id.as_str()), (None, None, "tidings"));
    assert_eq!((connection.protocol, connection.workers, connection.window, connection.window_3_1_1), (ProtocolChoice::Auto, 4, 100, 20));
}

#[test]
fn the_example_loads_as_it_is_and_with_everything_uncommented() {
    let example = include_str!("../../ops/tidings.example.toml");
    let config = load_text(example);
    assert_eq!(config.connections.len(), 1);
    assert_eq!(config.routes.entries().len(), 1);

    // `#key = …` is an available key with a value, `# text` is text.
    let uncomment = |line: &str| match line.strip_prefix('#') {
        Some(key) if key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '[') => key.to_owned(),
        _ => line.to_owned(),
    };
    let password = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&password, "secret\n").unwrap();
    let everything = example.lines().map(uncomment).collect::<Vec<_>>().join("\n");
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("authority");
    authority.write(&folder.path().join("ca.pem"));
    authority.issue(&LOCAL).write(folder.path(), "client");
    let everything = everything.replace("/etc/tidings/mqtt.password", password.path().to_str().unwrap());
    let everything = everything.replace("/etc/tidings/tls", folder.path().to_str().unwrap());
    for (token, letter) in [("ci", "c"), ("acme", "a"), ("prometheus", "p"), ("ops", "o")] {
        std::fs::write(folder.path().join(token), letter.repeat(44)).unwrap();
        std::fs::set_permissions(folder.path().join(token), std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    }
    let everything = everything.replace("/etc/tidings/tokens", folder.path().to_str().unwrap());
    let zuul = folder.path().join("zuul");
    std::fs::create_dir_all(zuul.join("zuul.d")).unwrap();
    std::fs::write(zuul.join("zuul.conf"), "[connection mqtt]\ndriver=mqtt\n").unwrap();
    for file in ["pipelines.yaml", "zuul.d/more.yaml"] {
        std::fs::write(zuul.join(file), "- pipeline: {name: zuul, start: {mqtt: {topic: t}}}\n").unwrap();
    }
    let everything = everything.replace("/etc/zuul", zuul.to_str().unwrap());
    let config = from_str_with(&everything, "tidings.toml", &|name| (name == "MQTT_PASSWORD").then(|| "x".to_owned()))
        .unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.connections.len(), 2);
    assert_eq!((config.zuul.pipelines.len(), config.notes.len()), (2, 1));
    for action in Action::NAMES {
        assert!(config.routes.entries().iter().any(|entry| entry.reporters.contains_key(&action.1)), "{}", action.0);
    }

    // What the example calls a default is the default.
    assert!(config.store.dead_retention_ms.is_some() && config.gap_notice.is_some());
    let store = StoreConfig { dead_retention_ms: None, ..config.store };
    assert_eq!((store, config.retry), (StoreConfig::default(), RetryConfig::default()));
    assert!(config.http.tokens.len() == 4 && config.http.tls.is_some());
    let metrics_are_for_tokens_then = HttpConfig { open_metrics: false, ..HttpConfig::default() };
    assert_eq!(HttpConfig { tokens: Vec::new(), tls: None, ..config.http }, metrics_are_for_tokens_then);
    let listener = config.listener.unwrap();
    assert!(listener.login.is_some() && listener.tls.is_some_and(|tls| tls.client_ca.is_some()) && !listener.anonymous);
    let mqtt = config.connections.into_iter().find(|connection| connection.name.as_str() == "mqtt").unwrap();
    assert!(mqtt.user.is_some() && mqtt.password == Some(Secret::new("secret")));
    assert!(mqtt.tls.as_ref().is_some_and(|tls| tls.identity.is_some() && tls.ciphers.is_some()));
    assert_eq!(ConnectionConfig { user: None, password: None, tls: None, ..mqtt }, ConnectionConfig::named("mqtt"));
}

#[test]
fn every_mistake_is_named_at_once_with_file_line_and_key() {
    let text = r#"[store]
path = 3
retentoin = "7d"
max_size = "10 cows"

[http]
listen = "0.0.0.0:8470"

[connection.mqtt]
port = "x"
keepalive = 0

[[pipeline]]
name = "check"
sucess.mqtt = { topic = "t" }
start.mqtt = { topic = "{bad}", qos = 3 }
failure.mqt = { topic = "t", retain = "yes" }

[conection.other]
"#;
    let expected = [
        r#"tidings.toml:2: store.path: expected a text in quotes that is not empty, found 3"#,
        r#"tidings.toml:3: store.retentoin: unknown key; did you mean `retention`?"#,
        r#"tidings.toml:4: store.max_size: expected a size from "32MiB" to "16TiB", found "10 cows""#,
        r#"tidings.toml:7: http.listen: beyond loopback (127.0.0.1, [::1]) whoever comes has to show a token of `tokens`; or write `anonymous = true`: then anybody who reaches the port may post, read and decide"#,
        r#"tidings.toml:9: connection.mqtt.driver: is required: write `driver = "mqtt"`"#,
        r#"tidings.toml:10: connection.mqtt.port: expected a whole number from 1 to 65535, found "x""#,
        r#"tidings.toml:11: connection.mqtt.keepalive: expected a whole number from 5 to 65535, found 0"#,
        r#"tidings.toml:15: pipeline[0].sucess: unknown key; did you mean `success`?"#,
        r#"tidings.toml:16: pipeline[0].start.mqtt.topic: topic component 'bad' is invalid"#,
        r#"tidings.toml:16: pipeline[0].start.mqtt.qos: expected 0, 1 or 2, found 3"#,
        r#"tidings.toml:17: pipeline[0].failure.mqt: there is no connection `mqt`; did you mean `mqtt`?"#,
        r#"tidings.toml:17: pipeline[0].failure.mqt.retain: expected true or false, found "yes""#,
        r#"tidings.toml:19: conection: unknown key; did you mean `connection`?"#,
    ];
    assert_eq!(mistakes(text), expected);
}

#[test]
fn text_that_is_not_toml_is_named_with_every_line() {
    let found = mistakes("[store]\npath = \n[http]\nlisten = \"a\nx = 1 2\n");
    assert!(found.len() >= 2 && found[0].starts_with("tidings.toml:2: not TOML: "), "{found:#?}");
    assert!(mistakes("[retry]\nattempts = 3\nattempts = 4\n")[0].starts_with("tidings.toml:3: not TOML: duplicate key"));
}

#[test]
fn a_section_that_is_no_table_is_a_mistake() {
    assert_eq!(mistake("store = 3"), "store: expected a table, found 3");
    assert_eq!(mistake("connection = \"mqtt\""), "connection: expected a table, found \"mqtt\"");
    assert_eq!(mistake("connection.mqtt = 1"), "connection.mqtt: expected a table, found 1");
    assert_eq!(mistake("[pipeline]"), "pipeline: expected `[[pipeline]]`, found a table");
    assert_eq!(mistake("pipeline = [1]"), "pipeline[0]: expected a table, found 1");
}

#[test]
fn numbers_are_whole_and_within_their_bounds() {
    let cases = [
        ("connection.m", "port", ["1", "65535"], ["0", "65536", "-1", "1.5", "99999999999999999999"]),
        ("connection.m", "keepalive", ["5", "65535"], ["4", "65536", "true", "[]", "{}"]),
        ("connection.m", "workers", ["1", "64"], ["0", "65", "'4'", "1e1", "1979-05-27"]),
        ("connection.m", "window", ["1", "1_000"], ["0", "1001", "-5", "''", "0x10000000000000000"]),
        ("connection.m", "window_3_1_1", ["1", "0x3e8"], ["0", "1001", "nan", "false", "0.0"]),
        ("retry", "attempts", ["1", "1000"], ["0", "1001", "-10", "'ten'", "[3]"]),
    ];
    for (section, key, right, wrong) in cases {
        for value in right {
            load_text(&format!("[{section}]\n{}{key} = {value}", if section == "retry" { "" } else { "driver = 'mqtt'\n" }));
        }
        for value in wrong {
            let found = mistake_in(section, &format!("{key} = {value}"));
            assert!(found.starts_with(&format!("{section}.{key}: expected a whole number from ")), "{found}");
        }
    }
}

#[test]
fn durations_and_sizes_are_within_their_bounds() {
    let config = load_text("store.retention = '1h 30m'\nstore.max_size = 335544320\nretry.initial = '1s'\nhttp.max_report = '2MB'");
    assert_eq!((config.store.retention_ms, config.store.max_size), (5_400_000, 335_544_320));
    assert_eq!((config.retry.initial_ms, config.http.max_report), (1_000, 2_000_000));
    let decade = load_text("store.retention = '10years'\nstore.dead_retention = '10years'").store;
    assert_eq!((decade.retention_ms, decade.dead_retention_ms), (315_576_000_000, Some(315_576_000_000)));
    assert_eq!(
        mistake("[store]\nretention = '11y'"),
        "store.retention: expected a duration from \"1s\" to \"10years\" in quotes, found \"11y\""
    );
    for line in [
        "retention = 7",
        "retention = '0s'",
        "retention = '7 dayz'",
        "retention = '11y'",
        "max_size = '31MiB'",
        "max_size = '17TiB'",
        "max_size = 1.5",
    ] {
        let found = mistake_in("store", line);
        assert!(found.contains(": expected a "), "{found}");
    }
}

#[test]
fn what_can_not_both_be_is_named() {
    assert_eq!(
        mistake("[http]\nmax_batch = '1MiB'\nmax_report = '2MiB'"),
        "http.max_report: `max_report` (2MiB) can't be larger than `max_batch` (1MiB), the largest body"
    );
    assert!(mistake("[http]\nmax_batch = '512KiB'").starts_with("http.max_batch: `max_report` (1MiB)"));
    assert_eq!(mistake("[retry]\nmax = '1s'\ninitial = '2s'"), "retry.initial: `initial` (2s) can't be longer than `max` (1s)");
}

#[test]
fn a_store_that_nobody_knows_is_refused() {
    load_text("store.backend = 'sled'");
    assert_eq!(mistake_in("store", "backend = 'rocks'"), "store.backend: expected \"sled\" or \"jetstream\", found \"rocks\"");
}

#[test]
fn an_address_to_listen_on_has_a_port() {
    for listen in ["localhost:8470", "127.0.0.1", ":8470", "127.0.0.1:99999"] {
        assert!(mistake_in("http", &format!("listen = '{listen}'")).starts_with("http.listen: expected an address and a port"), "{listen}");
    }
}

#[test]
fn a_connection_is_known_by_its_driver_name_and_server() {
    assert_eq!(mistake("[connection.m]\ndriver = 'gerrit'"), "connection.m.driver: expected \"mqtt\", found \"gerrit\"");
    assert!(mistake("connection.'a b' = { driver = 'mqtt' }").contains("a connection's name is 1 to 64 letters"));
    for server in ["broker.example.com", "192.0.2.1", "2001:db8::1", "broker_1"] {
        let config = load_text(&format!("[connection.m]\ndriver = 'mqtt'\nserver = '{server}'"));
        assert_eq!(config.connections[0].servers, [Address::tcp(server, 1883)]);
    }
    for server in ["", "mqtt://broker", "broker:1883", "[::1]", "a b", "a/b"] {
        assert!(mistake_in("connection.m", &format!("server = '{server}'")).starts_with("connection.m.server: expected a"), "{server}");
    }
    assert!(mistake_in("connection.m", "client_id = 'a/b'").starts_with("connection.m.client_id: expected 1 to 64 letters"));
    assert!(mistake_in("connection.m", "client_id = ''").starts_with("connection.m.client_id: expected 1 to 64 letters"));
}

#[test]
fn the_protocol_is_auto_or_one_of_two() {
    for (value, choice) in [
        ("'auto'", ProtocolChoice::Auto),
        ("'5'", ProtocolChoice::Only(Protocol::V5)),
        ("5", ProtocolChoice::Only(Protocol::V5)),
        ("'3.1.1'", ProtocolChoice::Only(Protocol::V311)),
    ] {
        assert_eq!(load_text(&format!("[connection.m]\ndriver = 'mqtt'\nprotocol = {value}")).connections[0].protocol, choice);
    }
    for value in ["'3.1'", "4", "3.1", "'5.0'"] {
        assert!(mistake_in("connection.m", &format!("protocol = {value}")).starts_with("connection.m.protocol: expected \"auto\""));
    }
}

#[test]
fn a_password_comes_from_the_file_the_environment_or_a_file_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("password");
    let secret = |line: &str| {
        let text = format!("[connection.m]\ndriver = 'mqtt'\nuser = 'u'\n{line}");
        let config = from_str_with(&text, "tidings.toml", &|name| (name == "SECRET").then(|| "from env".to_owned())).unwrap();
        assert!(!format!("{config:?}").contains("from"), "{config:?}");
        config.connections[0].password.clone().unwrap().expose().to_owned()
    };
    assert_eq!(secret("password = 'from file'"), "from file");
    assert_eq!(secret("password = { env = 'SECRET' }"), "from env");
    for (content, password) in
        [("from afar\n", "from afar"), ("from afar\r\n", "from afar"), (" from afar \n\n", " from afar \n"), ("from afar", "from afar")]
    {
        std::fs::write(&path, content).unwrap();
        assert_eq!(secret(&format!("password_file = '{}'", path.display())), password);
    }
}

#[test]
fn a_password_that_is_not_there_is_named_and_never_quoted() {
    let with_user = |line: &str| mistake(&format!("[connection.m]\ndriver = 'mqtt'\nuser = 'u'\n{line}"));
    let found = with_user("password_file = '/nowhere/at/all'");
    assert!(found.starts_with("connection.m.password_file: /nowhere/at/all can't be read: "), "{found}");
    assert_eq!(with_user("password = { env = 'NOT_SET' }"), "connection.m.password.env: the environment variable `NOT_SET` is not set");
    assert_eq!(with_user("password = ''"), "connection.m.password: the password is empty");
    assert_eq!(with_user("password = 90210"), "connection.m.password: expected a text in quotes or `{ env = \"NAME\" }`");
    assert_eq!(
        mistake("[connection.m]\ndriver = 'mqtt'\npassword = 'secret'"),
        "connection.m.password: a password is sent together with a user: `user` is missing"
    );
    assert_eq!(
        mistake("[connection.m]\ndriver = 'mqtt'\nuser = 'u'\npassword = 'secret'\npassword_file = 'x'"),
        "connection.m.password_file: there is `password` too: give one of them"
    );
}

const CONNECTIONS: &str = "connection.a.driver = 'mqtt'\nconnection.b.driver = 'mqtt'\n";

#[test]
fn a_pipelines_reporters_become_routes() {
    let config = load_text(&format!(
        r#"{CONNECTIONS}
[[pipeline]]
name = "check"
start.a = {{ topic = "{{tenant}}/{{pipeline}}" }}
success.a = {{ topic = "{{project}}", qos = 2, retain = true, include-returned-data = true }}
success.b = {{ topic = "t", qos = 1 }}
[[pipeline]]
name = "check"
tenant = "acme"
[pipeline.merge-failure]
b.topic = "narrowed"
"#
    ));
    let report = |action: &str| {
        let text = format!(r#"{{"action":"{action}","tenant":"acme","pipeline":"check","project":"widgets"}}"#);
        config.routes.route(&Report::parse(text.into()).unwrap()).unwrap()
    };
    let [start] = &report("start")[..] else { panic!("one delivery") };
    assert_eq!((start.topic.as_str(), start.qos, start.retain, start.include_returned_data), ("acme/check", Qos::AtMostOnce, false, false));
    let [first, second] = &report("success")[..] else { panic!("two deliveries") };
    assert_eq!((first.topic.as_str(), first.qos, first.retain, first.include_returned_data), ("widgets", Qos::ExactlyOnce, true, true));
    assert_eq!((second.connection.as_str(), second.qos), ("b", Qos::AtLeastOnce));
    assert_eq!(report("merge-conflict")[0].topic.as_str(), "narrowed");
}

#[test]
fn a_pipeline_stands_once_for_a_tenant_and_a_reporter_once_for_an_action() {
    let twice = |first: &str, second: &str| format!("[[pipeline]]\nname = 'check'\n{first}\n[[pipeline]]\n{second}\nname = 'check'");
    load_text(&twice("", "tenant = 'acme'"));
    assert_eq!(
        mistake(&twice("", "")),
        "pipeline[1].name: the pipeline `check` for every tenant stands in line 2 already: put both together"
    );
    assert!(mistake(&twice("tenant = 'acme'", "tenant = 'acme'")).contains("for tenant `acme` stands in line 2 already"));
    assert!(
        mistake(&format!("{CONNECTIONS}[[pipeline]]\nname = 'check'\nmerge-conflict.a.topic = 't'\nmerge-failure.a.topic = 't'"))
            .contains("are one action")
    );
}

#[test]
fn a_pipeline_needs_a_name_and_a_reporter_a_topic() {
    assert_eq!(mistake("[[pipeline]]"), "pipeline[0].name: is required: the pipeline's name");
    assert!(mistake("[[pipeline]]\nname = ''").starts_with("pipeline[0].name: expected a text"));
    let reporter = |text: &str| mistake(&format!("{CONNECTIONS}[[pipeline]]\nname = 'check'\nstart.a = {text}"));
    assert_eq!(reporter("{}"), "pipeline[0].start.a.topic: is required: the topic to publish to");
    assert_eq!(reporter("{ topic = '' }"), "pipeline[0].start.a.topic: the topic is empty");
    assert_eq!(reporter("{ topic = 3 }"), "pipeline[0].start.a.topic: expected a text in quotes, found 3");
    assert_eq!(
        reporter("{ topic = 't', include_returned_data = true }"),
        "pipeline[0].start.a.include_returned_data: unknown key; did you mean `include-returned-data`?"
    );
    assert_eq!(reporter("'t'"), "pipeline[0].start.a: expected a table, found \"t\"");
}

#[test]
fn the_file_named_comes_first_then_the_environment_then_the_known_places() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("tidings.toml");
    let places = ["/nowhere/tidings.toml", place.to_str().unwrap()];
    let explicit = Some(Path::new("explicit.toml"));
    let from_env = Some(OsStr::new("env.toml"));
    assert_eq!(find_among(explicit, from_env, &places).unwrap(), Path::new("explicit.toml"));
    assert_eq!(find_among(None, from_env, &places).unwrap(), Path::new("env.toml"));
    let error = find_among(None, Some(OsStr::new("")), &places).unwrap_err();
    assert!(error.to_string().contains(&format!("/nowhere/tidings.toml, {}", place.display())), "{error}");
    std::fs::write(&place, "").unwrap();
    assert_eq!(find_among(None, None, &places).unwrap(), place);
}

#[test]
fn a_file_that_can_not_be_read_is_a_mistake_of_its_own() {
    let errors = load(Path::new("/nowhere/tidings.toml")).unwrap_err();
    assert!(errors.to_string().starts_with("/nowhere/tidings.toml: can't be read: "), "{errors}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tidings.toml");
    std::fs::write(&path, b"a = \xff").unwrap();
    assert!(load(&path).unwrap_err().to_string().ends_with("is not text in UTF-8: see byte 4"));
    std::fs::write(&path, "retry.attempts = 3").unwrap();
    let config = load(&path).unwrap();
    assert_eq!((config.retry.attempts, config.file), (3, Some(path)));
}
