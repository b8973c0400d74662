//! Whether a delivery is genuine and fresh (HOOK-1 to HOOK-5): Standard Webhooks.
//!
//! In two steps. What the headers say is judged before a byte of the body is read: each is there exactly
//! once, and the time is within the tolerance (of a clock that tests can set). Then one of the signatures
//! has to be ours, compared without telling by the time it takes how much of it was right. It is over the
//! bytes of the body, whatever they are; the crate of the standard's authors, which takes text only, is
//! what tests compare it with.

use std::hint::black_box;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac_sha256::HMAC;
use hyper::HeaderMap;
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

/// HOOK-4: in both directions, inclusive.
const TOLERANCE_S: i64 = 300;
/// A timestamp that is not far beyond any that could be right.
const TIMESTAMP_MAX: i64 = 1 << 40;
const ID_BYTES_MAX: usize = 256;
/// Signatures in one header: an old key and a new one, and room.
const SIGNATURES_MAX: usize = 16;

/// Verifies deliveries.
pub struct Verifier(Zeroizing<Vec<u8>>);

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier")
    }
}

/// What the headers of a fresh delivery say; nothing of it is known to be true.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    id: &'a str,
    timestamp: i64,
    signatures: &'a str,
}

/// A signing key that cannot be used. No text holds a byte of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyProblem {
    #[error("it is empty")]
    Empty,
    #[error("it is not base64 after `whsec_`")]
    NotBase64,
}

/// Why a delivery is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("a header is missing or there twice")]
    Header,
    #[error("the timestamp is not a number")]
    Timestamp,
    #[error("the timestamp is too old or in the future")]
    Stale,
    #[error("no signature is right")]
    Signature,
}

impl Verifier {
    /// Takes the key as the console shows it (HOOK-2).
    ///
    /// # Errors
    /// [`KeyProblem`].
    pub fn new(key: &SecretString) -> Result<Verifier, KeyProblem> {
        let text = key.expose_secret().trim();
        if text.strip_prefix("whsec_").unwrap_or(text).is_empty() {
            return Err(KeyProblem::Empty);
        }
        let key = STANDARD.decode(text.strip_prefix("whsec_").unwrap_or(text));
        key.map(|key| Verifier(Zeroizing::new(key))).map_err(|_| KeyProblem::NotBase64)
    }

    /// The id of a genuine delivery. Looks at the bytes of the body only (HOOK-3).
    ///
    /// # Errors
    /// [`Refused::Signature`].
    pub fn verify<'a>(&self, claim: Claim<'a>, body: &[u8]) -> Result<&'a str, Refused> {
        let Claim { id, timestamp, signatures } = claim;
        let right = self.sign(id, timestamp, body);
        // All of them, whichever is right.
        let mut found = false;
        for signature in signatures.split(' ').take(SIGNATURES_MAX) {
            found |= same(signature.as_bytes(), right.as_bytes());
        }
        if found { Ok(id) } else { Err(Refused::Signature) }
    }

    /// The signature with its version.
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let mut mac = HMAC::new(self.0.as_slice());
        mac.update(format!("{id}.{timestamp}."));
        mac.update(body);
        format!("v1,{}", STANDARD.encode(mac.finalize()))
    }
}

impl Claim<'_> {
    /// What `headers` say, without a look at the body (HOOK-1, HOOK-4).
    ///
    /// # Errors
    /// [`Refused`], but not [`Refused::Signature`].
    pub fn of(headers: &HeaderMap, now: SystemTime) -> Result<Claim<'_>, Refused> {
        let id = one(headers, "webhook-id").filter(|id| id.len() <= ID_BYTES_MAX);
        let id = id.ok_or(Refused::Header)?;
        let timestamp = one(headers, "webhook-timestamp").ok_or(Refused::Header)?;
        let signatures = one(headers, "webhook-signature").ok_or(Refused::Header)?;
        let timestamp = timestamp.parse::<i64>().ok();
        let timestamp = timestamp.filter(|seconds| (0..TIMESTAMP_MAX).contains(seconds));
        let timestamp = timestamp.ok_or(Refused::Timestamp)?;
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if (now - timestamp).abs() > TOLERANCE_S {
            return Err(Refused::Stale);
        }
        Ok(Claim { id, timestamp, signatures })
    }
}

/// The value of a header that is there exactly once and is plain text.
fn one<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next().filter(|_| values.next().is_none())?;
    first.to_str().ok().filter(|text| !text.is_empty())
}

/// Takes as long for a wrong signature as for the right one of the same length.
fn same(given: &[u8], right: &[u8]) -> bool {
    let differences = given.iter().zip(right).fold(0, |all, (a, b)| black_box(all | (a ^ b)));
    given.len() == right.len() && black_box(differences) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk";
    const TIME: u64 = 1_649_367_553;
    const BODY: &[u8] = br#"{"email":"test@example.com","username":"test_user"}"#;
    const SIGNATURE: &str = "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=";

    fn verifier(key: &str) -> Result<Verifier, KeyProblem> {
        Verifier::new(&SecretString::from(key))
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().expect("a header"));
        }
        headers
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn verdict(signature: &str, body: &[u8], now: u64) -> Result<(), Refused> {
        let time = TIME.to_string();
        let headers = headers(&[
            ("Webhook-Id", ID),
            ("webhook-timestamp", &time),
            ("WEBHOOK-SIGNATURE", signature),
        ]);
        let verifier = verifier("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD").expect("a key");
        let claim = Claim::of(&headers, at(now))?;
        verifier.verify(claim, body).map(|id| assert_eq!(id, ID))
    }

    #[test]
    fn the_published_example_is_genuine() {
        // HOOK-1, HOOK-2, HOOK-3, HOOK-5.
        assert_eq!(verdict(SIGNATURE, BODY, TIME), Ok(()));
        let bare = verifier("C2FVsBQIhrscChlQIMV+b5sSYspob7oD").expect("without a prefix");
        assert_eq!(bare.sign(ID, TIME as i64, BODY), SIGNATURE);
    }

    #[test]
    fn a_signature_is_that_of_the_standards_own_crate_and_covers_any_bytes() {
        // HOOK-3: raw bytes, before anything is read of them.
        let key = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
        let (ours, theirs) = (verifier(key), standardwebhooks::Webhook::new(key));
        let (ours, theirs) = (ours.expect("a key"), theirs.expect("a key"));
        for body in ["", "{}", "ö", &"x".repeat(1000)] {
            let want = theirs.sign(ID, 7, body.as_bytes()).expect("text");
            assert_eq!(ours.sign(ID, 7, body.as_bytes()), want, "{body}");
        }
        let signature = ours.sign(ID, TIME as i64, b"\xff\0");
        assert_eq!(verdict(&signature, b"\xff\0", TIME), Ok(()));
        assert_eq!(verdict(&signature, b"\xfe\0", TIME), Err(Refused::Signature));
        assert_eq!(verdict(&signature, "\u{fffd}\0".as_bytes(), TIME), Err(Refused::Signature));
    }

    #[test]
    fn one_right_signature_of_several_is_enough_and_other_versions_do_not_count() {
        // HOOK-3.
        let wrong = "v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        let other_version = SIGNATURE.replace("v1,", "v2,");
        let bare = SIGNATURE.trim_start_matches("v1,");
        for (signatures, want) in [
            (format!("{wrong} {SIGNATURE}"), Ok(())),
            (format!("{SIGNATURE} {wrong}"), Ok(())),
            (format!("v1a,x {other_version} {SIGNATURE}"), Ok(())),
            (wrong.to_owned(), Err(Refused::Signature)),
            (other_version.clone(), Err(Refused::Signature)),
            (bare.to_owned(), Err(Refused::Signature)),
            ("v1,".to_owned(), Err(Refused::Signature)),
            (SIGNATURE[..20].to_owned(), Err(Refused::Signature)),
            (format!("{SIGNATURE}="), Err(Refused::Signature)),
            (vec![wrong; 16].join(" ") + " " + SIGNATURE, Err(Refused::Signature)),
        ] {
            assert_eq!(verdict(&signatures, BODY, TIME), want, "{signatures}");
        }
    }

    #[test]
    fn one_bit_of_body_id_or_time_makes_it_wrong() {
        // HOOK-3.
        for at in 0..BODY.len() {
            let mut body = BODY.to_vec();
            body[at] ^= 1;
            assert_eq!(verdict(SIGNATURE, &body, TIME), Err(Refused::Signature), "byte {at}");
        }
        assert_eq!(verdict(SIGNATURE, b"\xff", TIME), Err(Refused::Signature));
        let verifier = verifier("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD").expect("a key");
        let time = TIME.to_string();
        let later = (TIME + 1).to_string();
        for (id, time) in [(ID, later.as_str()), ("msg_2", &time)] {
            let headers = headers(&[
                ("webhook-id", id),
                ("webhook-timestamp", time),
                ("webhook-signature", SIGNATURE),
            ]);
            let claim = Claim::of(&headers, at(TIME)).expect("fresh");
            let got = verifier.verify(claim, BODY);
            assert_eq!(got, Err(Refused::Signature), "{id} {time}");
        }
    }

    #[test]
    fn five_minutes_to_either_side_are_tolerated_and_no_second_more() {
        // HOOK-4.
        for (now, want) in [
            (TIME + 300, Ok(())),
            (TIME - 300, Ok(())),
            (TIME + 301, Err(Refused::Stale)),
            (TIME - 301, Err(Refused::Stale)),
            (0, Err(Refused::Stale)),
        ] {
            assert_eq!(verdict(SIGNATURE, BODY, now), want, "{now}");
        }
    }

    #[test]
    fn headers_that_are_missing_doubled_or_nonsense_are_refused() {
        // HOOK-1, HOOK-4.
        let time = TIME.to_string();
        let all =
            [("webhook-id", ID), ("webhook-timestamp", &*time), ("webhook-signature", SIGNATURE)];
        let verifier = verifier("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD").expect("a key");
        let verdict = |pairs: &[(&'static str, &str)]| {
            let headers = headers(pairs);
            verifier.verify(Claim::of(&headers, at(TIME))?, BODY).map(drop)
        };
        assert_eq!(verdict(&all), Ok(()));
        for left_out in 0..3 {
            let mut two = all.to_vec();
            let one = two.remove(left_out);
            assert_eq!(verdict(&two), Err(Refused::Header), "without {}", one.0);
            let mut four = all.to_vec();
            four.push(one);
            assert_eq!(verdict(&four), Err(Refused::Header), "{} twice", one.0);
            let mut empty = all.to_vec();
            empty[left_out].1 = "";
            assert_eq!(verdict(&empty), Err(Refused::Header), "{} empty", one.0);
        }
        let long = "x".repeat(257);
        assert_eq!(verdict(&[("webhook-id", &long), all[1], all[2]]), Err(Refused::Header));
        for time in ["soon", "-1", "1e9", "9223372036854775807", "-9223372036854775808", "1.5"] {
            let got = verdict(&[all[0], ("webhook-timestamp", time), all[2]]);
            assert_eq!(got, Err(Refused::Timestamp), "{time}");
        }
    }

    #[test]
    fn a_key_that_is_none_is_refused_and_not_shown() {
        // HOOK-2, AUTH-8.
        for (key, want) in [
            ("", KeyProblem::Empty),
            ("whsec_", KeyProblem::Empty),
            (" \n", KeyProblem::Empty),
            ("whsec_%%%planted", KeyProblem::NotBase64),
        ] {
            assert_eq!(verifier(key).expect_err(key), want);
        }
        let shown =
            format!("{:?} {}", verifier("whsec_C2FV").expect("a key"), KeyProblem::NotBase64);
        assert!(!shown.contains("C2FV") && !shown.contains("planted"), "{shown}");
    }
}
