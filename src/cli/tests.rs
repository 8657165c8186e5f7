use std::time::Duration;

use super::{Cli, Command, parse};
use crate::config::merge;
use crate::config::{Config, DetectLocal, NodePortAddress};

fn run(line: &str) -> Result<super::run::Run, clap::Error> {
    match parse(line.split_whitespace().map(Into::into))? {
        Cli { command: Command::Run(run) } => Ok(run),
        Cli { command } => panic!("{line}: {command:?}"),
    }
}

/// The configuration of a command line, its file (if any) left out.
fn config(line: &str) -> Config {
    let run = run(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    let merged = merge::merge(&run.settings.flags.0, None).unwrap_or_else(|error| panic!("{line}: {error}"));
    Config::new(&merged, "host").unwrap_or_else(|error| panic!("{line}: {error}"))
}

/// Command lines as DaemonSets, static Pods and agents have them.
#[test]
fn command_lines_of_others_are_accepted() {
    for line in [
        // kubeadm
        "kube-proxy --config=/var/lib/kube-proxy/config.conf --hostname-override=node1",
        "/usr/local/bin/kube-proxy --config=/var/lib/kube-proxy/config.conf --hostname-override=node1 --v=2",
        // EKS
        "kube-proxy --v=2 --config=/var/lib/kube-proxy-config/config --hostname-override=node1",
        // k3s and RKE2
        "kube-proxy --cluster-cidr=10.42.0.0/16 --conntrack-max-per-core=0 --conntrack-tcp-timeout-close-wait=0s \
         --conntrack-tcp-timeout-established=0s --healthz-bind-address=127.0.0.1 --hostname-override=node1 \
         --kubeconfig=/var/lib/rancher/rke2/agent/kubeproxy.kubeconfig --proxy-mode=iptables",
        "kube-proxy --cluster-cidr=10.42.0.0/16,2001:cafe:42::/56 --conntrack-max-per-core=0 --feature-gates=A=true,B=false \
         --proxy-mode=iptables --v=4 --vmodule=proxier=5 --metrics-bind-address=0.0.0.0",
        // Static Pods of GCE
        "kube-proxy --master=https://10.0.0.1 --kubeconfig=/var/lib/kube-proxy/kubeconfig --cluster-cidr=10.64.0.0/14 \
         --oom-score-adj=-998 --v=2 --iptables-sync-period=1m --iptables-min-sync-period=10s --ipvs-sync-period=1m \
         --ipvs-min-sync-period=10s --detect-local-mode=NodeCIDR",
        // AKS
        "kube-proxy --conntrack-max-per-core=0 --metrics-bind-address=0.0.0.0:10249 --kubeconfig=/var/lib/kubelet/kubeconfig \
         --cluster-cidr=10.244.0.0/16 --detect-local-mode=ClusterCIDR --pod-interface-name-prefix= --v=3",
        // Scripts of the old days
        "kube-proxy --bind-address 0.0.0.0 --hostname-override=n --cleanup=false --masquerade-all --proxy_mode=iptables -v 2",
        "sluice run --manifests=/m --node-name=node1 -v2",
    ] {
        config(line);
    }
}

#[test]
fn flags_are_written_as_pflag_reads_them() {
    for (line, verbosity) in [
        ("sluice run -v=2", 2),
        ("sluice run -v2", 2),
        ("sluice run -v 2", 2),
        ("sluice run --v=2", 2),
        ("sluice run --v 2", 2),
        ("sluice run --v=1 --v=2", 2),
    ] {
        assert_eq!(config(line).logging.verbosity, verbosity, "{line}");
    }
    for (line, all) in [
        ("sluice run --masquerade-all", true),
        ("sluice run --masquerade-all=true", true),
        ("sluice run --masquerade_all=1", true),
        ("sluice run --masquerade-all=F", false),
        ("sluice run --masquerade-all --masquerade-all=false", false),
        ("sluice run --masquerade-all --cluster-cidr=", true),
    ] {
        let config = config(line);
        assert_eq!(config.masquerade_all, all, "{line}");
        assert_eq!(config.detect_local, DetectLocal::ClusterCidr(vec![]), "{line}");
    }
    let config = config(
        "kube-proxy --nodeport-addresses=primary,10.0.0.0/8 --nodeport-addresses=fd00::/8 --feature-gates=A=true,B=false \
         --feature-gates=B=true --oom-score-adj -998 --iptables-min-sync-period=1.5s --conntrack-max-per-core=0",
    );
    let cidr = |text: &str| NodePortAddress::Cidr(text.parse().expect("a CIDR"));
    assert_eq!(config.node_port_addresses, [NodePortAddress::Primary, cidr("10.0.0.0/8"), cidr("fd00::/8")]);
    assert_eq!(config.feature_gates, [("A".into(), true), ("B".into(), true)].into());
    assert_eq!(config.oom_score_adj, -998);
    assert_eq!(config.sync_period, Duration::from_secs(30));
    assert_eq!(config.min_sync_period, Duration::from_millis(1500));
    assert_eq!(config.conntrack.max_per_core, 0);
}

#[test]
fn wrong_usage_is_refused() {
    for (line, word) in [
        ("kube-proxy run", "run"),
        ("kube-proxy --masquerade-all false", "false"),
        ("kube-proxy --masquerade-all=yes", "--masquerade-all"),
        ("kube-proxy --conntrack-min=many", "--conntrack-min"),
        ("kube-proxy --conntrack-min=4294967296", "--conntrack-min"),
        ("kube-proxy --iptables-sync-period=30", "--iptables-sync-period"),
        ("kube-proxy --feature-gates=A", "--feature-gates"),
        ("kube-proxy --vmodule=a", "--vmodule"),
        ("kube-proxy --no-such-flag", "--no-such-flag"),
        ("kube-proxy --cluster-cidr", "--cluster-cidr"),
        ("sluice --cluster-cidr=10.0.0.0/8 run", "--cluster-cidr"),
    ] {
        match run(line) {
            Ok(run) => panic!("{line}: {run:?}"),
            Err(error) => {
                assert_eq!(error.exit_code(), 2, "{line}");
                assert!(error.to_string().contains(word), "{line}: {error}");
            }
        }
    }
}

/// So that what an agent does can be looked at with its own command line.
#[test]
fn other_commands_take_an_agents_command_line() {
    let manifest = include_str!("../../deploy/manifests/daemonset.yaml");
    let mut lines = manifest.lines().map(str::trim).skip_while(|line| *line != "- /usr/local/bin/sluice");
    let arguments: Vec<&str> = lines.by_ref().map_while(|line| line.strip_prefix("- ")).skip(2).collect();
    assert!(arguments.contains(&"--takeover"), "{arguments:?}");
    let arguments = format!("{} --hold-connections --conntrack-drop-invalid -v2", arguments.join(" "));
    for command in ["run", "dump", "diff", "explain 10.96.0.1:443", "check"] {
        let line = format!("sluice {command} {arguments}");
        let parsed = parse(line.split_whitespace().map(Into::into)).map(|cli| cli.command);
        let parsed = parsed.unwrap_or_else(|error| panic!("{line}: {error}"));
        assert!(parsed.settings().is_some_and(|s| s.conntrack_drop_invalid), "{line}");
        let help = run(&format!("{line} --help")).expect_err("help").to_string();
        for flag in ["--takeover", "--hold-connections"] {
            assert_eq!(help.contains(flag), command == "run", "{flag} of {command}\n{help}");
        }
    }
}

#[test]
fn the_command_line_makes_sense() {
    super::command().debug_assert();
}

#[test]
fn help_shows_what_matters() {
    let help = |line: &str| run(line).expect_err("help").to_string();
    let run = help("sluice run --help");
    for shown in
        ["Traffic:", "HTTP servers:", "--manifests", "--masquerade-all", "--feature-gates", "--config"]
    {
        assert!(run.contains(shown), "{shown}\n{run}");
    }
    for hidden in ["--healthz-port", "--network-name", "--kube-api-qps", "--iptables-masquerade-bit"] {
        assert!(!run.contains(hidden), "{hidden}\n{run}");
    }
    let dump = help("sluice dump --help");
    assert!(dump.contains("--cluster-cidr") && dump.contains("--manifests"), "{dump}");
    assert!(!dump.contains("--conntrack-min") && !dump.contains("--feature-gates"), "{dump}");
    let explain = help("sluice explain --help");
    for shown in ["--from", "--format", "--cluster-cidr", "--manifests", "Exit status:", "sharePercent"] {
        assert!(explain.contains(shown), "{shown}\n{explain}");
    }
    assert!(!explain.contains("--feature-gates"), "{explain}");
}
