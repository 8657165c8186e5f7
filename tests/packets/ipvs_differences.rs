//! What mode ipvs does differently because IPVS forces it: deploy/IPVS.md tells users of it.

/// `(case, the reason)`. The cases run all the same and have to differ.
pub const IPVS_DIFFERENCES: &[(&str, &str)] = &[
    ("lb-cluster", OTHER_PORTS),
    ("externalip-cluster", OTHER_PORTS),
    ("lb-ip-shared-by-two-services", OTHER_PORTS),
];

const OTHER_PORTS: &str = "the address is the host's: what no Service has there is refused, not passed on";
