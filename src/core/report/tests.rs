use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const FIXTURES: &[(&str, &str)] = &[
    ("seed-start", include_str!("../../../tests/fixtures/seed-start.json")),
    ("seed-success", include_str!("../../../tests/fixtures/seed-success.json")),
    ("zuul-change-start", include_str!("../../../tests/fixtures/zuul-change-start.json")),
    ("zuul-change", include_str!("../../../tests/fixtures/zuul-change.json")),
    ("zuul-branch", include_str!("../../../tests/fixtures/zuul-branch.json")),
    ("zuul-tag", include_str!("../../../tests/fixtures/zuul-tag.json")),
    ("zuul-periodic", include_str!("../../../tests/fixtures/zuul-periodic.json")),
    ("zuul-multi-change", include_str!("../../../tests/fixtures/zuul-multi-change.json")),
    ("zuul-github", include_str!("../../../tests/fixtures/zuul-github.json")),
];

fn fixture(name: &str) -> &'static str {
    FIXTURES.iter().find(|(known, _)| *known == name).unwrap().1
}

fn parse(text: &str) -> Result<Report, ReportError> {
    Report::parse(Bytes::copy_from_slice(text.as_bytes()))
}

/// A small report with some members added.
fn report_with(more: &str) -> String {
    format!(r#"{{"action":"success","tenant":"acme","pipeline":"check"{}{more}}}"#, if more.is_empty() { "" } else { "," })
}

fn message(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn what_zuul_sends_is_a_report_and_stays_byte_for_byte() {
    for (name, text) in FIXTURES {
        let report = parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(report.payload(), text.as_bytes(), "{name}");
    }
}

#[test]
fn the_seeds_start_message_gives_what_topics_need() {
    let report = parse(fixture("seed-start")).unwrap();
    assert_eq!((report.action(), report.tenant(), report.pipeline()), ("start", "openstack.org", "check"));
    assert_eq!((report.project(), report.branch()), (Some("sf-jobs"), Some("master")));
    assert_eq!((report.change(), report.patchset(), report.ref_()), (Some("3"), Some("1"), Some("refs/changes/03/3/1")));
}

#[test]
fn a_tag_has_no_branch_and_no_change() {
    let report = parse(fixture("zuul-tag")).unwrap();
    assert_eq!((report.branch(), report.change(), report.patchset()), (None, None, None));
    assert_eq!(report.ref_(), Some("refs/tags/2.4.0"));
}

#[test]
fn a_change_number_may_be_a_number() {
    assert_eq!(parse(fixture("zuul-github")).unwrap().change(), Some("417"));
}

#[test]
fn a_number_is_what_python_makes_of_it_and_two_changes_never_share_one() {
    let change = |number: &str| parse(&report_with(&format!(r#""change":{number}"#))).unwrap().change().map(str::to_owned);
    assert_ne!(change("18446744073709551617"), change("18446744073709551618"));
    assert_eq!(change("18446744073709551617").as_deref(), Some("18446744073709551617"));
    assert_eq!([change("-0"), change("1e16"), change("1e-5")].map(Option::unwrap), ["0", "1e+16", "1e-05"]);
    let text = report_with(r#""patchset":"1","changes":[{"a":1e16,"topic":"x\u0079","hashtags":[1.5],"wip":false,"branch":null}]"#);
    let report = parse(&text).unwrap();
    let value = |key: &str| report.change_value(0, key);
    assert_eq!([value("a"), value("topic"), value("wip")], ["1e+16", "xy", "False"].map(ChangeValue::Text));
    assert_eq!((value("hashtags"), value("branch"), report.patchset()), (ChangeValue::NotPlain("a list"), ChangeValue::Nothing, Some("1")));
}

#[test]
fn every_key_of_every_change_can_be_looked_up() {
    let report = parse(fixture("zuul-multi-change")).unwrap();
    assert_eq!(report.change_value(0, "topic"), ChangeValue::Text("retry-logic"));
    assert_eq!(report.change_value(1, "topic"), ChangeValue::Nothing, "null");
    assert_eq!(report.change_value(1, "branch"), ChangeValue::Text("stable/2.x"));
    assert_eq!(report.change_value(1, "nothing like it"), ChangeValue::Nothing);
    assert_eq!(report.change_value(2, "topic"), ChangeValue::NoSuchChange { count: 2 });
    let report = parse(&report_with(r#""changes":[{"hashtags":["a"],"wip":true,"score":-2,"x":{}}]"#)).unwrap();
    assert_eq!(report.change_value(0, "hashtags"), ChangeValue::NotPlain("a list"));
    assert_eq!(report.change_value(0, "x"), ChangeValue::NotPlain("an object"));
    assert_eq!(report.change_value(0, "wip"), ChangeValue::Text("True"));
    assert_eq!(report.change_value(0, "score"), ChangeValue::Text("-2"));
}

#[test]
fn a_wrong_type_is_named_with_its_path_and_with_what_was_found() {
    let cases = [
        (r#""buildset":{"builds":[{"voting":"yes"}]}"#, r#"buildset.builds[0].voting: expected true or false, found "yes""#),
        (r#""buildset":{"builds":[{},{"voting":1}]}"#, "buildset.builds[1].voting: expected true or false, found 1"),
        (r#""buildset":[]"#, "buildset: expected an object, found a list"),
        (r#""buildset":{"builds":{}}"#, "buildset.builds: expected a list, found an object"),
        (r#""buildset":{"retry_builds":[true]}"#, "buildset.retry_builds[0]: expected an object, found true"),
        (r#""buildset":{"builds":[{"dependencies":["a",7]}]}"#, "buildset.builds[0].dependencies[1]: expected a string, found 7"),
        (
            r#""buildset":{"builds":[{"start_time":"soon"}]}"#,
            r#"buildset.builds[0].start_time: expected seconds since 1970 as a number, found "soon""#,
        ),
        (
            r#""buildset":{"builds":[{"change":{"change":[]}}]}"#,
            "buildset.builds[0].change.change: expected a string or a number, found a list",
        ),
        (r#""changes":[null]"#, "changes[0]: expected an object, found null"),
        (r#""changes":[{"topic":3}]"#, "changes[0].topic: expected a string, found 3"),
        (r#""change":true"#, "change: expected a string or a number, found true"),
        (r#""message":1.5"#, "message: expected a string, found 1.5"),
    ];
    for (members, expected) in cases {
        let error = parse(&report_with(members)).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.code(), "invalid_report");
        assert_eq!(error.field(), expected.split(": ").next());
    }
}

#[test]
fn without_action_tenant_or_pipeline_a_report_has_no_way_to_go() {
    for key in ["action", "tenant", "pipeline"] {
        let mut report: Value = serde_json::from_str(&report_with("")).unwrap();
        for (value, found) in [(json!(null), "null"), (json!(""), "\"\""), (json!(5), "5")] {
            report[key] = value;
            assert_eq!(message(&report.to_string()), format!("{key}: expected a non-empty string, found {found}"));
        }
        report.as_object_mut().unwrap().remove(key);
        let error = parse(&report.to_string()).unwrap_err();
        assert_eq!(error.field(), Some(key));
        assert!(error.to_string().ends_with("expected a non-empty string, found nothing"), "{error}");
    }
}

#[test]
fn what_an_item_does_not_have_may_be_null_or_missing() {
    parse(&report_with("")).unwrap();
    let nulls = r#""project":null,"branch":null,"change":null,"patchset":null,"ref":null,"changes":null,"buildset":null"#;
    let report = parse(&report_with(nulls)).unwrap();
    assert_eq!((report.project(), report.branch(), report.change()), (None, None, None));
    parse(&report_with(r#""buildset":{"builds":[{"voting":null,"start_time":null,"end_time":"1763880301.5","log_url":null}]}"#)).unwrap();
}

#[test]
fn unknown_fields_pass() {
    parse(&report_with(r#""x":{"y":[1,{"z":null}]},"buildset":{"more":[[]],"builds":[{"more":"\ud800"}]}"#)).unwrap();
}

#[test]
fn a_field_of_the_schema_given_twice_is_refused() {
    assert_eq!(message(&report_with(r#""tenant":"other""#)), "tenant: given twice");
    assert_eq!(message(&report_with(r#""buildset":{"builds":[{"uuid":"a","uuid":"b"}]}"#)), "buildset.builds[0].uuid: given twice");
    parse(&report_with(r#""own":1,"own":2"#)).unwrap();
}

#[test]
fn broken_json_is_named_with_line_and_column() {
    let error = parse("{\n  \"action\": 'start'\n}").unwrap_err();
    assert_eq!(error.code(), "invalid_json");
    assert_eq!(error.field(), None);
    assert!(error.to_string().contains("line 2 column 13"), "{error}");
    for broken in ["", " ", "{", "{\"a\":}", "nul", "{}{}", "\u{feff}{}", r#"{"a":NaN}"#] {
        assert_eq!(parse(broken).unwrap_err().code(), "invalid_json", "{broken}");
    }
}

#[test]
fn json_that_is_not_an_object_is_not_a_report() {
    for (text, found) in [("[]", "a list"), ("3", "3"), ("null", "null"), ("\"a\"", "\"a\"")] {
        let error = parse(text).unwrap_err();
        assert_eq!((error.code(), error.field()), ("invalid_report", None));
        assert_eq!(error.to_string(), format!("expected an object, found {found}"));
    }
}

#[test]
fn bytes_that_are_not_utf_8_are_refused_by_position() {
    let error = Report::parse(Bytes::from_static(b"{\"a\": \"\xff\"}")).unwrap_err();
    assert_eq!((error.code(), error.to_string().as_str()), ("invalid_json", "a report is JSON in UTF-8: byte 7 is not UTF-8"));
}

#[test]
fn nesting_is_bounded_also_where_nobody_looks() {
    let nested = |levels: usize| report_with(&format!(r#""x":"[[[\"[","own":{}{}"#, "[".repeat(levels), "]".repeat(levels)));
    parse(&nested(MAX_NESTING - 1)).unwrap();
    let error = parse(&nested(MAX_NESTING)).unwrap_err();
    assert_eq!(error.code(), "invalid_json");
    assert!(error.to_string().starts_with("nested deeper than 100 levels at line 1 column"), "{error}");
    parse(&"[".repeat(1_000_000)).unwrap_err();
    parse(&report_with(&format!(r#""buildset":{{"builds":[{{"returned_data":{}"#, "{\"a\":".repeat(1_000_000)))).unwrap_err();
}

#[test]
fn many_brackets_side_by_side_or_within_strings_are_not_nesting() {
    let list = "[{}],".repeat(MAX_NESTING);
    parse(&report_with(&format!(r#""x":[{list}0],"y":"{}","z":"\\\"{}\\\\""#, "[{".repeat(MAX_NESTING), "[".repeat(MAX_NESTING)))).unwrap();
    let deep = format!(r#""x":[{list}0],"y":"\"]}}","z":{}{}"#, "[".repeat(MAX_NESTING), "]".repeat(MAX_NESTING));
    assert!(message(&report_with(&deep)).starts_with("nested deeper than 100 levels at line 1 column"));
}

#[test]
fn texts_that_stand_there_with_escapes_are_read_as_what_they_mean() {
    let text = r#"{"pro\u006aect":"wid\u0067ets","changes":[{"own\/\u006bey":"a\\b","top\u0069c":"\u00e9","topic2":"é"}],"tenant":"acm\u0065","pipeline":"check","action":"success"}"#;
    let report = parse(text).unwrap();
    assert_eq!((report.tenant(), report.project()), ("acme", Some("widgets")));
    assert_eq!(report.change_value(0, "own/key"), ChangeValue::Text("a\\b"));
    assert_eq!(report.change_value(0, "topic"), ChangeValue::Text("é"));
    assert_eq!(report.change_value(0, "topic2"), ChangeValue::Text("é"));
    assert_eq!(report.payload(), text.as_bytes());
}

#[test]
fn keys_may_come_in_any_order() {
    for text in [
        r#"{"ref":"r","action":"a","pipeline":"p","tenant":"t","branch":"b"}"#,
        r#"{"action":"a","ref":"r","tenant":"t","x":1,"pipeline":"p","branch":"b"}"#,
    ] {
        let report = parse(text).unwrap();
        let found = (report.action(), report.tenant(), report.pipeline(), report.branch(), report.ref_());
        assert_eq!(found, ("a", "t", "p", Some("b"), Some("r")));
    }
}

#[test]
fn each_change_has_its_own_members() {
    let changes = r#"[{"topic":"one","own":1},{},{"own":2,"own":3,"topic":""}]"#;
    let report = parse(&report_with(&format!(r#""changes":{changes}"#))).unwrap();
    let values = [0, 1, 2].map(|index| (report.change_value(index, "topic"), report.change_value(index, "own")));
    let text = ChangeValue::Text;
    assert_eq!(values, [(text("one"), text("1")), (ChangeValue::Nothing, ChangeValue::Nothing), (ChangeValue::Nothing, text("3"))]);
    assert_eq!(report.change_value(3, "topic"), ChangeValue::NoSuchChange { count: 3 });
}

#[test]
fn a_message_never_quotes_megabytes() {
    let text = message(&report_with(&format!(r#""buildset":"{}""#, "é".repeat(500_000))));
    assert!(text.starts_with("buildset: expected an object, found \"éé"), "{text}");
    assert!(text.len() < 200, "{} bytes", text.len());
}

#[test]
fn without_returned_data_the_payload_is_the_very_same_bytes() {
    let report = parse(fixture("seed-success")).unwrap();
    assert_eq!(report.payload_without_returned_data().as_ptr(), report.payload().as_ptr());
}

#[test]
fn returned_data_is_cut_out_of_builds_and_nothing_else_changes() {
    let cases = [
        (r#"{"job_name":"a","returned_data":{"x":[1,2]},"voting":true}"#, r#"{"job_name":"a","voting":true}"#),
        (r#"{"job_name":"a", "returned_data" : {"x":"}"} }"#, r#"{"job_name":"a" }"#),
        (r#"{ "returned_data":null , "voting":true}"#, r#"{ "voting":true}"#),
        (r#"{"returned_data":"\"returned_data\":1,"}"#, "{}"),
        (r#"{"returned\u005fdata":{},"voting":true}"#, r#"{"voting":true}"#),
        (r#"{"artifacts":[{"returned_data":1}]}"#, r#"{"artifacts":[{"returned_data":1}]}"#),
    ];
    for (build, left) in cases {
        let report = |build: &str| {
            report_with(&format!(
                r#""n":1.50e1, "buildset":{{"builds":[{build},{build}],"returned_data":"stays","retry_builds":[{build}]}}"#
            ))
        };
        let cut = parse(&report(build)).unwrap().payload_without_returned_data();
        assert_eq!(std::str::from_utf8(&cut).unwrap(), report(left));
    }
}

/// The same cut, made on a tree.
fn without_in_tree(text: &str) -> Value {
    let mut tree: Value = serde_json::from_str(text).unwrap();
    for list in ["builds", "retry_builds"] {
        for build in tree["buildset"][list].as_array_mut().into_iter().flatten() {
            build.as_object_mut().unwrap().remove("returned_data");
        }
    }
    tree
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from)
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z\"\\\\,:{}]{0,5}", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn cutting_text_agrees_with_cutting_a_tree(
        builds in prop::collection::vec(prop::collection::btree_map(prop_oneof![Just("returned_data"), Just("a"), Just("zz")], any_json(), 0..3), 0..4),
        pretty in any::<bool>(),
    ) {
        let tree = json!({"action": "a", "tenant": "t", "pipeline": "p", "buildset": {"builds": builds, "retry_builds": builds}});
        let text = if pretty { serde_json::to_string_pretty(&tree).unwrap() } else { tree.to_string() };
        let cut = parse(&text).unwrap().payload_without_returned_data();
        let cut = std::str::from_utf8(&cut).unwrap();
        prop_assert_eq!(serde_json::from_str::<Value>(cut).unwrap(), without_in_tree(&text));
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        _ = Report::parse(Bytes::from(bytes));
    }

    #[test]
    fn a_damaged_report_is_refused_or_read_but_never_a_panic(at in 0usize..2_000, byte in any::<u8>()) {
        let mut bytes = fixture("zuul-change").as_bytes().to_vec();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(report) = Report::parse(Bytes::from(bytes)) {
            serde_json::from_slice::<serde::de::IgnoredAny>(&report.payload_without_returned_data()).unwrap();
        }
    }
}
