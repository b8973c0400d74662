//! How much fetched input may rest outside of jails at a time, of all sessions: in memory for most
//! workers, so without a bound many small sessions together could take all of it (INV-11).

use std::sync::Arc;

use serde::Deserialize;
use stockade_runtime::policy::stage::{StageKind, StageRule};
use stockade_runtime::policy::{ByteSize, Policy};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::Fault;
use super::git;

/// What is counted in.
const UNIT: u64 = 1 << 20;

/// `fetch_size`: 64 MiB to 1 TiB [default: 4 GiB].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct FetchSize(u64);

impl FetchSize {
    const MIN: u64 = 64 << 20;
    const MAX: u64 = 1 << 40;
}

impl Default for FetchSize {
    fn default() -> Self {
        FetchSize(4 << 30)
    }
}

impl TryFrom<String> for FetchSize {
    type Error = String;

    fn try_from(text: String) -> Result<FetchSize, String> {
        match text.parse::<ByteSize>().map_err(|error| error.to_string())?.bytes() {
            bytes @ FetchSize::MIN..=FetchSize::MAX => Ok(FetchSize(bytes)),
            _ => Err("expected a size from 64MiB to 1TiB".to_owned()),
        }
    }
}

/// A rule whose input could never be fetched.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot stage `{rule}`: fetching it may take {}, and all fetches together {}",
    ByteSize(*needed),
    ByteSize(*allowed)
)]
pub struct BudgetError {
    /// Its name.
    pub rule: String,
    /// Bytes that it may take.
    pub needed: u64,
    /// Bytes that there are.
    pub allowed: u64,
}

impl BudgetError {
    /// What to do.
    pub fn hint(&self) -> &'static str {
        "lower the rule's `size_max`, or raise `stage.fetch_size` in the configuration"
    }
}

/// Room for what is being fetched and not laid yet.
#[derive(Debug)]
pub struct Budget {
    room: Arc<Semaphore>,
    units: u32,
}

/// A part of the room; given back when this is dropped.
#[derive(Debug)]
pub struct Held {
    _room: OwnedSemaphorePermit,
}

#[cfg(test)]
impl Held {
    /// For tests of what holds it.
    pub fn of_nothing() -> Held {
        let room = Arc::new(Semaphore::new(1)).try_acquire_owned();
        Held { _room: room.expect("there is room") }
    }
}

impl Budget {
    /// Room for `size` bytes, for the rules of `policy`.
    ///
    /// # Errors
    /// The first rule that needs more than all of it.
    pub fn new(size: FetchSize, policy: &Policy) -> Result<Budget, BudgetError> {
        let workspace = policy.filesystem.workspace_size.value.0;
        for rule in &policy.stage.rules {
            let needed = weight(rule, workspace);
            if needed > size.0 {
                return Err(BudgetError { rule: rule.name.clone(), needed, allowed: size.0 });
            }
        }
        let units = units(size.0);
        Ok(Budget { room: Arc::new(Semaphore::new(units as usize)), units })
    }

    /// Waits for room for what `rule` may fetch, at most `bytes_max` bytes. First come, first served;
    /// whoever stops waiting leaves nothing behind.
    ///
    /// # Errors
    /// None but a fault of ours: the room is never closed.
    pub(super) async fn hold(
        &self,
        session_id: &str,
        rule: &StageRule,
        bytes_max: u64,
    ) -> Result<Held, Fault> {
        let units = units(weight(rule, bytes_max)).min(self.units);
        let now = Arc::clone(&self.room).try_acquire_many_owned(units);
        if let Ok(room) = now {
            return Ok(Held { _room: room });
        }
        tracing::info!(
            event = "stage.waits",
            session_id,
            rule = rule.name,
            "input waits until other sessions have theirs"
        );
        let room = Arc::clone(&self.room).acquire_many_owned(units).await;
        let closed = |_| Fault::Room { source: std::io::ErrorKind::BrokenPipe.into() };
        Ok(Held { _room: room.map_err(closed)? })
    }
}

/// Bytes that fetching by `rule` may take until it is laid; git has a pack, an archive and memory.
fn weight(rule: &StageRule, bytes_max: u64) -> u64 {
    let bytes = rule.size_max.0.min(bytes_max);
    match rule.kind {
        StageKind::Git { .. } => bytes.saturating_mul(2).saturating_add(git::memory_max(bytes)),
        _ => bytes,
    }
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_has_bounds_and_a_default() {
        #[derive(Debug, Deserialize)]
        struct Table {
            size: FetchSize,
        }
        let read = |text: &str| toml::from_str::<Table>(&format!("size = \"{text}\""));
        assert_eq!(read("4GiB").expect("valid").size, FetchSize::default());
        for (text, want) in [
            ("63MiB", "from 64MiB to 1TiB"),
            ("1025GiB", "from 64MiB to 1TiB"),
            ("1MB", "cannot read size `1MB`"),
        ] {
            let error = read(text).expect_err(text).to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
        for text in ["64MiB", "1TiB"] {
            read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
    }
}
