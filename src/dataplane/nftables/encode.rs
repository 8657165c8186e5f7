//! Steps as netlink messages.
//!
//! Elements of one set that follow each other share messages, each below the 65,535 bytes that a list's length
//! can say: some 1,300 elements. Every message is about a step (the first of its elements), numbered over the
//! whole plan; [`refused`] finds from the kernel's answer which step and which element it was.

use std::fmt;

use nix::errno::Errno;

use crate::cluster::Family;
use crate::netlink::attribute::Open;
use crate::netlink::message::{NLM_F_APPEND, NLM_F_CREATE};
use crate::netlink::{Batch, Error, Message, Refusal, Socket, Writer};

use super::element::{self, Sticky};
use super::model::{Chain, Element, Set, Step, Structure, TABLE};
use super::schema::{self, Rule};
use super::uapi::*;

/// Where a list of elements is closed so that the next one still fits.
const LIST_LENGTH: usize = u16::MAX as usize - element::MAX_LENGTH;
/// Bytes that one message can have at most: a full list and what is before it.
const MESSAGE_LENGTH: usize = 66_000;
/// Rough bytes of an element in a batch, and of a table, to allocate once.
const TYPICAL_ELEMENT: usize = 56;
const TYPICAL_TABLE: usize = 24 * 1024;

/// Steps of each family, in the order in which they are to be applied.
pub type Plan = [(Family, Vec<Step>)];

/// From now on these tables drop what they would refuse: `insert rule ip sluice no-endpoints drop`.
pub fn drop_instead_of_refusing(families: &[Family]) -> Batch {
    let mut batch = Batch::new(None);
    for family in families {
        batch.message(NFT_MSG_NEWRULE, NLM_F_CREATE, family.number(), 0);
        batch.string(NFTA_TABLE_NAME, TABLE);
        batch.display(NFTA_RULE_CHAIN, Chain::NoEndpoints);
        let rule = schema::drop_all(*family);
        batch.nested(NFTA_RULE_EXPRESSIONS, |w| rule.expressions.iter().for_each(|e| e.encode(w)));
    }
    batch.end();
    batch
}

/// The plan as one batch, which the kernel applies as a whole or not at all. With a generation it is refused
/// ([`crate::netlink::Error::Stale`]) when anybody committed since.
pub fn encode(plan: &Plan, generation: Option<u32>) -> Batch {
    encode_with_clients(plan, &[], generation)
}

/// The same, and after the plan's steps these clients are put into the `sticky-K` sets, which are there then, with
/// the time that they have left: so a table can be made anew without session affinity being forgotten.
pub fn encode_with_clients(plan: &Plan, clients: &[(Family, Vec<Sticky>)], generation: Option<u32>) -> Batch {
    let batch = Batch::with_capacity(generation, estimate(plan));
    let mut encoder = Encoder {
        done: Vec::new(),
        batch,
        limit: usize::MAX,
        list_length: LIST_LENGTH,
        object: 0,
        list: None,
    };
    for (family, steps) in plan {
        encoder.steps(*family, steps, false);
    }
    for (family, clients) in clients {
        for client in clients {
            let writer = encoder.list(NFT_MSG_NEWSETELEM, *family, Set::Sticky(client.slot));
            element::encode_client(writer, client);
        }
    }
    encoder.finish().pop().unwrap_or_else(|| Batch::new(generation))
}

/// The plan as several batches that a socket of this capacity can send one after another. Only for the first load
/// of tables that are absent: nothing is in force before the last batch, which makes the hooks.
pub fn split(plan: &Plan, capacity: usize) -> Vec<Batch> {
    let message = MESSAGE_LENGTH.min(capacity / 2);
    let mut encoder = Encoder {
        done: Vec::new(),
        batch: Batch::new(None),
        limit: capacity - message,
        list_length: message.saturating_sub(MESSAGE_LENGTH - LIST_LENGTH),
        object: 0,
        list: None,
    };
    for (family, steps) in plan {
        encoder.steps(*family, steps, true);
    }
    // The hooks are small enough to be in one batch of their own.
    encoder.cut();
    let mut object = 0;
    for (family, steps) in plan {
        for step in steps {
            if let Step::CreateTable(structure) = step {
                encoder.object = object;
                encoder.chains(*family, structure, |chain| schema::hook(chain).is_some());
            }
            object += 1;
        }
    }
    encoder.finish()
}

fn estimate(plan: &Plan) -> usize {
    let steps = plan.iter().flat_map(|(_, steps)| steps);
    steps.map(|step| if matches!(step, Step::CreateTable(_)) { TYPICAL_TABLE } else { TYPICAL_ELEMENT }).sum()
}

/// Elements of one set that are being written.
struct List {
    kind: u8,
    family: Family,
    set: Set,
    open: Open,
}

struct Encoder {
    done: Vec<Batch>,
    batch: Batch,
    /// A batch that is this long is ended before the next message.
    limit: usize,
    /// A list of elements that is this long is closed before the next element.
    list_length: usize,
    /// Number of the step that is being written.
    object: u32,
    list: Option<List>,
}

impl Encoder {
    fn finish(mut self) -> Vec<Batch> {
        self.close_list();
        if !self.batch.is_empty() || self.done.is_empty() {
            self.batch.end();
            self.done.push(self.batch);
        }
        self.done
    }

    /// Ends the batch and begins another.
    fn cut(&mut self) {
        self.close_list();
        if !self.batch.is_empty() {
            let mut batch = std::mem::replace(&mut self.batch, Batch::new(None));
            batch.end();
            self.done.push(batch);
        }
    }

    fn message(&mut self, kind: u8, flags: u16, family: Family) -> &mut Writer {
        self.close_list();
        if self.batch.len() > self.limit {
            self.cut();
        }
        self.batch.message(kind, flags, family.number(), self.object);
        // Every message that is sent here begins with the table's name.
        self.batch.string(NFTA_TABLE_NAME, TABLE);
        &mut self.batch
    }

    fn close_list(&mut self) {
        if let Some(list) = self.list.take() {
            self.batch.close(list.open);
        }
    }

    fn steps(&mut self, family: Family, steps: &[Step], hooks_later: bool) {
        for step in steps {
            match step {
                Step::DestroyTable => {
                    // Making it first, so that deleting cannot fail; NFT_MSG_DESTROYTABLE is of kernel 6.3.
                    self.message(NFT_MSG_NEWTABLE, 0, family);
                    self.message(NFT_MSG_DELTABLE, 0, family);
                }
                Step::CreateTable(structure) => self.table(family, structure, hooks_later),
                Step::AddSet(set) => self.set(family, *set),
                Step::DeleteSet(set) => {
                    self.message(NFT_MSG_DELSET, 0, family).display(NFTA_SET_NAME, set);
                }
                Step::AddChain(chain) => {
                    // Only the rules of constant chains depend on the structure.
                    self.chain(family, *chain);
                    self.rules(family, *chain, &Structure::default());
                }
                Step::DeleteChain(chain) => {
                    // Its rules go with it.
                    self.message(NFT_MSG_DELCHAIN, 0, family).display(NFTA_CHAIN_NAME, chain);
                }
                Step::Add(element) => self.element(NFT_MSG_NEWSETELEM, family, element),
                Step::Delete(element) => self.element(NFT_MSG_DELSETELEM, family, element),
            }
            self.object += 1;
        }
    }

    fn table(&mut self, family: Family, structure: &Structure, hooks_later: bool) {
        let w = self.message(NFT_MSG_NEWTABLE, 0, family);
        w.u32(NFTA_TABLE_FLAGS, 0);
        w.bytes(NFTA_TABLE_USERDATA, &schema::comment_user_data(schema::COMMENT));
        for set in schema::sets(structure) {
            self.set(family, set);
        }
        self.chains(family, structure, |chain| !hooks_later || schema::hook(chain).is_none());
    }

    fn chains(&mut self, family: Family, structure: &Structure, which: impl Fn(Chain) -> bool + Copy) {
        let chains = schema::chains(structure).filter(|chain| which(*chain));
        for chain in chains.clone() {
            self.chain(family, chain);
        }
        for chain in chains {
            self.rules(family, chain, structure);
        }
    }

    fn set(&mut self, family: Family, set: Set) {
        let definition = schema::definition(family, set);
        // Only has to be there: sets are referred to by name.
        let id = match set {
            Set::Sticky(slot) => slot.wrapping_add(1000),
            set => schema::position(set) + 1,
        };
        let w = self.message(NFT_MSG_NEWSET, NLM_F_CREATE, family);
        w.display(NFTA_SET_NAME, set);
        w.u32(NFTA_SET_FLAGS, definition.flags);
        w.u32(NFTA_SET_KEY_TYPE, definition.key_type);
        w.u32(NFTA_SET_KEY_LEN, definition.key_length);
        if definition.flags & NFT_SET_MAP != 0 {
            w.u32(NFTA_SET_DATA_TYPE, definition.data_type);
            w.u32(NFTA_SET_DATA_LEN, definition.data_length);
        }
        w.u32(NFTA_SET_ID, id);
        if definition.size != 0 || !definition.parts.is_empty() {
            w.nested(NFTA_SET_DESC, |w| {
                if definition.size != 0 {
                    w.u32(NFTA_SET_DESC_SIZE, definition.size);
                }
                if !definition.parts.is_empty() {
                    w.nested(NFTA_SET_DESC_CONCAT, |w| {
                        for length in &definition.parts {
                            w.nested(NFTA_LIST_ELEM, |w| w.u32(NFTA_SET_FIELD_LEN, *length));
                        }
                    });
                }
            });
        }
        if definition.timeout != 0 {
            w.u64(NFTA_SET_TIMEOUT, definition.timeout);
        }
        w.bytes(NFTA_SET_USERDATA, &schema::set_user_data(family, set));
    }

    fn chain(&mut self, family: Family, chain: Chain) {
        let w = self.message(NFT_MSG_NEWCHAIN, NLM_F_CREATE, family);
        w.display(NFTA_CHAIN_NAME, chain);
        if let Some(hook) = schema::hook(chain) {
            w.string(NFTA_CHAIN_TYPE, hook.kind);
            w.u32(NFTA_CHAIN_POLICY, NF_ACCEPT);
            w.nested(NFTA_CHAIN_HOOK, |w| {
                w.u32(NFTA_HOOK_HOOKNUM, hook.hook);
                w.u32(NFTA_HOOK_PRIORITY, hook.priority as u32);
            });
        }
    }

    fn rules(&mut self, family: Family, chain: Chain, structure: &Structure) {
        for rule in schema::rules(family, chain, structure) {
            self.rule(family, chain, &rule);
        }
    }

    fn rule(&mut self, family: Family, chain: Chain, rule: &Rule) {
        let w = self.message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, family);
        w.display(NFTA_RULE_CHAIN, chain);
        w.nested(NFTA_RULE_EXPRESSIONS, |w| rule.expressions.iter().for_each(|e| e.encode(w)));
        if let Some(user_data) = rule.user_data() {
            w.bytes(NFTA_RULE_USERDATA, &user_data);
        }
    }

    fn element(&mut self, kind: u8, family: Family, element: &Element) {
        let writer = self.list(kind, family, element.set());
        element::encode(writer, element, kind == NFT_MSG_NEWSETELEM);
    }

    /// Where the next element of a set goes: into the list that is open, or a new one.
    fn list(&mut self, kind: u8, family: Family, set: Set) -> &mut Writer {
        let fits = self.list.as_ref().is_some_and(|list| {
            (list.kind, list.family, list.set) == (kind, family, set)
                && self.batch.len() - list.open.start() < self.list_length
        });
        if !fits {
            let flags = if kind == NFT_MSG_NEWSETELEM { NLM_F_CREATE } else { 0 };
            self.message(kind, flags, family).display(NFTA_SET_ELEM_LIST_SET, set);
            let open = self.batch.open(NFTA_SET_ELEM_LIST_ELEMENTS);
            self.list = Some(List { kind, family, set, open });
        }
        &mut self.batch
    }
}

/// Sends a batch that was made of this plan; refusals come back with the steps that they are about.
pub fn commit(socket: &mut Socket, plan: &Plan, batch: &Batch) -> Result<(), super::Error> {
    match socket.commit(batch) {
        Err(Error::Refused(refusals)) if refusals.iter().all(|r| r.errno != Errno::EPERM) => {
            Err(super::Error::Refused(refusals.iter().map(|r| refused(plan, batch, r)).collect()))
        }
        result => Ok(result?),
    }
}

/// A step that the kernel refused, in words for people and numbers for programs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Refused {
    /// What the kernel answered.
    pub errno: Errno,
    /// The step: which of the plan's parts, and which of its steps. `None` where the whole batch was refused.
    pub step: Option<(usize, usize)>,
    /// What the refused message was about, as `element 10.96.0.10 . tcp . 80 in map services of table ip sluice`.
    pub object: String,
    /// What the kernel said about it beside the number. For display only.
    pub text: Option<String>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the kernel refused {}: {}", self.object, self.errno.desc())?;
        match &self.text {
            Some(text) => write!(f, " ({text})"),
            None => Ok(()),
        }
    }
}

/// Finds the step of a plan that a refusal of its batch is about.
pub fn refused(plan: &Plan, batch: &Batch, refusal: &Refusal) -> Refused {
    let errno = refusal.errno;
    let text = refusal.text.clone();
    let whole = Refused { errno, step: None, object: "the transaction as a whole".to_owned(), text };
    let Some(index) = refusal.message else { return whole };
    let (Some(bytes), Some(object)) = (batch.message_bytes(index), batch.object(index)) else { return whole };
    let Ok(message) = Message::parse(bytes) else { return whole };
    let elements = match message.kind {
        NFT_MSG_NEWSETELEM | NFT_MSG_DELSETELEM => refusal.offset.map(|o| elements_before(bytes, o)),
        _ => None,
    };
    let table = TableName(if message.family == Family::Ipv6.number() { Family::Ipv6 } else { Family::Ipv4 });
    let step = locate(plan, object as usize + elements.unwrap_or(0));
    let object = match step.and_then(|(part, step)| plan.get(part)?.1.get(step)) {
        // The kernel says which element of a list it was (6.1, 6.12 and 6.18 do).
        Some(Step::Add(element) | Step::Delete(element)) if elements.is_none() => {
            let set = element.set();
            format!("an element from {} on in {} {set} of {table}", element.key(), schema::set_keyword(set))
        }
        Some(Step::Add(element) | Step::Delete(element)) => {
            let set = element.set();
            format!("element {} in {} {set} of {table}", element.key(), schema::set_keyword(set))
        }
        _ => describe(&message, table),
    };
    Refused { step, object, ..whole }
}

/// A plan's part and step by the number over the whole plan.
fn locate(plan: &Plan, mut object: usize) -> Option<(usize, usize)> {
    for (part, (_, steps)) in plan.iter().enumerate() {
        if object < steps.len() {
            return Some((part, object));
        }
        object -= steps.len();
    }
    None
}

/// How many elements of a list begin before this offset of their message. The ends of intervals do not count:
/// they belong to the element before.
fn elements_before(message: &[u8], offset: usize) -> usize {
    let Ok(parsed) = Message::parse(message) else { return 0 };
    let Ok([.., Some(list)]) = parsed.attributes().table::<4>() else { return 0 };
    let start = message.as_ptr().addr();
    let starts = list.nested().flatten().filter(|element| {
        let begins = element.value.as_ptr().addr().wrapping_sub(start).wrapping_sub(4);
        let end = element.nested().flatten().any(|a| a.kind == NFTA_SET_ELEM_FLAGS);
        begins <= offset && !end
    });
    starts.count().saturating_sub(1)
}

/// `table ip sluice`.
#[derive(Clone, Copy)]
pub(super) struct TableName(pub Family);

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table {}", schema::table_name(self.0))
    }
}

/// What a message is about that is not about elements.
fn describe(message: &Message<'_>, table: TableName) -> String {
    let name = |kind: u16| {
        let attribute = message.attributes().flatten().find(|a| a.kind == kind);
        attribute.and_then(|a| a.string().ok()).unwrap_or_default().to_owned()
    };
    match message.kind {
        NFT_MSG_NEWSET | NFT_MSG_DELSET => format!("set {} of {table}", name(NFTA_SET_NAME)),
        NFT_MSG_NEWCHAIN | NFT_MSG_DELCHAIN => format!("chain {} of {table}", name(NFTA_CHAIN_NAME)),
        NFT_MSG_NEWSETELEM => format!("clients in set {} of {table}", name(NFTA_SET_ELEM_LIST_SET)),
        NFT_MSG_NEWRULE => format!("a rule in chain {} of {table}", name(NFTA_RULE_CHAIN)),
        _ => table.to_string(),
    }
}
