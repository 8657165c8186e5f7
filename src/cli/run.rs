//! `sluice run`.

use clap::Args;
use tokio::sync::mpsc;
use tracing::warn;

use super::logging::Logging;
use super::settings::Settings;
use crate::app;
use crate::conntrack::Cleaner;
use crate::dataplane::nftables::Nftables;
use crate::reconcile::Reconciler;
use crate::source::manifests::Manifests;

/// How many batches of changes may wait for the reconcile loop.
const QUEUE: usize = 64;

#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    logging: Logging,
}

impl Run {
    pub fn execute(self) -> anyhow::Result<()> {
        let config = self.settings.config()?;
        self.logging.start();
        let plane = Nftables::open()?;
        let manifests = Manifests::open(&self.settings.manifests)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(async {
            let (tx, rx) = mpsc::channel(QUEUE);
            let source = tokio::spawn(manifests.run(tx));
            let mut reconciler = Reconciler::new(config, plane);
            match Cleaner::start() {
                Ok(cleaner) => reconciler.clean_conntrack(cleaner),
                Err(error) => warn!(%error, "stale connections are not deleted"),
            }
            app::run(reconciler, rx).await;
            source.abort();
        });
        Ok(())
    }
}
