//! Changes of the configuration file while the agent runs.

use std::convert::Infallible;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::api_server;
use super::settings::{File, Settings};
use crate::config::Config;
use crate::events::Events;
use crate::sysctl;

/// How often the file is looked at. The files of a ConfigMap take a minute to change, anyway.
const INTERVAL: Duration = Duration::from_secs(2);

/// Follows the file. What can be changed in a running agent goes to `configs`; this ends when a change needs a new
/// process. What makes no sense changes nothing: the next start would fail.
pub async fn follow(
    settings: &Settings,
    file: Option<File>,
    config: Config,
    configs: mpsc::Sender<Config>,
    events: &Events,
) {
    let Some(mut file) = file else { return std::future::pending().await };
    let path = file.path.display().to_string();
    let mut current = config;
    loop {
        let new = next(settings, &mut file).await;
        if settings.manifests.is_none()
            && let Err(error) = api_server::open(&new.client, &new.node_name).await
        {
            warn!("{path} changed and cannot be used; the old configuration stays: {error}");
            continue;
        }
        if !current.differs_in_traffic_only(&new) {
            info!("{path} changed: starting anew, with the rules in place");
            return;
        }
        new.warnings.iter().filter(|w| !current.warnings.contains(w)).for_each(|warning| warn!("{warning}"));
        if new.conntrack != current.conntrack {
            sysctl::apply_and_warn(&new, events);
        }
        info!("{path} changed: its settings are put into force");
        current = new.clone();
        // Nobody listens any more: the agent ends.
        if configs.send(new).await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Waits for other content that makes sense.
async fn next(settings: &Settings, file: &mut File) -> Config {
    loop {
        tokio::time::sleep(INTERVAL).await;
        // While a ConfigMap's folder is replaced there may be no file.
        let Ok(text) = std::fs::read_to_string(&file.path) else { continue };
        if text == file.text {
            continue;
        }
        file.text = text;
        match settings.config(Some(file)) {
            Ok(config) => return config,
            Err(error) => {
                let path = file.path.display();
                warn!("{path} changed and cannot be used; the old configuration stays: {error:#}");
            }
        }
    }
}

/// Becomes the same program with the same command line: same process id, no file or socket left open.
pub fn start_anew() -> anyhow::Result<Infallible> {
    let mut arguments = std::env::args_os();
    // The name decides what the program is.
    let name = arguments.next().unwrap_or_else(|| "sluice".into());
    let error = Command::new("/proc/self/exe").arg0(name).args(arguments).exec();
    Err(error).context("the configuration changed, and the program cannot be started anew in its place")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::merge;

    fn config(body: &str) -> Config {
        let header = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        let merged = merge::merge(&merge::Given::default(), Some(&format!("{header}{body}")))
            .expect("a configuration");
        Config::new(&merged, "node1").expect("it makes sense")
    }

    #[tokio::test(start_paused = true)]
    async fn what_makes_sense_is_passed_on_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.conf");
        let header = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        let write = |body: &str| std::fs::write(&path, format!("{header}{body}")).expect("it can be written");
        write("mode: nftables\n");
        let line = ["x", "--manifests=.", &format!("--config={}", path.display())].map(String::from);
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            settings: Settings,
        }
        let settings = <Line as clap::Parser>::parse_from(line).settings;
        let file = settings.file().expect("it can be read");
        let current = settings.config(file.as_ref()).expect("it makes sense");
        let (sender, mut configs) = mpsc::channel(1);
        let events = Events::default();
        let mut follow = std::pin::pin!(follow(&settings, file, current, sender, &events));
        let hour = Duration::from_secs(3600);
        let mut nothing_comes = async |why: &str| {
            assert!(tokio::time::timeout(hour, &mut follow).await.is_err(), "{why}");
            configs.try_recv().ok()
        };
        assert_eq!(nothing_comes("nothing changed").await, None);
        write("mode: magic\n");
        assert_eq!(nothing_comes("nonsense").await, None);
        std::fs::remove_file(&path).expect("it can be removed");
        assert_eq!(nothing_comes("no file").await, None);
        write("mode: nftables\nclusterCIDR: 10.0.0.0/8\n");
        let new = nothing_comes("it is done in place").await.expect("a configuration");
        assert_eq!(new.detect_local, config("clusterCIDR: 10.0.0.0/8\n").detect_local);
        write("mode: nftables\nhealthzBindAddress: 127.0.0.1:1\n");
        assert!(tokio::time::timeout(hour, &mut follow).await.is_ok(), "a new process");
    }

    #[test]
    fn only_what_forwarding_reads_is_changed_in_place() {
        let before = config("mode: nftables\n");
        for body in ["clusterCIDR: 10.0.0.0/8", "nftables: {masqueradeAll: true}", "nodePortAddresses: [all]"]
        {
            assert!(before.differs_in_traffic_only(&config(&format!("mode: nftables\n{body}\n"))), "{body}");
        }
        for body in [
            "metricsBindAddress: 127.0.0.1:1",
            "hostnameOverride: other",
            "clientConnection: {kubeconfig: /x}",
            "logging: {verbosity: 4}",
            "oomScoreAdj: 3",
            "nodePortAddresses: [localhost]",
        ] {
            assert!(!before.differs_in_traffic_only(&config(&format!("mode: nftables\n{body}\n"))), "{body}");
        }
        assert!(!before.differs_in_traffic_only(&config("mode: ipvs\n")), "another data plane");
    }
}
