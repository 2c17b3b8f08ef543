//! Mutations of a JSON text as a tree. The tree is one that can hold what is wrong: keys twice, numbers of any spelling.

use serde_json::Value;

use crate::chance::Chance;

enum Tree {
    /// As it is written: a number, a truth value, `null`, a text in quotes, or what is none of them.
    Plain(String),
    List(Vec<Tree>),
    Object(Vec<(String, Tree)>),
}

const PLAIN: &[&str] = &[
    "null",
    "true",
    "false",
    "0",
    "-0",
    "-1",
    "1.5",
    "1e400",
    "-1e-400",
    "1E+2",
    "18446744073709551616",
    "-9223372036854775809",
    "9007199254740993",
    "01",
    "+1",
    "NaN",
    "\"\"",
    "\" \"",
    "\"1\"",
    "\"1e3\"",
    "\"\\u0000\"",
    "\"a\\u0000b\"",
    "\"+/#\"",
    "\"$SYS/x\"",
    "\"\\ud83e\\udd80\"",
    "\"\\ud83e\"",
    "\"\\uffff\"",
    "\"\\/\\b\\f\"",
    "\"é✓\"",
    "\"\\x\"",
    "[]",
    "{}",
    "[[]]",
];

impl Tree {
    fn of(value: &Value) -> Tree {
        match value {
            Value::Array(items) => Tree::List(items.iter().map(Tree::of).collect()),
            Value::Object(entries) => {
                Tree::Object(entries.iter().map(|(key, value)| (Value::from(key.as_str()).to_string(), Tree::of(value))).collect())
            }
            plain => Tree::Plain(plain.to_string()),
        }
    }

    fn write(&self, out: &mut String, blank: &str) {
        let mut between = "";
        match self {
            Tree::Plain(text) => out.push_str(text),
            Tree::List(items) => {
                out.push('[');
                for item in items {
                    out.push_str(std::mem::replace(&mut between, ","));
                    out.push_str(blank);
                    item.write(out, blank);
                }
                out.push(']');
            }
            Tree::Object(entries) => {
                out.push('{');
                for (key, value) in entries {
                    out.push_str(std::mem::replace(&mut between, ","));
                    out.push_str(blank);
                    out.push_str(key);
                    out.push(':');
                    out.push_str(blank);
                    value.write(out, blank);
                }
                out.push('}');
            }
        }
    }

    /// Some node below this one, or itself.
    fn walk(&mut self, chance: &mut Chance) -> &mut Tree {
        let inside = match self {
            Tree::Plain(_) => 0,
            Tree::List(items) => items.len(),
            Tree::Object(entries) => entries.len(),
        };
        if inside == 0 || chance.one_in(3) {
            return self;
        }
        let at = chance.below(inside);
        match self {
            Tree::Plain(_) => unreachable!("nothing is inside of it"),
            Tree::List(items) => items[at].walk(chance),
            Tree::Object(entries) => entries[at].1.walk(chance),
        }
    }
}

pub fn mutate(bytes: &mut Vec<u8>, other: &[u8], words: &[&str], chance: &mut Chance) {
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else {
        return super::bytes::mutate(bytes, other, words, chance);
    };
    let mut tree = Tree::of(&value);
    change(tree.walk(chance), other, words, chance);
    let blank = ["", "", " ", "\n", "\t\r\n"][chance.below(5)];
    let mut text = String::new();
    tree.write(&mut text, blank);
    *bytes = text.into_bytes();
}

fn change(node: &mut Tree, other: &[u8], words: &[&str], chance: &mut Chance) {
    match (chance.below(9), &mut *node) {
        (0, Tree::Object(entries)) if !entries.is_empty() => drop(entries.remove(chance.below(entries.len()))),
        (1, Tree::Object(entries)) if !entries.is_empty() => {
            // The same key again, with a value of another one or its own.
            let (key, from) = (entries[chance.below(entries.len())].0.clone(), chance.below(entries.len()));
            let mut value = String::new();
            entries[from].1.write(&mut value, "");
            entries.insert(chance.below(entries.len() + 1), (key, Tree::Plain(value)));
        }
        (2, Tree::Object(entries)) if entries.len() > 1 => {
            let (from, to) = (chance.below(entries.len()), chance.below(entries.len()));
            let (from_key, to_key) = (entries[from].0.clone(), entries[to].0.clone());
            (entries[from].0, entries[to].0) = (to_key, from_key);
        }
        (3, Tree::Object(entries)) if !entries.is_empty() && !words.is_empty() => {
            let at = chance.below(entries.len());
            entries[at].0 = format!("\"{}\"", chance.pick(words));
        }
        (4, Tree::Object(entries)) if !words.is_empty() => {
            let key = format!("\"{}\"", chance.pick(words));
            entries.push((key, Tree::Plain((*chance.pick(PLAIN)).to_owned())));
        }
        (5, _) => {
            let depth = [1, 1, 2, 5, 94, 99, 100, 101, 128, 400][chance.below(10)];
            let mut inside = String::new();
            node.write(&mut inside, "");
            let (open, close) = if chance.one_in(2) { ("[", "]") } else { ("{\"a\":", "}") };
            *node = Tree::Plain(open.repeat(depth) + &inside + &close.repeat(depth));
        }
        (6, _) => {
            if let Ok(other) = serde_json::from_slice::<Value>(other) {
                let mut other = Tree::of(&other);
                let taken = other.walk(chance);
                *node = std::mem::replace(taken, Tree::Plain("0".to_owned()));
            }
        }
        (7, _) if chance.one_in(6) => *node = Tree::Plain(format!("\"{}\"", "ä".repeat([30, 40, 41, 3_000, 33_000][chance.below(5)]))),
        (7, _) if !words.is_empty() => *node = Tree::Plain(format!("\"{}\"", chance.pick(words))),
        _ => *node = Tree::Plain((*chance.pick(PLAIN)).to_owned()),
    }
}
