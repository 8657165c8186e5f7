//! What the kernel can do, found out by trying: the whole table is made in a network namespace that goes at once. Where
//! that is not allowed (it needs `CAP_SYS_ADMIN`), it is tried here in a transaction that is certain to be refused.

use std::collections::BTreeSet;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use super::{Host, Severity};
use crate::cluster::{Family, Scheduler};
use crate::dataplane::ipvs;
use crate::dataplane::nftables::encode;
use crate::dataplane::nftables::expression::Expression;
use crate::dataplane::nftables::model::{Chain, LocalDetection, Set, Step, Structure};
use crate::dataplane::nftables::uapi::*;
use crate::netlink::{Batch, Error, Message, Refusal, Request, Socket};
use crate::sysctl;

/// `IPCTNL_MSG_CT_GET_STATS_CPU`, and `CTA_STATS_INVALID` of its answer, of `linux/netfilter/nfnetlink_conntrack.h`.
const IPCTNL_MSG_CT_GET_STATS_CPU: u8 = 4;
const CTA_STATS_INVALID: u16 = 4;
/// `IPCTNL_MSG_CT_GET_STATS` of `linux/netfilter/nfnetlink_conntrack.h`.
const IPCTNL_MSG_CT_GET_STATS: u8 = 5;
/// A chain that there never is: nothing has so many endpoints. To delete it is certain to be refused.
const NO_CHAIN: Chain = Chain::Endpoints(u32::MAX);

/// Everything that the rules are made of.
pub fn features(host: &mut Host<'_>) {
    let drop_invalid = host.config.drop_invalid;
    for family in host.families() {
        let missing = match std::thread::spawn(move || missing(family, drop_invalid)).join() {
            Ok(Ok(missing)) => missing,
            Ok(Err(error)) => {
                let what = format!("it could not be found out what the kernel can do for {family}: {error}");
                host.find("kernel", Severity::Problem, what, "run this as root, or with CAP_NET_ADMIN");
                continue;
            }
            // Nothing in there panics.
            Err(_) => continue,
        };
        if !missing.is_empty() {
            host.find(
                "kernel",
                Severity::Problem,
                format!("the kernel lacks for {family}: {}", missing.join(", ")),
                "load the modules (nf_tables, nft_chain_nat, and nft_NAME of what is named), or use a kernel that has \
                 them: 5.13 or later with CONFIG_NF_TABLES, CONFIG_NFT_NAT, CONFIG_NFT_MASQ, CONFIG_NFT_NUMGEN, \
                 CONFIG_NFT_FIB_IPV4, CONFIG_NFT_FIB_IPV6, CONFIG_NFT_CT, CONFIG_NFT_REJECT",
            );
        }
    }
}

/// Whether connections can be listed and deleted.
pub fn conntrack(host: &mut Host<'_>) {
    let asked = Socket::open().and_then(|mut socket| {
        let request = Request::get_conntrack(IPCTNL_MSG_CT_GET_STATS, 0);
        socket.request(&request, |_| Ok(()))
    });
    if let Err(error) = asked {
        host.find(
            "conntrack",
            Severity::Warning,
            format!("the kernel does not show its connections: {error}: UDP and SCTP flows to endpoints that went stay"),
            "modprobe nf_conntrack_netlink, or a kernel with CONFIG_NF_CT_NETLINK; and run this with CAP_NET_ADMIN",
        );
    }
}

/// Whether packets that conntrack calls INVALID may reset connections.
pub fn invalid_packets(host: &mut Host<'_>) {
    const LIBERAL: &str = sysctl::TCP_BE_LIBERAL;
    let config = host.config;
    if config.drop_invalid || config.conntrack.tcp_be_liberal || !matches!(sysctl::read(LIBERAL), Ok(0)) {
        return;
    }
    // Each CPU counts for itself. Where they cannot be read the advice is the same.
    let mut invalid = 0;
    let counted = Socket::open().and_then(|mut socket| {
        let request = Request::dump_conntrack(IPCTNL_MSG_CT_GET_STATS_CPU, 0);
        socket.dump(&request, |message| -> Result<(), Error> {
            let [.., count]: [_; CTA_STATS_INVALID as usize + 1] = message.attributes().table()?;
            invalid += count.map_or(Ok(0), |count| count.u32())?;
            Ok(())
        })
    });
    let so_far = if counted.is_ok() { format!(" ({invalid} so far)") } else { String::new() };
    host.find(
        "invalid-packets",
        Severity::Note,
        format!(
            "{LIBERAL} is 0: TCP segments out of the window are INVALID to conntrack{so_far} and go untranslated, by \
             which long transfers through Services may be reset"
        ),
        "where that happens, set conntrack.tcpBeLiberal (--conntrack-tcp-be-liberal), or drop such packets with \
         --conntrack-drop-invalid",
    );
}

/// In mode ipvs: whether there is IPVS, the device of the addresses, and every scheduler that is asked for.
pub fn ipvs(host: &mut Host<'_>) {
    let Some(ipvs) = &host.config.ipvs else { return };
    let asked =
        host.cluster.into_iter().flat_map(|c| c.desired.frontends()).filter_map(|(_, f, _)| f.scheduler);
    let mut schedulers: Vec<Scheduler> = asked.chain([ipvs.scheduler]).collect();
    schedulers.sort_unstable_by_key(|scheduler| scheduler.name());
    schedulers.dedup();
    let probe = move || ipvs::probe(&schedulers, unshare(CloneFlags::CLONE_NEWNET).is_ok());
    if let Ok(Err(error)) = std::thread::spawn(probe).join() {
        let remedy =
            "modprobe ip_vs, dummy and ip_vs_NAME of the scheduler on the host, or use mode nftables";
        host.find("ipvs", Severity::Problem, error.to_string(), remedy);
    }
}

/// In a thread of its own: a new network namespace is the thread's for good.
fn missing(family: Family, drop_invalid: bool) -> Result<Vec<String>, Error> {
    let alone = unshare(CloneFlags::CLONE_NEWNET).is_ok();
    let mut steps = steps(drop_invalid);
    if !alone {
        steps.push(Step::DeleteChain(NO_CHAIN));
    }
    let batch = encode::encode(&[(family, steps)], None);
    match Socket::open()?.commit(&batch) {
        Ok(()) => Ok(Vec::new()),
        Err(Error::Refused(refusals)) => {
            if refusals.iter().any(|refusal| refusal.errno == Errno::EPERM) {
                return Err(Error::Refused(refusals));
            }
            // What is there already, in a table of sluice's, is no feature that is missing.
            let counts = |r: &&Refusal| r.errno != Errno::EEXIST && kind(&batch, r) != Some(NFT_MSG_DELCHAIN);
            Ok(names(&batch, &refusals.iter().filter(counts).collect::<Vec<_>>()))
        }
        Err(error) => Err(error),
    }
}

fn kind(batch: &Batch, refusal: &Refusal) -> Option<u8> {
    Some(Message::parse(batch.message_bytes(refusal.message?)?).ok()?.kind)
}

/// A table of every structure, with a chain of every kind.
fn steps(drop_invalid: bool) -> Vec<Step> {
    let structure = Structure { local_detection: LocalDetection::Cidr, drop_invalid, ..Structure::default() };
    let chains = [Chain::Endpoints(1), Chain::Local(1), Chain::Pick(10800, 0), Chain::Sticky(1, 1)]
        .map(Step::AddChain);
    [Step::CreateTable(structure), Step::AddSet(Set::Sticky(0))].into_iter().chain(chains).collect()
}

/// What refused messages have that no accepted one has; a table, chains and sets come before rules.
fn names(batch: &Batch, refusals: &[&Refusal]) -> Vec<String> {
    if refusals.is_empty() {
        return Vec::new();
    }
    let is_refused = |index: usize| refusals.iter().any(|refusal| refusal.message == Some(index));
    let mut expressions = [BTreeSet::new(), BTreeSet::new()];
    let mut objects: BTreeSet<(u8, String)> = BTreeSet::new();
    for index in 0..batch.messages() {
        let Some(Ok(message)) = batch.message_bytes(index).map(Message::parse) else { continue };
        match (message.kind, is_refused(index)) {
            (NFT_MSG_NEWTABLE, true) => drop(objects.insert((0, "nf_tables".into()))),
            (NFT_MSG_NEWCHAIN, true) => drop(objects.insert((1, "chains of type nat".into()))),
            (NFT_MSG_NEWSET, true) => {
                let name = message.attributes().flatten().find(|a| a.kind == NFTA_SET_NAME);
                let name = name.and_then(|name| name.string().ok()).unwrap_or_default();
                objects.insert((2, format!("sets like {name}")));
            }
            (NFT_MSG_NEWRULE, refused) => expressions[usize::from(refused)].extend(expressions_of(&message)),
            _ => {}
        }
    }
    let [accepted, refused] = expressions;
    match objects.first().map(|(first, _)| *first) {
        Some(first) => objects.into_iter().filter(|(kind, _)| *kind == first).map(|(_, name)| name).collect(),
        None => match refused.difference(&accepted).cloned().collect::<Vec<_>>() {
            none if none.is_empty() => vec![format!("something that it answers {:?} to", refusals[0].errno)],
            some => some,
        },
    }
}

fn expressions_of(message: &Message<'_>) -> Vec<String> {
    let list = message.attributes().flatten().find(|a| a.kind == NFTA_RULE_EXPRESSIONS);
    let expressions = list.and_then(|list| Expression::decode_list(list.nested()).ok()).unwrap_or_default();
    expressions.iter().map(|expression| expression.name().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_by_what_refused_rules_alone_have() {
        let batch = encode::encode(&[(Family::Ipv4, steps(true))], None);
        let refuse = |wanted: &dyn Fn(&Message<'_>) -> bool| {
            let all = (0..batch.messages())
                .filter(|i| wanted(&Message::parse(batch.message_bytes(*i).unwrap()).unwrap()));
            let refusal = |i| Refusal { errno: Errno::ENOENT, message: Some(i), offset: None, text: None };
            let refusals: Vec<Refusal> = all.map(refusal).collect();
            names(&batch, &refusals.iter().collect::<Vec<_>>())
        };
        for name in ["numgen", "fib", "masq", "reject", "dynset", "nat"] {
            let has =
                |m: &Message<'_>| m.kind == NFT_MSG_NEWRULE && expressions_of(m).iter().any(|e| e == name);
            // Every rule that translates has a number, too.
            let expected: &[&str] = if name == "numgen" { &["nat", "numgen"] } else { &[name] };
            assert_eq!(refuse(&has), expected);
        }
        // Where the table is refused, everything is.
        assert_eq!(refuse(&|_| true), ["nf_tables"]);
        assert_eq!(refuse(&|m| !matches!(m.kind, NFT_MSG_NEWTABLE | NFT_MSG_NEWSET)), ["chains of type nat"]);
        assert_eq!(refuse(&|_| false), [""; 0]);
    }
}
