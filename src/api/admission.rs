//! Who may ask: on the Unix socket by who the peer is, over TCP by what the request carries and from where it can come.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::Response;
use parking_lot::RwLock;

use super::problem::problem;
use super::token::Token;
use crate::config::is_loopback;

/// The process at the other end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Its user, if the kernel told (SO_PEERCRED).
    pub uid: Option<u32>,
}

impl Peer {
    /// Whether this user may control a daemon that runs as `daemon`.
    fn may_control(self, daemon: u32, admits_group: bool) -> bool {
        self.uid.is_some_and(|uid| uid == 0 || uid == daemon || admits_group)
    }
}

/// Lets root, the daemon's own user and the socket's group pass, for every route: what a mount serves, and from where, is
/// nobody else's business.
pub(super) async fn of_peer(
    State(admits_group): State<bool>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let daemon = rustix::process::geteuid().as_raw();
    if peer.may_control(daemon, admits_group) {
        request.extensions_mut().insert(Reader::Trusted);
        return next.run(request).await;
    }
    problem(
        StatusCode::FORBIDDEN,
        format!("only root and the user with uid {daemon} may control this daemon: ask as one of them"),
    )
}

/// Whether whoever asks may know paths and reasons.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reader {
    /// A process of this machine, or one with the token.
    Trusted,
    /// Anybody else.
    Stranger,
}

/// A place where the daemon answers over TCP.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Door {
    /// The API.
    Api,
    /// What is said of the candidate.
    Shadow,
    /// Metrics and health.
    Metrics,
}

impl Door {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Api, Self::Shadow, Self::Metrics];

    /// The name in status and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Shadow => "shadow",
            Self::Metrics => "metrics",
        }
    }

    /// The key of the configuration that says where it is.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Api => "api.listen",
            Self::Shadow => "api.shadow_listen",
            Self::Metrics => "api.metrics_listen",
        }
    }
}

/// The token, as far as there is one.
#[derive(Clone, Default, Debug)]
pub enum Secret {
    /// None is configured.
    #[default]
    None,
    /// Its file cannot be used at the moment.
    Unusable,
    /// This.
    Known(Token),
}

/// What is admitted over TCP; it changes when the configuration does. Clones are the same.
#[derive(Clone, Default, Debug)]
pub struct Admission(Arc<RwLock<Rules>>);

#[derive(Default, Debug)]
struct Rules {
    secret: Secret,
    hosts: Vec<String>,
}

impl Admission {
    /// From now on this is the token.
    pub fn set_secret(&self, secret: Secret) {
        self.0.write().secret = secret;
    }

    /// From now on requests may be made to these names, in small letters, besides this machine's own.
    pub fn set_hosts(&self, hosts: Vec<String>) {
        let own = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
        self.0.write().hosts = hosts.into_iter().chain([own, "localhost".into()]).collect();
    }

    /// Whether a request to this host is meant for us. An address is: what leads a browser astray is a name, which
    /// somebody else's DNS makes one of our addresses ("DNS rebinding").
    fn knows(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host);
        address.parse::<IpAddr>().is_ok() || self.0.read().hosts.contains(&host)
    }

    /// Whether a request carries the token; if not, what to say.
    fn check(&self, headers: &HeaderMap) -> Result<(), Box<Response>> {
        let given = headers.get(header::AUTHORIZATION).and_then(bearer);
        match (&self.0.read().secret, given) {
            (Secret::Known(token), Some(given)) if token.is(given) => Ok(()),
            (Secret::None, _) => refuse(
                StatusCode::FORBIDDEN,
                "this needs a token, and there is none: set api.token_file, --token-file or LIGHTHOUSE_API_TOKEN_FILE, or ask on the control socket",
            ),
            (Secret::Unusable, _) => refuse(
                StatusCode::FORBIDDEN,
                "this needs a token, and its file cannot be used: see `lighthouse-fs status`, or ask on the control socket",
            ),
            (Secret::Known(_), given) => {
                let detail = match given {
                    Some(_) => "this is not the token of the daemon's token_file",
                    None => "this needs the token of the daemon's token_file: send `Authorization: Bearer TOKEN`",
                };
                let mut answer = problem(StatusCode::UNAUTHORIZED, detail);
                answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                Err(Box::new(answer))
            }
        }
    }
}

fn refuse<T>(status: StatusCode, why: &str) -> Result<T, Box<Response>> {
    Err(Box::new(problem(status, why)))
}

fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let value = value.as_bytes();
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token.trim_ascii())
}

/// A door and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    door: Door,
    /// Whether only this machine's processes get here.
    is_local: bool,
    admission: Admission,
}

impl Gate {
    /// At this address.
    pub(super) fn new(door: Door, address: IpAddr, admission: Admission) -> Self {
        Self { door, is_local: is_loopback(address), admission }
    }

    /// Lets whoever is alive read health; lets this machine's processes read everything, and everybody the metrics; the
    /// rest needs the token.
    pub(super) async fn admit(State(gate): State<Self>, mut request: Request, next: Next) -> Response {
        if let Err(refusal) = check_origin(&request, &gate.admission) {
            return *refusal;
        }
        let checked = gate.admission.check(request.headers());
        let is_trusted = gate.is_local || checked.is_ok();
        if let Err(refusal) = checked
            && !gate.is_open(&request)
        {
            return *refusal;
        }
        request.extensions_mut().insert(if is_trusted { Reader::Trusted } else { Reader::Stranger });
        next.run(request).await
    }

    fn is_open(&self, request: &Request) -> bool {
        let is_reading = [Method::GET, Method::HEAD].contains(request.method());
        let is_health = request.uri().path().starts_with("/health/");
        is_reading && (is_health || self.is_local || self.door == Door::Metrics)
    }
}

/// Refuses what a browser sends for a page of somebody else.
fn check_origin(request: &Request, admission: &Admission) -> Result<(), Box<Response>> {
    let headers = request.headers();
    let one = |name| {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (value, None) => Ok(value),
            _ => refuse(StatusCode::BAD_REQUEST, "a header that there may be only one of is there twice"),
        }
    };
    let host = match one(header::HOST)? {
        Some(host) => match Authority::try_from(host.as_bytes()) {
            Ok(host) if !host.as_str().contains('@') => Some(host),
            _ => return refuse(StatusCode::BAD_REQUEST, "the header `host` is no name or address"),
        },
        // Which every browser sends.
        None if request.version() == Version::HTTP_10 => None,
        None => return refuse(StatusCode::BAD_REQUEST, "there is no header `host`"),
    };
    // In a request line with a whole URI, that one counts (RFC 9112, 3.2.2).
    for host in host.iter().chain(request.uri().authority()) {
        if !admission.knows(host.host()) {
            return refuse(
                StatusCode::FORBIDDEN,
                "requests to this name are not answered: use an address, or add the name to api.hosts",
            );
        }
    }
    let foreign = "requests for pages of other origins are not answered: open this address itself";
    let is_same = |origin: &HeaderValue| {
        let origin = origin.to_str().unwrap_or_default();
        // A proxy in front may have ended TLS.
        let origin = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        let host = host.as_ref().map(Authority::as_str);
        host.zip(origin).is_some_and(|(host, origin)| host.eq_ignore_ascii_case(origin))
    };
    if one(header::ORIGIN)?.is_some_and(|origin| !is_same(origin)) {
        return refuse(StatusCode::FORBIDDEN, foreign);
    }
    let site = one(header::HeaderName::from_static("sec-fetch-site"))?;
    if site.is_some_and(|site| site != "same-origin" && site != "none") {
        return refuse(StatusCode::FORBIDDEN, foreign);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use rstest::rstest;

    #[rstest]
    #[case(Some(0), false, true)]
    #[case(Some(1000), false, true)]
    #[case(Some(1001), false, false)]
    #[case(Some(1001), true, true)]
    #[case(None, true, false)]
    fn root_the_own_user_and_the_group_may(
        #[case] uid: Option<u32>,
        #[case] admits_group: bool,
        #[case] allowed: bool,
    ) {
        assert_eq!(Peer { uid }.may_control(1000, admits_group), allowed);
    }

    #[rstest]
    #[case::name("host: localhost:8765", 200)]
    #[case::capitals("host: LocalHost.", 200)]
    #[case::address("host: 127.0.0.1:8765", 200)]
    #[case::any_address("host: 192.0.2.7", 200)]
    #[case::v6("host: [::1]:8765", 200)]
    #[case::configured("host: files.example", 200)]
    #[case::rebound("host: evil.example:8765", 403)]
    #[case::ends_alike("host: localhost.evil.example", 403)]
    #[case::looks_like_an_address("host: 127.0.0.1.evil.example", 403)]
    #[case::none("accept: */*", 400)]
    #[case::two("host: localhost\nhost: evil.example", 400)]
    #[case::user("host: localhost@evil.example", 400)]
    #[case::nonsense("host: a b", 400)]
    #[case::same("host: localhost:1\norigin: http://localhost:1", 200)]
    #[case::behind_tls("host: localhost:1\norigin: https://localhost:1", 200)]
    #[case::other_port("host: localhost:1\norigin: http://localhost:2", 403)]
    #[case::other_origin("host: localhost:1\norigin: http://evil.example", 403)]
    #[case::sandboxed("host: localhost:1\norigin: null", 403)]
    #[case::two_origins("host: a\norigin: http://localhost\norigin: http://evil.example", 403)]
    #[case::typed("host: localhost\nsec-fetch-site: none", 200)]
    #[case::own_page("host: localhost\nsec-fetch-site: same-origin", 200)]
    #[case::cross_site("host: localhost\nsec-fetch-site: cross-site", 403)]
    #[case::same_site("host: localhost\nsec-fetch-site: same-site", 403)]
    fn browsers_are_let_in_for_our_own_pages_alone(#[case] headers: &str, #[case] status: u16) {
        let admission = Admission::default();
        admission.set_hosts(vec!["files.example".into()]);
        let mut request = Request::new(Body::empty());
        for header in headers.lines() {
            let (name, value) = header.split_once(": ").unwrap();
            let name = header::HeaderName::try_from(name).unwrap();
            request.headers_mut().append(name, value.try_into().unwrap());
        }
        let given = check_origin(&request, &admission).map_or_else(|refusal| refusal.status().as_u16(), |()| 200);
        assert_eq!(given, status);
    }

    #[test]
    fn the_name_in_the_request_line_counts_too() {
        let admission = Admission::default();
        admission.set_hosts(Vec::new());
        let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
        for (uri, is_ours) in
            [("http://evil.example/", false), ("http://[::1]/", true), (&format!("http://{own}/"), true)]
        {
            let request = Request::builder().uri(uri).header("host", "localhost").body(Body::empty()).unwrap();
            assert_eq!(check_origin(&request, &admission).is_ok(), is_ours, "{uri}");
        }
    }

    #[rstest]
    #[case("Bearer 0123456789abcdef", Some("0123456789abcdef"))]
    #[case("bearer  0123456789abcdef ", Some("0123456789abcdef"))]
    #[case("Basic 0123456789abcdef", None)]
    #[case("Bearer", None)]
    fn tokens_come_as_bearer(#[case] header: &str, #[case] token: Option<&str>) {
        assert_eq!(bearer(&HeaderValue::from_str(header).unwrap()), token.map(str::as_bytes));
    }
}
