//! IPVS and its device in memory: takes the same steps as the kernel and refuses what the kernel refuses. For tests.

use nix::errno::Errno;

use super::arp;
use super::kernel::Observed;
use super::model::{Destination, HASHED, ObservedService, Step, VirtualService, netmask};

/// What is there; nothing has connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// As it would be read.
    pub observed: Observed,
}

impl Memory {
    /// Takes one step.
    ///
    /// # Errors
    /// With the kernel's error.
    pub fn take(&mut self, step: &Step) -> Result<(), Errno> {
        let Observed { device, held, services, arp, .. } = &mut self.observed;
        let new = |held: bool| if held { Ok(()) } else { Err(Errno::EEXIST) };
        let found = |found: bool, errno| if found { Ok(()) } else { Err(errno) };
        match step {
            Step::AddArpTable => {
                *arp = arp::Observed { exists: true, right: true, ..arp::Observed::default() };
                Ok(())
            }
            Step::DeleteArpTable => {
                *arp = arp::Observed::default();
                Ok(())
            }
            Step::AddDevice => new(!std::mem::replace(device, true)),
            Step::DeleteDevice => {
                held.clear();
                found(std::mem::take(device), Errno::ENODEV)
            }
            Step::AddAddress(_) | Step::DeleteAddress(_) if !*device => Err(Errno::ENODEV),
            Step::AddAddress(_) if !arp.right => Err(Errno::ENOENT),
            Step::AddAddress(address) => {
                let guarded = address.is_ipv4() && arp.addresses.insert(*address);
                new(held.insert(*address) || guarded)
            }
            Step::DeleteAddress(address) => {
                let guarded = arp.addresses.remove(address);
                found(held.remove(address) || guarded, Errno::EADDRNOTAVAIL)
            }
            Step::AddService(key, service) => {
                let made = ObservedService { netmask: netmask(key.address), ..made(service) };
                new(services.insert(*key, made).is_none())
            }
            Step::SetService(key, service) => {
                let there = services.get_mut(key).ok_or(Errno::ESRCH)?;
                let destinations = std::mem::take(&mut there.destinations);
                *there = ObservedService { netmask: netmask(key.address), destinations, ..made(service) };
                Ok(())
            }
            Step::DeleteService(key) => found(services.remove(key).is_some(), Errno::ESRCH),
            Step::AddDestination(key, destination, weight) => {
                let there = services.get_mut(key).ok_or(Errno::ESRCH)?;
                let added = Destination { weight: *weight, ..Destination::default() };
                new(there.destinations.insert(*destination, added).is_none())
            }
            Step::SetWeight(key, destination, weight) => {
                let there = services.get_mut(key).ok_or(Errno::ESRCH)?;
                there.destinations.get_mut(destination).ok_or(Errno::ENOENT)?.weight = *weight;
                Ok(())
            }
            Step::DeleteDestination(key, destination) => {
                let there = services.get_mut(key).ok_or(Errno::ESRCH)?;
                found(there.destinations.remove(destination).is_some(), Errno::ENOENT)
            }
            Step::SetTimeouts(timeouts) => {
                self.observed.timeouts = *timeouts;
                Ok(())
            }
        }
    }
}

fn made(service: &VirtualService) -> ObservedService {
    ObservedService {
        scheduler: service.scheduler.name().to_owned(),
        flags: service.flags() | HASHED,
        timeout: service.persistence.unwrap_or(0),
        ..ObservedService::default()
    }
}
