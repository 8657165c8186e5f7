//! What each Service port's virtual services have carried, read when somebody asks.
//!
//! A Service port has a virtual service for each of its addresses, which come and go; the kernel counts from the
//! making of each, and brings its counts up to date every two seconds. Here they are added up, so that a port's counts
//! only rise. What a virtual service had carried before this process began does not count.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use tracing::warn;

use super::Error;
use super::kernel::Kernel;
use super::model::{Key, ObservedService, Statistics};
use crate::cluster::ObjectName;
use crate::forwarding::{Changes, Desired};
use crate::log::Repeated;

/// Older than this the kernel is asked again: 10,000 virtual services take 0.14 s in an emulated machine (`benches/ipvs`).
const FRESH: Duration = Duration::from_secs(5);

/// A Service and the name of its port.
pub type Port = (ObjectName, Arc<str>);

/// The counts of all Service ports; shared by the loop, which says whose an address is, and those who ask.
#[derive(Debug)]
pub struct Traffic {
    // Apart, so that the loop never waits for the kernel's answer.
    ports: Mutex<FxHashMap<Key, Port>>,
    counted: Mutex<Counted>,
}

#[derive(Debug)]
struct Counted {
    kernel: Kernel,
    read: Instant,
    failing: Repeated,
    tally: Tally,
}

/// What is added up.
#[derive(Clone, Debug, Default)]
struct Tally {
    last: FxHashMap<Key, Statistics>,
    totals: BTreeMap<Port, Statistics>,
}

impl Traffic {
    /// Counts from now on, in the network namespace of the calling thread.
    pub fn open() -> Result<Traffic, Error> {
        let mut kernel = Kernel::open()?;
        let mut tally = Tally::default();
        tally.add(&kernel.services()?, &FxHashMap::default());
        let counted = Counted { kernel, read: Instant::now(), failing: Repeated::default(), tally };
        Ok(Traffic { ports: Mutex::default(), counted: Mutex::new(counted) })
    }

    /// Whose each key is, after a change of the desired state; `all`: everything was worked out again.
    pub fn follow(&self, desired: &Desired, changes: &Changes, all: bool) {
        let mut ports = lock(&self.ports);
        if all {
            ports.clear();
        }
        for key in changes.frontends.keys() {
            match desired.port_of(key) {
                Some(port) => ports.insert(*key, port),
                None => ports.remove(key),
            };
        }
    }

    /// What each Service port has carried; at most some seconds old. Where the kernel cannot be asked, what was known.
    pub fn totals(&self) -> BTreeMap<Port, Statistics> {
        let Counted { kernel, read, failing, tally } = &mut *lock(&self.counted);
        if read.elapsed() >= FRESH {
            *read = Instant::now();
            match kernel.services() {
                Ok(services) => {
                    failing.ended();
                    tally.add(&services, &lock(&self.ports));
                }
                Err(error) => {
                    if let Some(times) = failing.again(&error) {
                        warn!(%error, times, "the counts of IPVS could not be read; metrics have the last ones");
                    }
                }
            }
        }
        tally.totals.clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tally {
    fn add(&mut self, services: &FxHashMap<Key, ObservedService>, ports: &FxHashMap<Key, Port>) {
        let until_now = |port: &Port| self.totals.get(port).copied().unwrap_or_default();
        let mut totals: BTreeMap<Port, Statistics> =
            ports.values().map(|port| (port.clone(), until_now(port))).collect();
        for (key, service) in services.iter().filter(|(_, service)| service.is_ours()) {
            let now = service.statistics;
            let before = self.last.get(key).copied().unwrap_or_default();
            if let Some(total) = ports.get(key).and_then(|port| totals.get_mut(port)) {
                total.add(now.since(before));
            }
        }
        // The kernel gives a page at a time and goes on by counting: what is left out may only have been passed over.
        self.last.retain(|key, _| ports.contains_key(key));
        self.last.extend(services.iter().map(|(key, service)| (*key, service.statistics)));
        self.totals = totals;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Protocol;
    use crate::dataplane::ipvs::model::OURS;

    fn key(last: u8) -> Key {
        Key { address: [10, 96, 0, last].into(), protocol: Protocol::Tcp, port: 80 }
    }

    fn port(name: &str) -> Port {
        (ObjectName::new("ns", name), "http".into())
    }

    fn services(counts: &[(u8, u64)]) -> FxHashMap<Key, ObservedService> {
        let service = |connections| ObservedService {
            flags: OURS,
            statistics: Statistics { connections, ..Statistics::default() },
            ..ObservedService::default()
        };
        counts.iter().map(|(last, count)| (key(*last), service(*count))).collect()
    }

    #[test]
    fn counts_of_a_port_only_rise_while_its_addresses_come_and_go() {
        let mut tally = Tally::default();
        tally.add(&services(&[(1, 100)]), &FxHashMap::default());
        let mut ports: FxHashMap<Key, Port> =
            [(key(1), port("a")), (key(2), port("a")), (key(3), port("b"))].into_iter().collect();
        let read = |tally: &mut Tally, ports: &FxHashMap<Key, Port>, counts: &[(u8, u64)]| {
            tally.add(&services(counts), ports);
            tally.totals.values().map(|total| total.connections).collect::<Vec<_>>()
        };
        assert_eq!(
            read(&mut tally, &ports, &[(1, 103), (2, 5), (9, 7)]),
            [8, 0],
            "not what was before the start"
        );
        assert_eq!(read(&mut tally, &ports, &[(1, 103), (3, 1)]), [8, 1], "an address is gone");
        assert_eq!(read(&mut tally, &ports, &[(1, 104), (2, 2), (3, 1)]), [11, 1], "and made anew");
        assert_eq!(
            read(&mut tally, &ports, &[(1, 4), (2, 2), (3, 2)]),
            [15, 2],
            "another one made anew meanwhile"
        );
        ports.remove(&key(3));
        assert_eq!(read(&mut tally, &ports, &[(1, 4), (2, 2), (3, 9)]), [15], "a Service is gone");
    }
}
