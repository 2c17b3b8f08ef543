//! Whether a broker's address is Tidings' own MQTT listener. What comes in there would go out there, and come in again.
//!
//! Names are not looked up: a configuration is also read while there is no network. So `localhost` and this machine's own name are
//! known, and another name for it is not; the listener's refusal of Tidings' own client ids is what catches that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// What a machine calls itself, and which addresses it has.
#[derive(Clone, Copy)]
pub struct Machine<'m> {
    /// Its host name; with or without a domain.
    pub name: Option<&'m str>,
    /// Whether an address is one of its own.
    pub has: &'m dyn Fn(IpAddr) -> bool,
}

/// Where connections to a server end up, as far as that is known without asking anybody.
enum Destination {
    /// At one of these addresses.
    At(Vec<IpAddr>),
    /// At this machine, at an address other than loopback.
    OwnName,
    /// Elsewhere.
    Unknown,
}

/// Whether connecting to `server` and `port` leads to `listener`, on this `machine`.
pub fn leads_to(server: &str, port: u16, listener: SocketAddr, machine: Machine<'_>) -> bool {
    if port != listener.port() {
        return false;
    }
    let listens_at = listener.ip().to_canonical();
    match destination(server, machine) {
        Destination::At(addresses) => addresses.into_iter().any(|address| reaches(address, listens_at, machine)),
        Destination::OwnName => !listens_at.is_loopback(),
        Destination::Unknown => false,
    }
}

/// The same on the machine that this runs on.
pub fn leads_to_here(server: &str, port: u16, listener: SocketAddr) -> bool {
    // Linux has it there; without it only addresses are known.
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    // An address can be bound to where it is the machine's own, and nothing is sent by that.
    let has = |address: IpAddr| UdpSocket::bind((address, 0)).is_ok();
    leads_to(server, port, listener, Machine { name: name.as_deref().map(str::trim), has: &has })
}

fn destination(server: &str, machine: Machine<'_>) -> Destination {
    if let Ok(address) = server.parse::<IpAddr>() {
        return Destination::At(vec![address.to_canonical()]);
    }
    // A dot at the end says that a name is whole.
    let server = server.strip_suffix('.').unwrap_or(server).to_ascii_lowercase();
    let is_localhost = ["localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"].contains(&server.as_str());
    if is_localhost || server.ends_with(".localhost") {
        return Destination::At(vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]);
    }
    let own = machine.name.unwrap_or_default().to_ascii_lowercase();
    let short = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    // One of both may be without its domain; two different domains are two machines.
    let is_own = !own.is_empty() && (server == own || (short(&server) == short(&own) && (!server.contains('.') || !own.contains('.'))));
    if is_own { Destination::OwnName } else { Destination::Unknown }
}

/// Whether a connection to an address comes to who listens at another.
fn reaches(address: IpAddr, listens_at: IpAddr, machine: Machine<'_>) -> bool {
    // Connecting to "any address" is connecting to loopback, on Linux.
    let address = match address {
        IpAddr::V4(any) if any.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(any) if any.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        other => other,
    };
    if address == listens_at {
        return true;
    }
    let is_here = || address.is_loopback() || (machine.has)(address);
    match listens_at {
        IpAddr::V4(any) if any.is_unspecified() => address.is_ipv4() && is_here(),
        // Listening at [::] takes IPv4 too, unless the system says otherwise.
        IpAddr::V6(any) if any.is_unspecified() => is_here(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leads(server: &str, listener: &str) -> bool {
        let has = |address: IpAddr| ["192.0.2.7", "2001:db8::7"].contains(&address.to_string().as_str());
        leads_to(server, 1884, listener.parse().unwrap(), Machine { name: Some("Zuul01.example.com"), has: &has })
    }

    #[test]
    fn a_loopback_listener_is_reached_by_loopback_alone() {
        for server in ["127.0.0.1", "localhost", "LOCALHOST.", "zuul.localhost", "0.0.0.0", "::ffff:127.0.0.1"] {
            assert!(leads(server, "127.0.0.1:1884"), "{server}");
        }
        for server in ["127.0.0.2", "::1", "192.0.2.7", "zuul01", "broker.example.com", "mylocalhost"] {
            assert!(!leads(server, "127.0.0.1:1884"), "{server}");
        }
        assert!(leads("::1", "[::1]:1884") && leads("localhost", "[::1]:1884") && leads("::", "[::1]:1884"));
    }

    #[test]
    fn a_listener_at_every_address_is_reached_by_all_that_are_this_machine() {
        for server in ["127.0.0.1", "127.9.9.9", "localhost", "0.0.0.0", "192.0.2.7", "zuul01", "ZUUL01.example.com"] {
            assert!(leads(server, "0.0.0.0:1884"), "{server}");
            assert!(leads(server, "[::]:1884"), "{server}");
        }
        assert!(leads("2001:db8::7", "[::]:1884") && leads("::1", "[::]:1884"));
        for server in ["::1", "2001:db8::7", "192.0.2.8", "zuul02", "zuul01.example.net"] {
            assert!(!leads(server, "0.0.0.0:1884"), "{server}");
        }
    }

    #[test]
    fn a_listener_at_one_address_is_reached_by_that_and_by_the_machines_name() {
        for server in ["192.0.2.7", "::ffff:192.0.2.7", "zuul01"] {
            assert!(leads(server, "192.0.2.7:1884"), "{server}");
        }
        assert!(!leads("127.0.0.1", "192.0.2.7:1884") && !leads("localhost", "192.0.2.7:1884"));
    }

    #[test]
    fn another_port_is_another_server() {
        assert!(!leads_to_here("127.0.0.1", 1883, "127.0.0.1:1884".parse().unwrap()));
        assert!(leads_to_here("localhost", 1884, "127.0.0.1:1884".parse().unwrap()));
        assert!(leads_to_here("127.0.0.3", 1884, "0.0.0.0:1884".parse().unwrap()));
        assert!(!leads_to_here("192.0.2.1", 1884, "0.0.0.0:1884".parse().unwrap()));
    }
}
