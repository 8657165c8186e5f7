//! The agent needs CAP_NET_ADMIN and nothing else: no other capability, no new privilege, nothing to write to.

use super::lab::{Lab, NEW, SLUICE, WEB};

/// Runs what follows with everything mounted read-only but the folders of kernel and devices.
const READ_ONLY: &str = "set -e; mount --make-rprivate /; mount --rbind / /mnt
awk '$2 !~ \"^/mnt/(proc|sys|dev)\" && $2 ~ \"^/mnt\" {print $2}' /proc/mounts | while read -r m; do
  mount -o remount,bind,ro \"$m\" 2>/dev/null || true; done
cd /; exec chroot /mnt \"$@\"";

#[test]
fn net_admin_alone_serves_on_a_read_only_root() {
    let mut lab = Lab::new();
    let mut agent = lab.command("sh");
    // Sees to it that the setting is what it says.
    let check = "for f in / /tmp /root /etc; do touch $f/x 2>/dev/null && exit 9; done; grep -E 'Cap(Eff|Prm|Bnd)|NoNewPrivs' /proc/self/status >&2; \
                 exec \"$@\"";
    agent.args(["-c", READ_ONLY, "sh", "setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all"]);
    agent.args(["--no-new-privs", "sh", "-c", check, "sh", SLUICE, "run", "--takeover"]);
    lab.start(&mut agent);
    let logged = lab.logged();
    // CAP_NET_ADMIN is bit 12.
    for line in [
        "CapPrm:\t0000000000001000",
        "CapEff:\t0000000000001000",
        "CapBnd:\t0000000000001000",
        "NoNewPrivs:\t1",
    ] {
        assert!(logged.contains(line), "{line:?} is not in\n{logged}");
    }
    assert_eq!(lab.connects(WEB), Ok(()));
    assert_eq!(lab.connects(NEW), Ok(()));
    assert_eq!(lab.connects("198.18.0.1:30080"), Ok(()));
    assert!(!logged.contains("ERROR"), "{logged}");
    // What somebody flushes is repaired with the same rights.
    lab.sh("nft flush ruleset");
    lab.until("the rules are back", || lab.connects(WEB) == Ok(()));
    lab.stop();
}
