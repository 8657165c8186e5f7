//! Renderings of the chart.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// What the chart's templates become, by the name of their file.
pub type Rendering = BTreeMap<String, String>;

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Values that the chart is tested with.
pub fn values(name: &str) -> PathBuf {
    root().join("testdata/deploy").join(name)
}

/// Every file of values.
pub fn all_values() -> Vec<PathBuf> {
    let entries = fs::read_dir(values("")).expect("testdata/deploy");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    assert!(files.len() >= 4, "files are missing");
    files
}

/// Runs `.ci/chart`.
pub fn chart(command: &str, files: &[PathBuf], input: &str) -> Output {
    let mut child = Command::new(root().join(".ci/chart"))
        .arg(command)
        .args(files)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect(".ci/chart starts");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    child.wait_with_output().expect("it ends")
}

/// What the chart becomes with each of these files of values.
pub fn render(files: &[PathBuf]) -> BTreeMap<PathBuf, Rendering> {
    let output = chart("render", files, "");
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The objects of a text.
pub fn objects(yaml: &str) -> Vec<Value> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(yaml).unwrap_or_else(|e| panic!("{e}\n{yaml}"));
    objects.into_iter().filter(|object| !object.is_null()).collect()
}

/// The objects of a rendering.
pub fn all_objects(rendering: &Rendering) -> Vec<Value> {
    rendering.iter().filter(|(name, _)| name.ends_with(".yaml")).flat_map(|(_, yaml)| objects(yaml)).collect()
}

/// The only object of a kind.
pub fn object(objects: &[Value], kind: &str) -> Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let object = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "several of {kind}");
    object.clone()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
