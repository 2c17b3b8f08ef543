use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::config::{Config, from_str};
use crate::core::address::Address;

#[path = "../../../tests/support/certificates.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
pub(crate) mod certificates;

use certificates::{Authority, LOCAL};

/// An authority and somebody whom it knows, as files.
struct Files {
    folder: TempDir,
    authority: Authority,
}

impl Files {
    fn new() -> Files {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("authority");
        authority.write(&folder.path().join("ca.pem"));
        authority.issue(&LOCAL).write(folder.path(), "client");
        Files { folder, authority }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// A connection with these lines, in which `@` is the folder.
    fn load(&self, lines: &str) -> Result<Config, String> {
        let lines = lines.replace("@/", &format!("{}/", self.folder.path().display()));
        from_str(&format!("[connection.m]\ndriver = 'mqtt'\n{lines}\n"), "t").map_err(|errors| errors.to_string())
    }

    /// The mistakes in these lines, with the folder taken out again.
    fn mistakes(&self, lines: &str) -> Vec<String> {
        let errors = self.load(lines).expect_err(lines).replace(&self.folder.path().display().to_string(), "@");
        errors.lines().map(|line| line.strip_prefix("t:").unwrap().to_owned()).collect()
    }
}

#[test]
fn what_the_keys_say_is_what_connections_are_opened_with() {
    let files = Files::new();
    let config = files.load("ca_certs = '@/ca.pem'\ncertfile = '@/client.pem'\nkeyfile = '@/client.key'\nciphers = 'DHE+AESGCM'").unwrap();
    let identity = Identity { certfile: files.path("client.pem").into(), keyfile: files.path("client.key").into() };
    let expected = TlsConfig { ca_certs: files.path("ca.pem").into(), identity: Some(identity), ciphers: Some("DHE+AESGCM".into()) };
    assert_eq!(config.connections[0].tls, Some(expected));
    let plain = files.load("").unwrap();
    assert_eq!(plain.connections[0].tls, None);
}

#[test]
fn authorities_stand_in_a_file_or_in_the_certificate_files_of_a_folder() {
    let files = Files::new();
    let folder = files.folder.path().join("authorities");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("README"), "no certificate").unwrap();
    assert_eq!(files.mistakes("ca_certs = '@/authorities'"), ["3: connection.m.ca_certs: @/authorities holds no certificate in PEM"]);
    for name in ["a.crt", "0a1b2c3d.0"] {
        files.authority.write(&folder.join(name));
    }
    files.load("ca_certs = '@/authorities'").unwrap();
    std::fs::write(folder.join("b.pem"), "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n").unwrap();
    let found = files.mistakes("ca_certs = '@/authorities'");
    assert!(found[0].starts_with("3: connection.m.ca_certs: @/authorities/b.pem holds a certificate that can't be read: "), "{found:?}");
}

#[test]
fn zuuls_rules_hold() {
    let files = Files::new();
    assert_eq!(
        files.mistakes("certfile = '@/client.pem'"),
        [
            "3: connection.m.certfile: `certfile` and `keyfile` come together: `keyfile` is missing",
            "3: connection.m.certfile: needs `ca_certs`"
        ]
    );
    assert_eq!(
        files.mistakes("ca_certs = '@/ca.pem'\nkeyfile = '@/client.key'"),
        ["4: connection.m.keyfile: `certfile` and `keyfile` come together: `certfile` is missing"]
    );
    assert_eq!(files.mistakes("ciphers = 'HIGH'"), ["3: connection.m.ciphers: needs `ca_certs`"]);
    for empty in ["ca_certs = ''", "ca_certs = 3"] {
        let found = files.mistakes(empty);
        assert!(found[0].starts_with("3: connection.m.ca_certs: expected a text in quotes that is not empty, found "), "{found:?}");
    }
}

#[test]
fn files_that_can_not_be_used_are_named_all_at_once_and_never_quoted() {
    let files = Files::new();
    let found = files.mistakes("ca_certs = '@/no.pem'\ncertfile = '@/client.key'\nkeyfile = '@/client.pem'\nciphers = 'NO-SUCH'");
    assert_eq!(found[0], "3: connection.m.ca_certs: @/no.pem can't be read: No such file or directory (os error 2)");
    assert_eq!(found[1], "4: connection.m.certfile: @/client.key holds no certificate in PEM");
    assert!(found[2].starts_with("5: connection.m.keyfile: @/client.pem holds no private key in PEM ("), "{found:?}");
    assert!(found[3].starts_with("6: connection.m.ciphers: OpenSSL can select no cipher by this list (no cipher match)"), "{found:?}");
    assert_eq!(found.len(), 4);
    std::fs::write(files.folder.path().join("large.pem"), vec![b'x'; MAX_PEM as usize + 1]).unwrap();
    assert_eq!(files.mistakes("ca_certs = '@/large.pem'"), ["3: connection.m.ca_certs: @/large.pem has more than 4194304 bytes"]);
}

#[test]
fn a_key_is_not_encrypted_and_belongs_to_its_certificate() {
    let files = Files::new();
    let other = files.authority.issue(&LOCAL);
    other.write(files.folder.path(), "other");
    other.write_encrypted(&files.folder.path().join("hidden.key"));
    let with_key = |key: &str| files.mistakes(&format!("ca_certs = '@/ca.pem'\ncertfile = '@/client.pem'\nkeyfile = '@/{key}'"));
    assert_eq!(with_key("other.key"), ["5: connection.m.keyfile: @/other.key is not the key of the certificate in @/client.pem"]);
    assert_eq!(
        with_key("hidden.key"),
        [
            "5: connection.m.keyfile: @/hidden.key is encrypted; Tidings has nobody to ask for its passphrase: decrypt it with `openssl pkey`"
        ]
    );
}

#[test]
fn a_cipher_list_is_one_that_openssl_understands() {
    let files = Files::new();
    for ciphers in ["HIGH:!aNULL", "ECDHE-RSA-AES256-GCM-SHA384", "DHE+AESGCM", "DEFAULT:@SECLEVEL=1"] {
        files.load(&format!("ca_certs = '@/ca.pem'\nciphers = '{ciphers}'")).unwrap();
    }
    // The last is of TLS 1.3, which the list doesn't govern.
    for ciphers in ["X", "TLS_AES_128_GCM_SHA256"] {
        assert!(files.mistakes(&format!("ca_certs = '@/ca.pem'\nciphers = '{ciphers}'"))[0].contains("connection.m.ciphers: OpenSSL can"));
    }
    assert!(files.mistakes("ca_certs = '@/ca.pem'\nciphers = \"HIGH\\u0000\"")[0].ends_with("without control characters"));
}

#[test]
fn servers_stand_in_a_list_or_one_stands_under_server() {
    let files = Files::new();
    let servers = |lines: &str| files.load(lines).unwrap().connections[0].servers.clone();
    assert_eq!(servers("servers = ['a', '[::1]:8883']"), [Address::tcp("a", 1883), Address::tcp("::1", 8883)]);
    assert_eq!(servers("server = '::1'\nport = 8883"), [Address::tcp("::1", 8883)]);
    assert_eq!(servers("server = 'unix:/run/m.sock'"), [Address::Unix { path: "/run/m.sock".into() }]);
    assert_eq!(
        files.mistakes("server = 'a'\nport = 1\nservers = ['b']"),
        [
            "3: connection.m.server: there is `servers` too: give one of them",
            "4: connection.m.port: there is `servers` too: give one of them"
        ]
    );
    assert_eq!(files.mistakes("servers = []"), ["3: connection.m.servers: expected 1 to 16 brokers, found 0"]);
    assert!(files.mistakes("servers = 'a'")[0].starts_with("3: connection.m.servers: expected a list such as "));
    assert_eq!(
        files.mistakes("servers = [\n  'a',\n  'a:1883',\n  3,\n  'b:x',\n]"),
        [
            "5: connection.m.servers[1]: a:1883 stands in the list already",
            "6: connection.m.servers[2]: expected a text in quotes that is not empty, found 3",
            "7: connection.m.servers[3]: expected a port from 1 to 65535 after the last colon",
        ]
    );
    assert_eq!(
        files.mistakes("server = 'ws://a'\nport = 1883"),
        ["4: connection.m.port: `port` goes with a host name alone: here the port stands in `server`"]
    );
}

#[test]
fn an_address_and_tls_go_together() {
    let files = Files::new();
    files.load("server = 'wss://a'\nca_certs = '@/ca.pem'").unwrap();
    files.load("servers = ['wss://a', 'b:8883']\nca_certs = '@/ca.pem'").unwrap();
    files.load("servers = ['ws://a', 'unix:/m.sock', 'b']").unwrap();
    assert_eq!(
        files.mistakes("servers = ['a', 'wss://b']"),
        [
            "3: connection.m.servers[1]: wss://b:443/mqtt is reached over TLS: `ca_certs` is missing, the authorities that its certificate may come from"
        ]
    );
    assert_eq!(
        files.mistakes("server = 'ws://a'\nca_certs = '@/ca.pem'"),
        ["4: connection.m.ca_certs: asks for TLS, and ws://a:80/mqtt has none: write `wss://`, or leave `ca_certs` out"]
    );
    assert_eq!(
        files.mistakes("server = 'unix:/m.sock'\nca_certs = '@/ca.pem'"),
        ["4: connection.m.ca_certs: asks for TLS, and unix:/m.sock has none: it stays on this machine; leave `ca_certs` out"]
    );
}

#[test]
fn renewed_files_are_read_at_the_next_connect_and_broken_ones_are_no_connect() {
    let files = Files::new();
    let tls = files.load("ca_certs = '@/ca.pem'\ncertfile = '@/client.pem'\nkeyfile = '@/client.key'").unwrap().connections[0]
        .tls
        .clone()
        .unwrap();
    let shown = |tls: &TlsConfig| tls.context().map(|context| context.certificate().unwrap().serial_number().to_bn().unwrap());
    let first = shown(&tls).unwrap();
    let renewed = files.authority.issue(&LOCAL);
    renewed.write(files.folder.path(), "client");
    assert_ne!(shown(&tls).unwrap(), first);
    std::fs::write(Path::new(&files.path("client.key")), "half a ke").unwrap();
    let faults = shown(&tls).unwrap_err();
    assert!(faults.to_string().starts_with("`keyfile`: "), "{faults}");
}
