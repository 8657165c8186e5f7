//! A configuration file that changes, as ConfigMaps are replaced, under traffic.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::lab::{ECHO, Lab, OBJECTS, SLUICE, WEB};

/// A mounted ConfigMap: the file is a link into a folder that is a link, which is replaced by renaming.
struct ConfigMap {
    folder: PathBuf,
    version: u32,
}

impl ConfigMap {
    fn new(lab: &Lab, body: &str) -> ConfigMap {
        let folder = lab.folder.path().join("config");
        fs::create_dir(&folder).expect("a folder");
        symlink("..data/config.conf", folder.join("config.conf")).expect("a link");
        let mut map = ConfigMap { folder, version: 0 };
        map.replace(body);
        map
    }

    fn replace(&mut self, body: &str) {
        self.version += 1;
        let data = format!("..{}", self.version);
        fs::create_dir(self.folder.join(&data)).expect("a folder");
        let header = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        let text = format!("{header}hostnameOverride: node1\n{body}\n");
        fs::write(self.folder.join(&data).join("config.conf"), text).expect("write");
        symlink(&data, self.folder.join("..new")).expect("a link");
        fs::rename(self.folder.join("..new"), self.folder.join("..data")).expect("rename");
        if self.version > 1 {
            fs::remove_dir_all(self.folder.join(format!("..{}", self.version - 1))).expect("it was there");
        }
    }

    fn flag(&self) -> String {
        format!("--config={}", self.folder.join("config.conf").display())
    }
}

#[test]
fn changes_take_effect_without_a_lost_connection() {
    let mut lab = Lab::new();
    fs::write(lab.manifests(), format!("{OBJECTS}{ECHO}")).expect("write");
    let listener = lab.enter(|| TcpListener::bind("198.18.0.2:9090").expect("the echo's address"));
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut byte = [0];
        while stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte)).is_ok() {}
    });
    let mut map = ConfigMap::new(&lab, "clusterCIDR: 10.128.0.0/16");
    let mut agent = lab.command(SLUICE);
    lab.start(agent.args(["run", &map.flag()]));
    let mut echo = lab.enter(|| TcpStream::connect("10.96.0.82:80").expect("served"));
    let mut echoes = || {
        let mut byte = [7];
        echo.write_all(&byte).and_then(|()| echo.read_exact(&mut byte)).expect("the connection lives");
    };
    echoes();

    let (stop, connections) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        // Ends the traffic also when something here fails.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let (lab, stopped, counter) = (&lab, &stop, &connections);
        let traffic = scope.spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                lab.connects(WEB).expect("every connection succeeds");
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        let stop_at_end = Stop(stopped);
        // In place: the same process, another structure of the tables.
        let rules = || lab.sh("nft list chain ip sluice after-dnat");
        let before = rules();
        map.replace("clusterCIDR: 10.128.0.0/16\nmode: nftables\nnftables: {masqueradeAll: true}");
        lab.until("masqueradeAll is in force", || rules() != before);
        assert_eq!(lab.lines("its settings are put into force"), 1);
        assert_eq!(lab.code(10249, "/metrics"), Some(200));
        echoes();
        // Nonsense changes nothing.
        map.replace("mode: magic");
        lab.until("it is named", || lab.lines("cannot be used; the old configuration stays") == 1);
        // By a new process in the old one's place.
        map.replace("clusterCIDR: 10.128.0.0/16\nmode: nftables\nmetricsBindAddress: 127.0.0.1:10250");
        lab.until("the new address is served", || lab.code(10250, "/metrics") == Some(200));
        lab.until("ready again", || lab.code(10256, "/readyz") == Some(200));
        assert_eq!(lab.code(10249, "/metrics"), None);
        assert_eq!(lab.lines("starting anew, with the rules in place"), 1);
        let before = connections.load(Ordering::Relaxed);
        lab.until("traffic goes on", || connections.load(Ordering::Relaxed) > before + 20);
        drop(stop_at_end);
        traffic.join().expect("no connection failed");
    });
    echoes();
    assert!(connections.load(Ordering::Relaxed) > 20);
    assert!(lab.is_running(), "the same process");
    lab.stop();
}
