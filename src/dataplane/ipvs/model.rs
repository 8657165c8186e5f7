//! The nouns of the IPVS data plane, as plain values.

use std::net::{IpAddr, SocketAddr};

use rustc_hash::FxHashMap;

use crate::cluster::Scheduler;
pub use crate::forwarding::Key;
use crate::forwarding::{Frontend, Target};

/// The dummy device that holds service addresses, by kube-proxy's name: IPVS only sees packets for addresses of this
/// host. It stays down, and so does not take part in anything else.
pub const DEVICE: &str = "kube-ipvs0";

/// `IP_VS_SVC_F_PERSISTENT`.
pub const PERSISTENT: u32 = 0x1;
/// `IP_VS_SVC_F_HASHED`, which the kernel sets.
pub const HASHED: u32 = 0x2;
/// `IP_VS_SVC_F_SCHED1`: with sh and mh, a client whose endpoint takes no connections goes to another.
pub const FALLBACK: u32 = 0x8;
/// `IP_VS_SVC_F_SCHED2`: with mh, the client's port counts, too. As kube-proxy.
pub const PORT: u32 = 0x10;
/// `IP_VS_SVC_F_SCHED3`, which no scheduler has a meaning for: the mark of virtual services that sluice made. They are
/// known by it after a restart, whatever became of everything else.
pub const OURS: u32 = 0x20;

/// A virtual service, without its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualService {
    /// How it chooses.
    pub scheduler: Scheduler,
    /// Session affinity: how long a client is remembered, in seconds.
    pub persistence: Option<u32>,
}

impl VirtualService {
    /// The kernel's flags.
    pub fn flags(&self) -> u32 {
        let scheduler = match self.scheduler {
            Scheduler::Sh => FALLBACK,
            Scheduler::Mh => FALLBACK | PORT,
            _ => 0,
        };
        let persistent = if self.persistence.is_some() { PERSISTENT } else { 0 };
        OURS | scheduler | persistent
    }

    /// The weight of an endpoint that takes connections.
    pub fn weight(&self) -> u32 {
        match self.scheduler {
            // Here it is the number of connections from which on an endpoint is passed over, and past the last
            // endpoint nothing is served.
            Scheduler::Ovf => 65_535,
            _ => 1,
        }
    }
}

/// What IPVS is to do for a frontend; `None` where it has nothing to do: where nobody answers.
pub fn virtual_service(frontend: &Frontend, default: Scheduler) -> Option<(VirtualService, &Target)> {
    let target = frontend.outside.as_ref().unwrap_or(&frontend.inside);
    let persistence = match target {
        Target::Endpoints(_) => None,
        Target::Sticky(sticky) => Some(sticky.timeout),
        Target::Refuse | Target::Drop => return None,
    };
    Some((VirtualService { scheduler: frontend.scheduler.unwrap_or(default), persistence }, target))
}

/// A destination as the kernel has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Destination {
    /// 0: it gets no new connections.
    pub weight: u32,
    /// `IP_VS_CONN_F_*`; 0: the address is translated.
    pub forwarding: u32,
    /// Connections that are established.
    pub active: u32,
    /// Other connections that are remembered.
    pub inactive: u32,
}

/// A virtual service as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedService {
    /// The scheduler's name; empty where there is none.
    pub scheduler: String,
    /// `IP_VS_SVC_F_*`.
    pub flags: u32,
    /// How long a client is remembered, in seconds.
    pub timeout: u32,
    /// Bytes of the mask by which clients are told apart, as the kernel gives them.
    pub netmask: u32,
    /// Its statistics.
    pub statistics: Statistics,
    /// Its destinations, where they were read.
    pub destinations: FxHashMap<SocketAddr, Destination>,
}

/// What a virtual service has carried since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Connections.
    pub connections: u64,
    /// Packets from clients.
    pub packets_in: u64,
    /// Packets to clients; 0 where they do not come back this way.
    pub packets_out: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
}

impl Statistics {
    /// What came since then; all of it, where it was made anew meanwhile.
    pub fn since(self, before: Statistics) -> Statistics {
        let Statistics { connections, packets_in, packets_out, bytes_in, bytes_out } = before;
        let less = |now: u64, before: u64| now.checked_sub(before);
        let difference = || {
            Some(Statistics {
                connections: less(self.connections, connections)?,
                packets_in: less(self.packets_in, packets_in)?,
                packets_out: less(self.packets_out, packets_out)?,
                bytes_in: less(self.bytes_in, bytes_in)?,
                bytes_out: less(self.bytes_out, bytes_out)?,
            })
        };
        difference().unwrap_or(self)
    }

    /// Adds another's.
    pub fn add(&mut self, other: Statistics) {
        self.connections += other.connections;
        self.packets_in += other.packets_in;
        self.packets_out += other.packets_out;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
    }
}

impl ObservedService {
    /// Whether sluice made it.
    pub fn is_ours(&self) -> bool {
        self.flags & OURS != 0
    }

    /// Whether it is what it should be, but for its destinations.
    pub fn is(&self, key: &Key, wanted: &VirtualService) -> bool {
        self.scheduler == wanted.scheduler.name()
            && self.flags & !HASHED == wanted.flags()
            && wanted.persistence.is_none_or(|timeout| timeout == self.timeout)
            && self.netmask == netmask(key.address)
    }
}

/// The mask under which each client is one: of IPv6 the length of the prefix.
pub fn netmask(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(_) => u32::MAX,
        IpAddr::V6(_) => 128,
    }
}

/// Timeouts of connections in seconds; 0: as the kernel has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Of TCP.
    pub tcp: u32,
    /// Of TCP after a FIN.
    pub tcp_fin: u32,
    /// Of UDP.
    pub udp: u32,
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the table `arp sluice` anew, without addresses.
    AddArpTable,
    /// Delete it.
    DeleteArpTable,
    /// Make the device.
    AddDevice,
    /// Delete it with its addresses.
    DeleteDevice,
    /// Give the device an address; before, one of IPv4 goes into the table for ARP. Both may have it.
    AddAddress(IpAddr),
    /// Take one away from both.
    DeleteAddress(IpAddr),
    /// Make a virtual service without destinations.
    AddService(Key, VirtualService),
    /// Change scheduler, flags, timeout; destinations stay.
    SetService(Key, VirtualService),
    /// Delete a virtual service with its destinations; connections through it end.
    DeleteService(Key),
    /// Add a destination with this weight.
    AddDestination(Key, SocketAddr, u32),
    /// Change a weight; with 0 connections stay and no new ones come.
    SetWeight(Key, SocketAddr, u32),
    /// Delete a destination; connections to it end.
    DeleteDestination(Key, SocketAddr),
    /// Set timeouts.
    SetTimeouts(Timeouts),
}
