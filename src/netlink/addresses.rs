//! Tells when addresses of this host come or go (rtnetlink's multicast groups, `linux/rtnetlink.h`).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use super::Error;

/// `RTM_NEWADDR` and `RTM_DELADDR` of both families, and nothing else, come to these groups.
const GROUPS: u32 = (libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR) as u32;
/// A change is reported so long after it was seen: a network that is set up adds several addresses in a row.
const SETTLE: Duration = Duration::from_millis(50);

/// Changes of the addresses of the network namespace that the thread was in when this was opened.
#[derive(Debug)]
pub struct AddressChanges {
    socket: AsyncFd<OwnedFd>,
    /// The device whose addresses do not count.
    except: &'static str,
    /// When the change that was seen is to be reported.
    due: Option<Instant>,
}

impl AddressChanges {
    /// Starts to listen; needs no privilege. What changes after this is reported, but for the addresses of one device.
    /// Needs a tokio runtime with I/O.
    pub fn open(except: &'static str) -> Result<AddressChanges, Error> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkRoute;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol).map_err(Error::Open)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS)).map_err(Error::Bind)?;
        let open = |error: io::Error| Error::Open(Errno::from_raw(error.raw_os_error().unwrap_or_default()));
        #[allow(
            deprecated,
            reason = "its successor is unsafe for the sake of types that change or close their \
                                      descriptor; an OwnedFd does neither"
        )]
        let socket = AsyncFd::with_interest(socket, Interest::READABLE).map_err(open)?;
        Ok(AddressChanges { socket, except, due: None })
    }

    /// Waits for the next change; several that come shortly after another are one. May be dropped and called again
    /// at any time without losing a change.
    pub async fn changed(&mut self) -> Result<(), Error> {
        let due = match self.due {
            Some(due) => due,
            None => {
                self.seen().await?;
                *self.due.insert(Instant::now() + SETTLE)
            }
        };
        sleep_until(due).await;
        self.due = None;
        Ok(())
    }

    /// Waits for a message and takes all there are. Which address changed does not matter: all are read anew, since
    /// messages get lost when the socket's buffer is full.
    async fn seen(&self) -> Result<(), Error> {
        loop {
            let ready = self.socket.readable().await;
            let mut ready =
                ready.map_err(|e| Error::Receive(Errno::from_raw(e.raw_os_error().unwrap_or(0))))?;
            let any = self.take_all()?;
            // The socket was read until it was empty; what comes meanwhile wakes again.
            ready.clear_ready();
            if any {
                return Ok(());
            }
        }
    }

    /// Reads until there is nothing; whether there was anything that counts.
    fn take_all(&self) -> Result<bool, Error> {
        let mut any = false;
        let except = if_nametoindex(self.except).unwrap_or(0);
        // `struct nlmsghdr` and `struct ifaddrmsg`, which ends with the device; the rest is cut off.
        let mut buffer = [0; 24];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(_) => {
                    let [.., a, b, c, d] = buffer;
                    any |= u32::from_ne_bytes([a, b, c, d]) != except;
                }
                Err(Errno::ENOBUFS) => any = true,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(any),
                Err(errno) => return Err(Error::Receive(errno)),
            }
        }
    }
}
