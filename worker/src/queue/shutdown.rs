//! The worker's own end, in levels (SHUT-1..5). A level is never taken back.

use std::time::{Duration, Instant};

use tokio::sync::watch;

/// How urgently everything must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Not at all.
    Run,
    /// Claim nothing, start nothing; what runs may finish within the drain limit (SHUT-2).
    Drain,
    /// Kill at once; one attempt to hand each work item back (SHUT-4).
    Cancel,
}

/// A level, and when the first above [`Level::Run`] was reached.
#[derive(Debug, Clone, Copy)]
struct State {
    level: Level,
    began: Option<Instant>,
}

/// Held by whoever hears the signals.
#[derive(Debug)]
pub struct Shutdown(watch::Sender<State>);

/// Held by whoever must end.
#[derive(Debug, Clone)]
pub struct ShutdownWatch(watch::Receiver<State>);

impl Shutdown {
    /// A pair; dropping the handle means nothing.
    pub fn new() -> (Shutdown, ShutdownWatch) {
        let (sender, receiver) = watch::channel(State { level: Level::Run, began: None });
        (Shutdown(sender), ShutdownWatch(receiver))
    }

    /// First signal.
    pub fn drain(&self) {
        self.raise(Level::Drain);
    }

    /// Second signal.
    pub fn cancel(&self) {
        self.raise(Level::Cancel);
    }

    fn raise(&self, level: Level) {
        self.0.send_if_modified(|now| {
            let higher = level > now.level;
            now.level = level.max(now.level);
            now.began = now.began.or_else(|| higher.then(Instant::now));
            higher
        });
    }
}

impl ShutdownWatch {
    /// As of now.
    pub fn level(&self) -> Level {
        self.0.borrow().level
    }

    /// How long the end has taken so far; `None` before it began.
    pub fn took(&self) -> Option<Duration> {
        self.0.borrow().began.map(|began| began.elapsed())
    }

    /// Returns when the level is at least `level`; safe to drop.
    pub async fn reached(&mut self, level: Level) {
        if self.0.wait_for(|now| now.level >= level).await.is_err() {
            // The handle is gone, so the level cannot change any more.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_level_only_rises() {
        let (handle, mut watch) = Shutdown::new();
        assert_eq!(watch.level(), Level::Run);
        assert_eq!(watch.took(), None);
        handle.cancel();
        handle.drain();
        assert!(watch.took().is_some());
        assert_eq!(watch.level(), Level::Cancel);
        watch.reached(Level::Drain).await;
    }
}
