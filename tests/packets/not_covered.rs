//! What the agent does not meet yet, with what it lacks. These are run all the same and counted at the end; what
//! passes is named there and has to leave this list.

/// `(case or scenario, what is missing)`.
pub const NOT_COVERED: &[(&str, &str)] = &[
    ("clusterip-affinity", AFFINITY),
    ("clusterip-affinity-per-client", AFFINITY),
    ("nodeport-affinity", AFFINITY),
    ("nodeport-local-affinity", AFFINITY),
    ("affinity-per-port", AFFINITY),
    ("affinity-expires", AFFINITY),
    ("udp-flow-endpoint-removed", CONNTRACK),
    ("udp-flow-nodeport-endpoint-removed", CONNTRACK),
    ("udp-flow-started-before-service", CONNTRACK),
    ("udp-flow-service-deleted", CONNTRACK),
    ("udp-flow-port-changed", CONNTRACK),
    ("udp-flow-to-terminating-endpoint", CONNTRACK),
    ("syn-to-dead-endpoint", CONNTRACK),
    ("ruleset-flushed", "noticing that somebody else changed the rules"),
];

/// Why HTTP checks do not count yet. The packets of cases that have such checks do.
pub const HTTP_CHECKS: Option<&str> = Some("health checks and metrics");

const AFFINITY: &str = "session affinity";
const CONNTRACK: &str = "conntrack entries of what went";
