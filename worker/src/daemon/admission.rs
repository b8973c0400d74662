//! When one more session may be claimed: a slot is free, and so is memory.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::queue::Shutdown;

/// How often memory is looked at while there is too little.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Gives out slots.
#[derive(Debug)]
pub struct Admission {
    slots: Arc<Semaphore>,
    reserve_bytes: u64,
    once: Option<Arc<Once>>,
}

/// `--once`: the work item whose slot is given back first is the last one.
#[derive(Debug)]
struct Once {
    claimed: AtomicBool,
    shutdown: Arc<Shutdown>,
}

/// One slot; given back when it is dropped.
#[derive(Debug)]
pub struct Slot {
    _permit: Option<OwnedSemaphorePermit>,
    once: Option<Arc<Once>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(once) = &self.once
            && once.claimed.load(Ordering::Relaxed)
        {
            once.shutdown.drain();
        }
    }
}

impl Admission {
    /// Admits `sessions` at a time while `reserve_bytes` stay free; with `once` only one ever.
    pub fn new(
        sessions: u32,
        reserve_bytes: u64,
        once: bool,
        shutdown: &Arc<Shutdown>,
    ) -> Admission {
        let once = once.then(|| {
            Arc::new(Once { claimed: AtomicBool::new(false), shutdown: Arc::clone(shutdown) })
        });
        let sessions = if once.is_some() { 1 } else { sessions };
        let slots = Arc::new(Semaphore::new(sessions as usize));
        Admission { slots, reserve_bytes, once }
    }

    /// Waits for a slot and for memory.
    pub async fn admit(&self) -> Slot {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.slots).acquire_owned().await.ok();
        let mut told = false;
        loop {
            match available_bytes() {
                Ok(bytes) if bytes < self.reserve_bytes => {
                    if !told {
                        tracing::warn!(
                            event = "admission.waiting",
                            available_bytes = bytes,
                            reserve_bytes = self.reserve_bytes,
                            "too little free memory, claiming nothing"
                        );
                    }
                    told = true;
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                // A host that does not tell cannot be waited for; the jails' own limits hold.
                _ => break,
            }
        }
        Slot { _permit: permit, once: self.once.clone() }
    }

    /// A work item was claimed.
    pub fn claimed(&self) {
        if let Some(once) = &self.once {
            once.claimed.store(true, Ordering::Relaxed);
        }
    }
}

/// `MemAvailable` of proc_meminfo(5), in bytes.
fn available_bytes() -> io::Result<u64> {
    parse_available(&std::fs::read_to_string("/proc/meminfo")?)
        .ok_or(io::ErrorKind::InvalidData.into())
}

fn parse_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_bytes() {
        let text = "MemTotal:       100 kB\nMemAvailable:   17 kB\n";
        assert_eq!(parse_available(text), Some(17 << 10));
        assert_eq!(parse_available("MemTotal: 1 kB\n"), None);
        assert!(available_bytes().expect("this host tells") > 0);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_slots_are_given_out_than_there_are() {
        let (shutdown, _watch) = Shutdown::new();
        let admission = Admission::new(2, 0, false, &Arc::new(shutdown));
        let (first, _second) = (admission.admit().await, admission.admit().await);
        let third = tokio::time::timeout(Duration::from_secs(5), admission.admit());
        assert!(third.await.is_err(), "a third slot");
        drop(first);
        admission.admit().await;
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_admitted_while_memory_is_short() {
        let (shutdown, _watch) = Shutdown::new();
        let admission = Admission::new(1, u64::MAX, false, &Arc::new(shutdown));
        let slot = tokio::time::timeout(Duration::from_secs(60), admission.admit());
        assert!(slot.await.is_err(), "admitted without memory");
    }

    #[tokio::test(start_paused = true)]
    async fn once_ends_with_the_item_that_was_claimed() {
        let (shutdown, mut watch) = Shutdown::new();
        let admission = Admission::new(4, 0, true, &Arc::new(shutdown));
        // An empty poll gives its slot back and is not the one.
        drop(admission.admit().await);
        assert_eq!(watch.level(), crate::queue::Level::Run);
        let slot = admission.admit().await;
        admission.claimed();
        drop(slot);
        watch.reached(crate::queue::Level::Drain).await;
    }
}
