//! Names and values as nft prints them, and names as the kernel gives them back.

use std::fmt;
use std::str::FromStr;

use crate::cluster::Protocol;

use super::super::model::{Chain, Element, Key, Set, Verdict};

/// A name that sluice does not give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a name of sluice")]
pub struct UnknownName;

/// Chains whose names have no number in them.
const PLAIN_CHAINS: [(Chain, &str); 15] = [
    (Chain::Prerouting, "prerouting"),
    (Chain::Output, "output"),
    (Chain::PreroutingUnclaimed, "prerouting-unclaimed"),
    (Chain::OutputUnclaimed, "output-unclaimed"),
    (Chain::Postrouting, "postrouting"),
    (Chain::Services, "services"),
    (Chain::Unclaimed, "unclaimed"),
    (Chain::Special, "special"),
    (Chain::AfterDnat, "after-dnat"),
    (Chain::MasqueradeExternal, "masquerade-external"),
    (Chain::NoEndpoints, "no-endpoints"),
    (Chain::PreroutingInvalid, "prerouting-invalid"),
    (Chain::OutputInvalid, "output-invalid"),
    (Chain::Invalid, "invalid"),
    (Chain::DropInvalid, "drop-invalid"),
];

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Chain::Endpoints(n) => write!(f, "endpoints-{n}"),
            Chain::Local(n) => write!(f, "local-{n}"),
            Chain::Pick(timeout, slot) => write!(f, "pick-{timeout}-{slot}"),
            Chain::Sticky(slots, choices) => write!(f, "sticky-{slots}-{choices}"),
            Chain::StickyLocal(slots, choices) => write!(f, "sticky-local-{slots}-{choices}"),
            plain => f.write_str(
                PLAIN_CHAINS.iter().find(|(chain, _)| chain == plain).map_or("", |(_, name)| name),
            ),
        }
    }
}

impl FromStr for Chain {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Chain, UnknownName> {
        if let Some((chain, _)) = PLAIN_CHAINS.iter().find(|(_, plain)| *plain == name) {
            return Ok(*chain);
        }
        let (name, local) = match name.strip_prefix("sticky-local-") {
            Some(numbers) => (numbers, true),
            None => (name, false),
        };
        let mut parts = name.split('-');
        if local {
            let mut next = || number(parts.next().ok_or(UnknownName)?);
            let chain = Chain::StickyLocal(next()?, next()?);
            return parts.next().is_none().then_some(chain).ok_or(UnknownName);
        }
        let mut next = || parts.next().ok_or(UnknownName);
        let chain = match next()? {
            "endpoints" => Chain::Endpoints(number(next()?)?),
            "local" => Chain::Local(number(next()?)?),
            "pick" => Chain::Pick(number(next()?)?, number(next()?)?),
            "sticky" => Chain::Sticky(number(next()?)?, number(next()?)?),
            _ => return Err(UnknownName),
        };
        parts.next().is_none().then_some(chain).ok_or(UnknownName)
    }
}

/// A number as it is printed: no sign, no leading zero.
fn number(text: &str) -> Result<u32, UnknownName> {
    let canonical = text == "0" || text.starts_with(|first: char| matches!(first, '1'..='9'));
    text.parse().ok().filter(|_| canonical).ok_or(UnknownName)
}

const PLAIN_SETS: [(Set, &str); 20] = [
    (Set::PodCidrs, "pod-cidrs"),
    (Set::ServiceCidrs, "service-cidrs"),
    (Set::ClusterIps, "cluster-ips"),
    (Set::IpvsAddresses, "ipvs-addresses"),
    (Set::Services, "services"),
    (Set::Endpoints, "endpoints"),
    (Set::Special, "special"),
    (Set::Restricted, "restricted"),
    (Set::AllowedSources(Protocol::Tcp), "allowed-sources-tcp"),
    (Set::AllowedSources(Protocol::Udp), "allowed-sources-udp"),
    (Set::AllowedSources(Protocol::Sctp), "allowed-sources-sctp"),
    (Set::LocalServices, "local-services"),
    (Set::MasqueradeAll, "masquerade-all"),
    (Set::MasqueradeOwn, "masquerade-own"),
    (Set::Hairpin, "hairpin"),
    (Set::AffinityIds, "affinity-ids"),
    (Set::LocalAffinityIds, "local-affinity-ids"),
    (Set::Slots, "slots"),
    (Set::Choices, "choices"),
    (Set::Serving, "serving"),
];

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Set::Sticky(slot) => write!(f, "sticky-{slot}"),
            plain => {
                f.write_str(PLAIN_SETS.iter().find(|(set, _)| set == plain).map_or("", |(_, name)| name))
            }
        }
    }
}

impl FromStr for Set {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Set, UnknownName> {
        if let Some((set, _)) = PLAIN_SETS.iter().find(|(_, plain)| *plain == name) {
            return Ok(*set);
        }
        Ok(Set::Sticky(number(name.strip_prefix("sticky-").ok_or(UnknownName)?)?))
    }
}

/// A key as a concatenation: `10.96.0.10 . tcp . 80`.
struct Concatenated<'a>(&'a Key);

impl fmt::Display for Concatenated<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} . {} . {}", self.0.address, self.0.protocol, self.0.port)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Return => f.write_str("return"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
        }
    }
}

/// An id of a service port as nft prints a packet priority: two halves, hexadecimal.
struct Priority(u32);

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("none"),
            u32::MAX => f.write_str("root"),
            id => write!(f, "{:x}:{:x}", id >> 16, id & 0xffff),
        }
    }
}

impl Element {
    /// Its key alone, as nft prints it.
    pub fn key(&self) -> impl fmt::Display + '_ {
        ElementKey(self)
    }
}

struct ElementKey<'a>(&'a Element);

impl fmt::Display for ElementKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Element::PodCidr(net) | Element::ServiceCidr(net) => network(f, net),
            Element::ClusterIp(address) | Element::IpvsAddress(address) => write!(f, "{address}"),
            Element::Endpoint(key, index, _) => write!(f, "{} . {index}", Concatenated(key)),
            Element::AllowedSource(key, net) => {
                write!(f, "{} . {} . ", key.address, key.port)?;
                network(f, net)
            }
            Element::Hairpin(address) => write!(f, "{address} . {address}"),
            Element::Slot(id, index, _) | Element::Choice(id, index, _) => {
                write!(f, "{} . {index}", Priority(*id))
            }
            Element::Service(key, _)
            | Element::Special(key)
            | Element::Restricted(key)
            | Element::LocalService(key, _)
            | Element::MasqueradeAll(key)
            | Element::MasqueradeOwn(key)
            | Element::AffinityId(key, _)
            | Element::LocalAffinityId(key, _)
            | Element::Serving(key) => write!(f, "{}", Concatenated(key)),
        }
    }
}

impl fmt::Display for Element {
    /// As nft prints it between the braces of its set: `10.96.0.10 . tcp . 80 : goto endpoints-2`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.key())?;
        match self {
            Element::Service(_, verdict)
            | Element::LocalService(_, verdict)
            | Element::Slot(_, _, verdict)
            | Element::Choice(_, _, verdict) => write!(f, " : {verdict}"),
            Element::Endpoint(_, _, endpoint) => write!(f, " : {} . {}", endpoint.ip(), endpoint.port()),
            Element::AffinityId(_, id) | Element::LocalAffinityId(_, id) => write!(f, " : {}", Priority(*id)),
            _ => Ok(()),
        }
    }
}

/// A network as nft prints it: an address alone where it is only that.
fn network(f: &mut fmt::Formatter<'_>, net: &ipnet::IpNet) -> fmt::Result {
    if net.prefix_len() == net.max_prefix_len() {
        write!(f, "{}", net.addr())
    } else {
        write!(f, "{}", net.trunc())
    }
}

/// Seconds, as nft prints a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duration(pub u32);

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, hours, minutes, seconds) =
            (self.0 / 86_400, self.0 / 3600 % 24, self.0 / 60 % 60, self.0 % 60);
        for (amount, unit) in [(days, 'd'), (hours, 'h'), (minutes, 'm')] {
            if amount > 0 {
                write!(f, "{amount}{unit}")?;
            }
        }
        if seconds > 0 || self.0 == 0 {
            write!(f, "{seconds}s")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let chains = PLAIN_CHAINS.into_iter().map(|(chain, _)| chain).chain([
            Chain::Endpoints(10),
            Chain::Local(1),
            Chain::Pick(10800, 0),
            Chain::Sticky(3, 2),
            Chain::StickyLocal(3, 2),
        ]);
        for chain in chains {
            assert_eq!(chain.to_string().parse(), Ok(chain));
        }
        for set in PLAIN_SETS.into_iter().map(|(set, _)| set).chain([Set::Sticky(7)]) {
            assert_eq!(set.to_string().parse(), Ok(set));
        }
    }

    #[test]
    fn other_names_are_not_ours() {
        for name in [
            "",
            "endpoints",
            "endpoints-",
            "endpoints-01",
            "endpoints-1-2",
            "pick-1",
            "local--1",
            "sticky-+1-2",
        ] {
            assert_eq!(name.parse::<Chain>(), Err(UnknownName), "{name}");
        }
        for name in ["", "sticky", "sticky-", "sticky-1-2", "sticky-00", "allowed-sources-icmp"] {
            assert_eq!(name.parse::<Set>(), Err(UnknownName), "{name}");
        }
    }

    #[test]
    fn times_are_printed_as_nft_does() {
        let texts = [0, 4, 90, 3600, 10_800, 90_061].map(|seconds| Duration(seconds).to_string());
        assert_eq!(texts, ["0s", "4s", "1m30s", "1h", "3h", "1d1h1m1s"]);
    }
}
