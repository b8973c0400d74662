//! Runs tool calls, read from standard input, in the jail of one session: for tests of the tools as
//! they run, and for trying them by hand.
//!
//! `session [POLICY] [--workdir DIR] [--outputs DIR NAME] [--skills ACCESS] [--store DIR ACCESS]...
//! [--porter] < CALLS`, one call a line: a tool's name, a space, its input as JSON. ACCESS is
//! `read-only` or `read-write`. The name `porter` asks the porter instead, `quiesce` ends the tool tree.
//! Prints for each call one line of JSON, at the end one with how the jail ended.

use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stockade_runtime::egress::{Broker, Entry, Sink};
use stockade_runtime::host::HostFacts;
use stockade_runtime::jail::{self, Launcher};
use stockade_runtime::policy::{Resolver, syscalls::catalogue};
use stockade_runtime::session::{self, Called, Egress, Session};
use stockade_runtime::spec::{self, Request, SkillsRequest, StoreAccess, StoreRequest};
use stockade_runtime::tool::Block;

#[path = "session/ask.rs"]
mod ask;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    session::become_launcher_if_asked();
    let mut arguments = std::env::args().skip(1).peekable();
    let policy = arguments.next().unwrap_or_else(|| "default".to_owned());
    let (mut workdir, mut outputs) = (None, None);
    let (mut skills, mut stores, mut porter) = (None, Vec::new(), false);
    while let Some(option) = arguments.next() {
        let mut value = || arguments.next().ok_or("an option lacks its value");
        match option.as_str() {
            "--workdir" => workdir = Some(PathBuf::from(value()?)),
            "--outputs" => outputs = Some((PathBuf::from(value()?), value()?)),
            "--skills" => {
                let writable = access(&value()?)? == StoreAccess::ReadWrite;
                skills = Some(SkillsRequest { writable, bytes_max: 64 << 20, inodes_max: 10_000 });
            }
            "--store" => {
                let (target, access) = (PathBuf::from(value()?), access(&value()?)?);
                let (bytes_max, inodes_max) = (8 << 20, 2_000);
                stores.push(StoreRequest { target, access, bytes_max, inodes_max });
            }
            "--porter" => porter = true,
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    let level = HostFacts::level_here()?;
    let mut launcher = Launcher::start(level)?;
    let groups: Vec<_> = catalogue().group_names().collect();
    let load = |path: &Path| std::fs::read_to_string(path);
    let resolver = Resolver { groups: &groups, directories: &[], load: &load };
    let policy = resolver.resolve(&policy)?;
    let facts = jail::probe_host(level)?;
    let request = Request {
        argv: ["/bin/bash", "--noprofile", "--norc"].map(|part| part.as_bytes().to_vec()).to_vec(),
        workspace: workdir.map(|path| jail::inspect(&path, "the workspace")).transpose()?,
        workspace_in_place: true,
        outputs_child: outputs.as_ref().map(|(_, name)| name.clone()),
        outputs: outputs.map(|(path, _)| jail::inspect(&path, "the outputs")).transpose()?,
        tools: true,
        skills,
        stores,
        porter,
        ..Request::default()
    };
    let request = Request { workspace_in_place: request.workspace.is_some(), ..request };
    let spec = spec::build(&policy, &facts, request)?;
    jail::drop_to_control_side(level)?;
    let run = jail::rootless_run_directory(std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from));
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let launcher = launcher.another()?;
        let broker = Arc::new(Broker::start()?);
        let egress = Egress { broker, sink: Arc::new(Ignored) };
        let mut session = Session::start(launcher, spec, run, Some(egress)).await?;
        let mut number = 0;
        let report = session.report();
        println!(
            "{}",
            serde_json::json!({
                "ready_us": report.timings.ready_us, "jail": report.jail, "places": report.places,
                "canary": report.canary,
            })
        );
        for line in std::io::stdin().lock().lines() {
            let line = line?;
            let (name, input) = line.split_once(' ').unwrap_or((&line, "{}"));
            let started = std::time::Instant::now();
            if name == "porter" {
                println!("{}", ask::porter(session.porter(), input).await);
                continue;
            }
            if name == "quiesce" {
                session.quiesce().await?;
                println!("{}", serde_json::json!({ "quiet": true }));
                continue;
            }
            number += 1;
            let (id, input) = (format!("call_{number}"), input.as_bytes().to_vec());
            let called = session.call(&id, name, input, std::future::pending()).await?;
            let Called { result, limits: hits, denials } = called;
            let took_us = started.elapsed().as_micros() as u64;
            let content: Vec<_> = result.content.iter().map(describe).collect();
            let hits: Vec<_> = hits.iter().map(|hit| format!("{hit:?}")).collect();
            println!(
                "{}",
                serde_json::json!({
                    "name": name, "content": content, "is_error": result.is_error,
                    "facts": format!("{:?}", result.facts), "hits": hits, "took_us": took_us,
                    "denials": format!("{denials:?}"),
                })
            );
        }
        let end = session.end().await?;
        println!("{}", serde_json::to_string(&end)?);
        Ok(())
    })
}

fn access(text: &str) -> Result<StoreAccess, Failure> {
    match text {
        "read-only" => Ok(StoreAccess::ReadOnly),
        "read-write" => Ok(StoreAccess::ReadWrite),
        other => Err(format!("unknown access {other}").into()),
    }
}

/// Nobody reads decisions here but the one who asked.
#[derive(Debug)]
struct Ignored;

impl Sink for Ignored {
    fn record(&self, _call: Option<&str>, _entry: &Entry) -> bool {
        true
    }
}

fn describe(block: &Block) -> serde_json::Value {
    match block {
        Block::Text(text) => serde_json::json!(text),
        Block::Image { media_type, data } | Block::Document { media_type, data } => {
            serde_json::json!({ "media_type": media_type, "bytes": data.len() })
        }
    }
}
