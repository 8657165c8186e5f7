//! Whether the agent would reach the API server through rules that it makes itself: at the first failure it could not
//! repair them.

use std::net::IpAddr;

use super::{Host, Severity};

const REMEDY: &str = "give the control plane's own address: a kubeconfig as kubeadm's, or --master";

/// Finds an address of the API server that is a Service's.
pub fn through_itself(host: &mut Host<'_>) {
    let Some(address) = host.api else { return };
    let Some(cluster) = host.cluster else { return };
    let owners = cluster.desired.cluster_ip_owners(address);
    if let Some(service) = owners.first() {
        let what = format!(
            "the API server's address {address} is the ClusterIP of Service {}, which is served by the rules that depend \
             on it",
            service.name
        );
        host.find("api-server", Severity::Problem, what, REMEDY);
    } else if is_service_address(host, address) {
        let what = format!("the API server's address {address} is in the range of service addresses");
        host.find("api-server", Severity::Problem, what, REMEDY);
    }
}

fn is_service_address(host: &Host<'_>, address: IpAddr) -> bool {
    host.cluster.is_some_and(|cluster| cluster.index.service_cidrs().any(|cidr| cidr.contains(&address)))
}
