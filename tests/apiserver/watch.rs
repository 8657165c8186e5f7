//! Watches.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::channel::Sender;
use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::store::{Kind, Selector};
use super::{Inner, recorded, selector};

/// What can be done to an open watch.
#[derive(Clone, Debug)]
pub enum Disturbance {
    /// The connection breaks.
    Cut,
    /// The stream ends as at its timeout.
    End,
    /// Half an event, then the connection breaks.
    HalfLine,
    /// Half an event, then the stream ends as if nothing were wrong.
    HalfLineEnd,
    /// A line that is no event; the stream stays open.
    Garbage,
    /// Bytes that are no text.
    NoText,
    /// The event that tells that the version is too old, then the end.
    Expired,
    /// An event of type ERROR with an internal error, then the end.
    InternalError,
    /// A bookmark.
    Bookmark,
}

/// A connection that broke.
#[derive(Debug)]
pub struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cut on purpose")
    }
}

impl std::error::Error for Cut {}

/// The recorded refusal of a version that is too old.
pub fn expired() -> Value {
    let event: Value = serde_json::from_str(&recorded("expired.jsonl")).expect("JSON");
    event["object"].clone()
}

/// The refusal of a version that is not there yet.
pub fn too_large(current: u64) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Timeout", "code": 504,
        "message": format!("Timeout: Too large resource version: 9999, current: {current}"),
        "details": {
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        },
    })
}

/// The stream is over.
struct Over;

struct Stream {
    sender: Option<Sender<Bytes, Cut>>,
}

impl Stream {
    async fn text(&mut self, text: impl Into<Bytes>) -> Result<(), Over> {
        let sender = self.sender.as_mut().ok_or(Over)?;
        sender.send_data(text.into()).await.map_err(|_| Over)
    }

    async fn event(&mut self, event: &Value) -> Result<(), Over> {
        self.text(format!("{event}\n")).await
    }

    async fn error(&mut self, status: Value) -> Result<(), Over> {
        self.event(&json!({"type": "ERROR", "object": status})).await?;
        Err(Over)
    }

    fn cut(&mut self) -> Over {
        if let Some(sender) = self.sender.take() {
            sender.abort(Cut);
        }
        Over
    }

    async fn disturb(&mut self, what: Disturbance, bookmark: &Value) -> Result<(), Over> {
        let half = r#"{"type":"ADDED","object":{"kind":"Service","metadata":{"name":"half"#;
        match what {
            Disturbance::Cut => Err(self.cut()),
            Disturbance::End => Err(Over),
            Disturbance::HalfLine => {
                self.text(half).await?;
                // What was written has to arrive before the connection breaks.
                tokio::time::sleep(Duration::from_millis(20)).await;
                Err(self.cut())
            }
            Disturbance::HalfLineEnd => {
                self.text(half).await?;
                Err(Over)
            }
            Disturbance::Garbage => self.text("<html>502 Bad Gateway</html>\n").await,
            Disturbance::NoText => self.text(&b"\xff\xfe\x00\n"[..]).await,
            Disturbance::Expired => self.error(expired()).await,
            Disturbance::InternalError => {
                let status = json!({"kind": "Status", "status": "Failure", "reason": "InternalError", "code": 500,
                    "message": "an error on the server has prevented the request from succeeding"});
                self.error(status).await
            }
            Disturbance::Bookmark => self.event(bookmark).await,
        }
    }
}

pub async fn watch(
    sender: Sender<Bytes, Cut>,
    inner: Arc<Inner>,
    kind: Kind,
    query: BTreeMap<String, String>,
) {
    let mut stream = Stream { sender: Some(sender) };
    // The stream ends by dropping the sender.
    _ = serve(&mut stream, &inner, kind, &query).await;
}

async fn serve(
    stream: &mut Stream,
    inner: &Inner,
    kind: Kind,
    query: &BTreeMap<String, String>,
) -> Result<(), Over> {
    let number = |key: &str| query.get(key).and_then(|v| v.parse::<u64>().ok());
    let initial = query.contains_key("sendInitialEvents");
    let (closes, ignores, replay) = {
        let faults = inner.faults.lock().expect("no panic before");
        (faults.closes_watches, faults.ignores_streaming, faults.replay.get(&kind).cloned())
    };
    if closes && !initial {
        return Ok(());
    }
    let mut disturbed = inner.disturbed.subscribe();
    let mut changed = inner.changed.subscribe();
    let end = Instant::now() + Duration::from_secs(number("timeoutSeconds").unwrap_or(300));
    if let Some((first, then)) = replay {
        stream.text(if initial { first } else { then }).await?;
        sleep_until(end).await;
        return Ok(());
    }
    let selector = selector(query);
    let asked = number("resourceVersion").unwrap_or_default();
    let (mut version, first) = match first_events(inner, kind, &selector, asked, initial, ignores) {
        Ok(start) => start,
        Err(status) => return stream.error(status).await,
    };
    for event in first {
        stream.event(&event).await?;
    }
    loop {
        let (events, now, bookmark) = {
            let store = inner.store.lock().expect("no panic before");
            (store.since(kind, &selector, version), store.version(), store.bookmark(kind, false))
        };
        let Some(events) = events else { return stream.error(expired()).await };
        for event in events {
            stream.event(&event).await?;
        }
        version = now;
        tokio::select! {
            _ = changed.changed() => {}
            _ = disturbed.changed() => {
                let what = disturbed.borrow_and_update().1.clone();
                if let Some(what) = what {
                    stream.disturb(what, &bookmark).await?;
                }
            }
            () = sleep_until(end) => {
                return stream.event(&bookmark).await;
            }
        }
    }
}

fn added(object: Value) -> Value {
    json!({"type": "ADDED", "object": object})
}

/// The version that the watch starts at and the events before it, or the refusal.
fn first_events(
    inner: &Inner,
    kind: Kind,
    selector: &Selector,
    asked: u64,
    initial: bool,
    ignores: bool,
) -> Result<(u64, Vec<Value>), Value> {
    let store = inner.store.lock().expect("no panic before");
    if asked > store.version() {
        return Err(too_large(store.version()));
    }
    if !initial {
        return Ok((asked, vec![]));
    }
    let mut events: Vec<Value> = store.list(kind, selector).into_iter().map(added).collect();
    if !ignores {
        events.push(store.bookmark(kind, true));
    }
    Ok((store.version(), events))
}
