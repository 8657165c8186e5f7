//! Servers that say which address was reached and who was seen asking.
//!
//! A request is a line `NUMBER`, the answer is the line `NUMBER REACHED SEEN`, both addresses with their ports.
//! They listen on the wildcard address: a namespace has whole ranges of addresses by a local route.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

use anyhow::{Context, Result};
use nix::cmsg_space;
use nix::libc::{in_pktinfo, in6_pktinfo};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType,
    SockaddrStorage, bind, listen, recvmsg, sendmsg, setsockopt, socket, sockopt,
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use crate::netns::Namespace;

/// The runtime that all sockets wait on. A socket belongs to the namespace that it was made in, whoever uses it.
///
/// # Panics
/// When the process may start no threads.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads to run on")
    })
}

/// The servers of one namespace; they end when it is dropped.
#[derive(Debug)]
pub struct Servers {
    _tasks: JoinSet<()>,
}

impl Servers {
    /// Answers on TCP and UDP, both families, on each of `ports`.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn start(namespace: &Namespace, ports: &[u16]) -> Result<Self> {
        let mut tasks = JoinSet::new();
        let _context = runtime().enter();
        for &port in ports {
            for wildcard in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
                let address = SocketAddr::new(wildcard, port);
                let (stream, datagram) = namespace.enter(|| {
                    Ok((bound(address, SockType::Stream, None)?, bound(address, SockType::Datagram, None)?))
                })?;
                let listener = tokio::net::TcpListener::from_std(TcpListener::from(stream))?;
                tasks.spawn(serve_tcp(listener));
                let socket = tokio::net::UdpSocket::from_std(UdpSocket::from(datagram))?;
                tasks.spawn(serve_udp(socket, port));
            }
        }
        Ok(Self { _tasks: tasks })
    }

    /// Answers associations to each of `addresses`: one to a wildcard would be told all addresses of the namespace.
    ///
    /// # Errors
    /// On a kernel without SCTP, or when an address is taken.
    pub fn start_sctp(namespace: &Namespace, addresses: &[SocketAddr]) -> Result<Self> {
        let mut tasks = JoinSet::new();
        let _context = runtime().enter();
        for &address in addresses {
            let socket = namespace.enter(|| bound(address, SockType::Stream, Some(SockProtocol::Sctp)))?;
            let listener = tokio::net::TcpListener::from_std(TcpListener::from(socket))?;
            tasks.spawn(serve_tcp(listener));
        }
        Ok(Self { _tasks: tasks })
    }
}

fn bound(address: SocketAddr, kind: SockType, protocol: Option<SockProtocol>) -> Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, kind, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, protocol)
        .with_context(|| format!("this kernel has no {:?}", protocol.unwrap_or(SockProtocol::Tcp)))?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address)).with_context(|| format!("bind {address}"))?;
    match kind {
        SockType::Stream => listen(&socket, Backlog::new(4096)?)?,
        _ if address.is_ipv4() => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
        _ => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
    }
    Ok(socket)
}

async fn serve_tcp(listener: tokio::net::TcpListener) {
    // Connections end with their listener, so that nothing outlives the namespace.
    let mut connections = JoinSet::new();
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            connections.spawn(answer_lines(stream));
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn answer_lines(mut stream: TcpStream) {
    let (Ok(reached), Ok(seen)) = (stream.local_addr(), stream.peer_addr()) else { return };
    let (reader, mut writer) = stream.split();
    let mut lines = BufReader::new(reader).lines();
    while let Ok(Some(number)) = lines.next_line().await {
        if writer.write_all(format!("{number} {reached} {seen}\n").as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn serve_udp(socket: tokio::net::UdpSocket, port: u16) {
    while socket.readable().await.is_ok() {
        // Nobody to tell when an answer cannot be sent: the client's view is what counts.
        let _ = socket.try_io(Interest::READABLE, || answer_datagram(socket.as_raw_fd(), port));
    }
}

/// Answers one datagram from the address that it reached: the wildcard socket would choose another.
fn answer_datagram(socket: i32, port: u16) -> io::Result<()> {
    let mut buffer = [0; 64];
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let mut control = cmsg_space!(in_pktinfo, in6_pktinfo);
    let message = recvmsg::<SockaddrStorage>(socket, &mut slices, Some(&mut control), MsgFlags::empty())?;
    let Some(seen) = message.address.as_ref().and_then(socket_address) else { return Ok(()) };
    let length = message.bytes;
    let info = message.cmsgs()?.find_map(|it| match it {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(PacketInfo::V4(info)),
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(PacketInfo::V6(info)),
        _ => None,
    });
    let Some(mut info) = info else { return Ok(()) };
    let reached = SocketAddr::new(info.reached(), port);
    let number = String::from_utf8_lossy(&buffer[..length]).trim().to_owned();
    let answer = format!("{number} {reached} {seen}\n");
    let control = [info.answer_from_there()];
    let slices = [IoSlice::new(answer.as_bytes())];
    sendmsg(socket, &slices, &control, MsgFlags::empty(), Some(&SockaddrStorage::from(seen)))?;
    Ok(())
}

enum PacketInfo {
    V4(in_pktinfo),
    V6(in6_pktinfo),
}

impl PacketInfo {
    fn reached(&self) -> IpAddr {
        match self {
            Self::V4(info) => IpAddr::V4(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes())),
            Self::V6(info) => IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)),
        }
    }

    /// The source address, with the way out left to the routes: the link it came by need not be that.
    fn answer_from_there(&mut self) -> ControlMessage<'_> {
        match self {
            Self::V4(info) => {
                info.ipi_ifindex = 0;
                info.ipi_spec_dst = info.ipi_addr;
                ControlMessage::Ipv4PacketInfo(info)
            }
            Self::V6(info) => {
                info.ipi6_ifindex = 0;
                ControlMessage::Ipv6PacketInfo(info)
            }
        }
    }
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddrV4::from(*v4).into());
    }
    address.as_sockaddr_in6().map(|v6| SocketAddrV6::from(*v6).into())
}
