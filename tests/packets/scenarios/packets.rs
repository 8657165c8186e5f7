//! Many connections, and links and endpoints that come, go and die.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{apply, check, client, observe, remote_pods, service, session, slice};
use crate::lab::Lab;
use crate::probe::{Observation, Source, slowness};
use crate::server::runtime;

/// Each endpoint gets its share, before and after a change, in both families; two services with the same endpoints do not
/// move in step.
pub fn equal_shares(lab: &mut Lab) -> Result<()> {
    for (cluster_ips, pods) in [("10.96.224.", "10.128.1."), ("fd00:10:96::e0", "fd00:10:128:1::")] {
        let address = |name: &str| format!("{cluster_ips}{name}");
        let pods = |count: usize| (1..=count).map(|n| format!("{pods}{n}")).collect::<Vec<_>>();
        let counts = [1, 2, 3, 7, 64];
        for count in counts {
            let name = format!("n{count}");
            lab.cluster.apply("scenario", &service(&name, &address(&count.to_string()), None))?;
            lab.cluster.apply("scenario", &slice(&name, &pods(count)))?;
        }
        for name in ["91", "92"] {
            lab.cluster.apply("scenario", &service(name, &address(name), None))?;
            lab.cluster.apply("scenario", &slice(name, &pods(2)))?;
        }
        lab.settle()?;
        for count in counts {
            shares(lab, &address(&count.to_string()), count, if count > 10 { 100 } else { 300 })?;
        }
        // One leaves, another comes.
        let mut others = pods(8);
        others.remove(2);
        apply(lab, &[slice("n7", &others)])?;
        shares(lab, &address("7"), 7, 300)?;
        independent(lab, &address("91"), &address("92"))?;
    }
    Ok(())
}

/// A thousand endpoints, of which then one goes and another comes.
pub fn shares_of_a_thousand(lab: &mut Lab) -> Result<()> {
    let v6: Vec<String> = (1..=1001).map(|n| format!("fd00:10:128:1::{n:x}")).collect();
    let v4: Vec<String> = (0..=500).map(|n| format!("10.128.{}.{}", 1 + n / 251, n % 251)).collect();
    // Two ranges of 256 addresses are not enough: each has two ports there.
    let slices = |v4: &[String], v6: &[String]| {
        let [first, mut second] = [8080, 8081].map(|port| {
            let mut slice = slice("four", v4);
            slice["ports"][0]["port"] = port.into();
            slice
        });
        second["metadata"]["name"] = "four-2".into();
        [first, second, slice("six", v6)]
    };
    apply(lab, &[service("four", "10.96.228.1", None), service("six", "fd00:10:96::e401", None)])?;
    for from in [0, 1] {
        apply(lab, &slices(&v4[from..from + 500], &v6[from..from + 1000]))?;
        for address in ["10.96.228.1", "fd00:10:96::e401"] {
            shares(lab, address, 1000, 10)?;
        }
    }
    Ok(())
}

fn to(address: &str, port: u16, protocol: &str) -> String {
    match address.contains(':') {
        true => format!("[{address}]:{port}/{protocol}"),
        false => format!("{address}:{port}/{protocol}"),
    }
}

/// Connections to two services with the same two endpoints, in turn.
fn independent(lab: &Lab, one: &str, other: &str) -> Result<()> {
    let end = |address: &str| -> Result<Option<SocketAddr>> {
        let seen = observe(lab, "pod1", &to(address, 80, "tcp"), 1)?;
        Ok(seen.endpoints.keys().next().copied())
    };
    let sequence = (0..40).map(|_| Ok([end(one)?, end(other)?])).collect::<Result<Vec<_>>>()?;
    let same = sequence.iter().filter(|[x, y]| x == y).count();
    // 40 fair coins are all equal or all different once in 5 * 10^11 times.
    if same == 0 || same == sequence.len() {
        bail!("two services with the same endpoints move in step: {same} of 40 equal");
    }
    Ok(())
}

/// Each share within five standard deviations of the mean, and all together, by chi-square, as far apart as chance has
/// them and no nearer.
fn shares(lab: &Lab, address: &str, count: usize, each: usize) -> Result<()> {
    let tries = count * each;
    let seen = observe(lab, "pod1", &to(address, 80, "tcp"), tries)?;
    if seen.endpoints.values().sum::<usize>() != tries {
        bail!("{count} endpoints: {seen}");
    }
    let (n, p) = (tries as f64, 1.0 / count as f64);
    let bound = 5.0 * (n * p * (1.0 - p)).sqrt();
    let distance = |got: usize| (got as f64 - n * p).abs();
    // A share of ten has a longer tail than five deviations tell, with a thousand of them.
    let bound = if each < 100 { bound * 1.5 } else { bound };
    let far: BTreeMap<_, _> = seen.endpoints.iter().filter(|(_, got)| distance(**got) > bound).collect();
    let missing = (count - seen.endpoints.len()) as f64 * n * p;
    let squares: f64 = seen.endpoints.values().map(|got| distance(*got).powi(2) / (n * p)).sum();
    let (chi, freedom) = (squares + missing, count as f64 - 1.0);
    let spread = 5.0 * (2.0 * freedom).sqrt();
    let uneven = count > 10 && (chi - freedom).abs() > spread;
    let absent = each >= 100 && seen.endpoints.len() != count;
    if absent || !far.is_empty() || uneven {
        bail!(
            "{count} endpoints, {tries} connections, wanted {:.0} ± {bound:.0} each: {far:?}; chi-square {chi:.0} of \
             {freedom:.0} ± {spread:.0}\n{seen}",
            n * p
        );
    }
    Ok(())
}

/// What conntrack counts of connections that it could not enter.
fn insertions_failed(lab: &Lab) -> Result<u64> {
    let statistics = lab.topology.node.output("conntrack", &["-S"])?;
    let counts = statistics.split_whitespace().filter_map(|word| word.strip_prefix("insert_failed="));
    Ok(counts.filter_map(|count| count.parse::<u64>().ok()).sum())
}

/// Masquerading finds a port for each of 20,000 connections to one endpoint, all of which conntrack knows at once.
pub fn many_masqueraded(lab: &mut Lab) -> Result<()> {
    const MANY: usize = 20_000;
    apply(
        lab,
        &[
            service("a", "10.96.225.1", Some(32250)),
            slice("a", &remote_pods(1)),
            service("b", "fd00:10:96::e101", Some(32251)),
            slice("b", &[String::from("fd00:10:128:1::1")]),
        ],
    )?;
    // Clients close with a reset; the entry is to stay as if they had not.
    lab.topology.node.sysctl(&[("net/netfilter/nf_conntrack_tcp_timeout_close", "300")])?;
    for to in ["198.18.0.11:32250/tcp", "[fd00:198:18::11]:32251/tcp"] {
        lab.topology.node.output("conntrack", &["-F"])?;
        let before = insertions_failed(lab)?;
        let seen: Observation = observe(lab, "ext", to, MANY)?;
        if seen.outcomes.len() != 1 || seen.endpoints.values().sum::<usize>() != MANY {
            bail!("{to}: {seen}");
        }
        let entries: usize = lab.topology.node.output("conntrack", &["-C"])?.trim().parse()?;
        let failed = insertions_failed(lab)?.saturating_sub(before);
        if failed > 0 || entries < MANY {
            bail!("{to}: {failed} conntrack insertions failed, {entries} entries");
        }
    }
    Ok(())
}

/// Source ranges are exchanged again and again: whoever may connect, the other one may not, at any moment.
pub fn source_ranges_exchanged(lab: &mut Lab) -> Result<()> {
    const TIMES: usize = 12;
    for (cluster_ip, vip, clients) in [
        ("10.96.229.1", "198.51.113.1", ["198.18.0.100", "198.18.0.101"]),
        ("fd00:10:96::e501", "fd00:198:51::113:1", ["fd00:198:18::100", "fd00:198:18::101"]),
    ] {
        let pods = [String::from(if vip.contains(':') { "fd00:10:128:1::1" } else { "10.128.1.1" })];
        let length = if vip.contains(':') { 128 } else { 32 };
        let guarded = |allowed: &str| {
            let mut a = service("a", cluster_ip, None);
            a["spec"]["type"] = "LoadBalancer".into();
            a["spec"]["allocateLoadBalancerNodePorts"] = false.into();
            a["spec"]["loadBalancerSourceRanges"] = serde_json::json!([format!("{allowed}/{length}")]);
            a["status"] = serde_json::json!({"loadBalancer": {"ingress": [{"ip": vip}]}});
            a
        };
        apply(lab, &[guarded(clients[0]), slice("a", &pods)])?;
        let target = to(vip, 80, "tcp").parse()?;
        let ended = std::sync::atomic::AtomicBool::new(false);
        // Of each client, when it asked and when it was answered.
        let served = thread::scope(|scope| {
            let asking = clients.map(|source| {
                let mut client = client(lab, "ext")?;
                client.source = Some(source.parse()?);
                let ended = &ended;
                anyhow::Ok(scope.spawn(move || {
                    let mut served = Vec::new();
                    while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                        let asked = Instant::now();
                        let wait = Duration::from_millis(60);
                        let seen = runtime().block_on(client.attempts(target, 1, true, wait))?;
                        if !seen.endpoints.is_empty() {
                            served.push((asked, Instant::now()));
                        }
                    }
                    anyhow::Ok(served)
                }))
            });
            let exchanged = exchange(lab, TIMES, |number| guarded(clients[number % 2]));
            ended.store(true, std::sync::atomic::Ordering::Relaxed);
            exchanged?;
            let mut served = Vec::new();
            for thread in asking {
                served.push(thread?.join().map_err(|_| anyhow::anyhow!("a client panicked"))??);
            }
            anyhow::Ok(served)
        })?;
        let changes = alternations(&served);
        if !(TIMES / 2..=TIMES).contains(&changes) {
            bail!("{vip} changed {changes} times between its clients, ranges {TIMES} times");
        }
        lab.cluster.delete("scenario", "Service", "a")?;
    }
    Ok(())
}

/// How often at least it went from one to the other: who asks after the other one was answered was let in later. If both
/// were let in at some moment, that is more often than the ranges were exchanged.
fn alternations(served: &[Vec<(Instant, Instant)>]) -> usize {
    let mut all: Vec<_> = (0..)
        .zip(served)
        .flat_map(|(who, all)| all.iter().map(move |(asked, got)| (*got, *asked, who)))
        .collect();
    all.sort_unstable();
    let mut count = 0;
    let mut last: Option<(Instant, i32)> = None;
    for (got, asked, who) in all {
        match last {
            None => last = Some((got, who)),
            Some((before, other)) if other != who && asked >= before => {
                count += 1;
                last = Some((got, who));
            }
            Some(_) => {}
        }
    }
    count
}

fn exchange(lab: &mut Lab, times: usize, object: impl Fn(usize) -> serde_json::Value) -> Result<()> {
    for number in 1..=times {
        apply(lab, &[object(number)])?;
        thread::sleep(Duration::from_millis(250));
    }
    Ok(())
}

/// A client that goes on sending SYNs to an endpoint that died reaches another one once the slice drops it.
pub fn syn_to_dead_endpoint(lab: &mut Lab) -> Result<()> {
    // Nobody has this address: node -> gateway, where it is dropped.
    let dead = [String::from("10.128.9.9")];
    apply(lab, &[service("a", "10.96.226.1", None), slice("a", &dead)])?;
    let mut waiting = session(lab, "pod2", "10.96.226.1:80/tcp")?;
    let connected = thread::scope(|scope| {
        // SYNs after 0, 1, 3 and 7 s, the last when the entry has gone.
        let connecting = scope.spawn(move || runtime().block_on(waiting.ask(Duration::from_secs(12))));
        thread::sleep(Duration::from_millis(1500));
        apply(lab, &[slice("a", &remote_pods(1))])?;
        connecting.join().map_err(|_| anyhow::anyhow!("the client panicked"))
    })?;
    match connected {
        Ok(answer) if answer.endpoint.to_string() == "10.128.1.1:8080" => Ok(()),
        Ok(answer) => bail!("it reached {}", answer.endpoint),
        Err(outcome) => bail!("the half-open connection: {outcome}"),
    }
}

/// Where the memory of session affinity is full, whoever is in it stays where they are, and others are served all the same.
pub fn affinity_flooded(lab: &mut Lab) -> Result<()> {
    let mut sticky = service("a", "10.96.233.1", None);
    sticky["spec"]["sessionAffinity"] = "ClientIP".into();
    apply(lab, &[sticky, slice("a", &remote_pods(1))])?;
    observe(lab, "pod1", "10.96.233.1:80/tcp", 1)?;
    let listed = lab.topology.node.output("nft", &["-j", "list", "set", "ip", "sluice", "sticky-0"])?;
    let listed: Value = serde_json::from_str(&listed)?;
    let set = listed["nftables"].as_array().into_iter().flatten().find_map(|item| item.get("set"));
    let set = set.context("a set sticky-0")?;
    let size = set["size"].as_u64().context("its size")?;
    let known = set["elem"].as_array().map_or(0, Vec::len) as u64;
    // Clients of another Service, as a flood of source addresses would leave them.
    let address = |n: u64| std::net::Ipv4Addr::from(0x0b00_0000 + n as u32);
    let flood: Vec<String> = (0..size - known).map(|n| format!("{} . 1:1", address(n))).collect();
    let add = |elements: &str| {
        let text = format!("add element ip sluice sticky-0 {{ {elements} }}\n");
        lab.topology.node.feed("nft", &["-f", "-"], &text)
    };
    add(&flood.join(", "))?;
    if add(&format!("{} . 1:1", address(size))).is_ok() {
        bail!("the set is not full");
    }
    for client in ["pod1", "pod2", "ext"] {
        let seen = observe(lab, client, "10.96.233.1:80/tcp", 5)?;
        if seen.endpoints.values().sum::<usize>() != 5 {
            bail!("{client}: {seen:?}");
        }
    }
    Ok(())
}

/// NodePorts are served on an address that the node gets while the agent runs, and no rule names it when
/// it has gone. Nobody but the kernel tells of it: objects do not change.
pub fn address_later(lab: &mut Lab) -> Result<()> {
    apply(lab, &[service("a", "10.96.227.1", Some(32270)), slice("a", &remote_pods(1))])?;
    // Shorter than the time after which addresses are looked at without being told.
    let patience = Duration::from_secs(20) * slowness();
    let named = |lab: &Lab| anyhow::Ok(lab.rules()?.iter().any(|line| line.contains("198.18.0.77")));
    if named(lab)? {
        bail!("the address is in rules before it is there");
    }
    let until = |what: &str, done: &dyn Fn() -> Result<bool>| {
        let deadline = Instant::now() + patience;
        while !done()? {
            if Instant::now() > deadline {
                bail!("not within {patience:?}: {what}");
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    };
    for _ in 0..3 {
        lab.topology.node.ip("address add 198.18.0.77/32 dev eth0\n")?;
        until("the node port is served on the new address", &|| {
            let seen = observe(lab, "ext", "198.18.0.77:32270/tcp", 1)?;
            Ok(!seen.endpoints.is_empty())
        })?;
        lab.topology.node.ip("address delete 198.18.0.77/32 dev eth0\n")?;
        until("the old address is in no rule", &|| Ok(!named(lab)?))?;
    }
    Ok(())
}

/// Local detection by the name of an interface that does not exist yet, goes, and comes back with another index.
pub fn interface_later(lab: &mut Lab) -> Result<()> {
    const ADD: &str = "\
link add NAME type veth peer name late netns POD
link set NAME up
address add 10.128.0.1/32 dev NAME
route replace 10.128.0.200 dev NAME src 10.128.0.1
";
    const POD: &str = "\
link set late up
address add 10.128.0.200/32 dev late
route replace 10.128.0.1 dev late src 10.128.0.200
route replace default via 10.128.0.1 dev late src 10.128.0.200
";
    apply(lab, &[service("a", "10.96.227.1", None), slice("a", &remote_pods(1))])?;
    let flow = |source: &str| {
        format!(
            "- {{from: pod3@10.128.0.200, to: '10.96.227.1:80/tcp', \
             expect: {{endpoints: ['10.128.1.1:8080'], source: {source}}}}}"
        )
    };
    // An interface of another name is not local, nor are the pods behind theirs.
    for (name, source) in [("other0", "node"), ("late0", "kept"), ("late0", "kept")] {
        let pod = lab.topology.pods[2].name().to_owned();
        lab.topology.node.ip(&ADD.replace("NAME", name).replace("POD", &pod))?;
        lab.topology.pods[2].ip(POD)?;
        check(lab, &flow(source))?;
        lab.topology.node.ip(&format!("link del {name}\n"))?;
    }
    // The check has used a client with a source address of its own; the pod's usual one is not local here.
    let seen = runtime().block_on(client(lab, "pod1")?.attempts(
        "10.96.227.1:80/tcp".parse()?,
        20,
        false,
        Duration::from_secs(3),
    ))?;
    if seen.sources.values().flatten().any(|(source, _)| *source != Source::Node) {
        bail!("pod1 is not behind such an interface: {seen}");
    }
    Ok(())
}
