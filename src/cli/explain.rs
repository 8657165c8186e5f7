//! `sluice explain`.

use std::fmt::{self, Display, Write as _};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::ensure;
use clap::Args;

use super::dump::{self, View};
use super::logging;
use super::settings::{Format, Settings};
use crate::cluster::{Family, Protocol};
use crate::forwarding::explain::{Answer, Client, Explanation, Origin, Unused, Verdict, explain};
use crate::forwarding::{Desired, FrontendKind, Key, Used};

/// What is said of the command below its flags.
const AFTER_HELP: &str = "\
Exit status:
  0  an endpoint of a Service answers (to one of a pod, this node, an outside client; or to --from)
  1  refused, dropped, or left alone
  2  trouble, or wrong usage

JSON (--format json), one object; fields and words stay, new ones may come:
  destination    \"ADDRESS:PORT/PROTOCOL\"
  winner         null, or who answers: service, port (name), kind (cluster-ip, node-port, load-balancer, external-ip),
                 affinitySeconds (null: none), sources (null: everybody)
  losers         who else claims it: service, kind, refused (true: it is another Service's ClusterIP or, with forbidden,
                 a flag says so; false: ranks lower)
  clusterIpOf    Services with this ClusterIP: service, ports (\"80/tcp\")
  answers        one each for a pod, this node, an outside client; or one for --from:
    client         origin (pod, node, outside), address, countsAsPod, countsAsNode
    verdict        forwarded, refused, dropped, untouched
    reason         null, no-endpoints, no-such-port, other-ports, no-local-endpoints, source-not-allowed, not-allocated, not-ours,
                   not-relayed, own-loopback
    policy         null, Cluster, Local
    scheduler      null, or in mode ipvs the name of the IPVS scheduler that chooses
    sharePercent   of each endpoint; null where there is none, or the scheduler does not choose evenly
    endpoints      address, node, because (ready, still-serving), hairpin (masqueraded if it is the client itself)
    leftOut        address, port, because (not-ready, terminated, terminating, hinted-for-another-zone,
                   hinted-for-another-node, not-on-this-node, other-family, no-such-port, duplicate, too-many)
    masqueraded    null, all, off-cluster, external, own, own-by-ipvs, relayed";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct Explain {
    /// Where to: ADDRESS:PORT, [ADDRESS]:PORT for IPv6; with /udp or /sctp if it is not TCP.
    #[arg(value_name = "ADDR:PORT[/PROTOCOL]")]
    destination: Destination,
    /// The client's address. Without it: a pod, this node, and an outside client.
    #[arg(long, value_name = "ADDR", help_heading = "What is asked")]
    from: Option<IpAddr>,
    /// For people or for programs.
    #[arg(long, value_enum, default_value_t, help_heading = "What is asked")]
    format: Format,
    #[command(flatten)]
    pub(super) settings: Settings,
}

/// A key as it is written on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Destination(Key);

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Destination, String> {
        let (address, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = Protocol::ALL
            .into_iter()
            .find(|p| p.to_string().eq_ignore_ascii_case(protocol))
            .ok_or_else(|| format!("{protocol:?} is none of tcp, udp, sctp"))?;
        let address: SocketAddr =
            address.parse().map_err(|_| "neither ADDRESS:PORT nor [ADDRESS]:PORT".to_owned())?;
        if address.port() == 0 {
            return Err("port 0 is no port".to_owned());
        }
        Ok(Destination(Key { address: address.ip(), protocol, port: address.port() }))
    }
}

impl Explain {
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        logging::warnings_only();
        let Destination(key) = self.destination;
        if let Some(from) = self.from {
            ensure!(Family::of(from) == key.family(), "--from {from} is not of the family of {key}");
        }
        let View { index, node, settings, own } = dump::view(&self.settings)?;
        let (desired, _) = Desired::from_scratch(&index, node, settings);
        let clients = match self.from {
            Some(from) => vec![Client::at(from, &own, desired.settings(), &index)],
            None => Client::each(desired.settings(), key.family()).into(),
        };
        let explanation = explain(&desired, &index, key, &own, &clients);
        let text = match self.format {
            Format::Text => Text(&explanation).to_string(),
            Format::Json => serde_json::to_string_pretty(&explanation)? + "\n",
        };
        // The status says what was asked even if nobody reads on.
        match std::io::stdout().lock().write_all(text.as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(error.into()),
            _ => {}
        }
        Ok(if explanation.is_served() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// An explanation in words.
struct Text<'a>(&'a Explanation);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Explanation { destination, winner, losers, cluster_ip_of, answers } = self.0;
        match winner {
            Some(winner) => {
                write!(f, "{destination} is served as {} of {}", winner.kind, winner.service)?;
                let port =
                    if winner.port.is_empty() { String::new() } else { format!(", port {}", winner.port) };
                writeln!(f, "{port}")?;
                if let Some(sources) = &winner.sources {
                    writeln!(f, "  only for {}; others are dropped", list(sources.iter()))?;
                }
                if let Some(seconds) = winner.affinity_seconds {
                    writeln!(
                        f,
                        "  a client stays with its endpoint until {seconds} s after its last new connection"
                    )?;
                }
            }
            None => {
                writeln!(f, "{destination} is no Service port's")?;
                for owner in cluster_ip_of {
                    writeln!(f, "  ClusterIP of {}, with {}", owner.service, list(owner.ports.iter()))?;
                }
            }
        }
        for loser in losers {
            let why = match (loser.refused, loser.forbidden, loser.kind) {
                (false, ..) => "ranks lower",
                (_, true, FrontendKind::LoadBalancer) => "refused by --allowed-load-balancer-ips",
                (_, true, _) => "refused by --allowed-external-ips",
                (_, false, _) => "refused, since it is another Service's ClusterIP",
            };
            writeln!(f, "  claimed by {} as {}: {why}", loser.service, loser.kind)?;
        }
        let mut rest: Vec<&Answer> = answers.iter().collect();
        while let Some(first) = rest.first().copied() {
            let (alike, others): (Vec<&Answer>, Vec<&Answer>) =
                rest.into_iter().partition(|answer| experience(answer) == experience(first));
            writeln!(f, "\nFrom {}:", alternatives(&alike))?;
            f.write_str(&experience(first))?;
            rest = others;
        }
        Ok(())
    }
}

fn alternatives(answers: &[&Answer]) -> String {
    let name = |client: &Client| match client.address {
        Some(address) => format!("{address}, {}", client.origin),
        None => client.origin.to_string(),
    };
    let names: Vec<String> = answers.iter().map(|answer| name(&answer.client)).collect();
    match names.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

/// What a client gets to see, in lines.
fn experience(answer: &Answer) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let _ = write_experience(&mut out, answer);
    out
}

fn write_experience(out: &mut String, answer: &Answer) -> fmt::Result {
    let verdict = match answer.verdict {
        Verdict::Forwarded => "forwarded",
        Verdict::Refused => "refused",
        Verdict::Dropped => "dropped",
        Verdict::Untouched => "left alone",
    };
    match answer.reason {
        Some(reason) => writeln!(out, "  {verdict}: {reason}")?,
        None => {
            let share = format!("{:.2}", answer.share_percent.unwrap_or_default());
            let share = share.trim_end_matches('0').trim_end_matches('.');
            let count = answer.endpoints.len();
            let each = match (count, answer.share_percent) {
                (1, _) => "1 endpoint".into(),
                (_, Some(_)) => format!("one of {count} endpoints, {share}% each"),
                (_, None) => format!("one of {count} endpoints"),
            };
            let by = answer.scheduler.map_or(String::new(), |name| format!(", by IPVS, scheduler {name}"));
            writeln!(out, "  {verdict} to {each}{by}")?;
        }
    }
    for endpoint in &answer.endpoints {
        let node = endpoint.node.as_ref().map_or(String::new(), |node| format!(" on {node}"));
        let because = match endpoint.because {
            Used::Ready => "",
            Used::StillServing => ", terminating but serving, since none is ready",
        };
        writeln!(out, "    {}{node}{because}", endpoint.address)?;
    }
    if answer.verdict == Verdict::Forwarded {
        write_masquerade(out, answer)?;
    }
    let mut unused = answer.left_out.as_slice();
    while let Some(first) = unused.first() {
        let (alike, others) = unused.split_at(unused.partition_point(|u| u.because <= first.because));
        let address = |unused: &Unused| match unused.port {
            Some(port) => SocketAddr::new(unused.address, port).to_string(),
            None => unused.address.to_string(),
        };
        writeln!(out, "  left out, {}: {}", first.because, list(alike.iter().map(address)))?;
        unused = others;
    }
    if answer.client.origin == Origin::Pod && !answer.client.counts_as_pod {
        writeln!(out, "  (pods count as outside clients here: nothing says how to tell them)")?;
    }
    Ok(())
}

fn write_masquerade(out: &mut String, answer: &Answer) -> fmt::Result {
    if let Some(why) = answer.masqueraded {
        return writeln!(out, "  masqueraded: {why}");
    }
    let hairpin: Vec<IpAddr> =
        answer.endpoints.iter().filter(|e| e.hairpin).map(|e| e.address.ip()).collect();
    match (hairpin.as_slice(), answer.client.address) {
        ([], _) => writeln!(out, "  not masqueraded: the endpoint sees the client's address"),
        (_, Some(_)) if answer.endpoints.len() == 1 => {
            writeln!(out, "  masqueraded: the client reaches itself")
        }
        (_, Some(_)) => writeln!(out, "  masqueraded only where the client reaches itself"),
        (pods, None) => writeln!(out, "  masqueraded only where a pod reaches itself: {}", list(pods.iter())),
    }
}

/// So many are named in a line; JSON has them all.
const NAMED: usize = 20;

fn list(items: impl ExactSizeIterator<Item = impl Display>) -> String {
    let more = items.len().saturating_sub(NAMED);
    let mut text = items.take(NAMED).map(|item| item.to_string()).collect::<Vec<_>>().join(", ");
    if more > 0 {
        let _ = write!(text, " and {more} more");
    }
    text
}

#[cfg(test)]
mod tests;
