//! A fleet-wide verdict: one instant query to a Prometheus server (`GET /api/v1/query`), or whatever speaks its API.
//!
//! Whatever goes wrong is *no data*, with the reason in words, and never a breach: a candidate is not rolled back because
//! a server somewhere else is down.
//!
//! Plain `http` only, which needs nothing that the program does not have: a server that wants `https` is reached through a
//! proxy on this machine or beside it, which may also know a password. No proxy is taken from the environment, and no
//! redirection is followed.

use std::fmt::Display;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// More than any verdict needs: a vector of some ten thousand samples.
const LARGEST_ANSWER: usize = 4 << 20;
/// What is shown of a message of theirs.
const LONGEST_QUOTE: usize = 300;
/// What stays as it is in a query string (RFC 3986, unreserved).
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Asks, and waits for at most `limit` for the whole answer. Of several samples the highest counts, so that a query by
/// machine or by mount finds the worst one; samples that are no finite number (as 0 / 0 is none) do not.
///
/// To be asked one at a time: a resolver that hangs keeps a thread for longer than `limit`.
///
/// # Errors
/// Why there is nothing that could be judged.
pub async fn ask(url: &str, query: &str, limit: Duration) -> Result<f64, String> {
    let server = Server::parse(url)?;
    let said = timeout(limit, server.get(query)).await;
    let (status, body) = said.map_err(|_| format!("{} has not answered within {limit:?}", server.url))??;
    value_of(status, &body).map_err(|why| format!("{}: {why}", server.url))
}

struct Server {
    url: String,
    host: String,
    port: u16,
    /// What comes before `/api`, if it is served below a path.
    prefix: String,
}

impl Server {
    fn parse(url: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("{url} {what}: use http://HOST:PORT, and a path if it is served below one");
        let uri: Uri = url.parse().map_err(|_| wrong("cannot be understood"))?;
        if uri.scheme_str() != Some("http") {
            return Err(wrong("is not spoken"));
        }
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let authority = authority.ok_or_else(|| wrong("names more or less than a host"))?;
        // What stands behind the host and is no number is no port to the crate, and no mistake either.
        if authority.port_u16().is_none() && authority.as_str() != authority.host() {
            return Err(wrong("has a port that is none"));
        }
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            // `lookup_host` wants the address without brackets.
            host: authority.host().trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: authority.port_u16().unwrap_or(80),
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    async fn get(&self, query: &str) -> Result<(StatusCode, Bytes), String> {
        let unreachable = |why: &dyn Display| format!("{} cannot be reached: {why}", self.url);
        let broken = |why: &dyn Display| format!("{} does not answer as HTTP does: {why}", self.url);
        let path = format!("{}/api/v1/query?query={}", self.prefix, utf8_percent_encode(query, QUERY));
        let mut request = Request::get(path).header(header::ACCEPT, "application/json");
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        request = request.header(header::HOST, format!("{host}:{}", self.port));
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| broken(&error))?;
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|error| unreachable(&error))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| broken(&error))?;
        let exchange = async {
            let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), LARGEST_ANSWER).collect().await;
            let body = body.map_err(|error| match error.downcast_ref::<LengthLimitError>() {
                Some(_) => format!("the answer of {} is larger than {} MiB", self.url, LARGEST_ANSWER >> 20),
                None => broken(&error),
            })?;
            Ok((status, body.to_bytes()))
        };
        tokio::pin!(exchange);
        tokio::select! {
            biased;
            answer = &mut exchange => answer,
            // What the connection has failed of, the exchange is told.
            _ = connection => exchange.await,
        }
    }
}

/// What the API answers, `https://prometheus.io/docs/prometheus/latest/querying/api/`.
#[derive(Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
enum Said {
    Success {
        data: Data,
    },
    Error {
        #[serde(rename = "errorType")]
        kind: String,
        error: String,
    },
}

#[derive(Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum Data {
    Scalar(Point),
    Vector(Vec<Sample>),
    Matrix(serde::de::IgnoredAny),
    String(serde::de::IgnoredAny),
}

/// A time, and a number as text.
#[derive(Deserialize)]
struct Point(serde::de::IgnoredAny, String);

#[derive(Deserialize)]
struct Sample {
    /// Missing where it is a histogram.
    value: Option<Point>,
}

fn value_of(status: StatusCode, body: &[u8]) -> Result<f64, String> {
    let said = serde_json::from_slice::<Said>(body);
    let data = match said {
        // It has its own status codes for these, so the message says more.
        Ok(Said::Error { kind, error }) => {
            return Err(format!("Prometheus refuses the query ({}): {}", quote(&kind), quote(&error)));
        }
        _ if status != StatusCode::OK => return Err(format!("it answers with HTTP status {status}")),
        Ok(Said::Success { data }) => data,
        Err(error) => return Err(format!("it does not answer as Prometheus does: {}", quote(&error.to_string()))),
    };
    let points = match data {
        Data::Scalar(point) => vec![point],
        Data::Vector(samples) if samples.is_empty() => return Err("the result is empty".into()),
        Data::Vector(samples) => samples.into_iter().filter_map(|sample| sample.value).collect(),
        Data::Matrix(_) => return Err("the result is a range of time, and no number: ask for one moment".into()),
        Data::String(_) => return Err("the result is a text, and no number".into()),
    };
    if points.is_empty() {
        return Err("the result has histograms only, and no number".into());
    }
    let values = points.iter().filter_map(|Point(_, text)| text.parse::<f64>().ok()).filter(|value| value.is_finite());
    values.reduce(f64::max).ok_or_else(|| {
        let texts: Vec<_> = points.iter().take(3).map(|Point(_, text)| quote(text)).collect();
        format!("the result is no finite number ({})", texts.join(", "))
    })
}

/// A message of theirs on one line, and not a long one.
fn quote(text: &str) -> String {
    let text: String = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    match text.char_indices().nth(LONGEST_QUOTE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::scalar(r#"{"resultType":"scalar","result":[1.5,"0.25"]}"#, Ok(0.25))]
    #[case::one(r#"{"resultType":"vector","result":[{"metric":{},"value":[1.5,"7"]}]}"#, Ok(7.))]
    #[case::highest(
        r#"{"resultType":"vector","result":[{"value":[1,"-3"]},{"value":[1,"NaN"]},{"value":[1,"-1e-3"]},{"value":[1,"-2"]}]}"#,
        Ok(-0.001)
    )]
    #[case::nothing(r#"{"resultType":"vector","result":[]}"#, Err("the result is empty"))]
    #[case::not_a_number(r#"{"resultType":"scalar","result":[1,"NaN"]}"#, Err("no finite number (NaN)"))]
    #[case::infinite(r#"{"resultType":"vector","result":[{"value":[1,"+Inf"]}]}"#, Err("no finite number (+Inf)"))]
    #[case::range(r#"{"resultType":"matrix","result":[{"metric":{},"values":[[1,"2"]]}]}"#, Err("a range of time"))]
    #[case::text(r#"{"resultType":"string","result":[1,"3"]}"#, Err("a text, and no number"))]
    #[case::histogram(r#"{"resultType":"vector","result":[{"histogram":[1,{"count":"2"}]}]}"#, Err("histograms only"))]
    #[case::unknown(r#"{"resultType":"tensor","result":[]}"#, Err("does not answer as Prometheus does"))]
    fn results(#[case] data: &str, #[case] expected: Result<f64, &str>) {
        let body = format!(r#"{{"status":"success","data":{data},"warnings":["partial"]}}"#);
        match (value_of(StatusCode::OK, body.as_bytes()), expected) {
            (Ok(value), Ok(expected)) => assert_eq!(value, expected),
            (Err(why), Err(expected)) => assert!(why.contains(expected), "{why}"),
            (found, expected) => panic!("{found:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn their_messages_stay_on_a_short_line() {
        let body = format!(r#"{{"status":"error","errorType":"bad\ndata","error":"{}"}}"#, "ä".repeat(10_000));
        let why = value_of(StatusCode::BAD_REQUEST, body.as_bytes()).unwrap_err();
        assert!(why.starts_with("Prometheus refuses the query (bad data): ää"), "{why}");
        assert!(why.chars().count() < 400 && why.ends_with('…'), "{why}");
    }

    #[rstest]
    #[case("http://prometheus:9090/", ("prometheus", 9090, ""))]
    #[case("http://prometheus", ("prometheus", 80, ""))]
    #[case("http://[::1]:9090/below/here/", ("::1", 9090, "/below/here"))]
    fn good_urls(#[case] url: &str, #[case] expected: (&str, u16, &str)) {
        let server = Server::parse(url).ok().unwrap();
        assert_eq!((server.host.as_str(), server.port, server.prefix.as_str()), expected);
    }

    #[rstest]
    #[case("https://prometheus", "is not spoken")]
    #[case("prometheus:9090", "use http://HOST:PORT")]
    #[case("http://user:secret@host", "more or less than a host")]
    #[case("http://host:port", "a port that is none")]
    fn bad_urls(#[case] url: &str, #[case] expected: &str) {
        let why = Server::parse(url).err().unwrap();
        assert!(why.contains(expected), "{why}");
    }
}
