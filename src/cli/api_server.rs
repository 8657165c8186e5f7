//! The API server as the source of a command.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::cluster::Change;
use crate::config::Client;
use crate::source::kubernetes::{Connection, ConnectionError, Kubernetes, Timing};

/// The API server as a source. Connects nothing yet.
pub async fn open(client: &Client, node: &str) -> Result<Kubernetes, ConnectionError> {
    let timing = Timing::default();
    let connection =
        Connection::open(client.kubeconfig.as_deref(), client.master.as_deref(), &timing).await?;
    Ok(Kubernetes::new(connection, node, timing))
}

/// All objects, listed once; what is left out is named in warnings. Where no server is given, that of the
/// kubeconfig's current context, as with kubectl.
pub fn list(client: &Client, node: &str) -> anyhow::Result<Vec<Change>> {
    let client = with_default_kubeconfig(client);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listed = runtime.block_on(async { anyhow::Ok(open(&client, node).await?.list().await?) })?;
    listed.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    Ok(listed.changes)
}

/// The address of the server that would be asked; `None` where none is configured, or it has a name.
pub fn address(client: &Client) -> Option<IpAddr> {
    let client = with_default_kubeconfig(client);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(async {
        let timing = Timing::default();
        let (kubeconfig, master) = (client.kubeconfig.as_deref(), client.master.as_deref());
        Connection::open(kubeconfig, master, &timing).await.ok()?.address()
    })
}

/// Whether a server is configured, or there is a default for it.
pub fn is_configured(client: &Client) -> bool {
    let client = with_default_kubeconfig(client);
    let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    client.master.is_some() || client.kubeconfig.is_some() || in_pod
}

fn with_default_kubeconfig(client: &Client) -> Client {
    let mut client = client.clone();
    if client.master.is_none() {
        client.kubeconfig = client.kubeconfig.or_else(default_kubeconfig);
    }
    client
}

/// kubectl's: the first file of `KUBECONFIG`, else the one in the home folder, if it is there.
fn default_kubeconfig() -> Option<PathBuf> {
    let named = std::env::var_os("KUBECONFIG").and_then(|list| std::env::split_paths(&list).next());
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".kube/config"));
    named.filter(|path| !path.as_os_str().is_empty()).or_else(home).filter(|path| path.exists())
}
