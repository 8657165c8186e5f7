//! Sees commits as `nft monitor` does.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket,
    sockopt,
};

use crate::netns::Namespace;

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
/// `NFT_MSG_NEWGEN` of `NFNL_SUBSYS_NFTABLES`.
const NEWGEN: u16 = 10 << 8 | 15;
/// Endpoints that changes bring have addresses from here on, each its own.
pub const FRESH: u32 = 0x0ac0_0000;
const FRESH_END: u32 = 0x0b00_0000;

/// One transaction.
#[derive(Debug)]
pub struct Commit {
    pub at: Instant,
    /// Messages that tell of it: one an element, a rule or a chain.
    pub messages: usize,
    /// The fresh addresses in it, coming or going.
    pub fresh: Vec<Ipv4Addr>,
}

/// Commits in the namespace from now on. Telling of a large one takes long: first load, then look.
pub fn watch(namespace: &Namespace) -> Result<Receiver<Commit>> {
    let (sender, receiver) = channel();
    let socket = namespace.enter(|| {
        let protocol = SockProtocol::NetlinkNetFilter;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1 << (GROUP - 1))).context("bind")?;
        setsockopt(&socket, sockopt::RcvBufForce, &(256 << 20)).context("SO_RCVBUF")?;
        Ok(socket)
    })?;
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        let (mut messages, mut fresh) = (0, Vec::new());
        loop {
            let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EINTR | Errno::ENOBUFS) => continue,
                Err(_) => return,
            };
            let at = Instant::now();
            let mut rest = &buffer[..length];
            while let Some((message, kind)) = first(&mut rest) {
                if kind != NEWGEN {
                    messages += 1;
                    fresh.extend(message.chunks_exact(4).filter_map(address));
                    continue;
                }
                let commit =
                    Commit { at, messages: std::mem::take(&mut messages), fresh: std::mem::take(&mut fresh) };
                if sender.send(commit).is_err() {
                    return;
                }
            }
        }
    });
    Ok(receiver)
}

/// Takes a netlink message off the front: all of it, and its type.
fn first<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], u16)> {
    let length = u32::from_ne_bytes(*rest.first_chunk::<4>()?) as usize;
    let kind = u16::from_ne_bytes([*rest.get(4)?, *rest.get(5)?]);
    let message = rest.get(..length.max(16))?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((message, kind))
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    let number = u32::from_be_bytes(*bytes.first_chunk::<4>()?);
    (FRESH..FRESH_END).contains(&number).then(|| number.into())
}
