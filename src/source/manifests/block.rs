//! YAML as kubectl writes it: block style, each scalar on one line. Such files are large where they are large at all,
//! and a general reader is slow with them and holds all of a document.
//!
//! It takes no more than it is sure of: whatever else there is (flow style, anchors, text blocks, escapes, numbers
//! other than plain ones) is [`Unusual`], and the general reader's. What it takes means the same there; a property
//! holds that.

use serde::de::value::BorrowedStrDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};

use super::parse::Entries;

/// YAML that is not of the kind that is read here; or a value that is not what was asked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unusual YAML")]
pub(super) struct Unusual;

impl de::Error for Unusual {
    fn custom<T: std::fmt::Display>(_: T) -> Unusual {
        Unusual
    }
}

/// A line without its indentation, and what comes after it.
#[derive(Clone, Copy, Debug)]
struct Line<'a> {
    indent: usize,
    text: &'a str,
    rest: &'a str,
}

impl<'a> Line<'a> {
    /// The first line of a text that is neither empty nor a comment.
    fn first(mut text: &'a str) -> Result<Option<Line<'a>>, Unusual> {
        while !text.is_empty() {
            let end = text.as_bytes().iter().position(|b| !(b' '..=b'~').contains(b)).unwrap_or(text.len());
            let (line, rest) = text.split_at(end);
            let rest = match rest.as_bytes().first() {
                Some(b'\n') => &rest[1..],
                Some(_) => return Err(Unusual),
                None => rest,
            };
            let line = line.trim_end_matches(' ');
            let content = line.trim_start_matches(' ');
            if !content.is_empty() && !content.starts_with('#') {
                return Ok(Some(Line { indent: line.len() - content.len(), text: content, rest }));
            }
            text = rest;
        }
        Ok(None)
    }

    fn is_item(&self) -> bool {
        self.text.starts_with("- ")
    }
}

/// A node and all that is below it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block<'a>(Line<'a>);

impl<'a> Block<'a> {
    /// A document; `None` where there is nothing in it. Only its first line has been looked at.
    pub(super) fn document(text: &'a str) -> Result<Option<Block<'a>>, Unusual> {
        let first = Line::first(text)?;
        first.map_or(Ok(None), |line| if line.indent == 0 { Ok(Some(Block(line))) } else { Err(Unusual) })
    }

    /// Reads all of it; what is read from this block or its items later is in order.
    pub(super) fn entries(self) -> Result<Entries<'a, Self>, Unusual> {
        let mut reader = Reader { line: Some(self.0) };
        let mut entries = Entries { version: None, kind: None, items: None };
        let Node::Map(indent) = reader.node()? else { return Err(Unusual) };
        while let Some((key, value)) = reader.entry(indent)? {
            match (key, value) {
                ("apiVersion", Node::Scalar(Scalar::Text(text))) => entries.version = Some(text),
                ("kind", Node::Scalar(Scalar::Text(text))) => entries.kind = Some(text),
                // The last one would count.
                ("apiVersion" | "kind", _) => return Err(Unusual),
                ("items", Node::Sequence(indent)) if entries.items.is_none() => {
                    let mut items = Vec::new();
                    while let Some((item, node)) = reader.item(indent)? {
                        items.push(Block(item));
                        IgnoredAny::deserialize(Value { reader: &mut reader, node })?;
                    }
                    entries.items = Some(items);
                }
                ("items", _) if entries.items.is_some() => return Err(Unusual),
                (_, node) => _ = IgnoredAny::deserialize(Value { reader: &mut reader, node })?,
            }
        }
        match reader.line {
            Some(line) if line.indent >= indent => Err(Unusual),
            _ => Ok(entries),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Scalar<'a> {
    Null,
    Bool(bool),
    Number(u64),
    Text(&'a str),
    EmptyMap,
    EmptySequence,
}

#[derive(Clone, Copy, Debug)]
enum Node<'a> {
    Scalar(Scalar<'a>),
    /// With its indentation.
    Map(usize),
    /// With the indentation of its dashes.
    Sequence(usize),
}

/// The line that comes next.
struct Reader<'a> {
    line: Option<Line<'a>>,
}

impl<'a> Reader<'a> {
    /// What starts at this line.
    fn node(&mut self) -> Result<Node<'a>, Unusual> {
        let line = self.line.ok_or(Unusual)?;
        if line.is_item() {
            Ok(Node::Sequence(line.indent))
        } else if key(line.text).is_some() {
            Ok(Node::Map(line.indent))
        } else {
            self.line = Line::first(line.rest)?;
            Ok(Node::Scalar(scalar(line.text)?))
        }
    }

    /// The next entry of the map at this indentation.
    fn entry(&mut self, indent: usize) -> Result<Option<(&'a str, Node<'a>)>, Unusual> {
        let Some(line) = self.line.filter(|line| line.indent >= indent && !line.is_item()) else {
            return Ok(None);
        };
        let (key, text) = key(line.text).filter(|_| line.indent == indent).ok_or(Unusual)?;
        self.line = Line::first(line.rest)?;
        let value = match self.line {
            _ if !text.is_empty() => Node::Scalar(scalar(text)?),
            Some(next) if next.indent > indent => match self.node()? {
                // Text on a line of its own may go on on the next.
                Node::Scalar(_) => return Err(Unusual),
                node => node,
            },
            Some(next) if next.indent == indent && next.is_item() => Node::Sequence(indent),
            _ => Node::Scalar(Scalar::Null),
        };
        Ok(Some((key, value)))
    }

    /// The next item of the sequence at this indentation, and its first line without the dash.
    fn item(&mut self, indent: usize) -> Result<Option<(Line<'a>, Node<'a>)>, Unusual> {
        let Some(line) = self.line.filter(|line| line.indent >= indent) else { return Ok(None) };
        match line.text.strip_prefix("- ") {
            Some(rest) if line.indent == indent => {
                let text = rest.trim_start_matches(' ');
                let line = Line { indent: indent + line.text.len() - text.len(), text, rest: line.rest };
                self.line = Some(line);
                Ok(Some((line, self.node()?)))
            }
            // The key after a sequence that is no deeper than its own key.
            None if line.indent == indent => Ok(None),
            _ => Err(Unusual),
        }
    }
}

/// The key at the start of a line, and the text after it.
fn key(text: &str) -> Option<(&str, &str)> {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'/' | b'-');
    let end = text.as_bytes().iter().position(|b| !plain(b))?;
    let (key, rest) = text.split_at(end);
    let value = match rest.strip_prefix(':')? {
        "" => "",
        value => value.strip_prefix(' ')?.trim_start_matches(' '),
    };
    let named = key.starts_with(|c: char| c.is_ascii_alphabetic());
    (named && !is_word(key)).then_some((key, value))
}

/// Words that are, or in some version of YAML were, no text.
fn is_word(text: &str) -> bool {
    const WORDS: [&str; 12] =
        ["null", "true", "false", "yes", "no", "on", "off", "y", "n", "inf", "infinity", "nan"];
    text.len() <= 8 && WORDS.iter().any(|word| text.eq_ignore_ascii_case(word))
}

fn scalar(text: &str) -> Result<Scalar<'_>, Unusual> {
    let quoted = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    match text.as_bytes() {
        b"{}" => Ok(Scalar::EmptyMap),
        b"[]" => Ok(Scalar::EmptySequence),
        b"true" => Ok(Scalar::Bool(true)),
        b"false" => Ok(Scalar::Bool(false)),
        b"null" => Ok(Scalar::Null),
        [b'"', ..] => {
            let inner = quoted('"').filter(|inner| !inner.contains(['"', '\\']));
            inner.map(Scalar::Text).ok_or(Unusual)
        }
        [b'\'', ..] => quoted('\'').filter(|inner| !inner.contains('\'')).map(Scalar::Text).ok_or(Unusual),
        _ if text.contains(": ") || text.contains(" #") || text.ends_with(':') => Err(Unusual),
        [b'0'..=b'9', ..] => number_or_text(text),
        [b'a'..=b'z' | b'A'..=b'Z' | b'_' | b'/', ..] if !is_word(text) => Ok(Scalar::Text(text)),
        _ => Err(Unusual),
    }
}

/// Text that starts with a digit.
fn number_or_text(text: &str) -> Result<Scalar<'_>, Unusual> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        let plain = text.len() == 1 || (text.len() <= 18 && !text.starts_with('0'));
        return text.parse().ok().filter(|_| plain).map(Scalar::Number).ok_or(Unusual);
    }
    // In which no number is written, whatever its base and exponent.
    let foreign = |b: u8| !(b.is_ascii_hexdigit() || b"xXoObB_.+-:".contains(&b));
    let many = |c: u8| text.bytes().filter(|b| *b == c).count() > 1;
    let is_text = text.bytes().any(foreign) || ((many(b'.') || many(b'-')) && !text.contains(':'));
    if is_text { Ok(Scalar::Text(text)) } else { Err(Unusual) }
}

/// A node that is about to be read.
struct Value<'r, 'a> {
    reader: &'r mut Reader<'a>,
    node: Node<'a>,
}

impl<'a> Deserializer<'a> for Block<'a> {
    type Error = Unusual;

    fn deserialize_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Unusual> {
        let mut reader = Reader { line: Some(self.0) };
        let node = reader.node()?;
        Value { reader: &mut reader, node }.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        <V: Visitor<'a>>
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'a> Deserializer<'a> for Value<'_, 'a> {
    type Error = Unusual;

    fn deserialize_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Unusual> {
        let Value { reader, node } = self;
        match node {
            Node::Scalar(Scalar::Null) => visitor.visit_unit(),
            Node::Scalar(Scalar::Bool(value)) => visitor.visit_bool(value),
            Node::Scalar(Scalar::Number(value)) => visitor.visit_u64(value),
            Node::Scalar(Scalar::Text(text)) => visitor.visit_borrowed_str(text),
            Node::Scalar(Scalar::EmptyMap) => visitor.visit_map(Nothing),
            Node::Scalar(Scalar::EmptySequence) => visitor.visit_seq(Nothing),
            Node::Map(indent) => visitor.visit_map(Map { reader, indent, value: None }),
            Node::Sequence(indent) => visitor.visit_seq(Sequence { reader, indent }),
        }
    }

    fn deserialize_option<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Unusual> {
        match self.node {
            Node::Scalar(Scalar::Null) => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'a>>(self, _: &str, visitor: V) -> Result<V::Value, Unusual> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        <V: Visitor<'a>>
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

struct Map<'r, 'a> {
    reader: &'r mut Reader<'a>,
    indent: usize,
    value: Option<Node<'a>>,
}

impl<'a> MapAccess<'a> for Map<'_, 'a> {
    type Error = Unusual;

    fn next_key_seed<K: DeserializeSeed<'a>>(&mut self, seed: K) -> Result<Option<K::Value>, Unusual> {
        let Some((key, node)) = self.reader.entry(self.indent)? else { return Ok(None) };
        self.value = Some(node);
        seed.deserialize(BorrowedStrDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<S::Value, Unusual> {
        let node = self.value.take().ok_or(Unusual)?;
        seed.deserialize(Value { reader: self.reader, node })
    }
}

struct Sequence<'r, 'a> {
    reader: &'r mut Reader<'a>,
    indent: usize,
}

impl<'a> SeqAccess<'a> for Sequence<'_, 'a> {
    type Error = Unusual;

    fn next_element_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<Option<S::Value>, Unusual> {
        let Some((_, node)) = self.reader.item(self.indent)? else { return Ok(None) };
        seed.deserialize(Value { reader: self.reader, node }).map(Some)
    }
}

/// `{}` and `[]`.
struct Nothing;

impl<'a> MapAccess<'a> for Nothing {
    type Error = Unusual;

    fn next_key_seed<K: DeserializeSeed<'a>>(&mut self, _: K) -> Result<Option<K::Value>, Unusual> {
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'a>>(&mut self, _: S) -> Result<S::Value, Unusual> {
        Err(Unusual)
    }
}

impl<'a> SeqAccess<'a> for Nothing {
    type Error = Unusual;

    fn next_element_seed<S: DeserializeSeed<'a>>(&mut self, _: S) -> Result<Option<S::Value>, Unusual> {
        Ok(None)
    }
}
