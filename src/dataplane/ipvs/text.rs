//! Steps as lines that `ipvsadm -R` takes; those about the device are `ip` commands, as comments, those about ARP nft's.

use std::fmt;
use std::net::SocketAddr;

use super::arp;
use super::model::{DEVICE, FALLBACK, Key, OURS, PORT, Step, Timeouts, VirtualService};
use super::plan::Plan;
use crate::cluster::{Protocol, Scheduler};

/// How `ipvsadm` names a virtual service: `-t 10.96.0.10:80`.
struct Named<'a>(&'a Key);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let option = match self.0.protocol {
            Protocol::Tcp => "-t",
            Protocol::Udp => "-u",
            Protocol::Sctp => "--sctp-service",
        };
        write!(f, "{option} {}", SocketAddr::new(self.0.address, self.0.port))
    }
}

impl fmt::Display for VirtualService {
    /// As options of `ipvsadm`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "-s {}", self.scheduler)?;
        if let Some(seconds) = self.persistence {
            write!(f, " -p {seconds}")?;
        }
        let names = match self.scheduler {
            Scheduler::Sh => ["sh-fallback", "sh-port", "flag-3"],
            Scheduler::Mh => ["mh-fallback", "mh-port", "flag-3"],
            _ => ["flag-1", "flag-2", "flag-3"],
        };
        let flags =
            [FALLBACK, PORT, OURS].into_iter().zip(names).filter(|(flag, _)| self.flags() & flag != 0);
        write!(f, " -b {}", flags.map(|(_, name)| name).collect::<Vec<_>>().join(","))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::AddArpTable => f.write_str(arp::TEXT),
            Step::DeleteArpTable => f.write_str("delete table arp sluice"),
            Step::AddDevice => write!(f, "# ip link add {DEVICE} type dummy"),
            Step::DeleteDevice => write!(f, "# ip link delete {DEVICE}"),
            Step::AddAddress(address) => {
                if address.is_ipv4() {
                    writeln!(f, "add element arp sluice ipvs-addresses {{ {address} }}")?;
                }
                write!(f, "# ip address add {address} dev {DEVICE}")
            }
            Step::DeleteAddress(address) => {
                let length = if address.is_ipv4() { 32 } else { 128 };
                write!(f, "# ip address delete {address}/{length} dev {DEVICE}")?;
                if address.is_ipv4() {
                    write!(f, "\ndelete element arp sluice ipvs-addresses {{ {address} }}")?;
                }
                Ok(())
            }
            Step::AddService(key, service) => write!(f, "-A {} {service}", Named(key)),
            Step::SetService(key, service) => write!(f, "-E {} {service}", Named(key)),
            Step::DeleteService(key) => write!(f, "-D {}", Named(key)),
            Step::AddDestination(key, to, weight) => write!(f, "-a {} -r {to} -m -w {weight}", Named(key)),
            Step::SetWeight(key, to, weight) => write!(f, "-e {} -r {to} -m -w {weight}", Named(key)),
            Step::DeleteDestination(key, to) => write!(f, "-d {} -r {to}", Named(key)),
            Step::SetTimeouts(Timeouts { tcp, tcp_fin, udp }) => write!(f, "--set {tcp} {tcp_fin} {udp}"),
        }
    }
}

impl fmt::Display for Plan {
    /// In the order in which it is done.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.before.iter().try_for_each(|step| writeln!(f, "{step}"))?;
        write!(f, "{}", self.tables)?;
        self.after.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}
