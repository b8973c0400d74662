//! Where the folder of each store is in the jail, and whether a session may have it there (MEM-2,
//! MEM-3).
//!
//! Only the form of a path is looked at. Whether something is there already (MEM-4) is found by whoever
//! builds the jail, and fails it.

use std::path::{Component, Path, PathBuf};

use super::Access;
use crate::queue::MemoryStoreRef;

/// Stores of one session; the control plane gives eight at most.
const STORES_MAX: usize = 64;
/// PATH_MAX of Linux, and NAME_MAX.
const PATH_BYTES_MAX: usize = 4095;
const NAME_BYTES_MAX: usize = 255;

/// A store and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorePlace {
    /// `memstore_…`.
    pub id: String,
    /// Whether the session may change it.
    pub access: Access,
    /// Absolute, without `..`.
    pub target: PathBuf,
}

/// A store that a session cannot have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// MEM-2.
    #[error(
        "cannot mount {stores} memory stores: the work item has no sessions token, and memory stores \
         take no other credential"
    )]
    NoToken {
        /// How many the session has.
        stores: usize,
    },
    /// MEM-3.
    #[error("cannot mount the memory store {store} at `{path}`: {reason}")]
    Path {
        /// Which.
        store: String,
        /// As the session has it.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// MEM-4.
    #[error("cannot mount the memory store {store} at {path}: the memory store {other} is there")]
    Taken {
        /// Which.
        store: String,
        /// Where.
        path: PathBuf,
        /// The one before it.
        other: String,
    },
    /// INV-11.
    #[error("cannot mount {stores} memory stores: the limit is {STORES_MAX}")]
    TooMany {
        /// How many.
        stores: usize,
    },
}

/// Decides where the stores of a session go, whose working directory in its jail is `workdir`; none if it
/// has none.
///
/// # Errors
/// The first thing that is wrong; the work item fails (MEM-7).
pub fn places(
    stores: &[MemoryStoreRef],
    has_token: bool,
    workdir: &Path,
) -> Result<Vec<StorePlace>, PlaceError> {
    if !stores.is_empty() && !has_token {
        return Err(PlaceError::NoToken { stores: stores.len() });
    }
    if stores.len() > STORES_MAX {
        return Err(PlaceError::TooMany { stores: stores.len() });
    }
    let mut placed: Vec<StorePlace> = Vec::new();
    for store in stores {
        let place = place(store, workdir)?;
        let near = |other: &&StorePlace| {
            other.target.starts_with(&place.target) || place.target.starts_with(&other.target)
        };
        if let Some(other) = placed.iter().find(near) {
            let (store, other) = (place.id.clone(), other.id.clone());
            return Err(PlaceError::Taken { store, path: place.target, other });
        }
        placed.push(place);
    }
    Ok(placed)
}

fn place(store: &MemoryStoreRef, workdir: &Path) -> Result<StorePlace, PlaceError> {
    let id = store.memory_store_id.clone();
    let access = match store.access.as_deref() {
        None | Some("" | "read_write") => Access::ReadWrite,
        // What is not known to be writable is not written.
        Some(_) => Access::ReadOnly,
    };
    let target = match store.mount_path.as_deref().filter(|path| !path.is_empty()) {
        Some(path) => clean(path).map_err(|reason| {
            let path = path.chars().take(NAME_BYTES_MAX).collect();
            PlaceError::Path { store: id.clone(), path, reason }
        })?,
        None => {
            let name = store.name.as_deref().and_then(component).or_else(|| component(&id));
            let name = name.ok_or_else(|| PlaceError::Path {
                store: id.clone(),
                path: id.clone(),
                reason: "its id cannot be the name of a directory",
            })?;
            workdir.join("memory").join(name)
        }
    };
    Ok(StorePlace { id, access, target })
}

/// MEM-3: verbatim, or not at all. The agent is told this path.
fn clean(path: &str) -> Result<PathBuf, &'static str> {
    if !path.starts_with('/') {
        return Err("the path is not absolute");
    }
    if path.len() > PATH_BYTES_MAX {
        return Err("the path is too long");
    }
    if path.contains(char::is_control) {
        return Err("the path has a control character");
    }
    let parts = Path::new(path).components();
    if parts.clone().any(|part| part == Component::ParentDir) {
        return Err("the path has a `..`");
    }
    // Without doubled and trailing slashes and without `.`.
    let target: PathBuf = parts.collect();
    if target == Path::new("/") { Err("it would hide everything else") } else { Ok(target) }
}

/// A name as one component of a path: what separates or controls becomes `_`. `None` if it would mean
/// another directory.
fn component(name: &str) -> Option<String> {
    let plain = |c: char| if c == '/' || c.is_control() { '_' } else { c };
    let mut kept = String::new();
    for c in name.trim().chars().map(plain) {
        if kept.len() + c.len_utf8() > NAME_BYTES_MAX {
            break;
        }
        kept.push(c);
    }
    (!matches!(kept.as_str(), "" | "." | "..")).then_some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed_at(
        stores: &[MemoryStoreRef],
        has_token: bool,
    ) -> Result<Vec<StorePlace>, PlaceError> {
        places(stores, has_token, Path::new("/workspace"))
    }

    fn store(id: &str, name: Option<&str>, mount_path: Option<&str>) -> MemoryStoreRef {
        MemoryStoreRef {
            memory_store_id: id.to_owned(),
            access: None,
            mount_path: mount_path.map(str::to_owned),
            name: name.map(str::to_owned),
        }
    }

    fn target(name: Option<&str>, mount_path: Option<&str>) -> Result<String, String> {
        let placed = placed_at(&[store("memstore_1", name, mount_path)], true);
        let placed = placed.map_err(|error| error.to_string())?;
        Ok(placed[0].target.display().to_string())
    }

    #[test]
    fn a_mount_path_is_used_as_it_is_or_refused() {
        // MEM-3.
        for (path, want) in [
            ("/mnt/memory/notes", "/mnt/memory/notes"),
            ("/mnt//memory/./notes/", "/mnt/memory/notes"),
            ("/mnt/memory/a b…", "/mnt/memory/a b…"),
        ] {
            assert_eq!(target(Some("n"), Some(path)), Ok(want.to_owned()));
        }
        for (path, why) in [
            ("mnt/memory/notes", "the path is not absolute"),
            ("/mnt/../etc", "the path has a `..`"),
            ("/mnt/memory/..", "the path has a `..`"),
            ("/", "it would hide everything else"),
            ("//./", "it would hide everything else"),
            ("/mnt/a\nb", "the path has a control character"),
            ("/mnt/a\0b", "the path has a control character"),
            (&format!("/{}", "a/".repeat(3000)), "the path is too long"),
        ] {
            let told = target(Some("n"), Some(path)).expect_err(path);
            assert!(told.contains(why) && told.contains("memstore_1"), "{path}: {told}");
        }
    }

    #[test]
    fn without_a_mount_path_the_name_is_one_directory_of_the_workspace() {
        // MEM-3.
        for (name, want) in [
            (Some("notes"), "notes"),
            (Some("my notes"), "my notes"),
            (Some("../../etc"), ".._.._etc"),
            (Some("a/b\0c\n"), "a_b_c"),
            (Some(".."), "memstore_1"),
            (Some(" . "), "memstore_1"),
            (Some(""), "memstore_1"),
            (None, "memstore_1"),
        ] {
            for mount_path in [None, Some("")] {
                let want = format!("/workspace/memory/{want}");
                assert_eq!(target(name, mount_path), Ok(want), "{name:?}");
            }
        }
        let long = target(Some(&"é".repeat(200)), None).expect("cut");
        assert_eq!(long.len(), "/workspace/memory/".len() + 254);
    }

    #[test]
    fn stores_without_a_token_fail_and_sessions_without_stores_do_not() {
        // MEM-2, AUTH-6.
        assert_eq!(placed_at(&[], false), Ok(Vec::new()));
        let error = placed_at(&[store("memstore_1", None, None)], false).expect_err("no token");
        assert!(error.to_string().contains("no sessions token"), "{error}");
    }

    #[test]
    fn two_stores_cannot_share_a_place_or_lie_in_each_other() {
        // MEM-4.
        for (one, other) in [("/mnt/a", "/mnt/a/"), ("/mnt/a", "/mnt/a/b"), ("/mnt/a/b", "/mnt/a")]
        {
            let stores =
                [store("memstore_1", None, Some(one)), store("memstore_2", None, Some(other))];
            let error = placed_at(&stores, true).expect_err(other).to_string();
            assert!(error.contains("memstore_2") && error.contains("memstore_1"), "{error}");
        }
        let apart =
            [store("memstore_1", None, Some("/mnt/a")), store("memstore_2", None, Some("/mnt/ab"))];
        assert_eq!(placed_at(&apart, true).map(|placed| placed.len()), Ok(2));
        // INV-11.
        let many: Vec<_> = (0..65).map(|n| store(&format!("memstore_{n}"), None, None)).collect();
        assert_eq!(placed_at(&many, true), Err(PlaceError::TooMany { stores: 65 }));
    }

    #[test]
    fn only_what_is_said_to_be_writable_is_written() {
        // MEM-8, API-5.
        for (access, want) in [
            (None, Access::ReadWrite),
            (Some("read_write"), Access::ReadWrite),
            (Some("read_only"), Access::ReadOnly),
            (Some("append_only"), Access::ReadOnly),
        ] {
            let mut store = store("memstore_1", None, None);
            store.access = access.map(str::to_owned);
            assert_eq!(placed_at(&[store], true).expect("placed")[0].access, want, "{access:?}");
        }
    }
}
