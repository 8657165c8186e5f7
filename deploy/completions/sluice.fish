# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_sluice_global_optspecs
    string join \n h/help V/version
end

function __fish_sluice_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_sluice_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_sluice_using_subcommand
    set -l cmd (__fish_sluice_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c sluice -n "__fish_sluice_needs_command" -s h -l help -d 'Print help'
complete -c sluice -n "__fish_sluice_needs_command" -s V -l version -d 'Print version'
complete -c sluice -n "__fish_sluice_needs_command" -f -a "run" -d 'Run the agent: keep this host\'s rules equal to what the Services ask for'
complete -c sluice -n "__fish_sluice_needs_command" -f -a "cleanup" -d 'Remove the rules that sluice made from this host, and on demand those that kube-proxy left'
complete -c sluice -n "__fish_sluice_needs_command" -f -a "dump" -d 'Print the rules that a node would get, as nft text. Needs no root and touches nothing'
complete -c sluice -n "__fish_sluice_needs_command" -f -a "diff" -d 'Compare what the rules should be with what is on this host. Exit status 0: equal, 1: they differ, 2: trouble'
complete -c sluice -n "__fish_sluice_needs_command" -f -a "explain" -d 'Say which Service answers at an address, with which endpoints, and why. Needs no root and touches nothing'
complete -c sluice -n "__fish_sluice_needs_command" -f -a "check" -d 'Say what of this host stands in the way of Services, and what to do. Exit status 0: nothing but notes, 1: problems or warnings, 2: trouble. Changes nothing'
complete -c sluice -n "__fish_sluice_using_subcommand run" -l takeover -d 'Remove what kube-proxy left, once the rules are in place, unless a kube-proxy is running. On by itself under the name kube-proxy' -r -f -a "true\t''
false\t''"
complete -c sluice -n "__fish_sluice_using_subcommand run" -l hold-connections -d 'Established connections survive it when somebody flushes all nftables rules: a table inet sluice-hold, which nobody else can change, keeps the kernel tracking and translating them. nft 1.0.6 and older print garbage for its flag as JSON (sometimes nothing, or what is no JSON), on which programs that read `nft -j list ruleset`, as podman, may fail; 1.1.3 is fine' -r -f -a "true\t''
false\t''"
complete -c sluice -n "__fish_sluice_using_subcommand run" -l manifests -d 'File or folder of YAML or JSON with Services, EndpointSlices, Nodes and ServiceCIDRs, in place of an API server. Files of a folder: *.yaml, *.yml, *.json' -r -F
complete -c sluice -n "__fish_sluice_using_subcommand run" -l allowed-external-ips -d 'Which spec.externalIPs Services may have: all, none, or ranges separated by commas. Whoever may make Services may name any address there and gets the pods\' connections to it (CVE-2020-8554)' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l allowed-load-balancer-ips -d 'The same of addresses in status.loadBalancer, which take the right to write a Service\'s status' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l conntrack-drop-invalid -d 'Drop packets of connections to Services that conntrack calls INVALID (a TCP segment out of the window): they go untranslated, and whom they reach answers with a reset. Does nothing with --conntrack-tcp-be-liberal, the usual remedy, which has no such packets. The metric kubeproxy_iptables_ct_state_invalid_dropped_packets_total counts' -r -f -a "true\t''
false\t''"
complete -c sluice -n "__fish_sluice_using_subcommand run" -l kubeconfig -d 'Path of a kubeconfig file that says how to reach the API server; without it the Pod\'s service account does' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l master -d 'URL of the API server, in place of the kubeconfig\'s; counts beside --config, too' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l kube-api-content-type -d 'Objects are asked for as JSON [default: application/vnd.kubernetes.protobuf]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l kube-api-qps -d 'There are four watches and a few events, nothing to slow down [default: 5.0]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l kube-api-burst -d 'See qps [default: 10]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l config-sync-period -d 'Changes come by watch; there is no second list to compare with [default: 15m0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l hostname-override -l node-name -d 'Name of the own Node; without it this host\'s name, in lower case. The flag counts beside --config, too' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l proxy-mode -l mode -d '"nftables" or "ipvs"; "" and "iptables" mean nftables here, too, with a line in the log' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l cluster-cidr -d 'Ranges of pod addresses, separated by commas. kube-proxy takes one of each family; here there may be more' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l detect-local-mode -d 'How traffic of this node\'s pods is told from outside traffic: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix [default: ClusterCIDR]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l pod-bridge-interface -d 'The bridge that pods are on, for BridgeInterface' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l pod-interface-name-prefix -d 'What the names of pods\' interfaces start with, for InterfaceNamePrefix' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l nodeport-addresses -d 'Where NodePorts are served: primary, localhost, all, ranges, in any mix; empty: primary. localhost is 127.0.0.1 and [::1], for TCP only; all and ranges have no loopback addresses' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l bind-address -d 'The Node\'s primary address, in place of what its object says; nothing is bound to it. Its family is that of the servers\' default addresses [default: 0.0.0.0]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l masquerade-all -d 'Masquerade every connection to a ClusterIP. This field does nothing where mode is nftables; the flag always counts' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l iptables-sync-period -d 'No effect. The flag sets nftables.syncPeriod, as in kube-proxy [default: 30s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l iptables-min-sync-period -d 'Least time between two writes; changes meanwhile are written together. The flag sets nftables.minSyncPeriod, as in kube-proxy; this field does nothing [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l healthz-bind-address -d 'Where /healthz, /livez and /readyz are served; a port may be left out [default: 0.0.0.0:10256]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l metrics-bind-address -d 'Where /metrics, /proxyMode, /configz and /healthz are served; a port may be left out; an empty flag: nowhere [default: 127.0.0.1:10249]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l bind-address-hard-fail -d 'End when an address cannot be bound, instead of trying again' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l profiling -d 'There are no profiles to fetch' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l show-hidden-metrics-for-version -d 'No metric is hidden' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l healthz-port -d 'Port of --healthz-bind-address where that has none; 0: no such server' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l metrics-port -d 'Port of --metrics-bind-address where that has none; 0: no such server' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l conntrack-max-per-core -d 'Least limit of tracked connections per CPU core of the host, up to 1,048,576 in all; 0: the host\'s limit stays. The limit is never lowered [default: 32768]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l conntrack-min -d 'Least limit of tracked connections, whatever --conntrack-max-per-core says (unless 0) [default: 131072]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l conntrack-tcp-timeout-established -d 'Time without packets after which an established TCP connection is forgotten; 0: the host\'s setting stays [default: 24h0m0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l conntrack-tcp-timeout-close-wait -d 'The same for TCP connections in CLOSE_WAIT; 0: the host\'s setting stays [default: 1h0m0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l conntrack-tcp-be-liberal -d 'Set nf_conntrack_tcp_be_liberal' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l conntrack-udp-timeout -d 'The same for UDP with no answer; 0: the host\'s setting stays [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l conntrack-udp-timeout-stream -d 'The same for UDP with an answer; 0: the host\'s setting stays [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l logging-format -d 'text or json. Flags about logs count beside --config, too [default: text]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -s v -l v -d '0 and 1: what an operator needs; 2 and 3: each sync, too; 4 and 5: each plan; 6 and more: everything [default: 0]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l log-flush-frequency -d 'Lines are written at once [default: 5s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l vmodule -d 'These are names of Go files' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l log-json-info-buffer-size -d 'See logging.options' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l log-json-split-stream -d 'See logging.options' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l log-text-info-buffer-size -d 'See logging.options' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l log-text-split-stream -d 'See logging.options' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l config -d 'Path of a KubeProxyConfiguration file; flags with a field in it are then ignored, but for --hostname-override and those about logs. Changes take effect by themselves, with the rules in place all the while; content that makes no sense changes nothing' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l write-config-to -d 'Write the configuration with all defaults to this file and exit' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l cleanup -d 'Remove the rules and exit, as `sluice cleanup` does; under the name kube-proxy and with --takeover also what kube-proxy left' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l init-only -d 'Set what of the kernel needs more than CAP_NET_ADMIN (conntrack, forwarding), and exit: for a privileged init container. Without the flag it is tried, too, and one warning says what could not be set' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -s V -l version -d 'Print the version and exit' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l oom-score-adj -d 'oom_score_adj of this process, -1000 to 1000; best effort [default: -999]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l feature-gates -d 'No gate changes anything; those that are unknown here are named at start' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l boot-id-file -d 'Nothing reads it, in kube-proxy neither' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l machine-id-file -d 'Nothing reads it, in kube-proxy neither' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l iptables-masquerade-bit -d 'No bit of the mark is used; it is checked only [default: 14]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l iptables-localhost-nodeports -d 'NodePorts are served on loopback addresses only where nodePortAddresses says localhost' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l ipvs-sync-period -d 'How often everything is compared with the kernel, since IPVS does not tell of changes [default: 30s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l ipvs-min-sync-period -d 'Least time between two syncs that wrote something [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l ipvs-scheduler -d 'rr, wrr, lc, wlc, sh, dh, mh, sed, nq, lblc, lblcr, fo or ovf; "" is rr. A Service chooses another by its annotation sluice/ipvs-scheduler' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l ipvs-exclude-cidrs -d 'Virtual services in these ranges that sluice did not make are left alone, those of kube-proxy\'s mode ipvs, too. All others\' are anyway' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l ipvs-strict-arp -d 'Set net.ipv4.conf.all.arp_ignore to 1 and arp_announce to 2' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l ipvs-tcp-timeout -d 'How long IPVS remembers a TCP connection without packets; 0: as the kernel has it [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l ipvs-tcpfin-timeout -d 'The same after a FIN; 0: as the kernel has it [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l ipvs-service-metrics -d 'sluice\'s own: metrics sluice_ipvs_* by Service port (connections, packets, bytes), read from IPVS when they are asked for' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l ipvs-udp-timeout -d 'The same of UDP; 0: as the kernel has it [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l network-name -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l source-vip -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l enable-dsr -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l root-hnsendpoint-name -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l forward-healthcheck-vip -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -l windows-service -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand run" -s h -l help -d 'Print help'
complete -c sluice -n "__fish_sluice_using_subcommand cleanup" -l kube-proxy -d 'Remove what kube-proxy left, too: its nftables tables, its KUBE-* chains in iptables (nft and legacy), kube-ipvs0 and its virtual services in IPVS'
complete -c sluice -n "__fish_sluice_using_subcommand cleanup" -l force -d 'Do so though a kube-proxy seems to be running, which would make its rules again'
complete -c sluice -n "__fish_sluice_using_subcommand cleanup" -s h -l help -d 'Print help'
complete -c sluice -n "__fish_sluice_using_subcommand cleanup" -s V -l version -d 'Print version'
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l takeover -d 'Remove what kube-proxy left, once the rules are in place, unless a kube-proxy is running. On by itself under the name kube-proxy' -r -f -a "true\t''
false\t''"
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l hold-connections -d 'Established connections survive it when somebody flushes all nftables rules: a table inet sluice-hold, which nobody else can change, keeps the kernel tracking and translating them. nft 1.0.6 and older print garbage for its flag as JSON (sometimes nothing, or what is no JSON), on which programs that read `nft -j list ruleset`, as podman, may fail; 1.1.3 is fine' -r -f -a "true\t''
false\t''"
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l manifests -d 'File or folder of YAML or JSON with Services, EndpointSlices, Nodes and ServiceCIDRs, in place of an API server. Files of a folder: *.yaml, *.yml, *.json' -r -F
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l allowed-external-ips -d 'Which spec.externalIPs Services may have: all, none, or ranges separated by commas. Whoever may make Services may name any address there and gets the pods\' connections to it (CVE-2020-8554)' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l allowed-load-balancer-ips -d 'The same of addresses in status.loadBalancer, which take the right to write a Service\'s status' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l conntrack-drop-invalid -d 'Drop packets of connections to Services that conntrack calls INVALID (a TCP segment out of the window): they go untranslated, and whom they reach answers with a reset. Does nothing with --conntrack-tcp-be-liberal, the usual remedy, which has no such packets. The metric kubeproxy_iptables_ct_state_invalid_dropped_packets_total counts' -r -f -a "true\t''
false\t''"
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l kubeconfig -d 'Path of a kubeconfig file that says how to reach the API server; without it the Pod\'s service account does' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l master -d 'URL of the API server, in place of the kubeconfig\'s; counts beside --config, too' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l kube-api-content-type -d 'Objects are asked for as JSON [default: application/vnd.kubernetes.protobuf]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l kube-api-qps -d 'There are four watches and a few events, nothing to slow down [default: 5.0]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l kube-api-burst -d 'See qps [default: 10]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l config-sync-period -d 'Changes come by watch; there is no second list to compare with [default: 15m0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l hostname-override -l node-name -d 'Name of the own Node; without it this host\'s name, in lower case. The flag counts beside --config, too' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l proxy-mode -l mode -d '"nftables" or "ipvs"; "" and "iptables" mean nftables here, too, with a line in the log' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l cluster-cidr -d 'Ranges of pod addresses, separated by commas. kube-proxy takes one of each family; here there may be more' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l detect-local-mode -d 'How traffic of this node\'s pods is told from outside traffic: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix [default: ClusterCIDR]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l pod-bridge-interface -d 'The bridge that pods are on, for BridgeInterface' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l pod-interface-name-prefix -d 'What the names of pods\' interfaces start with, for InterfaceNamePrefix' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l nodeport-addresses -d 'Where NodePorts are served: primary, localhost, all, ranges, in any mix; empty: primary. localhost is 127.0.0.1 and [::1], for TCP only; all and ranges have no loopback addresses' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l bind-address -d 'The Node\'s primary address, in place of what its object says; nothing is bound to it. Its family is that of the servers\' default addresses [default: 0.0.0.0]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l masquerade-all -d 'Masquerade every connection to a ClusterIP. This field does nothing where mode is nftables; the flag always counts' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l iptables-sync-period -d 'No effect. The flag sets nftables.syncPeriod, as in kube-proxy [default: 30s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l iptables-min-sync-period -d 'Least time between two writes; changes meanwhile are written together. The flag sets nftables.minSyncPeriod, as in kube-proxy; this field does nothing [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l healthz-bind-address -d 'Where /healthz, /livez and /readyz are served; a port may be left out [default: 0.0.0.0:10256]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l metrics-bind-address -d 'Where /metrics, /proxyMode, /configz and /healthz are served; a port may be left out; an empty flag: nowhere [default: 127.0.0.1:10249]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l bind-address-hard-fail -d 'End when an address cannot be bound, instead of trying again' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l profiling -d 'There are no profiles to fetch' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l show-hidden-metrics-for-version -d 'No metric is hidden' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l healthz-port -d 'Port of --healthz-bind-address where that has none; 0: no such server' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l metrics-port -d 'Port of --metrics-bind-address where that has none; 0: no such server' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l conntrack-max-per-core -d 'Least limit of tracked connections per CPU core of the host, up to 1,048,576 in all; 0: the host\'s limit stays. The limit is never lowered [default: 32768]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l conntrack-min -d 'Least limit of tracked connections, whatever --conntrack-max-per-core says (unless 0) [default: 131072]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l conntrack-tcp-timeout-established -d 'Time without packets after which an established TCP connection is forgotten; 0: the host\'s setting stays [default: 24h0m0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l conntrack-tcp-timeout-close-wait -d 'The same for TCP connections in CLOSE_WAIT; 0: the host\'s setting stays [default: 1h0m0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l conntrack-tcp-be-liberal -d 'Set nf_conntrack_tcp_be_liberal' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l conntrack-udp-timeout -d 'The same for UDP with no answer; 0: the host\'s setting stays [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l conntrack-udp-timeout-stream -d 'The same for UDP with an answer; 0: the host\'s setting stays [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l logging-format -d 'text or json. Flags about logs count beside --config, too [default: text]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -s v -l v -d '0 and 1: what an operator needs; 2 and 3: each sync, too; 4 and 5: each plan; 6 and more: everything [default: 0]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l log-flush-frequency -d 'Lines are written at once [default: 5s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l vmodule -d 'These are names of Go files' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l log-json-info-buffer-size -d 'See logging.options' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l log-json-split-stream -d 'See logging.options' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l log-text-info-buffer-size -d 'See logging.options' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l log-text-split-stream -d 'See logging.options' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l config -d 'Path of a KubeProxyConfiguration file; flags with a field in it are then ignored, but for --hostname-override and those about logs. Changes take effect by themselves, with the rules in place all the while; content that makes no sense changes nothing' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l write-config-to -d 'Write the configuration with all defaults to this file and exit' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l cleanup -d 'Remove the rules and exit, as `sluice cleanup` does; under the name kube-proxy and with --takeover also what kube-proxy left' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l init-only -d 'Set what of the kernel needs more than CAP_NET_ADMIN (conntrack, forwarding), and exit: for a privileged init container. Without the flag it is tried, too, and one warning says what could not be set' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -s V -l version -d 'Print the version and exit' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l oom-score-adj -d 'oom_score_adj of this process, -1000 to 1000; best effort [default: -999]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l feature-gates -d 'No gate changes anything; those that are unknown here are named at start' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l boot-id-file -d 'Nothing reads it, in kube-proxy neither' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l machine-id-file -d 'Nothing reads it, in kube-proxy neither' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l iptables-masquerade-bit -d 'No bit of the mark is used; it is checked only [default: 14]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l iptables-localhost-nodeports -d 'NodePorts are served on loopback addresses only where nodePortAddresses says localhost' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l ipvs-sync-period -d 'How often everything is compared with the kernel, since IPVS does not tell of changes [default: 30s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l ipvs-min-sync-period -d 'Least time between two syncs that wrote something [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l ipvs-scheduler -d 'rr, wrr, lc, wlc, sh, dh, mh, sed, nq, lblc, lblcr, fo or ovf; "" is rr. A Service chooses another by its annotation sluice/ipvs-scheduler' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l ipvs-exclude-cidrs -d 'Virtual services in these ranges that sluice did not make are left alone, those of kube-proxy\'s mode ipvs, too. All others\' are anyway' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l ipvs-strict-arp -d 'Set net.ipv4.conf.all.arp_ignore to 1 and arp_announce to 2' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l ipvs-tcp-timeout -d 'How long IPVS remembers a TCP connection without packets; 0: as the kernel has it [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l ipvs-tcpfin-timeout -d 'The same after a FIN; 0: as the kernel has it [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l ipvs-service-metrics -d 'sluice\'s own: metrics sluice_ipvs_* by Service port (connections, packets, bytes), read from IPVS when they are asked for' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l ipvs-udp-timeout -d 'The same of UDP; 0: as the kernel has it [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l network-name -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l source-vip -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l enable-dsr -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l root-hnsendpoint-name -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l forward-healthcheck-vip -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -l windows-service -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand dump" -s h -l help -d 'Print help'
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l takeover -d 'Remove what kube-proxy left, once the rules are in place, unless a kube-proxy is running. On by itself under the name kube-proxy' -r -f -a "true\t''
false\t''"
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l hold-connections -d 'Established connections survive it when somebody flushes all nftables rules: a table inet sluice-hold, which nobody else can change, keeps the kernel tracking and translating them. nft 1.0.6 and older print garbage for its flag as JSON (sometimes nothing, or what is no JSON), on which programs that read `nft -j list ruleset`, as podman, may fail; 1.1.3 is fine' -r -f -a "true\t''
false\t''"
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l manifests -d 'File or folder of YAML or JSON with Services, EndpointSlices, Nodes and ServiceCIDRs, in place of an API server. Files of a folder: *.yaml, *.yml, *.json' -r -F
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l allowed-external-ips -d 'Which spec.externalIPs Services may have: all, none, or ranges separated by commas. Whoever may make Services may name any address there and gets the pods\' connections to it (CVE-2020-8554)' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l allowed-load-balancer-ips -d 'The same of addresses in status.loadBalancer, which take the right to write a Service\'s status' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l conntrack-drop-invalid -d 'Drop packets of connections to Services that conntrack calls INVALID (a TCP segment out of the window): they go untranslated, and whom they reach answers with a reset. Does nothing with --conntrack-tcp-be-liberal, the usual remedy, which has no such packets. The metric kubeproxy_iptables_ct_state_invalid_dropped_packets_total counts' -r -f -a "true\t''
false\t''"
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l kubeconfig -d 'Path of a kubeconfig file that says how to reach the API server; without it the Pod\'s service account does' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l master -d 'URL of the API server, in place of the kubeconfig\'s; counts beside --config, too' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l kube-api-content-type -d 'Objects are asked for as JSON [default: application/vnd.kubernetes.protobuf]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l kube-api-qps -d 'There are four watches and a few events, nothing to slow down [default: 5.0]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l kube-api-burst -d 'See qps [default: 10]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l config-sync-period -d 'Changes come by watch; there is no second list to compare with [default: 15m0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l hostname-override -l node-name -d 'Name of the own Node; without it this host\'s name, in lower case. The flag counts beside --config, too' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l proxy-mode -l mode -d '"nftables" or "ipvs"; "" and "iptables" mean nftables here, too, with a line in the log' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l cluster-cidr -d 'Ranges of pod addresses, separated by commas. kube-proxy takes one of each family; here there may be more' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l detect-local-mode -d 'How traffic of this node\'s pods is told from outside traffic: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix [default: ClusterCIDR]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l pod-bridge-interface -d 'The bridge that pods are on, for BridgeInterface' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l pod-interface-name-prefix -d 'What the names of pods\' interfaces start with, for InterfaceNamePrefix' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l nodeport-addresses -d 'Where NodePorts are served: primary, localhost, all, ranges, in any mix; empty: primary. localhost is 127.0.0.1 and [::1], for TCP only; all and ranges have no loopback addresses' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l bind-address -d 'The Node\'s primary address, in place of what its object says; nothing is bound to it. Its family is that of the servers\' default addresses [default: 0.0.0.0]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l masquerade-all -d 'Masquerade every connection to a ClusterIP. This field does nothing where mode is nftables; the flag always counts' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l iptables-sync-period -d 'No effect. The flag sets nftables.syncPeriod, as in kube-proxy [default: 30s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l iptables-min-sync-period -d 'Least time between two writes; changes meanwhile are written together. The flag sets nftables.minSyncPeriod, as in kube-proxy; this field does nothing [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l healthz-bind-address -d 'Where /healthz, /livez and /readyz are served; a port may be left out [default: 0.0.0.0:10256]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l metrics-bind-address -d 'Where /metrics, /proxyMode, /configz and /healthz are served; a port may be left out; an empty flag: nowhere [default: 127.0.0.1:10249]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l bind-address-hard-fail -d 'End when an address cannot be bound, instead of trying again' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l profiling -d 'There are no profiles to fetch' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l show-hidden-metrics-for-version -d 'No metric is hidden' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l healthz-port -d 'Port of --healthz-bind-address where that has none; 0: no such server' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l metrics-port -d 'Port of --metrics-bind-address where that has none; 0: no such server' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l conntrack-max-per-core -d 'Least limit of tracked connections per CPU core of the host, up to 1,048,576 in all; 0: the host\'s limit stays. The limit is never lowered [default: 32768]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l conntrack-min -d 'Least limit of tracked connections, whatever --conntrack-max-per-core says (unless 0) [default: 131072]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l conntrack-tcp-timeout-established -d 'Time without packets after which an established TCP connection is forgotten; 0: the host\'s setting stays [default: 24h0m0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l conntrack-tcp-timeout-close-wait -d 'The same for TCP connections in CLOSE_WAIT; 0: the host\'s setting stays [default: 1h0m0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l conntrack-tcp-be-liberal -d 'Set nf_conntrack_tcp_be_liberal' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l conntrack-udp-timeout -d 'The same for UDP with no answer; 0: the host\'s setting stays [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l conntrack-udp-timeout-stream -d 'The same for UDP with an answer; 0: the host\'s setting stays [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l logging-format -d 'text or json. Flags about logs count beside --config, too [default: text]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -s v -l v -d '0 and 1: what an operator needs; 2 and 3: each sync, too; 4 and 5: each plan; 6 and more: everything [default: 0]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l log-flush-frequency -d 'Lines are written at once [default: 5s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l vmodule -d 'These are names of Go files' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l log-json-info-buffer-size -d 'See logging.options' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l log-json-split-stream -d 'See logging.options' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l log-text-info-buffer-size -d 'See logging.options' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l log-text-split-stream -d 'See logging.options' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l config -d 'Path of a KubeProxyConfiguration file; flags with a field in it are then ignored, but for --hostname-override and those about logs. Changes take effect by themselves, with the rules in place all the while; content that makes no sense changes nothing' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l write-config-to -d 'Write the configuration with all defaults to this file and exit' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l cleanup -d 'Remove the rules and exit, as `sluice cleanup` does; under the name kube-proxy and with --takeover also what kube-proxy left' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l init-only -d 'Set what of the kernel needs more than CAP_NET_ADMIN (conntrack, forwarding), and exit: for a privileged init container. Without the flag it is tried, too, and one warning says what could not be set' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -s V -l version -d 'Print the version and exit' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l oom-score-adj -d 'oom_score_adj of this process, -1000 to 1000; best effort [default: -999]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l feature-gates -d 'No gate changes anything; those that are unknown here are named at start' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l boot-id-file -d 'Nothing reads it, in kube-proxy neither' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l machine-id-file -d 'Nothing reads it, in kube-proxy neither' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l iptables-masquerade-bit -d 'No bit of the mark is used; it is checked only [default: 14]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l iptables-localhost-nodeports -d 'NodePorts are served on loopback addresses only where nodePortAddresses says localhost' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l ipvs-sync-period -d 'How often everything is compared with the kernel, since IPVS does not tell of changes [default: 30s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l ipvs-min-sync-period -d 'Least time between two syncs that wrote something [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l ipvs-scheduler -d 'rr, wrr, lc, wlc, sh, dh, mh, sed, nq, lblc, lblcr, fo or ovf; "" is rr. A Service chooses another by its annotation sluice/ipvs-scheduler' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l ipvs-exclude-cidrs -d 'Virtual services in these ranges that sluice did not make are left alone, those of kube-proxy\'s mode ipvs, too. All others\' are anyway' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l ipvs-strict-arp -d 'Set net.ipv4.conf.all.arp_ignore to 1 and arp_announce to 2' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l ipvs-tcp-timeout -d 'How long IPVS remembers a TCP connection without packets; 0: as the kernel has it [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l ipvs-tcpfin-timeout -d 'The same after a FIN; 0: as the kernel has it [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l ipvs-service-metrics -d 'sluice\'s own: metrics sluice_ipvs_* by Service port (connections, packets, bytes), read from IPVS when they are asked for' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l ipvs-udp-timeout -d 'The same of UDP; 0: as the kernel has it [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l network-name -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l source-vip -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l enable-dsr -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l root-hnsendpoint-name -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l forward-healthcheck-vip -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -l windows-service -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand diff" -s h -l help -d 'Print help'
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l from -d 'The client\'s address. Without it: a pod, this node, and an outside client' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l format -d 'For people or for programs' -r -f -a "text\t''
json\t''"
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l takeover -d 'Remove what kube-proxy left, once the rules are in place, unless a kube-proxy is running. On by itself under the name kube-proxy' -r -f -a "true\t''
false\t''"
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l hold-connections -d 'Established connections survive it when somebody flushes all nftables rules: a table inet sluice-hold, which nobody else can change, keeps the kernel tracking and translating them. nft 1.0.6 and older print garbage for its flag as JSON (sometimes nothing, or what is no JSON), on which programs that read `nft -j list ruleset`, as podman, may fail; 1.1.3 is fine' -r -f -a "true\t''
false\t''"
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l manifests -d 'File or folder of YAML or JSON with Services, EndpointSlices, Nodes and ServiceCIDRs, in place of an API server. Files of a folder: *.yaml, *.yml, *.json' -r -F
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l allowed-external-ips -d 'Which spec.externalIPs Services may have: all, none, or ranges separated by commas. Whoever may make Services may name any address there and gets the pods\' connections to it (CVE-2020-8554)' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l allowed-load-balancer-ips -d 'The same of addresses in status.loadBalancer, which take the right to write a Service\'s status' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l conntrack-drop-invalid -d 'Drop packets of connections to Services that conntrack calls INVALID (a TCP segment out of the window): they go untranslated, and whom they reach answers with a reset. Does nothing with --conntrack-tcp-be-liberal, the usual remedy, which has no such packets. The metric kubeproxy_iptables_ct_state_invalid_dropped_packets_total counts' -r -f -a "true\t''
false\t''"
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l kubeconfig -d 'Path of a kubeconfig file that says how to reach the API server; without it the Pod\'s service account does' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l master -d 'URL of the API server, in place of the kubeconfig\'s; counts beside --config, too' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l kube-api-content-type -d 'Objects are asked for as JSON [default: application/vnd.kubernetes.protobuf]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l kube-api-qps -d 'There are four watches and a few events, nothing to slow down [default: 5.0]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l kube-api-burst -d 'See qps [default: 10]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l config-sync-period -d 'Changes come by watch; there is no second list to compare with [default: 15m0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l hostname-override -l node-name -d 'Name of the own Node; without it this host\'s name, in lower case. The flag counts beside --config, too' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l proxy-mode -l mode -d '"nftables" or "ipvs"; "" and "iptables" mean nftables here, too, with a line in the log' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l cluster-cidr -d 'Ranges of pod addresses, separated by commas. kube-proxy takes one of each family; here there may be more' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l detect-local-mode -d 'How traffic of this node\'s pods is told from outside traffic: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix [default: ClusterCIDR]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l pod-bridge-interface -d 'The bridge that pods are on, for BridgeInterface' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l pod-interface-name-prefix -d 'What the names of pods\' interfaces start with, for InterfaceNamePrefix' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l nodeport-addresses -d 'Where NodePorts are served: primary, localhost, all, ranges, in any mix; empty: primary. localhost is 127.0.0.1 and [::1], for TCP only; all and ranges have no loopback addresses' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l bind-address -d 'The Node\'s primary address, in place of what its object says; nothing is bound to it. Its family is that of the servers\' default addresses [default: 0.0.0.0]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l masquerade-all -d 'Masquerade every connection to a ClusterIP. This field does nothing where mode is nftables; the flag always counts' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l iptables-sync-period -d 'No effect. The flag sets nftables.syncPeriod, as in kube-proxy [default: 30s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l iptables-min-sync-period -d 'Least time between two writes; changes meanwhile are written together. The flag sets nftables.minSyncPeriod, as in kube-proxy; this field does nothing [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l healthz-bind-address -d 'Where /healthz, /livez and /readyz are served; a port may be left out [default: 0.0.0.0:10256]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l metrics-bind-address -d 'Where /metrics, /proxyMode, /configz and /healthz are served; a port may be left out; an empty flag: nowhere [default: 127.0.0.1:10249]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l bind-address-hard-fail -d 'End when an address cannot be bound, instead of trying again' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l profiling -d 'There are no profiles to fetch' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l show-hidden-metrics-for-version -d 'No metric is hidden' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l healthz-port -d 'Port of --healthz-bind-address where that has none; 0: no such server' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l metrics-port -d 'Port of --metrics-bind-address where that has none; 0: no such server' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l conntrack-max-per-core -d 'Least limit of tracked connections per CPU core of the host, up to 1,048,576 in all; 0: the host\'s limit stays. The limit is never lowered [default: 32768]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l conntrack-min -d 'Least limit of tracked connections, whatever --conntrack-max-per-core says (unless 0) [default: 131072]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l conntrack-tcp-timeout-established -d 'Time without packets after which an established TCP connection is forgotten; 0: the host\'s setting stays [default: 24h0m0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l conntrack-tcp-timeout-close-wait -d 'The same for TCP connections in CLOSE_WAIT; 0: the host\'s setting stays [default: 1h0m0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l conntrack-tcp-be-liberal -d 'Set nf_conntrack_tcp_be_liberal' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l conntrack-udp-timeout -d 'The same for UDP with no answer; 0: the host\'s setting stays [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l conntrack-udp-timeout-stream -d 'The same for UDP with an answer; 0: the host\'s setting stays [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l logging-format -d 'text or json. Flags about logs count beside --config, too [default: text]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -s v -l v -d '0 and 1: what an operator needs; 2 and 3: each sync, too; 4 and 5: each plan; 6 and more: everything [default: 0]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l log-flush-frequency -d 'Lines are written at once [default: 5s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l vmodule -d 'These are names of Go files' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l log-json-info-buffer-size -d 'See logging.options' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l log-json-split-stream -d 'See logging.options' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l log-text-info-buffer-size -d 'See logging.options' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l log-text-split-stream -d 'See logging.options' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l config -d 'Path of a KubeProxyConfiguration file; flags with a field in it are then ignored, but for --hostname-override and those about logs. Changes take effect by themselves, with the rules in place all the while; content that makes no sense changes nothing' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l write-config-to -d 'Write the configuration with all defaults to this file and exit' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l cleanup -d 'Remove the rules and exit, as `sluice cleanup` does; under the name kube-proxy and with --takeover also what kube-proxy left' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l init-only -d 'Set what of the kernel needs more than CAP_NET_ADMIN (conntrack, forwarding), and exit: for a privileged init container. Without the flag it is tried, too, and one warning says what could not be set' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -s V -l version -d 'Print the version and exit' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l oom-score-adj -d 'oom_score_adj of this process, -1000 to 1000; best effort [default: -999]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l feature-gates -d 'No gate changes anything; those that are unknown here are named at start' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l boot-id-file -d 'Nothing reads it, in kube-proxy neither' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l machine-id-file -d 'Nothing reads it, in kube-proxy neither' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l iptables-masquerade-bit -d 'No bit of the mark is used; it is checked only [default: 14]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l iptables-localhost-nodeports -d 'NodePorts are served on loopback addresses only where nodePortAddresses says localhost' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l ipvs-sync-period -d 'How often everything is compared with the kernel, since IPVS does not tell of changes [default: 30s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l ipvs-min-sync-period -d 'Least time between two syncs that wrote something [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l ipvs-scheduler -d 'rr, wrr, lc, wlc, sh, dh, mh, sed, nq, lblc, lblcr, fo or ovf; "" is rr. A Service chooses another by its annotation sluice/ipvs-scheduler' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l ipvs-exclude-cidrs -d 'Virtual services in these ranges that sluice did not make are left alone, those of kube-proxy\'s mode ipvs, too. All others\' are anyway' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l ipvs-strict-arp -d 'Set net.ipv4.conf.all.arp_ignore to 1 and arp_announce to 2' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l ipvs-tcp-timeout -d 'How long IPVS remembers a TCP connection without packets; 0: as the kernel has it [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l ipvs-tcpfin-timeout -d 'The same after a FIN; 0: as the kernel has it [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l ipvs-service-metrics -d 'sluice\'s own: metrics sluice_ipvs_* by Service port (connections, packets, bytes), read from IPVS when they are asked for' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l ipvs-udp-timeout -d 'The same of UDP; 0: as the kernel has it [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l network-name -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l source-vip -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l enable-dsr -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l root-hnsendpoint-name -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l forward-healthcheck-vip -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -l windows-service -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand explain" -s h -l help -d 'Print help'
complete -c sluice -n "__fish_sluice_using_subcommand check" -l format -d 'Text for people, or JSON for programs: healthy, checks, findings with check, severity, what and remedy' -r -f -a "text\t''
json\t''"
complete -c sluice -n "__fish_sluice_using_subcommand check" -l takeover -d 'Remove what kube-proxy left, once the rules are in place, unless a kube-proxy is running. On by itself under the name kube-proxy' -r -f -a "true\t''
false\t''"
complete -c sluice -n "__fish_sluice_using_subcommand check" -l hold-connections -d 'Established connections survive it when somebody flushes all nftables rules: a table inet sluice-hold, which nobody else can change, keeps the kernel tracking and translating them. nft 1.0.6 and older print garbage for its flag as JSON (sometimes nothing, or what is no JSON), on which programs that read `nft -j list ruleset`, as podman, may fail; 1.1.3 is fine' -r -f -a "true\t''
false\t''"
complete -c sluice -n "__fish_sluice_using_subcommand check" -l manifests -d 'File or folder of YAML or JSON with Services, EndpointSlices, Nodes and ServiceCIDRs, in place of an API server. Files of a folder: *.yaml, *.yml, *.json' -r -F
complete -c sluice -n "__fish_sluice_using_subcommand check" -l allowed-external-ips -d 'Which spec.externalIPs Services may have: all, none, or ranges separated by commas. Whoever may make Services may name any address there and gets the pods\' connections to it (CVE-2020-8554)' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l allowed-load-balancer-ips -d 'The same of addresses in status.loadBalancer, which take the right to write a Service\'s status' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l conntrack-drop-invalid -d 'Drop packets of connections to Services that conntrack calls INVALID (a TCP segment out of the window): they go untranslated, and whom they reach answers with a reset. Does nothing with --conntrack-tcp-be-liberal, the usual remedy, which has no such packets. The metric kubeproxy_iptables_ct_state_invalid_dropped_packets_total counts' -r -f -a "true\t''
false\t''"
complete -c sluice -n "__fish_sluice_using_subcommand check" -l kubeconfig -d 'Path of a kubeconfig file that says how to reach the API server; without it the Pod\'s service account does' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l master -d 'URL of the API server, in place of the kubeconfig\'s; counts beside --config, too' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l kube-api-content-type -d 'Objects are asked for as JSON [default: application/vnd.kubernetes.protobuf]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l kube-api-qps -d 'There are four watches and a few events, nothing to slow down [default: 5.0]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l kube-api-burst -d 'See qps [default: 10]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l config-sync-period -d 'Changes come by watch; there is no second list to compare with [default: 15m0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l hostname-override -l node-name -d 'Name of the own Node; without it this host\'s name, in lower case. The flag counts beside --config, too' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l proxy-mode -l mode -d '"nftables" or "ipvs"; "" and "iptables" mean nftables here, too, with a line in the log' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l cluster-cidr -d 'Ranges of pod addresses, separated by commas. kube-proxy takes one of each family; here there may be more' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l detect-local-mode -d 'How traffic of this node\'s pods is told from outside traffic: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix [default: ClusterCIDR]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l pod-bridge-interface -d 'The bridge that pods are on, for BridgeInterface' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l pod-interface-name-prefix -d 'What the names of pods\' interfaces start with, for InterfaceNamePrefix' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l nodeport-addresses -d 'Where NodePorts are served: primary, localhost, all, ranges, in any mix; empty: primary. localhost is 127.0.0.1 and [::1], for TCP only; all and ranges have no loopback addresses' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l bind-address -d 'The Node\'s primary address, in place of what its object says; nothing is bound to it. Its family is that of the servers\' default addresses [default: 0.0.0.0]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l masquerade-all -d 'Masquerade every connection to a ClusterIP. This field does nothing where mode is nftables; the flag always counts' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l iptables-sync-period -d 'No effect. The flag sets nftables.syncPeriod, as in kube-proxy [default: 30s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l iptables-min-sync-period -d 'Least time between two writes; changes meanwhile are written together. The flag sets nftables.minSyncPeriod, as in kube-proxy; this field does nothing [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l healthz-bind-address -d 'Where /healthz, /livez and /readyz are served; a port may be left out [default: 0.0.0.0:10256]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l metrics-bind-address -d 'Where /metrics, /proxyMode, /configz and /healthz are served; a port may be left out; an empty flag: nowhere [default: 127.0.0.1:10249]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l bind-address-hard-fail -d 'End when an address cannot be bound, instead of trying again' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l profiling -d 'There are no profiles to fetch' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l show-hidden-metrics-for-version -d 'No metric is hidden' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l healthz-port -d 'Port of --healthz-bind-address where that has none; 0: no such server' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l metrics-port -d 'Port of --metrics-bind-address where that has none; 0: no such server' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l conntrack-max-per-core -d 'Least limit of tracked connections per CPU core of the host, up to 1,048,576 in all; 0: the host\'s limit stays. The limit is never lowered [default: 32768]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l conntrack-min -d 'Least limit of tracked connections, whatever --conntrack-max-per-core says (unless 0) [default: 131072]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l conntrack-tcp-timeout-established -d 'Time without packets after which an established TCP connection is forgotten; 0: the host\'s setting stays [default: 24h0m0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l conntrack-tcp-timeout-close-wait -d 'The same for TCP connections in CLOSE_WAIT; 0: the host\'s setting stays [default: 1h0m0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l conntrack-tcp-be-liberal -d 'Set nf_conntrack_tcp_be_liberal' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l conntrack-udp-timeout -d 'The same for UDP with no answer; 0: the host\'s setting stays [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l conntrack-udp-timeout-stream -d 'The same for UDP with an answer; 0: the host\'s setting stays [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l logging-format -d 'text or json. Flags about logs count beside --config, too [default: text]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -s v -l v -d '0 and 1: what an operator needs; 2 and 3: each sync, too; 4 and 5: each plan; 6 and more: everything [default: 0]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l log-flush-frequency -d 'Lines are written at once [default: 5s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l vmodule -d 'These are names of Go files' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l log-json-info-buffer-size -d 'See logging.options' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l log-json-split-stream -d 'See logging.options' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l log-text-info-buffer-size -d 'See logging.options' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l log-text-split-stream -d 'See logging.options' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l config -d 'Path of a KubeProxyConfiguration file; flags with a field in it are then ignored, but for --hostname-override and those about logs. Changes take effect by themselves, with the rules in place all the while; content that makes no sense changes nothing' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l write-config-to -d 'Write the configuration with all defaults to this file and exit' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l cleanup -d 'Remove the rules and exit, as `sluice cleanup` does; under the name kube-proxy and with --takeover also what kube-proxy left' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l init-only -d 'Set what of the kernel needs more than CAP_NET_ADMIN (conntrack, forwarding), and exit: for a privileged init container. Without the flag it is tried, too, and one warning says what could not be set' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -s V -l version -d 'Print the version and exit' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l oom-score-adj -d 'oom_score_adj of this process, -1000 to 1000; best effort [default: -999]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l feature-gates -d 'No gate changes anything; those that are unknown here are named at start' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l boot-id-file -d 'Nothing reads it, in kube-proxy neither' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l machine-id-file -d 'Nothing reads it, in kube-proxy neither' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l iptables-masquerade-bit -d 'No bit of the mark is used; it is checked only [default: 14]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l iptables-localhost-nodeports -d 'NodePorts are served on loopback addresses only where nodePortAddresses says localhost' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l ipvs-sync-period -d 'How often everything is compared with the kernel, since IPVS does not tell of changes [default: 30s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l ipvs-min-sync-period -d 'Least time between two syncs that wrote something [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l ipvs-scheduler -d 'rr, wrr, lc, wlc, sh, dh, mh, sed, nq, lblc, lblcr, fo or ovf; "" is rr. A Service chooses another by its annotation sluice/ipvs-scheduler' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l ipvs-exclude-cidrs -d 'Virtual services in these ranges that sluice did not make are left alone, those of kube-proxy\'s mode ipvs, too. All others\' are anyway' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l ipvs-strict-arp -d 'Set net.ipv4.conf.all.arp_ignore to 1 and arp_announce to 2' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l ipvs-tcp-timeout -d 'How long IPVS remembers a TCP connection without packets; 0: as the kernel has it [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l ipvs-tcpfin-timeout -d 'The same after a FIN; 0: as the kernel has it [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l ipvs-service-metrics -d 'sluice\'s own: metrics sluice_ipvs_* by Service port (connections, packets, bytes), read from IPVS when they are asked for' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l ipvs-udp-timeout -d 'The same of UDP; 0: as the kernel has it [default: 0s]' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l network-name -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l source-vip -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l enable-dsr -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l root-hnsendpoint-name -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l forward-healthcheck-vip -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -l windows-service -d 'For Windows only' -r
complete -c sluice -n "__fish_sluice_using_subcommand check" -s h -l help -d 'Print help'
