//! What wakes a worker that polls only when it is told to (HOOK-8, HOOK-10).
//!
//! Between triggers nothing is asked. A trigger means: poll until the queue is empty. One that comes
//! while that is under way is remembered, and any number of them is one.

use std::pin::pin;
use std::time::Duration;

use tokio::sync::Notify;

/// A delivery may be here before its item can be claimed: an empty poll after a trigger is followed
/// by these, unless something was claimed.
const FOLLOW_UPS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

/// Held by whoever hears of work.
#[derive(Debug)]
pub struct Trigger {
    fired: Notify,
    safety_poll: Duration,
}

impl Trigger {
    /// Polls at the latest `safety_poll` after the last empty poll (HOOK-10): a delivery may be lost.
    pub fn new(safety_poll: Duration) -> Trigger {
        Trigger { fired: Notify::new(), safety_poll }
    }

    /// There may be work.
    pub fn fire(&self) {
        self.fired.notify_one();
    }
}

/// How long the poll loop waits after an empty poll.
#[derive(Debug)]
pub struct Rests {
    next_follow_up: usize,
}

impl Rests {
    /// Before the first trigger.
    pub fn new() -> Rests {
        Rests { next_follow_up: FOLLOW_UPS.len() }
    }

    /// Something was claimed: what the trigger told of is here.
    pub fn claimed(&mut self) {
        self.next_follow_up = FOLLOW_UPS.len();
    }

    /// Waits until it is time to poll.
    pub async fn rest(&mut self, trigger: &Trigger) {
        let follow_up = FOLLOW_UPS.get(self.next_follow_up);
        let pause = follow_up.copied().unwrap_or(trigger.safety_poll);
        match tokio::time::timeout(pause, trigger.fired.notified()).await {
            Ok(()) => {
                self.next_follow_up = 0;
                // Those that came at the same time are answered by the same poll.
                let same_time = pin!(trigger.fired.notified());
                let _answered = same_time.enable();
            }
            Err(_) if follow_up.is_some() => self.next_follow_up += 1,
            Err(_) => {}
        }
    }
}
