//! The two readers of YAML say the same.

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;

const TEXT: &str = r#"apiVersion: v1
items:
- apiVersion: v1
  kind: Service
  metadata:
    annotations: {}
    labels:
      app.kubernetes.io/name: web
    name: web
    uid: 5d0fba1c-0b5a-4a37-9c1e-000000000001
  spec:
    clusterIP: 10.96.0.1
    clusterIPs:
    - 10.96.0.1
    - "fd00::1"
    ports:
    - name: http
      port: 80
      targetPort: 8080
    - port: 53
    selector:
  status:
    loadBalancer: {}
# a comment
-   addressType: IPv4
    endpoints:
    -   addresses: [10.128.0.1]
        conditions:
          ready: true
    kind: EndpointSlice
    metadata:
        creationTimestamp: '2026-11-25T17:01:23Z'
        finalizers: []
kind: List
---
kind: Node
spec:
  podCIDR: 10.0.0.0/24
  unschedulable: false
  taints: null
"#;

/// All that there is in a text, by the reader for kubectl's YAML as far as it goes.
fn by_documents(text: &str) -> Result<Vec<Value>, SyntaxError> {
    let mut values = Vec::new();
    for (lines_before, text) in documents(text) {
        let block = Block::document(text).and_then(|b| b.map_or(Ok(None), |b| b.entries().map(|_| Some(b))));
        match block {
            Ok(None) => {}
            Ok(Some(block)) => values.push(Value::deserialize(block).expect("what was read once")),
            Err(_) => values.extend(yaml(text, lines_before)?),
        }
    }
    values.retain(|value| !value.is_null());
    Ok(values)
}

fn by_the_general_reader(text: &str) -> Result<Vec<Value>, SyntaxError> {
    let mut values = yaml(text, 0)?;
    values.retain(|value| !value.is_null());
    Ok(values)
}

fn compare(text: &str) -> Result<(), TestCaseError> {
    match (by_documents(text), by_the_general_reader(text)) {
        (Ok(one), Ok(other)) => prop_assert_eq!(one, other, "{}", text),
        (one, other) => prop_assert_eq!(one.is_ok(), other.is_ok(), "{}\n{:?}\n{:?}", text, one, other),
    }
    Ok(())
}

#[test]
fn what_kubectl_writes_needs_no_general_reader() {
    let text = TEXT.replace("[10.128.0.1]", "\n        - 10.128.0.1");
    for (_, text) in documents(&text) {
        let block = Block::document(text).unwrap().unwrap();
        block.entries().unwrap();
        assert_eq!(by_the_general_reader(text).unwrap(), [Value::deserialize(block).unwrap()]);
    }
}

/// What turns one meaning into another.
const PIECES: [&str; 64] = [
    "",
    " ",
    "  ",
    "\n",
    "\n ",
    "\n  ",
    "- ",
    "-",
    "-\n",
    ":",
    ": ",
    "::",
    "#",
    " #",
    "\"",
    "'",
    "''",
    "\\",
    "{",
    "}",
    "[",
    "]",
    "{}",
    "[]",
    ",",
    "|",
    "|\n",
    ">",
    "&a",
    "*a",
    "!",
    "!!str ",
    "%",
    "@",
    "`",
    "?",
    "? ",
    "---",
    "\n---\n",
    "...",
    "\n...\n",
    "\t",
    "\r",
    "~",
    "null",
    "Null",
    "true",
    "yes",
    "0",
    "1",
    "01",
    "0x1f",
    "1e3",
    "1.5",
    "1:30",
    "+1",
    "-1",
    ".5",
    ".inf",
    "nan",
    "1_000",
    "2026-11-25",
    "\u{feff}",
    "é",
];

fn changed() -> impl Strategy<Value = String> {
    let change = (any::<Index>(), 0..4usize, select(&PIECES[..]));
    prop::collection::vec(change, 0..4).prop_map(|changes| {
        let mut text = TEXT.to_owned();
        for (at, cut, piece) in changes {
            let places: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
            let at = at.index(places.len());
            let end = places.get(at + cut).copied().unwrap_or(text.len());
            text.replace_range(places[at]..end, piece);
        }
        text
    })
}

/// Values as they may stand after a key, many of them next to what is a number.
fn words() -> impl Strategy<Value = String> {
    prop_oneof![
        "[0-9a-fxobeE_.:+-]{1,6}",
        "[a-zA-Z0-9 :#'\"./,-]{0,12}",
        select(&PIECES[..]).prop_map(str::to_owned),
        (select(&PIECES[..]), select(&PIECES[..])).prop_map(|(a, b)| format!("{a}{b}")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn both_readers_say_the_same(text in changed()) {
        compare(&text)?;
    }

    #[test]
    fn both_readers_say_the_same_of_words(words in prop::collection::vec(words(), 1..4), key in words()) {
        for word in &words {
            compare(&format!("a: {word}\nb:\n- {word}\n- c: {word}\n  d:\n"))?;
        }
        compare(&format!("{key}: 1\nb: {}\n", words.concat()))?;
    }
}
