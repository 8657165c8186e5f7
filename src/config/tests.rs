use super::file::{FileError, KubeProxyConfiguration, decode};
use super::merge::{Given, Merged, merge};
use super::*;
use crate::cluster::{Change, Node};

const HEADER: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn given(flags: &[&str]) -> Given {
    let mut given = Given::default();
    for flag in flags {
        let (name, value) = flag.trim_start_matches("--").split_once('=').unwrap();
        let entry = reference::by_flag(name).unwrap();
        given.add(entry, entry.kind.parse(value).unwrap());
    }
    given
}

fn merged(flags: &[&str], file: Option<&str>) -> Merged {
    let text = file.map(|body| format!("{HEADER}{body}"));
    merge(&given(flags), text.as_deref()).unwrap()
}

fn with_flags(flags: &[&str]) -> Result<Config, InvalidConfig> {
    Config::new(&merged(flags, None), "node1")
}

fn with_file(body: &str) -> Result<Config, InvalidConfig> {
    Config::new(&merged(&[], Some(body)), "node1")
}

#[test]
fn values_that_make_no_sense_are_named_by_flag() {
    for (flags, message) in [
        (&["--cluster-cidr=10.0.0.0"][..], "--cluster-cidr: \"10.0.0.0\" is not a CIDR"),
        (&["--cluster-cidr=10.0.0.0/8,fd00:/8,10.1.0.0/16"], "--cluster-cidr: \"fd00:/8\" is not a CIDR"),
        (&["--detect-local-mode=Magic"], "--detect-local-mode: \"Magic\" is none of"),
        (&["--detect-local-mode=BridgeInterface"], "--pod-bridge-interface: must be set"),
        (
            &["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=a-name-of-16-byte"],
            "--pod-bridge-interface: ",
        ),
        (
            &["--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=a b"],
            "--pod-interface-name-prefix: ",
        ),
        (&["--nodeport-addresses=primary,nowhere"], "--nodeport-addresses: \"nowhere\" is not a CIDR"),
        (&["--bind-address=node1"], "--bind-address: \"node1\" is not an IP address"),
        (&["--healthz-bind-address=0.0.0.0:0"], "--healthz-bind-address: \"0.0.0.0:0\": it must be"),
        (&["--metrics-bind-address=localhost:10249"], "--metrics-bind-address: "),
        (&["--metrics-bind-address=127.0.0.1:65536"], "--metrics-bind-address: "),
        (
            &["--iptables-min-sync-period=1m"],
            "--iptables-min-sync-period: must be less than or equal to syncPeriod (30s)",
        ),
        (&["--iptables-sync-period=0"], "--iptables-sync-period: must be greater than 0"),
        (
            &["--iptables-min-sync-period=-1s"],
            "--iptables-min-sync-period: must be greater than or equal to 0",
        ),
        (
            &["--iptables-sync-period=1s", "--iptables-min-sync-period=2s"],
            "--iptables-min-sync-period: must be less than or equal to syncPeriod (1s)",
        ),
        (&["--iptables-masquerade-bit=32"], "--iptables-masquerade-bit: must be within 0 to 31"),
        (&["--oom-score-adj=-1001"], "--oom-score-adj: must be within -1000 to 1000"),
        (&["--conntrack-min=-1"], "--conntrack-min: must be greater than or equal to 0"),
        (
            &["--conntrack-tcp-timeout-established=-1s"],
            "--conntrack-tcp-timeout-established: must be greater",
        ),
        (&["--config-sync-period=0s"], "--config-sync-period: must be greater than 0"),
        (&["--kube-api-burst=-1"], "--kube-api-burst: must be greater than or equal to 0"),
        (&["--logging-format=xml"], "--logging-format: \"xml\" is neither text nor json"),
        (&["--proxy-mode=ipvs", "--ipvs-scheduler=rrr"], "--ipvs-scheduler: \"rrr\" is no IPVS scheduler"),
        (
            &["--proxy-mode=ipvs", "--ipvs-exclude-cidrs=10.0.0.0/33"],
            "--ipvs-exclude-cidrs: \"10.0.0.0/33\" is",
        ),
        (&["--proxy-mode=ipvs", "--ipvs-udp-timeout=-1s"], "--ipvs-udp-timeout: must be greater"),
        (&["--proxy-mode=userspace"], "--proxy-mode: \"userspace\" is none of nftables"),
        (&["--hostname-override= "], "--hostname-override: must not be empty"),
    ] {
        let error = with_flags(flags).unwrap_err();
        assert_eq!(error.0.len(), 1, "{flags:?}: {error}");
        assert!(error.to_string().starts_with(message), "{flags:?}: {error}");
    }
}

#[test]
fn values_that_make_no_sense_are_named_by_field_and_all_at_once() {
    let body = "clusterCIDR: x\nnodePortAddresses: [all, here, there]\nconntrack: {min: -1, udpTimeout: -1s}\noomScoreAdj: 1001\n\
                nftables: {syncPeriod: 1s, minSyncPeriod: 2s, masqueradeBit: -1}\nbindAddress: a\nmode: ipvs\n\
                ipvs: {syncPeriod: -1s, scheduler: x}\nlogging: {format: yaml}\n";
    let error = with_file(body).unwrap_err();
    let fields: Vec<&str> = error.0.iter().map(|invalid| invalid.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "clusterCIDR",
            "nodePortAddresses[1]",
            "nodePortAddresses[2]",
            "bindAddress",
            "conntrack.udpTimeout",
            "conntrack.min",
            "ipvs.scheduler",
            "logging.format",
            "nftables.minSyncPeriod",
            // What is not positive is not compared with minSyncPeriod as well.
            "ipvs.syncPeriod",
            "nftables.masqueradeBit",
            "oomScoreAdj",
        ]
    );
    let text = error.to_string();
    assert!(text.starts_with("12 settings make no sense:\n  clusterCIDR: \"x\" is"), "{text}");
    assert!(
        text.contains("\n  nftables.minSyncPeriod: must be less than or equal to syncPeriod (1s)"),
        "{text}"
    );
}

#[test]
fn a_file_is_read_strictly_then_leniently() {
    let decode = |body: &str| decode(&format!("{HEADER}{body}")).unwrap();
    assert!(decode("mode: nftables\nconntrack: null\n").strict_errors.is_empty());
    let odd = decode(
        "mod: ipvs\nnftables: {masqueradeAll: true, all: 1}\nmetadata: null\nfeatureGates: {X: yes}\n",
    );
    assert_eq!(
        odd.strict_errors,
        ["unknown field metadata", "unknown field mod", "unknown field nftables.all"]
    );
    assert!(odd.configuration.nftables.masquerade_all);
    assert_eq!(odd.configuration.feature_gates.get("X"), Some(&true), "YAML 1.1, as kube-proxy reads it");

    let twice = decode("mode: ipvs\nclusterCIDR: 10.0.0.0/8\nmode: nftables\n");
    assert_eq!(twice.configuration.mode, "nftables");
    assert_eq!(twice.strict_errors, ["mode is there twice (line 5), the last one counts"]);
    let inside = decode("nftables: {masqueradeAll: false, masqueradeAll: true}\n");
    assert!(inside.configuration.nftables.masquerade_all && inside.strict_errors.len() == 1, "{inside:?}");
    let warnings = merged(&[], Some("mod: x\n")).warnings;
    assert_eq!(warnings, ["the configuration file is read leniently: unknown field mod"]);
}

#[test]
fn what_is_no_configuration_is_refused() {
    for (text, message) in [
        ("", "this is not a KubeProxyConfiguration"),
        ("[]", "this is not a KubeProxyConfiguration"),
        (
            "kind: KubeProxyConfiguration",
            "apiVersion is \"\", it must be \"kubeproxy.config.k8s.io/v1alpha1\"",
        ),
        (
            "apiVersion: kubeproxy.config.k8s.io/v1alpha2\nkind: KubeProxyConfiguration",
            "apiVersion is \"kubeproxy.config.k8s.io/v1alpha2\"",
        ),
        (
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: ConfigMap",
            "kind is \"ConfigMap\", it must be",
        ),
        ("a: [", ""),
    ] {
        let error = decode(text).unwrap_err().to_string();
        assert!(error.starts_with(message), "{text:?}: {error}");
    }
    for (body, at) in [
        ("mode: 5", "mode"),
        ("bindAddressHardFail: 1", "bindAddressHardFail"),
        ("nftables: {syncPeriod: 30}", "nftables.syncPeriod"),
        ("nftables: {syncPeriod: 30 s}", "nftables.syncPeriod"),
        ("nftables: []", "nftables"),
        ("conntrack: {maxPerCore: many}", "conntrack.maxPerCore"),
        ("conntrack: {maxPerCore: 4294967296}", "conntrack.maxPerCore"),
        ("nodePortAddresses: [primary, 7]", "nodePortAddresses[1]"),
        ("featureGates: {A: maybe}", "featureGates.A"),
        ("logging: {vmodule: [{verbosity: x}]}", "logging.vmodule[0].verbosity"),
    ] {
        match decode(&format!("{HEADER}{body}")) {
            Err(FileError::Type { path, .. }) => assert_eq!(path, at, "{body}"),
            other => panic!("{body}: {other:?}"),
        }
    }
}

#[test]
fn json_is_yaml() {
    let json = r#"{"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "nftables"}"#;
    assert_eq!(decode(json).unwrap().configuration.mode, "nftables");
}

#[test]
fn beside_a_file_only_some_flags_count() {
    let flags = [
        "--hostname-override=Node-B",
        "--v=5",
        "--logging-format=json",
        "--master=https://[::1]:6443",
        "--cluster-cidr=10.0.0.0/8",
        "--kubeconfig=/flag",
        "--healthz-port=0",
        "--boot-id-file=/x",
    ];
    let merged = merged(
        &flags,
        Some("hostnameOverride: node-a\nclusterCIDR: 10.128.0.0/16\nlogging: {verbosity: 1}\n"),
    );
    assert_eq!(
        merged.warnings,
        ["ignored, since there is a --config: --cluster-cidr, --kubeconfig, --healthz-port"]
    );
    let config = Config::new(&merged, "host").unwrap();
    assert_eq!(&*config.node_name, "node-b");
    assert_eq!(config.detect_local, DetectLocal::ClusterCidr(vec!["10.128.0.0/16".parse().unwrap()]));
    assert_eq!(config.logging, Logging { json: true, verbosity: 5 });
    assert_eq!(config.client, Client { kubeconfig: None, master: Some("https://[::1]:6443".into()) });
    assert!(config.servers.healthz.is_some());
}

#[test]
fn what_no_flag_and_no_file_says_has_kube_proxys_defaults() {
    let config = with_flags(&[]).unwrap();
    assert_eq!(config, with_file("").unwrap());
    assert_eq!(&*config.node_name, "node1");
    assert_eq!(config.detect_local, DetectLocal::ClusterCidr(vec![]));
    assert_eq!(config.node_port_addresses, [NodePortAddress::Primary]);
    assert_eq!((config.sync_period, config.min_sync_period), (Duration::from_secs(30), Duration::ZERO));
    assert_eq!(config.oom_score_adj, -999);
    assert_eq!(config.servers.healthz, Some("0.0.0.0:10256".parse().unwrap()));
    assert_eq!(config.servers.metrics, Some("127.0.0.1:10249".parse().unwrap()));
    let conntrack = Conntrack {
        max_per_core: 32768,
        min: 131_072,
        tcp_established_timeout: Some(Duration::from_secs(86_400)),
        tcp_close_wait_timeout: Some(Duration::from_secs(3600)),
        ..Conntrack::default()
    };
    assert_eq!(config.conntrack, conntrack);
    assert_eq!(config.notices, ["no mode is set: services are served with nftables"]);
    assert!(config.warnings.is_empty());
}

#[test]
fn addresses_of_servers() {
    let servers = |flags: &[&str]| {
        let servers = with_flags(flags).unwrap().servers;
        [servers.healthz, servers.metrics].map(|a| a.map_or("none".into(), |a| a.to_string()))
    };
    for (flags, expected) in [
        (&["--bind-address=::"][..], ["[::]:10256", "[::1]:10249"]),
        (&["--bind-address=10.0.0.1"], ["0.0.0.0:10256", "127.0.0.1:10249"]),
        (
            &["--healthz-bind-address=127.0.0.1", "--metrics-bind-address=::1"],
            ["127.0.0.1:10256", "[::1]:10249"],
        ),
        (&["--metrics-bind-address=0.0.0.0:10249"], ["0.0.0.0:10256", "0.0.0.0:10249"]),
        (&["--metrics-bind-address="], ["0.0.0.0:10256", "none"]),
        (&["--healthz-port=0", "--metrics-port=10300"], ["none", "127.0.0.1:10300"]),
        (&["--healthz-port=10300", "--healthz-bind-address=::1"], ["[::1]:10300", "127.0.0.1:10249"]),
        (
            &["--healthz-port=10300", "--healthz-bind-address=::1", "--bind-address=::"],
            ["[::1]:10300", "[::1]:10249"],
        ),
    ] {
        assert_eq!(servers(flags), expected, "{flags:?}");
    }
    let servers = with_file("healthzBindAddress: 10.0.0.1\nbindAddress: fd00::1\n").unwrap().servers;
    assert_eq!(servers.healthz, Some("10.0.0.1:10256".parse().unwrap()));
    assert_eq!(servers.metrics, Some("[::1]:10249".parse().unwrap()));
}

#[test]
fn masquerade_all_and_periods_by_mode() {
    for (body, all, min_ms) in [
        ("mode: nftables\niptables: {masqueradeAll: true, minSyncPeriod: 3s}", false, 0),
        ("mode: iptables\niptables: {masqueradeAll: true, minSyncPeriod: 3s}", true, 0),
        ("iptables: {masqueradeAll: true}", true, 0),
        ("mode: nftables\nnftables: {masqueradeAll: true, minSyncPeriod: 250ms}", true, 250),
        ("mode: iptables\nnftables: {masqueradeAll: true, minSyncPeriod: 250ms}", true, 250),
    ] {
        let config = with_file(body).unwrap();
        assert_eq!(config.masquerade_all, all, "{body}");
        assert_eq!(config.min_sync_period, Duration::from_millis(min_ms), "{body}");
        assert_eq!(config.notices.is_empty(), body.starts_with("mode: nftables"), "{body}");
    }
    for mode in ["--proxy-mode=nftables", "--proxy-mode=iptables"] {
        let config = with_flags(&[mode, "--masquerade-all=true", "--iptables-min-sync-period=2s"]).unwrap();
        assert!(config.masquerade_all && config.min_sync_period == Duration::from_secs(2), "{mode}");
    }
}

#[test]
fn defaults_do_not_change_what_is_set() {
    let text = include_str!("../../testdata/configuration/everything.yaml");
    let before = decode(text).unwrap();
    assert!(before.strict_errors.is_empty(), "{:?}", before.strict_errors);
    let mut after = before.configuration.clone();
    after.set_defaults();
    let with_port =
        KubeProxyConfiguration { healthz_bind_address: "[::1]:10256".into(), ..before.configuration };
    assert_eq!(after, with_port);
    let json = |c: &KubeProxyConfiguration| serde_json::to_value(c).unwrap();
    let (set, defaults) = (json(&after), json(&KubeProxyConfiguration::defaulted()));
    for entry in reference::TABLE.iter().filter(|e| !e.field.is_empty()) {
        // nftables.masqueradeAll is off there, so that mode iptables shows.
        let differs = reference::get(&set, entry.field) != reference::get(&defaults, entry.field);
        assert!(differs || entry.field == "nftables.masqueradeAll", "{} has its default", entry.field);
    }
}

#[test]
fn node_ports_are_on_the_primary_addresses_unless_told_otherwise() {
    let parse = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<IpAddr>>();
    let host = parse(&["127.0.0.1", "10.0.0.1", "10.0.0.2", "192.168.0.1", "::1", "fe80::1", "fd00::1"]);
    let mut index = Index::new("node1");
    let at = |index: &Index, words: &str| {
        let flags = [&format!("--nodeport-addresses={words}"), "--cluster-cidr=10.1.0.0/16"];
        with_flags(&flags).unwrap().view(index, &host).node.node_port_addresses
    };
    assert_eq!(at(&index, ""), parse(&["10.0.0.1", "10.0.0.2", "192.168.0.1", "fd00::1"]), "no Node");
    index.apply(Change::Node(
        "node1".into(),
        Some(Node {
            name: "node1".into(),
            addresses: parse(&["10.0.0.2", "10.0.0.1", "fd00::1"]),
            ..Node::default()
        }),
    ));
    assert_eq!(at(&index, ""), parse(&["10.0.0.2", "fd00::1"]));
    assert_eq!(at(&index, "primary,192.168.0.0/16"), parse(&["10.0.0.2", "192.168.0.1", "fd00::1"]));
    assert_eq!(at(&index, "0.0.0.0/0"), parse(&["10.0.0.1", "10.0.0.2", "192.168.0.1", "fd00::1"]));
    assert_eq!(at(&index, "127.0.0.0/8"), parse(&["fd00::1"]), "a range has no loopback addresses");
    assert_eq!(at(&index, "all"), at(&index, "0.0.0.0/0,::/0"));
    assert_eq!(at(&index, "localhost"), parse(&["127.0.0.1", "::1"]));
    assert_eq!(at(&index, "localhost,primary"), parse(&["10.0.0.2", "127.0.0.1", "::1", "fd00::1"]));
    let view = with_flags(&["--bind-address=10.0.0.1"]).unwrap().view(&index, &host);
    assert_eq!(
        view.node.node_port_addresses,
        parse(&["10.0.0.1", "fd00::1"]),
        "bindAddress is the primary one"
    );
}

#[test]
fn a_family_without_a_cidr_has_no_local_detection() {
    let index = Index::new("node1");
    let view = with_flags(&["--cluster-cidr=10.1.0.0/16"]).unwrap().view(&index, &[]);
    assert_eq!(view.settings.local_detection, [LocalDetection::Cidr, LocalDetection::None]);
    let view = with_flags(&[]).unwrap().view(&index, &[]);
    assert_eq!(view.settings.local_detection, [LocalDetection::None, LocalDetection::None]);
    assert!(view.notices.iter().any(|n| n.contains("--cluster-cidr")), "{:?}", view.notices);
}

proptest::proptest! {
    #[test]
    fn no_file_panics(
        body in "(([a-zA-Z.]{1,12}|mode|nftables|conntrack|logging|nodePortAddresses): ?[-{}\\[\\]a-z0-9:, \"&*!|>%./]{0,20}\n){0,6}"
    ) {
        if let Ok(merged) = merge(&Given::default(), Some(&format!("{HEADER}{body}"))) {
            let _ = Config::new(&merged, "node1");
        }
    }
}
