//! Which chains of an iptables table are kube-proxy's.
//!
//! By name, since nothing else tells: names that kube-proxy of any release since 1.12 has given, and none that others
//! begin with `KUBE-`, too: kubelet's (`KUBE-FIREWALL` in filter, `KUBE-KUBELET-CANARY`, `KUBE-IPTABLES-HINT`,
//! `KUBE-MARK-DROP`), kube-router's (`KUBE-ROUTER-*`, `KUBE-NWPLCY-*`, `KUBE-POD-FW-*`, which k3s has), those of host
//! ports (`KUBE-HOSTPORTS`, `KUBE-HP-*`).

use std::collections::{BTreeMap, BTreeSet};

/// Chains that kube-proxy calls from the built-in ones.
const ENTRIES: [&str; 9] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-FORWARD",
    "KUBE-POSTROUTING",
    "KUBE-PROXY-FIREWALL",
    "KUBE-NODE-PORT",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];

/// Chains that only these call.
const INNER: [&str; 5] = [
    "KUBE-MARK-MASQ",
    "KUBE-LOAD-BALANCER",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-PROXY-CANARY",
    "KUBE-LOCALHOST-NODEPORTS",
];

/// Chains of one Service port or endpoint, with a hash of 16 letters and digits.
const HASHED: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-XLB-", "KUBE-FW-", "KUBE-SEP-"];
const HASH: usize = 16;

/// Masquerades what `KUBE-MARK-MASQ` has marked.
const POSTROUTING: &str = "KUBE-POSTROUTING";
const MARK: &str = "KUBE-MARK-MASQ";

/// A chain, and which it calls, once for each rule that does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether the kernel calls it.
    pub built_in: bool,
    /// Names of chains.
    pub calls: Vec<&'a str>,
}

/// The chains of one table that are to go: kube-proxy's, but for those that others' rules call. An entry is called
/// from built-in chains by kube-proxy itself; any other call from a chain that is not kube-proxy's is somebody else's,
/// as `-j KUBE-MARK-MASQ` of a CNI plugin. What a chain that stays calls stays, too.
pub fn to_remove(chains: &[Chain<'_>]) -> BTreeSet<String> {
    let ours = |name: &str| is_kube_proxys(name);
    let by_name: BTreeMap<&str, &Chain<'_>> = chains.iter().map(|chain| (chain.name, chain)).collect();
    let mut stay: BTreeSet<&str> = BTreeSet::new();
    let mut calls: Vec<&str> = Vec::new();
    for chain in chains.iter().filter(|chain| chain.built_in || !ours(chain.name)) {
        let kube_proxys = |name: &&str| chain.built_in && ENTRIES.contains(name);
        calls.extend(chain.calls.iter().copied().filter(|name| ours(name) && !kube_proxys(name)));
    }
    while let Some(name) = calls.pop() {
        if stay.insert(name) {
            calls.extend(
                by_name.get(name).into_iter().flat_map(|chain| &chain.calls).copied().filter(|n| ours(n)),
            );
            // A mark that others set is of use only as long as it is looked at.
            calls.extend((name == MARK).then_some(POSTROUTING));
        }
    }
    let gone = |chain: &&Chain<'_>| !chain.built_in && ours(chain.name) && !stay.contains(chain.name);
    chains.iter().filter(gone).map(|chain| chain.name.to_owned()).collect()
}

/// Whether a chain of this name is kube-proxy's.
pub fn is_kube_proxys(name: &str) -> bool {
    let hashed = |prefix: &str| {
        let hash = name.strip_prefix(prefix).unwrap_or_default();
        hash.len() == HASH && hash.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
    };
    ENTRIES.contains(&name) || INNER.contains(&name) || HASHED.into_iter().any(hashed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain<'a>(name: &'a str, calls: &[&'a str]) -> Chain<'a> {
        Chain { name, built_in: !name.contains('-'), calls: calls.to_vec() }
    }

    fn removed(chains: &[Chain<'_>]) -> Vec<String> {
        to_remove(chains).into_iter().collect()
    }

    #[test]
    fn kube_proxys_go_and_those_of_others_stay() {
        let chains = [
            chain("PREROUTING", &["KUBE-SERVICES", "CNI-HOSTPORT-DNAT"]),
            chain("POSTROUTING", &["KUBE-POSTROUTING"]),
            chain("KUBE-SERVICES", &["KUBE-SVC-AAAABBBBCCCC2222", "KUBE-NODEPORTS"]),
            chain("KUBE-NODEPORTS", &["KUBE-EXT-AAAABBBBCCCC2222"]),
            chain("KUBE-EXT-AAAABBBBCCCC2222", &["KUBE-MARK-MASQ", "KUBE-SVC-AAAABBBBCCCC2222"]),
            chain("KUBE-SVC-AAAABBBBCCCC2222", &["KUBE-SEP-AAAABBBBCCCC2222"]),
            chain("KUBE-SEP-AAAABBBBCCCC2222", &["KUBE-MARK-MASQ"]),
            chain("KUBE-MARK-MASQ", &[]),
            chain("KUBE-POSTROUTING", &[]),
            chain("KUBE-KUBELET-CANARY", &[]),
            chain("KUBE-IPTABLES-HINT", &[]),
            chain("KUBE-MARK-DROP", &[]),
            chain("KUBE-FIREWALL", &[]),
            chain("KUBE-ROUTER-FORWARD", &["KUBE-POD-FW-AAAABBBBCCCC2222"]),
            chain("KUBE-POD-FW-AAAABBBBCCCC2222", &["KUBE-NWPLCY-AAAABBBBCCCC2222"]),
            chain("KUBE-NWPLCY-AAAABBBBCCCC2222", &[]),
            chain("KUBE-FW-ADMIN", &[]),
        ];
        let expected = [
            "KUBE-EXT-AAAABBBBCCCC2222",
            "KUBE-MARK-MASQ",
            "KUBE-NODEPORTS",
            "KUBE-POSTROUTING",
            "KUBE-SEP-AAAABBBBCCCC2222",
            "KUBE-SERVICES",
            "KUBE-SVC-AAAABBBBCCCC2222",
        ];
        assert_eq!(removed(&chains), expected);
    }

    #[test]
    fn what_others_call_stays_with_what_it_needs() {
        let chains = [
            chain("PREROUTING", &["KUBE-SERVICES", "KUBE-HOSTPORTS"]),
            chain("POSTROUTING", &["KUBE-POSTROUTING"]),
            chain("KUBE-HOSTPORTS", &["KUBE-MARK-MASQ"]),
            chain("KUBE-SERVICES", &["KUBE-MARK-MASQ"]),
            chain("KUBE-MARK-MASQ", &[]),
            chain("KUBE-POSTROUTING", &[]),
        ];
        assert_eq!(removed(&chains), ["KUBE-SERVICES"]);
        // A built-in chain that calls what kube-proxy never calls from there does so for somebody else.
        let chains =
            [chain("OUTPUT", &["KUBE-SVC-AAAABBBBCCCC2222"]), chain("KUBE-SVC-AAAABBBBCCCC2222", &[])];
        assert_eq!(removed(&chains), [""; 0]);
    }
}
