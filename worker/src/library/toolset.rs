//! What a session's calls are served with: a back end for the six tools, and functions by name.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::error::{Error, ErrorKind};
use super::host::is_builtin;
use super::jailed::{JailPolicy, Jailed};
use super::tool::{Functions, ToolInput, ToolOutput};
use crate::daemon::tools::Tools;
use crate::queue::{
    BoxFuture, Call, CallKind, CallOutcome, CancelToken, ContentBlock, Ids, ItemEnd, OpenError,
    Opening, Owner, Progress, SessionTools, ShutdownWatch,
};
use stockade_runtime::session::Unjailed;
use stockade_runtime::tool::Block;
use stockade_runtime::tool::shell::ShellPlan;
use stockade_runtime::tool::unjailed::UnjailedPlan;

/// The tools that sessions get. Cheap to clone; each session has processes of its own.
///
/// Calls of the toolset (`bash`, `read`, `write`, `edit`, `glob`, `grep`) go to the back end, calls of
/// custom tools to functions by name. What has neither is left alone: somebody else may own it
/// (RUN-16).
#[derive(Debug, Clone)]
pub struct Toolset {
    back: Back,
    functions: Functions,
}

#[derive(Debug, Clone)]
enum Back {
    /// No builtin is ours.
    None,
    InProcess {
        directory: PathBuf,
    },
    Jailed(Arc<Jailed>),
}

impl Toolset {
    /// Functions only: calls of the six tools are left to somebody else.
    pub fn none() -> Toolset {
        Toolset { back: Back::None, functions: Functions::default() }
    }

    /// **No jail.** The six tools run with all rights of this program: bash can read and change
    /// whatever its user can, reach any network, and see this process and its environment variables.
    /// What it starts ends with its session, and that is all that is promised. For tests, for machines that exist for one session only, and
    /// inside a sandbox of the caller's. Everything else wants [`jailed`](Self::jailed).
    ///
    /// `directory` is the working directory; the file tools (not bash) are kept inside it. The
    /// environment of bash is that of this program without `ANTHROPIC_*`; a program of the same user
    /// can still find those in `/proc`, so keep credentials out of the environment.
    ///
    /// Skills and memory stores of sessions are not there: both are laid by a process of the jail, at
    /// paths that the control plane names. Neither is asked for, and a warning of each session says so
    /// (`toolset.without`).
    ///
    /// Needs [`become_helper_if_asked`](crate::become_helper_if_asked).
    ///
    /// ```no_run
    /// # async fn serve() -> Result<(), stockade_worker::Error> {
    /// use stockade_worker::{SessionRunner, Stop, Toolset};
    ///
    /// let tools = Toolset::in_process("/srv/throw-away")?
    ///     .tool("greet", |input| async move { Ok(format!("hello, {}", input.name()).into()) });
    /// let runner = SessionRunner::with_token("sesn_1", "the session's token", tools);
    /// runner.run(Stop::never()).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If `directory` is not an existing directory.
    pub fn in_process(directory: impl Into<PathBuf>) -> Result<Toolset, Error> {
        let directory = directory.into();
        let found = std::fs::canonicalize(&directory).and_then(|path| {
            let is_directory = std::fs::metadata(&path)?.is_dir();
            if is_directory { Ok(path) } else { Err(std::io::ErrorKind::NotADirectory.into()) }
        });
        match found {
            Ok(directory) => {
                Ok(Toolset { back: Back::InProcess { directory }, functions: Functions::default() })
            }
            Err(error) => {
                let text = format!("cannot use {} as the working directory", directory.display());
                Err(Error::because(ErrorKind::Settings, text, error))
            }
        }
    }

    /// The six tools in a jail for each session, as `worker poll --jail` makes them: with every layer
    /// of the policy, proven before the first call, and recorded in the audit log.
    ///
    /// What the session needs is in the jail before its first call, and in one that takes its place:
    /// skills of its agent (one that fails is recorded, and the session goes on), what the policy
    /// stages, memory stores. At the end of the work item its processes end, the stores are synced for
    /// the last time, and the jail is ended. If the session is idle and the policy has
    /// `filesystem.retain`, its jail is kept until it comes back, at most until the `run` or
    /// `handle_item` ends that it was served in; at most 8 are kept, and the oldest gives way.
    ///
    /// Needs [`become_helper_if_asked`](crate::become_helper_if_asked), and must be called while this
    /// program has one thread: before the Tokio runtime, and before it reads credentials if it can be
    /// arranged. What makes jails is split off here, and must know nothing. Started by root the jails
    /// are of the level `root`; this program itself keeps its rights then, unlike `worker`.
    ///
    /// # Errors
    /// A policy or configuration that cannot be used, a host that cannot give what it requires, a
    /// directory or a credential that cannot be read, an audit log that cannot be written, more than
    /// one thread.
    pub fn jailed(policy: JailPolicy) -> Result<Toolset, Error> {
        let jailed = Arc::new(Jailed::start(&policy)?);
        Ok(Toolset { back: Back::Jailed(jailed), functions: Functions::default() })
    }

    /// Serves custom calls of this name by a function, which runs in this program, outside any jail. A
    /// later function of the same name replaces an earlier one (RUN-15). Names of the six tools are
    /// not special: a custom call of such a name is served, a call of the toolset never is.
    ///
    /// An `Err` is an error result with that text. A panic is one as well, where panics unwind.
    pub fn tool<F, R>(mut self, name: impl Into<String>, function: F) -> Toolset
    where
        F: Fn(ToolInput) -> R + Send + Sync + 'static,
        R: Future<Output = Result<ToolOutput, String>> + Send + 'static,
    {
        self.functions.insert(name.into(), function);
        self
    }

    pub(super) fn owner(&self) -> Owner {
        let (functions, builtins) = (self.functions.clone(), !matches!(self.back, Back::None));
        Box::new(move |name, kind| match kind {
            CallKind::Custom => functions.has(name),
            CallKind::Builtin => builtins && is_builtin(name, kind),
        })
    }

    /// Drains when no further session can be served.
    pub(super) fn unusable(&self) -> Option<ShutdownWatch> {
        match &self.back {
            Back::Jailed(jailed) => Some(jailed.unusable()),
            Back::None | Back::InProcess { .. } => None,
        }
    }

    /// Does `work`, in which sessions are served with this toolset. Boxed: a caller's compiler would
    /// have to look through all of it.
    pub(super) async fn serving<T>(&self, work: BoxFuture<'_, T>) -> T {
        match &self.back {
            Back::Jailed(jailed) => jailed.serving(work).await,
            Back::None | Back::InProcess { .. } => work.await,
        }
    }

    /// The processes of one session, and its jail with what belongs into it.
    pub(super) async fn open(
        &self,
        opening: &Opening<'_>,
        shutdown: ShutdownWatch,
    ) -> Result<SessionToolset, OpenError> {
        let bench = match &self.back {
            Back::None => Bench::None,
            Back::InProcess { directory } => {
                tell_of_what_is_missing(opening);
                Bench::InProcess(Box::new(unjailed(directory.clone()).await?))
            }
            Back::Jailed(jailed) => Bench::Jailed(Box::new(jailed.open(opening, shutdown).await?)),
        };
        Ok(SessionToolset { toolset: self.clone(), bench })
    }

    pub(super) fn observe(&self, ids: &Ids, progress: &Progress<'_>) {
        if let Back::Jailed(jailed) = &self.back {
            jailed.observe(ids, progress);
        }
    }
}

/// The tools of one session.
pub(super) struct SessionToolset {
    toolset: Toolset,
    bench: Bench,
}

enum Bench {
    None,
    InProcess(Box<InProcess>),
    Jailed(Box<Tools>),
}

impl fmt::Debug for SessionToolset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionToolset").field("toolset", &self.toolset).finish_non_exhaustive()
    }
}

impl SessionToolset {
    pub async fn close(self, how: ItemEnd) {
        if let Bench::Jailed(tools) = self.bench {
            tools.close(how).await;
        }
    }
}

impl SessionTools for SessionToolset {
    fn owner(&self) -> Owner {
        self.toolset.owner()
    }

    async fn run(&mut self, call: &Call, stop: CancelToken) -> CallOutcome {
        if call.kind == CallKind::Custom {
            return self.toolset.functions.run(call, stop).await;
        }
        match &mut self.bench {
            Bench::None => CallOutcome::error(format!("{}: no such tool", call.name)),
            Bench::InProcess(tools) => tools.run(call, stop).await,
            Bench::Jailed(tools) => tools.run(call, stop).await,
        }
    }
}

/// Skills and memory stores need the places of a jail: without one the session runs without them.
fn tell_of_what_is_missing(opening: &Opening<'_>) {
    let (skills, stores) = (opening.session.skills.len(), opening.session.memory_stores.len());
    if skills + stores > 0 {
        tracing::warn!(
            event = "toolset.without",
            session_id = opening.session.id,
            skills,
            memory_stores = stores,
            "a session without a jail goes on without its skills and memory stores"
        );
    }
}

/// Tools without a jail, with what is needed to have them again.
struct InProcess {
    directory: PathBuf,
    tools: Option<Unjailed>,
}

async fn unjailed(directory: PathBuf) -> Result<InProcess, OpenError> {
    let tools = start(directory.clone()).await.map_err(|error| OpenError {
        for_model: "[worker] This session's tools could not be started, so none was run. A user \
                    interrupt or message tries again."
            .to_owned(),
        for_log: format!("cannot start the tools of the session: {error}"),
    })?;
    Ok(InProcess { directory, tools: Some(tools) })
}

async fn start(directory: PathBuf) -> std::io::Result<Unjailed> {
    let environment: Vec<Vec<u8>> = std::env::vars_os()
        .map(|(name, value)| {
            use std::os::unix::ffi::OsStringExt as _;
            [name.into_vec(), value.into_vec()].join(&b'=')
        })
        .collect();
    let shell = ShellPlan::bash(&environment, directory.clone());
    Unjailed::start(UnjailedPlan { shell, roots: vec![directory] }).await
}

impl InProcess {
    async fn run(&mut self, call: &Call, stop: CancelToken) -> CallOutcome {
        let name = &call.name;
        if self.tools.is_none() {
            match start(self.directory.clone()).await {
                Ok(tools) => self.tools = Some(tools),
                Err(error) => {
                    return CallOutcome::error(format!("{name}: cannot start the tools: {error}"));
                }
            }
        }
        let Some(tools) = &mut self.tools else {
            return CallOutcome::error(format!("{name}: no tools"));
        };
        let input = call.input.get().as_bytes().to_vec();
        match tools.call(name, input, stop.cancelled_owned()).await {
            Ok(result) => {
                let content = result.content.into_iter().map(block).collect();
                CallOutcome { content, is_error: result.is_error }
            }
            Err(error) => {
                tracing::error!(event = "tools.lost", error = %error, "a session's tools ended");
                self.tools = None;
                CallOutcome::error(format!(
                    "{name}: the processes of this session ended while this call ran; its outcome \
                     is unknown and it was not run again"
                ))
            }
        }
    }
}

fn block(block: Block) -> ContentBlock {
    match block {
        Block::Text(text) => ContentBlock::Text(text),
        Block::Image { media_type, data } => ContentBlock::Image { media_type, data },
        Block::Document { media_type, data } => ContentBlock::Document { media_type, data },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::wire_call;

    #[test]
    fn jails_are_split_off_by_a_program_with_one_thread_only() {
        // Every test has a thread of its own.
        let policy = JailPolicy::new("default", "/nonexistent/audit.jsonl");
        let error = Toolset::jailed(policy).expect_err("threads");
        assert_eq!(error.kind(), ErrorKind::Settings);
        assert!(error.to_string().contains("more than one thread"), "{error}");
    }

    #[test]
    fn a_working_directory_must_be_one() {
        for path in ["/nonexistent", "/proc/self/status"] {
            let error = Toolset::in_process(path).expect_err(path);
            assert!(error.kind() == ErrorKind::Settings && error.to_string().contains(path));
        }
    }

    #[tokio::test]
    async fn functions_serve_custom_calls_of_their_names_and_nothing_else() {
        // RUN-15, RUN-16, RUN-19.
        let tools = Toolset::none()
            .tool("a", |_| async { Ok("first".into()) })
            .tool("a", |input| async move { Ok(input.json().into()) })
            .tool("bash", |_| async { Err("no".to_owned()) })
            .tool("slow", |input| async move {
                input.cancelled().await;
                Ok("ended".into())
            })
            .tool("panics", |_| async { panic!("planted words") });
        let owner = tools.owner();
        assert!(owner("a", CallKind::Custom) && owner("bash", CallKind::Custom));
        assert!(!owner("a", CallKind::Builtin) && !owner("bash", CallKind::Builtin));
        assert!(!owner("b", CallKind::Custom));
        let mut session = SessionToolset { toolset: tools, bench: Bench::None };
        let stop = CancelToken::new();
        stop.cancel();
        for (name, text, is_error) in [
            ("a", "{\"x\":1}", false),
            ("bash", "no", true),
            ("slow", "ended", false),
            ("panics", "panics: the tool failed", true),
        ] {
            let call = wire_call("agent.custom_tool_use", name, "{\"x\":1}");
            let outcome = session.run(&call, stop.clone()).await;
            assert!(outcome.content == [ContentBlock::Text(text.to_owned())], "{name}");
            assert_eq!(outcome.is_error, is_error, "{name}");
        }
        let builtin = wire_call("agent.tool_use", "bash", "{}");
        assert!(session.run(&builtin, stop).await.is_error);
    }
}
