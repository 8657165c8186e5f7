//! What the agent does not meet yet, with what it lacks. These are run all the same and counted at the end; what
//! passes is named there and has to leave this list.

/// `(case or scenario, what is missing)`.
pub const NOT_COVERED: &[(&str, &str)] = &[
    ("udp-flow-endpoint-removed", CONNTRACK),
    ("udp-flow-nodeport-endpoint-removed", CONNTRACK),
    ("udp-flow-started-before-service", CONNTRACK),
    ("udp-flow-service-deleted", CONNTRACK),
    ("udp-flow-port-changed", CONNTRACK),
    ("udp-flow-to-terminating-endpoint", CONNTRACK),
    ("syn-to-dead-endpoint", CONNTRACK),
];

/// Why HTTP checks do not count yet. The packets of cases that have such checks do.
pub const HTTP_CHECKS: Option<&str> = None;

const CONNTRACK: &str = "conntrack entries of what went";
