//! A small HTTP/1.1 server for health checks and metrics: a listener, a task that accepts, a function from path
//! to response. A listener costs a socket and a task, so hundreds of them are cheap.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
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
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

/// A client has to send a request's header, the first or the next, within this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// After this time a connection takes no more requests.
const CONNECTION_TIME: Duration = Duration::from_secs(60);
/// How long a response may then still take.
const GRACE: Duration = Duration::from_secs(5);
/// What a request's header may have, in bytes. More is answered with 431.
const HEADER_BYTES: usize = 16 << 10;
/// Connections that the kernel keeps while all allowed ones are open.
const BACKLOG: i32 = 128;
/// The pause after a failure to accept, which as a rule is a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often an address is tried that could not be had.
const BIND_INTERVAL: Duration = Duration::from_secs(5);

/// Why a server cannot listen.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{what}: cannot {stage} {address}: {errno}")]
pub struct BindError {
    /// What asks for the address: a flag, or a Service.
    pub what: String,
    /// The address.
    pub address: SocketAddr,
    /// What failed: open a socket for, bind to, or listen on the address.
    pub stage: &'static str,
    /// What the kernel answered.
    pub errno: Errno,
}

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

/// A server; its listener and connections close when it is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    /// Listens and serves, with at most as many connections at a time as `connections` permits; several servers may
    /// share it. An unspecified address, `0.0.0.0` or `[::]`, means all addresses of both families, as with
    /// kube-proxy.
    ///
    /// `what` is for the error: the flag or Service that asks for the address. Must be called within a runtime.
    pub fn bind(
        what: &str,
        address: SocketAddr,
        connections: Arc<Semaphore>,
        route: Route,
    ) -> Result<Server, BindError> {
        let failed = |(stage, errno)| BindError { what: what.to_owned(), address, stage, errno };
        let listener = listener(address).map_err(failed)?;
        let io = |error: io::Error| {
            failed(("listen on", Errno::from_raw(error.raw_os_error().unwrap_or_default())))
        };
        let listener = tokio::net::TcpListener::from_std(listener).map_err(io)?;
        let address = listener.local_addr().map_err(io)?;
        Ok(Server { address, task: tokio::spawn(accept(listener, connections, route)) })
    }

    /// The same, but an address that cannot be had is a warning and is tried again every 5 seconds, for ever.
    pub async fn bind_when_free(
        what: &str,
        address: SocketAddr,
        connections: Arc<Semaphore>,
        route: Route,
    ) -> Server {
        let mut warned: Option<BindError> = None;
        loop {
            match Server::bind(what, address, connections.clone(), route.clone()) {
                Ok(server) => {
                    info!(%address, "{what}: serving");
                    return server;
                }
                Err(error) if warned.as_ref() == Some(&error) => {}
                Err(error) => {
                    warn!("{error}; trying again every {} s", BIND_INTERVAL.as_secs());
                    warned = Some(error);
                }
            }
            sleep(BIND_INTERVAL).await;
        }
    }

    /// The address that it listens on, with the port that was chosen where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the listener and all connections; after this the address is free.
    pub async fn close(mut self) {
        self.task.abort();
        // The only error is that it was aborted.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn listener(address: SocketAddr) -> Result<TcpListener, (&'static str, Errno)> {
    if !address.ip().is_unspecified() {
        return listener_of(address, true);
    }
    // One socket for both families. A kernel without IPv6 has only the other.
    match listener_of(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port()), false) {
        Err((_, Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL)) => {
            listener_of(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port()), true)
        }
        result => result,
    }
}

fn listener_of(address: SocketAddr, only_v6: bool) -> Result<TcpListener, (&'static str, Errno)> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let opened = socket(family, SockType::Stream, flags, None).and_then(|fd| {
        // A restart must not wait for old connections' TIME_WAIT.
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        if address.is_ipv6() {
            setsockopt(&fd, sockopt::Ipv6V6Only, &only_v6)?;
        }
        Ok(fd)
    });
    let fd = opened.map_err(|errno| ("open a socket for", errno))?;
    let raw = std::os::fd::AsRawFd::as_raw_fd(&fd);
    bind(raw, &SockaddrStorage::from(address)).map_err(|errno| ("bind to", errno))?;
    let backlog = Backlog::new(BACKLOG).map_err(|errno| ("listen on", errno))?;
    listen(&fd, backlog).map_err(|errno| ("listen on", errno))?;
    Ok(TcpListener::from(fd))
}

async fn accept(listener: tokio::net::TcpListener, connections: Arc<Semaphore>, route: Route) {
    // Dropped with this task: that closes the connections.
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = open.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                // Not before there is a client: an idle listener must not take a permit from the others that share
                // them. Nobody closes the semaphore.
                let Ok(permit) = connections.clone().acquire_owned().await else { return };
                let route = route.clone();
                open.spawn(async move {
                    serve(stream, route).await;
                    drop(permit);
                });
            }
            Err(error) => {
                debug!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
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
