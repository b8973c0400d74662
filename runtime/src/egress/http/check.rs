//! Whether a request names the host that its connection was opened for.
//!
//! Pure. The same for every request of a connection and for both versions of HTTP. What passes is
//! forwarded with the name as it was decided on, never with the spelling of the client: nothing
//! upstream may understand it differently.

use http::header::HOST;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Method, Uri, Version, request::Parts};

use crate::policy::network::Host;

use crate::egress::{Reason, Target};

/// Longest authority that is looked at: a name, brackets, a port.
const AUTHORITY_BYTES_MAX: usize = 300;

/// Why a request is not forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    /// Why.
    pub reason: Reason,
    /// The host it names, if one can be read.
    pub named: Option<Host>,
}

/// A host as a request names it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    host: Host,
    port: Option<u16>,
}

impl Named {
    /// `host` or `host:port`, and nothing else: no user, no list, no space.
    fn parse(text: &[u8]) -> Result<Named, Refused> {
        let malformed = || Refused { reason: Reason::Malformed, named: None };
        if text.is_empty() {
            return Err(Refused { reason: Reason::NoName, named: None });
        }
        let text = std::str::from_utf8(text).map_err(|_| malformed())?;
        if text.len() > AUTHORITY_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(malformed());
        }
        let end = text.rfind(']').map_or(0, |at| at + 1);
        let (host, port) = match text[end..].find(':').map(|at| at + end) {
            Some(colon) => (&text[..colon], Some(&text[colon + 1..])),
            None => (text, None),
        };
        let host = Host::parse(host).map_err(|_| malformed())?;
        let port = match port {
            None => None,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                let port = digits.parse().ok().filter(|port| *port != 0);
                Some(port.ok_or_else(malformed)?)
            }
            Some(_) => return Err(malformed()),
        };
        Ok(Named { host, port })
    }

    /// A port that is not said is the connection's: no other is reached whatever is said.
    fn must_be(&self, target: &Target) -> Result<(), Refused> {
        match self.host == target.host && self.port.is_none_or(|port| port == target.port) {
            true => Ok(()),
            false => Err(Refused { reason: Reason::OtherName, named: Some(self.host.clone()) }),
        }
    }

    /// As it is forwarded: the host in its one form, the port if the client said it.
    fn text(&self) -> String {
        match self.port {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.to_string(),
        }
    }
}

/// Checks a request and writes it the way it is forwarded: origin form and one Host, or with HTTP/2
/// one `:authority`.
///
/// # Errors
/// [`Refused`]: nothing of it may be forwarded.
pub(super) fn request(head: &mut Parts, target: &Target) -> Result<(), Refused> {
    let named = match head.version {
        Version::HTTP_2 => version_2(head, target)?,
        _ => version_1(head, target)?,
    };
    let refused = || Refused { reason: Reason::Malformed, named: Some(named.host.clone()) };
    let path = match head.uri.path_and_query() {
        // Written anew: only so do `http://name?query` and `http://name#fragment` have their slash, and
        // nobody a fragment (RFC 9112, 3.2).
        Some(path) => PathAndQuery::try_from(path.to_string()).map_err(|_| refused())?,
        None => PathAndQuery::from_static("/"),
    };
    let asterisk = path == "*" && head.method == Method::OPTIONS;
    if !asterisk && !path.as_str().starts_with('/') {
        return Err(refused());
    }
    if head.version == Version::HTTP_2 {
        head.headers.remove(HOST);
        let uri = Uri::builder().scheme(Scheme::HTTP).authority(named.text()).path_and_query(path);
        head.uri = uri.build().map_err(|_| refused())?;
    } else {
        let host = HeaderValue::try_from(named.text()).map_err(|_| refused())?;
        head.headers.insert(HOST, host);
        head.uri = Uri::from(path);
    }
    Ok(())
}

/// Exactly one Host; an absolute target must agree with it.
fn version_1(head: &Parts, target: &Target) -> Result<Named, Refused> {
    if head.method == Method::CONNECT {
        return Err(connect(head, target));
    }
    let mut hosts = head.headers.get_all(HOST).iter();
    let named = match (hosts.next(), hosts.next()) {
        (Some(host), None) => Named::parse(host.as_bytes())?,
        (Some(_), Some(_)) => return Err(Refused { reason: Reason::Malformed, named: None }),
        (None, _) => return Err(Refused { reason: Reason::NoName, named: None }),
    };
    named.must_be(target)?;
    match (head.uri.scheme(), head.uri.authority()) {
        (None, None) => {}
        (Some(scheme), Some(authority)) if *scheme == Scheme::HTTP => {
            Named::parse(authority.as_str().as_bytes())?.must_be(target)?;
        }
        _ => return Err(Refused { reason: Reason::Malformed, named: Some(named.host) }),
    }
    Ok(named)
}

/// One `:authority`; a Host beside it must agree.
fn version_2(head: &Parts, target: &Target) -> Result<Named, Refused> {
    if head.method == Method::CONNECT {
        return Err(connect(head, target));
    }
    let Some(authority) = head.uri.authority() else {
        return Err(Refused { reason: Reason::NoName, named: None });
    };
    let named = Named::parse(authority.as_str().as_bytes())?;
    named.must_be(target)?;
    let mut hosts = head.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => {}
        (Some(host), None) => Named::parse(host.as_bytes())?.must_be(target)?,
        (Some(_), Some(_)) => return Err(Refused { reason: Reason::Malformed, named: None }),
    }
    match head.uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTP => Ok(named),
        _ => Err(Refused { reason: Reason::Malformed, named: Some(named.host) }),
    }
}

/// A tunnel is never made, not even to the host itself: what is in it could not be checked.
fn connect(head: &Parts, target: &Target) -> Refused {
    let named = head.uri.authority().map(|text| Named::parse(text.as_str().as_bytes()));
    match named {
        Some(Ok(named)) if named.host != target.host => {
            Refused { reason: Reason::OtherName, named: Some(named.host) }
        }
        Some(Ok(named)) => Refused { reason: Reason::OtherProtocol, named: Some(named.host) },
        _ => Refused { reason: Reason::Malformed, named: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(host: &str, port: u16) -> Target {
        Target { host: host.parse().expect(host), port }
    }

    fn parts(version: Version, method: &str, uri: &str, hosts: &[&[u8]]) -> Parts {
        let mut request = http::Request::builder().version(version).method(method).uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        request.body(()).expect(uri).into_parts().0
    }

    fn reason(result: Result<(), Refused>) -> Option<Reason> {
        result.err().map(|refused| refused.reason)
    }

    const OTHER: Option<Reason> = Some(Reason::OtherName);
    const BAD: Option<Reason> = Some(Reason::Malformed);
    const NONE: Option<Reason> = Some(Reason::NoName);
    const PROTOCOL: Option<Reason> = Some(Reason::OtherProtocol);

    // INV-8, jail.md 1.5 rule 3.
    #[test]
    fn a_request_names_its_host_exactly_once_in_any_spelling() {
        #[rustfmt::skip]
        let cases: [(&[&[u8]], Option<Reason>); 36] = [
            (&[b"api.example.com"], None),
            (&[b"API.Example.COM"], None),
            (&[b"api.example.com."], None),
            (&[b"api.example.com:80"], None),
            (&[b"api.example.com:0080"], None),
            (&[], NONE),
            (&[b""], NONE),
            (&[b"api.example.com", b"api.example.com"], BAD),
            (&[b"api.example.com", b"evil.test"], BAD),
            (&[b"evil.test", b"api.example.com"], BAD),
            (&[b"evil.test"], OTHER),
            (&[b"api.example.com.evil.test"], OTHER),
            (&[b"xapi.example.com"], OTHER),
            (&[b"example.com"], OTHER),
            (&[b"192.0.2.1"], OTHER),
            (&[b"[2001:db8::1]"], OTHER),
            (&[b"api.example.com:81"], OTHER),
            (&[b"api.example.com:443"], OTHER),
            (&[b"api.example.com:"], BAD),
            (&[b"api.example.com:0"], BAD),
            (&[b"api.example.com:+80"], BAD),
            (&[b"api.example.com:99999"], BAD),
            (&[b"api.example.com:80:80"], BAD),
            (&[b"api.example.com:80@evil.test"], BAD),
            (&[b"api.example.com@evil.test"], BAD),
            (&[b"evil.test@api.example.com"], BAD),
            (&[b"api.example.com, evil.test"], BAD),
            (&[b"api.example.com,evil.test"], BAD),
            (&[b"api.example.com evil.test"], BAD),
            (&[b"api.example.com\tevil.test"], BAD),
            (&[b"api.example.com/evil.test"], BAD),
            (&[b"http://api.example.com"], BAD),
            (&[b"api.example.com?"], BAD),
            (&[b"api.ex%61mple.com"], BAD),
            (&[b"api.example.com.."], BAD),
            (&["api.ex\u{e4}mple.com".as_bytes()], BAD),
        ];
        let target = target("api.example.com", 80);
        for (hosts, want) in cases {
            for version in [Version::HTTP_10, Version::HTTP_11] {
                let mut head = parts(version, "GET", "/path?query", hosts);
                let shown: Vec<_> =
                    hosts.iter().map(|host| String::from_utf8_lossy(host)).collect();
                assert_eq!(reason(request(&mut head, &target)), want, "{shown:?}");
            }
        }
    }

    #[test]
    fn an_absolute_target_agrees_with_the_host_and_becomes_a_path() {
        #[rustfmt::skip]
        let cases = [
            ("GET", "http://api.example.com/a?b", "api.example.com", Ok("/a?b")),
            ("GET", "HTTP://API.example.com:80/a", "api.example.com", Ok("/a")),
            ("GET", "http://api.example.com", "api.example.com:80", Ok("/")),
            ("GET", "http://api.example.com?q", "api.example.com", Ok("/?q")),
            ("GET", "http://api.example.com#f", "api.example.com", Ok("/")),
            ("GET", "http://api.example.com:80#@evil.test/", "api.example.com", Ok("/")),
            ("GET", "http://api.example.com?q#f", "api.example.com", Ok("/?q")),
            ("GET", "http://api.example.com/a#f", "api.example.com", Ok("/a")),
            ("GET", "/a#f", "api.example.com", Ok("/a")),
            ("OPTIONS", "*", "api.example.com", Ok("*")),
            ("GET", "//evil.test/a", "api.example.com", Ok("//evil.test/a")), // a path like any other
            ("GET", "*", "api.example.com", Err(Reason::Malformed)),
            ("GET", "http://evil.test/", "api.example.com", Err(Reason::OtherName)),
            ("GET", "http://api.example.com/", "evil.test", Err(Reason::OtherName)),
            ("GET", "http://api.example.com:81/", "api.example.com", Err(Reason::OtherName)),
            ("GET", "http://user@api.example.com/", "api.example.com", Err(Reason::Malformed)),
            ("GET", "http://user:x@api.example.com/", "api.example.com", Err(Reason::Malformed)),
            ("GET", "https://api.example.com/", "api.example.com", Err(Reason::Malformed)),
            ("GET", "ftp://api.example.com/", "api.example.com", Err(Reason::Malformed)),
            ("GET", "api.example.com:80", "api.example.com", Err(Reason::Malformed)),
            ("GET", "evil.test", "api.example.com", Err(Reason::Malformed)),
        ];
        let target = target("api.example.com", 80);
        for (method, uri, host, want) in cases {
            let mut head = parts(Version::HTTP_11, method, uri, &[host.as_bytes()]);
            let got = request(&mut head, &target);
            let got = got.map(|()| head.uri.to_string()).map_err(|refused| refused.reason);
            assert_eq!(got, want.map(str::to_owned), "{method} {uri} with {host}");
            assert_eq!(head.headers.get_all(HOST).iter().count(), 1);
        }
    }

    #[test]
    fn what_is_forwarded_names_the_host_in_its_one_form() {
        #[rustfmt::skip]
        let cases = [
            ("api.example.com", 80, "API.EXAMPLE.com.", "api.example.com"),
            ("api.example.com", 80, "Api.example.com:80", "api.example.com:80"),
            ("api.example.com", 8080, "api.example.com.:8080", "api.example.com:8080"),
            ("api.example.com", 8080, "api.example.com", "api.example.com"),
            ("192.0.2.1", 80, "0xC0.0.513", "192.0.2.1"),
            ("2001:db8::1", 80, "[2001:0DB8:0::1]:80", "[2001:db8::1]:80"),
        ];
        for (host, port, said, want) in cases {
            let mut head = parts(Version::HTTP_11, "GET", "/", &[said.as_bytes()]);
            assert_eq!(request(&mut head, &target(host, port)), Ok(()), "{said}");
            assert_eq!(head.headers[HOST], want);
        }
    }

    // INV-8: a tunnel through an allowed host.
    #[test]
    fn connect_is_refused_whatever_it_names() {
        let cases = [
            ("evil.test:443", OTHER),
            ("api.example.com:80", PROTOCOL),
            ("api.example.com:443", PROTOCOL),
            ("/", BAD),
        ];
        let target = target("api.example.com", 80);
        for (uri, want) in cases {
            let mut head = parts(Version::HTTP_11, "CONNECT", uri, &[b"api.example.com"]);
            assert_eq!(reason(request(&mut head, &target)), want, "{uri}");
            let mut head = parts(Version::HTTP_2, "CONNECT", uri, &[]);
            assert_eq!(reason(request(&mut head, &target)), want, "{uri}");
        }
    }

    #[test]
    fn a_stream_of_version_2_has_an_authority_and_a_host_that_agrees() {
        type Case<'a> = (&'a str, &'a [&'a [u8]], Option<Reason>);
        #[rustfmt::skip]
        let cases: [Case; 10] = [
            ("http://api.example.com/a", &[], None),
            ("http://API.example.com.:80/a", &[b"api.example.com"], None),
            ("http://api.example.com/", &[b"evil.test"], OTHER),
            ("http://api.example.com/", &[b"api.example.com", b"api.example.com"], BAD),
            ("http://evil.test/", &[b"api.example.com"], OTHER),
            ("http://evil.test/", &[], OTHER),
            ("http://api.example.com:443/", &[], OTHER),
            ("http://u@api.example.com/", &[], BAD),
            ("https://api.example.com/", &[], BAD),
            ("/", &[b"api.example.com"], NONE),
        ];
        let target = target("api.example.com", 80);
        for (uri, hosts, want) in cases {
            let mut head = parts(Version::HTTP_2, "GET", uri, hosts);
            let got = request(&mut head, &target);
            assert_eq!(reason(got.clone()), want, "{uri} {hosts:?}");
            if got.is_ok() {
                assert_eq!(head.uri.host(), Some("api.example.com"));
                assert!(!head.headers.contains_key(HOST));
            }
        }
    }
}
