//! What `GET /metrics` shows, as a scrape sees it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::COMMAND_LIMIT;

/// One scrape.
#[derive(Debug)]
pub struct Scrape(String);

impl Scrape {
    /// Asks the daemon that listens on `socket`.
    pub fn of(socket: &Path) -> Self {
        let mut line = UnixStream::connect(socket).expect("the daemon listens");
        line.set_read_timeout(Some(COMMAND_LIMIT)).expect("a timeout");
        line.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").expect("a request");
        let mut answer = String::new();
        line.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains("text/plain; version=0.0.4"), "{answer}");
        Self(answer)
    }

    /// The sum of the samples of `name` whose labels contain all of `labels`, such as `backend="fuse2"`.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.samples(name, labels).sum()
    }

    /// Whether there is such a sample.
    pub fn has(&self, name: &str, labels: &[&str]) -> bool {
        self.samples(name, labels).next().is_some()
    }

    fn samples<'a>(&'a self, name: &'a str, labels: &'a [&str]) -> impl Iterator<Item = f64> + 'a {
        self.0.lines().filter_map(move |line| {
            let rest = line.strip_prefix(name)?;
            let (shown, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.rsplit_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            labels.iter().all(|label| shown.contains(label)).then(|| value.parse().expect("a number"))
        })
    }
}
