//! JSON objects in questions, and nothing that only passes for one.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// What is written as a JSON object.
///
/// What serde derives for a struct also takes a list, by the order of the fields. A filter `[null]` would be one that says nothing, which means all: who
/// sends that means something else, and would have discarded everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FromMap(PhantomData)).map(Object)
    }
}

struct FromMap<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for FromMap<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Pair {
        a: Option<u8>,
        b: Option<u8>,
    }

    #[test]
    fn a_list_is_no_object_even_if_its_values_would_fit() {
        let read = |text: &str| serde_json::from_str::<Object<Pair>>(text).map(|Object(pair)| pair).map_err(|error| error.to_string());
        assert_eq!(read(r#"{"b":2}"#), Ok(Pair { a: None, b: Some(2) }));
        assert!(read("[null,null]").unwrap_err().contains("expected an object"));
        assert!(read("[]").is_err() && read("null").is_err() && read("1").is_err());
        assert!(read(r#"{"a":1,"a":2}"#).unwrap_err().contains("duplicate field"));
        assert!(read(r#"{"c":1}"#).unwrap_err().contains("unknown field"));
    }
}
