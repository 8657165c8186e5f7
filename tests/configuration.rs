//! Files of KubeProxyConfiguration as others write them, and the pages for operators.
//!
//! testdata/configuration/defaults/NAME.yaml is what `--write-config-to` makes of testdata/configuration/NAME.yaml;
//! deploy/CONFIGURATION.md is printed from the program's table; deploy/man and deploy/completions are made of its command
//! line, here and not in the program, which is smaller for that. `make bless` writes all of them anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const SLUICE: &str = env!("CARGO_BIN_EXE_sluice");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sluice(arguments: &[&str]) -> Output {
    Command::new(SLUICE).args(arguments).output().expect("sluice runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Compares with what is recorded, or records it.
fn golden(path: &Path, now: &str) {
    if std::env::var_os("BLESS").is_some() {
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, now).expect("it can be written");
        return;
    }
    let recorded = fs::read_to_string(path).unwrap_or_default();
    assert!(recorded == now, "{} is stale (`make bless` if that is right); now:\n{now}", path.display());
}

fn files() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("testdata/configuration")).expect("testdata/configuration");
    let mut files: Vec<_> = entries.map(|e| e.expect("an entry").path()).filter(|p| p.is_file()).collect();
    files.sort();
    assert!(files.len() >= 3, "files are missing");
    files
}

#[test]
fn defaults_are_filled_in_as_recorded() {
    let written = tempfile::tempdir().expect("a folder");
    let mut cases: Vec<_> = files().into_iter().map(Some).collect();
    cases.push(None);
    for file in cases {
        let name = file.as_ref().map_or("no-file.yaml".into(), |f| f.file_name().expect("a name").to_owned());
        let out = written.path().join(&name);
        let config = file.as_ref().map(|f| format!("--config={}", f.display()));
        let write = format!("--write-config-to={}", out.display());
        let flags: Vec<&str> = ["run", write.as_str()].into_iter().chain(config.as_deref()).collect();
        let output = sluice(&flags);
        assert!(output.status.success(), "{name:?}: {}", text(&output.stderr));
        let now = fs::read_to_string(&out).expect("it was written");
        golden(&root().join("testdata/configuration/defaults").join(&name), &now);

        // What is written says the same again.
        let again = written.path().join("again.yaml");
        let flags = [
            "run",
            &format!("--config={}", out.display()),
            &format!("--write-config-to={}", again.display()),
        ];
        assert!(sluice(&flags).status.success(), "{name:?}");
        assert_eq!(fs::read_to_string(&again).expect("it was written"), now, "{name:?}");
    }
}

#[test]
fn the_page_is_up_to_date() {
    golden(&root().join("deploy/CONFIGURATION.md"), &sluice::config::reference::page());
}

/// Names of the files in a folder, with what is in them.
fn folder(path: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(path).into_iter().flatten().map(|entry| entry.expect("an entry").path());
    entries
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, fs::read_to_string(path).expect("text"))
        })
        .collect()
}

/// `golden` for a whole folder.
fn golden_folder(recorded: &Path, now: &Path) {
    for (name, text) in folder(now) {
        golden(&recorded.join(name), &text);
    }
    let names = |path| folder(path).into_keys().collect::<Vec<_>>();
    assert_eq!(names(recorded), names(now), "nothing else is in {}", recorded.display());
}

#[test]
fn the_man_pages_are_up_to_date() {
    let now = tempfile::tempdir().expect("a folder");
    clap_mangen::generate_to(sluice::cli::command(), now.path()).expect("man pages");
    golden_folder(&root().join("deploy/man"), now.path());
}

#[test]
fn the_completions_are_up_to_date_and_complete() {
    use clap_complete::Shell::{Bash, Fish, Zsh};
    let now = tempfile::tempdir().expect("a folder");
    for shell in [Bash, Fish, Zsh] {
        clap_complete::generate_to(shell, &mut sluice::cli::command(), "sluice", now.path())
            .expect("a script");
    }
    golden_folder(&root().join("deploy/completions"), now.path());

    // As bash does after TAB; the words, the last one unfinished.
    let complete = |words: &[&str]| {
        let script = "source \"$1\"; shift; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1))
            _sluice sluice \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD - 1]}\"; echo \"${COMPREPLY[*]}\"";
        let file = now.path().join("sluice.bash");
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-c", script, "bash"]).arg(file).args(words);
        text(&bash.output().expect("bash runs").stdout).trim().to_owned()
    };
    assert_eq!(complete(&["sluice", "ex"]), "explain");
    assert_eq!(complete(&["sluice", "run", "--write-config-t"]), "--write-config-to");
    assert_eq!(complete(&["sluice", "cleanup", "--kube-"]), "--kube-proxy");
}

#[test]
fn everything_wrong_is_said_at_once_and_nothing_is_started() {
    let output = sluice(&[
        "run",
        "--manifests=/nonexistent",
        "--cluster-cidr=10.0.0.0",
        "--iptables-sync-period=0",
        "--oom-score-adj=2000",
        "--proxy-mode=userspace",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let talk = text(&output.stderr);
    for line in [
        "sluice: 4 settings make no sense:",
        "  --proxy-mode: \"userspace\" is none of nftables, iptables, ipvs",
        "  --cluster-cidr: \"10.0.0.0\" is not a CIDR",
        "  --iptables-sync-period: must be greater than 0",
        "  --oom-score-adj: must be within -1000 to 1000",
    ] {
        assert!(talk.contains(line), "{line:?} is not in\n{talk}");
    }
    assert_eq!(talk.lines().count(), 5, "{talk}");
}

#[test]
fn under_the_name_kube_proxy_it_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("kube-proxy");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_sluice"), &program).expect("a link");
    let call = |flags: &[&str]| Command::new(&program).args(flags).output().expect("it runs");
    assert_eq!(text(&call(&["--version"]).stdout), format!("sluice {}\n", env!("CARGO_PKG_VERSION")));
    assert!(text(&call(&["--help"]).stdout).contains("Usage: kube-proxy [OPTIONS]"));
    let output = call(&["--kubeconfig=/etc/kubeconfig", "--proxy-mode=nftables"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--kubeconfig /etc/kubeconfig: "), "{}", text(&output.stderr));
    assert_eq!(call(&["dump"]).status.code(), Some(2), "no positional arguments");
}

#[test]
fn dump_takes_the_command_line_of_run() {
    let manifests = format!("--manifests={}", root().join("demo/manifests").display());
    let line = ["--hostname-override=node1", "--cluster-cidr=10.128.0.0/16", "--conntrack-min=0", "-v=2"];
    let agents = ["--takeover", "--hold-connections"];
    let output = sluice(&[&["dump", &manifests], &line[..], &agents].concat());
    assert!(output.status.success() && !output.stdout.is_empty(), "{}", text(&output.stderr));
    let output = sluice(&["dump", &manifests, "--cleanup"]);
    assert!(text(&output.stderr).contains("--cleanup belongs to `sluice run`"), "{}", text(&output.stderr));
    assert_eq!(text(&sluice(&["dump", "-V"]).stdout), text(&sluice(&["--version"]).stdout));
}

#[test]
fn what_has_no_effect_is_one_line() {
    let file = root().join("testdata/configuration/everything.yaml");
    let config = format!("--config={}", file.display());
    // Settings of the kernel are set in a network namespace, not on this machine.
    let line =
        ["--net", SLUICE, "run", &config, "--masquerade-all", "--conntrack-min=5", "-v=2", "--init-only"];
    let output = Command::new("unshare").args(line).output().expect("unshare runs");
    let talk = text(&output.stderr);
    assert!(output.status.success(), "{talk}");
    let warnings: Vec<&str> = talk.lines().filter(|line| line.contains("WARN")).collect();
    let expected = [
        "ignored, since there is a --config: --masquerade-all, --conntrack-min",
        "has no effect here: clientConnection.acceptContentTypes, clientConnection.contentType, enableProfiling",
        "feature gates that are unknown here: SomethingElse",
    ];
    assert_eq!(warnings.len(), expected.len(), "{talk}");
    for line in expected {
        assert!(warnings.iter().any(|w| w.contains(line)), "{line:?} is not in\n{talk}");
    }
}
