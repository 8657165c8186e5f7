//! Network namespaces, and nft in them.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use nix::sched::{CloneFlags, unshare};
use sluice::cluster::Family;
use sluice::dataplane::nftables::encode::{self, Plan, encode};
use sluice::netlink::Socket;

/// Runs a test in a new network namespace. Without root it fails.
pub fn in_new_namespace<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run this as root");
        test()
    });
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Debian 13's nft, as `.ci/nft-trixie` unpacks it.
pub fn trixie() -> &'static str {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/.ci/nft-trixie");
        run(script, &[], "").trim().to_owned()
    })
}

/// Runs nft in the namespace of the calling thread.
pub fn nft(arguments: &[&str], input: &str) -> String {
    run("nft", arguments, input)
}

/// Runs a program in the namespace of the calling thread; it must succeed.
pub fn run(program: &str, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    let _ = writer.join();
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{errors}\n{out}", output.status);
    out.into_owned()
}

/// Applies a plan by netlink.
pub fn commit(plan: &Plan) {
    if let Err(error) = encode::commit(&mut Socket::open().unwrap(), plan, &encode(plan, None)) {
        panic!("{error}");
    }
}

/// `ip` or `ip6`.
pub fn ip(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "ip",
        Family::Ipv6 => "ip6",
    }
}

/// What `nft list` prints of sluice's table.
pub fn listing(program: &str, family: Family) -> String {
    run(program, &["list", "table", ip(family), "sluice"], "")
}

/// The table as the kernel runs it: what nft prints before it makes text of it. Sorted and without handles: the
/// order of elements is that of hashes. nft puts an element that ends at address 0 before the intervals of a set
/// when it fills one; it means nothing and sluice does not.
pub fn bytecode(family: Family) -> Vec<String> {
    bytecode_by("nft", family)
}

/// The same by another nft; versions print it differently.
pub fn bytecode_by(program: &str, family: Family) -> Vec<String> {
    let all = run(program, &["--debug=netlink", "list", "table", ip(family), "sluice"], "");
    let code = all.split("\ntable ").next().unwrap();
    let mut blocks: Vec<String> = Vec::new();
    let mut set = String::new();
    for line in code.lines() {
        if let Some(name) = line.strip_prefix(ip(family)) {
            let mut words = name.split_whitespace();
            let name = words.by_ref().take(2).collect::<Vec<_>>().join(" ");
            set.clone_from(&name);
            let rules_before = blocks.iter().filter(|b| b.starts_with(&name)).count();
            blocks.push(if name.contains('@') { name } else { format!("{name} rule {rules_before}") });
        } else if line.trim_start().starts_with("element") {
            if !line.trim().trim_end_matches([' ']).ends_with("1 [end]") || !zero(line) {
                blocks.push(format!("{set} {}", line.trim()));
            }
        } else if !line.is_empty() {
            let last = blocks.last_mut().unwrap();
            last.push('\n');
            last.push_str(line);
        }
    }
    blocks.sort();
    blocks
}

fn zero(line: &str) -> bool {
    let key = line.split(':').next().unwrap().trim().trim_start_matches("element");
    key.chars().all(|c| c == '0' || c == ' ')
}
