//! Follows the files.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::Duration;

use notify::{EventKind, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::{error, warn};

use super::super::Batch;
use super::{Error, Manifests};

/// What is written within this time after a first event is read together.
const SETTLE: Duration = Duration::from_millis(10);
/// How often the files are looked at without any event: a folder that was replaced is no longer watched.
const LOOK: Duration = Duration::from_secs(5);

impl Manifests {
    /// Reads the files, sends what they say, and goes on for ever with what changes in them.
    pub async fn run(mut self, out: mpsc::Sender<Batch>) {
        let (tx, mut events) = mpsc::unbounded_channel();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if let Ok(event) = event
                && !matches!(event.kind, EventKind::Access(_))
            {
                // The receiver is gone only when the program ends.
                let _ = tx.send(event.paths);
            }
        })
        .map_err(|source| Error::Watch { path: self.path.clone(), source })
        .inspect_err(|error| warn!(%error, "changes are seen every {} s only", LOOK.as_secs()))
        .ok();
        let mut watched = false;
        let mut touched: BTreeSet<OsString> = BTreeSet::new();
        let mut trouble: Option<String> = None;
        let mut first = true;
        loop {
            // Watching before reading: nothing is missed in between.
            if let Some(watcher) = watcher.as_mut().filter(|_| !watched) {
                watched = watcher.watch(self.folder(), RecursiveMode::NonRecursive).is_ok();
            }
            match tokio::task::block_in_place(|| self.load_also(&touched)) {
                Ok(load) => {
                    trouble = None;
                    load.warn();
                    if first && self.files.is_empty() {
                        warn!(path = %self.path.display(), "there are no *.yaml, *.yml or *.json files yet");
                    }
                    let quiet = load.changes.is_empty() && !first;
                    first = false;
                    let batch = Batch { changes: load.changes, synced: true };
                    if !quiet && out.send(batch).await.is_err() {
                        return;
                    }
                }
                Err(problem) => {
                    watched = false;
                    let problem = problem.to_string();
                    if trouble.as_ref() != Some(&problem) {
                        error!("{problem}; what was read before stays in force");
                    }
                    trouble = Some(problem);
                }
            }
            touched.clear();
            match timeout(LOOK, events.recv()).await {
                Ok(Some(mut paths)) => {
                    sleep(SETTLE).await;
                    while let Ok(more) = events.try_recv() {
                        paths.extend(more);
                    }
                    // The folder itself went, or another was put in its place.
                    watched &= !paths.iter().any(|path| path == self.folder());
                    touched.extend(paths.iter().filter_map(|path| path.file_name()).map(OsStr::to_owned));
                }
                Ok(None) => sleep(LOOK).await,
                Err(_) => {}
            }
        }
    }

    /// What is watched: a file's folder, since editors and ConfigMaps put a new file in an old one's place.
    fn folder(&self) -> &Path {
        match self.path.parent() {
            _ if self.path.is_dir() => &self.path,
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }
}
