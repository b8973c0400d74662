//! Serves the sessions of an environment until its queue is empty, with a function as a custom tool.
//! **Without a jail**: bash has the rights of this program. For machines that exist for one session.
//!
//! `worker DIRECTORY`, with the variables of the environment.

use serde::Deserialize;
use stockade_worker::{
    Environment, EnvironmentWorker, Stop, StopHandle, ToolInput, ToolOutput, Toolset,
};

#[derive(Deserialize)]
struct Order {
    number: u32,
}

async fn lookup_order(input: ToolInput) -> Result<ToolOutput, String> {
    let Order { number } = input.parse()?;
    if number == 0 {
        return Err("there is no order 0".to_owned());
    }
    Ok(ToolOutput::text(format!("order {number} has shipped")))
}

/// Runs on after SIGINT until calls under way have ended.
async fn stop_at_signal(handle: StopHandle) {
    if tokio::signal::ctrl_c().await.is_ok() {
        handle.drain();
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    stockade_worker::become_helper_if_asked();
    let directory = std::env::args().nth(1).ok_or("name a working directory")?;
    let tools = Toolset::in_process(directory)?.tool("lookup_order", lookup_order);
    let worker = EnvironmentWorker::new(Environment::from_variables()?, tools).drain(true);
    tokio::runtime::Runtime::new()?.block_on(async {
        let (handle, stop) = Stop::new();
        tokio::spawn(stop_at_signal(handle));
        worker.run(stop).await
    })?;
    Ok(())
}
