//! The page for operators.

use std::fmt::Write;

use serde_json::Value;

use super::{Entry, TABLE, Topic, Verdict};
use crate::config::file::KubeProxyConfiguration;

const INTRODUCTION: &str = "\
# Configuration

`sluice run` takes the flags of kube-proxy 1.36 and its configuration file (`kubeproxy.config.k8s.io/v1alpha1`, kind
`KubeProxyConfiguration`) as they are: the ConfigMap that is there can be mounted, and a DaemonSet needs only another
image. This page is printed from the table in `src/config/reference/table.rs` (`make bless`).

- With `--config`, flags that have a field in the file are ignored and named once at start, but for
  `--hostname-override` and the flags about logs. `--master` counts, too.
- sluice's own are `--manifests PATH`, which takes objects from files in place of an API server, `--node-name`, another name of
  `--hostname-override`, `--takeover`, `--hold-connections`, `--allowed-external-ips`,
  `--allowed-load-balancer-ips`, `--conntrack-drop-invalid` (below), and `ipvs.serviceMetrics`.
  `sluice dump`, `diff`, `explain` and `check` take the command line of `sluice run` as it is, but for `--init-only`, `--cleanup` and
  `--write-config-to`; what only an agent does they leave aside.
- The file is read strictly. An unknown field, or a key that is there twice, is one warning that names it; then the
  rest counts. A value of the wrong type, another `apiVersion` or `kind`, and a value that makes no sense are errors;
  all of the latter are named at once, and nothing is touched.
- When the file changes and makes sense, it takes effect by itself (kube-proxy ends to be started anew), with the rules in place
  all the while. When it does not make sense, a warning says why and the old configuration stays.
- Durations are Go's: `30s`, `1m30s`, `24h`, `0`. In the file, 0 means the default where upstream says so.
- Mode `iptables`, and no mode, are served with nftables, which one line at start says.
- What is *ignored, named* below has no effect here; a value other than the default is named in one line at start.
- `nftables.minSyncPeriod` is 0 by default (kube-proxy: 1s): a change costs one small transaction, so there is nothing
  to save by waiting. A value that is set is honoured: the first change after a quiet time is written at once, those
  that follow together when the time has passed.
- In mode nftables rules are compared with the kernel's when somebody else committed to nf_tables, which is asked every 200 ms (at most 1 s
  apart where others commit all the time); an element replaced by another is found within about a minute. There is no comparison by
  the clock, since nothing can have changed.
";

/// What stands below a topic's table.
fn remarks(topic: Topic) -> &'static str {
    match topic {
        Topic::Conntrack => DROP_INVALID,
        _ => "",
    }
}

const DROP_INVALID: &str = "
`--conntrack-drop-invalid` (sluice's own, off by default): what conntrack calls INVALID, mostly a TCP segment far out of the window, is
not translated. An endpoint's segment reaches the client with the endpoint's address, the client answers with a reset, and the
connection ends: \"connection reset by peer\" in long transfers. The usual remedy is `conntrack.tcpBeLiberal: true`, which `sluice check`
proposes where it is not set: then such a segment belongs to its connection and is translated. Where that is not wanted, this flag
drops INVALID packets that come from an endpoint of a Service or go to an address and port of one; those of other connections pass,
also where only one direction of them comes through this node. With tcpBeLiberal there are no such rules. kube-proxy drops every
INVALID packet that it forwards in mode iptables, and none in mode nftables. Metric:
`kubeproxy_iptables_ct_state_invalid_dropped_packets_total`, 0 while the flag is off. The price is one rule for each packet, and one set
element for each endpoint.
";

/// The text of `deploy/CONFIGURATION.md`.
pub fn page() -> String {
    let defaulted = serde_json::to_value(KubeProxyConfiguration::defaulted()).unwrap_or_default();
    let mut out = String::from(INTRODUCTION);
    let mut topics: Vec<Topic> = TABLE.iter().map(|entry| entry.topic).collect();
    topics.sort_unstable();
    topics.dedup();
    for topic in topics {
        let _ = write!(out, "\n## {}\n", topic.heading());
        out.push_str("\n| field | flag | default | here | |\n| --- | --- | --- | --- | --- |\n");
        for entry in TABLE.iter().filter(|entry| entry.topic == topic) {
            let _ = writeln!(out, "{}", row(entry, &defaulted));
        }
        out.push_str(remarks(topic));
    }
    out
}

fn row(entry: &Entry, defaulted: &Value) -> String {
    let code = |text: &str| if text.is_empty() { String::new() } else { format!("`{text}`") };
    let flag = match entry.flag {
        "" => String::new(),
        "v" => "`-v`, `--v`".into(),
        flag => format!("`--{flag}`"),
    };
    let show = |default: Value| match default {
        Value::Null => String::new(),
        Value::String(text) if text.is_empty() => "\"\"".into(),
        Value::String(text) => code(&text),
        other => code(&other.to_string()),
    };
    let (default, flag_default) = (entry.default(defaulted), entry.flag_default(defaulted));
    let default = match default == flag_default {
        true => show(default),
        false => format!("{}, of the flag {}", show(default), show(flag_default)),
    };
    let verdict = match entry.verdict {
        Verdict::Honoured => "honoured",
        Verdict::Partly => "partly",
        Verdict::Warned => "ignored, named",
        Verdict::Silent => "ignored",
    };
    let deprecated = if entry.deprecated { "Deprecated. " } else { "" };
    format!("| {} | {flag} | {default} | {verdict} | {deprecated}{} |", code(entry.field), entry.text)
}
