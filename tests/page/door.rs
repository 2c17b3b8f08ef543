//! What stands before the service where a test needs it to answer otherwise: it looks at each request, answers by itself, or passes it on.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// A request, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub method: String,
    pub path: String,
    /// In lower case, as they came.
    pub head: String,
    pub body: String,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value))
    }
}

type Answer = dyn FnMut(&Asked) -> Option<(u16, String)> + Send;

/// Lives as long as the test's process.
pub struct Door {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Door {
    /// Answers with what `answer` says: a status and JSON; where it says nothing the service does.
    pub fn before(service: SocketAddr, answer: impl FnMut(&Asked) -> Option<(u16, String)> + Send + 'static) -> Door {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answer: Arc<Mutex<Box<Answer>>> = Arc::new(Mutex::new(Box::new(answer)));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                // Who goes away has seen enough.
                thread::spawn(move || drop(serve(stream, service, &answer, &seen)));
            }
        });
        Door { address, asked }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What was asked of this path.
    pub fn asked(&self, method: &str, path: &str) -> Vec<Asked> {
        self.asked.lock().unwrap().iter().filter(|asked| asked.method == method && asked.path == path).cloned().collect()
    }
}

fn serve(mut stream: TcpStream, service: SocketAddr, answer: &Mutex<Box<Answer>>, seen: &Mutex<Vec<Asked>>) -> io::Result<()> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        let mut some = [0; 4096];
        let count = stream.read(&mut some)?;
        if count == 0 {
            return Ok(());
        }
        bytes.extend_from_slice(&some[..count]);
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let length =
        head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.trim().parse::<usize>().ok()).unwrap_or(0);
    let mut rest = vec![0; (end + length).saturating_sub(bytes.len())];
    stream.read_exact(&mut rest)?;
    bytes.extend(rest);
    let mut line = head.split(' ');
    let (method, path) = (line.next().unwrap_or_default().to_owned(), line.next().unwrap_or_default().to_owned());
    let asked = Asked { method, path, head: head.clone(), body: String::from_utf8_lossy(&bytes[end..]).into_owned() };
    seen.lock().unwrap().push(asked.clone());
    let own = answer.lock().unwrap()(&asked);
    if let Some((status, body)) = own {
        let length = body.len();
        return write!(
            stream,
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
    }
    let mut service = TcpStream::connect(service)?;
    // One request a connection, so that the next is looked at, too.
    let head = head.lines().filter(|line| !line.to_lowercase().starts_with("connection:")).collect::<Vec<_>>().join("\r\n");
    service.write_all(head.trim_end().as_bytes())?;
    service.write_all(b"\r\nConnection: close\r\n\r\n")?;
    service.write_all(&bytes[end..])?;
    let (mut back, mut to) = (service.try_clone()?, stream.try_clone()?);
    // When the browser has gone the service is to know.
    thread::spawn(move || {
        let _ = io::copy(&mut stream, &mut io::sink());
        let _ = service.shutdown(Shutdown::Both);
    });
    io::copy(&mut back, &mut to)?;
    to.shutdown(Shutdown::Both)
}
