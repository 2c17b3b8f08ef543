//! What is to be changed in `zuul.conf`, line by line, so that Zuul publishes to Tidings.

use std::path::Path;

use super::LISTENER;
use crate::config::zuul::MqttConnection;

/// What TLS is asked for with. The written listener has none.
const TLS_OPTIONS: [&str; 4] = ["ca_certs", "certfile", "keyfile", "ciphers"];

/// The advice, for a person to follow.
pub(super) fn text(conf: &Path, connections: &[MqttConnection]) -> String {
    let Some((first, others)) = connections.split_first() else { return String::new() };
    let file = conf.display();
    let mut text =
        format!("\nTo have Zuul publish to Tidings, which passes it on to connection {}, change in [{}]:\n", first.name, first.section);
    for line in changes(first) {
        text += &format!("  {file}:{line}\n");
    }
    text += "User and password may stay: the listener asks for none on loopback.\n";
    for other in others {
        text += &format!(
            "{file}:{}: leave [{}] as it is: the listener leads to connection {} alone, so Zuul goes on publishing there by itself.\n",
            other.line, other.section, first.name
        );
    }
    text += "Start Tidings first, and then restart Zuul's schedulers: Zuul doesn't try again if its first attempt to connect fails.\n";
    text
}

/// Each with its line.
fn changes(connection: &MqttConnection) -> Vec<String> {
    let mut changes = Vec::new();
    for (name, value) in [("server", LISTENER.ip().to_string()), ("port", LISTENER.port().to_string())] {
        changes.push(match connection.option(name) {
            Some(option) if !option.is_default => format!("{}: {name}={value}    (was: {})", option.line, shown(option.written.as_deref())),
            Some(option) => {
                let line = option.line;
                format!(
                    "{}: add below: {name}={value}    (was, from [DEFAULT] in line {line}: {})",
                    connection.line,
                    shown(option.written.as_deref())
                )
            }
            None => format!("{}: add below: {name}={value}    (was not there)", connection.line),
        });
    }
    for name in TLS_OPTIONS {
        changes.extend(connection.option(name).map(|option| match option.is_default {
            false => format!("{}: take out: {name}    (the listener is plain MQTT on loopback)", option.line),
            true => format!("{}: add below: {name}=    (takes back what [DEFAULT] says in line {})", connection.line, option.line),
        }));
    }
    changes
}

/// A value on one line.
fn shown(written: Option<&str>) -> String {
    written.unwrap_or_default().lines().collect::<Vec<_>>().join(" ")
}
