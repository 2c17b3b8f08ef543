//! `zuul.conf`.

use tidings::core::address::Address;

use super::certificates::{Authority, LOCAL};
use super::{CONF, Files};

/// A `zuul.conf` as they are: several drivers, and sections that are nobody's business.
const AROUND: &str = r#"
# /etc/zuul/zuul.conf
[gearman]
server=127.0.0.1

[zookeeper]
hosts=zk01.example.com:2281,zk02.example.com:2281
tls_cert=/etc/zuul/zk.pem

[scheduler]
tenant_config=/etc/zuul/main.yaml
; a password with a percent sign would stop Zuul here, and is none of ours
[auth zuul_operator]
secret=100%

[connection gerrit]
driver=gerrit
server=review.example.com
sshkey=%(nowhere)s
user=zuul

[connection smtp]
driver = smtp
port = twenty-five

"#;

fn with(connection: &str) -> Files {
    Files::conf(&format!("{AROUND}{connection}"))
}

/// The line of the first line of `connection` in [`with`].
fn first() -> usize {
    AROUND.lines().count() + 1
}

#[test]
fn a_connection_with_nothing_but_its_driver_has_zuuls_defaults() {
    let files = with("[connection mqtt]\ndriver=mqtt\n");
    let config = files.load(CONF);
    let [mqtt] = &config.connections[..] else { panic!("one connection: {:?}", config.connections) };
    assert_eq!((mqtt.name.as_str(), &mqtt.servers[..], mqtt.keepalive_s), ("mqtt", &[Address::tcp("localhost", 1883)][..], 60));
    assert_eq!((mqtt.user.as_deref(), mqtt.password.as_ref(), mqtt.tls.as_ref()), (None, None, None));
    assert_eq!(config.zuul.conf, Some(files.path("zuul.conf")));
}

#[test]
fn every_option_of_zuuls_driver_is_taken_as_python_reads_it() {
    let files = with(
        r#"[DEFAULT]
domain = example.com
certs: @
[connection "mqtt"]
Driver = mqtt
server = broker.%(domain)s
port = +8_883
keepalive=0030
user = zuul
password = hun%%ter2 # still the password
ca_certs = %(certs)s/ca.pem
certfile = %(certs)s/client.pem
keyfile = %(certs)s/client.key
ciphers = ECDHE+AESGCM
client_id = zuul-scheduler
"#,
    );
    let folder = files.path("").display().to_string();
    files.write("zuul.conf", &files.read("zuul.conf").replace('@', folder.trim_end_matches('/')));
    let authority = Authority::new("authority");
    authority.write(&files.path("ca.pem"));
    authority.issue(&LOCAL).write(&files.path(""), "client");
    let config = files.load(CONF);
    let [mqtt] = &config.connections[..] else { panic!("one connection") };
    assert_eq!((mqtt.name.as_str(), &mqtt.servers[..], mqtt.keepalive_s), ("mqtt", &[Address::tcp("broker.example.com", 8883)][..], 30));
    assert_eq!((mqtt.user.as_deref(), mqtt.client_id.as_str()), (Some("zuul"), "zuul-scheduler"));
    assert_eq!(mqtt.password.as_ref().unwrap().expose(), "hun%ter2 # still the password");
    let tls = mqtt.tls.as_ref().unwrap();
    assert_eq!((tls.ca_certs.clone(), tls.ciphers.as_deref()), (files.path("ca.pem"), Some("ECDHE+AESGCM")));
    let identity = tls.identity.as_ref().unwrap();
    assert_eq!((identity.certfile.clone(), identity.keyfile.clone()), (files.path("client.pem"), files.path("client.key")));
}

#[test]
fn what_is_empty_is_not_there_as_for_zuul() {
    let files = with("[connection mqtt]\ndriver=mqtt\nuser=\npassword=\nca_certs=\ncertfile=\nkeyfile=\nciphers=\nclient_id=\n");
    let mqtt = &files.load(CONF).connections[0];
    assert_eq!((mqtt.user.as_deref(), mqtt.tls.as_ref(), mqtt.client_id.as_str()), (None, None, "tidings"));
    let files = with("[connection mqtt]\ndriver=mqtt\nserver=\nport=\nkeepalive=\n");
    let found = files.mistakes(CONF);
    let line = first();
    let expected = ["server", "port", "keepalive"].iter().enumerate();
    let expected: Vec<String> =
        expected.map(|(place, key)| format!("zuul.conf:{}: connection.mqtt.{key}: is empty", line + 2 + place)).collect();
    assert_eq!(found, expected);
}

#[test]
fn what_zuul_ignores_is_noted_and_no_mistake() {
    let files = with(
        "[connection mqtt]\ndriver=mqtt\nworkers=4\npassword=secret\nserver=a\n[connection 'mqtt']\ndriver=mqtt\nserver=b\nretain=yes\n",
    );
    let line = first();
    let notes = files.notes(CONF);
    assert_eq!(
        notes,
        [
            format!("zuul.conf:{}: connection.mqtt.workers: Zuul doesn't know this key and ignores it, and so does Tidings", line + 2),
            format!("zuul.conf:{}: connection.mqtt.password: there is no `user`; as in Zuul, no password is sent", line + 3),
            format!("zuul.conf:{}: connection.mqtt.retain: Zuul doesn't know this key and ignores it, and so does Tidings", line + 8),
            format!("zuul.conf:{}: the connection `mqtt` stands in line {line} already; as in Zuul, the later one counts", line + 5),
        ]
    );
    let config = files.load(CONF);
    let [mqtt] = &config.connections[..] else { panic!("one connection") };
    assert_eq!((&mqtt.servers[..], mqtt.password.as_ref()), (&[Address::tcp("b", 1883)][..], None));
    let output = files.tidings(&["check"], &[]);
    assert!(String::from_utf8(output.stdout).unwrap().contains("note: "), "tidings check shows them");
    assert_eq!(with("").notes(CONF), ["zuul.conf: there is no connection with `driver=mqtt`"]);
}

#[test]
fn every_mistake_is_named_with_file_line_and_key() {
    let files = with(
        r#"[connection a]
server=x
[connection b]
driver=mqtt
server=tcp://broker
port=70000
keepalive=1
certfile=/x
[connection c]
driver=mqtt
port=ten
client_id=a/b
server=%(no)s
other=%(neither)s
[connection d]
driver=%(nothing)s
[connection two words]
driver=mqtt
user=%(password)s
password=secret
"#,
    );
    let found = files.mistakes(CONF);
    let line = |of: usize| first() + of - 1;
    let missing = |name: &str| {
        format!(
            "refers to `%({name})s`, which is neither in this section nor in [DEFAULT] nor, in capitals, a ZUUL_ variable of the environment"
        )
    };
    let starts: Vec<String> = [
        (1, "connection.a.driver: is required".to_owned()),
        (5, "connection.b.server: expected a host name or an address without a scheme".to_owned()),
        (6, "connection.b.port: expected a whole number from 1 to 65535, found 70000".to_owned()),
        (7, "connection.b.keepalive: expected a whole number from 5 to 65535, found 1".to_owned()),
        (8, "connection.b.certfile: ".to_owned()),
        (8, "connection.b.certfile: ".to_owned()),
        (11, "connection.c.port: expected a whole number from 1 to 65535, found \"ten\"".to_owned()),
        (12, "connection.c.client_id: expected 1 to 64 letters".to_owned()),
        (13, format!("connection.c.server: {}", missing("no"))),
        (14, format!("connection.c.other: {}", missing("neither"))),
        (16, format!("connection.d.driver: {}", missing("nothing"))),
        (17, "connection.two words: a connection's name is 1 to 64 letters".to_owned()),
        (19, "connection.two words.user: is made of the password".to_owned()),
    ]
    .map(|(of, text)| format!("zuul.conf:{}: {text}", line(of)))
    .into();
    assert_eq!(found.len(), starts.len(), "{found:#?}");
    for (found, start) in found.iter().zip(starts) {
        assert!(found.starts_with(&start), "{found}\n{start}");
    }
}

#[test]
fn what_python_would_refuse_the_file_for_is_a_mistake() {
    let found = Files::conf("driver=mqtt\n[connection a]\ndriver=mqtt\nDRIVER=mqtt\nnonsense\n[connection a]\n").mistakes(CONF);
    assert_eq!(
        found,
        [
            "zuul.conf:1: stands before the first `[section]`",
            "zuul.conf:4: [connection a] driver: stands in line 3 already",
            "zuul.conf:5: expected `[section]`, `key = value`, or the indented next line of a value",
            "zuul.conf:6: [connection a]: stands in line 2 already",
        ]
    );
    // Without it nobody knows which reporters are ours, and that is not said of each of them.
    let files = Files::new();
    files.write("p.yaml", "- pipeline: {name: p, start: {mqtt: {topic: t}}}\n");
    let found = files.mistakes("\n[zuul]\nconf = '@/nowhere.conf'\npipelines = ['@/p.yaml']\n");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("tidings.toml:3: zuul.conf: nowhere.conf can't be read: "), "{found:?}");
}

#[test]
fn a_password_is_in_no_message() {
    for password in ["hunter2%", "%(hunter2)s", "hunter2%(", &"hunter2".repeat(10_000)] {
        let files = with(&format!("[connection mqtt]\ndriver=mqtt\nuser=u\npassword={password}\n"));
        let found = files.mistakes(CONF);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(&format!("zuul.conf:{}: connection.mqtt.password: ", first() + 3)), "{found:?}");
        assert!(!found[0].contains("hunter2"), "{found:?}");
    }
    let files = with("[connection mqtt]\ndriver=mqtt\nuser=u\npassword=hunter2\nport=%(password)s\nkeepalive=%(port)s\n");
    let found = files.mistakes(CONF);
    assert!(found.len() == 2 && !found.concat().contains("hunter2"), "{found:?}");
}

#[test]
fn a_connection_of_tidings_toml_takes_the_place_of_zuuls_as_a_whole() {
    // Zuul's points at Tidings, and what else is wrong with it doesn't count.
    let files = with("[connection mqtt]\ndriver=mqtt\nserver=127.0.0.1\nport=1884x\nuser=zuul\n");
    let own = "[connection.mqtt]\ndriver = 'mqtt'\nserver = 'broker.example.com'\n[zuul]\nconf = '@/zuul.conf'\n";
    let config = files.load(own);
    let [mqtt] = &config.connections[..] else { panic!("one connection") };
    assert_eq!((&mqtt.servers[..], mqtt.user.as_deref()), (&[Address::tcp("broker.example.com", 1883)][..], None));
    assert_eq!(
        files.notes(own),
        [format!("zuul.conf:{}: the connection `mqtt` is given in tidings.toml, and what stands here is not used", first())]
    );
}

#[test]
fn variables_of_the_environment_are_defaults_as_for_zuul() {
    let files = with("[connection mqtt]\ndriver=mqtt\nserver=%(ZUUL_BROKER)s\n");
    files.write("tidings.toml", "[zuul]\nconf = 'zuul.conf'\n");
    let output = files.tidings(&["check", "--json"], &[("ZUUL_BROKER", "from-the-environment.example.com")]);
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["connections"][0]["server"], "from-the-environment.example.com");
    let output = files.tidings(&["check"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("connection.mqtt.server: refers to `%(zuul_broker)s`"));
}

#[test]
fn the_section_itself_has_no_mistakes_either() {
    let files = Files::new();
    assert_eq!(files.mistakes("[zuul]\nconfig = 'x'\n"), ["tidings.toml:2: zuul.config: unknown key; did you mean `conf`?"]);
    assert_eq!(files.mistakes("[zuul]\nconf = 3\n"), ["tidings.toml:2: zuul.conf: expected a text in quotes that is not empty, found 3"]);
    assert_eq!(files.mistakes("[zuul]\npipelines = 'x'\n"), ["tidings.toml:2: zuul.pipelines: expected a list of paths, found \"x\""]);
    let found =
        files.mistakes("[zuul]\npipelines = [3, '', { path = 'x' }, { tenant = 'a' }, { tenant = 'a', path = '/nowhere', more = 1 }]\n");
    assert_eq!(found.len(), 6, "{found:#?}");
    assert!(found[0].starts_with("tidings.toml:2: zuul.pipelines[0]: expected a path in quotes, or `{ tenant"), "{found:#?}");
    assert!(found[2].ends_with("zuul.pipelines[2].tenant: is required: the tenant whose pipelines these are"), "{found:#?}");
    assert!(found[3].ends_with("zuul.pipelines[3].path: is required: a file or a folder"), "{found:#?}");
    assert!(found[5].contains("zuul.pipelines[4].path: /nowhere can't be read"), "{found:#?}");
    files.load("[zuul]\n");
}
