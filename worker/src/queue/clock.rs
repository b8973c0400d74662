//! Time that goes on while the host is suspended (RACE-20).
//!
//! Waits use tokio's clock, which stands still during a suspend. A lease does not: the control
//! plane counts on. So a lease is judged by the time since boot.

use std::sync::Arc;
use std::time::Duration;

/// Time since some fixed point, suspends included; never goes back.
pub trait Uptime: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> Duration;
}

/// Shared by everything that judges a lease.
pub type SharedUptime = Arc<dyn Uptime>;

/// `CLOCK_BOOTTIME`, clock_gettime(2).
#[derive(Debug, Clone, Copy)]
pub struct BootTime;

impl Uptime for BootTime {
    fn now(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::try_from(now).unwrap_or_default()
    }
}

#[cfg(test)]
pub mod fake {
    use std::sync::Mutex;

    use super::*;

    /// tokio's (paused) clock and what a test adds as suspended time.
    #[derive(Debug)]
    pub struct TestTime {
        start: tokio::time::Instant,
        suspended: Mutex<Duration>,
    }

    impl TestTime {
        pub fn new() -> TestTime {
            TestTime {
                start: tokio::time::Instant::now(),
                suspended: Mutex::new(Duration::from_secs(1000)),
            }
        }

        pub fn suspend(&self, time: Duration) {
            *self.suspended.lock().expect("not poisoned") += time;
        }
    }

    impl Uptime for TestTime {
        fn now(&self) -> Duration {
            self.start.elapsed() + *self.suspended.lock().expect("not poisoned")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_goes_on() {
        let before = BootTime.now();
        std::thread::sleep(Duration::from_millis(2));
        assert!(BootTime.now() > before);
    }
}
