//! A list/watch server that behaves as a kube-apiserver does where a proxy can tell, and misbehaves on demand.

mod authorizer;
mod events;
mod net;
mod store;
mod watch;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};

use http_body_util::channel::Channel;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use tokio::net::TcpSocket;
use tokio::sync::watch as channel;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

pub use authorizer::Authorizer;
pub use store::{Kind, Store};
pub use watch::Disturbance;

use store::Selector;

/// A file of testdata/apiserver.
pub fn recorded(name: &str) -> String {
    let path = format!("{}/testdata/apiserver/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// An answer in place of the right one.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub code: u16,
    pub body: String,
    pub retry_after: Option<u64>,
}

impl Refusal {
    pub fn new(code: u16, body: impl Into<String>) -> Refusal {
        Refusal { code, body: body.into(), retry_after: None }
    }
}

/// What the server does wrong.
#[derive(Debug, Default)]
pub struct Faults {
    /// For the next requests of any kind of request, by resource.
    pub next: HashMap<Kind, VecDeque<Refusal>>,
    /// For every request of a resource, while it is here.
    pub always: HashMap<Kind, Refusal>,
    /// In place of watches with sendInitialEvents.
    pub no_streaming: Option<Refusal>,
    /// sendInitialEvents is taken for an unknown parameter and the list never ends.
    pub ignores_streaming: bool,
    /// Watches are closed as soon as they are opened.
    pub closes_watches: bool,
    /// The largest page, whatever the client asks for.
    pub page: Option<usize>,
    /// Watches of these resources are these lines, with the initial events and after them.
    pub replay: HashMap<Kind, (String, String)>,
    /// Bodies of lists are cut in the middle.
    pub half_lists: bool,
    /// How many more continue tokens are expired when they come back.
    pub expired_tokens: usize,
    /// For every event that is written.
    pub events: Option<Refusal>,
    /// The token that is asked for.
    pub token: Option<String>,
    /// Whoever asks has this role and no other.
    pub authorizer: Option<Authorizer>,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub kind: Kind,
    pub query: BTreeMap<String, String>,
    pub http2: bool,
}

struct Inner {
    store: Mutex<Store>,
    faults: Mutex<Faults>,
    asked: Mutex<Vec<Asked>>,
    events: Mutex<events::Events>,
    changed: channel::Sender<u64>,
    disturbed: channel::Sender<(u64, Option<Disturbance>)>,
    /// Connections of earlier generations are dead but silent.
    generation: Arc<AtomicU64>,
}

/// The server; it ends when it is dropped.
pub struct ApiServer {
    inner: Arc<Inner>,
    address: SocketAddr,
    tls: Option<(TlsAcceptor, String)>,
    running: Option<(channel::Sender<()>, JoinHandle<()>)>,
}

impl ApiServer {
    /// Plain HTTP, on a port of the system's choice.
    pub async fn plain() -> ApiServer {
        ApiServer::plain_at(Ipv4Addr::LOCALHOST).await
    }

    /// The same at an address of this host.
    pub async fn plain_at(address: Ipv4Addr) -> ApiServer {
        ApiServer::start(address, None).await
    }

    /// HTTPS with HTTP/2 or, without it, HTTP/1.1.
    pub async fn tls(http2: bool) -> ApiServer {
        let alpn: &[&[u8]] = if http2 { &[b"h2", b"http/1.1"] } else { &[b"http/1.1"] };
        ApiServer::start(Ipv4Addr::LOCALHOST, Some(certificate(alpn))).await
    }

    /// From the next [`come_up`](ApiServer::come_up) on the server has another certificate, of another CA.
    pub fn renew_certificate(&mut self) {
        self.tls = Some(certificate(&[b"h2"]));
    }

    async fn start(address: Ipv4Addr, tls: Option<(TlsAcceptor, String)>) -> ApiServer {
        let inner = Arc::new(Inner {
            store: Mutex::default(),
            faults: Mutex::default(),
            asked: Mutex::default(),
            events: Mutex::default(),
            changed: channel::Sender::new(0),
            disturbed: channel::Sender::new((0, None)),
            generation: Arc::default(),
        });
        let address = SocketAddr::from((address, 0));
        let mut server = ApiServer { inner, address, tls, running: None };
        server.come_up();
        server
    }

    /// Listens; after [`go_down`](ApiServer::go_down), at the same address as before.
    pub fn come_up(&mut self) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("an address that was used before");
        socket.bind(self.address).expect("a free port");
        let listener = socket.listen(64).expect("a listener");
        self.address = listener.local_addr().expect("an address");
        let (running, stop) = channel::channel(());
        let (inner, acceptor) = (self.inner.clone(), self.tls.as_ref().map(|(acceptor, _)| acceptor.clone()));
        let listening = tokio::spawn(async move {
            let mut stopped = stop.clone();
            loop {
                let (stream, _) = tokio::select! {
                    accepted = listener.accept() => accepted.expect("a connection"),
                    _ = stopped.changed() => return,
                };
                let (inner, acceptor, mut stopped) = (inner.clone(), acceptor.clone(), stop.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = connection(stream, acceptor, inner) => {}
                        _ = stopped.changed() => {}
                    }
                });
            }
        });
        self.running = Some((running, listening));
    }

    /// Closes all connections and the port.
    pub async fn go_down(&mut self) {
        if let Some((running, listening)) = self.running.take() {
            drop(running);
            listening.await.expect("a listener that ends when it is told to");
        }
    }

    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Writes a kubeconfig to this folder, with a CA file and a file that has the token `secret`.
    pub fn write_kubeconfig(&self, folder: &Path) -> std::io::Result<PathBuf> {
        let (ca, token, config) = (folder.join("ca.crt"), folder.join("token"), folder.join("kubeconfig"));
        std::fs::write(&token, "secret")?;
        let mut cluster = json!({"server": self.url()});
        if let Some((_, pem)) = &self.tls {
            std::fs::write(&ca, pem)?;
            cluster["certificate-authority"] = json!(ca);
        }
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": cluster}],
            "users": [{"name": "u", "user": {"tokenFile": token}}],
        });
        std::fs::write(&config, kubeconfig.to_string())?;
        Ok(config)
    }

    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        self.inner.faults.lock().expect("no panic before")
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.inner.asked.lock().expect("no panic before").clone()
    }

    /// The events that were written.
    pub fn events(&self) -> Vec<Value> {
        self.inner.events.lock().expect("no panic before").all()
    }

    /// How often an event was written or patched.
    pub fn event_writes(&self) -> usize {
        self.inner.events.lock().expect("no panic before").writes
    }

    /// Reads or writes objects; watchers hear of it.
    pub fn store<T>(&self, with: impl FnOnce(&mut Store) -> T) -> T {
        let result = with(&mut self.inner.store.lock().expect("no panic before"));
        self.inner.changed.send_modify(|n| *n += 1);
        result
    }

    pub fn apply(&self, kind: Kind, object: Value) {
        self.store(|store| store.apply(kind, object));
    }

    pub fn delete(&self, kind: Kind, namespace: &str, name: &str) {
        self.store(|store| store.delete(kind, namespace, name));
    }

    /// Does this to all watches that are open.
    pub fn disturb(&self, disturbance: Disturbance) {
        self.inner.disturbed.send_modify(|(n, what)| {
            *n += 1;
            *what = Some(disturbance);
        });
    }

    /// From now on nothing comes or goes through the connections that are open.
    pub fn go_silent(&self) {
        self.inner.generation.fetch_add(1, SeqCst);
    }

    /// How many watches are open.
    pub fn watches(&self) -> usize {
        self.inner.disturbed.receiver_count()
    }
}

/// A self-signed certificate: what accepts connections with it, and its PEM.
fn certificate(alpn: &[&[u8]]) -> (TlsAcceptor, String) {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()])
        .expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .expect("a usable certificate");
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    (TlsAcceptor::from(Arc::new(config)), certified.cert.pem())
}

async fn connection(stream: tokio::net::TcpStream, acceptor: Option<TlsAcceptor>, inner: Arc<Inner>) {
    let line = net::Line::new(stream, inner.generation.clone());
    let service = service_fn(move |request| answer(request, inner.clone()));
    let server = auto::Builder::new(TokioExecutor::new());
    // A client that goes away in the middle is no failure of the server.
    match acceptor {
        None => _ = server.serve_connection(TokioIo::new(line), service).await,
        Some(acceptor) => {
            let Ok(line) = acceptor.accept(line).await else { return };
            _ = server.serve_connection(TokioIo::new(line), service).await;
        }
    }
}

type Body = UnsyncBoxBody<Bytes, watch::Cut>;

fn whole(code: u16, text: String) -> Response<Body> {
    let body = Full::new(Bytes::from(text)).map_err(|never: Infallible| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).expect("a status");
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
    response
}

fn refused(refusal: Refusal) -> Response<Body> {
    let mut response = whole(refusal.code, refusal.body);
    if let Some(seconds) = refusal.retry_after {
        response.headers_mut().insert(hyper::header::RETRY_AFTER, seconds.into());
    }
    response
}

fn decode(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digits: Vec<u8> = bytes.by_ref().take(2).collect();
                let digits = std::str::from_utf8(&digits).expect("hexadecimal digits");
                out.push(u8::from_str_radix(digits, 16).expect("hexadecimal digits"));
            }
            other => out.push(other),
        }
    }
    String::from_utf8(out).expect("UTF-8")
}

async fn answer(request: Request<Incoming>, inner: Arc<Inner>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let watching =
        request.uri().query().is_some_and(|query| query.split('&').any(|it| it.starts_with("watch=")));
    if let Some(authorizer) = &mut inner.faults.lock().expect("no panic before").authorizer
        && !authorizer.allows(request.method(), &path, watching)
    {
        return Ok(whole(403, recorded("forbidden.json")));
    }
    if let Some((namespace, name)) = events::of_path(&path) {
        return Ok(take_event(request, &inner, namespace, name).await);
    }
    let Some(kind) = Kind::of_path(&path) else {
        return Ok(whole(404, "404 page not found\n".to_owned()));
    };
    let query: BTreeMap<String, String> = request
        .uri()
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), decode(value)))
        .collect();
    let http2 = request.version() == hyper::Version::HTTP_2;
    inner.asked.lock().expect("no panic before").push(Asked { kind, query: query.clone(), http2 });
    let initial = query.get("sendInitialEvents").is_some_and(|value| value == "true");
    {
        let mut faults = inner.faults.lock().expect("no panic before");
        if let Some(token) = &faults.token {
            let given = request.headers().get(hyper::header::AUTHORIZATION);
            if given.and_then(|v| v.to_str().ok()) != Some(&format!("Bearer {token}")) {
                return Ok(whole(401, recorded("unauthorized.json")));
            }
        }
        if let Some(refusal) = faults.next.get_mut(&kind).and_then(VecDeque::pop_front) {
            return Ok(refused(refusal));
        }
        if let Some(refusal) = faults.always.get(&kind) {
            return Ok(refused(refusal.clone()));
        }
        if let Some(refusal) = faults.no_streaming.clone().filter(|_| watching && initial) {
            return Ok(refused(refusal));
        }
    }
    if watching {
        let (sender, body) = Channel::new(16);
        tokio::spawn(watch::watch(sender, inner, kind, query));
        return Ok(Response::new(body.boxed_unsync()));
    }
    Ok(list(&inner, kind, &query))
}

async fn take_event(
    request: Request<Incoming>,
    inner: &Inner,
    namespace: &str,
    name: Option<&str>,
) -> Response<Body> {
    if let Some(refusal) = inner.faults.lock().expect("no panic before").events.clone() {
        return refused(refusal);
    }
    let method = request.method().as_str().to_owned();
    let kind = request.headers().get(hyper::header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let kind = kind.unwrap_or_default().to_owned();
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let mut events = inner.events.lock().expect("no panic before");
    let (code, body) = events.write(&method, namespace, name, &kind, body);
    whole(code, body.to_string())
}

fn selector(query: &BTreeMap<String, String>) -> Selector {
    Selector { labels: query.get("labelSelector").cloned(), fields: query.get("fieldSelector").cloned() }
}

fn list(inner: &Inner, kind: Kind, query: &BTreeMap<String, String>) -> Response<Body> {
    let store = inner.store.lock().expect("no panic before");
    let mut faults = inner.faults.lock().expect("no panic before");
    let number = |key: &str| query.get(key).and_then(|v| v.parse::<u64>().ok());
    if number("resourceVersion").is_some_and(|version| version > store.version()) {
        return whole(504, watch::too_large(store.version()).to_string());
    }
    let limit = number("limit").map_or(usize::MAX, |limit| limit as usize);
    let limit = limit.min(faults.page.unwrap_or(usize::MAX));
    let start = match query.get("continue") {
        None => 0,
        Some(token) => {
            let (version, start) =
                token.strip_suffix("==").and_then(|t| t.split_once('/')).expect("a token of ours");
            let expired = faults.expired_tokens > 0;
            faults.expired_tokens = faults.expired_tokens.saturating_sub(1);
            if expired || version.parse::<u64>().expect("a version") != store.version() {
                return whole(410, watch::expired().to_string());
            }
            start.parse().expect("a place")
        }
    };
    let (page, _) = store.page(kind, &selector(query), start, limit);
    let mut text = page.to_string();
    if faults.half_lists {
        text.truncate(text.len() / 2);
    }
    whole(200, text)
}
