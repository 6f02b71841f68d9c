//! A fleet-wide verdict: one instant query to a Prometheus server (`GET /api/v1/query`), or whatever speaks its API.
//!
//! Whatever goes wrong is *no data*, with the reason in words, and never a breach: a candidate is not rolled back because
//! a server somewhere else is down.
//!
//! Plain `http` only, which needs nothing that the program does not have: a server that wants `https` is reached through a
//! proxy on this machine or beside it. No proxy is taken from the environment, and no redirection is followed.
//! `user:password@` in the URL is sent as basic authentication, and is shown nowhere.

use std::fmt::Display;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// More than any verdict needs: a vector of some ten thousand samples.
const LARGEST_ANSWER: usize = 4 << 20;
/// What is shown of a message of theirs.
const LONGEST_QUOTE: usize = 300;
/// What stays as it is in a query string (RFC 3986, unreserved).
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What Prometheus says.
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    /// This value, which is above the threshold.
    Above(f64),
    /// This value, which is not.
    Within(f64),
    /// Nothing that could be judged, for this reason.
    NoData(String),
}

/// Asks, and waits for at most `limit` for the whole answer. Of several samples the highest counts, so that a query by
/// machine or by mount finds the worst one; samples that are no finite number (as 0 / 0 is none) do not.
///
/// To be asked one at a time: a resolver that hangs keeps a thread for longer than `limit`.
pub async fn ask(url: &str, query: &str, above: f64, limit: Duration) -> Answer {
    let value = async {
        let server = Server::parse(url)?;
        let said = timeout(limit, server.get(query)).await;
        let (status, body) = said.map_err(|_| format!("{} has not answered within {limit:?}", server.shown))??;
        value_of(status, &body).map_err(|why| format!("{}: {why}", server.shown))
    };
    match value.await {
        Ok(value) if value > above => Answer::Above(value),
        Ok(value) => Answer::Within(value),
        Err(why) => Answer::NoData(why),
    }
}

/// Whether [`ask`] can ask there.
///
/// # Errors
/// What is wrong, and what would be right. The URL is not in it.
pub fn check_url(url: &str) -> Result<(), String> {
    Server::parse(url).map(drop)
}

/// No `Debug`: it may hold a password.
struct Server {
    host: String,
    port: u16,
    /// What comes before `/api`, if it is served below a path.
    prefix: String,
    authorization: Option<header::HeaderValue>,
    /// The URL without secrets.
    shown: String,
}

impl Server {
    fn parse(url: &str) -> Result<Self, String> {
        const RIGHT: &str = "use http://HOST:PORT, and a path if it is served below one";
        let uri: Uri = url.parse().map_err(|_| format!("the URL cannot be understood: {RIGHT}"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err("https is not spoken: use http, through a proxy beside it if it must be".into());
            }
            _ => return Err(format!("the URL is not one of http: {RIGHT}")),
        }
        if uri.query().is_some() || url.contains('#') {
            return Err(format!("the URL has a query of its own: {RIGHT}"));
        }
        let authority = uri.authority().ok_or_else(|| format!("the URL has no host: {RIGHT}"))?;
        let (secret, place) = match authority.as_str().rsplit_once('@') {
            Some((secret, place)) => (Some(secret), place),
            None => (None, authority.as_str()),
        };
        let authorization = secret.map(|secret| {
            let secret: Vec<u8> = percent_decode_str(secret).collect();
            header::HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(secret)))
                .map(|mut value| {
                    value.set_sensitive(true);
                    value
                })
                .map_err(|_| "the user and password in the URL cannot be sent".to_owned())
        });
        let prefix = uri.path().trim_end_matches('/').to_owned();
        Ok(Self {
            // `lookup_host` wants the address without brackets.
            host: authority.host().trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: authority.port_u16().unwrap_or(80),
            shown: format!("http://{place}{prefix}"),
            prefix,
            authorization: authorization.transpose()?,
        })
    }

    async fn get(&self, query: &str) -> Result<(StatusCode, Bytes), String> {
        let unreachable = |why: &dyn Display| format!("{} cannot be reached: {why}", self.shown);
        let broken = |why: &dyn Display| format!("{} does not answer as HTTP does: {why}", self.shown);
        let path = format!("{}/api/v1/query?query={}", self.prefix, utf8_percent_encode(query, QUERY));
        let mut request = Request::get(path).header(header::ACCEPT, "application/json");
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        request = request.header(header::HOST, format!("{host}:{}", self.port));
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| broken(&error))?;
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|error| unreachable(&error))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| broken(&error))?;
        let exchange = async {
            let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), LARGEST_ANSWER).collect().await;
            let body = body.map_err(|error| match error.downcast_ref::<LengthLimitError>() {
                Some(_) => format!("the answer of {} is larger than {} MiB", self.shown, LARGEST_ANSWER >> 20),
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
    #[case("http://prometheus:9090")]
    #[case("http://prometheus")]
    #[case("http://user:secret@[::1]:9090/below/here/")]
    fn good_urls(#[case] url: &str) {
        check_url(url).unwrap();
    }

    #[rstest]
    #[case("https://user:secret@prometheus", "https is not spoken")]
    #[case("ftp://user:secret@prometheus", "not one of http")]
    #[case("prometheus:9090", "URL")]
    #[case("http://user:secret@", "URL")]
    #[case("http://user:secret@host:9090/?token=secret", "a query of its own")]
    #[case("http://user:secret@host:9090/#secret", "a query of its own")]
    #[case("http://user:se cret@host", "cannot be understood")]
    fn bad_urls(#[case] url: &str, #[case] expected: &str) {
        let why = check_url(url).unwrap_err();
        assert!(why.contains(expected), "{why}");
        assert!(!why.contains("secret"), "{why}");
    }

    #[test]
    fn what_is_shown_has_no_password() {
        let server = Server::parse("http://user:p%40ss@host:9090/below/").ok().unwrap();
        assert_eq!(server.shown, "http://host:9090/below");
        assert_eq!(server.authorization.unwrap(), format!("Basic {}", BASE64_STANDARD.encode("user:p@ss")));
    }
}
