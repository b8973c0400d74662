//! Serves the sessions of an environment with everything that `worker poll` gives them: skills, memory
//! stores, the input that the policy stages, and a directory of this host that keeps their outputs.
//!
//! `furnished run|items POLICY AUDIT_FILE OUTPUTS_DIRECTORY CONFIG_FILE`, with the variables of the
//! environment. With `items` the program claims work itself and has each item served. Runs until SIGTERM.

use std::time::Duration;

use stockade_worker::{
    Environment, EnvironmentWorker, JailPolicy, Stop, Toolset, WorkPoller, WorkPollerOptions,
    WorkToServe,
};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    stockade_worker::become_helper_if_asked();
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &'static str| arguments.next().ok_or(what);
    let items = next("say `run` or `items`")? == "items";
    let policy = JailPolicy::new(next("name a policy")?, next("name an audit log")?)
        .outputs_directory(next("name a directory for outputs")?)
        .config_file(next("name a configuration file")?);
    // While there is one thread.
    let tools = Toolset::jailed(policy)?;
    let environment = Environment::from_variables()?;
    let worker = EnvironmentWorker::new(environment.clone(), tools)
        .sessions_max(4)
        .max_idle(Some(Duration::from_secs(1)));
    tokio::runtime::Runtime::new()?.block_on(async {
        let (handle, stop) = Stop::new();
        let mut asked = signal(SignalKind::terminate())?;
        tokio::spawn(async move {
            asked.recv().await;
            handle.drain();
        });
        if !items {
            return Ok(worker.run(stop).await?);
        }
        let options = WorkPollerOptions::default();
        let mut poller = WorkPoller::start(&environment, options, stop.clone())?;
        while let Some(work) = poller.next().await? {
            let session = work.session_id().to_owned();
            let outcome = worker.handle_item(WorkToServe::claimed(work), stop.clone()).await?;
            println!("{session} {outcome:?}");
        }
        Ok(())
    })
}
