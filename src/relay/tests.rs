use std::net::IpAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::cluster::Protocol;
use crate::forwarding::Sticky;

fn localhost() -> [IpAddr; 2] {
    Family::ALL.map(Family::loopback)
}

/// A port that nobody has, in either family.
fn free_port() -> u16 {
    std::net::TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port()
}

fn key(address: IpAddr, port: u16) -> Key {
    Key { address, protocol: Protocol::Tcp, port }
}

fn backend(endpoints: &[SocketAddr]) -> Option<Backend> {
    let target = if endpoints.is_empty() { Target::Refuse } else { Target::Endpoints(endpoints.into()) };
    Some(Backend { service: ObjectName::new("ns", "a"), target })
}

fn relay_of_nothing() -> Arc<Relay> {
    Arc::new(Relay::new(Arc::new(Metrics::new().unwrap())))
}

/// Connects once the port is as it should be.
async fn connected(to: SocketAddr) -> TcpStream {
    let connects = async {
        loop {
            match TcpStream::connect(to).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    };
    timeout(Duration::from_secs(30), connects).await.expect("the port is opened")
}

async fn closed(port: SocketAddr) {
    let closes = async {
        while TcpStream::connect(port).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(Duration::from_secs(30), closes).await.expect("the port is closed");
}

#[tokio::test]
async fn both_directions_are_closed_by_themselves() {
    for address in localhost() {
        let server = TcpListener::bind((address, 0)).await.unwrap();
        let relay = relay_of_nothing();
        let port = SocketAddr::new(address, free_port());
        let task = tokio::spawn(relay.clone().serve());
        relay.update([(key(address, port.port()), backend(&[server.local_addr().unwrap()]))], true);
        let mut client = connected(port).await;
        let (mut accepted, _) = server.accept().await.unwrap();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = Vec::new();
        accepted.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question");
        // The client said all it has to say, and listens still.
        accepted.write_all(b"answer").await.unwrap();
        drop(accepted);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"answer");
        task.abort();
    }
}

#[tokio::test]
async fn an_endpoint_that_does_not_read_stops_the_client() {
    let [address, _] = localhost();
    let server = TcpListener::bind((address, 0)).await.unwrap();
    let relay = relay_of_nothing();
    let port = SocketAddr::new(address, free_port());
    tokio::spawn(relay.clone().serve());
    relay.update([(key(address, port.port()), backend(&[server.local_addr().unwrap()]))], true);
    let client = connected(port).await;
    let (mut accepted, _) = server.accept().await.unwrap();
    let (mut reader, mut writer) = client.into_split();
    // Far more than the sockets' buffers and the relay's hold together.
    const MUCH: usize = 64 << 20;
    let write = tokio::spawn(async move {
        let written = writer.write_all(&vec![7; MUCH]).await;
        drop(writer);
        written
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!write.is_finished(), "it is not taken in while nobody reads it");
    let mut all = Vec::new();
    accepted.read_to_end(&mut all).await.unwrap();
    assert_eq!(all.len(), MUCH);
    write.await.unwrap().unwrap();
    drop(accepted);
    assert_eq!(reader.read(&mut [0; 8]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_port_is_open_while_there_are_endpoints_and_connections_stay() {
    let [address, _] = localhost();
    let server = TcpListener::bind((address, 0)).await.unwrap();
    let endpoint = server.local_addr().unwrap();
    let relay = relay_of_nothing();
    let number = free_port();
    let port = SocketAddr::new(address, number);
    tokio::spawn(relay.clone().serve());
    relay.update([(key(address, number), backend(&[endpoint]))], true);
    let mut client = connected(port).await;
    let (mut accepted, _) = server.accept().await.unwrap();
    for gone in [backend(&[]), None] {
        relay.update([(key(address, number), backend(&[endpoint]))], false);
        drop(connected(port).await);
        relay.update([(key(address, number), gone)], false);
        closed(port).await;
    }
    assert_eq!(relay.metrics.relay_listeners[0].get(), 0);
    accepted.write_all(b"still").await.unwrap();
    let mut bytes = [0; 5];
    client.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"still");
    // A reset goes through as one.
    accepted.set_zero_linger().unwrap();
    drop(accepted);
    let error = client.read(&mut bytes).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_others_to_end() {
    const LIMIT: usize = 2;
    let [address, _] = localhost();
    let server = TcpListener::bind((address, 0)).await.unwrap();
    let relay = Arc::new(Relay::with_limit(Arc::new(Metrics::new().unwrap()), LIMIT));
    let metrics = relay.metrics.clone();
    let port = SocketAddr::new(address, free_port());
    tokio::spawn(relay.clone().serve());
    relay.update([(key(address, port.port()), backend(&[server.local_addr().unwrap()]))], true);
    let mut open = Vec::new();
    for _ in 0..LIMIT {
        open.push((connected(port).await, server.accept().await.unwrap().0));
    }
    assert_eq!((metrics.relay_connections.get(), metrics.relay_delayed.get()), (2, 0));
    assert!(!relay.crowded.load(Ordering::Relaxed), "as many as may be, and nobody waits");
    let mut waiting = [connected(port).await, connected(port).await];
    waiting[0].write_all(b"first").await.unwrap();
    let patience = Duration::from_millis(200);
    timeout(patience, server.accept()).await.expect_err("it goes to no endpoint yet");
    assert_eq!((metrics.relay_connections.get(), metrics.relay_delayed.get()), (2, 1));
    assert!(relay.crowded.load(Ordering::Relaxed), "the warning is out");
    // Those that there are do not suffer.
    let (client, accepted) = &mut open[1];
    client.write_all(b"still").await.unwrap();
    let mut bytes = [0; 5];
    accepted.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"still");
    // In the order in which they came.
    drop(open.remove(0));
    let (mut accepted, _) = server.accept().await.unwrap();
    accepted.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"first");
    drop((open, waiting, accepted));
    // The second of those that waited.
    drop(server.accept().await.unwrap());
    // All have ended: the next crowd is news again.
    let ended = async {
        while metrics.relay_connections.get() > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(Duration::from_secs(30), ended).await.expect("they end");
    drop(connected(port).await);
    server.accept().await.unwrap();
    assert!(!relay.crowded.load(Ordering::Relaxed));
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_a_reset() {
    let [address, _] = localhost();
    let relay = relay_of_nothing();
    let port = SocketAddr::new(address, free_port());
    tokio::spawn(relay.clone().serve());
    relay.update([(key(address, port.port()), backend(&[(address, free_port()).into()]))], true);
    let mut client = connected(port).await;
    let error = client.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test(start_paused = true)]
async fn a_taken_port_is_tried_again() {
    let [address, _] = localhost();
    let taken = std::net::TcpListener::bind((address, 0)).unwrap();
    let port = taken.local_addr().unwrap();
    let server = TcpListener::bind((address, 0)).await.unwrap();
    let relay = relay_of_nothing();
    tokio::spawn(relay.clone().serve());
    relay.update([(key(address, port.port()), backend(&[server.local_addr().unwrap()]))], true);
    tokio::time::sleep(listen::RETRY * 3).await;
    assert_eq!(relay.metrics.relay_failures[0].get(), 1, "told once");
    drop(taken);
    tokio::time::sleep(listen::RETRY * 2).await;
    TcpStream::connect(port).await.unwrap();
    server.accept().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_stays_with_its_endpoint() {
    let relay = relay_of_nothing();
    let port: SocketAddr = "127.0.0.1:30080".parse().unwrap();
    let endpoint = |n: u8| SocketAddr::new([10, 0, 0, n].into(), 80);
    let sticky = |live: &[u8]| {
        let live = live.iter().map(|n| (u32::from(*n), endpoint(*n))).collect();
        let target = Target::Sticky(Arc::new(Sticky { id: 7, timeout: 10, live }));
        Some(Backend { service: ObjectName::new("ns", "a"), target })
    };
    let all = key(port.ip(), port.port());
    relay.update([(all, sticky(&[1, 2, 3]))], true);
    let first = relay.choose(port, 1).unwrap();
    assert!((0..50).all(|n| relay.choose(port, n) == Some(first)));
    relay.update([(all, sticky(&[1, 3]))], false);
    let second = relay.choose(port, 1).unwrap();
    assert_ne!(first, second, "it is gone");
    relay.update([(all, sticky(&[1, 2, 3]))], false);
    assert!((0..50).all(|n| relay.choose(port, n) == Some(second)));
    tokio::time::sleep(Duration::from_secs(11)).await;
    let met: BTreeSet<_> = (0..3)
        .map(|n| {
            relay.state().sticky.clear();
            relay.choose(port, n).unwrap()
        })
        .collect();
    assert_eq!(met.len(), 3);
}
