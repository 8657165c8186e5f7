//! Keeps established connections as they are when somebody removes every rule of the network namespace.
//!
//! The kernel tracks and translates packets only while somebody asks for it: with the last nat chain and the last rule
//! about connections that go (`nft flush ruleset`) both end at once, and until the tables are back packets of established
//! connections pass untranslated; the first one that reaches its socket so is answered with a reset. A table with the
//! flag `owner` (kernel 5.13) stays in others' `flush ruleset`, and ends with the socket that made it. Packets do not
//! notice it: its base chain is empty, the other one is never called. Only where the operator asks for it: `nft -j list
//! ruleset` of nft 1.0.6 prints garbage for the flag, or nothing at all.

use std::time::{Duration, Instant};

use tracing::warn;

use super::schema;
use super::uapi::*;
use crate::netlink::message::{NLM_F_APPEND, NLM_F_CREATE};
use crate::netlink::{Batch, Socket, Writer};

/// The table's name, in family inet: one chain there is one for both families.
const TABLE: &str = "sluice-hold";
/// The base chain, and the chain with the rule that asks for connection tracking.
const NAT: &str = "nat";
const TRACKING: &str = "tracking";
/// `NF_IP_PRI_NAT_SRC`, as nat chains at the input hook have it.
const PRIORITY: u32 = 100;

/// How often it is tried to have the table while another process has it.
const AGAIN: Duration = Duration::from_secs(60);

/// The table, if anybody wants it.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// When to make it, and whether that failed before; `None`: it is there, or nobody wants it.
    to_make: Option<(Instant, bool)>,
}

impl Hold {
    /// It is to be made.
    pub(super) fn ask(&mut self) {
        self.to_make = Some((Instant::now(), false));
    }

    /// Makes it, if that is to be done; says whether that was done now, in one commit.
    pub(super) fn make(&mut self, socket: &mut Socket) -> bool {
        let Some((_, failed)) = self.to_make.filter(|(at, _)| Instant::now() >= *at) else { return false };
        let result = socket.commit(&batch());
        self.to_make = result.is_err().then(|| (Instant::now() + AGAIN, true));
        // Another agent has it, which is about to end; or the kernel has no such tables.
        if let Err(error) = &result
            && !failed
        {
            warn!(%error, "connections are not held, should somebody flush all rules; trying again");
        }
        result.is_ok()
    }
}

/// The table, as one transaction.
fn batch() -> Batch {
    let mut batch = Batch::new(None);
    // table inet sluice-hold { flags owner;
    message(&mut batch, NFT_MSG_NEWTABLE, NLM_F_CREATE).u32(NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER);
    // chain nat { type nat hook input priority 100; policy accept; }
    let w = message(&mut batch, NFT_MSG_NEWCHAIN, NLM_F_CREATE);
    w.string(NFTA_CHAIN_NAME, NAT);
    w.string(NFTA_CHAIN_TYPE, "nat");
    w.u32(NFTA_CHAIN_POLICY, NF_ACCEPT);
    w.nested(NFTA_CHAIN_HOOK, |w| {
        w.u32(NFTA_HOOK_HOOKNUM, NF_INET_LOCAL_IN);
        w.u32(NFTA_HOOK_PRIORITY, PRIORITY);
    });
    // chain tracking { ct status dnat }
    message(&mut batch, NFT_MSG_NEWCHAIN, NLM_F_CREATE).string(NFTA_CHAIN_NAME, TRACKING);
    let w = message(&mut batch, NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND);
    w.string(NFTA_RULE_CHAIN, TRACKING);
    let rule = schema::about_connections();
    w.nested(NFTA_RULE_EXPRESSIONS, |w| rule.expressions.iter().for_each(|e| e.encode(w)));
    batch.end();
    batch
}

/// Every message that is sent here begins with the table's name.
fn message(batch: &mut Batch, kind: u8, flags: u16) -> &mut Writer {
    batch.message(kind, flags, NFPROTO_INET, 0);
    batch.string(NFTA_TABLE_NAME, TABLE);
    batch
}
