//! The connection: where the API server is, who we are, and how a dead connection is told from a quiet one.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

use super::Timing;
use super::error::ConnectionError;

/// An API server to be asked.
#[derive(Clone)]
pub struct Connection {
    pub(super) client: Client,
    /// The address, for log lines.
    pub(super) url: String,
    /// The host, where it is given as an address.
    pub(super) host: Option<IpAddr>,
}

impl Connection {
    /// Reads `--kubeconfig`, or without it the service account of the pod; `--master` overrides the address. Tokens
    /// and the CA bundle in files are read again every minute. Connects nothing yet.
    pub async fn open(
        kubeconfig: Option<&Path>,
        master: Option<&str>,
        timing: &Timing,
    ) -> Result<Connection, ConnectionError> {
        let master = master.map(parse_url).transpose()?;
        let mut config = match (kubeconfig, &master) {
            (Some(path), _) => from_kubeconfig(path).await?,
            // Outside of a pod the address alone will do, as for kube-proxy: say, that of `kubectl proxy`.
            (None, Some(url)) => Config::incluster().unwrap_or_else(|_| Config::new(url.clone())),
            (None, None) => Config::incluster()?,
        };
        if let Some(url) = master {
            config.cluster_url = url;
        }
        Connection::new(&config, timing)
    }

    /// The client over a configuration.
    pub fn new(config: &Config, timing: &Timing) -> Result<Connection, ConnectionError> {
        if let Some(proxy) = &config.proxy_url {
            return Err(ConnectionError::Proxy(proxy.to_string()));
        }
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(timing.connect));
        // For HTTP/1.1, which has no pings: the kernel finds out that the peer is gone.
        tcp.set_keepalive(Some(timing.ping.max(Duration::from_secs(1))));
        tcp.set_keepalive_interval(Some(Duration::from_secs(5)));
        tcp.set_keepalive_retries(Some(3));
        let tls = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(config.rustls_client_config()?)
            .https_or_http();
        let tls = match &config.tls_server_name {
            Some(name) => {
                let parsed =
                    name.clone().try_into().map_err(|_| ConnectionError::ServerName(name.clone()))?;
                tls.with_server_name_resolver(hyper_rustls::FixedServerNameResolver::new(parsed))
            }
            None => tls,
        };
        // One HTTP/2 connection carries all watches; its pings reach the API server itself through any load
        // balancer that only forwards bytes.
        let https = tls.enable_all_versions().wrap_connector(tcp);
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
        let url = config.cluster_url.to_string();
        let host = config.cluster_url.host().map(|h| h.trim_matches(['[', ']']));
        let host = host.and_then(|h| h.parse::<IpAddr>().ok()).map(|ip| ip.to_canonical());
        let client = Client::new(service, config.default_namespace.clone());
        Ok(Connection { client, url: url.trim_end_matches('/').to_owned(), host })
    }
}

fn parse_url(master: &str) -> Result<http::Uri, ConnectionError> {
    let url = master.parse::<http::Uri>().ok().filter(|u| u.host().is_some());
    url.filter(|u| matches!(u.scheme_str(), Some("http" | "https")))
        .ok_or_else(|| ConnectionError::Master(master.to_owned()))
}

async fn from_kubeconfig(path: &Path) -> Result<Config, ConnectionError> {
    let failed = |source| ConnectionError::Kubeconfig { path: path.display().to_string(), source };
    let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    let authority = authority_file(&kubeconfig);
    let mut config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(failed)?;
    // kube sets this for pods only; with it the file is read again when the CA is replaced.
    config.root_cert_file = authority;
    Ok(config)
}

/// The file with the CA of the current context's cluster; data within the kubeconfig come before a file.
fn authority_file(kubeconfig: &Kubeconfig) -> Option<PathBuf> {
    let current = kubeconfig.current_context.as_ref()?;
    let context = kubeconfig.contexts.iter().find(|c| c.name == *current)?.context.as_ref()?;
    let cluster = kubeconfig.clusters.iter().find(|c| c.name == context.cluster)?.cluster.as_ref()?;
    match &cluster.certificate_authority_data {
        Some(_) => None,
        None => cluster.certificate_authority.as_ref().map(PathBuf::from),
    }
}
