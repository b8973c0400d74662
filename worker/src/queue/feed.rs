//! The events of one session as one sequence: stream opened, history read, stream consumed, and
//! again after every disconnect (RUN-1, RUN-10, SSE-3..6).
//!
//! Runs as a task of its own and hands everything to the runner through a bounded channel, so
//! reading goes on while a call runs and stops when the runner is behind. Knows nothing of calls.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use super::api::ItemApi;
use super::client::ApiError;
use super::count;
use super::events::{Ids, emit};
use super::random::Random;
use super::sse::{FRAME_BYTES_MAX, Frame, SseParser};
use super::transport::Body;
use super::wire::event::{Event, Page, parse_event, parse_page};

/// What the runner hears.
#[derive(Debug)]
pub enum News {
    /// The stream is open; the history follows.
    HistoryStarted,
    HistoryPage(Vec<Event>),
    HistoryDone,
    HistoryFailed,
    Live(Event),
    Disconnected,
    /// The stream was refused for good (RUN-11); the feed has ended.
    Refused,
}

/// What the feed works with.
pub struct Feed {
    pub api: ItemApi,
    pub ids: Ids,
    pub session: String,
    pub random: Random,
    pub silence: Duration,
    /// Told when a call has no result on the server though it could have one: only a history brings
    /// it back (RUN-4).
    pub again: Arc<Notify>,
    /// Frames larger than this break the connection.
    pub frame_bytes_max: usize,
}

/// Pieces of news that may wait for the runner.
pub const WAITING_MAX: usize = 16;
const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
const PAGE_EVENTS: u32 = 1000;
/// Pages of one history; with a thousand events each.
const PAGES_MAX: usize = 10_000;

/// Attempts to read one page that is there.
const UNREADABLE_MAX: u32 = 3;

/// Why a connection ended.
enum Broken {
    /// The runner is gone.
    Unheard,
    Refused,
    /// EOF, silence, an `error` event, garbage: connect again.
    Again(&'static str),
    /// The stream could not be opened now.
    NotOpened(ApiError),
}

impl From<mpsc::error::SendError<News>> for Broken {
    fn from(_: mpsc::error::SendError<News>) -> Broken {
        Broken::Unheard
    }
}

impl Feed {
    /// A feed with the product's limits.
    pub fn new(api: ItemApi, ids: Ids, session: &str, random: Random, silence: Duration) -> Feed {
        let session = session.to_owned();
        let again = Arc::default();
        Feed { api, ids, session, random, silence, again, frame_bytes_max: FRAME_BYTES_MAX }
    }

    /// Runs until the stream is refused or nobody listens.
    pub async fn run(self, out: mpsc::Sender<News>) {
        let mut backoff = BACKOFF_MIN;
        let mut not_opened = 0;
        loop {
            let jittered = |backoff: Duration| self.random.between(backoff / 2, backoff);
            let (why, pause) = match self.connection(&out, &mut backoff).await {
                Broken::Unheard => return,
                Broken::Refused => {
                    // Nobody listens: then it does not matter.
                    let _unheard = out.send(News::Refused).await;
                    return;
                }
                Broken::Again(why) => {
                    not_opened = 0;
                    (why, jittered(backoff))
                }
                Broken::NotOpened(error) => {
                    not_opened += 1;
                    ("not opened", error.pause(not_opened, jittered(backoff)))
                }
            };
            count::reconnect();
            emit!(
                info,
                self.ids,
                "stream.disconnected",
                "event stream ended, connecting again",
                reason = why,
                pause_ms = pause.as_millis() as u64
            );
            if out.send(News::Disconnected).await.is_err() {
                return;
            }
            tokio::time::sleep(pause).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn connection(&self, out: &mpsc::Sender<News>, backoff: &mut Duration) -> Broken {
        let body = match self.api.stream(&self.session).await {
            Ok(body) => body,
            Err(error) if error.is_fatal() => {
                emit!(error, self.ids, "stream.refused", "event stream refused for good",
                    error = %error.label());
                return Broken::Refused;
            }
            Err(error) => return Broken::NotOpened(error),
        };
        if let Err(broken) = self.history(out).await {
            return broken;
        }
        match self.live(body, out, backoff).await {
            Ok(()) => Broken::Again("end of stream"),
            Err(broken) => broken,
        }
    }

    /// All pages (RUN-2, API-4). A failure is news, not an end (RUN-6).
    async fn history(&self, out: &mpsc::Sender<News>) -> Result<(), Broken> {
        let mut events_max = PAGE_EVENTS;
        loop {
            out.send(News::HistoryStarted).await?;
            let failure = match self.pages(events_max, out).await {
                Ok(()) => return Ok(out.send(News::HistoryDone).await?),
                Err(PageError::Unheard) => return Err(Broken::Unheard),
                Err(PageError::Api(error)) => error,
            };
            out.send(News::HistoryFailed).await?;
            // Pages that are too large are asked for in smaller pieces, from the beginning.
            if matches!(failure, ApiError::TooLarge { .. }) && events_max > 1 {
                events_max /= 10;
                continue;
            }
            emit!(warn, self.ids, "history.failed", "history could not be read",
                error = %failure.label());
            return Ok(());
        }
    }

    async fn pages(&self, events_max: u32, out: &mpsc::Sender<News>) -> Result<(), PageError> {
        let mut cursor: Option<String> = None;
        let mut cursors = HashSet::new();
        for _ in 0..PAGES_MAX {
            let page = self.page(events_max, cursor.as_deref()).await?;
            if !page.events.is_empty() && out.send(News::HistoryPage(page.events)).await.is_err() {
                return Err(PageError::Unheard);
            }
            match page.next {
                None => return Ok(()),
                Some(next) if cursors.insert(next.clone()) => cursor = Some(next),
                Some(_) => break,
            }
        }
        Err(ApiError::Unreadable { what: "a history that ends" }.into())
    }

    /// What cannot be read is as transient as what does not arrive, which the client asks for again.
    async fn page(&self, events_max: u32, cursor: Option<&str>) -> Result<Page, ApiError> {
        for _ in 0..UNREADABLE_MAX {
            let reply = self.api.events(&self.session, events_max, cursor).await?;
            if let Ok(page) = parse_page(&reply.body) {
                return Ok(page);
            }
            tokio::time::sleep(self.random.between(BACKOFF_MIN / 2, BACKOFF_MIN)).await;
        }
        Err(ApiError::Unreadable { what: "a page of events" })
    }

    async fn live(
        &self,
        mut body: Box<dyn Body>,
        out: &mpsc::Sender<News>,
        backoff: &mut Duration,
    ) -> Result<(), Broken> {
        let mut parser = SseParser::new(self.frame_bytes_max);
        let mut frames = VecDeque::new();
        loop {
            let next = tokio::select! {
                biased;
                () = self.again.notified() => {
                    return Err(Broken::Again("a result is to be posted again"));
                }
                next = tokio::time::timeout(self.silence, body.chunk()) => next,
            };
            let chunk = match next {
                Err(_) => return Err(Broken::Again("silence")),
                Ok(Err(_)) => return Err(Broken::Again("connection lost")),
                Ok(Ok(None)) => return Ok(()),
                Ok(Ok(Some(chunk))) => chunk,
            };
            let fits = parser.push(&chunk, &mut frames);
            drop(chunk);
            while let Some(frame) = frames.pop_front() {
                if let Some(event) = read_frame(&frame)? {
                    *backoff = BACKOFF_MIN;
                    out.send(News::Live(event)).await?;
                }
            }
            fits.map_err(|_| Broken::Again("an event is too large"))?;
        }
    }
}

/// An event; `None` for a keepalive.
fn read_frame(frame: &Frame) -> Result<Option<Event>, Broken> {
    match frame.event.as_str() {
        "ping" => Ok(None),
        // SSE-4: whatever it says.
        "error" => Err(Broken::Again("error event")),
        _ => {
            // A reader of JSON does not look into what it skips (SSE-5).
            let unreadable = || Broken::Again("unreadable event");
            let text = std::str::from_utf8(&frame.data).map_err(|_| unreadable())?;
            parse_event(text.as_bytes()).map(Some).map_err(|_| unreadable())
        }
    }
}

enum PageError {
    Unheard,
    Api(ApiError),
}

impl From<ApiError> for PageError {
    fn from(error: ApiError) -> PageError {
        PageError::Api(error)
    }
}
