//! `sluice run`.

use std::sync::Arc;

use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::mpsc;
use tracing::warn;

use super::logging::Logging;
use super::servers::Servers;
use super::settings::Settings;
use crate::app;
use crate::dataplane::DataPlane;
use crate::dataplane::nftables::Nftables;
use crate::metrics::Metrics;
use crate::reconcile::Reconciler;
use crate::reporting::Reporting;
use crate::source::manifests::Manifests;

/// How many batches of changes may wait for the reconcile loop.
const QUEUE: usize = 64;

#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    servers: Servers,
    #[command(flatten)]
    logging: Logging,
}

impl Run {
    pub fn execute(self) -> anyhow::Result<()> {
        let config = self.settings.config()?;
        self.logging.start();
        raise_file_limit();
        let plane = Nftables::open()?;
        let metrics = Arc::new(Metrics::new()?);
        let manifests = Manifests::open(&self.settings.manifests)?.counting(metrics.invalid_objects.clone());
        let reporting = Reporting::new(metrics);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(async {
            let servers = self.servers.start(&reporting, plane.name())?;
            let (tx, rx) = mpsc::channel(QUEUE);
            let source = tokio::spawn(manifests.run(tx));
            app::run(Reconciler::new(config, plane, reporting), rx).await;
            source.abort();
            drop(servers);
            Ok(())
        })
    }
}

/// Each health check port is a file, and many systems start programs with a soft limit of 1024 for the sake of
/// select(2), which is not used here. Go programs do the same.
fn raise_file_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        warn!(%error, "the limit of open files stays at {soft}");
    }
}
