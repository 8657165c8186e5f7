//! A client, a node and everybody's pods, each in a network namespace.
//!
//! `client 198.18.0.2 ── 198.18.0.1 node 198.18.1.1 ── 198.18.1.2 pods 10.128.0.0/9`

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::netns::{Namespace, NamespaceSet};

/// An answer takes less, or there are no rules yet.
const PATIENCE: Duration = Duration::from_millis(50);
/// Between two tries.
const PAUSE: Duration = Duration::from_micros(300);

/// The namespaces; they go when it is dropped.
pub struct Lab {
    pub node: Namespace,
    client: Namespace,
    _pods: Namespace,
    _namespaces: NamespaceSet,
}

impl Lab {
    pub fn build() -> Result<Lab> {
        let (namespaces, [client, node, pods]) = NamespaceSet::create(["client", "node", "pods"])?;
        let link = |name: &str, peer: &str, of: &Namespace| {
            format!("link add {name} type veth peer name {peer} netns {}\n", of.name())
        };
        let up = "link set lo up\n";
        node.ip(&format!(
            "{up}{}{}address add 198.18.0.1/24 dev client\naddress add 198.18.1.1/24 dev pods\n\
             link set client up\nlink set pods up\nroute add 10.128.0.0/9 via 198.18.1.2\n",
            link("client", "eth0", &client),
            link("pods", "eth0", &pods)
        ))?;
        client.ip(&format!(
            "{up}address add 198.18.0.2/24 dev eth0\nlink set eth0 up\nroute add default via 198.18.0.1\n"
        ))?;
        // Whatever address a pod has, one listener answers for it.
        pods.ip(&format!(
            "{up}address add 198.18.1.2/24 dev eth0\nlink set eth0 up\nroute add default via 198.18.1.1\n\
             route add local 10.128.0.0/9 dev lo\n"
        ))?;
        node.sysctl(&[("net/ipv4/ip_forward", "1"), ("net/ipv4/icmp_ratelimit", "0")])?;
        pods.enter(|| {
            let listener = TcpListener::bind("0.0.0.0:8080")?;
            std::thread::spawn(move || listener.incoming().flatten().for_each(answer));
            Ok(())
        })?;
        Ok(Lab { node, client, _pods: pods, _namespaces: namespaces })
    }

    /// Lets the client have the addresses of 198.19.0.0/16, besides its own.
    pub fn many_clients(&self) -> Result<()> {
        self.client.ip("route add local 198.19.0.0/16 dev lo\n")?;
        self.node.ip("route add 198.19.0.0/16 via 198.18.0.2\n")
    }

    /// Runs `work` where the client is.
    pub fn as_client<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.client.enter(work)
    }
}

/// Says which address was reached.
fn answer(mut stream: TcpStream) {
    if let Ok(SocketAddr::V4(address)) = stream.local_addr() {
        // A client that went is of no interest.
        _ = stream.write_all(&address.ip().octets());
    }
}

/// The endpoint that a connection reaches; `None` if none.
pub fn connect(to: Ipv4Addr) -> Option<Ipv4Addr> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((to, 80)), PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut octets = [0; 4];
    stream.read_exact(&mut octets).ok()?;
    Some(octets.into())
}

/// Connects until an endpoint is reached that is wanted; when that was.
pub fn reach(to: Ipv4Addr, within: Duration, wanted: impl Fn(Ipv4Addr) -> bool) -> Result<Instant> {
    let deadline = Instant::now() + within;
    while !connect(to).is_some_and(&wanted) {
        if Instant::now() > deadline {
            bail!("{to} does not answer as it should within {within:?}");
        }
        std::thread::sleep(PAUSE);
    }
    Ok(Instant::now())
}
