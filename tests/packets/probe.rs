//! Clients: what becomes of a connection, who answered, and which source address was seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::str::FromStr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::netns::Namespace;
use crate::topology::is_node_address;

/// After so long, silence is what the answer is. IPv6 TCP acts on an ICMP error only at its second SYN, after
/// one second: that is a refusal still.
pub const SILENCE: Duration = Duration::from_millis(1300);
/// Where an answer is expected: long enough for a SYN to be sent three times on a machine that is busy.
pub fn patience() -> Duration {
    Duration::from_secs(5) * slowness()
}

/// How many times longer than usual is waited for what has to come: emulated machines set `SLUICE_TEST_SLOWNESS`.
pub fn slowness() -> u32 {
    static SLOWNESS: LazyLock<u32> = LazyLock::new(|| {
        let given = std::env::var("SLUICE_TEST_SLOWNESS").ok();
        given.map_or(1, |text| text.parse().expect("SLUICE_TEST_SLOWNESS is a number"))
    });
    *SLOWNESS
}

/// Sockets open at once, in all cases together.
static OPEN: Semaphore = Semaphore::const_new(1200);

/// What to speak.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// A connection, a line, its answer.
    Tcp,
    /// A datagram, its answer.
    Udp,
    /// An association, a line, its answer.
    Sctp,
    /// An echo request: the target has no port.
    Icmp,
}

/// Where a flow goes: `10.96.0.10:80/tcp`, `[fd00:10:96::a]:53/udp`, `10.96.0.10/icmp`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Target {
    /// Port 0 for ICMP.
    pub address: SocketAddr,
    /// The protocol behind the slash.
    pub protocol: Protocol,
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || anyhow!("{text}: not ADDRESS:PORT/tcp, /udp or /sctp, or ADDRESS/icmp");
        let (address, protocol) = text.rsplit_once('/').ok_or_else(wrong)?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            "icmp" => {
                let address = SocketAddr::new(address.parse().map_err(|_| wrong())?, 0);
                return Ok(Self { address, protocol: Protocol::Icmp });
            }
            _ => return Err(wrong()),
        };
        Ok(Self { address: address.parse().map_err(|_| wrong())?, protocol })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Protocol::Tcp => write!(f, "{}/tcp", self.address),
            Protocol::Udp => write!(f, "{}/udp", self.address),
            Protocol::Sctp => write!(f, "{}/sctp", self.address),
            Protocol::Icmp => write!(f, "{}/icmp", self.address.ip()),
        }
    }
}

/// What became of one attempt.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Outcome {
    /// An answer came.
    Connect,
    /// A reset or an ICMP port unreachable.
    Refused,
    /// Silence.
    Timeout,
    /// No route, here or further on.
    Unreachable,
    /// An open connection was reset.
    Reset,
    /// An open connection was closed by the other side.
    Closed,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Reset => "reset",
            Self::Closed => "closed",
        })
    }
}

/// The source address that an endpoint saw, in the words of the cases.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Source {
    /// The client's own.
    Kept,
    /// Another, of the node.
    Node,
    /// Another one.
    Other(IpAddr),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kept => f.write_str("kept"),
            Self::Node => f.write_str("node"),
            Self::Other(_) => f.write_str("neither kept nor node"),
        }
    }
}

/// One answer.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// The endpoint that was reached.
    pub endpoint: SocketAddr,
    /// Whom it saw asking.
    pub seen: SocketAddr,
    /// Whether that is the client's own address.
    pub source: Source,
}

/// What became of all attempts of one flow.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// How many ended how.
    pub outcomes: BTreeMap<Outcome, usize>,
    /// How many answers each endpoint gave.
    pub endpoints: BTreeMap<SocketAddr, usize>,
    /// The sources that each endpoint saw, with their addresses.
    pub sources: BTreeMap<SocketAddr, BTreeSet<(Source, IpAddr)>>,
}

impl Observation {
    /// Takes another one of the same flow in.
    pub fn merge(&mut self, other: Observation) {
        other.outcomes.into_iter().for_each(|(outcome, n)| *self.outcomes.entry(outcome).or_default() += n);
        other
            .endpoints
            .into_iter()
            .for_each(|(endpoint, n)| *self.endpoints.entry(endpoint).or_default() += n);
        for (endpoint, sources) in other.sources {
            self.sources.entry(endpoint).or_default().extend(sources);
        }
    }

    fn add(&mut self, attempt: Result<Answer, Outcome>) {
        let outcome = match attempt {
            Ok(answer) => {
                *self.endpoints.entry(answer.endpoint).or_default() += 1;
                self.sources.entry(answer.endpoint).or_default().insert((answer.source, answer.seen.ip()));
                Outcome::Connect
            }
            Err(outcome) => outcome,
        };
        *self.outcomes.entry(outcome).or_default() += 1;
    }
}

impl fmt::Display for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcomes: Vec<_> = self.outcomes.iter().map(|(outcome, n)| format!("{outcome} x{n}")).collect();
        write!(f, "{}", outcomes.join(" + "))?;
        for (endpoint, n) in self.endpoints.iter().take(8) {
            let sources = self.sources.get(endpoint).into_iter().flatten();
            let sources: Vec<_> = sources.map(|(source, address)| format!("{source} {address}")).collect();
            write!(f, "; {endpoint} x{n} saw {}", sources.join(" and "))?;
        }
        if self.endpoints.len() > 8 {
            write!(f, "; {} endpoints in all", self.endpoints.len())?;
        }
        Ok(())
    }
}

/// A client: the namespace, and its source address where it has a choice.
#[derive(Clone, Debug)]
pub struct Client {
    /// Where the sockets are made.
    pub namespace: Namespace,
    /// The address to bind.
    pub source: Option<IpAddr>,
}

impl Client {
    /// Makes `tries` attempts, at once or one after the other.
    ///
    /// # Errors
    /// When no socket can be made; whatever happens to packets is an [`Outcome`].
    pub async fn attempts(
        &self,
        target: Target,
        tries: usize,
        sequential: bool,
        wait: Duration,
    ) -> Result<Observation> {
        let mut observation = Observation::default();
        let together = if sequential { 1 } else { 200 };
        let mut left = tries;
        while left > 0 {
            let count = left.min(together);
            left -= count;
            let permits = OPEN.acquire_many(u32::try_from(count)?).await?;
            let sockets = self.sockets(target, count)?;
            let mut attempts = JoinSet::new();
            for socket in sockets {
                attempts.spawn(async move {
                    let mut session = Session::new(socket, target);
                    let attempt = session.ask(wait).await;
                    session.abort();
                    attempt
                });
            }
            while let Some(attempt) = attempts.join_next().await {
                observation.add(attempt?);
            }
            drop(permits);
        }
        Ok(observation)
    }

    /// Opens a socket that goes on being used.
    ///
    /// # Errors
    /// When no socket can be made.
    pub fn session(&self, target: Target) -> Result<Session> {
        let socket = self.sockets(target, 1)?.pop().context("one socket")?;
        Ok(Session::new(socket, target))
    }

    fn sockets(&self, target: Target, count: usize) -> Result<Vec<OwnedFd>> {
        self.namespace.enter(|| (0..count).map(|_| self.socket(target)).collect())
    }

    /// A bound socket. Source ports are counted through: a port that comes back soon would meet the conntrack
    /// entry of an earlier datagram.
    fn socket(&self, target: Target) -> Result<OwnedFd> {
        let v4 = target.address.is_ipv4();
        let family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let (kind, protocol) = match target.protocol {
            Protocol::Tcp => (SockType::Stream, None),
            Protocol::Udp => (SockType::Datagram, None),
            Protocol::Sctp => (SockType::Stream, Some(SockProtocol::Sctp)),
            Protocol::Icmp if v4 => (SockType::Datagram, Some(SockProtocol::Icmp)),
            Protocol::Icmp => (SockType::Datagram, Some(SockProtocol::IcmpV6)),
        };
        let unspecified =
            if v4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
        let address = match self.source {
            Some(address) => address,
            // An association tells its peer all addresses that its socket is bound to.
            None if target.protocol == Protocol::Sctp => routed_source(unspecified, target.address)?,
            None => unspecified,
        };
        if address.is_ipv4() != v4 {
            bail!("a flow from {address} to {target} mixes the families");
        }
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        for _ in 0..100 {
            let socket = socket(family, kind, flags, protocol)?;
            let port = if target.protocol == Protocol::Icmp { 0 } else { next_port() };
            if target.protocol == Protocol::Tcp {
                setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            }
            if target.protocol == Protocol::Sctp {
                // Else an ICMP error is remembered, and the attempt goes on.
                if v4 {
                    setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
                } else {
                    setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
                }
            }
            match bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(address, port))) {
                Ok(()) => return Ok(socket),
                Err(Errno::EADDRINUSE) => {}
                Err(error) => return Err(error).with_context(|| format!("bind {address}:{port}")),
            }
        }
        bail!("no free source port for {target}")
    }
}

/// The address that the routes choose for a socket that is bound to none.
fn routed_source(unspecified: IpAddr, target: SocketAddr) -> Result<IpAddr> {
    let socket = std::net::UdpSocket::bind((unspecified, 0))?;
    socket.connect(target).with_context(|| format!("a route to {target}"))?;
    Ok(socket.local_addr()?.ip())
}

fn next_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed) % 40_000;
    20_000 + u16::try_from(number).unwrap_or_default()
}

/// One socket and its questions, numbered so that a late answer is not taken for the next one.
#[derive(Debug)]
pub struct Session {
    target: Target,
    state: State,
    number: u64,
}

#[derive(Debug)]
enum State {
    Unconnected(OwnedFd),
    Tcp(BufReader<TcpStream>),
    Udp(UdpSocket),
    Ended(Outcome),
}

impl Session {
    fn new(socket: OwnedFd, target: Target) -> Self {
        Self { target, state: State::Unconnected(socket), number: 0 }
    }

    /// Asks once and waits for the answer; connects at the first time.
    ///
    /// # Errors
    /// With what became of it instead.
    pub async fn ask(&mut self, wait: Duration) -> Result<Answer, Outcome> {
        let deadline = Instant::now() + wait;
        if let State::Unconnected(_) = self.state {
            self.connect(deadline).await?;
        }
        self.number += 1;
        let (local, answer) = match &mut self.state {
            State::Tcp(stream) => {
                let local = stream.get_ref().local_addr();
                match timeout_at(deadline, ask_stream(stream, self.number)).await {
                    Ok(answer) => (local, answer?),
                    Err(_) => return Err(Outcome::Timeout),
                }
            }
            State::Udp(socket) => {
                let local = socket.local_addr();
                let answer = if self.target.protocol == Protocol::Icmp {
                    ping(socket, self.target.address, deadline).await?
                } else {
                    ask_datagram(socket, self.number, deadline).await?
                };
                (local, answer)
            }
            State::Unconnected(_) => return Err(Outcome::Timeout),
            State::Ended(outcome) => return Err(*outcome),
        };
        let (endpoint, seen) = answer;
        let own = local.map_err(|_| Outcome::Reset)?.ip();
        let source = match seen.ip() {
            ip if ip == own => Source::Kept,
            ip if is_node_address(ip) => Source::Node,
            ip => Source::Other(ip),
        };
        Ok(Answer { endpoint, seen, source })
    }

    /// Asks once, as an observation of one attempt.
    pub async fn observe(&mut self, wait: Duration) -> Observation {
        let mut observation = Observation::default();
        observation.add(self.ask(wait).await);
        observation
    }

    async fn connect(&mut self, deadline: Instant) -> Result<(), Outcome> {
        let ended = State::Ended(Outcome::Timeout);
        let State::Unconnected(socket) = std::mem::replace(&mut self.state, ended) else { return Ok(()) };
        let connected = match self.target.protocol {
            // To poll, read and write an association of this style is as a stream.
            Protocol::Tcp | Protocol::Sctp => {
                let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
                match timeout_at(deadline, socket.connect(self.target.address)).await {
                    Ok(stream) => stream.map(|stream| State::Tcp(BufReader::new(stream))),
                    Err(_) => return Err(Outcome::Timeout),
                }
            }
            Protocol::Udp | Protocol::Icmp => self.connect_datagram(socket).await,
        };
        match connected {
            Ok(state) => self.state = state,
            Err(error) => {
                let outcome = outcome(&error).unwrap_or(Outcome::Unreachable);
                self.state = State::Ended(outcome);
                return Err(outcome);
            }
        }
        Ok(())
    }

    async fn connect_datagram(&self, socket: OwnedFd) -> io::Result<State> {
        let socket = UdpSocket::from_std(std::net::UdpSocket::from(socket))?;
        socket.connect(self.target.address).await?;
        Ok(State::Udp(socket))
    }

    /// Closes with a reset or an abort, so that neither a socket nor a conntrack entry waits two minutes.
    pub fn abort(self) {
        if let State::Tcp(stream) = self.state {
            let _ = stream.get_ref().set_zero_linger();
        }
    }
}

/// Errors of sockets in the words of the cases; none for what says nothing about packets.
fn outcome(error: &io::Error) -> Option<Outcome> {
    Some(match error.raw_os_error().map(Errno::from_raw)? {
        Errno::ECONNREFUSED => Outcome::Refused,
        Errno::ECONNRESET | Errno::EPIPE => Outcome::Reset,
        Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EADDRNOTAVAIL => Outcome::Unreachable,
        // A local rule swallowed the packet. Whether an ICMP error comes with it is seen on receiving.
        Errno::ETIMEDOUT | Errno::EPERM => Outcome::Timeout,
        _ => return None,
    })
}

fn parse_answer(line: &str, number: u64) -> Option<(SocketAddr, SocketAddr)> {
    let mut words = line.split_whitespace();
    if words.next()?.parse::<u64>().ok()? != number {
        return None;
    }
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

async fn ask_stream(
    stream: &mut BufReader<TcpStream>,
    number: u64,
) -> Result<(SocketAddr, SocketAddr), Outcome> {
    let failed = |error: io::Error| outcome(&error).unwrap_or(Outcome::Reset);
    stream.get_mut().write_all(format!("{number}\n").as_bytes()).await.map_err(failed)?;
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await.map_err(failed)? == 0 {
            return Err(Outcome::Closed);
        }
        if let Some(answer) = parse_answer(&line, number) {
            return Ok(answer);
        }
    }
}

/// Sends again when half a second was silent: a datagram may be lost where a queue is full.
async fn ask_datagram(
    socket: &UdpSocket,
    number: u64,
    deadline: Instant,
) -> Result<(SocketAddr, SocketAddr), Outcome> {
    let request = format!("{number}\n");
    let mut buffer = [0; 256];
    while Instant::now() < deadline {
        send(socket, request.as_bytes()).await?;
        let again = deadline.min(Instant::now() + Duration::from_millis(500));
        while let Ok(received) = timeout_at(again, socket.recv(&mut buffer)).await {
            let length = received.map_err(|error| outcome(&error).unwrap_or(Outcome::Unreachable))?;
            if let Some(answer) = parse_answer(&String::from_utf8_lossy(&buffer[..length]), number) {
                return Ok(answer);
            }
        }
    }
    Err(Outcome::Timeout)
}

async fn send(socket: &UdpSocket, bytes: &[u8]) -> Result<(), Outcome> {
    match socket.send(bytes).await {
        Ok(_) => Ok(()),
        Err(error) => match outcome(&error) {
            Some(Outcome::Timeout) | None => Ok(()),
            Some(outcome) => Err(outcome),
        },
    }
}

async fn ping(
    socket: &UdpSocket,
    target: SocketAddr,
    deadline: Instant,
) -> Result<(SocketAddr, SocketAddr), Outcome> {
    // Type, code, checksum and identifier (both the kernel's), sequence number, payload.
    let echo_request: u8 = if target.is_ipv4() { 8 } else { 128 };
    send(socket, &[echo_request, 0, 0, 0, 0, 0, 0, 1, b'p', b'i', b'n', b'g']).await?;
    let mut buffer = [0; 256];
    match timeout_at(deadline, socket.recv(&mut buffer)).await {
        Ok(Ok(_)) => Ok((target, target)),
        Ok(Err(error)) => Err(outcome(&error).unwrap_or(Outcome::Unreachable)),
        Err(_) => Err(Outcome::Timeout),
    }
}

/// The answer to an HTTP request.
#[derive(Debug)]
pub struct HttpAnswer {
    /// The status code.
    pub code: u16,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    /// As it came.
    pub body: String,
}

/// Gets `http://ADDRESS:PORT/PATH`.
///
/// # Errors
/// The outer one on an address that cannot be read, the inner one when there is no HTTP answer.
pub async fn http_get(client: &Client, url: &str) -> Result<Result<HttpAnswer, Outcome>> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url}: not http://"))?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = authority.parse().with_context(|| format!("{url}: not ADDRESS:PORT"))?;
    let socket = client.session(Target { address, protocol: Protocol::Tcp })?;
    let State::Unconnected(socket) = socket.state else { bail!("a new socket") };
    let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    let exchange = async {
        let mut stream = socket.connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut bytes = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut bytes).await?;
        Ok::<_, io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = match timeout(Duration::from_secs(3), exchange).await {
        Err(_) => return Ok(Err(Outcome::Timeout)),
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => return Ok(Err(Outcome::Refused)),
        Ok(Err(error)) => return Ok(Err(outcome(&error).unwrap_or(Outcome::Unreachable))),
        Ok(Ok(text)) => text,
    };
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let mut lines = head.lines();
    let code = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
    let Some(code) = code else { return Ok(Err(Outcome::Closed)) };
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value.trim().to_owned())).collect();
    Ok(Ok(HttpAnswer { code, headers, body: body.to_owned() }))
}
