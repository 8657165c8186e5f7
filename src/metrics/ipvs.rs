//! What IPVS has carried by Service port, read when somebody asks.

use std::collections::BTreeMap;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Error, IntCounterVec, Opts};

use super::{IPVS_BYTES, IPVS_CONNECTIONS, IPVS_PACKETS, Named};
use crate::dataplane::ipvs::model::Statistics;
use crate::dataplane::ipvs::traffic::Port;

/// Not `namespace` and `service`: those are labels of the target that is scraped.
const LABELS: [&str; 4] = ["service_namespace", "service_name", "service_port", "direction"];

/// Collects from IPVS.
pub(super) struct Ipvs<F> {
    totals: F,
    descriptions: Vec<Desc>,
}

impl<F> Ipvs<F> {
    pub(super) fn new(totals: F) -> Result<Self, Error> {
        let descriptions =
            counters()?.iter().flat_map(|vec| vec.desc().into_iter().cloned().collect::<Vec<_>>()).collect();
        Ok(Ipvs { totals, descriptions })
    }
}

/// Made anew for each answer, as those of the API server are.
fn counters() -> Result<[IntCounterVec; 3], Error> {
    let vec = |(name, help): Named, labels| IntCounterVec::new(Opts::new(name, help), labels);
    Ok([vec(IPVS_CONNECTIONS, &LABELS[..3])?, vec(IPVS_PACKETS, &LABELS)?, vec(IPVS_BYTES, &LABELS)?])
}

impl<F: Fn() -> BTreeMap<Port, Statistics> + Send + Sync> Collector for Ipvs<F> {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // They were made once before, with the same names.
        let Ok([connections, packets, bytes]) = counters() else { return Vec::new() };
        for ((service, port), total) in (self.totals)() {
            let labels = [&*service.namespace, &*service.name, &*port];
            connections.with_label_values(&labels).inc_by(total.connections);
            for (direction, counts) in
                [("in", [total.packets_in, total.bytes_in]), ("out", [total.packets_out, total.bytes_out])]
            {
                let labels = [labels[0], labels[1], labels[2], direction];
                packets.with_label_values(&labels).inc_by(counts[0]);
                bytes.with_label_values(&labels).inc_by(counts[1]);
            }
        }
        [connections, packets, bytes].iter().flat_map(Collector::collect).collect()
    }
}
