//! A table with an element of every kind.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use sluice::cluster::{Family, Protocol};
use sluice::dataplane::nftables::model::{
    Chain, Element, Key, LocalDetection, Set, Step, Structure, Verdict,
};
use sluice::dataplane::nftables::text::Table;

/// What a table consists of.
#[derive(Clone, Debug, Default)]
pub struct Content {
    pub structure: Structure,
    pub sets: Vec<Set>,
    pub chains: Vec<Chain>,
    pub elements: Vec<Element>,
}

impl Content {
    /// The steps that make the table where there is none.
    pub fn steps(&self) -> Vec<Step> {
        let mut steps = vec![Step::CreateTable(self.structure.clone())];
        steps.extend(self.sets.iter().map(|set| Step::AddSet(*set)));
        steps.extend(self.chains.iter().map(|chain| Step::AddChain(*chain)));
        steps.extend(self.elements.iter().map(|element| Step::Add(element.clone())));
        steps
    }

    /// The same as text.
    pub fn text(&self, family: Family) -> String {
        let table = Table {
            structure: self.structure.clone(),
            chains: self.chains.clone(),
            sets: self.sets.clone(),
            elements: self.elements.iter().collect(),
        };
        let mut text = String::new();
        table.write(&mut text, family).unwrap();
        text
    }
}

/// Every structure; with `SLUICE_TEST_SHORT` one for each way to tell local traffic.
pub fn structures() -> Vec<Structure> {
    let detections = [
        LocalDetection::None,
        LocalDetection::Cidr,
        LocalDetection::Bridge("cni0".to_owned()),
        LocalDetection::Bridge("bridge-of-pods0".to_owned()),
        LocalDetection::InterfacePrefix("cali".to_owned()),
        LocalDetection::InterfacePrefix("fifteen-letters".to_owned()),
    ];
    let both = |local_detection| {
        [(false, false), (true, false), (false, true)].map(|(masquerade_all, ipvs)| Structure {
            local_detection: Clone::clone(local_detection),
            masquerade_all,
            ipvs,
            drop_invalid: masquerade_all || ipvs,
        })
    };
    let mut all: Vec<Structure> = detections.iter().flat_map(both).collect();
    // Under an emulated processor all of them take minutes.
    if std::env::var_os("SLUICE_TEST_SHORT").is_some() {
        all = all.into_iter().skip(2).step_by(3).collect();
    }
    all
}

fn address(family: Family, network: u8, host: u16) -> IpAddr {
    let [high, low] = host.to_be_bytes();
    match family {
        Family::Ipv4 => IpAddr::from([10, network, high, low]),
        Family::Ipv6 => IpAddr::from([0xfd00, u16::from(network), 0, 0, 0, 0, 0, host]),
    }
}

fn networks(family: Family, ipv4: &[&str], ipv6: &[&str]) -> Vec<IpNet> {
    let texts = if family == Family::Ipv4 { ipv4 } else { ipv6 };
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A table with an element of every kind, and of every verdict.
pub fn content(family: Family, structure: Structure) -> Content {
    let key = |host, protocol, port| Key { address: address(family, 96, host), protocol, port };
    let endpoint = |host, port| SocketAddr::new(address(family, 128, host), port);
    let (dns, web, sctp) =
        (key(10, Protocol::Udp, 53), key(11, Protocol::Tcp, 80), key(12, Protocol::Sctp, 9));
    let (node, sticky) = (key(256, Protocol::Tcp, 30080), key(13, Protocol::Tcp, 443));
    let pods = networks(
        family,
        &["10.0.0.0/9", "10.128.0.0/9", "1.2.3.4/32", "255.255.255.0/24"],
        &["fd00::/9", "fd80::/9", "2001:db8::1/128", "ff00::/8"],
    );
    let services = networks(family, &["10.96.0.0/12", "0.0.0.0/8"], &["fd00:96::/112", "::/64"]);
    let sources = networks(
        family,
        &["0.0.0.0/0", "10.0.0.0/8", "192.168.1.1/32", "255.0.0.0/8"],
        &["::/0", "fd00::/8", "2001:db8::1/128", "ff00::/8"],
    );
    let mut elements: Vec<Element> = pods.into_iter().map(Element::PodCidr).collect();
    elements.extend(services.into_iter().map(Element::ServiceCidr));
    elements.extend([10, 11, 12, 13].map(|host| Element::ClusterIp(address(family, 96, host))));
    elements.extend([
        Element::Service(dns, Verdict::Goto(Chain::Endpoints(2))),
        Element::Service(web, Verdict::Goto(Chain::NoEndpoints)),
        Element::Service(sctp, Verdict::Drop),
        Element::Service(node, Verdict::Goto(Chain::Endpoints(1))),
        Element::Service(sticky, Verdict::Goto(Chain::Sticky(3, 2))),
        Element::Service(key(14, Protocol::Tcp, 1), Verdict::Accept),
        Element::Service(key(14, Protocol::Tcp, 2), Verdict::Return),
        Element::Service(key(14, Protocol::Tcp, 3), Verdict::Jump(Chain::Endpoints(1))),
        Element::Endpoint(dns, 0, endpoint(1, 53)),
        Element::Endpoint(dns, 1, endpoint(2, 65535)),
        Element::Endpoint(node, 0, endpoint(3, 1)),
        Element::Endpoint(node, 32768, endpoint(3, 8080)),
        Element::Endpoint(sticky, 2, endpoint(4, 8443)),
        Element::Special(node),
        Element::Restricted(node),
        Element::LocalService(node, Verdict::Goto(Chain::Local(1))),
        Element::LocalService(web, Verdict::Drop),
        Element::MasqueradeAll(node),
        Element::MasqueradeAll(sctp),
        Element::MasqueradeOwn(web),
        Element::Hairpin(address(family, 128, 3)),
        Element::AffinityId(sticky, 1),
        Element::AffinityId(node, 0xffff_0001),
        Element::Slot(1, 0, Verdict::Goto(Chain::Pick(10800, 0))),
        Element::Slot(1, 2, Verdict::Goto(Chain::Pick(4, 2))),
        Element::Choice(1, 0, Verdict::Goto(Chain::Pick(10800, 0))),
        Element::Choice(1, 1, Verdict::Goto(Chain::Pick(4, 2))),
    ]);
    for (protocol, port) in Protocol::ALL.into_iter().zip([1, 80, 65535]) {
        for (host, net) in sources.iter().enumerate() {
            elements.push(Element::AllowedSource(key(20 + host as u16, protocol, port), *net));
        }
    }
    if structure.drop_invalid {
        elements.extend([dns, web, sctp].map(Element::Serving));
    }
    if structure.ipvs {
        elements.extend([10, 11].map(|host| Element::IpvsAddress(address(family, 96, host))));
    }
    Content {
        structure,
        sets: (0..3).map(Set::Sticky).collect(),
        chains: vec![
            Chain::Endpoints(1),
            Chain::Endpoints(2),
            Chain::Local(1),
            Chain::Pick(4, 2),
            Chain::Pick(90, 1),
            Chain::Pick(10800, 0),
            Chain::Sticky(3, 2),
        ],
        elements,
    }
}
