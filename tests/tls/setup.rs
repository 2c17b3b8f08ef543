//! Brokers with certificates, and the two questions that every test asks.

use std::path::PathBuf;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::certificates::{Authority, Issued, LOCAL};
use crate::support::ledger::Ledger;
use crate::support::mosquitto::{Mosquitto, free_port};
use crate::support::subscriber::Subscriber;
use crate::support::tidings::{PIPELINES, SOON, Tidings};
use crate::support::wait_until;

/// An authority, the files of everybody whom it knows, and a broker that has a listener in the clear and one with TLS.
pub struct Site {
    pub folder: TempDir,
    pub authority: Authority,
    /// The port with TLS.
    pub port: u16,
}

impl Site {
    /// The broker's certificate is for this machine; `@` in configurations is the folder.
    pub fn new() -> Site {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("authority");
        authority.write(&folder.path().join("ca.pem"));
        authority.issue(&LOCAL).write(folder.path(), "broker");
        Site { folder, authority, port: free_port() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A certificate, with its key, as files of this stem.
    pub fn write(&self, issued: &Issued, stem: &str) {
        issued.write(self.folder.path(), stem);
    }

    pub fn filled_in(&self, text: &str) -> String {
        text.replace("@/", &format!("{}/", self.folder.path().display()))
    }

    /// mosquitto, with these lines for its listener with TLS.
    pub fn broker(&self, lines: &str) -> Broker {
        Broker::of(self.prepare(lines))
    }

    /// The same, with TLS 1.2 at most.
    pub fn broker_of_tls_1_2(&self, lines: &str) -> Broker {
        let mosquitto = self.prepare(lines);
        let settings = "openssl_conf = all\n[all]\nssl_conf = ssl\n[ssl]\nsystem_default = limits\n[limits]\nMaxProtocol = TLSv1.2\n";
        std::fs::write(mosquitto.folder().join("openssl.cnf"), settings).unwrap();
        Broker::of(mosquitto)
    }

    fn prepare(&self, lines: &str) -> Mosquitto {
        let own = "certfile @/broker.pem\nkeyfile @/broker.key\n";
        Mosquitto::prepare(&self.filled_in(&format!("listener {} 127.0.0.1\n{own}{lines}\n", self.port)))
    }

    /// The connection `mqtt` to the listener with TLS.
    pub fn connection(&self, lines: &str) -> String {
        self.connection_to(&format!("server = \"127.0.0.1\"\nport = {}\nca_certs = \"@/ca.pem\"\n{lines}", self.port))
    }

    /// The connection `mqtt`, wherever these lines lead.
    pub fn connection_to(&self, lines: &str) -> String {
        self.filled_in(&format!("[connection.mqtt]\ndriver = \"mqtt\"\nworkers = 1\n{lines}\n")) + SOON + PIPELINES
    }
}

/// mosquitto, and who sees what arrives there.
pub struct Broker {
    pub mosquitto: Mosquitto,
    pub subscriber: Subscriber,
}

impl Broker {
    fn of(mut mosquitto: Mosquitto) -> Broker {
        mosquitto.run();
        let subscriber = Subscriber::start(mosquitto.port);
        Broker { mosquitto, subscriber }
    }

    pub fn start(lines: &str) -> Broker {
        Broker::of(Mosquitto::prepare(lines))
    }

    /// Its port in the clear.
    pub fn port(&self) -> u16 {
        self.mosquitto.port
    }
}

/// A report of each QoS arrives, in good order, and `check --connect` finds nothing wrong. Gives what the latter has said.
pub fn assert_delivers(broker: &Broker, config: &str) -> String {
    let before = broker.subscriber.count();
    let tidings = Tidings::start(config);
    let mut ledger = Ledger::default();
    for qos in [2, 1, 0] {
        ledger.post(&tidings, qos, &format!("widgets-{qos}"), u64::from(qos));
    }
    wait_until("the reports arrive", || broker.subscriber.count() >= before + 3);
    tidings.wait_until_delivered();
    ledger.assert_kept_in_any_order(&broker.subscriber.arrivals()[before..]);
    tidings.assert_balanced();
    assert_eq!(tidings.total("sent"), 1);
    let checked = check(&tidings, &[]);
    let said = String::from_utf8(checked.stdout).unwrap();
    assert_eq!(checked.status.code(), Some(0), "{said}");
    assert_eq!(tidings.logged("no connection to the broker").len(), 0, "the lanes were not disturbed");
    said
}

/// A report stays, and its lane's log and status and `check --connect` say this.
pub fn assert_says(config: &str, text: &str) {
    let tidings = Tidings::start(config);
    Ledger::default().post(&tidings, 2, "widgets", 1);
    let said = || tidings.logged("no connection to the broker");
    wait_until("the lane has tried", || !said().is_empty());
    let first = said()[0]["reason"].as_str().or(said()[0]["fields"]["reason"].as_str()).unwrap().to_owned();
    assert!(first.contains(text), "{text:?} is not what is said: {first}");
    let shown = text.replace('"', "\\\"");
    wait_until(&format!("the status says {text:?}"), || tidings.status("mqtt")["lanes"].to_string().contains(&shown));
    assert_eq!(tidings.total("pending"), 1);
    let checked = check(&tidings, &[]);
    let said = String::from_utf8(checked.stdout).unwrap();
    assert!(said.lines().any(|line| line.contains(": FAILED: ") && line.contains(text)), "{text:?} is not in {said}");
    assert_eq!(checked.status.code(), Some(1), "{said}");
}

/// `tidings check --connect` with the configuration of a service.
pub fn check(tidings: &Tidings, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command.args(["check", "--connect", "--config"]).arg(tidings.config_file()).args(more).output().unwrap()
}

/// The one mistake for which a configuration is refused, by `check` and by the service.
pub fn assert_refused(config: &str, text: &str) {
    let tidings = Tidings::prepare(config);
    let checked = check(&tidings, &[]);
    let said = String::from_utf8(checked.stderr).unwrap();
    assert!(said.contains(text) && said.lines().count() == 1, "{text:?} is not the one thing that is said: {said}");
    assert_eq!(checked.status.code(), Some(2));
    let (code, said) = tidings.refused();
    assert_eq!(code, Some(2), "{said}");
}
