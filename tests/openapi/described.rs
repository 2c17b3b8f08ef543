//! The document as these tests read it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::support::tidings::Tidings;

/// What a path item may have beside methods.
const NO_METHODS: [&str; 3] = ["parameters", "summary", "description"];

/// One method of one path.
pub struct Operation {
    /// In upper case.
    pub method: String,
    pub path: String,
    what: Value,
}

pub struct Document(Value);

impl Document {
    /// As the service gives it out.
    pub fn of(service: &Tidings) -> Document {
        let reply = service.get("/openapi.json").expect("the service answers");
        assert_eq!(reply.status, 200);
        Document(reply.json())
    }

    pub fn text(&self) -> String {
        self.0.to_string()
    }

    pub fn operations(&self) -> Vec<Operation> {
        let of_path = |(path, item): (&String, &Value)| {
            let methods = members(item).into_iter().filter(|(name, _)| !NO_METHODS.contains(&name.as_str()));
            let operation = |(method, what): (String, Value)| Operation { method: method.to_uppercase(), path: path.clone(), what };
            methods.map(operation).collect::<Vec<_>>()
        };
        self.0["paths"].as_object().unwrap().iter().flat_map(of_path).collect()
    }

    /// Path → its methods.
    pub fn routes(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut routes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for operation in self.operations() {
            routes.entry(operation.path).or_default().insert(operation.method);
        }
        routes
    }

    /// What a reference leads to; everything else is itself.
    fn followed<'d>(&'d self, value: &'d Value) -> &'d Value {
        match value["$ref"].as_str().and_then(|target| target.strip_prefix('#')) {
            Some(pointer) => self.0.pointer(pointer).unwrap_or_else(|| panic!("{pointer} leads nowhere")),
            None => value,
        }
    }

    /// Status → the response, of an operation.
    pub fn responses<'d>(&'d self, operation: &'d Operation) -> BTreeMap<u16, &'d Value> {
        let responses = operation.what["responses"].as_object().expect("an operation has responses");
        responses.iter().map(|(status, response)| (status.parse().unwrap(), self.followed(response))).collect()
    }

    /// The error codes that a response names.
    pub fn codes(&self, response: &Value) -> Vec<String> {
        let codes = &response["content"]["application/json"]["schema"]["properties"]["error"]["properties"]["code"]["enum"];
        codes.as_array().map(|codes| codes.iter().map(|code| code.as_str().unwrap().to_owned()).collect()).unwrap_or_default()
    }

    /// Whether a response brings this header.
    pub fn brings(&self, response: &Value, header: &str) -> bool {
        let header = &response["headers"][header];
        !header.is_null() && self.followed(header)["required"] == true
    }
}

impl Operation {
    /// Whether it answers with what others have stored or decided, and not with its own state.
    pub fn is_public(&self) -> bool {
        self.what["security"].as_array().is_some_and(Vec::is_empty)
    }
}

fn members(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}
