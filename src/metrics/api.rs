//! The connection to the API server, read when somebody asks.

use std::sync::Arc;
use std::time::SystemTime;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Error, Gauge, IntCounter, IntCounterVec, Opts};

use super::{API_LAST_CONTACT, API_LISTS, API_SILENCE, API_SKIPPED, API_WATCH_RESTARTS, Named};
use crate::reporting::seconds;
use crate::source::kubernetes::ApiStatus;

/// The label of the resource.
const RESOURCE: &str = "resource";

/// Collects from the status that the watches keep.
pub(super) struct Api {
    status: Arc<ApiStatus>,
    descriptions: Vec<Desc>,
}

impl Api {
    pub(super) fn new(status: Arc<ApiStatus>) -> Result<Api, Error> {
        let now = Now::of(&status)?;
        let descriptions = now.collectors().iter().flat_map(|c| c.desc()).cloned().collect();
        Ok(Api { status, descriptions })
    }
}

impl Collector for Api {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // It was made once before, with the same names.
        let Ok(now) = Now::of(&self.status) else { return Vec::new() };
        now.collectors().iter().flat_map(|c| c.collect()).collect()
    }
}

/// The values of one moment. They are made anew each time: counters of this library only go up by differences, which
/// two scrapes at once would both add.
struct Now {
    last_contact: Gauge,
    silence: Gauge,
    restarts: IntCounterVec,
    lists: IntCounterVec,
    skipped: IntCounter,
}

impl Now {
    fn of(status: &ApiStatus) -> Result<Now, Error> {
        let now = Now {
            last_contact: Gauge::new(API_LAST_CONTACT.0, API_LAST_CONTACT.1)?,
            silence: Gauge::new(API_SILENCE.0, API_SILENCE.1)?,
            restarts: by_resource(API_WATCH_RESTARTS, status.restarts())?,
            lists: by_resource(API_LISTS, status.lists())?,
            skipped: IntCounter::new(API_SKIPPED.0, API_SKIPPED.1)?,
        };
        if let Some(at) = status.since_contact().and_then(|since| SystemTime::now().checked_sub(since)) {
            now.last_contact.set(seconds(at));
        }
        now.silence.set(status.since_contact().map_or(-1.0, |since| since.as_secs_f64()));
        now.skipped.inc_by(status.skipped());
        Ok(now)
    }

    fn collectors(&self) -> [&dyn Collector; 5] {
        [&self.last_contact, &self.silence, &self.restarts, &self.lists, &self.skipped]
    }
}

fn by_resource(
    (name, help): Named,
    values: impl Iterator<Item = (&'static str, u64)>,
) -> Result<IntCounterVec, Error> {
    let counters = IntCounterVec::new(Opts::new(name, help), &[RESOURCE])?;
    values.for_each(|(resource, value)| counters.with_label_values(&[resource]).inc_by(value));
    Ok(counters)
}
