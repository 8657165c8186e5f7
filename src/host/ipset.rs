//! Sets of ipset: their names, and the end of some. Rules of iptables look into them.

use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;

use crate::netlink::{self, Request, Requests, Socket};

// linux/netfilter/ipset/ip_set.h
const IPSET_PROTOCOL: u8 = 6;
const IPSET_CMD_DESTROY: u8 = 3;
const IPSET_CMD_LIST: u8 = 7;
const IPSET_ATTR_PROTOCOL: u16 = 1;
const IPSET_ATTR_SETNAME: u16 = 2;
const IPSET_ATTR_FLAGS: u16 = 6;
const IPSET_FLAG_LIST_SETNAME: u32 = 1 << 1;

/// Where the kernel has no ipset there are no sets; asking would load it.
const MODULE: &str = "/sys/module/ip_set";
/// Rules that were removed let go of their sets a moment later.
const TRIES: usize = 25;
const PAUSE: Duration = Duration::from_millis(20);

/// The names of all sets in the network namespace of the socket.
pub fn names(socket: &mut Socket) -> Result<Vec<String>, netlink::Error> {
    let mut names = Vec::new();
    if !Path::new(MODULE).exists() {
        return Ok(names);
    }
    let mut request = Request::dump_ipset(IPSET_CMD_LIST);
    request.bytes(IPSET_ATTR_PROTOCOL, &[IPSET_PROTOCOL]);
    request.u32(IPSET_ATTR_FLAGS, IPSET_FLAG_LIST_SETNAME);
    socket.dump(&request, |message| -> Result<(), netlink::Error> {
        let [_, _, name] = message.attributes().table()?;
        names.extend(name.map(|name| name.string().map(str::to_owned)).transpose()?);
        Ok(())
    })?;
    Ok(names)
}

/// Destroys these sets; says which could not be, and why. One that is gone is no error.
pub fn destroy<'a>(
    socket: &mut Socket,
    names: impl Iterator<Item = &'a str>,
) -> Result<Vec<(&'a str, Errno)>, netlink::Error> {
    let mut left = Vec::new();
    for name in names {
        for again in (0..TRIES).rev() {
            let mut requests = Requests::default();
            requests.ipset(IPSET_CMD_DESTROY);
            requests.bytes(IPSET_ATTR_PROTOCOL, &[IPSET_PROTOCOL]);
            requests.string(IPSET_ATTR_SETNAME, name);
            match socket.execute(&mut requests)?.first().map(|refusal| refusal.errno) {
                None | Some(Errno::ENOENT) => break,
                Some(Errno::EBUSY) if again > 0 => std::thread::sleep(PAUSE),
                Some(errno) => {
                    left.push((name, errno));
                    break;
                }
            }
        }
    }
    Ok(left)
}
