//! The reconcile loop's body: changes in, one transaction out.

mod isolate;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::cluster::{Change, Index, ObjectName, Scheduler};
use crate::config::{self, Config};
use crate::conntrack::Cleaner;
use crate::dataplane::{DataPlane, Look};
use crate::events::{Event, Type, reasons};
use crate::forwarding::{Changes, Conflict, Desired, Key, Refused};
use crate::log::{Repeated, STEADY};
use crate::relay::{Backend, Relay};
use crate::reporting::Reporting;
use isolate::Aside;

/// How often everything is read and written in one sync, where others change rules in between.
const TRIES: usize = 4;

/// Holds the desired state of one node and brings a data plane to it.
pub struct Reconciler<D> {
    config: Config,
    index: Index,
    plane: D,
    /// `None` until the first sync, and after a failure: then the whole state is observed and planned.
    desired: Option<Desired>,
    conflicts: BTreeSet<Conflict>,
    refused: BTreeSet<Refused>,
    /// Ports of Services with more endpoints than can be used, that were told.
    overfull: BTreeSet<(ObjectName, Arc<str>)>,
    /// Schedulers that the kernel lacks, by the Services that ask for them; `None`: the default.
    lacking: BTreeSet<(Option<ObjectName>, Scheduler)>,
    notices: Vec<String>,
    host_addresses: Vec<std::net::IpAddr>,
    reporting: Reporting,
    drift: Drift,
    /// The next sync compares everything, once what changed until then is written.
    compare: bool,
    /// Repairs of what others changed, for the log.
    repairs: Repeated,
    /// Failures to read the host's addresses, for the log.
    unread_addresses: Repeated,
    conntrack: Option<Cleaner>,
    relay: Option<Arc<Relay>>,
    /// The first sync has to wait for the own Node.
    node_required: bool,
    aside: Aside,
    /// When metrics were last taken of the data plane without a sync.
    measured: Instant,
}

/// How often they are.
const MEASURES: Duration = Duration::from_secs(5);

/// Whether the next full sync is due to rules that another program changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drift {
    None,
    /// Somebody committed.
    Suspected,
    /// Rules of ours differ; counted, and not put right yet.
    Found,
}

/// What one sync did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whether everything was compared, not only what changed.
    pub full: bool,
    /// Services that were worked out.
    pub services: usize,
    /// Steps that were applied; 0: nothing was written.
    pub steps: usize,
    /// Time from the start of the sync to the end of the commit.
    pub elapsed: Duration,
}

impl<D: DataPlane> Reconciler<D> {
    /// Nothing is known yet; nothing is touched before [`sync`](Reconciler::sync).
    pub fn new(config: Config, plane: D, reporting: Reporting) -> Reconciler<D> {
        let index = Index::new(config.node_name.clone());
        Reconciler {
            config,
            index,
            plane,
            desired: None,
            conflicts: BTreeSet::new(),
            refused: BTreeSet::new(),
            overfull: BTreeSet::new(),
            lacking: BTreeSet::new(),
            notices: Vec::new(),
            host_addresses: Vec::new(),
            reporting,
            drift: Drift::None,
            compare: false,
            repairs: Repeated::default(),
            unread_addresses: Repeated::default(),
            conntrack: None,
            relay: None,
            node_required: false,
            aside: Aside::default(),
            measured: Instant::now(),
        }
    }

    /// The first sync is to wait for the own Node with an address: where a source has Nodes, rules without its
    /// addresses, zone and podCIDRs would only have to be replaced.
    pub fn require_node(&mut self) {
        self.node_required = true;
        self.reporting.status.wait_for_node(true);
    }

    /// Another configuration for the same node: the next sync is a full one.
    pub fn reconfigure(&mut self, config: Config) {
        self.config = config;
        self.begin_anew();
    }

    /// What the first sync waits for, of the own Node.
    pub fn missing_node(&self) -> Option<&'static str> {
        match self.index.node() {
            _ if !self.node_required => None,
            None => Some("there is no such Node"),
            Some(node) if node.addresses.is_empty() => {
                Some("its status has no address of type InternalIP or ExternalIP")
            }
            Some(_) => None,
        }
    }

    /// The own Node's name.
    pub fn node_name(&self) -> &str {
        &self.config.node_name
    }

    /// Connections that a sync makes stale are deleted from now on.
    pub fn clean_conntrack(&mut self, cleaner: Cleaner) {
        self.conntrack = Some(cleaner);
    }

    /// NodePorts on loopback addresses are relayed from now on.
    pub fn relay(&mut self, relay: Arc<Relay>) {
        self.relay = Some(relay);
    }

    /// The source has said everything once.
    pub fn listed(&self) {
        self.reporting.status.wait_for_node(self.missing_node().is_some());
        self.reporting.status.listed(Instant::now());
    }

    /// The Services that the kernel refuses and that are not served as they should be, sorted.
    pub fn set_aside(&self) -> impl ExactSizeIterator<Item = &ObjectName> {
        self.aside.names()
    }

    /// When a sync is due though nothing changed: a Service that was set aside is to be tried again.
    pub fn next_retry(&self) -> Option<tokio::time::Instant> {
        self.aside.next_retry()
    }

    /// Takes changes into the index.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.reporting.changed(&change);
            self.index.apply(change);
        }
        self.reporting.queued(&self.index);
    }

    /// The desired state as of the last sync.
    pub fn desired(&self) -> Option<&Desired> {
        self.desired.as_ref()
    }

    /// The next sync observes and compares everything: another program changed rules, or may have.
    pub fn compare(&mut self, look: Look) {
        if look == Look::Changed && !self.compare {
            self.reporting.metrics.foreign_changes.inc();
        }
        self.compare = true;
        if self.drift == Drift::None {
            self.drift = Drift::Suspected;
        }
    }

    /// Whether it does.
    pub fn is_to_compare(&self) -> bool {
        self.compare
    }

    /// All that is desired may be another: the next sync is a full one, and what differs says nothing about others.
    fn begin_anew(&mut self) {
        self.forget();
        if self.drift == Drift::Suspected {
            self.drift = Drift::None;
        }
    }

    /// What is in the kernel is not known any more.
    fn forget(&mut self) {
        if let (Some(desired), Some(conntrack)) = (self.desired.take(), &mut self.conntrack) {
            conntrack.forget(&desired);
        }
    }

    /// Connections survive it from now on when others remove all rules.
    pub fn hold(&mut self) {
        self.plane.hold();
    }

    /// Does what is to be done as time passes. After a failure the next sync is a full one.
    pub fn tend(&mut self) -> Result<(), D::Error> {
        let result = self.plane.tend();
        if result.is_err() {
            self.forget();
        }
        // What the kernel counts goes on without any sync.
        if self.measured.elapsed() >= MEASURES {
            self.measured = Instant::now();
            self.reporting.plane(&self.plane.measures());
        }
        result
    }

    /// Whether somebody else may have changed the rules.
    pub fn look(&mut self, thorough: bool) -> Result<Look, D::Error> {
        let result = self.plane.look(thorough);
        self.reporting.status.checked(result.is_ok());
        result
    }

    /// Looks whether the host's addresses changed; if so, the next sync is a full one.
    pub fn refresh_host_addresses(&mut self) {
        match config::host_addresses() {
            Ok(addresses) => {
                self.unread_addresses.ended();
                if addresses != self.host_addresses {
                    self.host_addresses = addresses;
                    self.begin_anew();
                }
            }
            Err(error) => {
                if let Some(times) = self.unread_addresses.again(&error) {
                    warn!(%error, times, "cannot read the host's addresses; those known before are used");
                }
            }
        }
    }

    /// Brings the data plane to what the index asks for. After an error the next sync is a full one.
    pub fn sync(&mut self) -> Result<Report, D::Error> {
        if !self.compare || !self.index.is_dirty() {
            return self.sync_once(self.compare);
        }
        // What changed since the last sync is not what others did: first the one, then the other.
        let changes = self.sync_once(false)?;
        if !self.compare {
            return Ok(changes);
        }
        let report = self.sync_once(true)?;
        Ok(Report { steps: changes.steps + report.steps, ..report })
    }

    fn sync_once(&mut self, compare: bool) -> Result<Report, D::Error> {
        let start = Instant::now();
        self.reporting.status.queued(start);
        let dirty = self.index.take_dirty();
        self.reporting.triggered(dirty.triggers);
        if dirty.node || dirty.service_cidrs {
            self.begin_anew();
        }
        let full = self.desired.is_none() || compare;
        let mut worked_out: Vec<ObjectName> = dirty.services.into_iter().collect();
        self.release(&mut worked_out);
        let partial = if full { None } else { self.sync_dirty(&worked_out)? };
        let (full, (steps, changes)) = match partial {
            Some(done) => (false, done),
            None => (true, self.sync_all_undisturbed()?),
        };
        self.tell(&changes);
        self.tell_schedulers(&changes);
        self.tell_odd_parts();
        self.update_relay(&changes, full);
        if let (Some(traffic), Some(desired)) = (&self.reporting.traffic, &self.desired) {
            traffic.follow(desired, &changes, full);
        }
        let elapsed = start.elapsed();
        if let Some(conntrack) = &mut self.conntrack {
            conntrack.applied(&changes);
        }
        let report = Report { full, services: changes.services, steps, elapsed };
        self.reporting.plane(&self.plane.measures());
        let first = !self.reporting.status.has_synced();
        let counts = self.index.counts();
        self.reporting.synced(&report, counts);
        if let Some(desired) = &self.desired {
            worked_out.extend(self.aside.names().cloned());
            let services = (!full).then_some(&*worked_out);
            self.reporting.worked_out(services, &self.index, desired.node());
        }
        log(&report, counts, first);
        Ok(report)
    }

    /// Others who change rules between reading and writing make the writing fail: then all is read again.
    fn sync_all_undisturbed(&mut self) -> Result<(usize, Changes), D::Error> {
        for _ in 1..TRIES {
            match self.sync_all() {
                Err(("apply", _)) if self.was_disturbed() => {}
                result => return result.map_err(|(stage, error)| self.failed(stage, error)),
            }
        }
        self.sync_all().map_err(|(stage, error)| self.failed(stage, error))
    }

    /// Whether others wrote, so that what failed is to be tried with all read again.
    fn was_disturbed(&mut self) -> bool {
        let disturbed = matches!(self.plane.look(true), Ok(Look::Changed));
        if disturbed {
            self.compare(Look::Changed);
        }
        disturbed
    }

    fn failed(&self, stage: &'static str, error: D::Error) -> D::Error {
        self.reporting.failed(stage);
        error
    }

    /// An error comes with the stage.
    fn sync_all(&mut self) -> Result<(usize, Changes), (&'static str, D::Error)> {
        // Set again only when all went well.
        self.forget();
        let view = self.config.view(&self.index, &self.host_addresses);
        if view.notices != self.notices {
            for notice in view.notices.iter().filter(|n| !self.notices.contains(n)) {
                warn!("{notice}");
            }
            self.notices = view.notices;
        }
        let observed = self.plane.observe(&view.settings).map_err(|error| {
            self.reporting.errors(&self.plane.errnos(&error));
            ("observe", error)
        })?;
        let adopted = self.plane.adopt(&observed);
        let (mut desired, mut changes) =
            Desired::adopting(&self.index, view.node, view.settings, adopted, Instant::now());
        let steps = self.apply_or_isolate(&mut desired, &mut changes, Some(&observed));
        let steps = steps.map_err(|error| ("apply", error))?;
        if std::mem::replace(&mut self.drift, Drift::None) == Drift::Found {
            self.reporting.metrics.drift_repaired.inc();
            let what =
                "another program had changed or removed rules of sluice; they are as they should be again";
            if let Some(times) = self.repairs.again(&what) {
                warn!(steps, times, "{what}");
            }
        }
        self.desired = Some(desired);
        self.compare = false;
        self.index.settle();
        // A Node that goes later stays as it was.
        self.node_required = false;
        let conflicts: BTreeSet<&Conflict> = changes.conflicts.iter().collect();
        self.conflicts.retain(|conflict| conflicts.contains(conflict));
        Ok((steps, changes))
    }

    fn found_drift(&mut self) {
        if self.drift == Drift::Suspected {
            self.drift = Drift::Found;
            self.reporting.metrics.drift_detected.inc();
            self.reporting.status.drifted();
        }
    }

    /// `None`: everything is to be compared.
    fn sync_dirty(&mut self, dirty: &[ObjectName]) -> Result<Option<(usize, Changes)>, D::Error> {
        let Some(mut desired) = self.desired.take() else { return Ok(None) };
        let mut changes = desired.update(&self.index, dirty.iter().cloned(), Instant::now());
        match self.apply_or_isolate(&mut desired, &mut changes, None) {
            Ok(steps) => {
                self.desired = Some(desired);
                self.index.settle();
                Ok(Some((steps, changes)))
            }
            Err(error) => {
                if let Some(conntrack) = &mut self.conntrack {
                    conntrack.failed(&changes);
                    conntrack.forget(&desired);
                }
                // Others may have been at our rules since the last look.
                if self.compare || self.was_disturbed() {
                    return Ok(None);
                }
                Err(self.failed("apply", error))
            }
        }
    }

    fn update_relay(&self, changes: &Changes, full: bool) {
        let (Some(relay), Some(desired)) = (&self.relay, &self.desired) else { return };
        if !full && changes.relayed.is_empty() {
            return;
        }
        let backend = |key: &Key| {
            let (frontend, service) = desired.frontend(key)?;
            Some(Backend { service: service.name.clone(), target: frontend.inside.clone() })
        };
        relay.update(changes.relayed.iter().map(|key| (*key, backend(key))), full);
    }

    /// Warns of parts of Services that the kernel refuses, while all else of them is in place.
    fn tell_odd_parts(&mut self) {
        for odd in self.plane.odd_parts() {
            let mut frontends = self.desired.iter().flat_map(Desired::frontends);
            let is_it = |key: &Key| odd.key.map_or(key.address == odd.address, |it| it == *key);
            let service = frontends.find(|(key, ..)| is_it(key)).map(|(_, _, service)| service);
            let note = format!("{}; all else is served", odd.error);
            match service {
                Some(service) => {
                    warn!(service = %service.name, "{note}");
                    let event = Event::warning(&service.name, &service.uid, reasons::SET_ASIDE, note);
                    self.reporting.events.send(event);
                }
                None => warn!("{note}"),
            }
        }
    }

    /// Warns of schedulers that the kernel lacks, once while they are asked for.
    fn tell_schedulers(&mut self, changes: &Changes) {
        let asks = |name: &ObjectName, s| self.index.newest(name).is_some_and(|it| it.scheduler == Some(s));
        self.lacking.retain(|(name, scheduler)| name.as_ref().is_none_or(|name| asks(name, *scheduler)));
        let default = self.config.ipvs.iter().map(|ipvs| (None, ipvs.scheduler));
        let chosen = changes.frontends.iter().filter_map(|(key, (_, after))| {
            let (_, service) = self.desired.as_ref()?.frontend(key)?;
            Some((Some(service.name.clone()), after.as_ref()?.scheduler?))
        });
        let mut told = Vec::new();
        for (name, scheduler) in default.chain(chosen) {
            let Some(instead) = self.plane.scheduler_instead(scheduler) else { continue };
            if self.lacking.contains(&(name.clone(), scheduler)) || told.contains(&(name.clone(), scheduler))
            {
                continue;
            }
            let note = format!(
                "the kernel of node {} lacks the IPVS scheduler {scheduler}; {instead} is used. modprobe ip_vs_{scheduler}, \
                 then restart the agent there",
                self.config.node_name
            );
            let event = match name.as_ref().and_then(|name| self.index.newest(name)) {
                Some(service) => {
                    warn!(service = %service.name, "{note}");
                    Event::warning(&service.name, &service.uid, reasons::SCHEDULER_MISSING, note)
                }
                None => {
                    warn!("{note}");
                    Event::node(Type::Warning, reasons::SCHEDULER_MISSING, note)
                }
            };
            self.reporting.events.send(event);
            told.push((name, scheduler));
        }
        self.lacking.extend(told);
    }

    /// Warns of what the operator should know, once while it lasts.
    fn tell(&mut self, changes: &Changes) {
        let Some(desired) = &self.desired else { return };
        let send = |name: &ObjectName, reason, note: String| {
            if let Some(service) = self.index.newest(name) {
                self.reporting.events.send(Event::warning(name, &service.uid, reason, note).everywhere());
            }
        };
        for (service, port, endpoints) in &changes.overfull {
            if self.overfull.insert((service.clone(), port.clone())) {
                let most = crate::forwarding::MAX_ENDPOINTS;
                warn!(%service, %port, endpoints, "only the first {most} endpoints are used");
                let note = format!("port {port:?} has {endpoints} endpoints; only the first {most} are used");
                send(service, reasons::TOO_MANY_ENDPOINTS, note);
            }
        }
        // A claim that lost before may have its address by now.
        let lasts = |c: &Conflict| {
            desired.frontend(&c.key).is_some_and(|(_, s)| s.name == c.winner)
                || desired.cluster_ip_owners(c.key.address).iter().any(|s| s.name == c.winner)
        };
        self.conflicts.retain(lasts);
        for conflict in changes.conflicts.iter().filter(|conflict| lasts(conflict)) {
            if self.conflicts.insert(conflict.clone()) {
                let Conflict { loser, key, kind, winner } = conflict;
                self.reporting.metrics.refused_claims.inc();
                warn!(service = %loser, %winner, "{key} ({kind}) is not served for this Service: it belongs to {winner}");
                let note =
                    format!("{key} ({kind}) is not served for this Service: it belongs to Service {winner}");
                send(loser, reasons::ADDRESS_TAKEN, note);
            }
        }
        self.refused.retain(|r| self.index.service(&r.service).is_some());
        for refused in &changes.refused {
            if self.refused.insert(refused.clone()) {
                let Refused { service, key, kind } = refused;
                self.reporting.metrics.refused_claims.inc();
                warn!(%service, "{key} ({kind}) is not served: this agent's flags do not allow Services this address");
                let note = format!(
                    "{key} ({kind}) is not served: the node agent's flags do not allow Services this address"
                );
                send(service, reasons::ADDRESS_NOT_ALLOWED, note);
            }
        }
    }
}

/// One line a sync, always with the same fields. The first one is told to everybody, the others to those who ask.
fn log(report: &Report, (services, slices, endpoints): (usize, usize, usize), first: bool) {
    // A target has to be a constant, so that those whom nobody listens to cost nothing.
    macro_rules! synced {
        ($target:expr) => {
            info!(
                target: $target,
                sync = if report.full { "full" } else { "partial" },
                worked_out = report.services,
                steps = report.steps,
                services,
                slices,
                endpoints,
                elapsed_ms = report.elapsed.as_secs_f64() * 1e3,
                "synced"
            )
        };
    }
    if first { synced!(module_path!()) } else { synced!(STEADY) }
}
