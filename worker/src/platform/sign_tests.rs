//! What a signed request looks like, held to the signatures that AWS publishes.

use std::time::UNIX_EPOCH;

use aws_credential_types::provider::SharedCredentialsProvider;
use bytes::Bytes;

use super::*;

/// 2015-08-30T12:36:00Z
const AT: u64 = 1_440_938_160;

fn request(method: &str, url: &str, headers: &[(&str, &str)], body: Option<&str>) -> Outgoing {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let name: HeaderName = name.parse().expect("a name");
        map.append(name, value.parse().expect("a value"));
    }
    Outgoing {
        method: method.parse().expect("a method"),
        url: url.parse().expect("a URL"),
        headers: map,
        body: body.map(|body| Bytes::copy_from_slice(body.as_bytes())),
    }
}

fn example(token: Option<&str>) -> Credentials {
    let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
    Credentials::new("AKIDEXAMPLE", secret, token.map(str::to_owned), None, "test")
}

fn signed(mut request: Outgoing, token: Option<&str>, at: u64) -> Outgoing {
    let at = UNIX_EPOCH + Duration::from_secs(at);
    add_signature(&mut request, &example(token), "us-east-1", "service", at).expect("signed");
    request
}

fn header<'a>(request: &'a Outgoing, name: &str) -> &'a str {
    request.headers.get(name).map_or("", |value| value.to_str().expect("text"))
}

#[test]
fn signatures_are_those_that_aws_publishes() {
    // AWS-5: the signing test suite of AWS.
    let url = "https://example.amazonaws.com/";
    let query = "https://example.amazonaws.com/?Param2=value2&Param1=value1";
    let token = "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267";
    #[rustfmt::skip]
    let cases = [
        (request("GET", url, &[], None), None, "host;x-amz-date",
         "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        (request("GET", query, &[], None), None, "host;x-amz-date",
         "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"),
        (request("GET", url, &[], None), Some(token), "host;x-amz-date;x-amz-security-token",
         "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8"),
    ];
    for (request, token, names, signature) in cases {
        let url = request.url.clone();
        let signed = signed(request, token, AT);
        let want = format!(
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders={names}, Signature={signature}"
        );
        assert_eq!(header(&signed, "authorization"), want, "{url}");
        assert_eq!(header(&signed, "x-amz-date"), "20150830T123600Z");
        assert_eq!(header(&signed, "x-amz-security-token"), token.unwrap_or_default());
        assert!(signed.headers["authorization"].is_sensitive(), "AUTH-8");
    }
}

#[test]
fn headers_are_signed_except_those_that_change_on_their_way() {
    // AWS-5.
    let headers = [
        ("accept", "application/json"),
        ("anthropic-workspace-id", "wrkspc_1"),
        ("connection", "keep-alive"),
        ("traceparent", "00-1-2-01"),
        ("tracestate", "a=b"),
        ("user-agent", "stockade"),
    ];
    let signed = signed(request("POST", "https://h.test/a", &headers, Some("{}")), None, AT);
    let authorization = header(&signed, "authorization");
    let names = "SignedHeaders=accept;anthropic-workspace-id;host;x-amz-date,";
    assert!(authorization.contains(names), "{authorization}");
    assert_eq!(header(&signed, "traceparent"), "00-1-2-01", "sent all the same");
}

#[test]
fn the_body_the_time_and_each_byte_of_the_query_are_signed() {
    // AWS-5, API-3: `+` and `:` of a heartbeat value.
    let value = "2026-01-02T03%3A04%3A05.6%2B02%3A00";
    let beat = format!("https://h.test/v1/heartbeat?expected_last_heartbeat={value}");
    let signature = |url: &str, body: Option<&str>, at| {
        let signed = signed(request("POST", url, &[], body), None, at);
        assert_eq!(signed.url.as_str(), url, "the URL leaves as it was signed");
        header(&signed, "authorization").rsplit('=').next().expect("a signature").to_owned()
    };
    let one = signature(&beat, None, AT);
    assert_eq!(one, signature(&beat, Some(""), AT), "no body is an empty one");
    assert_ne!(one, signature(&beat, Some("{}"), AT));
    assert_ne!(one, signature(&beat, None, AT + 1));
    assert_ne!(one, signature(&beat.replace("%2B", "%20"), None, AT));
}

#[test]
fn an_attempt_that_is_signed_again_has_one_signature_of_its_own_time() {
    // AWS-5, HTTP-1.
    let first = signed(request("GET", "https://h.test/", &[], None), Some("old"), AT);
    let again = signed(first.clone(), Some("new"), AT + 60);
    let fresh = signed(request("GET", "https://h.test/", &[], None), Some("new"), AT + 60);
    for name in ["authorization", "x-amz-date", "x-amz-security-token"] {
        assert_eq!(again.headers.get_all(name).iter().count(), 1, "{name}");
        assert_eq!(header(&again, name), header(&fresh, name), "{name}");
    }
    assert_ne!(header(&again, "authorization"), header(&first, "authorization"));
}

#[test]
fn a_wrong_clock_is_seen_in_a_refusal() {
    // AWS-5.
    let now = UNIX_EPOCH + Duration::from_secs(AT);
    let dated = |offset: i64| {
        let at = UNIX_EPOCH + Duration::from_secs(AT.saturating_add_signed(offset));
        let mut headers = HeaderMap::new();
        let date = httpdate::fmt_http_date(at).parse().expect("a value");
        headers.insert(header::DATE, date);
        headers
    };
    for (offset, want) in [(0, None), (200, None), (600, Some(600)), (-3600, Some(3600))] {
        let seen = skew(&dated(offset), now).map(|skew| skew.as_secs());
        assert_eq!(seen, want, "{offset}");
    }
    assert_eq!(skew(&HeaderMap::new(), now), None);
}

#[tokio::test]
async fn what_signs_for_the_queue_uses_the_service_of_the_platform() {
    // AWS-1, AWS-5: with credentials that never expire.
    let provider = SharedCredentialsProvider::new(example(None));
    let identity = Identity::start(provider).await.expect("credentials");
    let signer = Signer::new(identity, "eu-central-1".to_owned());
    let mut request = request("GET", "https://h.test/", &[], None);
    signer.authenticate(&mut request).await.expect("signed");
    let scope = "/eu-central-1/aws-external-anthropic/aws4_request";
    assert!(header(&request, "authorization").contains(scope));
}
