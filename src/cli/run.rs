//! `sluice run`.

use clap::Args;
use tokio::sync::mpsc;

use super::logging::Logging;
use super::settings::Settings;
use crate::app;
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
        let manifests = self.settings.manifests.as_ref().map(Manifests::open).transpose()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(async {
            let (tx, rx) = mpsc::channel(QUEUE);
            let source = match manifests {
                Some(manifests) => tokio::spawn(manifests.run(tx)),
                None => tokio::spawn(self.settings.api_server.open(&config.node_name).await?.run(tx)),
            };
            app::run(Reconciler::new(config, plane), rx).await;
            source.abort();
            Ok(())
        })
    }
}
