//! Golden renderings: what `sluice dump` prints for each cluster in testdata/clusters is rules/CLUSTER.nft, and for some
//! of them in mode ipvs rules/CLUSTER.ipvs.
//!
//! `make bless` writes them anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Clusters that are rendered in mode ipvs, too.
const IPVS: [&str; 2] = ["dual-stack", "policies"];

/// The golden file's name, the mode and the folder of every rendering.
fn renderings() -> Vec<(String, &'static str, PathBuf)> {
    let mut clusters: Vec<_> = fs::read_dir(root().join("testdata/clusters"))
        .expect("testdata/clusters")
        .map(|entry| entry.expect("an entry").path())
        .map(|path| (path.file_name().expect("a name").to_string_lossy().into_owned(), path))
        .collect();
    clusters.sort();
    assert!(clusters.len() >= 9, "clusters are missing");
    let mut renderings = Vec::new();
    for (name, path) in clusters {
        if IPVS.contains(&name.as_str()) {
            renderings.push((format!("{name}.ipvs"), "ipvs", path.clone()));
        }
        renderings.push((format!("{name}.nft"), "nftables", path));
    }
    renderings
}

fn dump(mode: &str, cluster: &Path) -> String {
    let flags = fs::read_to_string(cluster.join("flags")).expect("flags");
    let output = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(["dump", "--manifests"])
        .arg(cluster.join("manifests"))
        .args(flags.split_whitespace())
        .args(["--proxy-mode", mode])
        .output()
        .expect("sluice runs");
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {talk}", cluster.display());
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn renderings_are_as_recorded() {
    let bless = std::env::var_os("BLESS").is_some();
    let mut wrong = Vec::new();
    for (name, mode, path) in renderings() {
        let golden = root().join("rules").join(&name);
        let now = dump(mode, &path);
        if bless {
            fs::write(&golden, &now).expect("rules/ can be written");
        } else if fs::read_to_string(&golden).unwrap_or_default() != now {
            let seen = std::env::temp_dir().join(format!("sluice-{name}"));
            fs::write(&seen, &now).expect("the temporary folder can be written");
            wrong.push(format!("diff {} {}", golden.display(), seen.display()));
        }
    }
    assert!(
        wrong.is_empty(),
        "differ from what was recorded (`make bless` if that is right):\n{}",
        wrong.join("\n")
    );
}

/// `dump | grep -v '^-' | nft -c -f -`, in a network namespace of its own. The other lines, of mode ipvs, are
/// `ipvsadm -R`'s, which needs a kernel with IPVS.
#[test]
fn nft_takes_every_rendering() {
    for (name, mode, path) in renderings() {
        let mut nft = Command::new("unshare")
            .args(["--net", "nft", "-c", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("unshare and nft are there");
        let text = dump(mode, &path);
        let text: String = text.split_inclusive('\n').filter(|line| !line.starts_with('-')).collect();
        std::io::Write::write_all(&mut nft.stdin.take().expect("a pipe"), text.as_bytes())
            .expect("nft reads");
        let output = nft.wait_with_output().expect("nft ends");
        let talk = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && talk.is_empty(), "{name} (this test needs root): {talk}");
    }
}
