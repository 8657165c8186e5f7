//! Files as people write them: what is taken, what is left out and what is said about it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::super::Batch;
use super::*;
use crate::cluster::{Family, Index, Protocol, Service, TrafficPolicy};

fn write(folder: &Path, name: &str, text: &str) {
    // As editors do: a half-written file is never seen under the name.
    let temporary = folder.join(format!(".{name}.new"));
    fs::write(&temporary, text).unwrap();
    fs::rename(temporary, folder.join(name)).unwrap();
}

/// One file with this text.
fn load(text: &str) -> Load {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.yaml", text);
    let load = Manifests::open(folder.path()).unwrap().load().unwrap();
    assert_eq!(load.broken, [], "{text}");
    load
}

/// A Service with this spec (and what follows it), without the API's boilerplate.
fn service(spec: &str) -> Load {
    load(&format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{{spec}"))
}

fn only_service(load: &Load) -> &Service {
    match &load.changes[..] {
        [Change::Service(_, Some(service))] => service,
        other => panic!("{other:?}; {:?}", load.warnings),
    }
}

fn slice(fields: &str) -> Load {
    let labels = "labels: {kubernetes.io/service-name: a}";
    load(&format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: a-1, {labels}}}\n{fields}"
    ))
}

fn only_slice(load: &Load) -> &crate::cluster::EndpointSlice {
    match &load.changes[..] {
        [Change::EndpointSlice(_, Some(slice))] => slice,
        other => panic!("{other:?}; {:?}", load.warnings),
    }
}

#[test]
fn absent_fields_have_the_apis_defaults() {
    let load = service("clusterIP: 10.96.0.1, ports: [{port: 80}]}");
    let service = only_service(&load);
    assert_eq!(service.name.to_string(), "default/a");
    let port = &service.ports[0];
    assert_eq!((&*port.name, port.protocol, port.port.get(), port.node_port), ("", Protocol::Tcp, 80, None));
    assert_eq!((service.external_policy, service.internal_policy), Default::default());
    assert_eq!((service.affinity, service.created), (None, 0));
    let load = slice("addressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [10.0.0.1]}]");
    let endpoint = &only_slice(&load).endpoints[0];
    let c = endpoint.conditions;
    assert_eq!((c.ready, c.serving, c.terminating), (true, true, false));
    assert_eq!((&endpoint.node, &endpoint.zone_hints), (&None, &None));
}

#[test]
fn fields_that_have_no_meaning_for_the_type_do_not_count() {
    let status = "\nstatus: {loadBalancer: {ingress: [{ip: 203.0.113.1}]}}";
    let rest = "clusterIP: 10.96.0.1, externalTrafficPolicy: Local, healthCheckNodePort: 30000, \
                loadBalancerSourceRanges: [10.0.0.0/8], ports: [{port: 80, nodePort: 30080}]}";
    let load = service(&format!("{rest}{status}"));
    let plain = only_service(&load);
    assert_eq!(plain.external_policy, TrafficPolicy::Cluster, "nothing comes from outside");
    assert_eq!((plain.ports[0].node_port, plain.load_balancer_ips.len()), (None, 0));
    assert_eq!((plain.source_ranges.len(), plain.health_check_node_port), (0, None));
    let load = service(&format!("type: LoadBalancer, {rest}{status}"));
    let balanced = only_service(&load);
    assert_eq!(balanced.external_policy, TrafficPolicy::Local);
    assert_eq!(balanced.ports[0].node_port.unwrap().get(), 30080);
    assert_eq!(balanced.load_balancer_ips.len(), 1);
    assert_eq!(balanced.source_ranges.len(), 1);
    assert_eq!(balanced.health_check_node_port.unwrap().get(), 30000);
}

#[test]
fn load_balancer_addresses_that_are_served_elsewhere_do_not_count() {
    let ingress = "[{ip: 203.0.113.1}, {hostname: lb.example.net}, {ip: 203.0.113.2, ipMode: Proxy}, \
                   {ip: 203.0.113.3, ipMode: VIP}]";
    let load = service(&format!(
        "type: LoadBalancer, clusterIP: 10.96.0.1, ports: [{{port: 80}}]}}\nstatus: {{loadBalancer: {{ingress: {ingress}}}}}"
    ));
    let addresses: Vec<String> =
        only_service(&load).load_balancer_ips.iter().map(|a| a.to_string()).collect();
    assert_eq!(addresses, ["203.0.113.1", "203.0.113.3"]);
    assert_eq!(load.warnings, [] as [&str; 0]);
}

#[test]
fn affinity_has_its_timeout() {
    let timeout = |config: &str| {
        let load = service(&format!(
            "clusterIP: 10.96.0.1, ports: [{{port: 80}}], sessionAffinity: ClientIP{config}}}"
        ));
        only_service(&load).affinity
    };
    assert_eq!(timeout(""), Some(10_800));
    assert_eq!(timeout(", sessionAffinityConfig: {clientIP: {timeoutSeconds: 5}}"), Some(5));
}

#[test]
fn times_are_read_as_kubernetes_writes_them() {
    for (time, seconds) in [
        ("1970-01-01T00:00:00Z", 0),
        ("2000-02-29T12:34:56Z", 951_827_696),
        ("2026-11-25T20:56:00Z", 1_795_640_160),
    ] {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a, creationTimestamp: {time}}}\n\
             spec: {{clusterIP: 10.96.0.1, ports: [{{port: 80}}]}}"
        );
        assert_eq!(only_service(&load(&text)).created, seconds, "{time}");
    }
}

/// What makes no sense as a whole is left out alone; the warning names object, field and remedy.
#[test]
fn a_service_that_makes_no_sense_is_left_out_alone() {
    for (spec, field) in [
        ("clusterIP: 10.96.0.256, ports: [{port: 80}]}", "spec.clusterIP"),
        ("clusterIPs: [10.96.0.1, 10.96.0.2], ports: [{port: 80}]}", "spec.clusterIPs[1]"),
        ("ports: [{port: 80}]}", "spec.clusterIP: is missing"),
        ("clusterIP: 10.96.0.1}", "spec.ports: is empty"),
        ("clusterIP: 10.96.0.1, ports: [{port: 0}]}", "spec.ports[0].port: 0 is not a port"),
        ("clusterIP: 10.96.0.1, ports: [{port: 70000}]}", "spec.ports[0].port"),
        ("clusterIP: 10.96.0.1, ports: [{name: x}]}", "spec.ports[0].port: is missing"),
        ("clusterIP: 10.96.0.1, ports: [{port: http}]}", "spec.ports[0].port: invalid type"),
        ("clusterIP: 10.96.0.1, ports: [{port: 80, protocol: ICMP}]}", "spec.ports[0].protocol"),
        ("type: Odd, clusterIP: 10.96.0.1, ports: [{port: 80}]}", "spec.type"),
        ("clusterIP: 10.96.0.1, sessionAffinity: Odd, ports: [{port: 80}]}", "spec.sessionAffinity"),
        (
            "clusterIP: 10.96.0.1, internalTrafficPolicy: Odd, ports: [{port: 80}]}",
            "spec.internalTrafficPolicy",
        ),
        (
            "type: LoadBalancer, clusterIP: 10.96.0.1, loadBalancerSourceRanges: [everybody], ports: [{port: 80}]}",
            "spec.loadBalancerSourceRanges[0]",
        ),
    ] {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: bad, namespace: ns}}\nspec: {{{spec}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {{name: good}}\nspec: {{clusterIP: 10.96.9.9, ports: [{{port: 80}}]}}"
        );
        let load = load(&text);
        assert_eq!(&*only_service(&load).name.name, "good", "{spec}");
        assert_eq!(load.invalid, 1, "{spec}");
        let warning = load.warnings.join("\n");
        assert!(warning.contains("Service ns/bad is left out: ") && warning.contains(field), "{warning}");
    }
}

#[test]
fn entries_that_make_no_sense_are_left_out_alone() {
    let load = service(
        "clusterIP: 10.96.0.1, externalIPs: [203.0.113.1, nonsense, 'fd00::1', 203.0.113.1], \
         ports: [{port: 80}, {name: b, port: 0}, {name: c, port: 80}]}",
    );
    let service = only_service(&load);
    assert_eq!((service.external_ips.len(), service.ports.len()), (1, 1));
    let warnings = load.warnings.join("\n");
    for field in ["spec.externalIPs[1]", "spec.externalIPs[2]", "spec.ports[1].port", "spec.ports[2]"] {
        assert!(warnings.contains(&format!("Service default/a: {field}: ")), "{field} in {warnings}");
    }
    let load = slice(
        "addressType: IPv4\nports: [{port: 80}, {name: any}, {name: bad, port: -1}]\nendpoints:\n\
         - {addresses: [10.0.0.1, 10.0.0.2]}\n- {addresses: ['fd00::1']}\n- {addresses: []}\n\
         - {addresses: [127.0.0.1]}\n- {addresses: ['::ffff:10.0.0.3'], conditions: {ready: false}}",
    );
    let slice = only_slice(&load);
    assert_eq!(slice.ports.len(), 1, "a port without a number is every port, which is nothing");
    let addresses: Vec<String> = slice.endpoints.iter().map(|e| e.address.to_string()).collect();
    assert_eq!(addresses, ["10.0.0.1", "10.0.0.3"], "the first address counts; IPv4 however it is written");
    assert!(!slice.endpoints[1].conditions.serving, "serving is as ready where it is absent");
    assert_eq!(load.warnings.len(), 4, "{:?}", load.warnings);
}

/// An address of every host is nobody's to claim: the agent would open a port there for it.
#[test]
fn loopback_and_its_like_are_nobodys_address() {
    let v4 = ["127.0.0.1", "127.1.2.3", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::ffff:127.0.0.1"];
    for address in v4.into_iter().chain(["::1", "::", "ff02::1"]) {
        let load = service(&format!(
            "type: LoadBalancer, clusterIPs: [10.96.0.1, 'fd00::1'], externalIPs: [203.0.113.1, '{address}'], \
             ports: [{{port: 80}}]}}\nstatus: {{loadBalancer: {{ingress: [{{ip: '{address}'}}]}}}}"
        ));
        let made = only_service(&load);
        assert_eq!(made.external_ips, ["203.0.113.1".parse::<std::net::IpAddr>().unwrap()], "{address}");
        assert!(made.load_balancer_ips.is_empty(), "{address}");
        let fields = load.warnings.iter().filter(|w| w.contains("cannot be a Service's address")).count();
        assert_eq!(fields, 2, "{:?}", load.warnings);
        let load = service(&format!("clusterIP: '{address}', ports: [{{port: 80}}]}}"));
        assert!(load.warnings[0].contains("cannot be a Service's address"), "{:?}", load.warnings);
    }
}

#[test]
fn what_is_not_for_this_proxy_is_ignored() {
    for object in [
        "kind: Service\nspec: {clusterIP: None, ports: [{port: 80}]}\nmetadata: {name: a}",
        "kind: Service\nspec: {type: ExternalName, externalName: example.net}\nmetadata: {name: a}",
        "kind: Service\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n\
         metadata: {name: a, labels: {service.kubernetes.io/service-proxy-name: ''}}",
    ] {
        let load = load(&format!("apiVersion: v1\n{object}"));
        assert!(load.changes.is_empty() && load.warnings.is_empty(), "{object}: {load:?}");
    }
    for object in [
        "addressType: FQDN\nmetadata: {name: a, labels: {kubernetes.io/service-name: a}}",
        "addressType: IPv4\nmetadata: {name: a}",
        "addressType: IPv4\nmetadata: {name: a, labels: {kubernetes.io/service-name: a, service.kubernetes.io/headless: ''}}",
    ] {
        let load = load(&format!("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n{object}"));
        assert!(load.changes.is_empty() && load.warnings.is_empty(), "{object}: {load:?}");
    }
}

#[test]
fn nodes_and_service_ranges() {
    let load = load(
        "apiVersion: v1\nkind: Node\nmetadata: {name: n, labels: {topology.kubernetes.io/zone: z}}\n\
         spec: {podCIDR: 10.1.0.0/24}\nstatus:\n  addresses:\n  - {type: ExternalIP, address: 203.0.113.1}\n\
         \x20 - {type: InternalIP, address: 10.0.0.1}\n  - {type: Hostname, address: n}\n---\n\
         apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: k}\nspec: {cidrs: [10.96.0.5/12]}",
    );
    let [Change::Node(_, Some(node)), Change::ServiceCidr(_, Some(range))] = &load.changes[..] else {
        panic!("{load:?}");
    };
    let addresses: Vec<String> = node.addresses.iter().map(|a| a.to_string()).collect();
    assert_eq!(addresses, ["10.0.0.1", "203.0.113.1"], "internal before external");
    assert_eq!((node.zone.as_deref(), node.pod_cidrs.len()), (Some("z"), 1));
    assert_eq!(range.cidrs[0].to_string(), "10.96.0.0/12");
    assert_eq!(Family::of_net(&range.cidrs[0]), Family::Ipv4);
}

#[test]
fn install_manifests_and_lists() {
    let load = load(
        "# a comment\n---\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata:\n  x.yaml: |\n    a: b\n    ---\n    kind: Service\n\
         ---\napiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: d}\nspec: {ports: {type: object}}\n\
         ---\napiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: e}\nspec: {ports: nonsense}\n\
         ---\napiVersion: v1\nkind: ServiceList\nitems:\n- metadata: {name: f}\n  spec: {clusterIP: 10.96.0.1, ports: [{port: 80, name: on}]}\n\
         ---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service, metadata: {name: n}, spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}}\n- {apiVersion: v1, kind: Pod}\n",
    );
    assert_eq!(load.changes.len(), 2, "{:?}", load.warnings);
    let skipped: Vec<(&str, usize)> = load.skipped.iter().map(|(k, n)| (k.as_str(), *n)).collect();
    assert_eq!(skipped, [("ConfigMap", 1), ("CustomResourceDefinition", 1), ("Pod", 1), ("Service", 1)]);
    let Change::Service(_, Some(f)) = &load.changes[0] else { panic!() };
    assert_eq!(&*f.ports[0].name, "on", "YAML 1.2: a word is text");
}

#[test]
fn a_broken_file_keeps_what_it_said() {
    let folder = tempfile::tempdir().unwrap();
    let good = |n: u8| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{clusterIP: 10.96.0.{n}, ports: [{{port: 80}}]}}\n"
        )
    };
    write(folder.path(), "a.yaml", &good(1));
    let mut manifests = Manifests::open(folder.path()).unwrap();
    assert_eq!(manifests.load().unwrap().changes.len(), 1);
    write(folder.path(), "a.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: a\n");
    let load = manifests.load().unwrap();
    assert!(load.changes.is_empty(), "{load:?}");
    assert!(load.broken[0].problem.contains("line "), "{:?}", load.broken);
    assert!(manifests.load().unwrap().broken.is_empty(), "said once");
    write(folder.path(), "a.yaml", &good(2));
    let load = manifests.load().unwrap();
    assert_eq!((load.changes.len(), load.mended.len()), (1, 1));
    write(folder.path(), "a.json", "{\"apiVersion\": \"v1\", \"kind\"");
    assert!(manifests.load().unwrap().broken[0].problem.contains("line 1"));
}

#[test]
fn an_object_in_two_files_is_the_last_ones_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let text = |n: u8| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{clusterIP: 10.96.0.{n}, ports: [{{port: 80}}]}}\n"
        )
    };
    let mut index = Index::new("n");
    let address = |index: &Index| index.services().next().map(|s| s.cluster_ips[0].to_string());
    write(folder.path(), "a.yaml", &text(1));
    write(folder.path(), "b.yaml", &text(2));
    let mut manifests = Manifests::open(folder.path()).unwrap();
    let mut step = |index: &mut Index| {
        let load = manifests.load().unwrap();
        load.changes.into_iter().for_each(|c| index.apply(c));
        load.warnings
    };
    assert!(step(&mut index).iter().any(|w| w.contains("a.yaml") && w.contains("b.yaml")));
    assert_eq!(address(&index).as_deref(), Some("10.96.0.2"));
    write(folder.path(), "a.yaml", &text(3));
    step(&mut index);
    assert_eq!(address(&index).as_deref(), Some("10.96.0.2"), "the earlier file does not count");
    fs::remove_file(folder.path().join("b.yaml")).unwrap();
    step(&mut index);
    assert_eq!(address(&index).as_deref(), Some("10.96.0.3"), "until the later one is gone");
    fs::remove_file(folder.path().join("a.yaml")).unwrap();
    step(&mut index);
    assert_eq!(address(&index), None);
}

#[test]
fn a_missing_path_is_an_error_that_names_it() {
    let error = Manifests::open("/nowhere/at/all").unwrap_err().to_string();
    assert!(error.contains("/nowhere/at/all") && error.contains("--manifests"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_followed_even_when_the_folder_is_a_mounted_config_map() {
    let folder = tempfile::tempdir().unwrap();
    let put = |version: &str, n: u8| {
        // kubelet's way: a folder a version, a link that is swapped, links to files through it.
        let dir = folder.path().join(version);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("s.yaml"), format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{clusterIP: 10.96.0.{n}, ports: [{{port: 80}}]}}\n")).unwrap();
        std::os::unix::fs::symlink(version, folder.path().join("..new")).unwrap();
        fs::rename(folder.path().join("..new"), folder.path().join("..data")).unwrap();
    };
    put("..1", 1);
    std::os::unix::fs::symlink("..data/s.yaml", folder.path().join("s.yaml")).unwrap();
    let (tx, mut rx) = tokio::sync::mpsc::channel::<Batch>(8);
    let task = tokio::spawn(Manifests::open(folder.path()).unwrap().run(tx));
    let mut index = Index::new("n");
    let mut until = async |wanted: &str| {
        loop {
            let batch = tokio::time::timeout(Duration::from_secs(30), rx.recv())
                .await
                .expect("in time")
                .expect("open");
            assert!(batch.synced);
            batch.changes.into_iter().for_each(|c| index.apply(c));
            if index.services().any(|s| s.cluster_ips[0].to_string() == wanted) {
                return;
            }
        }
    };
    until("10.96.0.1").await;
    put("..2", 2);
    until("10.96.0.2").await;
    write(
        folder.path(),
        "t.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: b}\nspec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}\n",
    );
    until("10.96.0.9").await;
    task.abort();
}

proptest! {
    #[test]
    fn nothing_that_is_read_panics(bytes: Vec<u8>, text in "(apiVersion|kind|spec|: |v1|Service|\n|- |\\{|\\}|[|]|,|1|ports|port| ){0,40}") {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.yaml"), bytes).unwrap();
        fs::write(folder.path().join("b.yaml"), &text).unwrap();
        fs::write(folder.path().join("c.json"), &text).unwrap();
        Manifests::open(folder.path()).unwrap().load().unwrap();
    }
}
