//! What must be given for a platform, and what is used of it.

use clap::Parser as _;
use stockade_runtime::host::Level;

use super::*;
use crate::cli::poll::PollArgs;
use crate::platform::ApiKeyOrigin;
use crate::settings::Surroundings;

#[derive(Debug, clap::Parser)]
struct Line {
    #[command(flatten)]
    poll: PollArgs,
}

fn checked(
    options: &[&str],
    variables: &[(&str, &str)],
    hidden: &[&str],
) -> Result<Settings, Refusal> {
    let base = ["poll", "--jail", "--environment-id=env_1"];
    let line = Line::try_parse_from(base.iter().chain(options)).expect("arguments");
    let surroundings = Surroundings {
        level: Level::Root,
        variable: |_| None,
        host_name: "host".to_owned(),
        nonce: 1,
    };
    let settings = Settings::check(&line.poll, &surroundings)?;
    let around = Around {
        variable: &|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        },
        hidden: &|name| hidden.contains(&name),
        base_url: line.poll.session.base_url.as_deref(),
        workspace_id: line.poll.session.workspace_id.as_deref(),
        insecure_http: line.poll.session.insecure_http,
    };
    apply(settings, &line.poll.session.platform, &around)
}

const AWS: &str = "--platform=aws";
const REGION: &str = "--aws-region=eu-central-1";
const WORKSPACE: &str = "--workspace-id=wrkspc_1";

/// Options, variables, and a part of what is said.
type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);

#[test]
fn region_and_workspace_have_no_default() {
    // AWS-2, AWS-3, HDR-8.
    #[rustfmt::skip]
    let cases: &[Case<'_>] = &[
        (&[AWS, WORKSPACE],                 &[],                              "no AWS region"),
        (&[AWS, WORKSPACE],                 &[("AWS_REGION", "")],            "no AWS region"),
        (&[AWS, WORKSPACE, "--aws-region=EU/x"], &[],                         "it is not one"),
        (&[AWS, WORKSPACE],                 &[("AWS_REGION", "a.evil.test/")], "it is not one"),
        (&[AWS, REGION],                    &[],                              "no workspace id"),
        (&[AWS, REGION],                    &[("ANTHROPIC_AWS_WORKSPACE_ID", "a b")], "not an id"),
        (&[AWS, REGION, WORKSPACE, "--environment-key-file=/k"], &[],         "environment key"),
        (&[AWS, REGION, WORKSPACE], &[("ANTHROPIC_AWS_BASE_URL", "http://x.test")], "no TLS"),
    ];
    for (options, variables, text) in cases {
        let refused = checked(options, variables, &[]).expect_err(text);
        assert!(refused.text.contains(text), "{options:?} {variables:?}: {refused:?}");
        assert!(!refused.hint.is_empty());
    }
}

#[test]
fn the_base_url_follows_the_region_unless_something_is_said() {
    // AWS-2.
    let url = |options: &[&str], variables: &[(&str, &str)]| {
        let options = [&[AWS, WORKSPACE], options].concat();
        let settings = checked(&options, variables, &[]).expect("valid");
        (settings.base_url.to_string(), settings.platform.expect("a platform").region)
    };
    let at = |region: &str| format!("https://aws-external-anthropic.{region}.api.aws/");
    let (first, second) = (("AWS_REGION", "us-west-2"), ("AWS_DEFAULT_REGION", "us-east-1"));
    assert_eq!(url(&[REGION], &[first, second]), (at("eu-central-1"), "eu-central-1".into()));
    assert_eq!(url(&[], &[first, second]), (at("us-west-2"), "us-west-2".into()));
    assert_eq!(url(&[], &[second]), (at("us-east-1"), "us-east-1".into()));
    let other = ("ANTHROPIC_AWS_BASE_URL", "https://gateway.test/p");
    assert_eq!(url(&[REGION], &[other]).0, "https://gateway.test/p");
    let option = "--base-url=https://option.test";
    assert_eq!(url(&[REGION, option], &[other]).0, "https://option.test/");
}

#[test]
fn the_workspace_of_aws_goes_before_that_of_the_other_control_plane() {
    // AWS-3.
    let own = ("ANTHROPIC_AWS_WORKSPACE_ID", "wrkspc_aws");
    let found = |options: &[&str]| {
        let options = [&[AWS, REGION], options].concat();
        checked(&options, &[own], &[]).expect("valid").workspace_id
    };
    assert_eq!(found(&[]).as_deref(), Some("wrkspc_aws"));
    assert_eq!(found(&[WORKSPACE]).as_deref(), Some("wrkspc_1"));
}

#[test]
fn half_a_pair_and_a_token_that_cannot_be_handed_on_are_refused() {
    // AWS-4.
    let with = |hidden: &[&str], options: &[&str]| {
        checked(&[&[AWS, REGION, WORKSPACE], options].concat(), &[], hidden)
    };
    for (half, missing) in [(ACCESS_KEY, SECRET_KEY), (SECRET_KEY, ACCESS_KEY)] {
        let refused = with(&[half], &[]).expect_err("half a pair");
        assert!(refused.text.contains(missing), "{refused:?}");
        with(&[half], &["--aws-profile=p"]).expect("the pair is not used");
    }
    let refused = with(&[CONTAINER_TOKEN], &[]).expect_err("a token in a variable");
    assert!(refused.hint.contains("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"), "{refused:?}");
    let modes = [
        (with(&[ACCESS_KEY, SECRET_KEY, CONTAINER_TOKEN], &[]), Mode::Chain),
        (with(&[API_KEY, ACCESS_KEY], &[]), Mode::ApiKey(ApiKeyOrigin::Variable)),
        (with(&[API_KEY], &["--aws-profile=p"]), Mode::Profile("p".to_owned())),
        (
            with(&[API_KEY], &["--aws-api-key-file=/k"]),
            Mode::ApiKey(ApiKeyOrigin::File("/k".into())),
        ),
    ];
    for (settings, mode) in modes {
        assert_eq!(settings.expect("valid").platform.expect("a platform").mode, mode);
    }
}

#[test]
fn nothing_of_aws_counts_where_no_platform_was_asked_for() {
    let settings = checked(&[], &[("AWS_REGION", "x")], &[ACCESS_KEY]).expect("valid");
    assert_eq!(settings.platform, None);
    assert_eq!(settings.base_url.host(), Some("api.anthropic.com"));
    let line = ["poll", "--aws-region=eu-central-1"];
    assert!(Line::try_parse_from(line).is_err(), "it would be forgotten silently");
}
