//! Every scheduler, and one that the kernel lacks.

use sluice::cluster::Scheduler;
use sluice::config;
use sluice::events::{Regarding, Type};

use super::space::run;
use super::world::{Agent, endpoints, entries, on_node, plane, plane_with, service, syncing};

#[test]
fn schedulers() {
    every_scheduler_of_the_kernel();
    run("rmmod", &["ip_vs_lblcr"], "");
    a_scheduler_that_the_kernel_lacks_gives_way_to_the_default();
    who_asks_for_it_is_told_once();
}

fn every_scheduler_of_the_kernel() {
    on_node(|| {
        let (mut agent, _) =
            Agent::start(plane(), vec![service(|_| {}), endpoints(&["10.128.0.1", "10.128.0.2"])]);
        for scheduler in Scheduler::all() {
            agent.change([service(|service| service.scheduler = Some(scheduler))]);
            let lines = entries("-t 10.96.0.10:80");
            assert!(lines[0].starts_with(&format!("-A -t 10.96.0.10:80 -s {scheduler} -b ")), "{lines:?}");
            assert_eq!(lines.len(), 3, "{lines:?}");
            assert!(agent.resync().is_empty(), "{scheduler} is read back");
        }
    });
}

#[test]
fn affinity_is_persistence_with_its_timeout() {
    on_node(|| {
        let sticky = service(|service| service.affinity = Some(600));
        let (mut agent, _) = Agent::start(plane(), vec![sticky, endpoints(&["10.128.0.1"])]);
        assert_eq!(entries("-A -t 10.96.0.10:80"), ["-A -t 10.96.0.10:80 -s rr -p 600 -b flag-3"]);
        assert!(agent.resync().is_empty());
        agent.change([service(|_| {})]);
        assert_eq!(entries("-A -t 10.96.0.10:80"), ["-A -t 10.96.0.10:80 -s rr -b flag-3"]);
        assert!(agent.resync().is_empty());
    });
}

/// There is no modprobe in the machine: what is unloaded stays away, so this comes last.
fn a_scheduler_that_the_kernel_lacks_gives_way_to_the_default() {
    on_node(|| {
        let config = config::Ipvs { scheduler: Scheduler::Wlc, ..config::Ipvs::default() };
        let lacking = service(|service| service.scheduler = Some(Scheduler::Lblcr));
        let (mut agent, _) = Agent::start(plane_with(config), vec![lacking, endpoints(&["10.128.0.1"])]);
        assert_eq!(
            entries("-t 10.96.0.10:80"),
            ["-A -t 10.96.0.10:80 -s wlc -b flag-3", "-a -t 10.96.0.10:80 -r 10.128.0.1:8080 -m -w 1"]
        );
        assert!(agent.resync().is_empty(), "and is not tried again");
    });
}

fn who_asks_for_it_is_told_once() {
    on_node(|| {
        let mut sync = syncing();
        let lacking = || service(|service| service.scheduler = Some(Scheduler::Lblcr));
        let told = sync(vec![lacking(), endpoints(&["10.128.0.1"])]);
        let [event] = &told[..] else { panic!("{told:?}") };
        assert!(
            matches!(&event.regarding, Regarding::Service { name, .. } if &*name.name == "web"),
            "{event:?}"
        );
        assert_eq!((event.reason, event.kind), ("SchedulerMissing", Type::Warning));
        let remedy =
            "lacks the IPVS scheduler lblcr; rr is used. modprobe ip_vs_lblcr, then restart the agent";
        assert!(event.note.contains(remedy), "{event:?}");
        assert_eq!(entries("-A -t 10.96.0.10:80"), ["-A -t 10.96.0.10:80 -s rr -b flag-3"]);
        assert_eq!(sync(vec![endpoints(&["10.128.0.2"])]), []);
        assert_eq!(sync(vec![service(|_| {})]), []);
        assert_eq!(sync(vec![lacking()]).len(), 1, "and again when it asks again");
    });
}
