//! The nouns of the nftables data plane, as plain values: what a table consists of (sets, chains, rules,
//! elements), independent of how it is encoded for the kernel or printed.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::cluster::Protocol;
pub use crate::forwarding::{Key, LocalDetection};

/// Name of the tables, `ip sluice` and `ip6 sluice`.
pub const TABLE: &str = "sluice";

/// Index of the first node-local endpoint of a key in the map `endpoints`; below it are all usable endpoints.
pub const LOCAL_OFFSET: u32 = 32768;

/// Where a set lookup or a rule sends a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// `accept`.
    Accept,
    /// `drop`.
    Drop,
    /// `return`.
    Return,
    /// `goto CHAIN`.
    Goto(Chain),
    /// `jump CHAIN`.
    Jump(Chain),
}

/// Every chain that sluice makes. Names are made by `Display` and read by `FromStr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Chain {
    /// Base chain: nat prerouting, dstnat - 1.
    Prerouting,
    /// Base chain: nat output, -101.
    Output,
    /// Base chain: nat prerouting -50, after every other translator.
    PreroutingUnclaimed,
    /// Base chain: nat output -50.
    OutputUnclaimed,
    /// Base chain: nat postrouting, srcnat.
    Postrouting,
    /// Looks a packet's destination up.
    Services,
    /// Service addresses that nobody translated.
    Unclaimed,
    /// `externalTrafficPolicy: Local` and source ranges.
    Special,
    /// Masquerade decisions.
    AfterDnat,
    /// Masquerade decisions for external addresses.
    MasqueradeExternal,
    /// Refuses.
    NoEndpoints,
    /// Base chain: filter prerouting, mangle; only where INVALID packets are dropped.
    PreroutingInvalid,
    /// Base chain: filter output, mangle; the same.
    OutputInvalid,
    /// INVALID packets: which of them concern Services.
    Invalid,
    /// Counts and drops them.
    DropInvalid,
    /// `endpoints-N`: one of N endpoints at random.
    Endpoints(u32),
    /// `local-N`: one of N node-local endpoints at random.
    Local(u32),
    /// `pick-T-K`: remember the client for T seconds, go to slot K.
    Pick(u32, u32),
    /// `sticky-M-N`: the client's slot among M, else one of N choices.
    Sticky(u32, u32),
    /// `sticky-local-M-N`: the same for traffic from outside under the Local policy, which has ids of its own.
    StickyLocal(u32, u32),
}

impl Chain {
    /// Whether the chain is there only as long as an element sends packets to it: its name has a count.
    pub fn is_counted(self) -> bool {
        matches!(
            self,
            Chain::Endpoints(_)
                | Chain::Local(_)
                | Chain::Pick(..)
                | Chain::Sticky(..)
                | Chain::StickyLocal(..)
        )
    }
}

/// Every set and map that sluice makes. Names are made by `Display` and read by `FromStr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Set {
    /// `pod-cidrs`, intervals of addresses that count as inside.
    PodCidrs,
    /// `service-cidrs`, intervals.
    ServiceCidrs,
    /// `cluster-ips`.
    ClusterIps,
    /// `ipvs-addresses`, only where IPVS translates: what the device kube-ipvs0 holds.
    IpvsAddresses,
    /// `services`: key → verdict.
    Services,
    /// `endpoints`: key . index → address . port.
    Endpoints,
    /// `special`: keys that go through chain `special` first.
    Special,
    /// `restricted`: keys with source ranges.
    Restricted,
    /// `allowed-sources-{tcp,udp,sctp}`: address . port . source interval.
    AllowedSources(Protocol),
    /// `local-services`: key → verdict for traffic from outside.
    LocalServices,
    /// `masquerade-all`: keys whose connections are always masqueraded.
    MasqueradeAll,
    /// `masquerade-own`: keys for which only this node's own connections are.
    MasqueradeOwn,
    /// `hairpin`: endpoint . endpoint.
    Hairpin,
    /// `affinity-ids`: key → id of the service port.
    AffinityIds,
    /// `local-affinity-ids`: key → id of the service port for traffic from outside under the Local policy.
    LocalAffinityIds,
    /// `slots`: id . K → pick chain, live slots only.
    Slots,
    /// `choices`: id . 0..N-1 → pick chain, dense.
    Choices,
    /// `serving`, only where INVALID packets are dropped: endpoints, as their packets' source.
    Serving,
    /// `sticky-K`: client . id, dynamic with timeout.
    Sticky(u32),
}

/// One element of a set.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Element {
    /// In `pod-cidrs`.
    PodCidr(IpNet),
    /// In `service-cidrs`.
    ServiceCidr(IpNet),
    /// In `cluster-ips`.
    ClusterIp(IpAddr),
    /// In `ipvs-addresses`.
    IpvsAddress(IpAddr),
    /// In `services`.
    Service(Key, Verdict),
    /// In `endpoints`.
    Endpoint(Key, u32, SocketAddr),
    /// In `special`.
    Special(Key),
    /// In `restricted`.
    Restricted(Key),
    /// In `allowed-sources-PROTOCOL`.
    AllowedSource(Key, IpNet),
    /// In `local-services`.
    LocalService(Key, Verdict),
    /// In `masquerade-all`.
    MasqueradeAll(Key),
    /// In `masquerade-own`.
    MasqueradeOwn(Key),
    /// In `hairpin`: the address twice.
    Hairpin(IpAddr),
    /// In `affinity-ids`.
    AffinityId(Key, u32),
    /// In `local-affinity-ids`.
    LocalAffinityId(Key, u32),
    /// In `slots`: id, slot index, the pick chain.
    Slot(u32, u32, Verdict),
    /// In `choices`: id, dense index, the pick chain.
    Choice(u32, u32, Verdict),
    /// In `serving`: an endpoint.
    Serving(Key),
}

impl Element {
    /// The set that the element belongs to.
    pub fn set(&self) -> Set {
        match self {
            Element::PodCidr(_) => Set::PodCidrs,
            Element::ServiceCidr(_) => Set::ServiceCidrs,
            Element::ClusterIp(_) => Set::ClusterIps,
            Element::IpvsAddress(_) => Set::IpvsAddresses,
            Element::Service(..) => Set::Services,
            Element::Endpoint(..) => Set::Endpoints,
            Element::Special(_) => Set::Special,
            Element::Restricted(_) => Set::Restricted,
            Element::AllowedSource(key, _) => Set::AllowedSources(key.protocol),
            Element::LocalService(..) => Set::LocalServices,
            Element::MasqueradeAll(_) => Set::MasqueradeAll,
            Element::MasqueradeOwn(_) => Set::MasqueradeOwn,
            Element::Hairpin(_) => Set::Hairpin,
            Element::AffinityId(..) => Set::AffinityIds,
            Element::LocalAffinityId(..) => Set::LocalAffinityIds,
            Element::Slot(..) => Set::Slots,
            Element::Choice(..) => Set::Choices,
            Element::Serving(_) => Set::Serving,
        }
    }
}

/// What the constant part of a table depends on.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Structure {
    /// Local detection of this family.
    pub local_detection: LocalDetection,
    /// `masqueradeAll`: every connection to a ClusterIP is masqueraded.
    pub masquerade_all: bool,
    /// IPVS translates; the table refuses, restricts and masquerades.
    pub ipvs: bool,
    /// INVALID packets of connections to Services are dropped.
    pub drop_invalid: bool,
}

/// One step of a plan, in one family's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Delete the table if it exists, with all that is in it.
    DestroyTable,
    /// Make the table with its constant sets and chains, no base chain's hook missing.
    CreateTable(Structure),
    /// Make a set that is there only when needed (`sticky-K`).
    AddSet(Set),
    /// Delete such a set.
    DeleteSet(Set),
    /// Make a chain of a count (`endpoints-N`, `local-N`, `pick-T-K`, `sticky-M-N`) with its rules.
    AddChain(Chain),
    /// Delete such a chain and its rules.
    DeleteChain(Chain),
    /// Add one element.
    Add(Element),
    /// Delete one element.
    Delete(Element),
}
