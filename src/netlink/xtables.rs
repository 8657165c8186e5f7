//! The tables of iptables-legacy, which are read and replaced as a whole by socket options
//! (`linux/netfilter_ipv4/ip_tables.h`, `linux/netfilter_ipv6/ip6_tables.h`). Not netlink, but the kernel's, too.

#![allow(unsafe_code, reason = "no safe interface takes a table's name and gives a table back")]

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc::{self, c_int, c_void, socklen_t};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// `IPT_BASE_CTL`: `IPT_SO_GET_INFO` and, for setting, `IPT_SO_SET_REPLACE`.
const BASE: c_int = 64;
/// `IPT_SO_GET_ENTRIES` and, for setting, `IPT_SO_SET_ADD_COUNTERS`.
const BASE_1: c_int = 65;
/// `XT_TABLE_MAXNAMELEN`.
const NAME: usize = 32;
/// `sizeof(struct ipt_getinfo)`.
const INFO: usize = 84;
/// Where the entries start in `struct ipt_get_entries`, and the counters in `struct xt_counters_info`.
const ENTRIES: usize = 40;
/// `sizeof(struct ipt_replace)` without its entries; those of the other family have the same layout.
const REPLACE: usize = 96;

/// Packets and bytes that an entry saw (`struct xt_counters`).
pub type Counters = [u64; 2];

/// What the kernel tells of a table (`struct ipt_getinfo`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// Bits of `NF_INET_*` that it has chains for.
    pub hooks: u32,
    /// Where each of these chains starts, in bytes.
    pub hook_entry: [u32; 5],
    /// Where each of these chains has its policy.
    pub underflow: [u32; 5],
    /// Number of entries.
    pub entries: u32,
    /// Bytes of all entries.
    pub size: u32,
}

/// A socket over which the tables of one family are read and replaced, in the network namespace of the thread that
/// opened it. Everything needs `CAP_NET_ADMIN`.
#[derive(Debug)]
pub struct Xtables {
    socket: OwnedFd,
    level: c_int,
}

impl Xtables {
    /// Opens it. Any socket of the family will do; this one needs no privilege.
    ///
    /// # Errors
    /// When the kernel lacks the family.
    pub fn open(ipv6: bool) -> Result<Xtables, Errno> {
        let (family, level) = match ipv6 {
            false => (AddressFamily::Inet, libc::IPPROTO_IP),
            true => (AddressFamily::Inet6, libc::IPPROTO_IPV6),
        };
        let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Xtables { socket, level })
    }

    /// What there is of a table. Asking for a table makes it, if the kernel can: look first whether it is there
    /// (`/proc/net/ip_tables_names`).
    ///
    /// # Errors
    /// `ENOENT` where the kernel has no such table, `ENOPROTOOPT` where it has none at all.
    pub fn info(&self, table: &str) -> Result<Info, Errno> {
        let mut buffer = named(table, INFO);
        self.get(BASE, &mut buffer)?;
        let word =
            |at: usize| u32::from_ne_bytes([buffer[at], buffer[at + 1], buffer[at + 2], buffer[at + 3]]);
        let words = |at: usize| [0, 4, 8, 12, 16].map(|offset| word(at + offset));
        Ok(Info {
            hooks: word(32),
            hook_entry: words(36),
            underflow: words(56),
            entries: word(76),
            size: word(80),
        })
    }

    /// The entries of a table of which [`info`](Xtables::info) was asked before.
    ///
    /// # Errors
    /// `EAGAIN` when it has another size by now.
    pub fn entries(&self, table: &str, info: &Info) -> Result<Vec<u8>, Errno> {
        let mut buffer = named(table, ENTRIES + info.size as usize);
        buffer[NAME..NAME + 4].copy_from_slice(&info.size.to_ne_bytes());
        self.get(BASE_1, &mut buffer)?;
        Ok(buffer.split_off(ENTRIES))
    }

    /// Replaces a table that has so many entries now, and returns their counters.
    ///
    /// # Errors
    /// `EAGAIN` when it has another number of entries by now.
    pub fn replace(
        &self,
        table: &str,
        new: &Info,
        blob: &[u8],
        old_entries: u32,
    ) -> Result<Vec<Counters>, Errno> {
        let mut counters: Vec<Counters> = vec![[0; 2]; old_entries as usize];
        let mut buffer = named(table, REPLACE);
        let mut at = NAME;
        let words = [new.hooks, new.entries, blob.len() as u32];
        for word in words.iter().chain(&new.hook_entry).chain(&new.underflow).chain([&old_entries]) {
            buffer[at..at + 4].copy_from_slice(&word.to_ne_bytes());
            at += 4;
        }
        buffer[at..].copy_from_slice(&(counters.as_mut_ptr().expose_provenance() as u64).to_ne_bytes());
        buffer.extend_from_slice(blob);
        self.set(BASE, &buffer)?;
        Ok(counters)
    }

    /// Adds to the counters of all entries of a table.
    ///
    /// # Errors
    /// `EINVAL` when it has another number of entries.
    pub fn add_counters(&self, table: &str, counters: &[Counters]) -> Result<(), Errno> {
        let mut buffer = named(table, ENTRIES);
        buffer[NAME..NAME + 4].copy_from_slice(&(counters.len() as u32).to_ne_bytes());
        buffer.extend(counters.iter().flatten().flat_map(|number| number.to_ne_bytes()));
        self.set(BASE_1, &buffer)
    }

    fn get(&self, option: c_int, buffer: &mut [u8]) -> Result<(), Errno> {
        let mut length = buffer.len() as socklen_t;
        // SAFETY: the kernel reads and writes at most `length` bytes of the buffer, which is that long.
        let result = unsafe {
            let at = buffer.as_mut_ptr().cast::<c_void>();
            libc::getsockopt(self.socket.as_raw_fd(), self.level, option, at, &mut length)
        };
        Errno::result(result).map(drop)
    }

    fn set(&self, option: c_int, buffer: &[u8]) -> Result<(), Errno> {
        // SAFETY: the kernel reads this many bytes of the buffer, and of `struct ipt_replace` it writes to the memory
        // that `counters` points to, as many as `num_counters` says: [`Xtables::replace`] has both right.
        let result = unsafe {
            let at = buffer.as_ptr().cast::<c_void>();
            libc::setsockopt(self.socket.as_raw_fd(), self.level, option, at, buffer.len() as socklen_t)
        };
        Errno::result(result).map(drop)
    }
}

/// A structure that begins with a table's name.
fn named(table: &str, length: usize) -> Vec<u8> {
    let mut buffer = vec![0; length];
    let bytes = table.as_bytes();
    // The last byte stays 0.
    let bytes = bytes.get(..NAME - 1).unwrap_or(bytes);
    buffer[..bytes.len()].copy_from_slice(bytes);
    buffer
}
