use proptest::collection::vec;
use proptest::prelude::*;

use crate::netlink::{Attributes, Message};

use super::super::encode::encode as encode_plan;
use super::super::model::{Chain, Step};
use super::super::schema;
use super::*;

fn address(family: Family) -> BoxedStrategy<IpAddr> {
    match family {
        Family::Ipv4 => any::<[u8; 4]>().prop_map(IpAddr::from).boxed(),
        Family::Ipv6 => any::<[u8; 16]>().prop_map(IpAddr::from).boxed(),
    }
}

fn net(family: Family) -> impl Strategy<Value = IpNet> {
    let longest = if family == Family::Ipv4 { 32 } else { 128 };
    (address(family), 0u8..=longest)
        .prop_map(|(address, length)| IpNet::new(address, length).unwrap().trunc())
}

fn key(family: Family) -> impl Strategy<Value = Key> {
    (address(family), 0..3usize, any::<u16>()).prop_map(|(address, p, port)| Key {
        address,
        protocol: Protocol::ALL[p],
        port,
    })
}

fn verdict() -> impl Strategy<Value = Verdict> {
    let chain = prop_oneof![
        Just(Chain::NoEndpoints),
        Just(Chain::AfterDnat),
        any::<u32>().prop_map(Chain::Endpoints),
        any::<u32>().prop_map(Chain::Local),
        any::<(u32, u32)>().prop_map(|(a, b)| Chain::Pick(a, b)),
        any::<(u32, u32)>().prop_map(|(a, b)| Chain::Sticky(a, b)),
    ];
    prop_oneof![
        Just(Verdict::Accept),
        Just(Verdict::Drop),
        Just(Verdict::Return),
        chain.clone().prop_map(Verdict::Goto),
        chain.prop_map(Verdict::Jump),
    ]
}

fn element(family: Family) -> impl Strategy<Value = Element> {
    let endpoint = (address(family), any::<u16>()).prop_map(SocketAddr::from);
    prop_oneof![
        address(family).prop_map(Element::ClusterIp),
        address(family).prop_map(Element::Hairpin),
        key(family).prop_map(Element::Special),
        key(family).prop_map(Element::Restricted),
        key(family).prop_map(Element::MasqueradeAll),
        key(family).prop_map(Element::MasqueradeOwn),
        key(family).prop_map(Element::Serving),
        (key(family), verdict()).prop_map(|(k, v)| Element::Service(k, v)),
        (key(family), verdict()).prop_map(|(k, v)| Element::LocalService(k, v)),
        (any::<u32>(), any::<u32>(), verdict()).prop_map(|(i, k, v)| Element::Slot(i, k, v)),
        (any::<u32>(), any::<u32>(), verdict()).prop_map(|(i, k, v)| Element::Choice(i, k, v)),
        (key(family), any::<u32>(), endpoint).prop_map(|(k, i, e)| Element::Endpoint(k, i, e)),
        (key(family), any::<u32>()).prop_map(|(k, i)| Element::AffinityId(k, i)),
        (key(family), net(family)).prop_map(|(k, n)| Element::AllowedSource(k, n)),
    ]
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::Ipv4), Just(Family::Ipv6)]
}

/// The lists of a batch's element messages, joined.
fn lists(steps: Vec<Step>, family: Family) -> Vec<Decoded> {
    let sets: Vec<Set> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Add(element) | Step::Delete(element) => Some(element.set()),
            _ => None,
        })
        .collect();
    let batch = encode_plan(&[(family, steps)], None);
    let mut decoded = Vec::new();
    for index in 0..batch.messages() {
        let message = Message::parse(batch.message_bytes(index).unwrap()).unwrap();
        let set = sets[batch.object(index).unwrap() as usize];
        let list = message.attributes().flatten().find(|a| a.kind == NFTA_SET_ELEM_LIST_ELEMENTS).unwrap();
        decoded.extend(list.nested().map(|element| decode(family, set, element.unwrap()).unwrap()));
    }
    decoded
}

proptest! {
    #[test]
    fn elements_are_read_back((family, elements) in family().prop_flat_map(|f| (Just(f), vec(element(f), 1..40)))) {
        let steps = elements.iter().cloned().map(Step::Add).collect();
        let written: Vec<_> = elements.into_iter().map(Decoded::Element).collect();
        prop_assert_eq!(lists(steps, family), written);
    }

    #[test]
    fn intervals_are_read_back_as_bounds((family, net) in family().prop_flat_map(|f| (Just(f), net(f)))) {
        let bounds = lists(vec![Step::Add(Element::PodCidr(net))], family);
        let mut expected = vec![Decoded::Start(net.network())];
        expected.extend(next(net.broadcast()).map(Decoded::End));
        prop_assert_eq!(&bounds, &expected);
        prop_assert_eq!(lists(vec![Step::Delete(Element::PodCidr(net))], family), expected);
        prop_assert_eq!(network(net.network(), net.broadcast()), Some(net));
    }

    #[test]
    fn reading_any_bytes_does_not_panic(bytes: Vec<u8>, family in family(), index in 0..18usize) {
        let set = schema::sets(&super::super::model::Structure { ipvs: true, drop_invalid: true, ..Default::default() }).chain([Set::Sticky(3)]).nth(index).unwrap();
        let _ = decode(family, set, Attribute { kind: NFTA_LIST_ELEM, value: &bytes });
    }

    #[test]
    fn reading_a_damaged_element_does_not_panic(
        (family, element) in family().prop_flat_map(|f| (Just(f), element(f))),
        place: prop::sample::Index,
        byte: u8,
    ) {
        let mut writer = Writer::default();
        encode(&mut writer, &element, true);
        let mut bytes = writer.as_bytes().to_vec();
        *place.get_mut(&mut bytes) = byte;
        for attribute in Attributes::new(&bytes).flatten() {
            let _ = decode(family, element.set(), attribute);
        }
    }

    #[test]
    fn no_element_is_longer_than_is_reckoned_with((family, e) in family().prop_flat_map(|f| (Just(f), element(f)))) {
        let mut writer = Writer::default();
        encode(&mut writer, &e, true);
        prop_assert!(writer.len() <= MAX_LENGTH, "{} {} {family}", writer.len(), e);
    }
}

#[test]
fn a_range_that_is_no_network_is_none() {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    assert_eq!(network(ip("10.0.0.1"), ip("10.0.0.6")), None);
    assert_eq!(network(ip("10.0.0.7"), ip("10.0.0.0")), None);
    assert_eq!(network(ip("10.0.0.7"), ip("::")), None);
    assert_eq!(network(ip("0.0.0.0"), ip("255.255.255.255")), Some("0.0.0.0/0".parse().unwrap()));
}

#[test]
fn a_key_of_the_other_family_is_unknown() {
    let mut writer = Writer::default();
    encode(&mut writer, &Element::ClusterIp([10, 0, 0, 1].into()), true);
    let attribute = Attributes::new(writer.as_bytes()).next().unwrap().unwrap();
    let read = decode(Family::Ipv6, Set::ClusterIps, attribute);
    assert_eq!(read, Ok(Decoded::Unknown("0a000001".to_owned())));
}

#[test]
fn many_elements_share_messages_below_the_limit() {
    let key = |n: u32| Key { address: n.to_be_bytes().into(), protocol: Protocol::Udp, port: 53 };
    let steps: Vec<Step> = (0..10_000).map(|n| Step::Add(Element::Special(key(n)))).collect();
    let batch = encode_plan(&[(Family::Ipv4, steps)], None);
    assert!((4..=8).contains(&batch.messages()), "{}", batch.messages());
    let total: usize = (0..batch.messages())
        .map(|index| {
            let message = Message::parse(batch.message_bytes(index).unwrap()).unwrap();
            let list =
                message.attributes().flatten().find(|a| a.kind == NFTA_SET_ELEM_LIST_ELEMENTS).unwrap();
            let first = list.nested().next().unwrap().unwrap();
            let n = batch.object(index).unwrap();
            assert_eq!(
                decode(Family::Ipv4, Set::Special, first),
                Ok(Decoded::Element(Element::Special(key(n))))
            );
            list.nested().count()
        })
        .sum();
    assert_eq!(total, 10_000);
}
