//! A session's launcher, as the session and its network share it. What the launcher says is waited
//! for on a thread that may block: once at the start, once at the end, after a call in which a limit
//! may have been reached, and when the network gets further ports.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::jail::{CgroupEvents, End, Event, Launcher};

/// How long somebody else's exchange with the launcher may be waited for.
const TURN_MAX: Duration = Duration::from_secs(15);

/// One launcher, and one exchange with it at a time.
#[derive(Debug, Clone)]
pub(super) struct Host(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    launcher: Launcher,
    /// How the jail ended, once that is known.
    over: Option<End>,
}

impl Host {
    pub fn new(launcher: Launcher) -> Host {
        Host(Arc::new(Mutex::new(State { launcher, over: None })))
    }

    /// Does what may block. If the caller stops waiting, it is finished all the same.
    ///
    /// # Errors
    /// `TimedOut` if another exchange does not end; those of `act`.
    pub async fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Launcher, &mut Option<End>) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let turn = tokio::time::timeout(TURN_MAX, Arc::clone(&self.0).lock_owned());
        on_thread(turn.await.map_err(|_| io::ErrorKind::TimedOut)?, act).await
    }

    /// What the limits have counted so far, of the jail or of tools on the `outside`; `None` if the jail
    /// has ended.
    pub async fn usage(&self, outside: bool) -> io::Result<Option<CgroupEvents>> {
        self.with(move |launcher, over| {
            or_it_has_ended(launcher.ask_usage(outside))?;
            match launcher.event()? {
                Event::Usage(events) => Ok(Some(events)),
                Event::Ended(end) => {
                    *over = Some(end);
                    Ok(None)
                }
                _ => Err(io::ErrorKind::InvalidData.into()),
            }
        })
        .await
    }

    /// Ends the jail unless it has ended; waits until it is gone. Also for an exchange of somebody else's
    /// that takes long: that is the end of a jail that ended by itself, and until then its directories
    /// are being written. The launcher bounds it.
    pub async fn end(&self) -> io::Result<End> {
        let turn = Arc::clone(&self.0).lock_owned().await;
        on_thread(turn, |launcher, over| match over.take() {
            Some(end) => Ok(end),
            None => {
                or_it_has_ended(launcher.end())?;
                last_word(launcher)
            }
        })
        .await
    }

    /// Waits for the end of a jail that ends by itself.
    pub async fn ended(&self) -> io::Result<()> {
        self.with(|launcher, over| {
            if over.is_none() {
                *over = Some(last_word(launcher)?);
            }
            Ok(())
        })
        .await
    }
}

async fn on_thread<T: Send + 'static>(
    mut state: OwnedMutexGuard<State>,
    act: impl FnOnce(&mut Launcher, &mut Option<End>) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(move || {
        let State { launcher, over } = &mut *state;
        act(launcher, over)
    });
    done.await.map_err(io::Error::other)?
}

/// A launcher whose jail has ended by itself is gone. Its last word is here already, to be read.
pub(super) fn or_it_has_ended(asked: io::Result<()>) -> io::Result<()> {
    match asked {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        asked => asked,
    }
}

fn last_word(launcher: &mut Launcher) -> io::Result<End> {
    loop {
        match launcher.event()? {
            Event::Ended(end) => return Ok(end),
            // Asked before, answered now.
            Event::Usage(_) | Event::Listening(_) | Event::Listened(_) => {}
            Event::Running(..) | Event::Failed(_) | Event::Outside(_) => {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
    }
}
