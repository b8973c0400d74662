//! Skills from the list to the shelf, with a scripted control plane and a shelf in memory.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read as _, Write as _};
use std::sync::Mutex;

use sha2::Digest as _;

use super::*;

/// Archives by skill id; the id is the name as well. One that is not there is not found.
#[derive(Default)]
struct Plane {
    archives: HashMap<String, Vec<u8>>,
    names: HashMap<String, String>,
    hangs: Option<String>,
    asked: Mutex<Vec<String>>,
}

fn status(status: u16) -> ApiError {
    ApiError::Status { status, body: Box::default(), request_id: None, retry_after: None }
}

impl Source for Plane {
    async fn find(&self, skill: &SkillRef) -> Result<FoundSkill, ApiError> {
        let id = &skill.skill_id;
        self.asked.lock().expect("not poisoned").push(format!("find {id}"));
        let name = self.names.get(id).unwrap_or(id);
        match self.archives.contains_key(id) {
            true => Ok(FoundSkill::for_test(id, "v1", name)),
            false => Err(status(404)),
        }
    }

    async fn archive(&self, found: &FoundSkill, bytes_max: u64) -> Result<Archive, ApiError> {
        let id = found.skill_id();
        self.asked.lock().expect("not poisoned").push(format!("get {id}"));
        if self.hangs.as_deref() == Some(id) {
            std::future::pending::<()>().await;
        }
        let content = &self.archives[id];
        if content.len() as u64 > bytes_max {
            return Err(ApiError::TooLarge { bytes_max: bytes_max as usize });
        }
        let memory = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC);
        let mut file = std::fs::File::from(memory.expect("memory"));
        file.write_all(content).expect("written");
        std::io::Seek::rewind(&mut file).expect("a start");
        let (bytes, sha256) = (content.len() as u64, sha2::Sha256::digest(content).into());
        Ok(Archive { file: file.into(), bytes, sha256 })
    }
}

/// Directories and what is in them. An archive that begins with `bad` is refused, `gone` ends it all.
#[derive(Default)]
struct Memory {
    directories: Mutex<BTreeMap<String, String>>,
    told: Mutex<Vec<String>>,
    stops_at: Option<&'static str>,
}

impl Shelf for Memory {
    async fn unpack(&self, archive: OwnedFd, directory: &str) -> Result<Unpacked, ShelfError> {
        let mut text = String::new();
        std::fs::File::from(archive).read_to_string(&mut text).expect("text");
        if text.starts_with("bad") {
            return Err(ShelfError::Refused { reason: "it is no archive".to_owned() });
        }
        if text.starts_with("gone") {
            return Err(ShelfError::Gone);
        }
        let mut directories = self.directories.lock().expect("not poisoned");
        let replaced = directories.insert(directory.to_owned(), text).is_some();
        Ok(Unpacked { files: 1, bytes: 1, skipped: 0, replaced })
    }
}

impl Listener for Memory {
    fn laid(&self, skill: &SkillRef, laid: &Laid) -> bool {
        let again = if laid.unpacked.replaced { " again" } else { "" };
        let (id, directory) = (&skill.skill_id, &laid.directory);
        self.told.lock().expect("not poisoned").push(format!("{id} as {directory}{again}"));
        self.stops_at != Some(id.as_str())
    }

    fn failed(&self, skill: &SkillRef, error: &SkillError) -> bool {
        let told = format!("{}: {}", skill.skill_id, error.reason());
        self.told.lock().expect("not poisoned").push(told);
        true
    }
}

fn settings() -> SkillSettings {
    SkillSettings {
        archive_bytes_max: 100,
        archives_max: 1,
        require_digest: false,
        digests: BTreeMap::new(),
    }
}

fn plane(archives: &[(&str, &str)]) -> Plane {
    let archive = |(id, text): &(&str, &str)| ((*id).to_owned(), text.as_bytes().to_vec());
    Plane { archives: archives.iter().map(archive).collect(), ..Plane::default() }
}

fn list(ids: &[&str]) -> Vec<SkillRef> {
    let skill = |id: &&str| SkillRef {
        kind: "custom".to_owned(),
        skill_id: (*id).to_owned(),
        version: "latest".to_owned(),
    };
    ids.iter().map(skill).collect()
}

async fn run(settings: SkillSettings, plane: &Plane, shelf: &Memory, ids: &[&str]) -> Vec<String> {
    let skills = Skills::new(settings);
    let (to, from) = mpsc::channel(QUEUE);
    let list = list(ids);
    tokio::join!(skills.fetch(plane, &list, to), skills.lay(from, shelf, shelf));
    shelf.told.lock().expect("not poisoned").clone()
}

#[tokio::test(start_paused = true)]
async fn one_failing_skill_leaves_the_others_alone() {
    // SKILL-1, SKILL-3.
    let large = "x".repeat(101);
    let plane = plane(&[("a", "A"), ("b", "bad"), ("c", &large), ("e", "E"), ("x/y", "X")]);
    let shelf = Memory::default();
    let told = run(settings(), &plane, &shelf, &["a", "b", "c", "d", "x/y", "e"]).await;
    assert_eq!(
        told,
        ["a as a", "b: archive", "c: too_large", "d: not_found", "x/y: name", "e as e"]
    );
    let asked = plane.asked.lock().expect("not poisoned").clone();
    assert!(!asked.contains(&"get x/y".to_owned()), "what has no place is not downloaded");
}

#[tokio::test(start_paused = true)]
async fn of_two_skills_with_one_directory_the_later_one_stays() {
    // SKILL-13, and SKILL-3: a later one that cannot be unpacked leaves the earlier one.
    let mut plane = plane(&[("a", "first"), ("b", "second"), ("c", "bad")]);
    for id in ["a", "b", "c"] {
        plane.names.insert(id.to_owned(), " same ".to_owned());
    }
    let shelf = Memory::default();
    let told = run(settings(), &plane, &shelf, &["a", "b", "c"]).await;
    assert_eq!(told, ["a as same", "b as same again", "c: archive"]);
    assert_eq!(shelf.directories.lock().expect("not poisoned")["same"], "second");
}

#[tokio::test(start_paused = true)]
async fn a_pinned_skill_whose_archive_differs_is_refused() {
    let plane = plane(&[("a", "A"), ("b", "B"), ("c", "C")]);
    let mut pinned = settings();
    pinned.digests.insert(pin("a", "v1"), Digest::of(b"A"));
    pinned.digests.insert(pin("b", "v1"), Digest::of(b"another"));
    let told = run(pinned.clone(), &plane, &Memory::default(), &["a", "b", "c"]).await;
    assert_eq!(told, ["a as a", "b: digest", "c as c"]);
    pinned.require_digest = true;
    let plane = Plane { asked: Mutex::default(), ..plane };
    let told = run(pinned, &plane, &Memory::default(), &["a", "b", "c"]).await;
    assert_eq!(told, ["a as a", "b: digest", "c: not_pinned"]);
    let asked = plane.asked.lock().expect("not poisoned").clone();
    assert!(!asked.contains(&"get c".to_owned()), "it would be refused anyway: {asked:?}");
}

#[tokio::test(start_paused = true)]
async fn nothing_more_is_laid_once_the_jail_is_gone_or_the_record_fails() {
    let plane = plane(&[("a", "A"), ("b", "gone"), ("c", "C")]);
    let told = run(settings(), &plane, &Memory::default(), &["a", "b", "c"]).await;
    assert_eq!(told, ["a as a", "b: jail"]);
    let shelf = Memory { stops_at: Some("a"), ..Memory::default() };
    let told = run(settings(), &plane, &shelf, &["a", "c"]).await;
    assert_eq!(told, ["a as a"]);
    assert_eq!(shelf.directories.lock().expect("not poisoned").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn all_skills_together_have_a_time_limit() {
    // INV-11.
    let mut plane = plane(&[("a", "A"), ("b", "B"), ("c", "C")]);
    plane.hangs = Some("b".to_owned());
    let began = Instant::now();
    let told = run(settings(), &plane, &Memory::default(), &["a", "b", "c"]).await;
    assert_eq!(told, ["a as a", "b: timeout", "c: timeout"]);
    assert_eq!(began.elapsed(), TIME_MAX);
    let asked = plane.asked.lock().expect("not poisoned").clone();
    assert!(!asked.contains(&"find c".to_owned()), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_download_gives_its_room_back() {
    // SKILL-12: the lease is lost while an archive arrives.
    let mut plane = plane(&[("a", "A"), ("b", "B")]);
    plane.hangs = Some("b".to_owned());
    let skills = Skills::new(settings());
    let shelf = Memory::default();
    {
        let (to, from) = mpsc::channel(QUEUE);
        let list = list(&["a", "b"]);
        let both = async {
            tokio::join!(skills.fetch(&plane, &list, to), skills.lay(from, &shelf, &shelf));
        };
        let over = tokio::time::timeout(Duration::from_secs(5), both).await;
        assert!(over.is_err(), "it hangs");
    }
    assert_eq!(skills.room.available_permits(), 1);
    assert_eq!(shelf.directories.lock().expect("not poisoned").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn downloads_go_on_while_the_jail_is_made_and_wait_when_it_takes_long() {
    let plane = plane(&[("a", "A"), ("b", "B"), ("c", "C"), ("d", "D")]);
    let skills = Skills::new(SkillSettings { archives_max: 9, ..settings() });
    let shelf = Memory::default();
    let (to, from) = mpsc::channel(QUEUE);
    let list = list(&["a", "b", "c", "d"]);
    let jail = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let asked = plane.asked.lock().expect("not poisoned").len();
        assert_eq!(asked, 4, "two archives wait, no more are downloaded");
        skills.lay(from, &shelf, &shelf).await;
    };
    tokio::join!(skills.fetch(&plane, &list, to), jail);
    assert_eq!(shelf.directories.lock().expect("not poisoned").len(), 4);
}
