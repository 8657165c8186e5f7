//! Keeps established connections as they are when somebody removes every rule of the network namespace.
//!
//! The kernel tracks and translates packets only while somebody asks for it: with the last nat chain and the last rule
//! about connections that go (`nft flush ruleset`) both end at once, and until the tables are back packets of established
//! connections pass untranslated; the first one that reaches its socket so is answered with a reset. A table with the
//! flag `owner` (kernel 5.13) stays in others' `flush ruleset`, and ends with the socket that made it. Packets do not
//! notice it: its base chain is empty, the other one is never called. Only where the operator asks for it: `nft -j list
//! ruleset` of nft 1.0.6 prints garbage for the flag, or nothing at all.

use crate::netlink::message::{NLM_F_APPEND, NLM_F_CREATE};
use crate::netlink::{Batch, Writer};

use super::schema;
use super::uapi::*;

/// The table's name, in family inet: one chain there is one for both families.
pub const TABLE: &str = "sluice-hold";
/// The base chain, and the chain with the rule that asks for connection tracking.
const NAT: &str = "nat";
const TRACKING: &str = "tracking";
/// `NF_IP_PRI_NAT_SRC`, as nat chains at the input hook have it.
const PRIORITY: u32 = 100;

/// The table, as one transaction.
pub fn batch() -> Batch {
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
