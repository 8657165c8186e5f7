//! One log line when the API server fails, one when it is well again, however many requests fail meanwhile.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

use tracing::{debug, info, warn};

use super::error::Error;
use super::resource::Resource;

/// What is the same outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    /// There is nobody to talk to; the same for all resources.
    Unanswered,
    /// The answer is the same for all resources, as a rule: 401, 429, 5xx.
    Status(u16),
    /// One resource only: by its number, and the code where there is one.
    Resource(usize, Option<u16>),
}

impl Cause {
    fn of(error: &Error, resource: &Resource) -> Cause {
        match error.code() {
            None if error.is_unanswered() => Cause::Unanswered,
            Some(code) if code == 401 || code == 429 || code >= 500 => Cause::Status(code),
            code => Cause::Resource(resource.index(), code),
        }
    }
}

/// The outages that last.
#[derive(Debug, Default)]
pub(super) struct Outages {
    /// Since when, and which resources fail, as bits.
    current: Mutex<BTreeMap<Cause, (Instant, u8)>>,
}

impl Outages {
    /// A request failed, and not for the first time in a row.
    pub(super) fn failed(&self, url: &str, resource: &Resource, error: &Error) {
        let cause = Cause::of(error, resource);
        let Ok(mut current) = self.current.lock() else { return };
        let mut since = None;
        current.retain(|other, (start, resources)| {
            if *other != cause && *resources & resource.bit() != 0 {
                *resources &= !resource.bit();
                since = Some(*start);
            }
            *resources != 0
        });
        let known = current.contains_key(&cause);
        let (_, resources) = current.entry(cause).or_insert_with(|| (since.unwrap_or_else(Instant::now), 0));
        *resources |= resource.bit();
        if known {
            debug!(resource = resource.name(), "{error}");
            return;
        }
        let what = match cause {
            Cause::Resource(..) => format!("cannot list and watch {}", resource.name()),
            _ => "the API server does not serve".to_owned(),
        };
        let remedy = error.remedy(resource);
        warn!(server = url, "{what}: {error}; {remedy}. Rules stay as they are meanwhile; it is tried again");
    }

    /// A resource is listed and watched.
    pub(super) fn well(&self, url: &str, resource: &Resource) {
        let Ok(mut current) = self.current.lock() else { return };
        current.retain(|cause, (since, resources)| {
            if *resources & resource.bit() == 0 {
                return true;
            }
            *resources &= !resource.bit();
            if *resources != 0 {
                return true;
            }
            let seconds = since.elapsed().as_secs();
            match cause {
                Cause::Resource(..) => {
                    info!(
                        server = url,
                        "{} can be listed and watched again, after {seconds} s",
                        resource.name()
                    );
                }
                _ => info!(server = url, "the API server serves again, after {seconds} s"),
            }
            false
        });
    }
}
