//! Talks to the kernel by netlink: raw messages over a socket, nothing that knows what a Service is.
//!
//! ```text
//!   message::Batch  ──  Socket::commit  ──►  one send(), all or nothing; refusals by message
//!   message::Request ── Socket::dump    ──►  every answer to a callback, nothing kept
//!                    └─ Socket::request ──►  one answer
//!   message::Requests ─ Socket::execute ──►  one send(), each by itself; refusals by message
//! ```
//!
//! The kernel processes a request inside the `send` that carries it, so no call here waits for anything
//! but the kernel's own work. Formats are those of `linux/netlink.h` and `linux/netfilter/nfnetlink.h`.

pub mod addresses;
pub mod attribute;
pub mod generic;
pub mod message;
pub mod route;
pub mod socket;
pub mod xtables;

use nix::errno::Errno;

pub use addresses::AddressChanges;
pub use attribute::{Attribute, Attributes, Malformed, Writer};
pub use message::{Batch, Message, Request, Requests};
pub use socket::{Capacities, Socket};

/// Why an exchange with the kernel failed, by stage.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket: the kernel lacks the protocol, or a seccomp filter forbids it.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] Errno),
    /// The socket could not be set up.
    #[error("cannot set netlink socket option {option}: {errno}")]
    Option {
        /// The option's name in the kernel's headers.
        option: &'static str,
        /// What the kernel answered.
        #[source]
        errno: Errno,
    },
    /// The socket could not be bound.
    #[error("cannot bind a netlink socket: {0}")]
    Bind(#[source] Errno),
    /// An attribute outgrew the 65,535 bytes that its length field can say; nothing was sent.
    #[error("a netlink attribute is longer than 65535 bytes")]
    AttributeTooLong,
    /// The message does not fit the socket's send buffer; nothing was sent. A first load can be split.
    #[error("a netlink message of {length} bytes exceeds the send buffer of {capacity} bytes")]
    TooLong {
        /// Bytes of the message.
        length: usize,
        /// Bytes that the socket can send at once.
        capacity: usize,
    },
    /// Sending failed; nothing was changed.
    #[error("cannot send {length} bytes to the kernel: {errno}")]
    Send {
        /// Bytes of the message.
        length: usize,
        /// What the kernel answered.
        #[source]
        errno: Errno,
    },
    /// Receiving failed.
    #[error("cannot receive from the kernel: {0}")]
    Receive(#[source] Errno),
    /// An answer was longer than the receive buffer.
    #[error("an answer of {length} bytes was cut off at {capacity}")]
    Truncated {
        /// Bytes of the answer.
        length: usize,
        /// Bytes of the buffer.
        capacity: usize,
    },
    /// An answer does not have the form that the kernel's headers describe.
    #[error("the kernel's answer is malformed")]
    Malformed(#[from] Malformed),
    /// Somebody committed while a dump ran (`NLM_F_DUMP_INTR`, `EINTR`) or answers were lost (`ENOBUFS`): what
    /// was seen so far is no consistent state. Ask again.
    #[error("the dump was interrupted by a change")]
    Interrupted,
    /// Another program committed since the generation that the batch was made for (`ERESTART`); nothing was changed.
    #[error("the ruleset changed since it was looked at")]
    Stale,
    /// The kernel refused a request or a dump.
    #[error("the kernel refused the request: {0}")]
    Request(#[source] Errno),
    /// The kernel refused a batch; nothing of it was applied.
    #[error("the kernel refused {} of a batch's messages, the first with {}", .0.len(), .0.first().map_or("no error", |r| r.errno.desc()))]
    Refused(Vec<Refusal>),
}

impl Error {
    /// What the kernel answered, where the error is about that.
    pub fn errnos(&self) -> Vec<Errno> {
        match self {
            Error::Refused(refused) => refused.iter().map(|refusal| refusal.errno).collect(),
            Error::Open(errno)
            | Error::Option { errno, .. }
            | Error::Bind(errno)
            | Error::Send { errno, .. }
            | Error::Receive(errno)
            | Error::Request(errno) => vec![*errno],
            Error::AttributeTooLong
            | Error::TooLong { .. }
            | Error::Truncated { .. }
            | Error::Malformed(_)
            | Error::Interrupted
            | Error::Stale => Vec::new(),
        }
    }
}

/// One message of a batch that the kernel refused. A batch can have several: the kernel goes on looking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the kernel answered.
    pub errno: Errno,
    /// Index of the message in its batch; `None` where the batch as a whole was refused (validation at commit).
    pub message: Option<usize>,
    /// The extended ack's offset of the attribute at fault, in bytes from the start of the message.
    pub offset: Option<usize>,
    /// The extended ack's text. For display only: it changes between kernels.
    pub text: Option<String>,
}
