//! What can go wrong with the API server, and what an operator does about it.

use std::time::Duration;

use super::resource::Resource;

/// Why there is no connection to be had.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// `--kubeconfig` cannot be read or makes no sense.
    #[error("--kubeconfig {path}: {source}")]
    Kubeconfig {
        /// The path as it was given.
        path: String,
        /// What is wrong.
        source: kube::config::KubeconfigError,
    },
    /// There is no kubeconfig, and this is no pod.
    #[error("neither --manifests nor --kubeconfig is given, and this is no pod with a service account: {0}")]
    InCluster(#[from] kube::config::InClusterError),
    /// `--master` is no URL.
    #[error("--master {0:?} is not a URL such as https://192.168.0.10:6443")]
    Master(String),
    /// `proxy-url` of the kubeconfig, or the environment, asks for a proxy of another kind.
    #[error(
        "the API server cannot be reached through the proxy {0}: proxies can be http:// and socks5:// ones; \
         change proxy-url of the kubeconfig, or HTTPS_PROXY, or name the API server's host in NO_PROXY"
    )]
    Proxy(String),
    /// Certificates, keys or credentials cannot be used.
    #[error("credentials or certificates cannot be used: {0}")]
    Credentials(#[from] kube::Error),
    /// `tls-server-name` of the kubeconfig is no host name.
    #[error("tls-server-name {0:?} is not a host name")]
    ServerName(String),
}

/// Why a request or a watch failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No connection, or it broke.
    #[error("{0}")]
    Connection(String),
    /// Nothing came for this long.
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The API server refused.
    #[error("{code} {reason}: {message}")]
    Status {
        /// The HTTP status, or the code of an event of type ERROR.
        code: u16,
        /// `reason` of the Status, as `Forbidden`.
        reason: String,
        /// `message` of the Status.
        message: String,
        /// The header Retry-After.
        retry_after: Option<Duration>,
    },
    /// What came is not what an API server sends.
    #[error("the answer makes no sense: {0}")]
    Garbage(String),
    /// A list that was to come as watch events did not come to its end.
    #[error("the list was cut short")]
    Incomplete,
    /// The API server closed a watch at once, without a reason.
    #[error("watches are closed at once")]
    Closed,
}

impl Error {
    /// Nobody answered, so that asking again soon burdens nobody.
    pub(super) fn is_unanswered(&self) -> bool {
        matches!(self, Error::Connection(_) | Error::Silent(_))
    }

    /// The code of a refusal.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Error::Status { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// The version asked for is no longer there: everything must be listed again. 410 is also the answer to an
    /// expired continue token.
    pub(super) fn is_expired(&self) -> bool {
        match self {
            Error::Status { code, reason, .. } => {
                *code == 410 || matches!(reason.as_str(), "Expired" | "Gone" | "ResourceVersionTooLarge")
            }
            _ => false,
        }
    }

    /// A refusal of the question itself, as of parameters that an older server does not know.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self.code(), Some(400 | 405 | 406 | 415 | 422 | 501))
    }

    /// What to do, for a log line.
    pub(super) fn remedy(&self, resource: &Resource) -> String {
        match self {
            Error::Connection(_) | Error::Silent(_) => {
                "check that the API server runs and can be reached at this address".to_owned()
            }
            Error::Status { code: 401, .. } => {
                "the credentials are not accepted: check the token or the client certificate".to_owned()
            }
            Error::Status { code: 403, .. } => format!(
                "the ClusterRole needs the rule {{apiGroups: [{:?}], resources: [{:?}], verbs: [\"list\", \"watch\"]}}",
                resource.group(),
                resource.name()
            ),
            Error::Status { code: 404, .. } => {
                "check that the address is that of a Kubernetes API server of release 1.21 or newer"
                    .to_owned()
            }
            Error::Status { code: 429, .. } => {
                "the API server is overloaded; it is asked less often".to_owned()
            }
            Error::Status { .. } => "look into the API server's log".to_owned(),
            Error::Garbage(_) | Error::Incomplete | Error::Closed => {
                "look whether a proxy or a load balancer before the API server is to blame".to_owned()
            }
        }
    }
}

/// An error with all its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
