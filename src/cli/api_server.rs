//! Flags of the API server's connection.

use std::path::PathBuf;

use clap::Args;

use crate::cluster::Change;
use crate::source::kubernetes::{Connection, ConnectionError, Kubernetes, Timing};

/// Where the API server is; names are kube-proxy's.
#[derive(Debug, Args)]
pub struct ApiServer {
    /// Kubeconfig with the API server's address and credentials [default: the pod's service account].
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// URL of the API server, in place of that in the kubeconfig or in the pod's environment.
    #[arg(long, value_name = "URL")]
    master: Option<String>,
}

impl ApiServer {
    /// The API server as a source. Connects nothing yet.
    pub async fn open(&self, node: &str) -> Result<Kubernetes, ConnectionError> {
        let timing = Timing::default();
        let connection =
            Connection::open(self.kubeconfig.as_deref(), self.master.as_deref(), &timing).await?;
        Ok(Kubernetes::new(connection, node, timing))
    }

    /// All objects, listed once; what is left out is named in warnings.
    pub fn list(&self, node: &str) -> anyhow::Result<Vec<Change>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listed = runtime.block_on(async { anyhow::Ok(self.open(node).await?.list().await?) })?;
        listed.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        Ok(listed.changes)
    }
}
