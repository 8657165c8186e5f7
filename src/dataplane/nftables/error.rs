//! Why rules could not be read or written.

use nix::errno::Errno;

use super::encode::Refused;
use crate::netlink;

/// Why rules could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel lets only those with `CAP_NET_ADMIN` read or write rules.
    #[error("the kernel refuses to show or change rules (EPERM): this needs root, or CAP_NET_ADMIN")]
    NotPermitted,
    /// The kernel could not be talked to.
    #[error(transparent)]
    Netlink(netlink::Error),
    /// The kernel refused steps of a plan; nothing was changed.
    #[error("{}{}", .0.first().map_or_else(String::new, Refused::to_string), more(.0))]
    Refused(Vec<Refused>),
}

impl From<netlink::Error> for Error {
    fn from(error: netlink::Error) -> Error {
        let permitted = |r: &netlink::Refusal| r.errno != Errno::EPERM;
        match &error {
            netlink::Error::Request(Errno::EPERM) | netlink::Error::Send { errno: Errno::EPERM, .. } => {
                Error::NotPermitted
            }
            netlink::Error::Refused(refusals) if !refusals.iter().all(permitted) => Error::NotPermitted,
            _ => Error::Netlink(error),
        }
    }
}

fn more(refused: &[Refused]) -> String {
    match refused.len() {
        0 | 1 => String::new(),
        n => format!(" (and {} more)", n - 1),
    }
}

impl Error {
    /// What the kernel answered, where the error is about that.
    pub(in crate::dataplane) fn errnos(&self) -> Vec<Errno> {
        match self {
            Error::NotPermitted => vec![Errno::EPERM],
            Error::Refused(refused) => refused.iter().map(|r| r.errno).collect(),
            Error::Netlink(error) => error.errnos(),
        }
    }
}
