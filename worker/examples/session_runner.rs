//! Serves one session by its id until it ends, without a work item. **Without a jail.**
//!
//! `session_runner SESSION DIRECTORY`, with the variables of the environment.

use stockade_worker::{Environment, SessionRunner, Stop, Toolset};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    stockade_worker::become_helper_if_asked();
    let mut arguments = std::env::args().skip(1);
    let session = arguments.next().ok_or("name a session")?;
    let directory = arguments.next().ok_or("name a working directory")?;
    let tools = Toolset::in_process(directory)?;
    let runner = SessionRunner::with_key(Environment::from_variables()?, session, tools);
    let outcome = tokio::runtime::Runtime::new()?.block_on(runner.run(Stop::never()))?;
    println!("{outcome:?}");
    Ok(())
}
