//! A client that speaks HTTP by hand: what it sends can be wrong, slow, or broken off.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value as Json, json};

/// No answer takes as long; a server that hangs fails its test by this.
const PATIENCE: Duration = Duration::from_secs(60);

/// A reply.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Json {
        serde_json::from_str(&self.body).unwrap_or_else(|problem| panic!("{problem}: {self:#?}"))
    }

    /// Asserts a status and OpenAI's error form, whose message has all of `parts`.
    #[track_caller]
    pub fn refused(&self, status: u16, parts: &[&str]) -> &Reply {
        assert_eq!(self.status, status, "{self:#?}");
        let error = &self.json()["error"];
        let fields = error.as_object().expect("OpenAI's error form");
        let keys: Vec<&str> = fields.keys().map(String::as_str).collect();
        assert_eq!(keys, ["message", "type", "param", "code"]);
        let message = error["message"].as_str().unwrap();
        for part in parts {
            assert!(message.contains(part), "wanted {part} in {message}");
        }
        self
    }

    /// The text of an answer that came whole.
    #[track_caller]
    pub fn answer(&self) -> String {
        assert_eq!(self.status, 200, "{self:#?}");
        let json = self.json();
        let content = &json["choices"][0]["message"]["content"];
        content.as_str().expect("an answer").to_owned()
    }

    /// The events of a stream that came to its end.
    #[track_caller]
    pub fn events(&self) -> Vec<Json> {
        assert_eq!(self.status, 200, "{self:#?}");
        let mut events: Vec<&str> = self.body.split("\n\n").collect();
        assert_eq!(events.pop(), Some(""));
        assert_eq!(events.pop(), Some("data: [DONE]"), "{self:#?}");
        let json = |event: &str| serde_json::from_str(event.strip_prefix("data: ").unwrap());
        events
            .into_iter()
            .map(|event| json(event).unwrap())
            .collect()
    }
}

/// Opens a connection.
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The bytes of a request that closes its connection.
pub fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: keel\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Reads a reply to its end.
pub fn read(stream: TcpStream) -> Reply {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(reader.read_line(&mut head).expect("a reply"), 0, "{head}");
    }
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let is_chunked = head.to_lowercase().contains("transfer-encoding: chunked");
    let mut body = Vec::new();
    if is_chunked {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size).unwrap();
            let size = usize::from_str_radix(size.trim(), 16).expect("the size of a chunk");
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).unwrap();
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                break;
            }
        }
    } else {
        // A server that closes with bytes of the request unread ends the connection by a reset, after its reply.
        let _ = reader.read_to_end(&mut body);
    }
    Reply {
        status: status.expect("a status"),
        head,
        body: String::from_utf8(body).expect("UTF-8"),
    }
}

/// Sends a request and reads the reply.
pub fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> Reply {
    let mut stream = connect(address);
    // Refused before it is read, a request breaks off.
    let _ = stream.write_all(&request(method, path, body));
    read(stream)
}

/// Asks for a chat completion.
pub fn complete(address: SocketAddr, body: &Json) -> Reply {
    ask(address, "POST", "/v1/chat/completions", &body.to_string())
}

/// Sends a request, reads until the first event, and goes away.
pub fn leave_mid_stream(address: SocketAddr, body: &Json) {
    let mut stream = connect(address);
    let bytes = request("POST", "/v1/chat/completions", &body.to_string());
    stream.write_all(&bytes).unwrap();
    let mut some = [0; 256];
    assert_ne!(stream.read(&mut some).unwrap(), 0);
    stream.shutdown(Shutdown::Both).unwrap();
}

/// A request of the run `model` with one message of the user's, answered greedily.
pub fn body(content: Json) -> Json {
    json!({
        "model": "run",
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
    })
}

/// The part of a content that is an image.
pub fn image_part(kind: &str, bytes: &[u8]) -> Json {
    use base64::Engine as _;
    let data = base64::engine::general_purpose::STANDARD.encode(bytes);
    json!({"type": "image_url", "image_url": {"url": format!("data:image/{kind};base64,{data}")}})
}

/// The part of a content that is a text.
pub fn text(text: &str) -> Json {
    json!({"type": "text", "text": text})
}
