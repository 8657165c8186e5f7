//! Whether a kube-proxy runs on this host.
//!
//! A Pod sees the host's processes only with `hostPID`, but its ports with `hostNetwork`. k3s has a kube-proxy inside
//! its own process, which only the port tells.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::cluster::Family;

/// Where kube-proxy serves its metrics if nothing else is set.
pub const METRICS: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), crate::config::file::METRICS_PORT);
/// What to do about it.
pub const REMEDY: &str = "End it: with kubeadm and kind `kubectl -n kube-system delete daemonset kube-proxy` (or keep it \
                          off this node by a nodeSelector), with k3s and RKE2 disable-kube-proxy: true";

const PROGRAM: &str = "kube-proxy";
/// How long a server on this host may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of metrics that are looked at.
const ENOUGH: u64 = 1 << 20;

/// What speaks for a running kube-proxy, in words; `None`: nothing does. Blocks for up to some seconds where a server
/// does not answer.
pub fn signs(metrics: SocketAddr) -> Option<String> {
    if let Some(pid) = process() {
        return Some(format!("a kube-proxy is running on this host, process {pid}"));
    }
    answers(metrics).then(|| format!("a kube-proxy is running on this host, it answers at {metrics}"))
}

/// A process of that name that is another program than this one, in this network namespace as far as one can see.
fn process() -> Option<u32> {
    let own = fs::metadata("/proc/self/exe").ok().map(|exe| (exe.dev(), exe.ino()));
    let network = fs::read_link("/proc/thread-self/ns/net").ok();
    let mut pids =
        fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| {
        let process = Path::new("/proc").join(pid.to_string());
        let is = |file: &str, what: &str| {
            fs::read_to_string(process.join(file)).is_ok_and(|t| t.trim_end() == what)
        };
        // What ended and was not waited for has no command line.
        let alive = || fs::read(process.join("cmdline")).is_ok_and(|line| !line.is_empty());
        let elsewhere = || {
            let namespace = fs::read_link(process.join("ns/net")).ok();
            namespace.is_some() && namespace != network
        };
        let exe = || fs::metadata(process.join("exe")).ok().map(|exe| (exe.dev(), exe.ino()));
        *pid != std::process::id()
            && is("comm", PROGRAM)
            && alive()
            && !elsewhere()
            && (exe().is_none() || exe() != own)
    })
}

/// Whether kube-proxy's metrics, and not those of sluice, are served there.
fn answers(address: SocketAddr) -> bool {
    let ip = if address.ip().is_unspecified() { Family::of(address.ip()).loopback() } else { address.ip() };
    let ask = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(ip, address.port()), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        // What came before an error is enough to know.
        let _ = stream.take(ENOUGH).read_to_end(&mut answer);
        Ok(answer)
    };
    let answer = ask().unwrap_or_default();
    let answer = String::from_utf8_lossy(&answer);
    answer.contains("\nkubeproxy_") && !answer.contains("\nsluice_")
}
