//! What the reconcile loop tells the outside: health, metrics, health check ports.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use rustc_hash::FxHashMap;

use crate::cluster::{Change, Family, Index, ObjectName};
use crate::dataplane::Measures;
use crate::dataplane::ipvs::traffic::Traffic;
use crate::events::Events;
use crate::forwarding::{Local, NodeView, local};
use crate::health::Status;
use crate::health::services::ServiceChecks;
use crate::metrics::Metrics;
use crate::reconcile::Report;

/// The most changes of slices whose time is kept while no sync succeeds.
const MAX_TRIGGERS: usize = 1 << 16;

/// Shared with the servers, and what the loop alone needs to keep them right.
#[derive(Debug)]
pub struct Reporting {
    /// Health.
    pub status: Arc<Status>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Health check ports.
    pub service_checks: Arc<ServiceChecks>,
    /// Where events are given.
    pub events: Events,
    /// What IPVS carries, where that is asked for.
    pub traffic: Option<Arc<Traffic>>,
    /// Services that want local endpoints; those for which nothing is to be told are not here.
    locals: FxHashMap<ObjectName, Local>,
    totals: Totals,
    triggers: Vec<(Family, SystemTime)>,
    /// How many sets there are that come and go.
    limited_sets: usize,
    /// Older changes were made known to another process than this.
    start: SystemTime,
}

/// Service ports without local endpoints that want some, by policy and family.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    internal: [i64; 2],
    external: [i64; 2],
}

impl Totals {
    fn replace(&mut self, before: Option<Local>, after: Option<Local>) {
        let (before, after) = (before.unwrap_or_default(), after.unwrap_or_default());
        for family in Family::ALL.map(|f| f as usize) {
            let change =
                |of: fn(&Local) -> [u32; 2]| i64::from(of(&after)[family]) - i64::from(of(&before)[family]);
            self.internal[family] += change(|l| l.without_internal);
            self.external[family] += change(|l| l.without_external);
        }
    }
}

impl Reporting {
    /// Nothing is known yet.
    pub fn new(metrics: Arc<Metrics>) -> Reporting {
        Reporting {
            status: Arc::default(),
            metrics,
            service_checks: Arc::default(),
            events: Events::default(),
            traffic: None,
            locals: FxHashMap::default(),
            totals: Totals::default(),
            triggers: Vec::new(),
            limited_sets: 0,
            start: SystemTime::now(),
        }
    }

    /// A change goes into the index.
    pub fn changed(&self, change: &Change) {
        let metrics = &self.metrics;
        let (total, pending) = match change {
            Change::Service(..) => (&metrics.service_changes, &metrics.service_changes_pending),
            Change::EndpointSlice(..) => (&metrics.endpoint_changes, &metrics.endpoint_changes_pending),
            Change::Node(..) | Change::ServiceCidr(..) => return,
        };
        total.inc();
        pending.inc();
    }

    /// Changes are in the index; a sync will come.
    pub fn queued(&self, index: &Index) {
        self.status.set_node(index.node().filter(|_| !index.is_node_gone()));
        self.status.queued(Instant::now());
        let now = seconds(SystemTime::now());
        self.metrics.last_queued.iter().for_each(|gauge| gauge.set(now));
    }

    /// When the changes of slices happened that the next sync takes in.
    pub fn triggered(&mut self, triggers: Vec<(Family, SystemTime)>) {
        let room = MAX_TRIGGERS.saturating_sub(self.triggers.len());
        let start = self.start;
        self.triggers.extend(triggers.into_iter().filter(|(_, at)| *at > start).take(room));
    }

    /// The kernel refused a transaction; it may do with less.
    pub fn refused(&self) {
        self.metrics.refused_transactions.inc();
    }

    /// The kernel answered with errors.
    pub fn errors(&self, errnos: &[Errno]) {
        errnos.iter().for_each(|e| self.metrics.netlink_errors.with_label_values(&[&format!("{e:?}")]).inc());
    }

    /// What can be measured of the data plane.
    pub fn plane(&mut self, measures: &Measures) {
        let [sent, received] = &self.metrics.netlink_bytes;
        let dropped = &self.metrics.invalid_dropped;
        let [bytes_out, bytes_in] = measures.traffic;
        for (counter, now) in [(sent, bytes_out), (received, bytes_in), (dropped, measures.invalid_dropped)] {
            counter.inc_by(now.saturating_sub(counter.get()));
        }
        let sets = measures.sets.iter().filter(|(_, _, _, limit)| limit.is_some()).count();
        if std::mem::replace(&mut self.limited_sets, sets) > sets {
            self.metrics.set_elements.reset();
            self.metrics.set_limit.reset();
        }
        for (family, set, elements, limit) in &measures.sets {
            let labels = &[&*family.to_string(), &**set];
            self.metrics.set_elements.with_label_values(labels).set(*elements as i64);
            if let Some(limit) = limit {
                self.metrics.set_limit.with_label_values(labels).set(i64::from(*limit));
            }
        }
    }

    /// A sync failed, in this stage.
    pub fn failed(&self, stage: &'static str) {
        self.metrics.failures.with_label_values(&[stage]).inc();
        self.metrics.sync_failures.iter().for_each(|counter| counter.inc());
        self.status.sync_failed(Instant::now());
    }

    /// A sync is done. `counts` are the Services, slices and endpoints there are.
    pub fn synced(&mut self, report: &Report, counts: (usize, usize, usize)) {
        let now = SystemTime::now();
        self.status.synced(now);
        self.measure(report, counts, now);
    }

    /// The rules of these Services, `None`: of all, are in place.
    pub fn worked_out(&mut self, services: Option<&[ObjectName]>, index: &Index, node: &NodeView) {
        match services {
            Some(services) => self.update_locals(services, index, node),
            None => self.replace_locals(index, node),
        }
        let Totals { internal, external } = self.totals;
        for family in Family::ALL.map(|f| f as usize) {
            self.metrics.no_local_internal[family].set(internal[family]);
            self.metrics.no_local_external[family].set(external[family]);
        }
    }

    fn measure(&mut self, report: &Report, counts: (usize, usize, usize), now: SystemTime) {
        let metrics = &self.metrics;
        let elapsed = report.elapsed.as_secs_f64();
        let kind = if report.full { &metrics.full_sync_duration } else { &metrics.partial_sync_duration };
        metrics.sync_duration.iter().chain(kind).for_each(|histogram| histogram.observe(elapsed));
        metrics.last_sync.iter().for_each(|gauge| gauge.set(seconds(now)));
        metrics.sync_steps.observe(report.steps as f64);
        metrics.service_changes_pending.set(0);
        metrics.endpoint_changes_pending.set(0);
        for (family, at) in self.triggers.drain(..) {
            let latency = now.duration_since(at).unwrap_or(Duration::ZERO);
            metrics.network_programming[family as usize].observe(latency.as_secs_f64());
        }
        let (services, slices, endpoints) = counts;
        for (kind, count) in [("service", services), ("endpointslice", slices), ("endpoint", endpoints)] {
            metrics.objects.with_label_values(&[kind]).set(count as i64);
        }
    }

    fn update_locals(&mut self, services: &[ObjectName], index: &Index, node: &NodeView) {
        let mut checks = Vec::new();
        for name in services {
            let after = local_of(name, index, node);
            let before = match after {
                Some(after) => self.locals.insert(name.clone(), after),
                None => self.locals.remove(name),
            };
            self.totals.replace(before, after);
            let after = after.and_then(|l| l.health_check);
            if let (Some(_), Some(service)) = (after, index.newest(name)) {
                self.service_checks.identify(name, &service.uid);
            }
            if before.and_then(|l| l.health_check) != after {
                checks.push((name.clone(), after));
            }
        }
        if !checks.is_empty() {
            self.service_checks.update(checks);
        }
    }

    fn replace_locals(&mut self, index: &Index, node: &NodeView) {
        let all = index.names();
        self.locals = all.filter_map(|n| Some((n.clone(), local_of(n, index, node)?))).collect();
        self.totals = Totals::default();
        self.locals.values().for_each(|local| self.totals.replace(None, Some(*local)));
        let checks = self.locals.iter().filter_map(|(name, l)| Some((name.clone(), l.health_check?)));
        let checks: FxHashMap<_, _> = checks.collect();
        for service in checks.keys().filter_map(|name| index.newest(name)) {
            self.service_checks.identify(&service.name, &service.uid);
        }
        self.service_checks.replace(checks, &node.node_port_addresses);
    }
}

fn local_of(name: &ObjectName, index: &Index, node: &NodeView) -> Option<Local> {
    let service = index.newest(name)?;
    let mut local = local(service, index.slices_of(name), node);
    if let Some(check) = local.health_check.as_mut().filter(|_| index.is_held(name)) {
        // Its rules are not what they should be: load balancers do better elsewhere.
        check.endpoints.iter_mut().flatten().for_each(|ready| *ready = 0);
    }
    (local != Local::default()).then_some(local)
}

/// Seconds since the epoch.
pub(crate) fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests;
