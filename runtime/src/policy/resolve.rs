//! Follows `extends` from a policy to its root, and lays the files over each other.
//!
//! Pure: files come through [`Resolver::load`]. The chain is read from the child upwards, and
//! applied from the root downwards, because each step is checked against what its parent means.
//!
//! A root (a file without `extends`) starts from `base` and may set any value. Every further file
//! may only narrow.

use std::io;
use std::path::{Path, PathBuf};

use super::error::PolicyError;
use super::file::PolicyFile;
use super::floor::floor;
use super::model::{Origin, Policy};
use super::narrow::{self, Mode};
use super::parse::Source;
use super::shipped::Shipped;
use super::validate::{is_policy_name, validate};

/// Most files in a chain of `extends`.
const CHAIN_MAX: usize = 8;

/// Turns names and files into policies.
pub struct Resolver<'a> {
    /// The catalogue of system call groups, in its order; `base` is one of them.
    pub groups: &'a [&'a str],
    /// Directories searched for `NAME.toml`, in this order, after the shipped policies.
    pub directories: &'a [PathBuf],
    /// Reads a file. Should refuse what is no regular file, and need not read more than 1 MiB + 1.
    pub load: &'a dyn Fn(&Path) -> io::Result<String>,
}

impl std::fmt::Debug for Resolver<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver")
            .field("groups", &self.groups)
            .field("directories", &self.directories)
            .finish_non_exhaustive()
    }
}

/// A file of the chain, parsed and valid on its own.
struct Link {
    source: Source,
    file: PolicyFile,
}

impl Resolver<'_> {
    /// The policy that `reference` means, with nothing left to decide.
    ///
    /// `reference` is a name (shipped, or `NAME.toml` in one of the directories), or a path: what
    /// holds a `/` or ends in `.toml`. A shipped name always means the shipped policy.
    ///
    /// # Errors
    /// The first [`PolicyError`] found in the file or in one that it extends.
    pub fn resolve(&self, reference: &str) -> Result<Policy, PolicyError> {
        let mut chain = self.chain(self.source(reference)?)?;
        let outermost = &chain[0];
        let name = outermost.file.name.as_ref().map(|name| name.get().clone());
        let name = name.unwrap_or_else(|| outermost.source.stem());
        let mut sources: Vec<_> = chain.iter().map(|link| link.source.file.clone()).collect();
        let shipped = Shipped::find("base").expect("base is shipped").source();
        let (base, mut mode) = match chain.pop_if(|root| root.source == shipped) {
            Some(root) => (root, Mode::Narrow),
            None => {
                sources.push(shipped.file.clone());
                (self.link(shipped)?, Mode::Replace)
            }
        };
        let mut policy = floor(&base.source, &base.file)?;
        narrow::apply(&mut policy, &base.source, &base.file, Mode::Replace, self.groups)?;
        for link in chain.iter().rev() {
            narrow::apply(&mut policy, &link.source, &link.file, mode, self.groups)?;
            mode = Mode::Narrow;
        }
        (policy.name, policy.sources) = (name, sources);
        Ok(policy)
    }

    /// The text that `reference` means, unread.
    ///
    /// # Errors
    /// [`PolicyError::UnknownPolicy`] or [`PolicyError::Read`].
    pub fn source(&self, reference: &str) -> Result<Source, PolicyError> {
        self.find(reference, None, None)
    }

    /// The files from `outermost` to the one without `extends`.
    fn chain(&self, outermost: Source) -> Result<Vec<Link>, PolicyError> {
        let mut chain = vec![self.link(outermost)?];
        loop {
            let link = chain.last().expect("the chain starts with one link");
            let Some(parent) = &link.file.extends else { return Ok(chain) };
            let (name, at) = (parent.get().clone(), link.source.origin(parent.span()));
            if chain.len() == CHAIN_MAX {
                return Err(PolicyError::TooDeep { at, name, max: CHAIN_MAX });
            }
            let source = self.find(&name, Some(&link.source.file), Some(&at))?;
            if chain.iter().any(|link| link.source == source) {
                let files = chain.iter().map(|link| link.source.file.as_str());
                let way: Vec<&str> = files.chain([source.file.as_str()]).collect();
                return Err(PolicyError::Cycle { at, name, chain: way.join(" → ") });
            }
            chain.push(self.link(source)?);
        }
    }

    fn link(&self, source: Source) -> Result<Link, PolicyError> {
        let file = source.parse()?;
        validate(&source, &file, self.groups)?;
        Ok(Link { source, file })
    }

    /// Finds a policy; a relative path is relative to the file `from`.
    fn find(
        &self,
        reference: &str,
        from: Option<&str>,
        at: Option<&Origin>,
    ) -> Result<Source, PolicyError> {
        let unreadable = |path: &Path, source| PolicyError::Read {
            at: at.cloned(),
            file: path.display().to_string(),
            source,
        };
        if reference.contains('/') || reference.ends_with(".toml") {
            let folder = from.and_then(|file| Path::new(file).parent()).unwrap_or(Path::new(""));
            let path = tidy(&folder.join(reference));
            let text = (self.load)(&path).map_err(|error| unreadable(&path, error))?;
            return Ok(Source { file: path.display().to_string(), text });
        }
        if let Some(shipped) = Shipped::find(reference) {
            return Ok(shipped.source());
        }
        let directories = if is_policy_name(reference) { self.directories } else { &[] };
        for directory in directories {
            let path = directory.join(format!("{reference}.toml"));
            match (self.load)(&path) {
                Ok(text) => return Ok(Source { file: path.display().to_string(), text }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(unreadable(&path, error)),
            }
        }
        Err(PolicyError::UnknownPolicy {
            at: at.cloned(),
            name: reference.to_owned(),
            known: Shipped::names(),
        })
    }
}

/// Drops `.` components, so that one file has one name. `..` stays: it may follow a link.
fn tidy(path: &Path) -> PathBuf {
    path.components().filter(|part| !matches!(part, std::path::Component::CurDir)).collect()
}
