//! A small object store on 127.0.0.1 that a test runs: it answers range requests as S3, Google's, Azure's and a plain web
//! server do, and can be told to fail in every way that one may.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

/// What a server does with a request instead of answering it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Answers with this status.
    Status(u16),
    /// Says how much is to come and closes the connection after half of it.
    Cut,
    /// Answers with the range that begins a byte later.
    Shifted,
    /// Answers with the whole object.
    Whole,
    /// Sends nothing until the client goes.
    Silent,
    /// Sends byte after byte, more slowly than anybody waits.
    Slow,
    /// Leads to another place; to itself where that is the same.
    Redirect(String),
}

/// Which fault a request meets: its number, and the object that it asks for.
pub type Plan = Box<dyn Fn(u64, &str) -> Option<Fault> + Send + Sync>;

/// An object and the tag that tells this version of it.
#[derive(Clone)]
struct Held {
    bytes: Arc<Vec<u8>>,
    tag: Option<String>,
}

#[derive(Default)]
struct State {
    objects: Mutex<BTreeMap<String, Held>>,
    plan: Mutex<Option<Plan>>,
    requests: AtomicU64,
    /// The last request's first line and headers.
    last: Mutex<Vec<String>>,
    stopped: AtomicBool,
}

/// See the module's documentation. It ends when it is dropped.
pub struct StoreServer {
    address: SocketAddr,
    state: Arc<State>,
    listener: Option<JoinHandle<()>>,
}

impl StoreServer {
    /// A server of these objects.
    pub fn new(objects: &[(&str, &[u8])]) -> StoreServer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let state = Arc::new(State::default());
        let of_thread = state.clone();
        let listener = spawn(move || {
            for stream in listener.incoming() {
                if of_thread.stopped.load(Ordering::SeqCst) {
                    break;
                }
                if let Ok(stream) = stream {
                    let state = of_thread.clone();
                    spawn(move || serve(&state, stream));
                }
            }
        });
        let server = StoreServer {
            address,
            state,
            listener: Some(listener),
        };
        for (name, bytes) in objects {
            server.put(name, bytes);
        }
        server
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Puts an object in place of the one of that name. Its tag is that of its content.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let tag = Some(format!("\"{}\"", &blake3::hash(bytes).to_hex()[..16]));
        let held = Held {
            bytes: Arc::new(bytes.to_vec()),
            tag,
        };
        self.objects().insert(name.to_owned(), held);
    }

    /// Takes the tag of every object away: only their sizes tell them.
    pub fn without_tags(&self) {
        self.objects().values_mut().for_each(|held| held.tag = None);
    }

    fn objects(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Held>> {
        self.state.objects.lock().unwrap()
    }

    /// Meets requests with faults from now on, counted from zero.
    pub fn fail(&self, plan: impl Fn(u64, &str) -> Option<Fault> + Send + Sync + 'static) {
        *self.state.plan.lock().unwrap() = Some(Box::new(plan));
        self.state.requests.store(0, Ordering::SeqCst);
    }

    /// Answers every request from now on.
    pub fn mend(&self) {
        *self.state.plan.lock().unwrap() = None;
        self.state.requests.store(0, Ordering::SeqCst);
    }

    /// Requests since the last of [`StoreServer::fail`] and [`StoreServer::mend`].
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::SeqCst)
    }

    /// The last request's first line and headers.
    pub fn last_request(&self) -> Vec<String> {
        self.state.last.lock().unwrap().clone()
    }
}

impl Drop for StoreServer {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for a connection.
        let _ = TcpStream::connect(self.address);
        if let Some(listener) = self.listener.take() {
            listener.join().expect("the listener does not panic");
        }
    }
}

/// Answers the requests of one connection.
fn serve(state: &State, stream: TcpStream) {
    let Ok(read) = stream.try_clone() else { return };
    let mut reader = BufReader::new(read);
    while let Some(request) = next_request(&mut reader) {
        let number = state.requests.fetch_add(1, Ordering::SeqCst);
        *state.last.lock().unwrap() = request.clone();
        if answer(state, &stream, &request, number).is_none() {
            return;
        }
    }
}

/// The first line and the headers, in lower case but for the first.
fn next_request(reader: &mut impl BufRead) -> Option<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            return Some(lines);
        }
        lines.push(line);
    }
}

/// The bytes that a request asks for.
fn asked(request: &[String]) -> Option<(usize, usize)> {
    let range = request.iter().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("range").then(|| value.trim())
    })?;
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().ok()?, last.parse::<usize>().ok()? + 1))
}

/// A name without its percent signs.
fn decoded(name: &str) -> Option<String> {
    let mut parts = name.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok()
}

/// Writes an answer; nothing where the connection is over.
fn answer(state: &State, mut stream: &TcpStream, request: &[String], number: u64) -> Option<()> {
    let mut words = request.first()?.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let name = target.trim_start_matches('/').split('?').next()?;
    let name = decoded(name)?;
    // Azure's emulator puts its account before the container.
    let name = name.trim_start_matches("devstoreaccount1/");
    let fault = state
        .plan
        .lock()
        .unwrap()
        .as_ref()
        .and_then(|plan| plan(number, name));
    let status = |stream: &mut &TcpStream, status: u16, more: &str| {
        let text = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n{more}\r\n");
        stream.write_all(text.as_bytes()).ok()
    };
    match &fault {
        Some(Fault::Status(code)) => return status(&mut stream, *code, ""),
        Some(Fault::Redirect(place)) => {
            return status(&mut stream, 302, &format!("location: {place}\r\n"));
        }
        Some(Fault::Silent) => {
            let _ = stream.read(&mut [0]);
            return None;
        }
        _ => {}
    }
    let held = state.objects.lock().unwrap().get(name).cloned();
    let Some(Held { bytes, tag }) = held else {
        return status(&mut stream, 404, "");
    };
    let tag = tag.map_or(String::new(), |tag| format!("etag: {tag}\r\n"));
    let range = asked(request).filter(|_| fault != Some(Fault::Whole));
    let Some((start, end)) = range else {
        let length = bytes.len();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n{tag}\r\n");
        stream.write_all(head.as_bytes()).ok()?;
        return if method == "HEAD" {
            Some(())
        } else {
            stream.write_all(&bytes).ok()
        };
    };
    let end = end.min(bytes.len());
    if start >= end {
        return status(&mut stream, 416, "");
    }
    let shift = usize::from(fault == Some(Fault::Shifted) && end - start > 1);
    let start = start + shift;
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\ncontent-length: {}\r\ncontent-range: bytes {start}-{}/{}\r\nlast-modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n{tag}\r\n",
        end - start,
        end - 1,
        bytes.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    let body = &bytes[start..end];
    match fault {
        Some(Fault::Cut) => {
            stream.write_all(&body[..body.len() / 2]).ok()?;
            None
        }
        Some(Fault::Slow) => {
            for byte in body {
                stream.write_all(&[*byte]).ok()?;
                std::thread::sleep(Duration::from_millis(100));
            }
            None
        }
        _ => stream.write_all(body).ok(),
    }
}
