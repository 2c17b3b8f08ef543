//! Zuul's YAML as a tree of values that know their line.
//!
//! ```text
//! text ──saphyr-parser──▶ events ──▶ nodes (an alias is the node it refers to) ──▶ entries of a mapping, with what `<<` brings
//! ```
//!
//! - **Bounded.** An alias is never written out: it is the number of its node, so a text that would unfold to gigabytes takes no more
//!   than it is long. Depth and number of nodes have limits, and so has what `<<` may bring together.
//! - **A plain scalar means what it means to Zuul**, which reads YAML 1.1 with PyYAML: `yes`, `on` and `off` are truth values, `010` is 8.
//! - Tags that Zuul has of its own, such as `!encrypted/pkcs1-oaep`, are read and kept; a value that has one is of no type known here.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};

use super::scalar;

/// Deeper than any configuration: Zuul's own go to about ten.
const MAX_DEPTH: usize = 100;
/// Values in one file. The largest files of large installations have some ten thousand.
const MAX_NODES: usize = 1_000_000;
/// Mappings that `<<` may bring into one. Each may bring others: without a limit that grows without end.
const MAX_MERGED: usize = 1_000;

/// The prefix of YAML's own tags (YAML 1.2 §10.3).
const CORE: &str = "tag:yaml.org,2002:";

/// A text that is no YAML, or too large.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NotYaml {
    /// Where.
    pub line: usize,
    /// Why.
    pub message: String,
}

/// The number of a node of its [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NodeId(usize);

/// Every document of a text.
#[derive(Debug, Default)]
pub(super) struct Tree<'t> {
    nodes: Vec<Node<'t>>,
    /// The documents that have any content.
    pub documents: Vec<NodeId>,
}

#[derive(Debug)]
struct Node<'t> {
    line: usize,
    tag: Option<Cow<'t, Tag>>,
    content: Content<'t>,
}

#[derive(Debug)]
enum Content<'t> {
    Scalar { text: Cow<'t, str>, is_plain: bool },
    List(Vec<NodeId>),
    Mapping(Vec<(NodeId, NodeId)>),
}

/// What a node is to Zuul.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'v> {
    /// Nothing, `~` or `null`.
    Null,
    /// A truth value, by any of YAML 1.1's names.
    Bool(bool),
    /// A whole number; none if it is beyond any use.
    Whole(Option<i64>),
    /// A text.
    Text(&'v str),
    /// A list.
    List(&'v [NodeId]),
    /// A mapping; see [`Tree::entries`].
    Mapping,
    /// Anything else, by the name for it.
    Other(&'static str),
}

/// A key of a mapping with its value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'t> {
    /// The key, as it is written.
    pub key: &'t str,
    /// The key's node.
    pub key_node: NodeId,
    /// The value's.
    pub value: NodeId,
}

/// Why the entries of a mapping can't be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NoEntries {
    /// Where.
    pub line: usize,
    /// The key.
    pub key: String,
    /// Why.
    pub message: String,
}

/// The entries of a mapping, on the way.
#[derive(Default)]
struct Collected<'t> {
    entries: Vec<Entry<'t>>,
    known: HashSet<&'t str>,
    /// The mappings that were gone through: one that comes again brings nothing.
    seen: HashSet<NodeId>,
    /// Those that are being gone through, each within the one before.
    open: Vec<NodeId>,
    merged: usize,
}

/// A list or mapping that has begun and not ended.
struct Open {
    id: NodeId,
    /// Of a mapping: the key whose value comes next.
    key: Option<NodeId>,
}

/// Reads a text.
///
/// # Errors
/// Where it is no YAML, or is larger or deeper than a configuration.
pub(super) fn parse(text: &str) -> Result<Tree<'_>, NotYaml> {
    let mut tree = Tree::default();
    let mut anchors: HashMap<usize, NodeId> = HashMap::new();
    let mut open: Vec<Open> = Vec::new();
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        // What is missing at the end of a text is missed behind its last line.
        let place = |line: usize| line.clamp(1, last_line(text));
        let (event, span) = event.map_err(|error| NotYaml { line: place(error.marker().line()), message: error.info().to_owned() })?;
        let line = span.start.line();
        let refuse = |message: String| Err(NotYaml { line, message });
        let (node, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                (Node { line, tag, content: Content::Scalar { text, is_plain: style == ScalarStyle::Plain } }, anchor)
            }
            Event::SequenceStart(anchor, tag) => (Node { line, tag, content: Content::List(Vec::new()) }, anchor),
            Event::MappingStart(anchor, tag) => (Node { line, tag, content: Content::Mapping(Vec::new()) }, anchor),
            Event::Alias(anchor) => match anchors.get(&anchor) {
                Some(id) => {
                    tree.place(*id, &mut open);
                    continue;
                }
                None => return refuse("an alias of something that is not there".to_owned()),
            },
            Event::SequenceEnd | Event::MappingEnd => {
                open.pop();
                continue;
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => continue,
        };
        let opens = !matches!(node.content, Content::Scalar { .. });
        if tree.nodes.len() >= MAX_NODES {
            return refuse(format!("the file has more than {MAX_NODES} values"));
        }
        if opens && open.len() >= MAX_DEPTH {
            return refuse(format!("nested more than {MAX_DEPTH} deep"));
        }
        let id = NodeId(tree.nodes.len());
        tree.nodes.push(node);
        if anchor > 0 {
            anchors.insert(anchor, id);
        }
        tree.place(id, &mut open);
        if opens {
            open.push(Open { id, key: None });
        }
    }
    Ok(tree)
}

/// The number of the last line of a text; lines end with `\n`, `\r\n` or `\r` (YAML 1.2 §5.4).
fn last_line(text: &str) -> usize {
    let breaks = |text: &str| text.matches(['\n', '\r']).count() - text.matches("\r\n").count();
    1 + breaks(text.strip_suffix("\r\n").or_else(|| text.strip_suffix(['\n', '\r'])).unwrap_or(text))
}

impl<'t> Tree<'t> {
    /// Puts a node into what is open, or makes it a document.
    fn place(&mut self, id: NodeId, open: &mut [Open]) {
        let Some(parent) = open.last_mut() else {
            if self.value(id) != Value::Null {
                self.documents.push(id);
            }
            return;
        };
        match &mut self.nodes[parent.id.0].content {
            Content::List(items) => items.push(id),
            Content::Mapping(pairs) => match parent.key.take() {
                None => parent.key = Some(id),
                Some(key) => pairs.push((key, id)),
            },
            Content::Scalar { .. } => {}
        }
    }

    /// The line in which a node begins.
    pub(super) fn line(&self, id: NodeId) -> usize {
        self.nodes[id.0].line
    }

    /// What a node is to Zuul.
    pub(super) fn value(&self, id: NodeId) -> Value<'_> {
        let node = &self.nodes[id.0];
        let core = match &node.tag {
            None => None,
            // `!` alone: no resolution by what it looks like (YAML 1.2 §6.9.1).
            Some(tag) if tag.handle.is_empty() && tag.suffix == "!" => Some("str"),
            Some(tag) => match core_tag(tag) {
                Some(name) => Some(name),
                None => return Value::Other("a value with a tag"),
            },
        };
        match &node.content {
            Content::List(items) => Value::List(items),
            Content::Mapping(_) => Value::Mapping,
            Content::Scalar { text, is_plain } => match core {
                None if *is_plain => scalar::plain(text),
                None | Some("str") => Value::Text(text),
                Some("null") => Value::Null,
                Some("bool") => scalar::truth(text).map_or(Value::Other("no truth value"), Value::Bool),
                Some("int") => scalar::whole(text).map_or(Value::Other("no number"), Value::Whole),
                Some(_) => Value::Other("a value with a tag"),
            },
        }
    }

    /// A scalar as it is written, whatever it means.
    fn written(&self, id: NodeId) -> Option<&str> {
        match &self.nodes[id.0].content {
            Content::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// A mapping's entries whose keys are scalars: its own, and then what `<<` brings and it doesn't have. Empty if it is none.
    ///
    /// # Errors
    /// If a key stands twice, which Zuul refuses, or `<<` brings something that is no mapping, or too much.
    pub(super) fn entries(&self, id: NodeId) -> Result<Vec<Entry<'_>>, NoEntries> {
        let mut collected = Collected::default();
        self.collect(id, &mut collected)?;
        Ok(collected.entries)
    }

    fn collect<'s>(&'s self, id: NodeId, into: &mut Collected<'s>) -> Result<(), NoEntries> {
        let Content::Mapping(pairs) = &self.nodes[id.0].content else { return Ok(()) };
        if !into.seen.insert(id) {
            return Ok(());
        }
        into.open.push(id);
        let mut own: HashMap<&str, usize> = HashMap::new();
        let mut merges = Vec::new();
        // What stands in the mapping itself goes before all that it merges, and what merged it before both.
        for (key_node, value) in pairs {
            let Some(key) = self.written(*key_node) else { continue };
            if key == "<<" {
                merges.push(*value);
                continue;
            }
            let line = self.line(*key_node);
            if let Some(first) = own.insert(key, line) {
                return Err(NoEntries { line, key: key.to_owned(), message: format!("stands in line {first} already") });
            }
            if into.known.insert(key) {
                into.entries.push(Entry { key, key_node: *key_node, value: *value });
            }
        }
        // Of several the last one counts, and within a list the first one.
        for merge in merges.into_iter().rev() {
            let sources = match &self.nodes[merge.0].content {
                Content::List(items) => items,
                _ => std::slice::from_ref(&merge),
            };
            for &source in sources {
                let refuse = |message: String| Err(NoEntries { line: self.line(merge), key: "<<".to_owned(), message });
                if !matches!(self.nodes[source.0].content, Content::Mapping(_)) {
                    return refuse("brings a mapping, or a list of mappings".to_owned());
                }
                if into.open.contains(&source) {
                    return refuse("brings a mapping into itself".to_owned());
                }
                into.merged += 1;
                if into.merged > MAX_MERGED {
                    return refuse(format!("brings more than {MAX_MERGED} mappings into one"));
                }
                self.collect(source, into)?;
            }
        }
        into.open.pop();
        Ok(())
    }

    /// What a node is, for a message.
    pub(super) fn shown(&self, id: NodeId) -> String {
        const QUOTED: usize = 40;
        match self.value(id) {
            Value::Null => "nothing".to_owned(),
            Value::Text(text) => match text.char_indices().nth(QUOTED) {
                None => format!("{text:?}"),
                Some((end, _)) => format!("{:?}…", &text[..end]),
            },
            Value::Bool(flag) => match self.written(id) {
                Some(text) if !text.eq_ignore_ascii_case("true") && !text.eq_ignore_ascii_case("false") => {
                    format!("`{text}`, which is {flag} in YAML unless it is quoted")
                }
                _ => flag.to_string(),
            },
            Value::Whole(Some(number)) => number.to_string(),
            Value::Whole(None) => "a very large number".to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Mapping => "a mapping".to_owned(),
            Value::Other(what) => what.to_owned(),
        }
    }
}

/// The name of one of YAML's own tags.
fn core_tag(tag: &Tag) -> Option<&str> {
    // `!!str`, and `!<tag:yaml.org,2002:str>`.
    if tag.handle == CORE { Some(&tag.suffix) } else { tag.suffix.strip_prefix(CORE).filter(|_| tag.handle.is_empty()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_merged_again_and_again_takes_no_more_memory_than_its_text() {
        let refused = |text: &str| {
            let (tree, root) = root(text);
            let mut refused = None;
            let taken = allocation_counter::measure(|| refused = tree.entries(root).err());
            assert!(taken.bytes_max < 8 << 20, "{taken:?}");
            refused.expect("it is refused").message
        };
        let itself = format!("&a\nkey: 1\n{}", "<<: *a\n".repeat(50_000));
        assert_eq!(refused(&itself), "brings a mapping into itself");
        let another = format!("a: &a {{x: 1}}\n{}", "<<: *a\n".repeat(50_000));
        assert_eq!(refused(&another), "brings more than 1000 mappings into one");
    }

    fn root(text: &str) -> (Tree<'_>, NodeId) {
        let tree = parse(text).unwrap();
        let root = tree.documents[0];
        (tree, root)
    }

    fn keys(text: &str) -> Vec<(String, String)> {
        let (tree, root) = root(text);
        let Value::List(items) = tree.value(root) else { panic!("a list") };
        let last = *items.last().unwrap();
        let entries = tree.entries(last).unwrap();
        entries.iter().map(|entry| (entry.key.to_owned(), tree.shown(entry.value))).collect()
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn quotes_and_tags_decide_what_a_scalar_is() {
        let text = "['yes', \"2\", !!str 2, !!int '2', ! 2, !encrypted/pkcs1-oaep abc, |\n  no\n]";
        let text = text.replace(", |\n  no\n]", "]");
        let (tree, root) = root(&text);
        let Value::List(items) = tree.value(root) else { panic!("a list") };
        let values: Vec<Value<'_>> = items.iter().map(|item| tree.value(*item)).collect();
        assert_eq!(values[..4], [Value::Text("yes"), Value::Text("2"), Value::Text("2"), Value::Whole(Some(2))]);
        assert_eq!(values[4..], [Value::Text("2"), Value::Other("a value with a tag")]);
    }

    #[test]
    fn what_is_merged_is_there_and_gives_way() {
        assert_eq!(keys("- &a {x: 1, y: 2}\n- <<: *a\n  y: 3\n"), [pair("y", "3"), pair("x", "1")]);
        assert_eq!(keys("- &a {x: 1}\n- &b {x: 2, y: 2}\n- <<: [*a, *b]\n"), [pair("x", "1"), pair("y", "2")]);
        assert_eq!(keys("- &a {x: 1}\n- &b {<<: *a, y: 2}\n- <<: *b\n"), [pair("y", "2"), pair("x", "1")]);
        let (tree, root) = root("- {<<: 3}\n- {x: 1, x: 2}\n");
        let Value::List(items) = tree.value(root) else { panic!("a list") };
        assert_eq!(tree.entries(items[0]).unwrap_err().key, "<<");
        let twice = tree.entries(items[1]).unwrap_err();
        assert_eq!((twice.line, twice.key.as_str(), twice.message.as_str()), (2, "x", "stands in line 2 already"));
    }

    #[test]
    fn a_text_that_would_unfold_without_end_is_read_as_it_stands_or_refused() {
        let mut bomb = "- &a0 [x, x]\n".to_owned();
        for level in 1..60 {
            bomb += &format!("- &a{level} [{}]\n", vec![format!("*a{}", level - 1); 9].join(", "));
        }
        assert_eq!(parse(&bomb).unwrap().nodes.len(), 1 + 60 + 2);
        let mut bomb = "- &a0 {x: 1}\n".to_owned();
        for level in 1..60 {
            bomb += &format!("- &a{level} {{<<: [{}]}}\n", vec![format!("*a{}", level - 1); 9].join(", "));
        }
        let (tree, root) = root(&bomb);
        let Value::List(items) = tree.value(root) else { panic!("a list") };
        assert_eq!(tree.entries(*items.last().unwrap()).unwrap().len(), 1, "each is gone through once");
        // One that is its own part.
        let (tree, root) = super::tests::root("&a {<<: *a}");
        assert!(tree.entries(root).is_err());
    }

    #[test]
    fn depth_and_number_are_bounded() {
        assert!(parse(&"[".repeat(200)).unwrap_err().message.contains("nested more than 100 deep"));
        assert!(parse(&"- ".repeat(200)).unwrap_err().message.contains("nested more than 100 deep"));
        assert!(parse(&"- x\n".repeat(MAX_NODES)).unwrap_err().message.contains("more than 1000000 values"));
    }

    #[test]
    fn documents_and_lines_are_known() {
        let tree = parse("# nothing\n---\n- a\n---\n---\n- b\n...\n").unwrap();
        assert_eq!(tree.documents.iter().map(|id| tree.line(*id)).collect::<Vec<_>>(), [3, 6]);
        assert_eq!(parse("a: [1,\nb").unwrap_err().line, 2);
        for text in ["    : \n    t", "    : \r\n    t\r\n", "\r    : \r    t"] {
            assert_eq!(parse(text).unwrap_err().line, last_line(text), "{text:?}: a line that is there");
        }
        assert_eq!(parse("").unwrap().documents.len(), 0);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[-a:\\[\\]{}&*!<>|#'\"\n ,?%.0~]{0,60}") {
            if let Ok(tree) = parse(&text) {
                for id in (0..tree.nodes.len()).map(NodeId) {
                    let _ = (tree.shown(id), tree.entries(id));
                }
            }
        }
    }
}
