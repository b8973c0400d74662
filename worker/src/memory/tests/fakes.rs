//! A folder and a server that only exist in memory, and a witness that remembers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::memory::events::{Counts, Happened, Pass, Witness};
use crate::memory::folder::{Folder, FolderError, Marker, Removed, Scan, Scanned};
use crate::memory::remote::Remote;
use crate::memory::{MARKER_PATH, marker};
use crate::queue::{ApiError, ContentHash, Memory, MemoryError, MemoryPage, View};

/// Something that happens in the middle of a sync.
type Meddler<T> = Box<dyn FnMut(&str, &str, &mut T) + Send>;

/// A folder.
#[derive(Clone)]
pub struct FakeFolder(Arc<Mutex<FolderState>>);

#[derive(Default)]
pub struct FolderState {
    pub files: BTreeMap<String, Vec<u8>>,
    /// Paths that nothing can be written to.
    pub unwritable: BTreeSet<String>,
    /// Operations that fail, such as `scan`.
    pub broken: BTreeSet<&'static str>,
    /// How long a scan takes.
    pub slow: Option<Duration>,
    /// The jail has ended.
    pub gone: bool,
    /// Called with every operation and path before it is done.
    pub meddler: Option<Meddler<BTreeMap<String, Vec<u8>>>>,
}

impl FakeFolder {
    pub fn new() -> FakeFolder {
        FakeFolder(Arc::default())
    }

    pub fn state(&self) -> MutexGuard<'_, FolderState> {
        self.0.lock().expect("not poisoned")
    }

    pub fn put(&self, path: &str, text: &str) {
        self.state().files.insert(path.to_owned(), text.as_bytes().to_vec());
    }

    pub fn delete(&self, path: &str) {
        self.state().files.remove(path);
    }

    pub fn wipe(&self) {
        self.state().files.clear();
    }

    pub fn text(&self, path: &str) -> Option<String> {
        let bytes = self.state().files.get(path).cloned()?;
        Some(String::from_utf8(bytes).expect("text"))
    }

    /// All files but the marker.
    pub fn texts(&self) -> BTreeMap<String, String> {
        let state = self.state();
        let files = state.files.iter().filter(|(path, _)| *path != MARKER_PATH);
        files.map(|(path, b)| (path.clone(), String::from_utf8_lossy(b).into_owned())).collect()
    }

    /// Does this once, just before the operation on the path.
    pub fn before(
        &self,
        operation: &'static str,
        path: &'static str,
        act: impl Fn(&mut BTreeMap<String, Vec<u8>>) + Send + 'static,
    ) {
        let mut done = false;
        self.state().meddler = Some(Box::new(move |now, at, files| {
            if !done && now == operation && at == path {
                done = true;
                act(files);
            }
        }));
    }

    fn begin(
        &self,
        operation: &'static str,
        path: &str,
    ) -> Result<MutexGuard<'_, FolderState>, FolderError> {
        let mut state = self.state();
        if let Some(mut meddler) = state.meddler.take() {
            meddler(operation, path, &mut state.files);
            state.meddler = Some(meddler);
        }
        if state.gone {
            return Err(FolderError::Gone);
        }
        if state.broken.contains(operation) {
            return Err(FolderError::Refused { reason: format!("cannot {operation}") });
        }
        Ok(state)
    }
}

fn marker_of(files: &BTreeMap<String, Vec<u8>>) -> Marker {
    match files.get(MARKER_PATH) {
        None => Marker::Missing,
        Some(found) if *found == marker("memstore_1") => Marker::Intact,
        Some(_) => Marker::Different,
    }
}

impl Folder for FakeFolder {
    async fn prepare(&self) -> Result<(), FolderError> {
        let mut state = self.begin("prepare", "")?;
        state.files.clear();
        state.files.insert(MARKER_PATH.to_owned(), marker("memstore_1"));
        Ok(())
    }

    async fn mark(&self) -> Result<(), FolderError> {
        let mut state = self.begin("mark", "")?;
        state.files.insert(MARKER_PATH.to_owned(), marker("memstore_1"));
        Ok(())
    }

    async fn scan(&self) -> Result<Scan, FolderError> {
        let slow = self.state().slow;
        if let Some(slow) = slow {
            tokio::time::sleep(slow).await;
        }
        let state = self.begin("scan", "")?;
        let files = state.files.iter().filter(|(path, _)| *path != MARKER_PATH);
        let files = files.map(|(path, bytes)| Scanned {
            path: path.clone(),
            bytes: bytes.len() as u64,
            sha256: Sha256::digest(bytes).into(),
        });
        Ok(Scan { marker: marker_of(&state.files), files: files.collect(), skipped: 0 })
    }

    async fn marker(&self) -> Result<Marker, FolderError> {
        Ok(marker_of(&self.begin("marker", "")?.files))
    }

    async fn read(&self, path: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, FolderError> {
        let state = self.begin("read", path)?;
        let found = state.files.get(path).cloned();
        match found {
            Some(bytes) if bytes.len() as u64 > bytes_max => {
                Err(FolderError::Refused { reason: "too long".to_owned() })
            }
            found => Ok(found),
        }
    }

    async fn write(&self, path: &str, content: Vec<u8>) -> Result<(), FolderError> {
        let mut state = self.begin("write", path)?;
        if state.unwritable.contains(path) {
            return Err(FolderError::Refused { reason: "unwritable".to_owned() });
        }
        state.files.insert(path.to_owned(), content);
        Ok(())
    }

    async fn remove(&self, path: &str, only_if: [u8; 32]) -> Result<Removed, FolderError> {
        let mut state = self.begin("remove", path)?;
        match state.files.get(path).map(|bytes| ContentHash::of(bytes).bytes()) {
            None => Ok(Removed::Absent),
            Some(hash) if hash != only_if => Ok(Removed::Changed),
            Some(_) => {
                state.files.remove(path);
                Ok(Removed::Done)
            }
        }
    }

    async fn clear(&self) -> Result<(), FolderError> {
        self.begin("clear", "")?.files.clear();
        Ok(())
    }
}

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This status, nothing done.
    Status(u16),
    /// Done, but the answer is lost.
    Lost,
    /// No answer at all.
    Hang,
}

/// A store's server.
#[derive(Clone)]
pub struct FakeServer(Arc<Mutex<ServerState>>);

pub struct ServerState {
    /// By id: path and text.
    pub memories: BTreeMap<String, (String, String)>,
    made: u64,
    /// `list basic`, `fetch /a`, `create /a`, …, in order.
    pub requests: Vec<String>,
    /// The next requests of an operation that go wrong.
    pub faults: VecDeque<(&'static str, Fault)>,
    /// How long each request takes.
    pub takes: Duration,
    /// Memories on a page.
    pub page_size: usize,
    in_flight: usize,
    /// Most requests at a time.
    pub in_flight_max: usize,
    /// Called with every operation and path before it is done.
    pub meddler: Option<Meddler<BTreeMap<String, (String, String)>>>,
}

fn of_status(status: u16) -> MemoryError {
    ApiError::Status { status, body: Box::default(), request_id: None, retry_after: None }.into()
}

impl FakeServer {
    pub fn new(memories: &[(&str, &str)]) -> FakeServer {
        let server = FakeServer(Arc::new(Mutex::new(ServerState {
            memories: BTreeMap::new(),
            made: 0,
            requests: Vec::new(),
            faults: VecDeque::new(),
            takes: Duration::ZERO,
            page_size: usize::MAX,
            in_flight: 0,
            in_flight_max: 0,
            meddler: None,
        })));
        for (path, text) in memories {
            server.put(path, text);
        }
        server
    }

    pub fn state(&self) -> MutexGuard<'_, ServerState> {
        self.0.lock().expect("not poisoned")
    }

    /// Another writer makes or changes a memory.
    pub fn put(&self, path: &str, text: &str) {
        self.state().put(path, text);
    }

    /// Another writer deletes a memory.
    pub fn delete(&self, path: &str) {
        self.state().memories.retain(|_, (at, _)| at != path);
    }

    pub fn texts(&self) -> BTreeMap<String, String> {
        self.state().memories.values().cloned().collect()
    }

    pub fn text(&self, path: &str) -> Option<String> {
        self.texts().remove(path)
    }

    pub fn fault(&self, operation: &'static str, fault: Fault) {
        self.state().faults.push_back((operation, fault));
    }

    pub fn requests(&self) -> Vec<String> {
        self.state().requests.clone()
    }

    pub fn forget_requests(&self) {
        self.state().requests.clear();
    }

    /// Requests of one operation.
    pub fn count(&self, operation: &str) -> usize {
        self.requests().iter().filter(|request| request.starts_with(operation)).count()
    }

    async fn ask<T>(
        &self,
        operation: &'static str,
        about: &str,
        act: impl FnOnce(&mut ServerState) -> Result<T, MemoryError> + Send,
    ) -> Result<T, MemoryError> {
        let (takes, fault) = {
            let mut state = self.state();
            let name = state.memories.get(about).map(|(path, _)| path.clone());
            let name = name.unwrap_or_else(|| about.to_owned());
            state.requests.push(format!("{operation} {name}"));
            state.in_flight += 1;
            state.in_flight_max = state.in_flight_max.max(state.in_flight);
            let at = state.faults.iter().position(|(on, _)| *on == operation);
            let fault = at.and_then(|at| state.faults.remove(at)).map(|(_, fault)| fault);
            if let Some(mut meddler) = state.meddler.take() {
                meddler(operation, &name, &mut state.memories);
                state.meddler = Some(meddler);
            }
            (state.takes, fault)
        };
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        if fault == Some(Fault::Hang) {
            std::future::pending::<()>().await;
        }
        let mut state = self.state();
        state.in_flight -= 1;
        if let Some(Fault::Status(status)) = fault {
            return Err(of_status(status));
        }
        let done = act(&mut state);
        match fault {
            Some(Fault::Lost) => Err(ApiError::Timeout { after: takes }.into()),
            _ => done,
        }
    }
}

impl ServerState {
    fn put(&mut self, path: &str, text: &str) -> String {
        let known = self.memories.iter().find(|(_, (at, _))| at == path).map(|(id, _)| id.clone());
        let id = known.unwrap_or_else(|| {
            self.made += 1;
            format!("mem_{:04}", self.made)
        });
        self.memories.insert(id.clone(), (path.to_owned(), text.to_owned()));
        id
    }

    fn hash(&self, id: &str) -> Result<ContentHash, MemoryError> {
        let found = self.memories.get(id).ok_or(MemoryError::Missing)?;
        Ok(ContentHash::of(found.1.as_bytes()))
    }
}

impl Remote for FakeServer {
    async fn page(&self, view: View, page: Option<&str>) -> Result<MemoryPage, MemoryError> {
        let (operation, most) = match view {
            View::Basic => ("list", 100),
            View::Full => ("download", 20),
        };
        let from: usize = page.map_or(0, |page| page.parse().expect("a cursor of ours"));
        self.ask(operation, page.unwrap_or(""), |state| {
            let most = most.min(state.page_size);
            let memory = |(id, (path, text)): (&String, &(String, String))| Memory {
                id: id.clone(),
                path: path.clone(),
                hash: ContentHash::of(text.as_bytes()),
                content: (view == View::Full).then(|| text.clone()),
            };
            let memories = state.memories.iter().skip(from).take(most).map(memory).collect();
            let next = (from + most < state.memories.len()).then(|| (from + most).to_string());
            Ok(MemoryPage { memories, next })
        })
        .await
    }

    async fn fetch(&self, id: &str) -> Result<Memory, MemoryError> {
        self.ask("fetch", id, |state| {
            let hash = state.hash(id)?;
            let (path, text) = state.memories[id].clone();
            Ok(Memory { id: id.to_owned(), path, hash, content: Some(text) })
        })
        .await
    }

    async fn create(&self, path: &str, content: &str) -> Result<ContentHash, MemoryError> {
        self.ask("create", path, |state| {
            if state.memories.values().any(|(at, _)| at == path) {
                return Err(MemoryError::Changed);
            }
            state.put(path, content);
            Ok(ContentHash::of(content.as_bytes()))
        })
        .await
    }

    async fn update(
        &self,
        id: &str,
        content: &str,
        expected: ContentHash,
    ) -> Result<ContentHash, MemoryError> {
        self.ask("update", id, |state| {
            let (now, then) = (state.hash(id)?, ContentHash::of(content.as_bytes()));
            // MEMAPI-2.
            if now != expected && now != then {
                return Err(MemoryError::Changed);
            }
            content.clone_into(&mut state.memories.get_mut(id).expect("it has a hash").1);
            Ok(then)
        })
        .await
    }

    async fn delete(&self, id: &str, expected: ContentHash) -> Result<(), MemoryError> {
        self.ask("delete", id, |state| {
            if state.hash(id)? != expected {
                return Err(MemoryError::Changed);
            }
            state.memories.remove(id);
            Ok(())
        })
        .await
    }
}

/// A witness that remembers, in words.
#[derive(Clone)]
pub struct Heard(Arc<Mutex<(Vec<String>, Counts, bool)>>);

impl Heard {
    pub fn new() -> Heard {
        Heard(Arc::new(Mutex::new((Vec::new(), Counts::default(), true))))
    }

    /// What was told, the counts apart.
    pub fn all(&self) -> Vec<String> {
        self.0.lock().expect("not poisoned").0.clone()
    }

    /// The counts of the last pass that came to its end.
    pub fn counts(&self) -> Counts {
        self.0.lock().expect("not poisoned").1.clone()
    }

    pub fn forget(&self) {
        let mut heard = self.0.lock().expect("not poisoned");
        heard.0.clear();
        heard.1 = Counts::default();
    }

    /// From now on nothing can be recorded.
    pub fn fail(&self) {
        self.0.lock().expect("not poisoned").2 = false;
    }
}

impl Witness for Heard {
    fn tell(&self, store: &str, happened: &Happened<'_>) -> bool {
        assert_eq!(store, "memstore_1");
        let mut heard = self.0.lock().expect("not poisoned");
        let text = match happened {
            Happened::Synced { pass, counts } => {
                heard.1 = (*counts).clone();
                format!("synced {}", pass.label())
            }
            Happened::Untrusted { pass: Pass::Flush, files } => format!("untrusted flush {files}"),
            Happened::Untrusted { files, .. } => format!("untrusted {files}"),
            Happened::Mounted { memories, unwritable } => {
                format!("mounted {memories} {unwritable}")
            }
            Happened::Sending { creates, updates, deletes } => {
                format!("sending {creates} {updates} {deletes}")
            }
            Happened::Recovered { memories } => format!("recovered {memories}"),
            Happened::Failed { pass, reason } => format!("failed {} {reason}", pass.label()),
            Happened::CutOff { pass, files } => format!("cut off {} {files}", pass.label()),
            Happened::Disposed { unsynced: Some(files) } => format!("disposed {files}"),
            Happened::Disposed { unsynced: None } => "disposed unknown".to_owned(),
        };
        heard.0.push(text);
        heard.2
    }
}
