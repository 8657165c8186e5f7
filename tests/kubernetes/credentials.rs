//! Credentials that are replaced while the agent runs, and proxies on the way.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use super::agent::{Agent, connect_by, kubeconfig};
use super::apiserver::{ApiServer, Disturbance};
use super::{change, populate};

#[tokio::test]
async fn a_replaced_token_is_read_again() {
    let server = ApiServer::tls(true).await;
    server.faults().token = Some("secret".to_owned());
    populate(&server);
    let config = kubeconfig(&server);
    let mut agent = Agent::of(connect_by(&config).await);
    agent.converged(&server, "with the first token").await;
    server.faults().token = Some("another".to_owned());
    std::fs::write(config.with_file_name("token"), "another").unwrap();
    server.disturb(Disturbance::Cut);
    change(&server, 1);
    agent.converged(&server, "with the second token").await;
}

#[tokio::test]
async fn a_replaced_authority_is_read_again() {
    let mut server = ApiServer::tls(true).await;
    populate(&server);
    let config = kubeconfig(&server);
    let mut agent = Agent::of(connect_by(&config).await);
    agent.converged(&server, "with the first certificate").await;
    server.go_down().await;
    server.renew_certificate();
    server.come_up();
    change(&server, 1);
    // The server is not trusted before the new authority is known.
    let asked = server.asked().len();
    agent.until("failed tries", |a| a.restarts()["services"] > 2).await;
    assert_eq!(server.asked().len(), asked);
    server.write_kubeconfig(config.parent().unwrap()).unwrap();
    agent.converged(&server, "with the second certificate").await;
}

fn edit(config: &Path, change: impl FnOnce(&mut Value)) {
    let mut kubeconfig: Value = serde_json::from_str(&std::fs::read_to_string(config).unwrap()).unwrap();
    change(&mut kubeconfig);
    std::fs::write(config, kubeconfig.to_string()).unwrap();
}

/// As managed clusters' kubeconfigs have them, today's way and that of before.
#[tokio::test]
async fn commands_that_print_credentials_are_run() {
    let server = ApiServer::tls(true).await;
    server.faults().token = Some("printed".to_owned());
    populate(&server);
    let version = "client.authentication.k8s.io/v1";
    let printed =
        json!({"apiVersion": version, "kind": "ExecCredential", "status": {"token": "printed"}}).to_string();
    let exec =
        json!({"apiVersion": version, "command": "echo", "args": [printed], "interactiveMode": "Never"});
    let config = json!({
        "cmd-path": "echo",
        "cmd-args": r#"{"credential":{"access_token":"printed"}}"#,
        "token-key": "{.credential.access_token}",
    });
    for user in [json!({"exec": exec}), json!({"auth-provider": {"name": "gcp", "config": config}})] {
        let config = kubeconfig(&server);
        edit(&config, |kubeconfig| kubeconfig["users"][0]["user"] = user.clone());
        let mut agent = Agent::of(connect_by(&config).await);
        agent.converged(&server, &user.to_string()).await;
    }
}

/// A proxy that knows CONNECT; says where it is, and counts.
async fn proxy() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, tunnels) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = tunnels.clone();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let count = count.clone();
            tokio::spawn(async move {
                let mut client = BufReader::new(client);
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    assert!(client.read_line(&mut head).await.unwrap() > 0, "{head}");
                }
                assert!(head.to_lowercase().contains("proxy-authorization: basic dxnlcjpwyxnz"), "{head}");
                let target = head.split(' ').nth(1).unwrap().to_owned();
                let mut server = TcpStream::connect(target).await.unwrap();
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                count.fetch_add(1, SeqCst);
                _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (address, tunnels)
}

#[tokio::test]
async fn the_proxy_of_a_kubeconfig_is_used() {
    let server = ApiServer::tls(true).await;
    populate(&server);
    let (address, tunnels) = proxy().await;
    let config = kubeconfig(&server);
    edit(&config, |kubeconfig| {
        kubeconfig["clusters"][0]["cluster"]["proxy-url"] = json!(format!("http://user:pass@{address}"));
    });
    let mut agent = Agent::of(connect_by(&config).await);
    agent.converged(&server, "through the proxy").await;
    assert!(tunnels.load(SeqCst) > 0);
}
