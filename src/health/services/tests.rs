use std::time::Duration;

use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::*;

fn check(port: u16, v4: Option<usize>, v6: Option<usize>) -> HealthCheck {
    HealthCheck { port: port.try_into().unwrap(), endpoints: [v4, v6] }
}

fn name(name: &str) -> ObjectName {
    ObjectName::new("ns", name)
}

fn missing() -> IntGauge {
    IntGauge::new("missing", "ports that cannot be had").unwrap()
}

fn localhost() -> Vec<IpAddr> {
    vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()]
}

/// A port that nobody has, in either family.
fn free_port() -> u16 {
    std::net::TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port()
}

/// The status line's code, or `None` where nobody listens.
async fn code(address: IpAddr, port: u16) -> Option<u16> {
    let mut stream = TcpStream::connect((address, port)).await.ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}

/// Waits until the servers have come to this.
async fn eventually(address: IpAddr, port: u16, wanted: Option<u16>) {
    let reached = async {
        while code(address, port).await != wanted {
            sleep(Duration::from_millis(2)).await;
        }
    };
    let seen = tokio::time::timeout(Duration::from_secs(30), reached).await;
    assert!(seen.is_ok(), "{address}:{port} does not come to {wanted:?}");
}

#[tokio::test]
async fn the_answer_is_kube_proxys() {
    let checks = ServiceChecks::default();
    checks.update([(name("a"), Some(check(30000, Some(2), None)))]);
    let response = checks.response(&name("a"), Family::Ipv4, true);
    assert_eq!(response.status(), 200);
    for (header, value) in [
        ("content-type", "application/json"),
        ("x-content-type-options", "nosniff"),
        ("x-load-balancing-endpoint-weight", "2"),
    ] {
        assert_eq!(response.headers()[header], value);
    }
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(
        body,
        r#"{"service":{"namespace":"ns","name":"a"},"localEndpoints":2,"serviceProxyHealthy":true}"#
    );
    assert_eq!(checks.response(&name("a"), Family::Ipv4, false).status(), 503, "the proxy is unhealthy");
    assert_eq!(checks.response(&name("a"), Family::Ipv6, true).status(), 503);
    assert_eq!(checks.response(&name("gone"), Family::Ipv4, true).status(), 503);
}

#[tokio::test]
async fn ports_open_and_close_with_their_services() {
    let [v4, v6] = [localhost()[0], localhost()[1]];
    let (first, second) = (free_port(), free_port());
    let checks = Arc::new(ServiceChecks::default());
    let task = tokio::spawn(checks.clone().serve(Arc::default(), Events::default(), missing()));
    checks.replace([(name("a"), check(first, Some(1), Some(0)))].into_iter().collect(), &localhost());
    eventually(v4, first, Some(200)).await;
    eventually(v6, first, Some(503)).await;
    // Numbers are read with each request.
    checks.update([(name("a"), Some(check(first, Some(0), Some(3))))]);
    assert_eq!(code(v4, first).await, Some(503));
    assert_eq!(code(v6, first).await, Some(200));
    // The port goes from one Service to another, and the first gets another one without IPv6.
    checks.update([
        (name("a"), Some(check(second, Some(1), None))),
        (name("b"), Some(check(first, Some(1), None))),
    ]);
    eventually(v4, second, Some(200)).await;
    eventually(v4, first, Some(200)).await;
    eventually(v6, first, None).await;
    assert_eq!(code(v6, second).await, None);
    checks.update([(name("a"), None), (name("b"), None)]);
    eventually(v4, first, None).await;
    eventually(v4, second, None).await;
    task.abort();
}

#[tokio::test]
async fn a_port_that_is_taken_is_tried_again_and_hinders_no_other() {
    let v4 = localhost()[0];
    let other = free_port();
    let taken = std::net::TcpListener::bind((v4, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let (checks, gauge) = (Arc::new(ServiceChecks::default()), missing());
    let task = tokio::spawn(checks.clone().serve(Arc::default(), Events::default(), gauge.clone()));
    let both = [(name("a"), check(port, Some(1), None)), (name("b"), check(other, Some(1), None))];
    checks.replace(both.into_iter().collect(), &[v4]);
    eventually(v4, other, Some(200)).await;
    assert_eq!(gauge.get(), 1);
    drop(taken);
    // Sooner than the retry: something else changes.
    checks.update([(name("b"), None)]);
    eventually(v4, port, Some(200)).await;
    assert_eq!(gauge.get(), 0);
    task.abort();
}

#[tokio::test]
async fn hundreds_of_ports_are_open_at_once() {
    let v4 = localhost()[0];
    let checks = Arc::new(ServiceChecks::default());
    let task = tokio::spawn(checks.clone().serve(Arc::default(), Events::default(), missing()));
    // Ports that are free now; found by holding them all at once.
    let held: Vec<_> = (0..300).map(|_| std::net::TcpListener::bind((v4, 0)).unwrap()).collect();
    let ports: Vec<u16> = held.iter().map(|l| l.local_addr().unwrap().port()).collect();
    drop(held);
    let all = ports.iter().map(|p| (name(&p.to_string()), check(*p, Some(1), None)));
    checks.replace(all.collect(), &[v4]);
    for port in &ports {
        eventually(v4, *port, Some(200)).await;
    }
    checks.replace(FxHashMap::default(), &[v4]);
    for port in &ports {
        eventually(v4, *port, None).await;
    }
    task.abort();
}
