//! Options about the platform that hosts the control plane, shared by all commands that reach it.

use std::path::PathBuf;

use clap::Args;

use super::api_key::ApiKeyHeader;

/// Where the control plane is hosted, and by what it knows this worker.
#[derive(Debug, Clone, Default, Args)]
pub struct PlatformArgs {
    /// Take work from a control plane that this platform hosts: `aws`
    ///
    /// There is no environment key then. Needs a region and a workspace id. docs/aws.md tells where
    /// credentials are looked for.
    #[arg(long, value_name = "NAME")]
    pub platform: Option<PlatformName>,

    /// Use this region [default: AWS_REGION, then AWS_DEFAULT_REGION]
    #[arg(long, value_name = "REGION", requires = "platform")]
    pub aws_region: Option<String>,

    /// Sign requests with the credentials of this profile
    #[arg(long, value_name = "NAME", requires = "platform", conflicts_with = "aws_api_key_file")]
    pub aws_profile: Option<String>,

    /// Send the API key in FILE instead of signing requests
    ///
    /// The file belongs to root or to you, and only its owner can read it (mode 600).
    #[arg(long, value_name = "FILE", requires = "platform")]
    pub aws_api_key_file: Option<PathBuf>,

    /// Send an API key in this header: `x-api-key` or `bearer` [default: x-api-key]
    #[arg(
        long,
        value_name = "HEADER",
        requires = "platform",
        default_value = "x-api-key",
        hide_default_value = true
    )]
    pub aws_api_key_header: ApiKeyHeader,
}

/// A platform that hosts a control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum PlatformName {
    /// Claude Platform on AWS.
    #[value(help = "Claude Platform on AWS")]
    Aws,
}
