use std::net::{Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

fn route() -> Route {
    Arc::new(|path| match path {
        "/here" => json(StatusCode::OK, "{}"),
        _ => not_found(),
    })
}

fn server(connections: usize) -> Listening {
    let any = "127.0.0.1:0".parse().unwrap();
    bind("test", any, Arc::new(Semaphore::new(connections)), route()).unwrap()
}

/// What comes back for these bytes until the server closes.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may answer and close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

async fn get(address: SocketAddr, path: &str) -> String {
    exchange(address, format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await
}

#[tokio::test]
async fn a_path_has_its_response() {
    let server = server(8);
    let answer = get(server.address(), "/here?verbose").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\r\nContent-Type: application/json\r\n"), "{answer}");
    assert!(answer.contains("\r\nX-Content-Type-Options: nosniff\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n{}"), "{answer}");
    assert!(get(server.address(), "/").await.starts_with("HTTP/1.1 404 "));
    let head = exchange(server.address(), b"HEAD /here HTTP/1.0\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.0 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test]
async fn garbage_ends_only_its_connection() {
    let server = server(8);
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(1 << 20));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(5000));
    let garbage: [&[u8]; 7] = [
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        long.as_bytes(),
        many.as_bytes(),
    ];
    for bytes in garbage {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert!(get(server.address(), "/here").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn more_connections_wait_for_their_turn() {
    let server = server(1);
    let mut idle = TcpStream::connect(server.address()).await.unwrap();
    idle.write_all(b"GET /here HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    // Answered: the only permitted connection is this one.
    assert_ne!(idle.read(&mut [0; 512]).await.unwrap(), 0);
    let waiting = tokio::spawn(get(server.address(), "/here"));
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!waiting.is_finished());
    drop(idle);
    assert!(waiting.await.unwrap().starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_taken_address_is_named_and_free_once_closed() {
    let first = server(8);
    let address = first.address();
    let mut open = TcpStream::connect(address).await.unwrap();
    open.write_all(b"GET /here HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_ne!(open.read(&mut [0; 512]).await.unwrap(), 0);
    let connections = Arc::new(Semaphore::new(8));
    let error = bind("--some-flag", address, connections.clone(), route()).unwrap_err();
    assert_eq!((error.errno, error.address, &*error.what), (Errno::EADDRINUSE, address, "--some-flag"));
    assert!(error.to_string().starts_with(&format!("--some-flag: cannot bind to {address}: ")), "{error}");
    first.close().await;
    let second = bind("--some-flag", address, connections, route()).unwrap();
    assert_eq!(open.read(&mut [0; 512]).await.unwrap_or(0), 0, "connections end with their server");
    assert!(get(address, "/here").await.starts_with("HTTP/1.1 200 "));
    drop(second);
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_is_tried_until_it_is_free() {
    let first = server(8);
    let address = first.address();
    let connections = Arc::new(Semaphore::new(8));
    let second =
        tokio::spawn(
            async move { bind_when_free("--some-flag", address, connections, route(), |_| {}).await },
        );
    sleep(listen::RETRY * 3).await;
    assert!(!second.is_finished());
    first.close().await;
    assert_eq!(second.await.unwrap().address(), address);
}

#[tokio::test]
async fn an_unspecified_address_is_both_families() {
    for any in ["0.0.0.0:0", "[::]:0"] {
        let connections = Arc::new(Semaphore::new(8));
        let server = bind("test", any.parse().unwrap(), connections, route()).unwrap();
        let port = server.address().port();
        for address in [SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), (Ipv6Addr::LOCALHOST, port).into()]
        {
            if address.is_ipv6() && server.address().is_ipv4() {
                continue; // A kernel without IPv6.
            }
            assert!(get(address, "/here").await.starts_with("HTTP/1.1 200 "), "{any} {address}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_sent_away() {
    let server = server(1);
    let mut silent = TcpStream::connect(server.address()).await.unwrap();
    silent.write_all(b"GET /here HT").await.unwrap();
    // The clock is paused and moves on as soon as nobody has anything else to do.
    let mut rest = Vec::new();
    let _ = silent.read_to_end(&mut rest).await;
    assert!(!String::from_utf8_lossy(&rest).starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn servers_that_share_a_limit_all_answer() {
    let connections = Arc::new(Semaphore::new(1));
    let any = "127.0.0.1:0".parse().unwrap();
    let servers: Vec<_> = (0..20).map(|_| bind("test", any, connections.clone(), route()).unwrap()).collect();
    for server in &servers {
        assert!(get(server.address(), "/here").await.starts_with("HTTP/1.1 200 "));
    }
}
