//! `sluice dump` on files with 10,000 Services x 10 endpoints: how long it takes and how much memory.
//!
//! `cargo bench --bench dump`. What was tried:
//! - serde-saphyr for all YAML, each document as a tree of values first: 4.7 s of CPU for the folder, and 370 MiB for a
//!   list. Text is read into objects now, one after the other; serde-saphyr reads what kubectl does not write.

#[path = "objects.rs"]
mod objects;

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use objects::Shape;
use serde_json::{Value, json};

const ROUNDS: usize = 5;

fn main() -> ExitCode {
    // `cargo test --benches` runs it too; it is no test.
    if std::env::args().any(|argument| argument == "--test") {
        return ExitCode::SUCCESS;
    }
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> std::io::Result<()> {
    let shape = Shape { services: 10_000, endpoints: 10, ..Shape::default() };
    let objects: Vec<Value> = (0..shape.services)
        .flat_map(|n| std::iter::once(objects::service(shape, n)).chain(objects::slices(shape, n)))
        .collect();
    let folder = std::env::temp_dir().join(format!("sluice-dump-{}", std::process::id()));
    let (many, list_json, list_yaml) =
        (folder.join("many"), folder.join("list.json"), folder.join("list.yaml"));
    fs::create_dir_all(&many)?;
    for (i, part) in objects.chunks(200).enumerate() {
        let documents: Vec<String> = part.iter().map(objects::yaml).collect();
        fs::write(many.join(format!("part-{i:03}.yaml")), documents.join("---\n"))?;
    }
    let list =
        json!({"apiVersion": "v1", "items": objects, "kind": "List", "metadata": {"resourceVersion": ""}});
    fs::write(&list_json, list.to_string())?;
    fs::write(&list_yaml, objects::yaml(&list))?;
    drop(list);
    println!(
        "| 10,000 services x 10 endpoints | size | dump, median of {ROUNDS} | CPU | most memory so far |"
    );
    println!("| --- | --- | --- | --- | --- |");
    let result = [("100 YAML files", &many), ("one JSON list", &list_json), ("one YAML list", &list_yaml)]
        .into_iter()
        .try_for_each(|(name, path)| {
            let before = cpu()?;
            let mut times = (0..ROUNDS).map(|_| dump(path)).collect::<Result<Vec<_>, _>>()?;
            times.sort_by(f64::total_cmp);
            // In KiB, of the largest child so far.
            let memory = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss() / 1024;
            println!(
                "| {name} | {} MB | {:.2} s | {:.2} s | {memory} MiB |",
                size(path)? / 1_000_000,
                times[ROUNDS / 2],
                (cpu()? - before) / ROUNDS as f64
            );
            Ok(())
        });
    fs::remove_dir_all(&folder)?;
    result
}

/// Seconds of CPU of all children.
fn cpu() -> std::io::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

fn size(path: &Path) -> std::io::Result<u64> {
    if path.is_file() {
        return Ok(fs::metadata(path)?.len());
    }
    fs::read_dir(path)?.map(|entry| Ok(entry?.metadata()?.len())).sum()
}

/// Seconds.
fn dump(path: &Path) -> std::io::Result<f64> {
    let start = Instant::now();
    let status = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(["dump", "--node-name", objects::NODE, "--cluster-cidr", "10.128.0.0/9", "--manifests"])
        .arg(path)
        .stdout(Stdio::null())
        .status()?;
    let elapsed = start.elapsed().as_secs_f64();
    if status.success() { Ok(elapsed) } else { Err(std::io::Error::other(status.to_string())) }
}
