//! Other agents commit to nf_tables all the time: no reason not to start.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use sluice::cluster::Family;
use sluice::config::{Config, merge};
use sluice::dataplane::nftables::Nftables;
use sluice::metrics::Metrics;
use sluice::netlink::{Batch, Socket};
use sluice::reconcile::Reconciler;
use sluice::reporting::Reporting;

use super::space::in_new_namespace;
use super::synthetic;

/// From one commit to the next: longer than reading the structure takes, shorter than reading the elements.
fn pause() -> Duration {
    let slowness = std::env::var("SLUICE_TEST_SLOWNESS").ok().and_then(|text| text.parse().ok());
    Duration::from_millis(2) * slowness.unwrap_or(1)
}

/// `NFT_MSG_NEWTABLE`, `NFT_MSG_DELTABLE`, and `NFTA_TABLE_NAME`.
const NEW: u8 = 0;
const DELETE: u8 = 2;
const NAME: u16 = 1;

fn reconciler() -> Reconciler<Nftables> {
    let config = Config::new(&merge::merge(&merge::Given::default(), None).unwrap(), "node1").unwrap();
    let reporting = Reporting::new(Arc::new(Metrics::new().unwrap()));
    let mut reconciler = Reconciler::new(config, Nftables::open().unwrap(), reporting);
    // So many that reading them back takes some milliseconds.
    reconciler.apply(synthetic::changes(2000, 2));
    reconciler
}

#[test]
fn constant_commits_of_others_do_not_keep_the_tables_from_being_read() {
    in_new_namespace(|| {
        assert!(reconciler().sync().unwrap().steps > 2000);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut socket = Socket::open().unwrap();
                for kind in [NEW, DELETE].into_iter().cycle().take_while(|_| !done.load(SeqCst)) {
                    let mut batch = Batch::new(None);
                    batch.message(kind, 0, Family::Ipv4.number(), 0);
                    batch.string(NAME, "other");
                    batch.end();
                    socket.commit(&batch).unwrap();
                    std::thread::sleep(pause());
                }
            });
            let report = reconciler().sync();
            done.store(true, SeqCst);
            assert_eq!(report.unwrap().steps, 0, "a restart writes nothing");
        });
    });
}
