//! HTTP as it is on the wire, spoken by hand so that it can be spoken badly.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// For an answer.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to a listener.
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A request that changes something.
pub fn post(path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\n\r\n{body}"
    )
}

/// The header with a token.
pub fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// The detail of a problem; that it is one.
    pub fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        assert!(self.head.contains("content-type: application/problem+json"), "{self:?}");
        let problem: Value = serde_json::from_str(&self.body).unwrap();
        assert!(problem["status"] == status && problem["title"].is_string(), "{self:?}");
        problem["detail"].as_str().unwrap().to_owned()
    }

    /// The body, which is JSON.
    pub fn json(&self) -> Value {
        assert!(self.head.contains("content-type: application/json"), "{self:?}");
        serde_json::from_str(&self.body).unwrap()
    }
}

/// Asks, and reads the answer to its end.
pub fn ask(mut stream: impl Read + Write, request: &str) -> Answer {
    // A server that has heard enough may close before it has read everything.
    let _ = stream.write_all(request.as_bytes());
    read_answer(stream)
}

/// Reads an answer to its end.
pub fn read_answer(mut stream: impl Read) -> Answer {
    let mut text = Vec::new();
    if let Err(error) = stream.read_to_end(&mut text) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    let text = String::from_utf8(text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_ascii_lowercase(), body: body.into() }
}

/// A stream of events that is being read.
pub struct Listening<S>(BufReader<S>);

impl<S: Read + Write> Listening<S> {
    pub fn start(mut stream: S, last: Option<u64>) -> Self {
        let last = last.map_or_else(String::new, |id| format!("last-event-id: {id}\r\n"));
        write!(stream, "GET /api/v1/events HTTP/1.1\r\nhost: localhost\r\n{last}\r\n").unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).unwrap();
            assert!(!line.starts_with("HTTP/1.1") || line.contains("200"), "{line}");
        }
        Self(reader)
    }

    /// The next block, as its fields; `None` at the end.
    pub fn block(&mut self) -> Option<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            match line.trim_end_matches('\n').split_once(": ") {
                Some((name, value)) => fields.push((name.to_owned(), value.to_owned())),
                None if line == "\n" && !fields.is_empty() => return Some(fields),
                // Where chunks begin and end.
                None => {}
            }
        }
    }

    /// The next event, and the ids that came before it without one.
    pub fn event(&mut self) -> (u64, Value) {
        loop {
            let block = self.block().expect("an event");
            let field = |name: &str| block.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str());
            let Some(data) = field("data") else { continue };
            let data: Value = serde_json::from_str(data).unwrap();
            assert_eq!((field("event"), data["schema"].as_u64()), (data["event"].as_str(), Some(1)));
            let id = field("id").unwrap().parse().unwrap();
            assert_eq!(data["id"], id);
            return (id, data);
        }
    }

    /// The id that a client has learnt of when it listens.
    pub fn place(&mut self) -> u64 {
        let block = self.block().unwrap();
        block.iter().find(|(name, _)| name == "id").unwrap().1.parse().unwrap()
    }
}
