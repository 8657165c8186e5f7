//! `sluice run`.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::api_server;
use super::logging;
use super::reload;
use super::servers;
use super::settings::{File, Settings};
use crate::app;
use crate::check;
use crate::config::Config;
use crate::conntrack::Cleaner;
use crate::dataplane::DataPlane;
use crate::dataplane::ipvs::Ipvs;
use crate::dataplane::ipvs::traffic::Traffic;
use crate::dataplane::nftables::Nftables;
use crate::events::{Event, Events, Type, reasons};
use crate::host::kube_proxy::running;
use crate::metrics::Metrics;
use crate::reconcile::Reconciler;
use crate::relay::Relay;
use crate::reporting::Reporting;
use crate::source::manifests::Manifests;
use crate::sysctl;
use crate::takeover;

/// How many batches of changes may wait for the reconcile loop.
const QUEUE: usize = 64;

#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pub(super) settings: Settings,
}

impl Run {
    pub fn execute(self) -> anyhow::Result<()> {
        let flags = &self.settings.flags.0;
        if flags.is_on("cleanup") {
            return super::cleanup::Cleanup { kube_proxy: self.takes_over(), force: false }.execute();
        }
        let file = self.settings.file()?;
        let config = self.settings.config(file.as_ref())?;
        if let Some(path) = flags.text("write-config-to") {
            logging::warnings_only();
            config.warnings.iter().for_each(|warning| warn!("{warning}"));
            return self.write_config(file.as_ref(), Path::new(path));
        }
        logging::start(config.logging);
        config.notices.iter().for_each(|notice| info!("{notice}"));
        config.warnings.iter().for_each(|warning| warn!("{warning}"));
        if flags.is_on("init-only") {
            sysctl::apply_and_warn(&config, &Events::default());
            info!("initialized; what is left needs CAP_NET_ADMIN only");
            return Ok(());
        }
        set_oom_score_adj(config.oom_score_adj);
        raise_file_limit();
        let manifests = self.settings.manifests.as_ref().map(Manifests::open).transpose()?;
        match &config.ipvs {
            None => self.reconcile(config, Nftables::open()?, None, file, manifests),
            Some(ipvs) => {
                let plane = Ipvs::open(ipvs.clone(), config.sync_period)?;
                let traffic = ipvs.service_metrics.then(Traffic::open).transpose()?;
                self.reconcile(config, plane, traffic, file, manifests)
            }
        }
    }

    fn takes_over(&self) -> bool {
        self.settings.takeover.unwrap_or_default()
    }

    fn write_config(&self, file: Option<&File>, path: &Path) -> anyhow::Result<()> {
        let yaml = self.settings.merged(file)?.configuration.to_yaml().map_err(anyhow::Error::from_boxed)?;
        std::fs::write(path, yaml).with_context(|| path.display().to_string())?;
        eprintln!("wrote {}", path.display());
        Ok(())
    }

    /// From files, or from the API server.
    fn reconcile<D: DataPlane>(
        &self,
        config: Config,
        plane: D,
        traffic: Option<Traffic>,
        file: Option<File>,
        manifests: Option<Manifests>,
    ) -> anyhow::Result<()> {
        let metrics = Arc::new(Metrics::new()?);
        let manifests = manifests.map(|m| m.counting(metrics.invalid_objects.clone()));
        let mut reporting = Reporting::new(metrics);
        if let Some(traffic) = traffic.map(Arc::new) {
            reporting.traffic = Some(traffic.clone());
            reporting.metrics.watch_ipvs(move || traffic.totals())?;
        }
        let mut queue = None;
        if manifests.is_none() {
            let (events, receiver) = Events::queue(reporting.metrics.events.clone());
            events.send(Event::node(Type::Normal, reasons::STARTING, ""));
            reporting.events = events;
            queue = Some(receiver);
        }
        let merged = self.settings.merged(file.as_ref())?;
        let configz = serde_json::json!({"kubeproxy.config.k8s.io": merged.configuration}).to_string();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let result = runtime.block_on(async {
            let metrics = reporting.metrics.clone();
            let mut servers = servers::start(&config.servers, &reporting, plane.name(), configz)?;
            let (tx, rx) = mpsc::channel(QUEUE);
            let source = match manifests {
                Some(manifests) => tokio::spawn(manifests.run(tx)),
                None => {
                    let source = api_server::open(&config.client, &config.node_name).await?;
                    let mut source = source.counting(reporting.metrics.invalid_objects.clone());
                    if let Some(queue) = queue {
                        let counter = reporting.metrics.events.clone();
                        source = source.recording(reporting.events.clone(), queue, counter);
                    }
                    reporting.metrics.watch_api(source.status())?;
                    tokio::spawn(source.run(tx))
                }
            };
            // Not before it is sure that this process goes on.
            sysctl::apply_and_warn(&config, &reporting.events);
            let after_first_sync = takeover::Takeover {
                remove: self.takes_over(),
                ipvs: config.ipvs.is_none(),
                metrics: config.servers.metrics.unwrap_or(running::METRICS),
            };
            tokio::spawn(after_first_sync.run(reporting.status.clone()));
            let gauges = [
                ("forward", reporting.metrics.forward_drops.clone()),
                ("node-ports", reporting.metrics.node_port_drops.clone()),
            ];
            tokio::spawn(check::watch(config.clone(), gauges, reporting.events.clone()));
            let (min_sync_period, followed) = (config.min_sync_period, config.clone());
            let events = reporting.events.clone();
            // Without NodePorts on loopback addresses, which a changed configuration may ask for, it only waits.
            let relay = Arc::new(Relay::new(reporting.metrics.clone()));
            let mut reconciler = Reconciler::new(config, plane, reporting);
            if self.settings.manifests.is_none() {
                reconciler.require_node();
            }
            if self.settings.hold_connections.unwrap_or_default() {
                reconciler.hold();
            }
            reconciler.relay(relay.clone());
            servers.spawn(relay.serve());
            match Cleaner::start(Some(metrics)) {
                Ok(cleaner) => reconciler.clean_conntrack(cleaner),
                Err(error) => warn!(%error, "stale connections are not deleted"),
            }
            let (sender, configs) = mpsc::channel(1);
            let anew = tokio::select! {
                () = app::run(reconciler, rx, min_sync_period, configs) => false,
                () = reload::follow(&self.settings, file, followed, sender, &events) => true,
            };
            source.abort();
            if anew {
                reload::start_anew()?;
            }
            Ok(())
        });
        // The process ends with this. Taken apart, the runtime would make a task panic that looks at a clock just then.
        std::mem::forget(runtime);
        result
    }
}

/// As a privileged process only; upstream, too, goes on without it.
fn set_oom_score_adj(value: i32) {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", value.to_string()) {
        info!(%error, value, "oom_score_adj stays as it is");
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
