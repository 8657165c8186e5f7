//! The connection: where the API server is, who we are, and how a dead connection is told from a quiet one.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::Uri;
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connection as Connected, HttpConnector};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ConfigExt};
use kube::config::{Cluster, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};
use tracing::debug;

use super::Timing;
use super::error::ConnectionError;

/// How soon after it was tried last a connection may be made from its files again.
const RENEW: Duration = Duration::from_secs(4);

/// An API server to be asked.
pub struct Connection {
    /// Where the address and the credentials come from.
    kubeconfig: Option<PathBuf>,
    master: Option<Uri>,
    timing: Timing,
    /// What they said last, and when that was.
    current: Mutex<(Arc<Current>, Instant)>,
}

/// A way to the API server.
pub(super) struct Current {
    pub(super) client: Client,
    /// The address, for log lines.
    pub(super) url: String,
    /// The host, where it is given as an address.
    pub(super) host: Option<IpAddr>,
}

impl Connection {
    /// Reads `--kubeconfig`, or without it the service account of the pod; `--master` overrides the address. Tokens
    /// and the CA bundle in files are read again every minute, everything after a failure. Connects nothing yet.
    pub async fn open(
        kubeconfig: Option<&Path>,
        master: Option<&str>,
        timing: &Timing,
    ) -> Result<Connection, ConnectionError> {
        let master = master.map(parse_url).transpose()?;
        let current = read(kubeconfig, master.as_ref(), timing).await?;
        Ok(Connection {
            kubeconfig: kubeconfig.map(Path::to_owned),
            master,
            timing: timing.clone(),
            current: Mutex::new((Arc::new(current), Instant::now())),
        })
    }

    /// The way as it is known now.
    pub(super) fn current(&self) -> Arc<Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// The API server's host, where it is given as an address.
    pub fn address(&self) -> Option<IpAddr> {
        self.current().host
    }

    /// Reads address and credentials again: a refusal or a broken handshake may mean that they were replaced. What
    /// cannot be read now changes nothing.
    pub(super) async fn renew(&self) {
        {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            if current.1.elapsed() < RENEW.min(self.timing.retry_unanswered) {
                return;
            }
            current.1 = Instant::now();
        }
        match read(self.kubeconfig.as_deref(), self.master.as_ref(), &self.timing).await {
            Ok(renewed) => {
                self.current.lock().unwrap_or_else(PoisonError::into_inner).0 = Arc::new(renewed);
            }
            Err(error) => debug!(%error, "the credentials cannot be read again; those known before are used"),
        }
    }
}

async fn read(
    kubeconfig: Option<&Path>,
    master: Option<&Uri>,
    timing: &Timing,
) -> Result<Current, ConnectionError> {
    let mut config = match (kubeconfig, master) {
        (Some(path), _) => from_kubeconfig(path).await?,
        // Outside of a pod the address alone will do, as for kube-proxy: say, that of `kubectl proxy`.
        (None, Some(url)) => Config::incluster().unwrap_or_else(|_| Config::new(url.clone())),
        (None, None) => Config::incluster()?,
    };
    if let Some(url) = master {
        config.cluster_url = url.clone();
    }
    let url = config.cluster_url.to_string();
    let host = config.cluster_url.host().map(|h| h.trim_matches(['[', ']']));
    let host = host.and_then(|h| h.parse::<IpAddr>().ok()).map(|ip| ip.to_canonical());
    let client = connect(&config, timing)?;
    Ok(Current { client, url: url.trim_end_matches('/').to_owned(), host })
}

/// The client over a configuration, through a proxy where there is to be one.
fn connect(config: &Config, timing: &Timing) -> Result<Client, ConnectionError> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(timing.connect));
    // For HTTP/1.1, which has no pings: the kernel finds out that the peer is gone.
    tcp.set_keepalive(Some(timing.ping.max(Duration::from_secs(1))));
    tcp.set_keepalive_interval(Some(Duration::from_secs(5)));
    tcp.set_keepalive_retries(Some(3));
    // That of the kubeconfig comes before the environment's, as with client-go.
    let matcher = match &config.proxy_url {
        Some(url) => Matcher::builder().all(url.to_string()).build(),
        None => Matcher::from_env(),
    };
    let Some(proxy) = matcher.intercept(&config.cluster_url) else { return client(config, timing, tcp) };
    match proxy.uri().scheme_str() {
        Some("http") => {
            let tunnel = Tunnel::new(proxy.uri().clone(), tcp);
            let auth = proxy.basic_auth().cloned();
            client(config, timing, auth.into_iter().fold(tunnel, Tunnel::with_auth))
        }
        Some("socks5" | "socks5h") => {
            let socks = SocksV5::new(proxy.uri().clone(), tcp);
            let auth = proxy.raw_auth().map(|(user, password)| (user.to_owned(), password.to_owned()));
            client(config, timing, auth.into_iter().fold(socks, |s, (u, p)| s.with_auth(u, p)))
        }
        _ => Err(ConnectionError::Proxy(proxy.uri().to_string())),
    }
}

/// The client over a connector.
fn client<C>(config: &Config, timing: &Timing, connector: C) -> Result<Client, ConnectionError>
where
    C: tower::Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: Connected + Read + Write + Send + Unpin + 'static,
    C::Future: Send + 'static,
    C::Error: Into<BoxError>,
{
    let tls = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(config.rustls_client_config()?)
        .https_or_http();
    let tls = match &config.tls_server_name {
        Some(name) => {
            let parsed = name.clone().try_into().map_err(|_| ConnectionError::ServerName(name.clone()))?;
            tls.with_server_name_resolver(hyper_rustls::FixedServerNameResolver::new(parsed))
        }
        None => tls,
    };
    // One HTTP/2 connection carries all watches; its pings reach the API server itself through any load
    // balancer that only forwards bytes.
    let https = tls.enable_all_versions().wrap_connector(connector);
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(timing.ping)
        .http2_keep_alive_timeout(timing.ping)
        .http2_keep_alive_while_idle(true)
        // A watch that waits for the reconcile loop must not starve the others of the connection's window.
        .http2_initial_stream_window_size(1 << 20)
        .http2_initial_connection_window_size(1 << 23)
        .build(https);
    // Not kube's own stack: that logs every failure as an error and repeats requests behind our back.
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace.clone()))
}

fn parse_url(master: &str) -> Result<Uri, ConnectionError> {
    let url = master.parse::<Uri>().ok().filter(|u| u.host().is_some());
    url.filter(|u| matches!(u.scheme_str(), Some("http" | "https")))
        .ok_or_else(|| ConnectionError::Master(master.to_owned()))
}

async fn from_kubeconfig(path: &Path) -> Result<Config, ConnectionError> {
    let failed = |source| ConnectionError::Kubeconfig { path: path.display().to_string(), source };
    let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    let authority = current_cluster(&kubeconfig).and_then(authority_file);
    let proxy = current_cluster(&kubeconfig).and_then(|c| c.proxy_url.clone()).filter(|url| !url.is_empty());
    let proxy =
        proxy.map(|url| url.parse().map_err(KubeconfigError::ParseProxyUrl)).transpose().map_err(failed)?;
    let mut config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(failed)?;
    // kube sets this for pods only; with it the file is read again when the CA is replaced.
    config.root_cert_file = authority;
    // kube mixes the environment in, and asks NO_PROXY about the proxy instead of the API server.
    config.proxy_url = proxy;
    Ok(config)
}

/// The cluster of the current context.
fn current_cluster(kubeconfig: &Kubeconfig) -> Option<&Cluster> {
    let current = kubeconfig.current_context.as_ref()?;
    let context = kubeconfig.contexts.iter().find(|c| c.name == *current)?.context.as_ref()?;
    kubeconfig.clusters.iter().find(|c| c.name == context.cluster)?.cluster.as_ref()
}

/// The file with a cluster's CA; data within the kubeconfig come before a file.
fn authority_file(cluster: &Cluster) -> Option<PathBuf> {
    match &cluster.certificate_authority_data {
        Some(_) => None,
        None => cluster.certificate_authority.as_ref().map(PathBuf::from),
    }
}
