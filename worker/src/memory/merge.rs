//! What is to be done about one path of a memory store: a pure decision on three hashes.
//!
//! R is what the store has, L what the folder has, B what both had when they last agreed. The server
//! wins conflicts; nothing is deleted on either side that changed since the two agreed; a read-only
//! store is never written (protocol §8.3). What an action then meets (the file was edited meanwhile,
//! the server says 409) is the engine's business.

use crate::queue::ContentHash;

/// Whether a session may change a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Files are uploaded.
    ReadWrite,
    /// Files are only ever pulled.
    ReadOnly,
}

/// One path as a sync sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// R: of the listing.
    pub remote: Option<ContentHash>,
    /// L: of the scan.
    pub local: Option<ContentHash>,
    /// B: of the baseline, after [`settled`].
    pub base: Option<ContentHash>,
    /// What the store has refused at this path (MEM-22).
    pub refused: Option<ContentHash>,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Remove the file, if it still has the text B.
    RemoveFile,
    /// Make a memory of the file.
    Create,
    /// Update the memory, if it still has the text R.
    Update,
    /// Fetch the memory and write it over the file.
    Pull,
    /// Delete the memory, once its file is known to be gone (§8.5).
    DeleteMemory,
}

/// What is worth telling about a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remark {
    /// The file's text gives way to the server's.
    EditLost,
    /// The file was deleted and comes back, because the memory has changed.
    Restored,
    /// The memory was deleted and comes back, because the file has changed.
    Recreated,
    /// The memory was deleted, the file was edited, and the store is read-only: the file stays.
    Orphaned,
}

/// The decision about one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// What the baseline has until that has succeeded.
    pub base: Option<ContentHash>,
    /// For the operator.
    pub remark: Option<Remark>,
}

/// The baseline of a path after a listing, if an upload of ours was never answered (MEM-23): a store
/// that has exactly what was sent has it from us.
pub fn settled(
    remote: Option<ContentHash>,
    base: Option<ContentHash>,
    sent: Option<ContentHash>,
) -> Option<ContentHash> {
    if remote.is_some() && remote == sent { remote } else { base }
}

/// Decides (MEM-15 to MEM-20).
pub fn decide(access: Access, seen: Seen) -> Decision {
    let plain = |action, base| Decision { action, base, remark: None };
    let told = |action, base, remark| Decision { action, base, remark: Some(remark) };
    let Seen { remote, local, base, refused } = seen;
    let writable = access == Access::ReadWrite;
    let is_refused = local.is_some() && local == refused;
    match (remote, local) {
        // MEM-15
        (None, None) => plain(Action::Nothing, None),
        // MEM-16
        (None, Some(local)) if base == Some(local) => plain(Action::RemoveFile, base),
        // MEM-17
        (None, Some(_)) => match (writable, base) {
            (false, Some(_)) => told(Action::Nothing, None, Remark::Orphaned),
            (false, None) => plain(Action::Nothing, None),
            (true, _) if is_refused => plain(Action::Nothing, None),
            (true, Some(_)) => told(Action::Create, None, Remark::Recreated),
            (true, None) => plain(Action::Create, None),
        },
        // MEM-18; without a baseline the file never was there.
        (Some(remote), None) => match base {
            None => plain(Action::Pull, None),
            Some(base) if base != remote => told(Action::Pull, Some(base), Remark::Restored),
            Some(_) if writable => plain(Action::DeleteMemory, base),
            Some(_) => plain(Action::Nothing, base),
        },
        // MEM-19
        (Some(remote), Some(local)) if base != Some(remote) => {
            if local == remote {
                plain(Action::Nothing, Some(remote))
            } else if base == Some(local) {
                plain(Action::Pull, base)
            } else {
                told(Action::Pull, base, Remark::EditLost)
            }
        }
        // MEM-20
        (Some(remote), Some(local)) => {
            let edited = writable && local != remote && !is_refused;
            plain(if edited { Action::Update } else { Action::Nothing }, Some(remote))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(text: &str) -> Option<ContentHash> {
        (!text.is_empty()).then(|| ContentHash::of(text.as_bytes()))
    }

    fn seen(remote: &str, local: &str, base: &str, refused: &str) -> Seen {
        let [remote, local, base, refused] = [remote, local, base, refused].map(hash);
        Seen { remote, local, base, refused }
    }

    #[test]
    fn every_row_of_the_table_is_as_the_protocol_has_it() {
        use Action::{Create, DeleteMemory, Nothing, Pull, RemoveFile, Update};
        // Remote, local, base: texts, empty for absent; then for a writable and a read-only store the
        // action and the baseline.
        #[rustfmt::skip]
        let rows = [
            // MEM-15.
            ("",  "",  "",  (Nothing, ""),       (Nothing, "")),
            ("",  "",  "a", (Nothing, ""),       (Nothing, "")),
            // MEM-16.
            ("",  "a", "a", (RemoveFile, "a"),   (RemoveFile, "a")),
            // MEM-17.
            ("",  "a", "",  (Create, ""),        (Nothing, "")),
            ("",  "b", "a", (Create, ""),        (Nothing, "")),
            // MEM-18.
            ("a", "",  "",  (Pull, ""),          (Pull, "")),
            ("b", "",  "a", (Pull, "a"),         (Pull, "a")),
            ("a", "",  "a", (DeleteMemory, "a"), (Nothing, "a")),
            // MEM-19.
            ("a", "a", "",  (Nothing, "a"),      (Nothing, "a")),
            ("b", "b", "a", (Nothing, "b"),      (Nothing, "b")),
            ("b", "a", "",  (Pull, ""),          (Pull, "")),
            ("b", "a", "a", (Pull, "a"),         (Pull, "a")),
            ("b", "c", "a", (Pull, "a"),         (Pull, "a")),
            // MEM-20.
            ("a", "a", "a", (Nothing, "a"),      (Nothing, "a")),
            ("a", "b", "a", (Update, "a"),       (Nothing, "a")),
        ];
        for (remote, local, base, writable, read_only) in rows {
            for (access, (action, after)) in
                [(Access::ReadWrite, writable), (Access::ReadOnly, read_only)]
            {
                let got = decide(access, seen(remote, local, base, ""));
                let want = (action, hash(after));
                assert_eq!((got.action, got.base), want, "{access:?} {remote}/{local}/{base}");
            }
        }
    }

    #[test]
    fn what_was_refused_is_not_sent_again_until_it_changes() {
        // MEM-17, MEM-20, MEM-22.
        let of = |seen| decide(Access::ReadWrite, seen).action;
        assert_eq!(of(seen("", "a", "", "a")), Action::Nothing);
        assert_eq!(of(seen("", "b", "", "a")), Action::Create);
        assert_eq!(of(seen("a", "b", "a", "b")), Action::Nothing);
        assert_eq!(of(seen("a", "c", "a", "b")), Action::Update);
        // A refusal does not keep the server's next version away.
        assert_eq!(of(seen("c", "b", "a", "b")), Action::Pull);
    }

    #[test]
    fn an_upload_that_was_never_answered_is_recognised() {
        // MEM-23.
        assert_eq!(settled(hash("b"), hash("a"), hash("b")), hash("b"));
        assert_eq!(settled(hash("c"), hash("a"), hash("b")), hash("a"), "somebody else's");
        assert_eq!(settled(None, hash("a"), hash("b")), hash("a"), "deleted since, or never made");
        assert_eq!(settled(None, hash("a"), None), hash("a"));
    }

    /// All triples over three texts and absence, with every refusal.
    fn all() -> impl Iterator<Item = Seen> {
        let texts = ["", "a", "b", "c"];
        texts.into_iter().flat_map(move |remote| {
            texts.into_iter().flat_map(move |local| {
                texts.into_iter().flat_map(move |base| {
                    texts.into_iter().map(move |refused| seen(remote, local, base, refused))
                })
            })
        })
    }

    #[test]
    fn nothing_that_changed_is_deleted_and_the_server_wins() {
        for access in [Access::ReadWrite, Access::ReadOnly] {
            for seen in all() {
                let Decision { action, base, remark } = decide(access, seen);
                let Seen { remote, local, .. } = seen;
                match action {
                    // A file goes only if it is what both had and the memory is gone.
                    Action::RemoveFile => assert!(remote.is_none() && local == seen.base),
                    // A memory goes only if it is what both had and the file is gone.
                    Action::DeleteMemory => assert!(local.is_none() && remote == seen.base),
                    Action::Create => assert!(remote.is_none() && local != seen.base),
                    Action::Update => assert!(remote == seen.base && local != remote),
                    Action::Pull => assert!(remote != seen.base && local != remote),
                    Action::Nothing => {}
                }
                let sends =
                    matches!(action, Action::Create | Action::Update | Action::DeleteMemory);
                assert!(!sends || access == Access::ReadWrite, "{seen:?}: read-only");
                assert!(!sends || local.is_none() || local != seen.refused, "{seen:?}: refused");
                // The baseline only ever holds what both sides had, or have.
                assert!(base.is_none() || base == seen.base || (base == remote && local == remote));
                // An edit is overwritten only with a remark.
                let edit = local.is_some() && local != seen.base;
                let overwritten = action == Action::Pull && edit;
                assert_eq!(overwritten, remark == Some(Remark::EditLost), "{seen:?}");
            }
        }
    }

    #[test]
    fn a_second_look_after_success_finds_nothing_to_do() {
        for access in [Access::ReadWrite, Access::ReadOnly] {
            for before in all() {
                let Decision { action, base, .. } = decide(access, before);
                let Seen { remote, local, .. } = before;
                let after = match action {
                    Action::Nothing => Seen { base, ..before },
                    Action::RemoveFile | Action::DeleteMemory => {
                        Seen { remote: None, local: None, base: None, ..before }
                    }
                    Action::Create | Action::Update => {
                        Seen { remote: local, base: local, ..before }
                    }
                    Action::Pull => Seen { local: remote, base: remote, ..before },
                };
                let again = decide(access, after);
                assert_eq!((again.action, again.remark), (Action::Nothing, None), "{before:?}");
                assert_eq!(again.base, after.base, "{before:?}");
            }
        }
    }
}
