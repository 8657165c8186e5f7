//! Listening on TCP ports: one that must be had, and a set of ports that changes with the Services.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::debug;

/// How often an address is tried that could not be had.
pub const RETRY: Duration = Duration::from_secs(5);
/// Connections that the kernel keeps while all allowed ones are open.
const BACKLOG: i32 = 128;
/// The pause after a failure to accept, which as a rule is a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{what}: cannot {stage} {address}: {errno}")]
pub struct BindError {
    /// What asks for the address: a flag, or a Service.
    pub what: String,
    /// The address.
    pub address: SocketAddr,
    /// What failed: open a socket for, bind to, or listen on the address.
    pub stage: &'static str,
    /// What the kernel answered.
    pub errno: Errno,
}

/// A listener with the task that accepts its connections; both go when it is dropped.
#[derive(Debug)]
pub struct Listening {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Listening {
    /// Listens, and has `serve` make a task of the listener. An unspecified address, `0.0.0.0` or `[::]`, means all
    /// addresses of both families, as with kube-proxy. Where a `device` is named, only packets that come in through
    /// it are for the listener.
    ///
    /// `what` is for the error. Must be called within a runtime.
    pub fn bind<F>(
        what: &str,
        address: SocketAddr,
        device: Option<&str>,
        serve: impl FnOnce(tokio::net::TcpListener) -> F,
    ) -> Result<Listening, BindError>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let failed = |(stage, errno)| BindError { what: what.to_owned(), address, stage, errno };
        let listener = listener(address, device).map_err(failed)?;
        let io = |error: io::Error| {
            failed(("listen on", Errno::from_raw(error.raw_os_error().unwrap_or_default())))
        };
        let listener = tokio::net::TcpListener::from_std(listener).map_err(io)?;
        let address = listener.local_addr().map_err(io)?;
        Ok(Listening { address, task: tokio::spawn(serve(listener)) })
    }

    /// The address that it listens on, with the port that was chosen where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the listener and ends its task; after this the address is free.
    pub async fn close(mut self) {
        self.task.abort();
        // The only error is that it was aborted.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The next connection. May be given up at any time without losing one.
pub async fn accept(listener: &tokio::net::TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                debug!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn listener(address: SocketAddr, device: Option<&str>) -> Result<TcpListener, (&'static str, Errno)> {
    if !address.ip().is_unspecified() {
        return listener_of(address, true, device);
    }
    // One socket for both families. A kernel without IPv6 has only the other.
    match listener_of(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port()), false, device) {
        Err((_, Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL)) => {
            listener_of(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port()), true, device)
        }
        result => result,
    }
}

fn listener_of(
    address: SocketAddr,
    only_v6: bool,
    device: Option<&str>,
) -> Result<TcpListener, (&'static str, Errno)> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let opened = socket(family, SockType::Stream, flags, None).and_then(|fd| {
        // A restart must not wait for old connections' TIME_WAIT.
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        if address.is_ipv6() {
            setsockopt(&fd, sockopt::Ipv6V6Only, &only_v6)?;
        }
        if let Some(device) = device {
            setsockopt(&fd, sockopt::BindToDevice, &device.into())?;
        }
        Ok(fd)
    });
    let fd = opened.map_err(|errno| ("open a socket for", errno))?;
    let raw = std::os::fd::AsRawFd::as_raw_fd(&fd);
    bind(raw, &SockaddrStorage::from(address)).map_err(|errno| ("bind to", errno))?;
    let backlog = Backlog::new(BACKLOG).map_err(|errno| ("listen on", errno))?;
    listen(&fd, backlog).map_err(|errno| ("listen on", errno))?;
    Ok(TcpListener::from(fd))
}

/// What becomes of a port of a [`Ports`].
#[derive(Clone, Copy, Debug)]
pub enum Told<'a> {
    /// It is open; whether it could not be had before.
    Opened {
        /// It was told of as [`Told::Failed`].
        late: bool,
    },
    /// It is closed, since nobody wants it any more.
    Closed,
    /// It cannot be had. Told once for each errno; it is tried again.
    Failed(&'a BindError),
}

/// A changing set of ports that are kept open.
#[derive(Debug)]
pub struct Ports<P> {
    open: BTreeMap<P, Listening>,
    /// Those that could not be had, and why, as it was told.
    missing: BTreeMap<P, Errno>,
}

impl<P> Default for Ports<P> {
    fn default() -> Ports<P> {
        Ports { open: BTreeMap::new(), missing: BTreeMap::new() }
    }
}

impl<P: Ord + Clone> Ports<P> {
    /// Closes what is not in `wanted` and opens what is.
    pub async fn set(
        &mut self,
        wanted: BTreeSet<P>,
        bind: impl Fn(&P) -> Result<Listening, BindError>,
        tell: impl Fn(&P, Told<'_>),
    ) {
        self.missing.retain(|port, _| wanted.contains(port));
        // Before anything is opened: a port may go from one Service to another.
        let unwanted: Vec<P> = self.open.keys().filter(|port| !wanted.contains(*port)).cloned().collect();
        for port in unwanted {
            if let Some(listening) = self.open.remove(&port) {
                listening.close().await;
                tell(&port, Told::Closed);
            }
        }
        for port in wanted {
            if self.open.contains_key(&port) {
                continue;
            }
            match bind(&port) {
                Ok(listening) => {
                    tell(&port, Told::Opened { late: self.missing.remove(&port).is_some() });
                    self.open.insert(port, listening);
                }
                Err(error) => {
                    if self.missing.get(&port) != Some(&error.errno) {
                        tell(&port, Told::Failed(&error));
                    }
                    self.missing.insert(port, error.errno);
                }
            }
        }
    }

    /// Those that are open.
    pub fn open(&self) -> impl Iterator<Item = &P> {
        self.open.keys()
    }

    /// How many could not be had.
    pub fn missing(&self) -> usize {
        self.missing.len()
    }

    /// Waits until it is time to try again what could not be had; for ever if there is nothing.
    pub async fn retry(&self) {
        if self.missing.is_empty() {
            std::future::pending().await
        }
        sleep(RETRY).await;
    }
}
