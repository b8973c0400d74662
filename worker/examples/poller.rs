//! Claims work until the queue is empty and says for which sessions it is. Every item is stopped when
//! it is dropped; a program that gives items to somebody else calls `detach`.
//!
//! `ANTHROPIC_ENVIRONMENT_ID=… ANTHROPIC_ENVIRONMENT_KEY=… poller`

use stockade_worker::{Environment, Stop, WorkPoller, WorkPollerOptions};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = WorkPollerOptions::default().drain(true);
    let mut poller = WorkPoller::start(&Environment::from_variables()?, options, Stop::never())?;
    while let Some(work) = poller.next().await? {
        println!("session {}", work.session_id());
    }
    println!("{:?}", poller.end());
    Ok(())
}
