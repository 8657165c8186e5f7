//! Somebody else changes or removes rules of ours: they are put right, told once, and nobody else's are touched.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use super::lab::{ECHO, Lab, NEW, OBJECTS, SLUICE, WEB};

const DETECTED: &str = "sluice_drift_detected_total";
const REPAIRED: &str = "sluice_drift_repaired_total";
const WARNING: &str = "another program had changed or removed rules of sluice";

/// A Service and its endpoint, by a number.
fn another(number: u32) -> String {
    let (high, low) = (number / 250, number % 250 + 1);
    format!(
        "---\n{{kind: Service, apiVersion: v1, metadata: {{name: more{number}}},\n \
         spec: {{clusterIP: 10.97.{high}.{low}, ports: [{{name: t, port: 80}}]}}}}\n\
         ---\n{{kind: EndpointSlice, apiVersion: discovery.k8s.io/v1,\n \
         metadata: {{name: more{number}-1, labels: {{kubernetes.io/service-name: more{number}}}}}, addressType: IPv4,\n \
         ports: [{{name: t, port: 8080}}], endpoints: [{{addresses: [10.128.{high}.{low}]}}]}}\n"
    )
}

/// All of a lab's rules, as text that says the same for the same.
fn rules(lab: &Lab, table: &str) -> Vec<String> {
    let text = lab.sh(&format!("nft --stateless list table {table}"));
    // The order of elements is the hash table's.
    let mut words: Vec<String> = text.split(['\n', ',']).map(|part| part.trim().to_owned()).collect();
    words.sort();
    words
}

#[test]
fn all_rules_flushed_under_a_long_transfer_with_a_thousand_services() {
    let mut lab = Lab::new();
    let more: String = (0..1_000).map(another).collect();
    fs::write(lab.manifests(), format!("{OBJECTS}{ECHO}{more}")).expect("write");
    let listener = lab.enter(|| TcpListener::bind("198.18.0.2:9090").expect("the echo's address"));
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut bytes = [0; 1 << 12];
        while stream.read_exact(&mut bytes).and_then(|()| stream.write_all(&bytes)).is_ok() {}
    });
    let mut agent = lab.command(SLUICE);
    lab.start(agent.args(["run", "--hold-connections"]));
    lab.until("connections are held", || lab.sh("nft list tables").contains("inet sluice-hold"));
    let mut stream = lab.enter(|| TcpStream::connect("10.96.0.82:80").expect("served"));

    let warnings = lab.lines(" WARN ");
    let (done, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut not_ready = Vec::new();
    let (flushed, repaired) = std::thread::scope(|scope| {
        // Ends the threads also when something here fails.
        struct Done<'a>(&'a AtomicBool);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                self.0.store(true, Relaxed);
            }
        }
        let (lab, done, sent) = (&lab, &done, &sent);
        let end = Done(done);
        scope.spawn(move || {
            let mut bytes = [0; 1 << 12];
            while !done.load(Relaxed) {
                let number = sent.fetch_add(1, Relaxed);
                bytes.fill(number as u8);
                stream.write_all(&bytes).expect("the transfer goes on");
                stream.read_exact(&mut bytes).expect("the transfer goes on");
                assert!(bytes.iter().all(|byte| *byte == number as u8));
            }
        });
        let watcher = scope.spawn(move || {
            let mut not_ready = Vec::new();
            while !done.load(Relaxed) {
                let asked = Instant::now();
                if lab.code(10256, "/readyz") != Some(200) {
                    not_ready.push((asked, Instant::now()));
                }
            }
            not_ready
        });
        let flushed = Instant::now();
        lab.sh(
            "printf 'flush ruleset\ntable inet admin { chain mine { tcp dport 22 accept; }; }' | nft -f -",
        );
        lab.until("the rules are repaired", || lab.metric(REPAIRED) == Some(1.0));
        lab.until("it is ready again", || lab.code(10256, "/readyz") == Some(200));
        let repaired = Instant::now();
        let before = sent.load(Relaxed);
        lab.until("the transfer goes on", || sent.load(Relaxed) > before + 20);
        drop(end);
        not_ready = watcher.join().expect("no panic");
        (flushed, repaired)
    });
    // That it is not ready while rules are put right is held where it cannot be missed: src/app/tests.rs.
    assert!(not_ready.iter().all(|(asked, told)| *told > flushed && *asked < repaired), "{not_ready:?}");
    assert_eq!(lab.code(10256, "/readyz"), Some(200));
    assert_eq!((lab.metric(DETECTED), lab.metric(REPAIRED)), (Some(1.0), Some(1.0)));
    assert_eq!((lab.lines(WARNING), lab.lines(" WARN ")), (1, warnings + 1), "{}", lab.logged());
    assert!(rules(&lab, "inet admin").contains(&"tcp dport 22 accept".to_owned()));
    assert_eq!(lab.connects(WEB), Ok(()));
    assert!(rules(&lab, "ip sluice").iter().any(|part| part.starts_with("10.97.3.250 . tcp . 80 : goto")));
    lab.stop();
    assert!(!lab.sh("nft list tables").contains("sluice-hold"), "it goes with the agent");
}

#[test]
fn whatever_is_edited_is_as_it_was() {
    let mut lab = Lab::new();
    let mut agent = lab.command(SLUICE);
    lab.start(agent.arg("run"));
    let all = |lab: &Lab| ["ip sluice", "ip6 sluice"].map(|table| rules(lab, table));
    let before = all(&lab);
    let edits = [
        "delete element ip sluice services { 10.96.0.80 . tcp . 80 }",
        "add element ip sluice services { 10.96.0.99 . tcp . 80 : drop }",
        "add element ip sluice endpoints { 10.96.0.99 . tcp . 80 . 32768 : 198.18.0.2 . 8080 }",
        "flush map ip sluice services\ndelete chain ip sluice endpoints-1",
        "flush chain ip sluice services",
        "insert rule ip sluice unclaimed accept",
        "add chain ip sluice mine",
        "delete chain ip sluice prerouting",
        "add table ip6 sluice { flags dormant; }",
        "delete table ip sluice",
        // Made anew by somebody else, who likes the name.
        "delete table ip sluice\ntable ip sluice { chain mine { type filter hook output priority 0; drop; }; }",
        "flush table ip6 sluice",
    ];
    for (number, edit) in (1..).zip(edits) {
        lab.sh(&format!("printf '{edit}' | nft -f -"));
        lab.until(edit, || lab.metric(REPAIRED) == Some(f64::from(number)));
        assert_eq!(all(&lab), before, "{edit}");
        assert_eq!(lab.metric(DETECTED), Some(f64::from(number)), "{edit}");
    }
    assert_eq!(lab.connects(NEW), Ok(()));
    assert_eq!(lab.lines(WARNING), 1, "said once within ten minutes: {}", lab.logged());
    assert_eq!(lab.metric(r#"sluice_sync_failures_total{stage="apply"}"#), Some(0.0));
}

#[test]
fn rules_flushed_in_the_middle_of_changes_come_back() {
    let mut lab = Lab::new();
    let mut agent = lab.command(SLUICE);
    lab.start(agent.arg("run"));
    let some: String = (0..200).map(another).collect();
    let contents = [format!("{OBJECTS}{some}"), OBJECTS.to_owned()];
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Relaxed) {
                lab.sh("nft flush ruleset; nft add table inet admin");
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        });
        for content in contents.iter().cycle().take(20) {
            // At once: half a file would be another change.
            let new = lab.folder.path().join("new");
            fs::write(&new, content).expect("write");
            fs::rename(&new, lab.manifests()).expect("rename");
            std::thread::sleep(std::time::Duration::from_millis(150));
        }
        done.store(true, Relaxed);
    });
    fs::write(lab.manifests(), &contents[0]).expect("write");
    let manifests = format!("--manifests={}", lab.manifests().display());
    let diff = || lab.sluice(&["diff", "--hostname-override=node1", &manifests]).status.code();
    lab.until("nothing differs any more", || diff() == Some(0));
    lab.until("it is ready", || lab.code(10256, "/readyz") == Some(200));
    assert!(lab.metric(REPAIRED) >= Some(2.0));
    assert_eq!(lab.connects(WEB), Ok(()));
    assert_eq!(lab.lines(" ERROR "), 0, "it is nobody's failure: {}", lab.logged());
    assert_eq!(lab.lines(WARNING), 1);
    assert!(lab.is_running());
}
