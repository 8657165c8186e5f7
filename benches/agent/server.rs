//! A list/watch server over TLS that costs little: objects are kept as the lines that a watch sends. It knows what
//! the agent asks for where a server sends lists as watch events, and nothing else.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use http_body_util::channel::{Channel, Sender};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// As much as goes into one frame of a first listing.
const CHUNK: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    Services,
    EndpointSlices,
    Nodes,
    ServiceCidrs,
}

impl Resource {
    fn of_path(path: &str) -> Option<(Resource, &'static str, &'static str)> {
        Some(match path {
            "/api/v1/services" => (Resource::Services, "v1", "Service"),
            "/api/v1/nodes" => (Resource::Nodes, "v1", "Node"),
            "/apis/discovery.k8s.io/v1/endpointslices" => {
                (Resource::EndpointSlices, "discovery.k8s.io/v1", "EndpointSlice")
            }
            "/apis/networking.k8s.io/v1/servicecidrs" => {
                (Resource::ServiceCidrs, "networking.k8s.io/v1", "ServiceCIDR")
            }
            _ => return None,
        })
    }
}

#[derive(Default)]
struct Objects {
    lines: Vec<Bytes>,
    places: HashMap<String, usize>,
    watches: Vec<UnboundedSender<Bytes>>,
}

#[derive(Default)]
struct State {
    resources: Mutex<HashMap<Resource, Objects>>,
}

/// The server; it lives as long as its runtime.
pub struct ApiServer {
    state: Arc<State>,
    address: SocketAddr,
    certificate: String,
}

fn line(kind: &str, object: &Value) -> Bytes {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n").into()
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

impl ApiServer {
    /// Listens in the network namespace of the calling thread.
    pub fn start(runtime: &tokio::runtime::Runtime) -> Result<ApiServer> {
        let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let state = Arc::<State>::default();
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = state.clone();
        let _guard = runtime.enter();
        let listener = TcpListener::from_std(listener)?;
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                _ = stream.set_nodelay(true);
                let (acceptor, state) = (acceptor.clone(), shared.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| answer(request, state.clone()));
                    // A client that goes is no failure of the server.
                    _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Ok(ApiServer { state, address, certificate: certified.cert.pem() })
    }

    /// Has these objects, and no others of the resource.
    pub fn load(&self, resource: Resource, objects: impl Iterator<Item = Value>) {
        let mut resources = self.state.resources.lock().expect("no panic before");
        let all = resources.entry(resource).or_default();
        *all = Objects::default();
        for object in objects {
            all.places.insert(name(&object), all.lines.len());
            all.lines.push(line("ADDED", &object));
        }
    }

    /// Changes an object that is there; watches hear of it before this returns, as far as it is up to the server.
    pub fn modify(&self, resource: Resource, object: &Value) {
        self.tell(resource, "MODIFIED", object);
        let mut resources = self.state.resources.lock().expect("no panic before");
        let all = resources.entry(resource).or_default();
        if let Some(place) = all.places.get(&name(object)) {
            all.lines[*place] = line("ADDED", object);
        }
    }

    /// Tells watches that an object was `ADDED`, `MODIFIED`, or `DELETED`; lists do not have it.
    pub fn tell(&self, resource: Resource, event: &str, object: &Value) {
        let mut resources = self.state.resources.lock().expect("no panic before");
        let event = line(event, object);
        resources.entry(resource).or_default().watches.retain(|watch| watch.send(event.clone()).is_ok());
    }

    /// Writes a kubeconfig to this folder.
    pub fn write_kubeconfig(&self, folder: &Path) -> Result<PathBuf> {
        let (ca, config) = (folder.join("ca.crt"), folder.join("kubeconfig"));
        std::fs::write(&ca, &self.certificate)?;
        let server = format!("https://{}", self.address);
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": {"server": server, "certificate-authority": ca}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
        });
        std::fs::write(&config, kubeconfig.to_string()).context("the kubeconfig")?;
        Ok(config)
    }
}

type Body = Channel<Bytes, Infallible>;

async fn answer(request: Request<Incoming>, state: Arc<State>) -> Result<Response<Body>, Infallible> {
    let (sender, body) = Channel::new(16);
    let mut response = Response::new(body);
    let query = request.uri().query().unwrap_or_default();
    match Resource::of_path(request.uri().path()) {
        Some((resource, version, kind)) if query.contains("watch=") => {
            let initial = query.contains("sendInitialEvents=true");
            let (sends, live) = unbounded_channel();
            let lines = {
                let mut resources = state.resources.lock().expect("no panic before");
                let all = resources.entry(resource).or_default();
                all.watches.push(sends);
                if initial { all.lines.clone() } else { Vec::new() }
            };
            let end = json!({"apiVersion": version, "kind": kind, "metadata": {
                "resourceVersion": "5000000", "annotations": {"k8s.io/initial-events-end": "true"}}});
            let end = initial.then(|| line("BOOKMARK", &end));
            tokio::spawn(watch(sender, lines, end, live));
        }
        // Without `watch` it is not asked where streaming lists work.
        _ => *response.status_mut() = StatusCode::NOT_FOUND,
    }
    Ok(response)
}

/// Ends when the client does.
async fn watch(
    mut sender: Sender<Bytes, Infallible>,
    lines: Vec<Bytes>,
    end: Option<Bytes>,
    mut live: UnboundedReceiver<Bytes>,
) {
    let mut chunk = Vec::with_capacity(CHUNK * 2);
    for line in lines.into_iter().chain(end) {
        chunk.extend_from_slice(&line);
        if chunk.len() >= CHUNK && sender.send_data(std::mem::take(&mut chunk).into()).await.is_err() {
            return;
        }
    }
    if !chunk.is_empty() && sender.send_data(chunk.into()).await.is_err() {
        return;
    }
    while let Some(line) = live.recv().await {
        // What has been written together goes together.
        let mut lines = line.to_vec();
        while let Ok(line) = live.try_recv() {
            lines.extend_from_slice(&line);
        }
        if sender.send_data(lines.into()).await.is_err() {
            return;
        }
    }
}
