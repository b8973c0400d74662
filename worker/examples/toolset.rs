//! Serves the sessions of an environment until its queue is empty, each in a jail of its own.
//!
//! `toolset POLICY AUDIT_FILE`, with the variables of the environment.

use stockade_worker::{Environment, EnvironmentWorker, JailPolicy, Stop, Toolset};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    stockade_worker::become_helper_if_asked();
    let mut arguments = std::env::args().skip(1);
    let policy = arguments.next().ok_or("name a policy")?;
    let audit_file = arguments.next().ok_or("name an audit log")?;
    // While there is one thread.
    let tools = Toolset::jailed(JailPolicy::new(policy, audit_file))?
        .tool("host_name", |_| async { Ok("of the program, outside the jail".into()) });
    let worker =
        EnvironmentWorker::new(Environment::from_variables()?, tools).sessions_max(4).drain(true);
    Ok(tokio::runtime::Runtime::new()?.block_on(worker.run(Stop::never()))?)
}
