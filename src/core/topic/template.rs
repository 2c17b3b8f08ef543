//! Topic templates: Python format strings, as far as Zuul's reporters use them.
//!
//! | In the template | In the topic |
//! |---|---|
//! | `{tenant}` `{pipeline}` `{project}` `{branch}` `{change}` `{patchset}` `{ref}` | the report's value |
//! | `{changes[0][topic]}` | any key of any of the report's changes |
//! | `{{` `}}` | `{` `}` |
//!
//! A value that is missing, null or empty is written `None`: a tag has no branch, and Python's `format` writes so. `+` and `#`
//! become `_`, also those of the template itself, as Zuul translates them. Numbers and truth values are written as Python writes them.
//!
//! Python would also take conversions (`{tenant!r}`), format specifications (`{change:>5}`), attributes and positions. They make
//! no sense in a topic (`!r` puts quotes in it; padding fails at run time for a report without that value), so they are refused at load.

use std::fmt;

use thiserror::Error;

use super::{MAX_TOPIC, Topic, TopicError, brokers_own, is_risky, is_wildcard};
use crate::core::report::{ChangeValue, Report};

/// What stands for a value that a report doesn't have.
const NOTHING: &str = "None";

/// A topic template that has been parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicTemplate {
    source: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Named(Component),
    OfChange { index: usize, key: String },
}

/// The named components of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Component {
    Tenant,
    Pipeline,
    Project,
    Branch,
    Change,
    Patchset,
    Ref,
}

impl Component {
    fn from_name(name: &str) -> Option<Component> {
        Some(match name {
            "tenant" => Component::Tenant,
            "pipeline" => Component::Pipeline,
            "project" => Component::Project,
            "branch" => Component::Branch,
            "change" => Component::Change,
            "patchset" => Component::Patchset,
            "ref" => Component::Ref,
            _ => return None,
        })
    }

    fn of(self, report: &Report) -> Option<&str> {
        match self {
            Component::Tenant => Some(report.tenant()),
            Component::Pipeline => Some(report.pipeline()),
            Component::Project => report.project(),
            Component::Branch => report.branch(),
            Component::Change => report.change(),
            Component::Patchset => report.patchset(),
            Component::Ref => report.ref_(),
        }
    }
}

/// Why a text is no topic template. Found when the configuration is loaded.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TemplateError {
    /// There is no such component.
    #[error("topic component '{0}' is invalid")]
    UnknownComponent(String),
    /// `changes` is not followed by a number and a key.
    #[error("`{{{0}}}`: write the number of a change and a key, such as `{{changes[0][topic]}}`")]
    Changes(String),
    /// A plain component with an index or an attribute.
    #[error("`{{{0}}}`: `{1}` is a plain value, it has no parts")]
    NotIndexable(String, String),
    /// A conversion or a format specification.
    #[error("`{{{0}}}`: conversions (`!r`) and format specifications (`:>5`) can't be used in a topic")]
    Formatted(String),
    /// A brace without its counterpart.
    #[error("single `{0}` at character {1}: write `{0}{0}` for a brace in the topic")]
    SingleBrace(char, usize),
    /// No report could make a topic of it.
    #[error(transparent)]
    Topic(#[from] TopicError),
}

/// Why a report can't be given a topic.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RenderError {
    /// The template refers to a change that the report doesn't have.
    #[error("the topic template `{template}` needs {field}, and the report has {count} change(s)")]
    NoSuchChange {
        /// The template.
        template: String,
        /// What is missing, such as `changes[3]`.
        field: String,
        /// How many changes there are.
        count: usize,
    },
    /// The template refers to something that is no text, number or truth value.
    #[error("the topic template `{template}` needs a plain value, and {field} is {kind}")]
    NotPlain {
        /// The template.
        template: String,
        /// The path of the value.
        field: String,
        /// What it is.
        kind: &'static str,
    },
    /// What comes out is no topic.
    #[error("the topic template `{template}` gives no valid topic: {error}")]
    Topic {
        /// The template.
        template: String,
        /// What is wrong with it.
        error: TopicError,
    },
}

impl RenderError {
    /// Stable, for machines.
    pub fn code(&self) -> &'static str {
        "topic_unrenderable"
    }

    /// The path of the value in the report that is at fault, where it is one value.
    pub fn field(&self) -> Option<&str> {
        match self {
            RenderError::NoSuchChange { field, .. } | RenderError::NotPlain { field, .. } => Some(field),
            RenderError::Topic { .. } => None,
        }
    }
}

impl TopicTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// What in it is unknown, or can't be meant, or could never make a topic.
    pub fn parse(source: &str) -> Result<TopicTemplate, TemplateError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = source;
        while let Some(at) = rest.find(['{', '}']) {
            literal.push_str(&rest[..at]);
            let (brace, after) = (&rest[at..=at], &rest[at + 1..]);
            if let Some(after) = after.strip_prefix(brace) {
                literal.push_str(brace);
                rest = after;
                continue;
            }
            let single = |brace| TemplateError::SingleBrace(brace, source[..source.len() - rest.len() + at].chars().count() + 1);
            if brace == "}" {
                return Err(single('}'));
            }
            let end = end_of_field(after).ok_or_else(|| single('{'))?;
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
            }
            parts.push(parse_field(&after[..end])?);
            rest = &after[end + 1..];
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        let template = TopicTemplate { source: source.to_owned(), parts };
        template.check_literals()?;
        Ok(template)
    }

    /// The template as it was written.
    pub fn as_str(&self) -> &str {
        &self.source
    }

    /// The topic for a report.
    ///
    /// # Errors
    /// If the report lacks a change that the template names, or what comes out is no topic.
    pub fn render(&self, report: &Report) -> Result<Topic, RenderError> {
        // Values are about as long as their names, or half as long again.
        let mut topic = String::with_capacity(self.source.len() * 3 / 2);
        for part in &self.parts {
            match part {
                Part::Literal(text) => push(&mut topic, text),
                Part::Named(component) => push(&mut topic, component.of(report).unwrap_or(NOTHING)),
                Part::OfChange { index, key } => match report.change_value(*index, key) {
                    ChangeValue::Text(text) => push(&mut topic, text),
                    ChangeValue::Nothing => topic.push_str(NOTHING),
                    ChangeValue::NoSuchChange { count } => {
                        let field = format!("changes[{index}]");
                        return Err(RenderError::NoSuchChange { template: self.source.clone(), field, count });
                    }
                    ChangeValue::NotPlain(kind) => {
                        let field = format!("changes[{index}].{key}");
                        return Err(RenderError::NotPlain { template: self.source.clone(), field, kind });
                    }
                },
            }
        }
        Topic::new(topic).map_err(|error| RenderError::Topic { template: self.source.clone(), error })
    }

    /// Refuses what every report's topic would be refused for.
    fn check_literals(&self) -> Result<(), TemplateError> {
        if self.parts.is_empty() {
            return Err(TopicError::Empty.into());
        }
        let mut bytes = 0;
        for part in &self.parts {
            if let Part::Literal(text) = part {
                bytes += text.len();
                if let Some(found) = text.chars().find(|c| is_risky(*c)) {
                    return Err(TopicError::Character { found }.into());
                }
            }
        }
        if bytes > MAX_TOPIC {
            return Err(TopicError::TooLong { bytes }.into());
        }
        match self.parts.first() {
            Some(Part::Literal(first)) if first.contains('/') || self.parts.len() == 1 => match brokers_own(first) {
                Some(level) => Err(TopicError::BrokersOwn { level }.into()),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

impl fmt::Display for TopicTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

/// Where the `}` stands that ends a field. Within brackets a brace belongs to the key, as in Python.
fn end_of_field(text: &str) -> Option<usize> {
    let mut in_brackets = false;
    text.find(|c| {
        match c {
            '[' => in_brackets = true,
            ']' => in_brackets = false,
            _ => {}
        }
        c == '}' && !in_brackets
    })
}

fn parse_field(field: &str) -> Result<Part, TemplateError> {
    let name_end = field.find(['[', '.', '!', ':']).unwrap_or(field.len());
    let (name, rest) = field.split_at(name_end);
    let component = Component::from_name(name);
    if component.is_none() && name != "changes" {
        return Err(TemplateError::UnknownComponent(name.to_owned()));
    }
    if outside_brackets(rest).any(|c| matches!(c, '!' | ':')) {
        return Err(TemplateError::Formatted(field.to_owned()));
    }
    match component {
        Some(component) if rest.is_empty() => Ok(Part::Named(component)),
        Some(_) => Err(TemplateError::NotIndexable(field.to_owned(), name.to_owned())),
        None => parse_path(rest).ok_or_else(|| TemplateError::Changes(field.to_owned())),
    }
}

/// `[0][key]`.
fn parse_path(path: &str) -> Option<Part> {
    let (index, key) = path.strip_prefix('[')?.split_once("][")?;
    let key = key.strip_suffix(']')?;
    if key.is_empty() || key.contains(']') || !index.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(Part::OfChange { index: index.parse().ok()?, key: key.to_owned() })
}

fn outside_brackets(text: &str) -> impl Iterator<Item = char> {
    let mut in_brackets = false;
    text.chars().filter(move |c| {
        match c {
            '[' => in_brackets = true,
            ']' => in_brackets = false,
            _ => {}
        }
        !in_brackets
    })
}

fn push(topic: &mut String, text: &str) {
    if !text.bytes().any(|byte| matches!(byte, b'+' | b'#')) {
        return topic.push_str(text);
    }
    topic.extend(text.chars().map(|c| if is_wildcard(c) { '_' } else { c }));
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn report(more: Value) -> Report {
        let mut whole = json!({"action": "success", "tenant": "acme", "pipeline": "check"});
        whole.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Report::parse(Bytes::from(whole.to_string())).unwrap()
    }

    fn render(template: &str, more: Value) -> Result<String, RenderError> {
        TopicTemplate::parse(template).unwrap().render(&report(more)).map(Topic::into_string)
    }

    fn load_error(template: &str) -> String {
        TopicTemplate::parse(template).unwrap_err().to_string()
    }

    #[test]
    fn the_seeds_template_renders_the_seeds_report() {
        let report = Report::parse(Bytes::from_static(include_bytes!("../../../tests/fixtures/seed-success.json"))).unwrap();
        let template = TopicTemplate::parse("{tenant}/zuul/{pipeline}/{project}/{branch}/{change}/{patchset}/{ref}").unwrap();
        assert_eq!(template.render(&report).unwrap().as_str(), "openstack.org/zuul/check/sf-jobs/master/3/1/refs/changes/03/3/1");
    }

    #[test]
    fn what_a_report_does_not_have_is_none() {
        assert_eq!(render("{project}/{branch}", json!({"branch": ""})).unwrap(), "None/None");
        assert_eq!(render("{change}/{patchset}/{ref}", json!({"change": null})).unwrap(), "None/None/None");
        assert_eq!(render("{changes[0][topic]}/{changes[0][x]}", json!({"changes": [{"topic": null}]})).unwrap(), "None/None");
        assert_eq!(render("a/{changes[0][topic]}", json!({"changes": [{"topic": ""}]})).unwrap(), "a/None");
    }

    #[test]
    fn any_key_of_any_change_can_be_in_a_topic() {
        let changes = json!({"changes": [{"topic": "a"}, {"topic": "b", "a:b}": 7, "wip": false, "change": "12"}]});
        assert_eq!(render("{changes[1][topic]}/{changes[1][change]}/{changes[1][wip]}", changes.clone()).unwrap(), "b/12/False");
        assert_eq!(render("{changes[01][a:b}]}", changes).unwrap(), "7");
    }

    #[test]
    fn wildcards_become_underscores() {
        assert_eq!(render("a+/{project}/#", json!({"project": "c++/#1"})).unwrap(), "a_/c__/_1/_");
    }

    #[test]
    fn doubled_braces_are_braces() {
        assert_eq!(render("{{{tenant}}}/{{x}}", json!({})).unwrap(), "{acme}/{x}");
    }

    #[test]
    fn an_unknown_component_is_an_error_at_load() {
        assert_eq!(load_error("{tenant}/{bad}"), "topic component 'bad' is invalid");
        assert_eq!(load_error("{bad[0].x!r:>5}"), "topic component 'bad' is invalid");
        assert_eq!(load_error("{ tenant }"), "topic component ' tenant ' is invalid");
        assert_eq!(load_error("{}"), "topic component '' is invalid");
        assert_eq!(load_error("{0}"), "topic component '0' is invalid");
        assert_eq!(load_error("{Tenant}"), "topic component 'Tenant' is invalid");
    }

    #[test]
    fn what_python_would_format_and_a_topic_can_not_use_is_an_error_at_load() {
        for template in ["{tenant!r}", "{tenant!s}", "{change:>5}", "{changes[0][topic]!r}", "{tenant:}"] {
            assert!(load_error(template).contains("conversions"), "{template}");
        }
        assert_eq!(load_error("{tenant.x}"), "`{tenant.x}`: `tenant` is a plain value, it has no parts");
        for path in
            ["", "[0]", "[topic]", "[-1][topic]", "[0][]", "[0][a][b]", "[0].topic", "[0]x[a]", "[99999999999999999999][a]", "[][a]"]
        {
            assert!(load_error(&format!("{{changes{path}}}")).contains("{changes[0][topic]}"), "{path}");
        }
    }

    #[test]
    fn a_single_brace_is_an_error_at_load() {
        assert_eq!(load_error("é/}"), "single `}` at character 3: write `}}` for a brace in the topic");
        assert_eq!(load_error("{tenant}/{"), "single `{` at character 10: write `{{` for a brace in the topic");
        assert!(load_error("{tenant").starts_with("single `{` at character 1:"));
        assert!(load_error("{changes[0}").starts_with("single `{`"));
    }

    #[test]
    fn a_template_that_can_never_give_a_topic_is_an_error_at_load() {
        assert_eq!(load_error(""), "the topic is empty");
        assert!(load_error("{tenant}/\0").contains("U+0000"));
        assert!(load_error("$SYS/{tenant}").contains("$SYS"));
        assert!(load_error(&format!("{}{{tenant}}", "x".repeat(MAX_TOPIC + 1))).contains("65536 bytes"));
        TopicTemplate::parse("$SYS{tenant}").unwrap();
    }

    #[test]
    fn a_report_that_lacks_what_the_template_needs_has_no_topic() {
        let error = render("{changes[3][topic]}", json!({"changes": [{}]})).unwrap_err();
        assert_eq!((error.code(), error.field()), ("topic_unrenderable", Some("changes[3]")));
        assert!(error.to_string().contains("has 1 change(s)"), "{error}");
        assert_eq!(render("{changes[0][topic]}", json!({})).unwrap_err().field(), Some("changes[0]"));
        let error = render("{changes[0][tags]}", json!({"changes": [{"tags": ["a"]}]})).unwrap_err();
        assert_eq!((error.code(), error.field()), ("topic_unrenderable", Some("changes[0].tags")));
    }

    #[test]
    fn a_report_whose_topic_would_be_invalid_has_no_topic() {
        for project in ["x".repeat(MAX_TOPIC), "a\0b".to_owned(), "a\nb".to_owned()] {
            let error = render("a/{project}", json!({"project": project})).unwrap_err();
            assert_eq!((error.code(), error.field()), ("topic_unrenderable", None));
        }
        assert!(render("{project}/x", json!({"project": "$SYS"})).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[{}\\[\\]a-c!:.0]{0,12}|\\PC{0,12}") {
            _ = TopicTemplate::parse(&text);
        }

        #[test]
        fn text_with_its_braces_doubled_renders_as_itself(text in "[a-z/{}é ]{1,20}") {
            prop_assert_eq!(render(&text.replace('{', "{{").replace('}', "}}"), json!({})).unwrap(), text);
        }

        #[test]
        fn a_template_is_its_parts_in_order(parts in prop::collection::vec(0usize..6, 1..12), project in "\\PC{0,6}", change in any::<u32>()) {
            let names = ["{tenant}", "{pipeline}", "{project}", "{change}", "/", "{changes[0][change]}"];
            let shown = if project.is_empty() { "None".to_owned() } else { project.replace(['+', '#'], "_") };
            let change_text = change.to_string();
            let values = ["acme", "check", &shown, &change_text, "/", &change_text];
            let template: String = parts.iter().map(|part| names[*part]).collect();
            let expected: String = parts.iter().map(|part| values[*part]).collect();
            let more = json!({"project": project, "change": change, "changes": [{"change": change}]});
            match render(&template, more) {
                Ok(topic) => prop_assert_eq!(topic, expected),
                Err(_) => prop_assert!(Topic::new(expected).is_err()),
            }
        }

        #[test]
        fn any_valid_report_gives_a_valid_topic_or_a_reason(branch in any::<String>(), index in 0usize..3) {
            let rendered = render(&format!("t/{{branch}}/{{changes[{index}][branch]}}"), json!({"branch": branch, "changes": [{"branch": branch}]}));
            match rendered {
                Ok(topic) => prop_assert!(Topic::new(topic).is_ok()),
                Err(error) => prop_assert_eq!(error.code(), "topic_unrenderable"),
            }
        }
    }
}
