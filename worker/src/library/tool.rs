//! Tools that are functions of the calling program.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::queue::{BoxFuture, Call, CallOutcome, CancelToken, ContentBlock};

/// One call of a custom tool.
#[derive(Clone)]
pub struct ToolInput {
    id: String,
    name: String,
    json: String,
    stop: CancelToken,
}

impl fmt::Debug for ToolInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // INV-12: no content.
        let (id, name) = (&self.id, &self.name);
        f.debug_struct("ToolInput").field("id", id).field("name", name).finish_non_exhaustive()
    }
}

impl ToolInput {
    pub(super) fn of(call: &Call, stop: CancelToken) -> ToolInput {
        let (id, name) = (call.id.clone(), call.name.clone());
        ToolInput { id, name, json: call.input.get().to_owned(), stop }
    }

    /// The id of the call.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The name that the tool was called by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The input as it was sent: a JSON object.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// The input as a type of the caller's.
    ///
    /// # Errors
    /// Where and why it is not one, in words for the model.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, String> {
        let (name, json) = (&self.name, &self.json);
        serde_json::from_str(json).map_err(|error| format!("invalid {name} input: {error}"))
    }

    /// Returns when the call is to end: its time is over, or the session is. A function that goes on
    /// is dropped a few seconds later.
    pub async fn cancelled(&self) {
        self.stop.cancelled().await;
    }
}

/// What a tool gives back.
#[derive(Clone)]
pub struct ToolOutput(Vec<ContentBlock>);

impl fmt::Debug for ToolOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ToolOutput").field("blocks", &self.0.len()).finish()
    }
}

impl ToolOutput {
    /// One text.
    pub fn text(text: impl Into<String>) -> ToolOutput {
        ToolOutput(vec![ContentBlock::Text(text.into())])
    }

    /// Content blocks as the API has them. `text`, `image`, `document` and `search_result` are sent as
    /// they are, any other as a text of its JSON (RUN-21).
    pub fn blocks(blocks: impl IntoIterator<Item = serde_json::Value>) -> ToolOutput {
        ToolOutput(blocks.into_iter().map(ContentBlock::passed).collect())
    }
}

impl<T: Into<String>> From<T> for ToolOutput {
    fn from(text: T) -> ToolOutput {
        ToolOutput::text(text)
    }
}

type Function = dyn Fn(ToolInput) -> BoxFuture<'static, Result<ToolOutput, String>> + Send + Sync;

/// Functions by name.
#[derive(Clone, Default)]
pub(super) struct Functions(BTreeMap<String, Arc<Function>>);

impl fmt::Debug for Functions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Functions {
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// RUN-15: a later one of the same name replaces an earlier one.
    pub fn insert<F, R>(&mut self, name: String, function: F)
    where
        F: Fn(ToolInput) -> R + Send + Sync + 'static,
        R: Future<Output = Result<ToolOutput, String>> + Send + 'static,
    {
        self.0.insert(name, Arc::new(move |input| Box::pin(function(input))));
    }

    /// Runs one call on a task of its own, so that a panic in it costs this call only.
    pub async fn run(&self, call: &Call, stop: CancelToken) -> CallOutcome {
        let name = &call.name;
        let Some(function) = self.0.get(name) else {
            return CallOutcome::error(format!("{name}: no such tool"));
        };
        let mut task = AbortOnDrop(tokio::spawn(function(ToolInput::of(call, stop))));
        match (&mut task.0).await {
            Ok(Ok(ToolOutput(content))) => CallOutcome { content, is_error: false },
            Ok(Err(text)) => CallOutcome::error(text),
            // RUN-19, without the words of the panic, which may hold anything.
            Err(_) => CallOutcome::error(format!("{name}: the tool failed")),
        }
    }
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
