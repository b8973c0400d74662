//! Whether traces are made, where they go and what is in them: one option and the usual variables.

use std::collections::HashMap;
use std::ffi::OsString;
use std::time::Duration;

use clap::Args;
use secrecy::ExposeSecret as _;
use url::Url;

use crate::credential::hidden::HiddenVariables;
use crate::settings::Refusal;

/// OBS-4
const CONTENT_BYTES_MAX: usize = 750_000;
const TIMEOUT: Duration = Duration::from_secs(10);
const TIMEOUT_MAX: Duration = Duration::from_secs(60);
const PATH: &str = "v1/traces";

/// Where traces go.
#[derive(Debug, Clone, Default, Args)]
pub struct TraceArgs {
    /// Send traces to the OTLP collector at URL [default: none are made]
    ///
    /// OpenTelemetry spans over HTTP, to URL/v1/traces; OTEL_EXPORTER_OTLP_ENDPOINT does the same. They
    /// hold ids, names and times, and no content. docs/traces.md lists them.
    #[arg(long, value_name = "URL")]
    pub otlp_endpoint: Option<String>,
}

/// How traces are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceSettings {
    /// The whole URL.
    pub endpoint: Url,
    /// Of one batch.
    pub timeout: Duration,
    /// Bytes of content in one attribute; none without content (OBS-4).
    pub content_bytes_max: Option<usize>,
    /// Whether the control plane is told of spans (OBS-4).
    pub propagates: bool,
}

impl TraceSettings {
    /// `None`: no traces.
    ///
    /// # Errors
    /// An endpoint that is no URL.
    pub fn of(
        args: &TraceArgs,
        variable: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Option<TraceSettings>, Refusal> {
        let text = |name: &str| {
            let value = variable(name).and_then(|value| value.into_string().ok());
            value.map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
        };
        let says = |name: &str, word: &str| {
            text(name).is_some_and(|value| value.eq_ignore_ascii_case(word))
        };
        let off = says("ANTHROPIC_OPEN_TELEMETRY", "false")
            || says("OTEL_SDK_DISABLED", "true")
            || says("OTEL_TRACES_EXPORTER", "none");
        let base = args.otlp_endpoint.clone().map(|url| ("--otlp-endpoint", url, true));
        let base = base
            .or_else(|| {
                let name = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
                text(name).map(|url| (name, url, false))
            })
            .or_else(|| {
                let name = "OTEL_EXPORTER_OTLP_ENDPOINT";
                text(name).map(|url| (name, url, true))
            });
        let Some((from, url, is_base)) = base.filter(|_| !off) else { return Ok(None) };
        let content = says("ANTHROPIC_OPEN_TELEMETRY_TRACES_CONTENT_MODE", "content");
        let number = |name: &str| text(name).and_then(|value| value.parse::<u64>().ok());
        let bytes = number("ANTHROPIC_OPEN_TELEMETRY_TRACES_MAX_CONTENT_BYTES");
        let bytes = bytes.map_or(CONTENT_BYTES_MAX, |bytes| {
            usize::try_from(bytes).unwrap_or(CONTENT_BYTES_MAX).min(CONTENT_BYTES_MAX)
        });
        let timeout = number("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT")
            .or_else(|| number("OTEL_EXPORTER_OTLP_TIMEOUT"))
            .map_or(TIMEOUT, Duration::from_millis);
        Ok(Some(TraceSettings {
            endpoint: endpoint(from, &url, is_base)?,
            timeout: timeout.clamp(Duration::from_millis(1), TIMEOUT_MAX),
            content_bytes_max: content.then_some(bytes),
            propagates: !says("ANTHROPIC_OPEN_TELEMETRY_PROPAGATION", "false"),
        }))
    }
}

fn endpoint(from: &str, text: &str, is_base: bool) -> Result<Url, Refusal> {
    // The URL is not repeated: it might hold a password.
    let refused = |what: &str| Refusal {
        text: format!("cannot use {from}: {what}"),
        hint: "write it like http://127.0.0.1:4318".to_owned(),
    };
    let mut url: Url = text.parse().map_err(|_| refused("it is not a URL"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(refused("its scheme is neither http nor https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refused("it holds a user name or password"));
    }
    if is_base {
        let path = format!("{}/{PATH}", url.path().trim_end_matches('/'));
        url.set_path(&path);
    }
    Ok(url)
}

/// What collectors ask for: `NAME=VALUE,…`, values percent-encoded.
pub fn headers(hidden: &HiddenVariables) -> HashMap<String, String> {
    let of = |name: &str| hidden.get(name).map(|value| value.expose_secret().to_owned());
    let text = of("OTEL_EXPORTER_OTLP_TRACES_HEADERS").or_else(|| of("OTEL_EXPORTER_OTLP_HEADERS"));
    let text = text.unwrap_or_default();
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    let decoded = |text: &str| {
        percent_encoding::percent_decode_str(text.trim()).decode_utf8_lossy().into_owned()
    };
    pairs.map(|(name, value)| (name.trim().to_owned(), decoded(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(
        option: Option<&str>,
        variables: &[(&str, &str)],
    ) -> Result<Option<TraceSettings>, Refusal> {
        let args = TraceArgs { otlp_endpoint: option.map(str::to_owned) };
        TraceSettings::of(&args, &|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn traces_are_made_only_where_somebody_asks_for_them() {
        // OBS-4.
        let generic = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c.test:4318/p/");
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t.test/x");
        let url = |option, variables: &[(&str, &str)]| {
            of(option, variables).expect("valid").map(|settings| settings.endpoint.to_string())
        };
        assert_eq!(url(None, &[]), None);
        assert_eq!(url(None, &[generic]).as_deref(), Some("http://c.test:4318/p/v1/traces"));
        assert_eq!(url(None, &[generic, own]).as_deref(), Some("http://t.test/x"));
        let option = Some("https://o.test");
        assert_eq!(url(option, &[own]).as_deref(), Some("https://o.test/v1/traces"));
        for (name, word) in [
            ("ANTHROPIC_OPEN_TELEMETRY", "false"),
            ("OTEL_SDK_DISABLED", "true"),
            ("OTEL_TRACES_EXPORTER", "none"),
        ] {
            assert_eq!(url(option, &[(name, word)]), None, "{name}");
        }
        for wrong in ["x", "ftp://x.test", "http://u:pw@x.test"] {
            let refused = of(Some(wrong), &[]).expect_err(wrong);
            assert!(refused.text.contains("--otlp-endpoint") && !refused.text.contains("pw"));
        }
    }

    #[test]
    fn content_is_for_those_who_ask_for_it_and_it_is_bounded() {
        // OBS-4, INV-11, INV-12.
        let mode = ("ANTHROPIC_OPEN_TELEMETRY_TRACES_CONTENT_MODE", "content");
        let max = "ANTHROPIC_OPEN_TELEMETRY_TRACES_MAX_CONTENT_BYTES";
        let bytes = |variables: &[(&str, &str)]| {
            let settings = of(Some("http://c.test"), variables).expect("valid").expect("on");
            settings.content_bytes_max
        };
        assert_eq!(bytes(&[]), None);
        assert_eq!(bytes(&[(max, "10")]), None);
        assert_eq!(bytes(&[mode]), Some(CONTENT_BYTES_MAX));
        assert_eq!(bytes(&[mode, (max, "10")]), Some(10));
        assert_eq!(bytes(&[mode, (max, "99999999")]), Some(CONTENT_BYTES_MAX));
    }
}
