//! Requests, and what is on the wire: lists, and lines of watch events.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use http::{Method, Request, header};
use http_body_util::BodyExt;
use kube::client::Body;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::Timing;
use super::connection::Connection;
use super::error::{Error, chain};
use super::status::ApiStatus;

/// More than any object can have: etcd takes 1.5 MiB by default.
const LONGEST_LINE: usize = 64 << 20;
/// As much as is read of the body of a refusal.
const LONGEST_REFUSAL: usize = 64 << 10;

/// A page of a list.
#[derive(Deserialize)]
pub(super) struct Page<'a> {
    #[serde(default)]
    pub(super) metadata: PageMetadata,
    #[serde(borrow, default)]
    pub(super) items: Option<Vec<&'a RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PageMetadata {
    pub(super) resource_version: Option<String>,
    #[serde(rename = "continue")]
    pub(super) token: Option<String>,
}

/// A line of a watch.
#[derive(Deserialize)]
pub(super) struct Event<'a> {
    #[serde(rename = "type", borrow)]
    pub(super) kind: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

/// The object of an event of type BOOKMARK.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Bookmark {
    metadata: BookmarkMetadata,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct BookmarkMetadata {
    resource_version: String,
    annotations: Option<BTreeMap<String, String>>,
}

impl Bookmark {
    pub(super) fn parse(raw: &RawValue) -> Result<Bookmark, Error> {
        serde_json::from_str(raw.get()).map_err(|error| Error::Garbage(format!("a bookmark: {error}")))
    }

    pub(super) fn version(self) -> String {
        self.metadata.resource_version
    }

    /// Whether all initial events have been sent (KEP-3157).
    pub(super) fn ends_initial(&self) -> bool {
        let annotations = self.metadata.annotations.as_ref();
        annotations.and_then(|a| a.get("k8s.io/initial-events-end")).is_some_and(|value| value == "true")
    }
}

/// metav1.Status.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    code: Option<u16>,
    reason: Option<String>,
    message: Option<String>,
    details: Option<Details>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Details {
    retry_after_seconds: Option<u64>,
    causes: Option<Vec<Cause>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Cause {
    reason: Option<String>,
    message: Option<String>,
}

/// Percent-encodes a value of a query.
pub(super) fn escape(value: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    value.bytes().map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// The refusal that a Status, or an error page of something else, says.
pub(super) fn refusal(text: &str, http_code: u16, retry_after: Option<Duration>) -> Error {
    let status = serde_json::from_str::<Status>(text).unwrap_or_else(|_| {
        let line = text.lines().next().unwrap_or_default();
        Status { message: Some(line.chars().take(200).collect()), ..Status::default() }
    });
    let details = status.details.unwrap_or_default();
    let too_large = details.causes.iter().flatten().any(|cause| {
        let text = cause.reason.as_deref().or(cause.message.as_deref()).unwrap_or_default();
        matches!(text, "ResourceVersionTooLarge" | "Too large resource version")
    });
    let reason = if too_large { Some("ResourceVersionTooLarge".to_owned()) } else { status.reason };
    Error::Status {
        code: status.code.unwrap_or(http_code),
        reason: reason.unwrap_or_default(),
        message: status.message.unwrap_or_default(),
        retry_after: retry_after.or(details.retry_after_seconds.map(Duration::from_secs)),
    }
}

/// The answer to a request that was accepted.
pub(super) struct Answer {
    body: Body,
    buffer: Vec<u8>,
    /// How far the buffer was searched for the end of a line.
    searched: usize,
}

/// Asks; the answer's status is 200.
pub(super) async fn get(
    connection: &Connection,
    uri: &str,
    timing: &Timing,
    status: &ApiStatus,
) -> Result<Answer, Error> {
    exchange(connection, Request::get(uri), Body::empty(), timing, status).await
}

/// Writes an object, or a part of one (PATCH).
pub(super) async fn send(
    connection: &Connection,
    method: Method,
    uri: &str,
    object: &serde_json::Value,
    timing: &Timing,
    status: &ApiStatus,
) -> Result<(), Error> {
    let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let request = Request::builder().method(method).uri(uri).header(header::CONTENT_TYPE, kind);
    let body = Body::from(object.to_string().into_bytes());
    let answer = exchange(connection, request, body, timing, status).await?;
    // To its end, so that the connection can be used again.
    answer.text(timing.answer, status).await.map(|_| ())
}

async fn exchange(
    connection: &Connection,
    request: http::request::Builder,
    body: Body,
    timing: &Timing,
    status: &ApiStatus,
) -> Result<Answer, Error> {
    let request = request
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, concat!("sluice/", env!("CARGO_PKG_VERSION")))
        .body(body)
        .map_err(|error| Error::Connection(chain(&error)))?;
    let current = connection.current();
    let (method, start) = (request.method().clone(), Instant::now());
    let response = timeout(timing.answer, current.client.send(request))
        .await
        .map_err(|_| Error::Silent(timing.answer))
        .and_then(|response| response.map_err(|error| Error::Connection(chain(&error))));
    let code = response.as_ref().map(|response| response.status().as_u16()).ok();
    status.requested(&method, &current.url, code, start.elapsed());
    let response = response?;
    status.contact(Some(response.version()));
    let code = response.status();
    let retry_after = response.headers().get(header::RETRY_AFTER).and_then(|v| v.to_str().ok());
    let retry_after = retry_after.and_then(|v| v.parse().ok()).map(Duration::from_secs);
    let mut answer = Answer { body: response.into_body(), buffer: Vec::new(), searched: 0 };
    if code.is_success() {
        return Ok(answer);
    }
    // The status alone says enough if the body does not come.
    while answer.buffer.len() < LONGEST_REFUSAL
        && let Ok(true) = answer.more(timing.answer, status).await
    {}
    let text = String::from_utf8_lossy(&answer.buffer);
    Err(refusal(&text, code.as_u16(), retry_after))
}

impl Answer {
    /// Waits for more; false at the end.
    async fn more(&mut self, idle: Duration, status: &ApiStatus) -> Result<bool, Error> {
        let frame = timeout(idle, self.body.frame()).await.map_err(|_| Error::Silent(idle))?;
        let Some(frame) = frame else { return Ok(false) };
        let frame = frame.map_err(|error| Error::Connection(chain(&error)))?;
        status.contact(None);
        if let Some(data) = frame.data_ref() {
            self.buffer.extend_from_slice(data);
        }
        Ok(true)
    }

    /// The whole body.
    pub(super) async fn text(mut self, idle: Duration, status: &ApiStatus) -> Result<String, Error> {
        while self.more(idle, status).await? {}
        String::from_utf8(self.buffer).map_err(|error| Error::Garbage(error.to_string()))
    }

    /// The complete lines that have come, at least one; `None` at the end. Half a line at the end is of no use: its
    /// event comes again with the next watch.
    pub(super) async fn lines(
        &mut self,
        idle: Duration,
        status: &ApiStatus,
    ) -> Result<Option<String>, Error> {
        loop {
            if let Some(end) = self.buffer[self.searched..].iter().rposition(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(self.searched + end + 1);
                let lines = std::mem::replace(&mut self.buffer, rest);
                self.searched = self.buffer.len();
                let lines = String::from_utf8(lines).map_err(|error| Error::Garbage(error.to_string()))?;
                return Ok(Some(lines));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > LONGEST_LINE {
                return Err(Error::Garbage(format!("a line of more than {LONGEST_LINE} bytes")));
            }
            if !self.more(idle, status).await? {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped() {
        assert_eq!(escape("a+b/c=="), "a%2Bb%2Fc%3D%3D");
    }

    #[test]
    fn a_refusal_keeps_what_the_server_said() {
        let text = r#"{"kind":"Status","status":"Failure","message":"slow down","reason":"TooManyRequests",
                       "details":{"retryAfterSeconds":3},"code":429}"#;
        let Error::Status { code, reason, message, retry_after } = refusal(text, 429, None) else {
            panic!("a refusal");
        };
        assert_eq!((code, reason.as_str(), message.as_str()), (429, "TooManyRequests", "slow down"));
        assert_eq!(retry_after, Some(Duration::from_secs(3)));
    }

    #[test]
    fn an_error_page_of_a_proxy_is_shown_in_part() {
        let error = refusal("<html>bad gateway</html>\nmore", 502, None);
        assert_eq!(error.to_string(), "502 : <html>bad gateway</html>");
    }

    #[test]
    fn a_version_from_the_future_is_told_by_its_cause() {
        let text = r#"{"message":"Too large resource version: 9, current: 5","reason":"Timeout","code":504,
                       "details":{"causes":[{"reason":"ResourceVersionTooLarge","message":"Too large resource version"}]}}"#;
        assert!(refusal(text, 504, None).is_expired());
    }
}
