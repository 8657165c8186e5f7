use super::Destination;
use crate::cluster::Protocol;
use crate::forwarding::Key;

#[test]
fn destinations_are_read() {
    for (text, address, port, protocol) in [
        ("10.96.0.10:80", "10.96.0.10", 80, Protocol::Tcp),
        ("10.96.0.10:53/udp", "10.96.0.10", 53, Protocol::Udp),
        ("[fd00:10:96::a]:80", "fd00:10:96::a", 80, Protocol::Tcp),
        ("[fd00:10:96::a]:80/SCTP", "fd00:10:96::a", 80, Protocol::Sctp),
    ] {
        let key = Key { address: address.parse().expect("an address"), protocol, port };
        assert_eq!(text.parse(), Ok(Destination(key)), "{text}");
    }
    for text in
        ["10.96.0.10", "10.96.0.10:0", "10.96.0.10:80/icmp", "fd00::a:80", "web:80", "10.96.0.10:80/", ""]
    {
        assert!(text.parse::<Destination>().is_err(), "{text}");
    }
}
