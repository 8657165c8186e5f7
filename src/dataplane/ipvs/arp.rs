//! The table `arp sluice`: this host answers no ARP request for an address of kube-ipvs0.
//!
//! The kernel answers on each device for every address that the host has on any (`arp_ignore` 0), so each node would
//! answer for each Service's address, and neighbours would send a load balancer's packets now to this node and now to
//! that. `net.ipv4.conf.all.arp_ignore` 1 ends that for all addresses of the host; this does for those that are there
//! for the sake of IPVS. A program that announces an address answers with packets of its own (MetalLB), or has the
//! address on another device (kube-vip, keepalived), which takes it off kube-ipvs0.
//!
//! IPv6 needs no such thing: neighbour discovery answers on the device that has the address, and on no other.

use std::net::IpAddr;

use nix::errno::Errno;
use rustc_hash::FxHashSet;
use tracing::warn;

use super::Error;
use crate::cluster::Family;
use crate::dataplane::nftables::decode::{self, ObservedHook};
use crate::dataplane::nftables::element::{self, Decoded};
use crate::dataplane::nftables::expression::{Data, Expression, Register};
use crate::dataplane::nftables::model::{Element, Set, TABLE, Verdict};
use crate::dataplane::nftables::schema;
use crate::dataplane::nftables::uapi::*;
use crate::netlink::message::{NLM_F_APPEND, NLM_F_CREATE};
use crate::netlink::{self, Batch, Socket};

/// The table in nft's words, made anew; without the addresses.
pub const TEXT: &str = "add table arp sluice
delete table arp sluice
table arp sluice {
	comment \"sluice service proxy\"
	set ipvs-addresses {
		type ipv4_addr
	}

	chain input {
		type filter hook input priority filter; policy accept;
		arp operation request arp daddr ip @ipvs-addresses drop
	}
}";

const CHAIN: &str = "input";
const SET: Set = Set::IpvsAddresses;
/// `NF_ARP_IN` of `linux/netfilter_arp.h`.
const HOOK: u32 = 0;
/// `ARPOP_REQUEST` of `linux/if_arp.h`.
const REQUEST: [u8; 2] = [0, 1];
/// Where in `struct arphdr` the operation is.
const OPERATION: u32 = 6;
/// Where the target's IPv4 address is, on devices with hardware addresses of 6 bytes.
const TARGET: u32 = 24;
/// How many addresses one message has: far below the 65,535 bytes of a list.
const LIST: usize = 1000;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Whether there is a table of this name.
    pub exists: bool,
    /// Whether it is as it should be, but for its addresses.
    pub right: bool,
    /// Its addresses, where it is.
    pub addresses: FxHashSet<IpAddr>,
}

/// The table in one network namespace.
#[derive(Debug)]
pub struct Arp {
    socket: Socket,
    /// Whether the kernel has rules for ARP (`CONFIG_NF_TABLES_ARP`).
    supported: bool,
    commits: u32,
}

impl Arp {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn open() -> Result<Arp, Error> {
        Ok(Arp { socket: Socket::open().map_err(tables)?, supported: true, commits: 0 })
    }

    /// Reads it. Where the kernel has no such tables, there is nothing to be made: `held` says what would be in it.
    pub fn observe(&mut self, held: &FxHashSet<IpAddr>) -> Result<Observed, Error> {
        if !self.supported {
            return Ok(Observed { exists: false, right: true, addresses: held.clone() });
        }
        let Some(found) = decode::observe_number(&mut self.socket, NFPROTO_ARP).map_err(tables)? else {
            return Ok(Observed::default());
        };
        let mut observed =
            Observed { exists: true, right: is_right(&found), addresses: FxHashSet::default() };
        if observed.right {
            let addresses = &mut observed.addresses;
            decode::elements_of_number(&mut self.socket, (NFPROTO_ARP, Family::Ipv4), SET, |decoded| {
                if let Decoded::Element(Element::IpvsAddress(address)) = decoded {
                    addresses.insert(address);
                }
            })
            .map_err(tables)?;
        }
        Ok(observed)
    }

    /// Whether it is as it should be, but for its addresses.
    pub fn is_right(&mut self) -> Result<bool, Error> {
        let found = decode::observe_number(&mut self.socket, NFPROTO_ARP).map_err(tables)?;
        Ok(!self.supported || found.is_some_and(|found| is_right(&found)))
    }

    /// Makes it anew, without addresses.
    pub fn make(&mut self) -> Result<(), Error> {
        let mut batch = Batch::new(None);
        delete(&mut batch);
        begin(&mut batch, NFT_MSG_NEWTABLE, NLM_F_CREATE);
        batch.u32(NFTA_TABLE_FLAGS, 0);
        batch.bytes(NFTA_TABLE_USERDATA, &schema::comment_user_data(schema::COMMENT));
        // set ipvs-addresses { type ipv4_addr; }
        begin(&mut batch, NFT_MSG_NEWSET, NLM_F_CREATE);
        let definition = schema::definition(Family::Ipv4, SET);
        batch.display(NFTA_SET_NAME, SET);
        batch.u32(NFTA_SET_FLAGS, definition.flags);
        batch.u32(NFTA_SET_KEY_TYPE, definition.key_type);
        batch.u32(NFTA_SET_KEY_LEN, definition.key_length);
        batch.u32(NFTA_SET_ID, 1);
        batch.bytes(NFTA_SET_USERDATA, &schema::set_user_data(Family::Ipv4, SET));
        // type filter hook input priority filter; policy accept;
        begin(&mut batch, NFT_MSG_NEWCHAIN, NLM_F_CREATE);
        batch.string(NFTA_CHAIN_NAME, CHAIN);
        batch.string(NFTA_CHAIN_TYPE, "filter");
        batch.u32(NFTA_CHAIN_POLICY, NF_ACCEPT);
        batch.nested(NFTA_CHAIN_HOOK, |w| {
            w.u32(NFTA_HOOK_HOOKNUM, HOOK);
            w.u32(NFTA_HOOK_PRIORITY, 0);
        });
        begin(&mut batch, NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND);
        batch.string(NFTA_RULE_CHAIN, CHAIN);
        batch.nested(NFTA_RULE_EXPRESSIONS, |w| rule().iter().for_each(|expression| expression.encode(w)));
        match self.commit(batch) {
            Err(netlink::Error::Refused(refusals))
                if refusals.iter().any(|r| matches!(r.errno, Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT)) =>
            {
                warn!(
                    "the kernel has no rules for ARP (CONFIG_NF_TABLES_ARP): this host answers ARP requests for \
                     Services' addresses, unless --ipvs-strict-arp is set"
                );
                self.supported = false;
                Ok(())
            }
            result => result.map_err(tables),
        }
    }

    /// Deletes it, where there is one.
    pub fn delete(&mut self) -> Result<(), Error> {
        let mut batch = Batch::new(None);
        delete(&mut batch);
        self.commit(batch).map_err(tables)
    }

    /// Puts IPv4 addresses in, which may be there.
    pub fn add(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        self.change(addresses, &[NFT_MSG_NEWSETELEM])
    }

    /// Takes IPv4 addresses out, which may be missing: adding them first makes that certain (NFT_MSG_DESTROYSETELEM
    /// is of kernel 6.3).
    pub fn remove(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        self.change(addresses, &[NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM])
    }

    fn change(&mut self, addresses: &[IpAddr], kinds: &[u8]) -> Result<(), Error> {
        let addresses: Vec<IpAddr> = addresses.iter().filter(|a| a.is_ipv4()).copied().collect();
        if addresses.is_empty() || !self.supported {
            return Ok(());
        }
        let mut batch = Batch::new(None);
        for kind in kinds {
            for some in addresses.chunks(LIST) {
                begin(&mut batch, *kind, if *kind == NFT_MSG_NEWSETELEM { NLM_F_CREATE } else { 0 });
                batch.display(NFTA_SET_ELEM_LIST_SET, SET);
                batch.nested(NFTA_SET_ELEM_LIST_ELEMENTS, |w| {
                    some.iter().for_each(|a| element::encode(w, &Element::IpvsAddress(*a), false));
                });
            }
        }
        self.commit(batch).map_err(tables)
    }

    fn commit(&mut self, mut batch: Batch) -> Result<(), netlink::Error> {
        batch.end();
        self.socket.commit(&batch)?;
        self.commits += 1;
        Ok(())
    }

    /// Bytes that were sent, and received.
    pub fn traffic(&self) -> [u64; 2] {
        self.socket.traffic()
    }

    /// How often was written since somebody last asked; each moved the generation of nf_tables by one.
    pub fn take_commits(&mut self) -> u32 {
        std::mem::take(&mut self.commits)
    }
}

fn tables(error: netlink::Error) -> Error {
    Error::Tables(error.into())
}

fn begin(batch: &mut Batch, kind: u8, flags: u16) {
    batch.message(kind, flags, NFPROTO_ARP, 0);
    batch.string(NFTA_TABLE_NAME, TABLE);
}

/// Making it first, so that deleting cannot fail.
fn delete(batch: &mut Batch) {
    begin(batch, NFT_MSG_NEWTABLE, NLM_F_CREATE);
    begin(batch, NFT_MSG_DELTABLE, 0);
}

/// `arp operation request arp daddr ip @ipvs-addresses drop`
fn rule() -> [Expression; 5] {
    let to = Register::FIRST;
    let load = |offset, length| Expression::Payload { base: NFT_PAYLOAD_NETWORK_HEADER, offset, length, to };
    [
        load(OPERATION, 2),
        Expression::Cmp { from: to, operation: NFT_CMP_EQ, data: Data::new(&REQUEST) },
        load(TARGET, 4),
        Expression::Lookup { set: SET, key: to, invert: false },
        Expression::Verdict(Verdict::Drop),
    ]
}

fn is_right(found: &decode::Observed) -> bool {
    let hook = ObservedHook { kind: "filter".into(), hook: HOOK, priority: 0, policy: NF_ACCEPT };
    let [set] = &found.sets[..] else { return false };
    let [chain] = &found.chains[..] else { return false };
    found.flags == 0
        && found.has(Family::Ipv4, SET)
        && set.set == Some(SET)
        && chain.name == CHAIN
        && chain.hook == Some(hook)
        && chain.rules == [rule()]
}
