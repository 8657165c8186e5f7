use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use super::*;
use crate::cluster::{Change, Node, ObjectName, Protocol, Service, ServicePort};
use crate::config::{Config, merge};
use crate::dataplane::memory::Plane;
use crate::dataplane::nftables::plan::Plan;

/// The tables in memory, and the times of the commits.
fn timed() -> (Plane, Arc<Mutex<Vec<Instant>>>) {
    let commits: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let times = commits.clone();
    let check = move |_: &Plan| {
        times.lock().unwrap().push(Instant::now());
        Ok(())
    };
    (Plane::new(Box::new(check)), commits)
}

fn service(n: u8) -> Change {
    let name = ObjectName::new("default", format!("s{n}"));
    let port = ServicePort {
        name: "".into(),
        protocol: Protocol::Tcp,
        port: 80.try_into().unwrap(),
        node_port: None,
    };
    let service = Service::new(name.clone(), vec![[10, 96, 0, n].into()], vec![port]);
    Change::Service(name, Some(service))
}

fn node(addresses: &[IpAddr]) -> Change {
    let node = Node { name: "node1".into(), addresses: addresses.to_vec(), ..Node::default() };
    Change::Node("node1".into(), Some(node))
}

/// A loop over this plane, and where it reports.
fn reconciler(plane: Plane) -> (Reconciler<Plane>, Arc<crate::health::Status>) {
    let merged = merge::merge(&merge::Given::default(), None).unwrap();
    let metrics = crate::metrics::Metrics::new().expect("names that do not clash");
    let reporting = crate::reporting::Reporting::new(Arc::new(metrics));
    let status = reporting.status.clone();
    (Reconciler::new(Config::new(&merged, "node1").unwrap(), plane, reporting), status)
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_is_due_waits_for_the_node_without_spinning() {
    let mut schedule = Schedule::new();
    let (now, say_again) = (Instant::now(), Instant::now() + NODE_INTERVAL);
    schedule.complete = true;
    schedule.retry = Some((now, RETRY.0));
    assert!(schedule.is_due() && schedule.wake(None) == Some(now));
    schedule.missing = Some((say_again, "there is no such Node"));
    assert!(!schedule.is_due() && schedule.wake(None) == Some(say_again));
}

#[tokio::test(start_paused = true)]
async fn the_first_commit_waits_for_the_node_and_its_address() {
    let (plane, commits) = timed();
    let (mut reconciler, status) = reconciler(plane);
    reconciler.require_node();
    let ready = || status.readyz().status().as_u16();
    let done = || commits.lock().unwrap().len();
    let (tx, rx) = mpsc::channel(16);
    let source = async {
        for changes in [vec![service(1)], vec![node(&[])], vec![service(2)]] {
            tx.send(Batch { changes, synced: true }).await.unwrap();
            tokio::time::sleep(Duration::from_secs(300)).await;
            assert_eq!((done(), ready()), (0, 503));
            // A restart would not help.
            let live = status
                .livez(std::time::Instant::now() + Duration::from_secs(900), std::time::SystemTime::now());
            assert_eq!(live.status().as_u16(), 200);
        }
        tx.send(Batch { changes: vec![node(&[[192, 0, 2, 1].into()])], synced: true }).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!((done(), ready()), (1, 200));
        // Later it may go.
        let changes = vec![Change::Node("node1".into(), None), service(3)];
        tx.send(Batch { changes, synced: true }).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(done(), 2);
        drop(tx);
    };
    tokio::join!(run(reconciler, rx, Duration::ZERO, mpsc::channel(1).1), source);
}

/// When commits come, in tenths of a second, if Services come at `changes`.
async fn commits(min_sync_period: Duration, changes: &[u64]) -> Vec<u64> {
    let (plane, times) = timed();
    let (tx, rx) = mpsc::channel(16);
    let start = Instant::now();
    let source = async {
        for (n, at) in (1..).zip(changes) {
            sleep_until(start + Duration::from_millis(at * 100)).await;
            tx.send(Batch { changes: vec![service(n)], synced: true }).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(tx);
    };
    tokio::join!(run(reconciler(plane).0, rx, min_sync_period, mpsc::channel(1).1), source);
    let times = times.lock().unwrap();
    times.iter().map(|at| (at.duration_since(start).as_millis() as u64 + 50) / 100).collect()
}

#[tokio::test(start_paused = true)]
async fn commits_are_min_sync_period_apart_and_the_first_is_at_once() {
    let period = Duration::from_secs(10);
    let at = commits(period, &[0, 10, 11, 40, 300, 301, 405, 600]).await;
    assert_eq!(at, [0, 100, 300, 400, 500, 600], "tenths of a second");
}

#[tokio::test(start_paused = true)]
async fn without_a_min_sync_period_each_change_is_written_at_once() {
    let changes = [0, 10, 11, 40, 300];
    assert_eq!(commits(Duration::ZERO, &changes).await, changes);
}

#[tokio::test(start_paused = true)]
async fn hours_of_failures_are_few_lines_of_log() {
    use crate::dataplane::memory::Refused;
    let refused = Refused { errno: nix::errno::Errno::EIO, step: "all".into(), at: None };
    let tries: Arc<Mutex<u32>> = Arc::default();
    let counted = tries.clone();
    let works = Arc::new(Mutex::new(false));
    let working = works.clone();
    let plane = Plane::new(Box::new(move |_: &Plan| {
        *counted.lock().unwrap() += 1;
        if *working.lock().unwrap() { Ok(()) } else { Err(refused.clone()) }
    }));
    let (lines, _guard) = Lines::start();
    let (tx, rx) = mpsc::channel(16);
    let source = async {
        tx.send(Batch { changes: vec![service(1)], synced: true }).await.unwrap();
        tokio::time::sleep(Duration::from_secs(4 * 3600)).await;
        *works.lock().unwrap() = true;
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(tx);
    };
    tokio::join!(run(reconciler(plane).0, rx, Duration::ZERO, mpsc::channel(1).1), source);
    let text = lines.text();
    let of = |part: &str| text.lines().filter(|line| line.contains(part)).count();
    assert!(*tries.lock().unwrap() > 400, "it was tried all the time");
    assert!((20..=26).contains(&of("sync failed")), "one in ten minutes: {text}");
    assert_eq!(of("syncs work again"), 1);
    assert!(text.lines().count() < 40, "{text}");
}

#[tokio::test(start_paused = true)]
async fn somebody_who_flushes_all_day_is_a_few_lines_of_log() {
    let seen: Arc<std::sync::OnceLock<Arc<crate::health::Status>>> = Arc::default();
    let during = seen.clone();
    // While the rules are written that somebody removed.
    let plane = Plane::new(Box::new(move |_: &Plan| {
        during.get().into_iter().for_each(|status| assert_eq!(status.readyz().status().as_u16(), 503));
        Ok(())
    }));
    let tables = plane.tables.clone();
    let (mut reconciler, status) = reconciler(plane);
    reconciler.listed();
    reconciler.apply([service(1), node(&[[192, 0, 2, 1].into()])]);
    reconciler.sync().unwrap();
    assert_eq!(status.readyz().status().as_u16(), 200);
    seen.set(status.clone()).unwrap();
    let (lines, _guard) = Lines::start();
    for _ in 0..4 * 3600 {
        tokio::time::advance(Duration::from_secs(1)).await;
        *tables.lock().unwrap() = crate::dataplane::memory::Memory::default();
        reconciler.compare(Look::Changed);
        assert!(reconciler.sync().unwrap().steps > 0);
        assert_eq!(status.readyz().status().as_u16(), 200);
    }
    let text = lines.text();
    let steady = |line: &&str| line.contains(" synced ");
    assert_eq!(text.lines().filter(steady).count(), 4 * 3600, "shown from -v=2 on");
    let warnings: Vec<&str> = text.lines().filter(|line| !steady(line)).collect();
    assert!((23..=25).contains(&warnings.len()), "one in ten minutes: {warnings:?}");
    assert!(warnings.iter().all(|line| line.contains("another program had changed")), "{warnings:?}");
    assert!(warnings.last().is_some_and(|line| line.contains("times=13")), "{warnings:?}");
}

#[tokio::test(start_paused = true)]
async fn what_changes_meanwhile_is_not_blamed_on_others() {
    let plane = Plane::new(Box::new(|_: &Plan| Ok(())));
    let tables = plane.tables.clone();
    let (mut reconciler, _) = reconciler(plane);
    reconciler.apply([service(1), node(&[[192, 0, 2, 1].into()])]);
    reconciler.sync().unwrap();
    let (lines, _guard) = Lines::start();
    let blamed = || lines.text().matches("another program had changed").count();
    let changes = [service(2), node(&[[192, 0, 2, 1].into(), [192, 0, 2, 7].into()]), service(3)];
    for (change, look) in changes.into_iter().zip([Look::Due, Look::Changed, Look::Changed]) {
        reconciler.apply([change]);
        reconciler.compare(look);
        reconciler.sync().unwrap();
        assert!(!reconciler.is_to_compare());
    }
    assert_eq!(blamed(), 0, "{}", lines.text());
    *tables.lock().unwrap() = crate::dataplane::memory::Memory::default();
    reconciler.apply([service(4)]);
    reconciler.compare(Look::Changed);
    reconciler.sync().unwrap();
    assert_eq!(blamed(), 1, "{}", lines.text());
}

/// The log of this thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn start() -> (Lines, tracing::subscriber::DefaultGuard) {
        let lines = Lines::default();
        let writer = lines.clone();
        let log = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_writer(move || writer.clone());
        (lines, tracing::subscriber::set_default(log.finish()))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Lines {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
