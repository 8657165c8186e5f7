//! A small HTTP/1.1 server for health checks and metrics: a listener, a task that accepts, a function from path
//! to response. A listener costs a socket and a task, so hundreds of them are cheap.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::listen::{self, BindError, Listening};

/// A client has to send a request's header, the first or the next, within this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// After this time a connection takes no more requests.
const CONNECTION_TIME: Duration = Duration::from_secs(60);
/// How long a response may then still take.
const GRACE: Duration = Duration::from_secs(5);
/// What a request's header may have, in bytes. More is answered with 431.
const HEADER_BYTES: usize = 16 << 10;
/// A response with a short body.
pub type Response = hyper::Response<Full<Bytes>>;

/// From a request's path to the response, for every method. Must not block.
pub type Route = Arc<dyn Fn(&str) -> Response + Send + Sync>;

/// A response. Clients are told not to guess another type of content.
pub fn response(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A response of plain text.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Response {
    response(status, "text/plain; charset=utf-8", body)
}

/// A response of JSON.
pub fn json(status: StatusCode, body: impl Into<Bytes>) -> Response {
    response(status, "application/json", body)
}

/// What is answered where there is nothing.
pub fn not_found() -> Response {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// The same response with one more header.
pub fn with_header(mut response: Response, name: HeaderName, value: impl Into<HeaderValue>) -> Response {
    response.headers_mut().insert(name, value.into());
    response
}

/// Listens and serves, with at most as many connections at a time as `connections` permits; several servers may
/// share it. See [`Listening::bind`]. When the result is dropped, listener and connections close.
pub fn bind(
    what: &str,
    address: SocketAddr,
    connections: Arc<Semaphore>,
    route: Route,
) -> Result<Listening, BindError> {
    Listening::bind(what, address, None, |listener| serve_all(listener, connections, route))
}

/// The same, but an address that cannot be had is a warning, and told to `failed`; it is tried again every 5 seconds,
/// for ever.
pub async fn bind_when_free(
    what: &str,
    address: SocketAddr,
    connections: Arc<Semaphore>,
    route: Route,
    failed: impl Fn(&BindError),
) -> Listening {
    let mut warned: Option<BindError> = None;
    loop {
        match bind(what, address, connections.clone(), route.clone()) {
            Ok(server) => {
                info!(%address, "{what}: serving");
                return server;
            }
            Err(error) if warned.as_ref() == Some(&error) => {}
            Err(error) => {
                warn!("{error}; trying again every {} s", listen::RETRY.as_secs());
                failed(&error);
                warned = Some(error);
            }
        }
        sleep(listen::RETRY).await;
    }
}

async fn serve_all(listener: TcpListener, connections: Arc<Semaphore>, route: Route) {
    // Dropped with this task: that closes the connections.
    let mut open = JoinSet::new();
    loop {
        let stream = tokio::select! {
            stream = listen::accept(&listener) => stream,
            Some(_) = open.join_next() => continue,
        };
        // Not before there is a client: an idle listener must not take a permit from the others that share them.
        // Nobody closes the semaphore.
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        let route = route.clone();
        open.spawn(async move {
            serve(stream, route).await;
            drop(permit);
        });
    }
}

async fn serve(stream: TcpStream, route: Route) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = route(request.uri().path());
        async move { Ok::<_, std::convert::Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES)
        // Names as Go writes them: there are probes that compare them letter by letter.
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // What goes wrong with a connection, a garbled request or a client that goes, is the client's matter.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = sleep(CONNECTION_TIME) => {
            connection.as_mut().graceful_shutdown();
            let _ = timeout(GRACE, connection).await;
        }
    }
}

#[cfg(test)]
mod tests;
