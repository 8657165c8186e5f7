//! IPVS and the device of its addresses, read and written.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use nix::errno::Errno;
use rustc_hash::{FxHashMap, FxHashSet};

use super::Error;
use super::arp::{self, Arp};
use super::model::{DEVICE, Destination, Key, ObservedService, Step, Timeouts};
use super::uapi::*;
use super::{decode, encode};
use crate::cluster::Protocol;
use crate::netlink::route::{self, Device};
use crate::netlink::{self, Request, Requests, Socket, generic};

/// Bytes of requests that are sent at once. The kernel does them one by one anyway.
const CHUNK: usize = 1 << 20;

/// What was read back of IPVS and its device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Whether there is the device.
    pub device: bool,
    /// Its addresses.
    pub held: FxHashSet<IpAddr>,
    /// The addresses of all other devices.
    pub host: FxHashSet<IpAddr>,
    /// Every virtual service, whoever made it; not those that go by fwmark.
    pub services: FxHashMap<Key, ObservedService>,
    /// Timeouts of connections.
    pub timeouts: Timeouts,
    /// The table for ARP.
    pub arp: arp::Observed,
}

/// A step that was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused<'a> {
    /// The kernel lacks the scheduler.
    Lacks(&'a Step),
    /// The kernel takes no such address.
    Odd(&'a Step, Errno),
}

/// Sockets to IPVS and to the network devices of one network namespace.
#[derive(Debug)]
pub struct Kernel {
    ipvs: Socket,
    route: Socket,
    arp: Arp,
    /// IPVS's number in generic netlink.
    family: u16,
    ipv6: bool,
}

impl Kernel {
    /// Opens sockets in the network namespace of the calling thread, and has the kernel load IPVS where that is a
    /// module.
    ///
    /// # Errors
    /// [`Error::NoIpvs`] where the kernel has no IPVS.
    pub fn open() -> Result<Kernel, Error> {
        let mut ipvs = Socket::open_generic()?;
        let family = generic::family(&mut ipvs, IPVS_GENL_NAME)?.ok_or(Error::NoIpvs)?;
        let ipv6 = has_ipv6(&mut ipvs, family)?;
        Ok(Kernel { ipvs, route: Socket::open_route()?, arp: Arp::open()?, family, ipv6 })
    }

    /// Whether IPv6 can be served, as far as was seen until now.
    pub fn ipv6(&self) -> bool {
        self.ipv6
    }

    /// The device, if it is there.
    ///
    /// # Errors
    /// [`Error::OtherDevice`] where one of another kind has its name.
    pub fn device(&mut self) -> Result<Option<Device>, Error> {
        device(&mut self.route)
    }

    /// Reads everything.
    pub fn observe(&mut self) -> Result<Observed, Error> {
        let device = self.device()?.map(|device| device.index);
        let mut observed = Observed { device: device.is_some(), ..Observed::default() };
        route::addresses(&mut self.route, |index, address| {
            if Some(index) == device { &mut observed.held } else { &mut observed.host }.insert(address);
        })?;
        observed.arp = self.arp.observe(&observed.held)?;
        observed.services = self.all_services()?;
        for (key, service) in &mut observed.services {
            service.destinations = self.destinations(key)?;
        }
        let request = Request::get_generic(self.family, IPVS_CMD_GET_CONFIG);
        observed.timeouts = self.ipvs.request(&request, |message| decode::timeouts(&message))?;
        Ok(observed)
    }

    /// Whether the table for ARP is as it should be, but for its addresses.
    pub fn guards_arp(&mut self) -> Result<bool, Error> {
        self.arp.is_right()
    }

    /// How often nf_tables were written since somebody last asked.
    pub fn take_commits(&mut self) -> u32 {
        self.arp.take_commits()
    }

    /// Every virtual service, read twice. The kernel gives a page at a time, goes on by counting, those of other network
    /// namespaces included, and does not say that anything changed: what comes or goes meanwhile makes it leave out another.
    fn all_services(&mut self) -> Result<FxHashMap<Key, ObservedService>, Error> {
        let before = self.services()?;
        let now = self.services()?;
        let same = before.len() == now.len() && now.keys().all(|key| before.contains_key(key));
        if same { Ok(now) } else { Err(netlink::Error::Interrupted.into()) }
    }

    /// Bytes that were sent, and received.
    pub fn traffic(&self) -> [u64; 2] {
        let all = [self.ipvs.traffic(), self.route.traffic(), self.arp.traffic()];
        [0, 1].map(|direction| all.iter().map(|bytes| bytes[direction]).sum())
    }

    /// Every virtual service, without its destinations.
    pub fn services(&mut self) -> Result<FxHashMap<Key, ObservedService>, Error> {
        let mut services = FxHashMap::default();
        let request = Request::dump_generic(self.family, IPVS_CMD_GET_SERVICE);
        self.ipvs.dump(&request, |message| -> Result<(), Error> {
            services.extend(decode::service(&message)?);
            Ok(())
        })?;
        Ok(services)
    }

    /// The destinations of a virtual service; none where it went.
    pub fn destinations(&mut self, key: &Key) -> Result<FxHashMap<SocketAddr, Destination>, Error> {
        let mut destinations = FxHashMap::default();
        let mut request = Request::dump_generic(self.family, IPVS_CMD_GET_DEST);
        request.nested(IPVS_CMD_ATTR_SERVICE, |w| encode::write_key(w, key));
        self.ipvs.dump(&request, |message| -> Result<(), Error> {
            let (address, destination) = decode::destination(&message)?;
            destinations.insert(address, destination);
            Ok(())
        })?;
        Ok(destinations)
    }

    /// Takes steps in their order. What is to be deleted and is not there is no error. Neither is what the kernel refuses
    /// for what it is, and not for what there is; those steps come back, and the others are taken.
    ///
    /// # Errors
    /// With the first step that the kernel refused; others may have been taken.
    pub fn execute<'a>(&mut self, steps: &'a [Step]) -> Result<Vec<Refused<'a>>, Error> {
        let mut refused = Vec::new();
        for run in steps.chunk_by(|a, b| Class::of(a) == Class::of(b)) {
            match Class::of(&run[0]) {
                Class::Service | Class::Destination => refused.extend(self.change(run)?),
                Class::Address => refused.extend(self.change_addresses(run)?),
                Class::Device => run.iter().try_for_each(|step| self.change_device(step))?,
            }
        }
        Ok(refused)
    }

    fn change<'a>(&mut self, steps: &'a [Step]) -> Result<Vec<Refused<'a>>, Error> {
        let mut refused = Vec::new();
        let mut requests = Requests::default();
        let mut start = 0;
        for (index, step) in steps.iter().enumerate() {
            encode::encode(&mut requests, self.family, step);
            if requests.len() < CHUNK && index + 1 < steps.len() {
                continue;
            }
            let sent = &steps[start..=index];
            for refusal in self.ipvs.execute(&mut requests)? {
                let step = refusal.message.and_then(|message| sent.get(message));
                match (step, refusal.errno) {
                    (Some(step @ (Step::AddService(..) | Step::SetService(..))), Errno::ENOENT) => {
                        refused.push(Refused::Lacks(step));
                    }
                    // Neither this host's nor a usual one: the broadcast address of a subnet.
                    (Some(step @ Step::AddDestination(..)), Errno::EINVAL) => {
                        refused.push(Refused::Odd(step, refusal.errno));
                    }
                    // More than INT_MAX / HZ: 24 days where HZ is 1000.
                    (Some(step @ Step::SetTimeouts(_)), Errno::EINVAL) => {
                        refused.push(Refused::Odd(step, refusal.errno));
                    }
                    (
                        Some(Step::DeleteService(_) | Step::DeleteDestination(..)),
                        Errno::ESRCH | Errno::ENOENT,
                    ) => {}
                    (step, errno) => return Err(Error::refused(step, errno)),
                }
            }
            requests.clear();
            start = index + 1;
        }
        Ok(refused)
    }

    fn change_addresses<'a>(&mut self, steps: &'a [Step]) -> Result<Vec<Refused<'a>>, Error> {
        let mut refused = Vec::new();
        let Some(Device { index, .. }) = self.device()? else { return Err(Error::DeviceGone) };
        let mut requests = Requests::default();
        let (mut added, mut deleted) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::AddAddress(address) => {
                    route::add_address(&mut requests, index, *address);
                    added.push(*address);
                }
                Step::DeleteAddress(address) => {
                    route::delete_address(&mut requests, index, *address);
                    deleted.push(*address);
                }
                _ => {}
            }
        }
        self.arp.add(&added)?;
        for refusal in self.route.execute(&mut requests)? {
            let step = refusal.message.and_then(|message| steps.get(message));
            match (step, refusal.errno) {
                (Some(Step::DeleteAddress(_)), Errno::EADDRNOTAVAIL) => {}
                // net.ipv6.conf.default.disable_ipv6 is 1.
                (Some(Step::AddAddress(address)), Errno::EACCES) if address.is_ipv6() => self.ipv6 = false,
                (Some(step @ Step::AddAddress(_)), errno @ (Errno::EINVAL | Errno::EADDRNOTAVAIL)) => {
                    refused.push(Refused::Odd(step, errno));
                }
                (step, errno) => return Err(Error::refused(step, errno)),
            }
        }
        self.arp.remove(&deleted)?;
        Ok(refused)
    }

    fn change_device(&mut self, step: &Step) -> Result<(), Error> {
        match step {
            Step::AddArpTable => self.arp.make(),
            Step::DeleteArpTable => self.arp.delete(),
            Step::DeleteDevice => {
                if let Some(device) = self.device()? {
                    route::delete_device(&mut self.route, &device)?;
                }
                Ok(())
            }
            _ => match route::add_dummy(&mut self.route, DEVICE) {
                Err(netlink::Error::Request(Errno::EOPNOTSUPP)) => Err(Error::NoDummy),
                result => Ok(result?),
            },
        }
    }
}

/// Whether the host has IPv6 (`ipv6.disable=1` at boot), and IPVS, too (`CONFIG_IP_VS_IPV6`): without, it does not even
/// look for a virtual service.
fn has_ipv6(ipvs: &mut Socket, family: u16) -> Result<bool, Error> {
    let key = Key { address: Ipv6Addr::LOCALHOST.into(), protocol: Protocol::Tcp, port: 1 };
    let mut request = Request::get_generic(family, IPVS_CMD_GET_SERVICE);
    request.nested(IPVS_CMD_ATTR_SERVICE, |w| encode::write_key(w, &key));
    match ipvs.request(&request, |_| Ok(())) {
        Err(netlink::Error::Request(Errno::EAFNOSUPPORT)) => Ok(false),
        Err(netlink::Error::Request(Errno::ESRCH)) | Ok(()) => {
            Ok(std::path::Path::new("/proc/thread-self/net/if_inet6").exists())
        }
        Err(error) => Err(error.into()),
    }
}

/// The device, if it is there; does not need IPVS.
pub fn device(socket: &mut Socket) -> Result<Option<Device>, Error> {
    match route::device(socket, DEVICE)? {
        Some(device) if device.kind != "dummy" => Err(Error::OtherDevice(device.kind)),
        device => Ok(device),
    }
}

/// What a step is about. Steps of one class that follow each other are sent together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Service,
    Destination,
    Address,
    Device,
}

impl Class {
    fn of(step: &Step) -> Class {
        match step {
            Step::AddService(..) | Step::SetService(..) => Class::Service,
            Step::DeleteService(_)
            | Step::AddDestination(..)
            | Step::SetWeight(..)
            | Step::DeleteDestination(..)
            | Step::SetTimeouts(_) => Class::Destination,
            Step::AddAddress(_) | Step::DeleteAddress(_) => Class::Address,
            Step::AddArpTable | Step::DeleteArpTable | Step::AddDevice | Step::DeleteDevice => Class::Device,
        }
    }
}
