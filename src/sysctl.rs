//! Settings of the kernel that Services need: connection tracking as kube-proxy's `conntrack` section says, and
//! forwarding.
//!
//! Which can be set depends on where this runs: a container without privilege has `/proc/sys` read-only, and in a
//! network namespace other than the first the table of connections has a fixed size. An init container with
//! `--init-only` and privilege can set all.

use std::fs;
use std::io;
use std::path::PathBuf;

use tracing::{info, warn};

use crate::cluster::Family;
use crate::config::{Config, Conntrack, DetectLocal};
use crate::events::{Event, Events, Type, reasons};
use crate::netlink::{self, Request, Socket, generic};

/// `IPCTNL_MSG_CT_GET_STATS_CPU` of `linux/netfilter/nfnetlink_conntrack.h`.
const IPCTNL_MSG_CT_GET_STATS_CPU: u8 = 4;
/// kube-proxy's bound for what `maxPerCore` comes to.
const MOST_SCALED: u64 = 1 << 20;
/// `RTF_ADDRCONF` of `linux/ipv6_route.h`: the route came by a router advertisement.
const RTF_ADDRCONF: u32 = 0x0004_0000;

/// How many connections are tracked at most.
pub const MAX: &str = "net.netfilter.nf_conntrack_max";
/// Rows of the hash table; the kernel resizes it at once.
const BUCKETS: &str = "net.netfilter.nf_conntrack_buckets";
/// Whether conntrack takes TCP segments out of the window for part of their connection.
pub const TCP_BE_LIBERAL: &str = "net.netfilter.nf_conntrack_tcp_be_liberal";
/// Whether connection tracking knows what IPVS translates.
pub const IPVS_CONNTRACK: &str = "net.ipv4.vs.conntrack";
/// Whether the host forwards packets.
pub const IPV4_FORWARD: &str = "net.ipv4.ip_forward";
/// The same for IPv6.
pub const IPV6_FORWARD: &str = "net.ipv6.conf.all.forwarding";

/// One setting and what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// As `sysctl` names it.
    pub name: &'static str,
    /// What it should be.
    pub value: u64,
    /// Whether more is as good.
    pub at_least: bool,
}

impl Setting {
    fn is_met(&self, now: u64) -> bool {
        now == self.value || self.at_least && now > self.value
    }
}

/// Why a setting is not what it should be.
#[derive(Debug, thiserror::Error)]
#[error("{name}={value} ({})", .problem)]
pub struct Unset {
    /// As `sysctl` names it.
    pub name: &'static str,
    /// What it should be.
    pub value: u64,
    /// Why it could not be set.
    pub problem: Problem,
}

/// Why a setting could not be read or set.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It is not there, or does not let itself be read.
    #[error("it cannot be read: {0}")]
    Unreadable(#[source] io::Error),
    /// It does not let itself be written.
    #[error("it is {now}: {error}")]
    Unwritable {
        /// What it is.
        now: u64,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// With forwarding the kernel ignores router advertisements, by which this host has its default route.
    #[error(
        "it is 0, and with 1 this host would lose its default route, which it has by router advertisements: set net.ipv6.conf.{interface}.accept_ra=2 first"
    )]
    DefaultRoute {
        /// Where the route leads.
        interface: String,
    },
}

impl Problem {
    /// Settings are mounted read-only, as in a container without privilege.
    fn is_read_only(&self) -> bool {
        matches!(self, Problem::Unwritable { error, .. } if error.kind() == io::ErrorKind::ReadOnlyFilesystem)
    }
}

/// What a configuration asks for on a host with so many CPUs.
pub fn wanted(config: &Config, cpus: u64) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut set = |name, value, at_least| settings.push(Setting { name, value, at_least });
    let c = &config.conntrack;
    if let Some(max) = conntrack_max(c, cpus) {
        set(MAX, max, true);
        set(BUCKETS, max / 4, true);
    }
    for (name, timeout) in [
        ("net.netfilter.nf_conntrack_tcp_timeout_established", c.tcp_established_timeout),
        ("net.netfilter.nf_conntrack_tcp_timeout_close_wait", c.tcp_close_wait_timeout),
        ("net.netfilter.nf_conntrack_udp_timeout", c.udp_timeout),
        ("net.netfilter.nf_conntrack_udp_timeout_stream", c.udp_stream_timeout),
    ] {
        if let Some(timeout) = timeout {
            set(name, timeout.as_secs(), false);
        }
    }
    if c.tcp_be_liberal {
        set(TCP_BE_LIBERAL, 1, false);
    }
    if let Some(ipvs) = &config.ipvs {
        // As kube-proxy. conntrack: masquerade knows the connection. expire_nodest_conn: what goes to a deleted endpoint
        // goes to another at once. expire_quiescent_template: a client sticks to no endpoint that takes no connections.
        // conn_reuse_mode stays 1: the delay of a second that made kube-proxy set 0 is gone since Linux 5.9.
        set(IPVS_CONNTRACK, 1, false);
        set("net.ipv4.vs.expire_nodest_conn", 1, false);
        set("net.ipv4.vs.expire_quiescent_template", 1, false);
        if ipvs.strict_arp {
            set("net.ipv4.conf.all.arp_ignore", 1, false);
            set("net.ipv4.conf.all.arp_announce", 2, false);
        }
    }
    for family in families(config) {
        set(if family == Family::Ipv4 { IPV4_FORWARD } else { IPV6_FORWARD }, 1, true);
    }
    settings
}

/// As kube-proxy: so many a core, but not less than the least, if it is to be touched at all.
fn conntrack_max(conntrack: &Conntrack, cpus: u64) -> Option<u64> {
    let scaled = (u64::from(conntrack.max_per_core) * cpus).min(MOST_SCALED);
    (scaled > 0).then_some(scaled.max(conntrack.min.into()))
}

/// The families that the configuration speaks of.
fn families(config: &Config) -> Vec<Family> {
    let cidrs = match &config.detect_local {
        DetectLocal::ClusterCidr(cidrs) => cidrs.as_slice(),
        _ => &[],
    };
    let named = |family| {
        cidrs.iter().any(|c| Family::of_net(c) == family)
            || config.bind_address.is_some_and(|a| Family::of(a) == family)
    };
    match Family::ALL.into_iter().filter(|f| named(*f)).collect::<Vec<_>>() {
        none if none.is_empty() => vec![Family::Ipv4],
        some => some,
    }
}

/// Sets what is not as it should be, in the network namespace of the calling thread. Says what was set, and returns
/// what could not be.
pub fn apply(settings: &[Setting]) -> Vec<Unset> {
    load_conntrack();
    if settings.iter().any(|setting| setting.name == IPVS_CONNTRACK) {
        load_ipvs();
    }
    let mut unset = Vec::new();
    for setting in settings {
        let Setting { name, value, .. } = *setting;
        match apply_one(setting) {
            Ok(None) => {}
            Ok(Some(before)) => info!("set {name}={value} (it was {before})"),
            Err(problem) => unset.push(Unset { name, value, problem }),
        }
    }
    unset
}

/// The same for `run` and `--init-only`: a host without these settings serves, so this is one warning, and an event at
/// the Node.
pub fn apply_and_warn(config: &Config, events: &Events) {
    let unset = apply(&wanted(config, cpus()));
    if unset.is_empty() {
        return;
    }
    let list = unset.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let on_host: String = unset.iter().map(|u| format!(" {}={}", u.name, u.value)).collect();
    warn!(
        "settings of the kernel could not be set: {list}. Run `sluice run --init-only` with the same configuration in a \
         privileged init container, or set them on the host: sysctl -w{on_host}; fields of conntrack that are 0 \
         (maxPerCore: 0) leave what the host has"
    );
    let note = format!(
        "settings of the kernel could not be set; the log says why. Run `sluice run --init-only` with the same configuration \
         in a privileged init container, or on the host: sysctl -w{on_host}"
    );
    let read_only = unset.iter().any(|unset| unset.problem.is_read_only());
    let reason = if read_only { reasons::READ_ONLY_SYSCTLS } else { reasons::SYSCTLS };
    events.send(Event::node(Type::Warning, reason, note));
}

/// What it was, if it was changed.
fn apply_one(setting: &Setting) -> Result<Option<u64>, Problem> {
    let now = read(setting.name).map_err(Problem::Unreadable)?;
    if setting.is_met(now) {
        return Ok(None);
    }
    if setting.name == IPV6_FORWARD
        && let Some(interface) = advertised_default_route()
    {
        return Err(Problem::DefaultRoute { interface });
    }
    match fs::write(path(setting.name), setting.value.to_string()) {
        Ok(()) => Ok(Some(now)),
        Err(error) => Err(Problem::Unwritable { now, error }),
    }
}

/// The settings that are not as they should be, with what they are.
pub fn differing(settings: &[Setting]) -> Vec<(Setting, io::Result<u64>)> {
    let now = settings.iter().map(|setting| (*setting, read(setting.name)));
    now.filter(|(setting, now)| !now.as_ref().is_ok_and(|now| setting.is_met(*now))).collect()
}

/// A setting's value.
///
/// # Errors
/// When it is not there: its module is not loaded.
pub fn read(name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(path(name))?;
    text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not a number"))
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/{}", name.replace('.', "/")))
}

/// The interface of an IPv6 default route that came by a router advertisement, which forwarding would make the kernel
/// ignore.
fn advertised_default_route() -> Option<String> {
    let routes = fs::read_to_string("/proc/thread-self/net/ipv6_route").ok()?;
    let interface = advertised_default_route_in(&routes)?;
    let accepts_all = read(&format!("net.ipv6.conf.{interface}.accept_ra")).is_ok_and(|value| value == 2);
    (!accepts_all).then_some(interface)
}

fn advertised_default_route_in(routes: &str) -> Option<String> {
    routes.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [destination, "00", _, _, _, _, _, _, flags, interface] = fields[..] else { return None };
        let flags = u32::from_str_radix(flags, 16).ok()?;
        let is_default = destination.bytes().all(|b| b == b'0');
        (is_default && flags & RTF_ADDRCONF != 0).then(|| interface.to_owned())
    })
}

/// The kernel loads connection tracking when somebody asks for it.
fn load_conntrack() {
    if path(MAX).exists() {
        return;
    }
    let asked = Socket::open().and_then(|mut socket| {
        let request = Request::dump_conntrack(IPCTNL_MSG_CT_GET_STATS_CPU, 0);
        socket.dump(&request, |_| Ok::<(), netlink::Error>(()))
    });
    if let Err(error) = asked {
        info!(%error, "connection tracking could not be loaded");
    }
}

/// The kernel loads IPVS when somebody asks for it.
fn load_ipvs() {
    if !path(IPVS_CONNTRACK).exists()
        && let Err(error) = Socket::open_generic().and_then(|mut socket| generic::family(&mut socket, "IPVS"))
    {
        info!(%error, "IPVS could not be loaded");
    }
}

/// The host's CPUs, whatever this process may use of them: the table of connections is the host's.
pub fn cpus() -> u64 {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").ok();
    let counted = online.and_then(|text| count_cpus(&text));
    counted.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get() as u64))
}

/// Counts a list such as `0-3,8`.
fn count_cpus(text: &str) -> Option<u64> {
    let ranges = text.trim().split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    });
    ranges.sum::<Option<u64>>().filter(|count| *count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_kube_proxys() {
        let max = |max_per_core, min, cpus| {
            conntrack_max(&Conntrack { max_per_core, min, ..Conntrack::default() }, cpus)
        };
        assert_eq!(max(32768, 131_072, 2), Some(131_072));
        assert_eq!(max(32768, 131_072, 8), Some(262_144));
        assert_eq!(max(32768, 131_072, 1000), Some(1_048_576));
        assert_eq!(max(0, 131_072, 8), None, "0 leaves the limit, whatever the least is");
        assert_eq!(max(1, 0, 8), Some(8));
    }

    #[test]
    fn cpus_are_counted() {
        assert_eq!(count_cpus("0\n"), Some(1));
        assert_eq!(count_cpus("0-3,8,10-11\n"), Some(7));
        for odd in ["", "x", "3-1", "0-18446744073709551615"] {
            assert_eq!(count_cpus(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn a_default_route_by_advertisement_is_found() {
        let zero = "0".repeat(32);
        let line = |destination: &str, length: &str, flags: &str| {
            format!("{destination} {length} {zero} 00 {zero} 00000400 00000001 00000000 {flags}     eth0\n")
        };
        let advertised = line(&zero, "00", "00450003");
        let other =
            line(&zero, "00", "00000003") + &line(&format!("fd00{}", "0".repeat(28)), "40", "00450003");
        assert_eq!(advertised_default_route_in(&(other.clone() + &advertised)).as_deref(), Some("eth0"));
        assert_eq!(advertised_default_route_in(&other), None);
    }
}
