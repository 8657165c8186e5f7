//! Packets that conntrack calls INVALID. Reports: kubernetes/kubernetes#74839, #117924, #94861, #120412, #122663.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, recvfrom, sendto,
    socket,
};
use serde_json::{Value, json};

use super::{apply, client, service, session, slice};
use crate::lab::Lab;
use crate::netns::Namespace;
use crate::probe::{Outcome, http_get, patience, slowness};
use crate::server::runtime;

const METRIC: &str = "kubeproxy_iptables_ct_state_invalid_dropped_packets_total";
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Who connects where, and whose segment is out of the window: an endpoint's, or the client's own.
const TRANSFERS: [(&str, &str, Injector); 6] = [
    ("pod1", "10.96.234.1:80/tcp", Injector::Endpoint("10.128.1.1")),
    ("host", "10.96.234.1:80/tcp", Injector::Endpoint("10.128.1.1")),
    ("ext", "198.18.0.11:32340/tcp", Injector::Endpoint("10.128.1.1")),
    ("ext", "198.18.0.11:32340/tcp", Injector::Client("198.18.0.100")),
    ("pod1", "[fd00:10:96::3401]:80/tcp", Injector::Endpoint("fd00:10:128:1::1")),
    ("ext", "[fd00:198:18::11]:32341/tcp", Injector::Client("fd00:198:18::100")),
];

#[derive(Clone, Copy, Debug)]
enum Injector {
    Endpoint(&'static str),
    Client(&'static str),
}

/// In the middle of a transfer one side sends a segment far out of the window. Nothing is done about it by default, and
/// whom it reaches untranslated resets the connection; with the flag, or with a liberal conntrack, the transfer goes on. A
/// connection that is no Service's passes in each case, though this node sees one direction of it only.
pub fn out_of_window(lab: &mut Lab) -> Result<()> {
    apply(
        lab,
        &[
            service("a", "10.96.234.1", Some(32340)),
            slice("a", &[String::from("10.128.1.1")]),
            service("b", "fd00:10:96::3401", Some(32341)),
            slice("b", &[String::from("fd00:10:128:1::1")]),
        ],
    )?;
    let reset = each_transfer(lab)?;
    // IPVS translates without asking conntrack, but only this node's table masquerades.
    let expected: &[usize] = if lab.mode().is_some() { &[1, 2, 3, 5] } else { &[0, 1, 2, 3, 4, 5] };
    if reset != expected {
        bail!("by default resets came in transfers {reset:?}, not in {expected:?}");
    }
    if lab.rules()?.iter().any(|line| line.contains("invalid")) || dropped(lab)? != 0 {
        bail!("packets are dropped by default");
    }
    one_way(lab, "by default")?;

    restart(lab, json!({"conntrackDropInvalid": true}))?;
    all_go_on(lab, "with the flag")?;
    one_way(lab, "with the flag")?;
    let deadline = Instant::now() + Duration::from_secs(20) * slowness();
    while dropped(lab)? < TRANSFERS.len() as u64 {
        if Instant::now() > deadline {
            bail!("{METRIC} is {} after {} packets", dropped(lab)?, TRANSFERS.len());
        }
        thread::sleep(Duration::from_millis(200));
    }

    restart(lab, json!({"conntrackDropInvalid": true, "conntrack": {"tcpBeLiberal": true}}))?;
    if lab.rules()?.iter().any(|line| line.contains("invalid")) {
        bail!("there are rules for INVALID packets beside a liberal conntrack");
    }
    all_go_on(lab, "with a liberal conntrack")?;
    one_way(lab, "with a liberal conntrack")
}

fn restart(lab: &mut Lab, config: Value) -> Result<()> {
    let mut config = config.as_object().cloned().context("an object")?;
    // What the scenario was started with says the mode.
    config.extend(lab.mode());
    lab.restart_with(config)?;
    lab.settle()?;
    Ok(())
}

/// Which of the transfers are answered with resets, all of which need not end them. No other end is known.
fn each_transfer(lab: &Lab) -> Result<Vec<usize>> {
    let mut reset = Vec::new();
    for (number, (from, to, injector)) in TRANSFERS.into_iter().enumerate() {
        match transfer(lab, from, to, injector)? {
            (Ok(()), 0) => {}
            (Ok(()) | Err(Outcome::Reset | Outcome::Closed), 1..) => reset.push(number),
            (result, resets) => bail!("{from} to {to}, {injector:?}: {result:?}, {resets} resets"),
        }
    }
    Ok(reset)
}

fn all_go_on(lab: &Lab, when: &str) -> Result<()> {
    match each_transfer(lab)?[..] {
        [] => Ok(()),
        [first, ..] => bail!("{when}, {:?} is reset", TRANSFERS[first]),
    }
}

/// What became of a connection, and how many resets the injecting side got.
fn transfer(lab: &Lab, from: &str, to: &str, injector: Injector) -> Result<(Result<(), Outcome>, usize)> {
    let mut session = session(lab, from, to)?;
    let mut ask = || runtime().block_on(session.ask(patience())).map(|_| ());
    let (namespace, own, port) = match injector {
        Injector::Endpoint(own) => (&lab.topology.remote, own, None),
        Injector::Client(own) => {
            let (address, _) = to.rsplit_once('/').context("a target")?;
            (&lab.topology.ext, own, Some(address.parse::<SocketAddr>()?.port()))
        }
    };
    let wire = Wire::open(namespace, own.parse()?)?;
    if let Err(outcome) = ask() {
        bail!("{from} to {to}, before anything was injected: {outcome}");
    }
    let from_peer = |it: &Segment| match port {
        Some(port) => it.ports.0 == port,
        None => it.ports.1 == 8080,
    };
    let last = wire.received()?.into_iter().rfind(from_peer).context("a segment of the connection")?;
    wire.send(
        last.source,
        &Segment {
            ports: (last.ports.1, last.ports.0),
            // Half a gigabyte ahead.
            sequence: last.acknowledged.wrapping_add(1 << 29),
            acknowledged: last.sequence.wrapping_add(last.length),
            flags: ACK,
            length: 10,
            ..last
        },
    )?;
    thread::sleep(Duration::from_millis(100) * slowness());
    let resets = wire.received()?.iter().filter(|it| it.flags & RST != 0).count();
    Ok((ask(), resets))
}

/// A connection to no Service, of which this node sees only what the client sends: its second segment makes no sense to
/// conntrack, and goes on all the same.
fn one_way(lab: &Lab, when: &str) -> Result<()> {
    let (client, server): (IpAddr, IpAddr) = ("198.18.0.101".parse()?, "10.128.1.7".parse()?);
    // The server's answers do not come this way.
    let silent = "table ip silent { chain output { type filter hook output priority 0; ip saddr 10.128.1.7 drop; }; }\n";
    lab.topology.remote.feed("nft", &["-f", "-"], silent)?;
    let (sender, receiver) =
        (Wire::open(&lab.topology.ext, client)?, Wire::open(&lab.topology.remote, server)?);
    let before = invalid(lab)?;
    for flags in [SYN, ACK] {
        let segment = Segment { ports: (50_000, 8080), flags, ..Segment::to(server) };
        sender.send(server, &segment)?;
        thread::sleep(Duration::from_millis(100) * slowness());
    }
    let came: Vec<u8> = receiver.received()?.iter().map(|it| it.flags).collect();
    lab.topology.remote.output("nft", &["delete", "table", "ip", "silent"])?;
    let called_invalid = invalid(lab)? > before;
    let liberal = when.contains("liberal");
    if came != [SYN, ACK] || !(called_invalid || liberal) {
        bail!(
            "{when}: of a connection in one direction came {came:?}; INVALID to conntrack: {called_invalid}"
        );
    }
    Ok(())
}

/// How many packets conntrack has called INVALID.
fn invalid(lab: &Lab) -> Result<u64> {
    let statistics = lab.topology.node.output("conntrack", &["-S"])?;
    let counts = statistics.split_whitespace().filter_map(|word| word.strip_prefix("invalid="));
    Ok(counts.filter_map(|count| count.parse::<u64>().ok()).sum())
}

fn dropped(lab: &Lab) -> Result<u64> {
    let answer = runtime().block_on(http_get(&client(lab, "host")?, "http://127.0.0.1:10249/metrics"))?;
    let text = answer.map_err(|outcome| anyhow::anyhow!("metrics: {outcome}"))?.body;
    let value = text.lines().find_map(|line| line.strip_prefix(METRIC)).context(METRIC)?;
    Ok(value.trim().parse()?)
}

/// A TCP segment.
#[derive(Clone, Copy, Debug)]
struct Segment {
    source: IpAddr,
    ports: (u16, u16),
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    /// Bytes of payload.
    length: u32,
}

impl Segment {
    fn to(source: IpAddr) -> Segment {
        Segment { source, ports: (0, 0), sequence: 1000, acknowledged: 1000, flags: 0, length: 0 }
    }

    fn parse(source: IpAddr, bytes: &[u8]) -> Option<Segment> {
        let half = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let word = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let header = usize::from(bytes.get(12)? >> 4) * 4;
        Some(Segment {
            source,
            ports: (half(0)?, half(2)?),
            sequence: word(4)?,
            acknowledged: word(8)?,
            flags: *bytes.get(13)?,
            length: u32::try_from(bytes.len().checked_sub(header)?).ok()?,
        })
    }

    fn bytes(&self, from: IpAddr, to: IpAddr) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.ports.0.to_be_bytes());
        bytes.extend(self.ports.1.to_be_bytes());
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.acknowledged.to_be_bytes());
        // Five words of header, the window; checksum and urgent pointer follow.
        bytes.extend([5 << 4, self.flags, 0x10, 0, 0, 0, 0, 0]);
        bytes.resize(bytes.len() + self.length as usize, b'x');
        let sum = checksum(from, to, &bytes).to_be_bytes();
        bytes[16..18].copy_from_slice(&sum);
        bytes
    }
}

/// Of the segment and the pseudo header of either family: what it has of zeros adds nothing.
fn checksum(from: IpAddr, to: IpAddr, segment: &[u8]) -> u16 {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(it) => it.octets().to_vec(),
        IpAddr::V6(it) => it.octets().to_vec(),
    };
    let mut all = [octets(from), octets(to)].concat();
    all.extend([0, 6]);
    all.extend(u16::try_from(segment.len()).unwrap_or_default().to_be_bytes());
    all.extend(segment);
    let halves = all.chunks(2).map(|it| u32::from(it[0]) << 8 | u32::from(*it.get(1).unwrap_or(&0)));
    let mut sum: u32 = halves.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Reads and writes the segments of an address.
struct Wire {
    socket: OwnedFd,
    own: IpAddr,
}

impl Wire {
    fn open(namespace: &Namespace, own: IpAddr) -> Result<Wire> {
        let family = if own.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = namespace.enter(|| {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let socket = socket(family, SockType::Raw, flags, SockProtocol::Tcp)?;
            bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(own, 0)))?;
            Ok(socket)
        })?;
        Ok(Wire { socket, own })
    }

    /// What came since it was last asked, but for what belongs to others.
    fn received(&self) -> Result<Vec<Segment>> {
        let mut segments = Vec::new();
        let mut buffer = [0; 2048];
        loop {
            let (length, source) = match recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut buffer) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => return Ok(segments),
                Err(error) => return Err(error.into()),
            };
            let source = source.context("a source")?;
            let v4 = source.as_sockaddr_in().map(|it| IpAddr::V4(it.ip()));
            let v6 = source.as_sockaddr_in6().map(|it| IpAddr::V6(it.ip()));
            let bytes = &buffer[..length];
            // Of IPv4 the header is read, too.
            let header = if v4.is_some() { usize::from(bytes[0] & 0xf) * 4 } else { 0 };
            let source = v4.or(v6).context("an address")?;
            segments.extend(bytes.get(header..).and_then(|bytes| Segment::parse(source, bytes)));
        }
    }

    fn send(&self, to: IpAddr, segment: &Segment) -> Result<()> {
        let address = SockaddrStorage::from(SocketAddr::new(to, 0));
        let bytes = segment.bytes(self.own, to);
        sendto(self.socket.as_raw_fd(), &bytes, &address, MsgFlags::empty())?;
        Ok(())
    }
}
