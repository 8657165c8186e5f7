//! Objects from files: `--manifests PATH`.
//!
//! PATH is a file, or a folder of which every `*.yaml`, `*.yml` and `*.json` is read (not those in folders below it,
//! as with `kubectl apply -f`; hidden ones are left out, symbolic links followed, so a mounted ConfigMap works).
//! A file may hold several documents, lists, and objects of other kinds, which are skipped.

mod block;
mod parse;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use prometheus::IntCounter;
use rustc_hash::{FxHashMap, FxHashSet};
use tracing::{info, warn};

use super::Id;
use crate::cluster::{Change, Interner};

pub use parse::SyntaxError;

/// Why files cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path is missing or unreadable.
    #[error("--manifests {}: {source}", path.display())]
    Path {
        /// The path as it was given.
        path: PathBuf,
        /// What the file system answered.
        source: io::Error,
    },
    /// The files cannot be watched.
    #[error("cannot watch {} for changes: {source}", path.display())]
    Watch {
        /// The folder.
        path: PathBuf,
        /// What inotify answered; often a limit (fs.inotify.max_user_watches).
        source: notify::Error,
    },
}

/// A file that cannot be taken as it is; what it said before stays in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, with line and column where there is one.
    pub problem: String,
}

/// What reading the files gave.
#[derive(Debug, Default)]
pub struct Load {
    /// The difference to what was read before.
    pub changes: Vec<Change>,
    /// Files that are broken, and were not when they were last read.
    pub broken: Vec<Broken>,
    /// Files that were broken and are no longer.
    pub mended: Vec<PathBuf>,
    /// What was left out because it makes no sense: file, object, field and remedy.
    pub warnings: Vec<String>,
    /// Objects that were left out as a whole because they make no sense.
    pub invalid: usize,
    /// Objects of other kinds, by kind.
    pub skipped: BTreeMap<String, usize>,
    /// Files that were read.
    pub files: usize,
}

impl Load {
    /// Logs what an operator should know.
    pub fn warn(&self) {
        for Broken { path, problem } in &self.broken {
            warn!(file = %path.display(), "{problem}; what it said before stays in force");
        }
        for path in &self.mended {
            info!(file = %path.display(), "the file is good again");
        }
        for warning in &self.warnings {
            warn!("{warning}");
        }
        if !self.skipped.is_empty() {
            let total: usize = self.skipped.values().sum();
            let mut kinds: Vec<_> = self.skipped.iter().collect();
            kinds.sort_by_key(|(kind, count)| (std::cmp::Reverse(**count), kind.as_str()));
            let list: Vec<String> = kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
            info!("skipped {total} objects of other kinds: {}", list.join(", "));
        }
    }
}

/// By what a file's content is told from another without reading it.
type Stamp = (u64, u64, u64, i64, i64);

fn stamp(path: &Path) -> io::Result<Stamp> {
    let meta = fs::metadata(path)?;
    Ok((meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
}

#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    ids: FxHashSet<Id>,
    /// What is wrong with it, as it was last said.
    broken: Option<String>,
}

/// The files of one path, and what they said when they were last read.
#[derive(Debug)]
pub struct Manifests {
    path: PathBuf,
    files: BTreeMap<PathBuf, File>,
    /// In which files an object is; where it is in several the last file counts.
    places: FxHashMap<Id, BTreeSet<PathBuf>>,
    names: Interner,
    /// Counts objects that make no sense.
    invalid: Option<IntCounter>,
}

impl Manifests {
    /// Looks that the path is there; reads nothing yet.
    pub fn open(path: impl Into<PathBuf>) -> Result<Manifests, Error> {
        let path = path.into();
        let manifests = Manifests {
            path,
            files: BTreeMap::new(),
            places: FxHashMap::default(),
            names: Interner::default(),
            invalid: None,
        };
        manifests.list()?;
        Ok(manifests)
    }

    /// Counts the objects that are left out because they make no sense.
    pub fn counting(mut self, invalid: IntCounter) -> Manifests {
        self.invalid = Some(invalid);
        self
    }

    /// Reads what changed since the last time.
    pub fn load(&mut self) -> Result<Load, Error> {
        self.load_also(&BTreeSet::new())
    }

    /// The same, and reads files of these names even if they look the same: a file can be written twice within a
    /// tick of the file system's clock.
    fn load_also(&mut self, touched: &BTreeSet<OsString>) -> Result<Load, Error> {
        let listed = self.list()?;
        let mut load = Load::default();
        let gone: Vec<PathBuf> = self.files.keys().filter(|p| !listed.contains(*p)).cloned().collect();
        let mut again = BTreeSet::new();
        for path in gone {
            if let Some(file) = self.files.remove(&path) {
                self.forget(&path, file.ids, &mut load, &mut again);
            }
        }
        for path in &listed {
            let file = self.files.get(path);
            let now = stamp(path).ok();
            if file.is_none_or(|f| f.stamp != now || now.is_none())
                || path.file_name().is_some_and(|name| touched.contains(name))
            {
                self.read(path, now, &mut load, &mut again);
            }
        }
        // Objects that went from the file that counted, but are in another one, too.
        while let Some(path) = again.pop_first() {
            if self.files.contains_key(&path) {
                let now = stamp(&path).ok();
                self.read(&path, now, &mut load, &mut again);
            }
        }
        if let Some(counter) = &self.invalid {
            counter.inc_by(load.invalid as u64);
        }
        Ok(load)
    }

    /// The files there are, in the order in which they count.
    fn list(&self) -> Result<BTreeSet<PathBuf>, Error> {
        let failed = |source| Error::Path { path: self.path.clone(), source };
        if !fs::metadata(&self.path).map_err(failed)?.is_dir() {
            return Ok([self.path.clone()].into());
        }
        let mut files = BTreeSet::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let hidden = path.file_name().is_none_or(|n| n.as_encoded_bytes().starts_with(b"."));
            let known = path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
            if known && !hidden && !path.is_dir() {
                files.insert(path);
            }
        }
        Ok(files)
    }

    fn read(&mut self, path: &Path, now: Option<Stamp>, load: &mut Load, again: &mut BTreeSet<PathBuf>) {
        let parsed = fs::read(path)
            .map_err(|error| format!("cannot be read: {error}"))
            .and_then(|bytes| parse::parse(path, &bytes, &mut self.names).map_err(|error| error.to_string()));
        let file = self.files.entry(path.to_owned()).or_default();
        file.stamp = now;
        let parsed = match parsed {
            Ok(parsed) => parsed,
            Err(problem) => {
                if file.broken.as_ref() != Some(&problem) {
                    file.broken = Some(problem.clone());
                    load.broken.push(Broken { path: path.to_owned(), problem });
                }
                return;
            }
        };
        if file.broken.take().is_some() {
            load.mended.push(path.to_owned());
        }
        load.files += 1;
        load.invalid += parsed.invalid;
        load.warnings.extend(parsed.warnings.iter().map(|warning| format!("{}: {warning}", path.display())));
        for (kind, count) in parsed.skipped {
            *load.skipped.entry(kind).or_default() += count;
        }
        let mut old = std::mem::take(&mut file.ids);
        let mut ids = FxHashSet::default();
        for change in parsed.changes {
            let id = Id::of(&change);
            old.remove(&id);
            let places = self.places.entry(id.clone()).or_default();
            places.insert(path.to_owned());
            let last = places.last().is_some_and(|last| last == path);
            if places.len() > 1 {
                let list: Vec<String> = places.iter().map(|p| p.display().to_string()).collect();
                load.warnings
                    .push(format!("{id} is in several files, the last one counts: {}", list.join(", ")));
            }
            if !ids.insert(id.clone()) {
                load.warnings.push(format!("{}: {id} is there twice, the last one counts", path.display()));
            }
            if last {
                load.changes.push(change);
            }
        }
        if let Some(file) = self.files.get_mut(path) {
            file.ids = ids;
        }
        self.forget(path, old, load, again);
    }

    /// Objects are no longer in a file.
    fn forget(&mut self, path: &Path, ids: FxHashSet<Id>, load: &mut Load, again: &mut BTreeSet<PathBuf>) {
        for id in ids {
            let Some(places) = self.places.get_mut(&id) else { continue };
            let counted = places.last().is_some_and(|last| last == path);
            places.remove(path);
            match places.last() {
                Some(other) if counted => {
                    again.insert(other.clone());
                }
                Some(_) => {}
                None => {
                    self.places.remove(&id);
                    load.changes.push(id.deleted());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
