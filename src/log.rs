//! What the log says, and how often.
//!
//! Nothing that goes on failing floods it: what is the same is said again only after a while, with how often it happened.

use std::time::Duration;

use tokio::time::Instant;

/// How often the log says that something goes on failing.
const REPEAT: Duration = Duration::from_secs(600);

/// The target of lines about what goes well all the time, one a sync: they are shown from `-v=2` on, where kube-proxy
/// has its own.
pub const STEADY: &str = "steady";

/// Something that happens again and again: said when it is new and then now and then.
#[derive(Debug, Default)]
pub struct Repeated {
    times: u64,
    said: Option<(Instant, String)>,
}

impl Repeated {
    /// It happened; how often by now, if that is to be said.
    pub fn again(&mut self, what: &impl std::fmt::Display) -> Option<u64> {
        self.times += 1;
        let (now, text) = (Instant::now(), what.to_string());
        if self.said.as_ref().is_some_and(|(at, said)| *said == text && now - *at < REPEAT) {
            return None;
        }
        self.said = Some((now, text));
        Some(self.times)
    }

    /// It is over; how often it had happened, if it had.
    pub fn ended(&mut self) -> Option<u64> {
        let Repeated { times, said } = std::mem::take(self);
        said.map(|_| times)
    }
}
