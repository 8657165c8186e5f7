//! The command lines and configurations of kubeadm, kind, k3s and RKE2 as they are, with the program under kube-proxy's name
//! at kube-proxy's path: only the image is another. Where files are in a Pod, they are here, too.

use std::fs;

use serde_json::{Value, json};

use super::apiserver::{ApiServer, Kind};
use super::lab::{Lab, OBJECTS, SLUICE, WEB, testdata};

/// Mounts what follows, kubelet's way, before it runs it: $1 holds the files.
const POD: &str = r#"set -e
files=$1; shift
mount -t tmpfs tmpfs /mnt; cp -r "$files" /mnt/files; cp -L "$SLUICE" /mnt/kube-proxy
mount -t tmpfs tmpfs /var/lib; mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /usr/local/bin
ln -s /mnt/kube-proxy /usr/local/bin/kube-proxy
mkdir -p /var/lib/rancher/k3s/agent /var/lib/rancher/rke2/agent /run/secrets/kubernetes.io
ln -s /mnt/files/var-lib-kube-proxy /var/lib/kube-proxy
ln -s /mnt/files/serviceaccount /run/secrets/kubernetes.io/serviceaccount
for k in k3s rke2; do cp /mnt/files/kubeproxy.kubeconfig /var/lib/rancher/$k/agent/; done
exec "$@""#;

/// A lab with an API server that has the lab's objects, and the files of a Pod.
struct Replay {
    lab: Lab,
    server: ApiServer,
    _runtime: tokio::runtime::Runtime,
}

impl Replay {
    fn new(config: Option<&str>) -> Replay {
        let lab = Lab::new();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let server = lab.enter(|| runtime.block_on(ApiServer::tls(true)));
        for object in OBJECTS.split("---") {
            let mut object: Value = serde_saphyr::from_str(object).expect("an object");
            let kind = match object["kind"].as_str().expect("a kind") {
                "Node" => Kind::Nodes,
                "Service" => Kind::Services,
                _ => Kind::EndpointSlices,
            };
            if kind != Kind::Nodes {
                object["metadata"]["namespace"] = json!("default");
            }
            server.apply(kind, object);
        }
        let replay = Replay { lab, server, _runtime: runtime };
        replay.write_files(config);
        replay
    }

    /// kubeadm's ConfigMap has config.conf and kubeconfig.conf, which names the mounted CA and token.
    fn write_files(&self, config: Option<&str>) {
        let files = self.lab.folder.path().join("files");
        let (own, account) = (files.join("var-lib-kube-proxy"), files.join("serviceaccount"));
        [&own, &account].into_iter().for_each(|folder| fs::create_dir_all(folder).expect("a folder"));
        self.server.write_kubeconfig(&account).expect("a kubeconfig");
        fs::copy(account.join("kubeconfig"), files.join("kubeproxy.kubeconfig")).expect("a copy");
        let kubeconfig = fs::read_to_string(testdata("replay/kubeconfig.conf")).expect("testdata");
        fs::write(own.join("kubeconfig.conf"), kubeconfig.replace("SERVER", &self.server.url()))
            .expect("write");
        if let Some(config) = config {
            fs::copy(testdata(config), own.join("config.conf")).expect("testdata");
        }
    }

    /// Runs a command line of testdata/replay; what it names must be served, and the node be healthy.
    fn run(mut self, name: &str) {
        let line = fs::read_to_string(testdata("replay").join(name)).expect("testdata");
        let words = line.lines().filter(|l| !l.starts_with('#')).flat_map(str::split_whitespace);
        let words: Vec<String> = words.map(|word| word.replace("$(NODE_NAME)", "node1")).collect();
        let mut agent = self.lab.command("sh");
        agent.env("SLUICE", SLUICE).args(["-c", POD, "sh"]);
        self.lab.spawn(agent.arg(self.lab.folder.path().join("files")).args(words));
        self.lab.until("ready", || self.lab.code(10256, "/readyz") == Some(200));
        assert_eq!(self.lab.code(10256, "/healthz"), Some(200));
        assert_eq!(self.lab.code(10256, "/livez"), Some(200));
        assert_eq!(self.lab.get(10249, "/proxyMode"), Some((200, "nftables".into())));
        assert_eq!(self.lab.connects(WEB), Ok(()));
        assert_eq!(self.lab.connects("198.18.0.1:30080"), Ok(()));
        let logged = self.lab.logged();
        assert!(!logged.contains("ERROR") && !logged.contains("could not be set"), "{logged}");
        self.lab.stop();
    }
}

#[test]
fn kubeadm() {
    Replay::new(Some("configuration/kubeadm.yaml")).run("kubeadm");
}

#[test]
fn kind() {
    Replay::new(Some("replay/kind.conf")).run("kubeadm");
}

#[test]
fn k3s() {
    Replay::new(None).run("k3s");
}

#[test]
fn rke2() {
    Replay::new(None).run("rke2");
}
