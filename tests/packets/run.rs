//! Runs a case: changes, waits, sends, compares.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, anyhow};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::case::{Case, Conntrack, Counter, Expect, Flow, Http, Step};
use crate::lab::Lab;
use crate::not_covered::HTTP_CHECKS;
use crate::probe::{Client, Observation, Outcome, SILENCE, Session, Source, http_get, patience, slowness};
use crate::server::runtime;
use crate::topology::Topology;

/// Checks that were right only when repeated, over all cases.
pub static LATE: AtomicUsize = AtomicUsize::new(0);

/// HTTP checks that do not count yet: how many passed, how many failed.
pub static UNCOUNTED_HTTP: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

/// What was not as it has to be.
#[derive(Debug)]
struct Mismatch {
    what: String,
    expected: String,
    seen: String,
}

#[derive(Clone)]
enum Check {
    Flow(Box<Flow>),
    Http(Http),
    Conntrack(Conntrack),
}

type Sessions = HashMap<String, Session>;

/// Runs a case on an empty lab.
///
/// # Errors
/// With all that is wrong in the first step where something is.
pub fn run(lab: &mut Lab, case: &Case, repeats: usize) -> Result<()> {
    let namespace = format!("c-{}", case.name);
    let first = Step {
        apply: case.manifests.clone(),
        nft: case.nft.clone(),
        flows: case.flows.clone(),
        counters: case.counters.clone(),
        http: case.http.clone(),
        conntrack_gone: case.conntrack_gone.clone(),
        ..Step::default()
    };
    // Affinity remembers who came first: such flows run in the order of the file.
    let in_order = has_affinity(case);
    let mut sessions = Sessions::new();
    for (number, step) in std::iter::once(&first).chain(&case.steps).enumerate() {
        let at = if number == 0 { String::from("at the start") } else { format!("step {number}") };
        change(lab, &namespace, step).map_err(|error| anyhow!("{at}: {error:#}"))?;
        let (mut pending, uncounted): (Vec<_>, Vec<_>) = checks(step)
            .into_iter()
            .partition(|check| HTTP_CHECKS.is_none() || !matches!(check, Check::Http(_)));
        let all = uncounted.len();
        let (failed, _) = check_all(&lab.topology, uncounted, in_order, &mut sessions)?;
        UNCOUNTED_HTTP[0].fetch_add(all - failed.len(), Ordering::Relaxed);
        UNCOUNTED_HTTP[1].fetch_add(failed.len(), Ordering::Relaxed);
        let mut mismatches = Vec::new();
        for attempt in 0..=repeats {
            if attempt > 0 {
                LATE.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(250) * slowness());
            }
            (pending, mismatches) = check_all(&lab.topology, pending, in_order, &mut sessions)?;
            if pending.is_empty() {
                break;
            }
        }
        mismatches.extend(check_counters(&lab.topology, &step.counters)?);
        if !mismatches.is_empty() {
            if repeats > 0 {
                LATE.fetch_sub(repeats, Ordering::Relaxed);
            }
            return Err(anyhow!(describe(&at, &mismatches)));
        }
    }
    Ok(())
}

fn has_affinity(case: &Case) -> bool {
    let steps = case.steps.iter();
    let mut objects = case.manifests.iter().chain(steps.flat_map(|step| &step.apply));
    objects.any(|object| object["spec"]["sessionAffinity"] == "ClientIP")
}

fn change(lab: &mut Lab, namespace: &str, step: &Step) -> Result<()> {
    for object in &step.apply {
        lab.cluster.apply(namespace, object)?;
    }
    for patch in &step.patch {
        lab.cluster.patch(namespace, &patch.kind, &patch.name, &patch.patch)?;
    }
    for name in &step.delete {
        lab.cluster.delete(namespace, &name.kind, &name.name)?;
    }
    if step.restart_proxy {
        lab.restart_agent()?;
    }
    lab.settle()?;
    if !step.nft.is_empty() {
        lab.topology.node.feed("nft", &["-f", "-"], &step.nft)?;
    }
    sleep(Duration::from_secs_f64(step.sleep));
    Ok(())
}

fn checks(step: &Step) -> Vec<Check> {
    // Conntrack first: a flow that is sent may make the very entry.
    let conntrack = step.conntrack_gone.iter().cloned().map(Check::Conntrack);
    let flows = step.flows.iter().cloned().map(|flow| Check::Flow(Box::new(flow)));
    conntrack.chain(flows).chain(step.http.iter().cloned().map(Check::Http)).collect()
}

/// Makes all checks and returns those that failed.
fn check_all(
    topology: &Topology,
    checks: Vec<Check>,
    in_order: bool,
    sessions: &mut Sessions,
) -> Result<(Vec<Check>, Vec<Mismatch>)> {
    let mut running = JoinSet::new();
    let mut finished = Vec::new();
    runtime().block_on(async {
        for (index, check) in checks.into_iter().enumerate() {
            match check {
                Check::Conntrack(wanted) => {
                    let mismatch = check_conntrack(topology, &wanted);
                    let check = Check::Conntrack(wanted);
                    finished.push(Finished { index, check, session: None, mismatch });
                }
                Check::Http(request) => {
                    let client = client(topology, &request.from)?;
                    running.spawn(async move {
                        let mismatch = check_http(&client, &request).await;
                        Finished { index, check: Check::Http(request), session: None, mismatch }
                    });
                }
                Check::Flow(flow) => {
                    let client = client(topology, &flow.from)?;
                    let session = flow.session.as_ref().and_then(|name| sessions.remove(name));
                    running.spawn(check_flow(index, client, flow, session));
                }
            }
            while in_order && let Some(done) = running.join_next().await {
                finished.push(done?);
            }
        }
        while let Some(done) = running.join_next().await {
            finished.push(done?);
        }
        anyhow::Ok(())
    })?;
    finished.sort_by_key(|done| done.index);
    let mut failed = Vec::new();
    for done in finished {
        sessions.extend(done.session);
        if let Some(mismatch) = done.mismatch? {
            failed.push((done.check, mismatch));
        }
    }
    Ok(failed.into_iter().unzip())
}

struct Finished {
    index: usize,
    check: Check,
    session: Option<(String, Session)>,
    mismatch: Result<Option<Mismatch>>,
}

fn client(topology: &Topology, from: &str) -> Result<Client> {
    let (name, source) = match from.split_once('@') {
        Some((name, source)) => (name, Some(source.parse()?)),
        None => (from, None),
    };
    Ok(Client { namespace: topology.namespace(name)?.clone(), source })
}

async fn check_flow(index: usize, client: Client, flow: Box<Flow>, session: Option<Session>) -> Finished {
    let wait = if flow.expect.outcomes.contains(&Outcome::Timeout) { SILENCE } else { patience() };
    let mut kept = None;
    let seen = match &flow.session {
        None => client.attempts(flow.to, flow.tries, flow.sequential, wait).await,
        Some(name) => match session.map_or_else(|| client.session(flow.to), Ok) {
            Err(error) => Err(error),
            Ok(mut session) => {
                let seen = session.observe(wait).await;
                kept = Some((name.clone(), session));
                Ok(seen)
            }
        },
    };
    let mismatch = seen.and_then(|seen| {
        let wrong = difference(&flow.expect, &seen)?;
        Ok(wrong.map(|wrong| Mismatch {
            what: format!("{} to {}{}", flow.from, flow.to, how(&flow)),
            expected: expected(&flow.expect),
            seen: format!("{seen}\n    that is:  {wrong}"),
        }))
    });
    Finished { index, check: Check::Flow(flow), session: kept, mismatch }
}

fn how(flow: &Flow) -> String {
    match &flow.session {
        Some(name) => format!(" on the open socket {name}"),
        None if flow.sequential => format!(", {} in a row", flow.tries),
        None => format!(", {} at once", flow.tries),
    }
}

fn expected(expect: &Expect) -> String {
    let outcomes: Vec<_> = expect.outcomes.iter().map(ToString::to_string).collect();
    let mut text = outcomes.join(" + ");
    for endpoint in expect.endpoints.iter().flatten().take(8) {
        let source = expect.source.as_ref().and_then(|it| it.of(*endpoint).ok().flatten());
        let saw = match source {
            Some(Source::Other(address)) => format!(" saw {address}"),
            Some(source) => format!(" saw {source}"),
            None => String::new(),
        };
        let _ = write!(text, "; {endpoint}{saw}");
    }
    if let Some(endpoints) = expect.endpoints.as_ref().filter(|it| it.len() > 8) {
        let _ = write!(text, "; {} endpoints in all", endpoints.len());
    }
    if let Some(distinct) = expect.distinct {
        let _ = write!(text, "; {distinct} different endpoint(s)");
    }
    text
}

/// Says what differs.
fn difference(expect: &Expect, seen: &Observation) -> Result<Option<String>> {
    let outcomes: BTreeSet<_> = seen.outcomes.keys().copied().collect();
    if outcomes != expect.outcomes {
        return Ok(Some(String::from("another outcome")));
    }
    let met: BTreeSet<_> = seen.endpoints.keys().copied().collect();
    if let Some(endpoints) = &expect.endpoints {
        let list = |set: BTreeSet<&std::net::SocketAddr>| {
            set.into_iter().take(8).map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        let missing = list(endpoints.difference(&met).collect());
        let foreign = list(met.difference(endpoints).collect());
        if !foreign.is_empty() {
            return Ok(Some(format!("{foreign} must not be met")));
        }
        if !missing.is_empty() {
            return Ok(Some(format!("{missing} was never met")));
        }
    }
    if let Some(distinct) = expect.distinct.filter(|distinct| *distinct != met.len()) {
        return Ok(Some(format!("{} different endpoints, not {distinct}", met.len())));
    }
    let Some(source) = &expect.source else { return Ok(None) };
    for (endpoint, sources) in &seen.sources {
        if let Some(wanted) = source.of(*endpoint)?
            && sources.iter().any(|(seen, _)| *seen != wanted)
        {
            return Ok(Some(format!("{endpoint} has to see {wanted}")));
        }
    }
    Ok(None)
}

async fn check_http(client: &Client, request: &Http) -> Result<Option<Mismatch>> {
    let answer = http_get(client, &request.url).await?;
    let (mut seen, text) = match answer {
        Err(outcome) => (serde_json::Map::new(), Value::from(outcome.to_string())),
        Ok(answer) => {
            let body = serde_json::from_str(&answer.body).ok();
            let mut fields = match body {
                Some(Value::Object(fields)) => fields,
                _ => serde_json::Map::new(),
            };
            if let Some(weight) = answer.headers.get("x-load-balancing-endpoint-weight") {
                fields.insert(String::from("weight"), Value::from(weight.clone()));
            }
            (fields, Value::from(answer.code))
        }
    };
    seen.insert(String::from("code"), text);
    if request.expect.iter().all(|(key, value)| seen.get(key) == Some(value)) {
        return Ok(None);
    }
    Ok(Some(Mismatch {
        what: format!("{} gets {}", request.from, request.url),
        expected: Value::Object(request.expect.clone()).to_string(),
        seen: Value::Object(seen).to_string(),
    }))
}

fn check_conntrack(topology: &Topology, wanted: &Conntrack) -> Result<Option<Mismatch>> {
    let port = wanted.port.map(|port| port.to_string());
    let family = if wanted.dst.contains(':') { "ipv6" } else { "ipv4" };
    let mut arguments = vec!["-L", "-f", family, "-p", &wanted.proto];
    arguments.extend(["--orig-dst", &wanted.dst, "--reply-src", &wanted.reply_src]);
    if let Some(port) = &port {
        arguments.extend(["--dport", port]);
    }
    let entries = topology.node.output("conntrack", &arguments)?;
    let gone = entries.trim().is_empty();
    if gone == wanted.expect.gone {
        return Ok(None);
    }
    let say = |gone: bool| if gone { "no entry" } else { "an entry" };
    Ok(Some(Mismatch {
        what: format!("conntrack {} to {} answered by {}", wanted.proto, wanted.dst, wanted.reply_src),
        expected: say(wanted.expect.gone).to_owned(),
        seen: if gone { say(gone).to_owned() } else { entries.trim().to_owned() },
    }))
}

/// Reads counters and sets them back.
fn check_counters(topology: &Topology, counters: &[Counter]) -> Result<Vec<Mismatch>> {
    let mut mismatches = Vec::new();
    for counter in counters {
        let mut arguments = vec!["-j", "reset", "counter"];
        arguments.extend(counter.table.split_whitespace());
        arguments.push(&counter.name);
        let listing: Value = serde_json::from_str(&topology.node.output("nft", &arguments)?)?;
        let items = listing["nftables"].as_array().into_iter().flatten();
        let packets = items.filter_map(|item| item["counter"]["packets"].as_u64()).sum::<u64>();
        if (packets > 0) != counter.counted {
            mismatches.push(Mismatch {
                what: format!("counter {} of table {}", counter.name, counter.table),
                expected: String::from(if counter.counted { "packets" } else { "none" }),
                seen: format!("{packets} packets"),
            });
        }
    }
    Ok(mismatches)
}

fn describe(at: &str, mismatches: &[Mismatch]) -> String {
    const SHOWN: usize = 6;
    let mut text = format!("{at}, {} of the checks failed:\n", mismatches.len());
    for mismatch in mismatches.iter().take(SHOWN) {
        let Mismatch { what, expected, seen } = mismatch;
        let _ = write!(text, "  {what}\n    expected: {expected}\n    seen:     {seen}\n");
    }
    if mismatches.len() > SHOWN {
        let _ = writeln!(text, "  and {} more", mismatches.len() - SHOWN);
    }
    text
}
