//! Generic netlink: the number of a family by its name (`linux/genetlink.h`).

use nix::errno::Errno;

use super::{Error, Malformed, Request, Socket};

/// `GENL_ID_CTRL`.
const GENL_ID_CTRL: u16 = 0x10;
/// `CTRL_CMD_GETFAMILY`.
const CTRL_CMD_GETFAMILY: u8 = 3;
/// `CTRL_ATTR_FAMILY_ID`.
const CTRL_ATTR_FAMILY_ID: u16 = 1;
/// `CTRL_ATTR_FAMILY_NAME`.
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// The number of a family; `None` where the kernel has none of this name, even after it looked for a module (its alias
/// is `net-pf-16-proto-16-family-NAME`). Needs no privilege.
pub fn family(socket: &mut Socket, name: &str) -> Result<Option<u16>, Error> {
    let mut request = Request::get_generic(GENL_ID_CTRL, CTRL_CMD_GETFAMILY);
    request.string(CTRL_ATTR_FAMILY_NAME, name);
    let number = socket.request(&request, |message| {
        let attributes: [_; 1 + CTRL_ATTR_FAMILY_ID as usize] = message.attributes().table()?;
        attributes[usize::from(CTRL_ATTR_FAMILY_ID)].ok_or(Malformed("a family without number"))?.host_u16()
    });
    match number {
        Err(Error::Request(Errno::ENOENT)) => Ok(None),
        result => result.map(Some),
    }
}
