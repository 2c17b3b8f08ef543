//! A wire between two processes that can be cut: a TCP relay on a port of its own.
//!
//! ```text
//!   Open      what comes is passed on
//!   Held      nothing passes, in neither direction, and nobody is told: what was sent comes when it is open again, as TCP has it after a cut
//!   HeldBack  the same for answers only: what the other side says waits here
//!   Broken    connections are reset, and new ones are closed at once
//! ```

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// What becomes of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    Open,
    Held,
    HeldBack,
    Broken,
}

/// The relay. Dropped, it breaks its connections and listens no more.
pub struct Relay {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    target: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    passage: Passage,
    /// Both ends of each connection, by its number.
    streams: Vec<(u64, TcpStream)>,
    next: u64,
    is_over: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    There,
    Back,
}

impl Relay {
    /// Listens, and connects to `target` for whoever comes. Nobody needs to be there yet.
    pub fn start(target: SocketAddr) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = State { passage: Passage::Open, streams: Vec::new(), next: 0, is_over: false };
        let shared = Arc::new(Shared { target, state: Mutex::new(state), changed: Condvar::new() });
        let at_work = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if at_work.state().is_over {
                    return;
                }
                stream.into_iter().for_each(|stream| at_work.take(stream));
            }
        });
        Relay { address, shared }
    }

    /// From now on it is so, for the connections that there are as well.
    pub fn set(&self, passage: Passage) {
        let mut state = self.shared.state();
        state.passage = passage;
        if passage == Passage::Broken {
            break_all(&mut state);
        }
        self.shared.changed.notify_all();
    }

    /// A connection that was accepted elsewhere goes this way.
    pub fn take(&self, stream: TcpStream) {
        self.shared.take(stream);
    }
}

fn break_all(state: &mut State) {
    for (_, stream) in state.streams.drain(..) {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until bytes of this way may pass; false if they never will.
    fn may_pass(&self, way: Way) -> bool {
        let is_held = |state: &mut State| {
            let is_held = match state.passage {
                Passage::Held => true,
                Passage::HeldBack => way == Way::Back,
                Passage::Open | Passage::Broken => false,
            };
            is_held && !state.is_over
        };
        let state = self.changed.wait_while(self.state(), is_held).unwrap_or_else(PoisonError::into_inner);
        state.passage != Passage::Broken && !state.is_over
    }

    fn take(self: &Arc<Self>, near: TcpStream) {
        let of_one = Arc::clone(self);
        // Whoever breaks off may do so at any moment: that is what the relay is for.
        thread::spawn(move || of_one.connect(near));
    }

    fn connect(self: Arc<Self>, near: TcpStream) -> Option<()> {
        if !self.may_pass(Way::There) {
            return None;
        }
        let far = TcpStream::connect(self.target).ok()?;
        near.set_nodelay(true).ok()?;
        far.set_nodelay(true).ok()?;
        let copies = [near.try_clone().ok()?, far.try_clone().ok()?];
        let number = {
            let mut state = self.state();
            if state.passage == Passage::Broken || state.is_over {
                return None;
            }
            state.next += 1;
            let number = state.next;
            state.streams.extend(copies.map(|stream| (number, stream)));
            number
        };
        let (there, back) = ((near.try_clone().ok()?, far.try_clone().ok()?), (far, near));
        let shared = Arc::clone(&self);
        let other = thread::spawn(move || shared.pump(back.0, back.1, Way::Back));
        self.pump(there.0, there.1, Way::There);
        let _ = other.join();
        self.state().streams.retain(|(of, _)| *of != number);
        Some(())
    }

    /// Passes bytes on, and the end too, when its turn comes.
    fn pump(&self, mut from: TcpStream, mut to: TcpStream, way: Way) {
        let mut bytes = [0; 16 << 10];
        loop {
            let read = from.read(&mut bytes);
            if !self.may_pass(way) {
                break;
            }
            match read {
                Ok(0) => {
                    let _ = to.shutdown(Shutdown::Write);
                    return;
                }
                Ok(count) if to.write_all(&bytes[..count]).is_ok() => {}
                _ => break,
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.is_over = true;
        break_all(&mut state);
        drop(state);
        self.shared.changed.notify_all();
        // So that it sees that.
        let _ = TcpStream::connect(self.address);
    }
}
