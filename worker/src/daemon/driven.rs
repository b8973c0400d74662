//! What drives the queue: polling, a webhook, or one item that was claimed elsewhere.

use std::io;
use std::sync::Arc;

use anyhow::Context as _;

use super::ground::Ground;
use super::opened::{Hook, Opened};
use super::scripts::{Keys, Scripts};
use crate::credential::hidden::HiddenVariables;
use crate::listener::{self, Bound};
use crate::queue::{
    Drive, Host, ItemEnd, ItemRequest, PollRefused, Queue, QueueEnd, ShutdownWatch, Trigger,
};
use crate::scripts::Link;
use crate::webhook::Receiver;

/// How it ended.
#[derive(Debug)]
pub enum End {
    /// The poll loop.
    Queue(Result<QueueEnd, PollRefused>),
    /// The one item.
    Item(ItemEnd),
    /// The script cannot be started (ONWORK-8).
    Unrunnable,
}

/// What is to be done.
pub enum Driven {
    /// Poll.
    Poll,
    /// Poll, and have scripts serve what is claimed.
    Scripts(Arc<Scripts>),
    /// Serve this.
    Item(ItemRequest),
    /// Poll when the listener hears of work.
    Hook { bound: Bound, receiver: Arc<Receiver> },
}

/// Makes of what was opened what the queue is told, and what is to be done with it. Needs a runtime.
///
/// # Errors
/// If the runtime cannot watch what was opened.
pub fn of(opened: Opened, ground: &Ground<'_>) -> anyhow::Result<(Drive, Driven)> {
    let polls = Drive { shutdown: Some(Arc::clone(&ground.shutdown)), ..Drive::default() };
    match opened {
        Opened::Poll => Ok((polls, Driven::Poll)),
        Opened::Item(item) => Ok((polls, Driven::Item(item))),
        Opened::Scripts(on_work, starter) => {
            let starter = starter.context("the script starter was not started")?;
            let link = Link::new(starter).context("cannot reach the script starter")?;
            let environment = ground.key.clone().filter(|_| !on_work.without_key);
            // On a platform they take the key's place.
            let hidden = if on_work.without_key && ground.settings.platform.is_some() {
                HiddenVariables::default()
            } else {
                ground.hidden.clone()
            };
            let keys = Keys { environment, hidden };
            let (record, shutdown) = (Arc::clone(&ground.record), Arc::clone(&ground.shutdown));
            let scripts = Arc::new(Scripts::new(on_work, link, keys, record, shutdown));
            let drive = Drive { handler: Some(Arc::clone(&scripts) as Arc<_>), ..polls };
            Ok((drive, Driven::Scripts(scripts)))
        }
        Opened::Hook(hook) => {
            let Hook { settings, verifier, bound } = *hook;
            let bound = bound.context("the webhook's listener was not opened")?;
            let trigger = Arc::new(Trigger::new(settings.safety_poll));
            let watch = ground.watch.clone();
            let receiver = Receiver::new(verifier, &settings.path, Arc::clone(&trigger), watch);
            let drive = Drive { trigger: Some(trigger), ..polls };
            Ok((drive, Driven::Hook { bound, receiver: Arc::new(receiver) }))
        }
    }
}

impl Driven {
    /// Does it, until there is nothing more to do.
    pub async fn run<H: Host>(self, queue: &Queue<H>, watch: ShutdownWatch) -> End {
        match self {
            Driven::Poll => End::Queue(queue.run(watch).await),
            Driven::Item(item) => End::Item(queue.run_item(item, watch).await),
            Driven::Scripts(scripts) => {
                let end = queue.run(watch).await;
                if scripts.unrunnable() { End::Unrunnable } else { End::Queue(end) }
            }
            Driven::Hook { bound, receiver } => {
                tell(&bound);
                let listener = tokio::spawn(listener::serve(bound, receiver));
                let end = queue.run(watch).await;
                listener.abort();
                // Of interest only if it ended before that.
                if let Ok(Err(error)) = listener.await {
                    failed(&error);
                }
                End::Queue(end)
            }
        }
    }
}

fn tell(bound: &Bound) {
    if let Ok(address) = bound.address() {
        tracing::info!(event = "webhook.listening", %address, "listening for webhooks");
    }
}

fn failed(error: &io::Error) {
    tracing::error!(
        event = "webhook.failed",
        %error,
        "the webhook's listener failed; only the safety poll asked for work"
    );
}
