//! The broker at one address for all instances, and a wire for each: whose connection it is, is found out by the system's table of sockets.
//!
//! One address, because a broker at another address is another broker: whoever takes over a lane would begin a new session there, and what was in flight
//! would be sent again in it.

use std::collections::HashSet;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;

use crate::support::relay::Relay;
use crate::support::tidings::Tidings;

pub struct Switch {
    pub address: SocketAddr,
    target: SocketAddr,
    lines: Arc<Mutex<Lines>>,
}

#[derive(Default)]
struct Lines {
    /// Each with the configuration file of its instance, which stands in the command line.
    of: Vec<(PathBuf, Arc<Relay>)>,
    is_over: bool,
}

impl Switch {
    pub fn start(target: SocketAddr) -> Switch {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, lines) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Lines::default())));
        let at_work = Arc::clone(&lines);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let lines = at_work.lock().unwrap();
                if lines.is_over {
                    return;
                }
                // Whoever has gone in the meantime is nobody's.
                let Some(stream) = stream.ok() else { continue };
                if let Some(line) = stream.peer_addr().ok().and_then(|peer| line_of(&lines.of, peer)) {
                    line.take(stream);
                }
            }
        });
        Switch { address, target, lines }
    }

    /// A wire for this instance.
    pub fn line_for(&self, tidings: &Tidings) -> Arc<Relay> {
        let relay = Arc::new(Relay::start(self.target));
        self.lines.lock().unwrap().of.push((tidings.config_file(), Arc::clone(&relay)));
        relay
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.lines.lock().unwrap().is_over = true;
        // So that it sees that.
        let _ = TcpStream::connect(self.address);
    }
}

/// The wire of whose socket this is.
fn line_of(lines: &[(PathBuf, Arc<Relay>)], peer: SocketAddr) -> Option<&Relay> {
    let inode = format!("socket:[{}]", inode_of(peer)?);
    for process in fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path()) {
        let Ok(command) = fs::read(process.join("cmdline")) else { continue };
        let words: HashSet<&[u8]> = command.split(|byte| *byte == 0).collect();
        let Some((_, line)) = lines.iter().find(|(config, _)| words.contains(config.as_os_str().as_encoded_bytes())) else { continue };
        let mut sockets = fs::read_dir(process.join("fd")).ok()?.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        if sockets.any(|socket| socket.as_os_str() == inode.as_str()) {
            return Some(line);
        }
    }
    None
}

/// The socket at this address on this machine, as `/proc/net/tcp` has it: the address in hexadecimal, of an address of IP version 4 byte by byte from the last on.
fn inode_of(address: SocketAddr) -> Option<String> {
    let SocketAddr::V4(address) = address else { return None };
    let local = format!("{:08X}:{:04X}", u32::from_le_bytes(address.ip().octets()), address.port());
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let row = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|row| row.get(1) == Some(&local.as_str()))?;
    row.get(9).map(|inode| (*inode).to_owned())
}
