//! Input by HTTPS: one GET request, and redirects only as far as the rule allows.

use reqwest::header::{ACCEPT_ENCODING, HeaderMap, LOCATION};
use stockade_runtime::policy::stage::{Scheme, StagePlace};

use super::Outside;
use super::dial;
use super::error::Fault;
use super::request::Wanted;
use super::sink::{Fetched, Sink};

/// Most redirects.
const REDIRECTS_MAX: usize = 5;

/// Fetches what `wanted` says.
pub(super) async fn fetch(
    outside: &Outside,
    wanted: &Wanted,
    mut sink: Sink,
) -> Result<Fetched, Fault> {
    let mut response = respond(outside, wanted).await?;
    if let Some(bytes) = response.content_length() {
        sink.expect(bytes)?;
    }
    let host = wanted.host().unwrap_or_default();
    loop {
        let chunk = response.chunk().await.map_err(|error| broken(&host, "it broke off", error))?;
        match chunk {
            Some(chunk) => sink.push(&chunk).await?,
            None => return sink.finish().await,
        }
    }
}

/// The answer that is neither a redirect nor an error.
async fn respond(outside: &Outside, wanted: &Wanted) -> Result<reqwest::Response, Fault> {
    let mut place = wanted.place.clone();
    for _ in 0..=REDIRECTS_MAX {
        let host = place.host().map(ToString::to_string).unwrap_or_default();
        // Each hop has a client of its own, whose name and addresses were checked, and the
        // credential of its own host: nothing is carried from one to the next.
        let client = dial::client(outside, &place, wanted.rule.kind.private()).await?;
        let mut headers = HeaderMap::new();
        if let Some((name, value)) = outside.keys().header(&place) {
            headers.insert(name, value);
        }
        headers.insert(ACCEPT_ENCODING, http::HeaderValue::from_static("identity"));
        let request = client.get(place.to_string()).headers(headers);
        let response = request.send().await.map_err(|error| broken(&host, "no answer", error))?;
        match response.status().as_u16() {
            200 => return Ok(response),
            status @ (301 | 302 | 303 | 307 | 308) => {
                let to = response.headers().get(LOCATION);
                let to = to.and_then(|to| to.to_str().ok());
                place = match to {
                    Some(to) => follow(&place, to, wanted, &host)?,
                    None => return Err(Fault::Status { host, status }),
                };
            }
            status => return Err(Fault::Status { host, status }),
        }
    }
    let host = place.host().map(ToString::to_string).unwrap_or_default();
    Err(Fault::Redirect { host, to: "too often" })
}

/// Where a redirect leads; a place of the rule, or nowhere.
fn follow(
    from: &StagePlace,
    location: &str,
    wanted: &Wanted,
    host: &str,
) -> Result<StagePlace, Fault> {
    let refused = |to| Fault::Redirect { host: host.to_owned(), to };
    // A path of the same host; anything more clever than that is not worth following.
    let absolute = match location.starts_with('/') && !location.starts_with("//") {
        true => format!("https://{}:{}{location}", host, from.port()),
        false => location.to_owned(),
    };
    let place = StagePlace::parse(&absolute, &[Scheme::Https])
        .map_err(|_| refused("to what is no place"))?;
    match wanted.rule.allows(&place) {
        true => Ok(place),
        false => Err(refused("outside the places that the policy allows")),
    }
}

fn broken(host: &str, doing: &'static str, error: reqwest::Error) -> Fault {
    // Without the URL: INV-12.
    let source = Some(Box::new(error.without_url()) as Box<_>);
    Fault::Unreachable { host: host.to_owned(), doing, source }
}
