//! Zuul's YAML.

use super::{Files, ways};

/// An MQTT connection, one of another kind, and the file `p.yaml`.
fn files(yaml: &str) -> Files {
    let files = Files::conf("[connection mqtt]\ndriver=mqtt\n[connection archive]\ndriver=mqtt\n[connection gerrit]\ndriver=gerrit\n");
    files.write("p.yaml", yaml);
    files
}

const BOTH: &str = "[zuul]\nconf = '@/zuul.conf'\npipelines = ['@/p.yaml']\n";

/// The mistakes in a file, without its name.
fn mistakes(yaml: &str) -> Vec<String> {
    files(yaml).mistakes(BOTH).into_iter().map(|found| found.strip_prefix("p.yaml:").unwrap_or(&found).to_owned()).collect()
}

fn way(connection: &str, topic: &str, qos: u8) -> (String, String, u8, bool) {
    (connection.to_owned(), topic.to_owned(), qos, false)
}

#[test]
fn reporters_of_mqtt_connections_are_taken_and_everything_else_is_passed_over() {
    let config = files(
        r#"# pipelines of a tenant
- pragma:
    implied-branch-matchers: True
- pipeline:
    name: check
    description: |
      Newly uploaded patchsets enter this
      pipeline: not a key.
    manager: independent
    precedence: low
    require:
      gerrit:
        open: True
        current-patchset: True
    trigger:
      gerrit:
        - event: patchset-created
        - event: comment-added
          comment: (?i)^(Patch Set [0-9]+:)?( [\w\\+-]*)*(\n\n)?\s*recheck
    start:
      mqtt:
        topic: "{tenant}/{pipeline}/start"
    success: &reports
      gerrit:
        Verified: 1
      sqlreporter:
      smtp: {to: you@example.com, subject: 'check'}
      mqtt: &mqtt
        topic: "{tenant}/{pipeline}/{project}"
        qos: 2
    failure:
      <<: *reports
      archive:
        <<: *mqtt
        qos: 1
        include-returned-data: yes
    dequeue: *reports
    disabled: {gerrit: {}, mqtt: [{topic: alarm}]}
    window-floor: 20
- pipeline: {name: gate, manager: dependent, trigger: {gerrit: [{event: comment-added}]}, success: {gerrit: {submit: true}}}
- job:
    name: base
    parent: null
    pipeline: {success: {mqtt: {topic: 3}}}
    nodeset: {nodes: [{name: controller, label: small}]}
- secret:
    name: credentials
    data:
      username: test
      password: !encrypted/pkcs1-oaep
        - BFhtdnm8uXx7kn79RFL/zJywmzLkT1GY78P3bOtp4WghUFWobkifSu7ZpaV4NeO0s71YUsi1wGZZ
        - L0LveZjUN0t6OU1VZKSG8R5Ly7urjaSo1pPVIq5Rtt/H7W14Lecd+cUeKb4joeusC9drN3AA8a4o
- project:
    vars: !override {x: 1}
    check: {jobs: [base]}
- semaphore: {name: s, max: 2}
- 3
- {two: 1, keys: 2}
---
- pipeline:
    name: post
    success:
      archive: {topic: second-document}
"#,
    )
    .load(BOTH);
    assert_eq!(ways(&config, "acme", "check", "start"), [way("mqtt", "acme/check/start", 0)]);
    for action in ["success", "dequeue"] {
        assert_eq!(ways(&config, "acme", "check", action), [way("mqtt", "acme/check/widgets", 2)]);
    }
    let of_archive = ("archive".to_owned(), "acme/check/widgets".to_owned(), 1, true);
    assert_eq!(ways(&config, "acme", "check", "failure"), [of_archive, way("mqtt", "acme/check/widgets", 2)]);
    assert_eq!(ways(&config, "acme", "check", "disabled"), [way("mqtt", "alarm", 0)]);
    assert_eq!(ways(&config, "acme", "post", "success"), [way("archive", "second-document", 0)]);
    // A pipeline without MQTT is none of ours.
    assert_eq!(config.routes.entries().len(), 2);
    assert_eq!(config.notes, [] as [&str; 0]);
}

#[test]
fn every_mistake_is_named_with_file_line_and_key() {
    let found = mistakes(
        r#"- pipeline:
    name: check
    success:
      mqtt:
        topic: "{bad}"
        qos: 3
        include-returned-data: 1
        retain: true
    start:
      mqtt:
    failure:
      mqtt: {qos: "2"}
      mqqt: {topic: t}
    sucess:
      mqtt: {topic: t}
    enqueue: yes
    no-jobs:
    dequeue:
      mqtt: [{topic: a}, {topic: b}]
    disabled:
      mqtt: {topic: no}
      archive: {topic: !override t}
- pipeline:
    manager: independent
- pipeline: {name: on}
- pipeline: {name: twice, success: {mqtt: {topic: t}}, success: {}}
- pipeline:
  name: misplaced
"#,
    );
    assert_eq!(
        found,
        [
            "5: pipeline.check.success.mqtt.topic: topic component 'bad' is invalid",
            "6: pipeline.check.success.mqtt.qos: expected 0, 1 or 2, found 3",
            "7: pipeline.check.success.mqtt.include-returned-data: expected true or false, found 1",
            "8: pipeline.check.success.mqtt.retain: unknown key",
            "10: pipeline.check.start.mqtt: expected a mapping with a topic, found nothing",
            "12: pipeline.check.failure.mqtt.qos: expected 0, 1 or 2, found \"2\"",
            "12: pipeline.check.failure.mqtt.topic: is required: the topic to publish to",
            "13: pipeline.check.failure.mqqt: there is no connection `mqqt`; did you mean `mqtt`?",
            "14: pipeline.check.sucess: is no action; did you mean `success`?",
            "16: pipeline.check.enqueue: expected reporters by the names of their connections, found `yes`, which is true in YAML unless it is quoted",
            "17: pipeline.check.no-jobs: expected reporters by the names of their connections, found nothing",
            "19: pipeline.check.dequeue.mqtt: Zuul's MQTT driver takes one reporter for an action and a connection",
            "21: pipeline.check.disabled.mqtt.topic: expected a text, found `no`, which is false in YAML unless it is quoted",
            "22: pipeline.check.disabled.archive.topic: expected a text, found a value with a tag",
            "24: pipeline.name: is required",
            "25: pipeline.name: expected a text that is not empty, found `on`, which is true in YAML unless it is quoted",
            "26: pipeline.success: stands in line 26 already",
            "28: name: stands beside `pipeline` and not in it: indent it further",
        ]
    );
}

#[test]
fn a_qos_is_whatever_equals_0_1_or_2_as_in_zuuls_schema() {
    for (written, qos) in [("0", 0), ("2", 2), ("0x1", 1), ("02", 2), ("yes", 1), ("off", 0), ("!!int '1'", 1)] {
        let config = files(&format!("- pipeline: {{name: p, start: {{mqtt: {{topic: t, qos: {written}}}}}}}\n")).load(BOTH);
        assert_eq!(ways(&config, "acme", "p", "start"), [way("mqtt", "t", qos)], "{written}");
    }
    for written in ["3", "-1", "'1'", "1.0", "null", "[1]", "one", "99999999999999999999"] {
        let found = mistakes(&format!("- pipeline: {{name: p, start: {{mqtt: {{topic: t, qos: {written}}}}}}}\n"));
        assert!(found[0].starts_with("1: pipeline.p.start.mqtt.qos: expected 0, 1 or 2, found "), "{found:?}");
    }
}

#[test]
fn merge_failure_is_merge_conflict_and_gives_way_to_it() {
    let old = "- pipeline:\n    name: p\n    merge-failure:\n      mqtt: {topic: old}\n";
    for action in ["merge-failure", "merge-conflict"] {
        assert_eq!(ways(&files(old).load(BOTH), "acme", "p", action), [way("mqtt", "old", 0)]);
    }
    let files = files(&format!("{old}    merge-conflict:\n      archive: {{topic: new}}\n"));
    assert_eq!(ways(&files.load(BOTH), "acme", "p", "merge-failure"), [way("archive", "new", 0)]);
    assert_eq!(
        files.notes(BOTH),
        [
            "p.yaml:3: pipeline.p.merge-failure: `merge-failure` is the old name of `merge-conflict`; with both, what is under `merge-conflict` counts"
        ]
    );
}

#[test]
fn what_is_no_pipeline_file_is_a_mistake_where_it_is_named_and_passed_over_in_a_folder() {
    assert_eq!(mistakes("pipelines: 3\n"), ["1: expected a list of items such as `- pipeline:`, found a mapping"]);
    assert_eq!(mistakes("just words\n"), ["1: expected a list of items such as `- pipeline:`, found \"just words\""]);
    assert!(mistakes("- pipeline:\n    name: [a\n")[0].contains(": not YAML: "));
    files("# nothing but a comment\n").load(BOTH);

    let files = files("");
    files.write("zuul.d/b.yaml", "- pipeline: {name: p, start: {mqtt: {topic: b}}}\n");
    files.write("zuul.d/deep/c.yml", "- hosts: all\n  tasks: []\n---\n- pipeline: {name: q, start: {mqtt: {topic: c}}}\n");
    files.write("zuul.d/vars.yml", "some: thing\n");
    files.write("zuul.d/plays/.zuul.ignore", "");
    files.write("zuul.d/plays/x.yaml", "{{ no yaml\n");
    let folder = "[zuul]\nconf = '@/zuul.conf'\npipelines = ['@/zuul.d']\n";
    let config = files.load(folder);
    assert_eq!(ways(&config, "acme", "p", "start"), [way("mqtt", "b", 0)]);
    assert_eq!(ways(&config, "acme", "q", "start"), [way("mqtt", "c", 0)]);
    let names = ["zuul.d/b.yaml", "zuul.d/deep/c.yml", "zuul.d/vars.yml"].map(|name| files.path(name));
    assert_eq!(config.zuul.pipelines, names);
    files.write("zuul.d/a.yaml", "pipeline: {name: p}\n");
    assert_eq!(files.mistakes(folder), ["zuul.d/a.yaml:1: expected a list of items such as `- pipeline:`, found a mapping"]);
}

#[test]
fn pipelines_belong_to_every_tenant_or_to_the_one_that_is_said() {
    let files = files("- pipeline: {name: p, start: {mqtt: {topic: all}}}\n");
    files.write("acme.yaml", "- pipeline: {name: p, start: {mqtt: {topic: acme}}}\n");
    let both = "[zuul]\nconf = '@/zuul.conf'\npipelines = ['@/p.yaml', { tenant = 'acme', path = '@/acme.yaml' }]\n";
    let config = files.load(both);
    assert_eq!(ways(&config, "acme", "p", "start"), [way("mqtt", "acme", 0), way("mqtt", "all", 0)]);
    assert_eq!(ways(&config, "other", "p", "start"), [way("mqtt", "all", 0)]);
    let twice = "[zuul]\nconf = '@/zuul.conf'\npipelines = ['@/p.yaml', '@/acme.yaml']\n";
    let found = files.mistakes(twice);
    assert_eq!(found.len(), 1);
    assert!(
        found[0].starts_with("acme.yaml:1: pipeline.p: stands in p.yaml:1 already; if they are of different tenants, say so: "),
        "{found:?}"
    );
}

#[test]
fn pipelines_of_both_files_add_up_and_one_delivery_is_asked_for_once() {
    let files = files("- pipeline:\n    name: p\n    start:\n      mqtt: {topic: zuul}\n");
    let own = |reporter: &str| format!("{BOTH}[[pipeline]]\nname = 'p'\n{reporter}\n");
    let config = files.load(&own("start.archive = { topic = 'own' }"));
    assert_eq!(ways(&config, "acme", "p", "start"), [way("archive", "own", 0), way("mqtt", "zuul", 0)]);
    let config = files.load(&own("tenant = 'acme'\nstart.mqtt = { topic = 'own' }"));
    assert_eq!(ways(&config, "acme", "p", "start"), [way("mqtt", "own", 0), way("mqtt", "zuul", 0)]);
    let found = files.mistakes(&own("start.mqtt = { topic = 'own' }"));
    assert_eq!(
        found,
        [
            "p.yaml:4: pipeline.p.start.mqtt: tidings.toml has a reporter of this pipeline and action to this connection already: take one out"
        ]
    );
}

#[test]
fn connections_of_tidings_toml_are_known_to_zuuls_pipelines() {
    let files = files("- pipeline: {name: p, start: {own: {topic: t}, gerrit: {topic: 3}}}\n");
    let alone = "[connection.own]\ndriver = 'mqtt'\n[zuul]\npipelines = ['@/p.yaml']\n";
    // Without zuul.conf nobody knows what `gerrit` is, and it looks like a slip.
    assert_eq!(files.mistakes(alone), ["p.yaml:1: pipeline.p.start.gerrit: there is no connection `gerrit`"]);
    let config = files.load(&format!("[connection.own]\ndriver = 'mqtt'\n[connection.gerrit]\ndriver = 'mqtt'\n{BOTH}"));
    assert_eq!(ways(&config, "acme", "p", "start"), [way("own", "t", 0)]);
}

#[test]
fn a_connection_whose_name_is_no_text_in_yaml_has_to_be_quoted() {
    let files = Files::conf("[connection on]\ndriver=mqtt\n[connection 1]\ndriver=mqtt\n");
    files.write("p.yaml", "- pipeline: {name: p, start: {on: {topic: t}, 1: {topic: t}}}\n");
    let found = files.mistakes(BOTH);
    assert!(found[0].contains("pipeline.p.start.on: write the name in quotes: without, YAML reads `on`, which is true"), "{found:?}");
    assert!(found[1].contains("pipeline.p.start.1: write the name in quotes: without, YAML reads 1"), "{found:?}");
    files.write("p.yaml", "- pipeline: {name: p, start: {'on': {topic: t}, \"1\": {topic: u}}}\n");
    assert_eq!(ways(&files.load(BOTH), "acme", "p", "start"), [way("on", "t", 0), way("1", "u", 0)]);
}

#[test]
fn a_file_that_is_too_large_is_no_pipeline_file() {
    let found = mistakes(&" ".repeat((8 << 20) + 1));
    assert!(found[0].starts_with("tidings.toml:3: zuul.pipelines[0]: p.yaml has more than 8388608 bytes"), "{found:?}");
}
