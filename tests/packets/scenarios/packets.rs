//! Many connections, and links and endpoints that come, go and die.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::{apply, check, client, observe, remote_pods, service, session, slice};
use crate::lab::Lab;
use crate::probe::{Observation, Source};
use crate::server::runtime;

/// Each endpoint gets its share, within five standard deviations, before and after a change; two services with
/// the same endpoints do not move in step.
pub fn equal_shares(lab: &mut Lab) -> Result<()> {
    let counts = [1, 2, 3, 7, 64];
    let address = |count: usize| format!("10.96.224.{count}");
    for count in counts {
        let name = format!("n{count}");
        lab.cluster.apply("scenario", &service(&name, &address(count), None))?;
        lab.cluster.apply("scenario", &slice(&name, &remote_pods(count)))?;
    }
    let pair = ["10.96.224.200", "10.96.224.201"];
    for (name, address) in ["x", "y"].iter().zip(pair) {
        lab.cluster.apply("scenario", &service(name, address, None))?;
        lab.cluster.apply("scenario", &slice(name, &remote_pods(2)))?;
    }
    lab.settle()?;
    for count in counts {
        shares(lab, &address(count), count)?;
    }
    // One leaves, another comes.
    let mut pods = remote_pods(8);
    pods.remove(2);
    apply(lab, &[slice("n7", &pods)])?;
    shares(lab, &address(7), 7)?;
    let sequence = |lab: &Lab| -> Result<Vec<[Option<SocketAddr>; 2]>> {
        let one = |address: &str| -> Result<Option<SocketAddr>> {
            let seen = observe(lab, "pod1", &format!("{address}:80/tcp"), 1)?;
            Ok(seen.endpoints.keys().next().copied())
        };
        (0..40).map(|_| Ok([one(pair[0])?, one(pair[1])?])).collect()
    };
    let sequence = sequence(lab)?;
    let same = sequence.iter().filter(|[x, y]| x == y).count();
    // 40 fair coins are all equal or all different once in 5 * 10^11 times.
    if same == 0 || same == sequence.len() {
        bail!("two services with the same endpoints move in step: {same} of 40 equal");
    }
    Ok(())
}

fn shares(lab: &Lab, address: &str, count: usize) -> Result<()> {
    let tries = count * if count > 10 { 100 } else { 300 };
    let seen = observe(lab, "pod1", &format!("{address}:80/tcp"), tries)?;
    if seen.endpoints.values().sum::<usize>() != tries {
        bail!("{count} endpoints: {seen}");
    }
    let (n, p) = (tries as f64, 1.0 / count as f64);
    let bound = 5.0 * (n * p * (1.0 - p)).sqrt();
    let far: BTreeMap<_, _> =
        seen.endpoints.iter().filter(|(_, got)| (**got as f64 - n * p).abs() > bound).collect();
    if seen.endpoints.len() != count || !far.is_empty() {
        bail!(
            "{count} endpoints, {tries} connections, wanted {:.0} ± {bound:.0} each: {far:?}\n{seen}",
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

/// Masquerading finds a port for each of thousands of connections to one endpoint.
pub fn many_masqueraded(lab: &mut Lab) -> Result<()> {
    apply(lab, &[service("a", "10.96.225.1", Some(32250)), slice("a", &remote_pods(1))])?;
    // Counted from here on: other cases ran in this lab, too.
    let before = insertions_failed(lab)?;
    let seen: Observation = observe(lab, "ext", "198.18.0.11:32250/tcp", 6000)?;
    if seen.outcomes.len() != 1 || seen.endpoints.values().sum::<usize>() != 6000 {
        bail!("{seen}");
    }
    let failed = insertions_failed(lab)?.saturating_sub(before);
    if failed > 0 {
        bail!("{failed} conntrack insertions failed");
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

/// NodePorts are served on an address that the node gets while the agent runs, and no rule names it when
/// it has gone. Nobody but the kernel tells of it: objects do not change.
pub fn address_later(lab: &mut Lab) -> Result<()> {
    apply(lab, &[service("a", "10.96.227.1", Some(32270)), slice("a", &remote_pods(1))])?;
    // Shorter than the time after which addresses are looked at without being told.
    const PATIENCE: Duration = Duration::from_secs(20);
    let named = |lab: &Lab| anyhow::Ok(lab.rules()?.iter().any(|line| line.contains("198.18.0.77")));
    if named(lab)? {
        bail!("the address is in rules before it is there");
    }
    let until = |what: &str, done: &dyn Fn() -> Result<bool>| {
        let deadline = Instant::now() + PATIENCE;
        while !done()? {
            if Instant::now() > deadline {
                bail!("not within {PATIENCE:?}: {what}");
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
