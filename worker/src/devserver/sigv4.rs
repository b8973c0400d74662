//! Signature version 4 of AWS as whoever receives it works it out: pure, from the specification, and
//! on purpose without the library that the worker signs with.
//!
//! Source: <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>.

use std::fmt::Write as _;

use hyper::HeaderMap;
use sha2::{Digest as _, Sha256};

/// The algorithm, the only one that is known.
const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// A request as it arrived.
#[derive(Debug)]
pub struct Received<'a> {
    pub method: &'a str,
    /// Not decoded.
    pub path: &'a str,
    /// Not decoded, without the question mark.
    pub query: &'a str,
    pub headers: &'a HeaderMap,
    pub body: &'a [u8],
}

/// What an `Authorization` header says.
#[derive(Debug, PartialEq, Eq)]
pub struct Claim<'a> {
    pub access_key: &'a str,
    /// `YYYYMMDD`
    pub date: &'a str,
    pub region: &'a str,
    pub service: &'a str,
    /// Lower case, in order.
    pub signed: Vec<&'a str>,
    pub signature: &'a str,
}

impl<'a> Claim<'a> {
    /// Reads the header; `None` if it is no signature of this kind.
    pub fn parse(header: &'a str) -> Option<Claim<'a>> {
        let parts: Vec<&str> = header.strip_prefix(ALGORITHM)?.split(',').map(str::trim).collect();
        let part = |name: &str| parts.iter().find_map(|part| part.strip_prefix(name));
        let scope: Vec<&str> = part("Credential=")?.split('/').collect();
        let [access_key, date, region, service, "aws4_request"] = scope[..] else { return None };
        let signed: Vec<&str> = part("SignedHeaders=")?.split(';').collect();
        let in_order =
            signed.is_sorted() && signed.iter().all(|name| **name == name.to_lowercase());
        let signature = part("Signature=")?;
        let hex = signature.len() == 64 && signature.bytes().all(|byte| byte.is_ascii_hexdigit());
        (in_order && hex).then_some(Claim { access_key, date, region, service, signed, signature })
    }

    /// Whether the signature is that of `secret` over this request at `date_time`.
    pub fn is_of(&self, request: &Received<'_>, secret: &str, date_time: &str) -> bool {
        let scope = format!("{}/{}/{}/aws4_request", self.date, self.region, self.service);
        let hash = hex(&Sha256::digest(canonical(request, &self.signed)));
        let text = format!("{ALGORITHM}\n{date_time}\n{scope}\n{hash}");
        let mut key = hmac(format!("AWS4{secret}").as_bytes(), self.date.as_bytes());
        for part in [self.region, self.service, "aws4_request"] {
            key = hmac(&key, part.as_bytes());
        }
        hex(&hmac(&key, text.as_bytes())) == self.signature
    }
}

/// The canonical request.
fn canonical(request: &Received<'_>, signed: &[&str]) -> String {
    let mut headers = String::new();
    for name in signed {
        let values: Vec<String> = request
            .headers
            .get_all(*name)
            .iter()
            .map(|value| words(&String::from_utf8_lossy(value.as_bytes())))
            .collect();
        let _fits = writeln!(headers, "{name}:{}", values.join(","));
    }
    // Encoded once more than it arrived: every service but one storage service does so.
    let path = if request.path.is_empty() { "/" } else { request.path };
    let path = encoded(path.as_bytes(), b"/");
    let (query, names) = (query(request.query), signed.join(";"));
    let hash = hex(&Sha256::digest(request.body));
    format!("{}\n{path}\n{query}\n{headers}\n{names}\n{hash}", request.method)
}

/// Sorted by name and then by value, both encoded anew.
fn query(raw: &str) -> String {
    let again = |text: &str| {
        let bytes: Vec<u8> = percent_encoding::percent_decode_str(text).collect();
        encoded(&bytes, b"")
    };
    let members = raw.split('&').filter(|member| !member.is_empty());
    let mut pairs: Vec<(String, String)> = members
        .map(|member| member.split_once('=').unwrap_or((member, "")))
        .map(|(name, value)| (again(name), again(value)))
        .collect();
    pairs.sort();
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

/// Everything but unreserved characters and `kept`, in capitals.
fn encoded(bytes: &[u8], kept: &[u8]) -> String {
    let mut out = String::new();
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) || kept.contains(byte) {
            out.push(char::from(*byte));
        } else {
            let _fits = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// Without blanks at the ends, and one of many within.
fn words(text: &str) -> String {
    text.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// RFC 2104 with SHA-256.
fn hmac(key: &[u8], text: &[u8]) -> [u8; 32] {
    const BLOCK: usize = 64;
    let mut block = [0_u8; BLOCK];
    if key.len() > BLOCK {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let padded = |pad: u8| block.map(|byte| byte ^ pad);
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
    const AT: &str = "20150830T123600Z";

    /// Method, path, query and body.
    type Asked<'a> = (&'a str, &'a str, &'a str, &'a [u8]);

    fn headers(more: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut all = HeaderMap::new();
        let usual = [("host", "example.amazonaws.com"), ("x-amz-date", AT)];
        for (name, value) in usual.iter().chain(more) {
            all.append(*name, value.parse().expect("a value"));
        }
        all
    }

    fn is_signed(request: Asked<'_>, headers: &HeaderMap, signed: &str, signature: &str) -> bool {
        let (method, path, query, body) = request;
        let header = format!(
            "{ALGORITHM} Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders={signed}, Signature={signature}"
        );
        let claim = Claim::parse(&header).expect("a claim");
        claim.is_of(&Received { method, path, query, headers, body }, SECRET, AT)
    }

    #[test]
    fn signatures_published_by_aws_are_recognised() {
        // AWS-5: the signing test suite of AWS.
        let (plain, two) = (headers(&[]), "host;x-amz-date");
        let token = "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267";
        let with_token = headers(&[("x-amz-security-token", token)]);
        let hash = "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e";
        let form = headers(&[
            ("content-length", "13"),
            ("content-type", "application/x-www-form-urlencoded"),
            ("x-amz-content-sha256", hash),
        ]);
        let five = "content-length;content-type;host;x-amz-content-sha256;x-amz-date";
        let query = "Param2=value2&Param1=value1";
        #[rustfmt::skip]
        let cases: [(Asked<'_>, &HeaderMap, &str, &str); 5] = [
            (("GET", "/", "", b""), &plain, two,
             "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
            (("GET", "/", query, b""), &plain, two,
             "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"),
            (("GET", "/\u{1234}", "", b""), &plain, two,
             "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"),
            (("GET", "/", "", b""), &with_token, "host;x-amz-date;x-amz-security-token",
             "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8"),
            (("POST", "/", "", b"Param1=value1"), &form, five,
             "d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b"),
        ];
        for (request, headers, signed, signature) in cases {
            assert!(is_signed(request, headers, signed, signature), "{request:?}");
            let (method, path, query, body) = request;
            let other = [body, b" "].concat();
            let changed = (method, path, query, other.as_slice());
            assert!(!is_signed(changed, headers, signed, signature), "the body counts");
            let changed = (method, "/x", query, body);
            assert!(!is_signed(changed, headers, signed, signature), "the path counts");
        }
    }

    #[test]
    fn what_is_no_signature_is_not_taken_for_one() {
        for header in [
            "Bearer sk-ant-oat01-x",
            "AWS4-HMAC-SHA256 Credential=a/b/c/d/e, SignedHeaders=host, Signature=00",
            "AWS4-HMAC-SHA256 Credential=a/b/c/d/aws4_request, SignedHeaders=x;host, Signature=00",
            "AWS4-HMAC-SHA256 SignedHeaders=host",
        ] {
            assert_eq!(Claim::parse(header), None, "{header}");
        }
    }
}
