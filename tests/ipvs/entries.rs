//! Entries of others, of an earlier run and of kube-proxy; endpoints that went.

use sluice::config;
use sluice::dataplane::ipvs::{cleanup, plan::Whose};
use sluice::dataplane::nftables::Nftables;
use sluice::dataplane::{DataPlane, Look};
use sluice::forwarding::Desired;

use super::events::{node, settings};
use super::space::run;
use super::world::{Agent, endpoints, entries, no_service, on_node, plane, plane_with, service, syncing};

fn ipvsadm(line: &str) {
    run("ipvsadm", &line.split_whitespace().collect::<Vec<_>>(), "");
}

fn devices() -> String {
    run("ip", &["-brief", "address", "show"], "")
}

#[test]
fn another_directors_entries_stay_through_sync_change_and_cleanup() {
    on_node(|| {
        ipvsadm("-A -t 198.18.0.90:6443 -s wlc");
        ipvsadm("-a -t 198.18.0.90:6443 -r 192.0.2.1:6443 -m");
        ipvsadm("-A -f 7 -s rr");
        ipvsadm("-A -u 198.18.0.11:30999 -s rr");
        let foreign = |lines: Vec<String>| {
            lines
                .into_iter()
                .filter(|line| !line.contains("10.96.0.10") && !line.contains(":30080"))
                .collect::<Vec<_>>()
        };
        let before = foreign(entries(""));
        assert_eq!(before.len(), 4);
        let (mut agent, _) = Agent::start(plane(), vec![service(|_| {}), endpoints(&["10.128.0.1"])]);
        agent.change([endpoints(&["10.128.0.2"])]);
        agent.resync();
        agent.change([no_service()]);
        assert_eq!(
            foreign(entries("")).len(),
            3,
            "but kube-proxy's NodePort goes, since there is its device"
        );
        agent.change([service(|_| {})]);
        assert!(entries("").len() > 3);
        cleanup(Whose::Ours).unwrap();
        assert_eq!(
            entries(""),
            before.into_iter().filter(|line| !line.contains("30999")).collect::<Vec<_>>()
        );
    });
}

#[test]
fn stale_entries_of_an_earlier_run_go_and_those_in_excluded_ranges_stay() {
    on_node(|| {
        let (agent, _) = Agent::start(plane(), vec![service(|_| {}), endpoints(&["10.128.0.1"])]);
        drop(agent);
        // kube-proxy's have no mark; their addresses are on its device.
        run("ip", &["address", "add", "10.96.0.66/32", "dev", "kube-ipvs0"], "");
        run("ip", &["address", "add", "10.97.0.1/32", "dev", "kube-ipvs0"], "");
        for line in [
            "-A -t 10.96.0.66:80 -s rr",
            "-a -t 10.96.0.66:80 -r 10.128.0.9:80 -m",
            "-A -t 10.97.0.1:1 -s rr",
        ] {
            ipvsadm(line);
        }
        let config =
            config::Ipvs { exclude_cidrs: vec!["10.97.0.0/16".parse().unwrap()], ..config::Ipvs::default() };
        let (mut agent, _) = Agent::start(plane_with(config), vec![]);
        assert_eq!(entries(""), ["-A -t 10.97.0.1:1 -s rr"]);
        assert!(devices().contains("10.97.0.1/32") && !devices().contains("10.96.0."), "{}", devices());
        assert!(agent.resync().is_empty());
    });
}

#[test]
fn weight_scheduler_flags_and_timeout_are_put_right() {
    on_node(|| {
        let objects = || vec![service(|_| {}), endpoints(&["10.128.0.1"])];
        let right = {
            Agent::start(plane(), objects());
            entries("")
        };
        for line in [
            "-e -t 10.96.0.10:80 -r 10.128.0.1:8080 -m -w 0",
            "-E -t 10.96.0.10:80 -s sh -p 77",
            "-e -t 198.18.0.11:30080 -r 10.128.0.1:8080 -m -w 7",
            "-d -t 198.18.0.11:30080 -r 10.128.0.1:8080",
            "-D -t 10.96.0.10:80",
        ] {
            ipvsadm(line);
            assert_ne!(entries(""), right, "{line}");
            let (mut agent, _) = Agent::start(plane(), objects());
            assert_eq!(entries(""), right, "{line}");
            assert!(agent.resync().is_empty(), "{line}");
        }
        run("ip", &["link", "delete", "kube-ipvs0"], "");
        let (mut agent, _) = Agent::start(plane(), objects());
        assert!(devices().contains("10.96.0.10/32"), "{}", devices());
        run("ip", &["link", "delete", "kube-ipvs0"], "");
        assert_eq!(agent.plane.look(false).unwrap(), Look::Changed, "it is missed at once");
    });
}

#[test]
fn an_address_that_the_host_has_anyway_is_not_put_on_the_device() {
    on_node(|| {
        run("ip", &["address", "add", "203.0.113.9/32", "dev", "lan"], "");
        let external = |service: &mut sluice::cluster::Service| {
            service.external_ips =
                ["203.0.113.9", "203.0.113.10", "198.18.0.11"].map(|a| a.parse().unwrap()).to_vec();
        };
        let (mut agent, _) = Agent::start(plane(), vec![service(external), endpoints(&["10.128.0.1"])]);
        let device = run("ip", &["-brief", "address", "show", "dev", "kube-ipvs0"], "");
        assert!(device.contains("203.0.113.10/32") && !device.contains("203.0.113.9/32"), "{device}");
        assert!(!device.contains("198.18.0.11/"), "{device}");
        assert_eq!(entries("-A -t 203.0.113.9:80").len(), 1);
        run("ip", &["address", "delete", "203.0.113.9/32", "dev", "lan"], "");
        agent.resync();
        assert!(devices().contains("203.0.113.9/32"), "it moves when the host loses it");
    });
}

#[test]
fn mode_nftables_leaves_nothing_of_ipvs_and_the_other_way_round() {
    on_node(|| {
        ipvsadm("-A -t 198.18.0.90:6443 -s wlc");
        let (agent, _) = Agent::start(plane(), vec![service(|_| {}), endpoints(&["10.128.0.1"])]);
        let index = agent.index;
        let mut plane = Nftables::open().unwrap();
        let observed = plane.observe(&settings()).unwrap();
        let (desired, _) = Desired::from_scratch(&index, node(), settings());
        let plan = plane.plan(&desired, &observed);
        plane.apply(&plan).unwrap();
        assert!(entries("-t 10.96.0.10:80").len() == 2, "until the rules are there it stays");
        plane.tend().unwrap();
        plane.tend().unwrap();
        assert_eq!(entries(""), ["-A -t 198.18.0.90:6443 -s wlc"]);
        assert!(!devices().contains("kube-ipvs0"), "{}", devices());
        let (mut agent, _) =
            Agent::start(super::world::plane(), vec![service(|_| {}), endpoints(&["10.128.0.1"])]);
        let table = run("nft", &["list", "table", "ip", "sluice"], "");
        assert!(
            table.contains("10.96.0.10 . tcp . 80 : accept") && !table.contains("endpoints-1"),
            "{table}"
        );
        assert!(agent.resync().is_empty());
    });
}

#[test]
fn mode_nftables_leaves_nothing_of_ipvs_where_somebody_deleted_the_device() {
    on_node(|| {
        Agent::start(plane(), vec![service(|_| {}), endpoints(&["10.128.0.1"])]);
        run("ip", &["link", "delete", "kube-ipvs0"], "");
        let mut plane = Nftables::open().unwrap();
        plane.tend().unwrap();
        assert_eq!(entries(""), [""; 0]);
        let tables = run("nft", &["list", "tables"], "");
        assert!(!tables.contains("arp sluice"), "{tables}");
    });
}

#[test]
fn timeouts_that_the_kernel_does_not_take_concern_only_themselves() {
    on_node(|| {
        let tcp_timeout = Some(std::time::Duration::from_secs(u64::from(u32::MAX)));
        let config = config::Ipvs { tcp_timeout, ..config::Ipvs::default() };
        let (mut agent, _) =
            Agent::start(plane_with(config), vec![service(|_| {}), endpoints(&["10.128.0.1"])]);
        assert_eq!(entries("-t 10.96.0.10:80").len(), 2);
        assert!(agent.resync().is_empty(), "it is not tried all the time");
    });
}

#[test]
fn what_waits_for_its_connections_is_no_difference_once_it_has_none() {
    on_node(|| {
        let objects = vec![service(|_| {}), endpoints(&["10.128.0.1", "10.128.0.2"])];
        let (mut agent, _) = Agent::start(plane(), objects);
        agent.change([endpoints(&["10.128.0.2"])]);
        assert!(agent.resync().is_empty(), "nobody else is to blame");
        agent.plane.look_after_terminating().unwrap();
        assert_eq!(entries("-a -t 10.96.0.10:80").len(), 1);
        assert!(agent.resync().is_empty());
    });
}

/// `tests/vm/run -k ipv6.disable=1` boots a kernel that has none at all; here the device may have no addresses of it.
#[test]
fn ipv4_is_served_where_there_is_no_ipv6() {
    on_node(|| {
        // Without IPv6 there is nothing to be disabled.
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        let dual = |service: &mut sluice::cluster::Service| {
            service.cluster_ips.push("fd00:10:96::10".parse().unwrap());
        };
        let (mut agent, _) = Agent::start(plane(), vec![service(dual), endpoints(&["10.128.0.1"])]);
        agent.resync();
        agent.change([endpoints(&["10.128.0.2"])]);
        agent.plane.look_after_terminating().unwrap();
        assert!(agent.resync().is_empty());
        let lines = entries("");
        assert!(
            lines.iter().any(|line| line.contains("-a -t 10.96.0.10:80 -r 10.128.0.2:8080")),
            "{lines:?}"
        );
        assert!(!lines.iter().any(|line| line.contains("fd00:")), "{lines:?}");
        assert!(
            devices().contains("10.96.0.10/32") && !devices().contains("fd00:10:96::10"),
            "{}",
            devices()
        );
        agent.change([no_service()]);
        agent.plane.look_after_terminating().unwrap();
        assert!(agent.resync().is_empty());
    });
}

/// The broadcast address of the node's network is one.
#[test]
fn an_endpoint_that_the_kernel_does_not_take_concerns_only_itself() {
    on_node(|| {
        let mut sync = syncing();
        let told = sync(vec![service(|_| {}), endpoints(&["198.18.0.255", "10.128.0.1"])]);
        let refused = |event: &sluice::events::Event| {
            event.reason == "RulesRefused" && event.note.contains("-r 198.18.0.255:8080")
        };
        assert!(!told.is_empty() && told.iter().all(refused), "{told:?}");
        let lines = || entries("-a -t 10.96.0.10:80");
        assert_eq!(lines(), ["-a -t 10.96.0.10:80 -r 10.128.0.1:8080 -m -w 1"]);
        assert_eq!(sync(vec![endpoints(&["198.18.0.255", "10.128.0.2"])]), []);
        assert_eq!(lines().len(), 2, "the one that went, and the new one");
        assert_eq!(sync(vec![endpoints(&["10.128.0.2"])]), []);
        assert!(
            !sync(vec![endpoints(&["198.18.0.255", "10.128.0.2"])]).is_empty(),
            "told when it comes again"
        );
        let mut agent =
            Agent::start(plane(), vec![service(|_| {}), endpoints(&["198.18.0.255", "10.128.0.2"])]).0;
        assert!(agent.resync().is_empty(), "it is not tried all the time");
    });
}
