//! What can be measured of the connection to the API server.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use http::{Method, Uri};
use prometheus::core::Collector;
use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts};

use super::resource::{COUNT, Resource};

/// How the watches are doing; shared with whoever shows it.
#[derive(Debug)]
pub struct ApiStatus {
    start: Instant,
    /// Milliseconds from `start` to the last byte from the API server, plus one; 0: there was none.
    contact: AtomicU64,
    restarts: [AtomicU64; COUNT],
    lists: [AtomicU64; COUNT],
    skipped: AtomicU64,
    /// Counts the same, for all sources.
    invalid: Option<IntCounter>,
    listed: AtomicU8,
    /// Whether HTTP/2 is spoken, whose pings tell a dead connection from a quiet one.
    pings: AtomicBool,
    requests: Option<Requests>,
}

/// client-go's metrics of requests, by its names.
#[derive(Debug)]
struct Requests {
    total: IntCounterVec,
    duration: HistogramVec,
}

impl Requests {
    fn new() -> Result<Requests, prometheus::Error> {
        let total = Opts::new(
            "rest_client_requests_total",
            "Number of HTTP requests, partitioned by status code, method, and host.",
        );
        let duration = HistogramOpts::new(
            "rest_client_request_duration_seconds",
            "Request latency in seconds. Broken down by verb, and host.",
        );
        let buckets = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];
        Ok(Requests {
            total: IntCounterVec::new(total, &["code", "method", "host"])?,
            duration: HistogramVec::new(duration.buckets(buckets.to_vec()), &["verb", "host"])?,
        })
    }
}

impl Default for ApiStatus {
    fn default() -> ApiStatus {
        ApiStatus {
            start: Instant::now(),
            contact: AtomicU64::new(0),
            restarts: Default::default(),
            lists: Default::default(),
            skipped: AtomicU64::new(0),
            invalid: None,
            listed: AtomicU8::new(0),
            pings: AtomicBool::new(false),
            // Their names are as they should be.
            requests: Requests::new().ok(),
        }
    }
}

impl ApiStatus {
    /// What is skipped is also counted here.
    pub(super) fn counting(invalid: IntCounter) -> ApiStatus {
        ApiStatus { invalid: Some(invalid), ..ApiStatus::default() }
    }

    /// Time since the API server last sent anything; `None` before it ever did.
    pub fn since_contact(&self) -> Option<Duration> {
        let at = Duration::from_millis(self.contact.load(Relaxed).checked_sub(1)?);
        Some(self.start.elapsed().saturating_sub(at))
    }

    /// How many watches ended before their time or could not be started, by resource.
    pub fn restarts(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Resource::NAMES.into_iter().zip(self.restarts.iter().map(|n| n.load(Relaxed)))
    }

    /// How many complete lists were received, by resource; the first is no sign of trouble.
    pub fn lists(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Resource::NAMES.into_iter().zip(self.lists.iter().map(|n| n.load(Relaxed)))
    }

    /// How often an object was left out as a whole because it makes no sense.
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Relaxed)
    }

    /// Whether all that must be known before rules may be written was listed.
    pub fn synced(&self) -> bool {
        self.listed.load(SeqCst) & Resource::REQUIRED == Resource::REQUIRED
    }

    /// The metrics of requests, to be registered.
    pub fn request_metrics(&self) -> impl Iterator<Item = Box<dyn Collector>> + '_ {
        self.requests.iter().flat_map(|requests| {
            let (total, duration) = (requests.total.clone(), requests.duration.clone());
            [Box::new(total) as Box<dyn Collector>, Box::new(duration)]
        })
    }

    /// A request was answered with this code, or not at all.
    pub(crate) fn requested(&self, method: &Method, url: &str, code: Option<u16>, took: Duration) {
        let Some(requests) = &self.requests else { return };
        let uri = url.parse::<Uri>().ok();
        let host = uri.as_ref().and_then(Uri::authority).map_or("", |authority| authority.as_str());
        // As client-go has it where there is none.
        let code = code.map_or("<error>".to_owned(), |code| code.to_string());
        requests.total.with_label_values(&[&*code, method.as_str(), host]).inc();
        requests.duration.with_label_values(&[method.as_str(), host]).observe(took.as_secs_f64());
    }

    pub(super) fn contact(&self, version: Option<http::Version>) {
        self.contact.store(self.start.elapsed().as_millis() as u64 + 1, Relaxed);
        if let Some(version) = version {
            self.pings.store(version == http::Version::HTTP_2, Relaxed);
        }
    }

    pub(super) fn pings(&self) -> bool {
        self.pings.load(Relaxed)
    }

    pub(super) fn restarted(&self, resource: &Resource) {
        self.restarts[resource.index()].fetch_add(1, Relaxed);
    }

    pub(super) fn skip(&self) {
        self.skipped.fetch_add(1, Relaxed);
        if let Some(invalid) = &self.invalid {
            invalid.inc();
        }
    }

    /// A resource was listed completely; whether with it all is known for the first time.
    pub(super) fn listed(&self, resource: &Resource) -> bool {
        self.lists[resource.index()].fetch_add(1, Relaxed);
        let bit = resource.bit();
        let before = self.listed.fetch_or(bit, SeqCst);
        let complete = |bits| bits & Resource::REQUIRED == Resource::REQUIRED;
        complete(before | bit) && !complete(before)
    }
}
