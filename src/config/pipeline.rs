//! `[[pipeline]]`: which report goes where. Actions and reporters are written as in Zuul's pipelines.

use std::collections::BTreeMap;

use super::mistake::closest;
use super::raw::{Item, Table};
use crate::core::route::{Action, PipelineRoutes, Reporter, Routes};
use crate::core::topic::TopicTemplate;
use crate::core::types::{ConnectionName, Qos};

/// Every pipeline; `connections` are the names that reporters may use.
pub(super) fn all(tables: Vec<Table<'_>>, connections: &[String]) -> Routes {
    let mut entries = Vec::new();
    let mut seen: Vec<(String, Option<String>, usize)> = Vec::new();
    for mut table in tables {
        let name_item = table.take("name");
        let name = match &name_item {
            None => {
                table.missing("name", "is required: the pipeline's name");
                None
            }
            Some(item) => item.text(),
        };
        let tenant = table.take("tenant").map(|item| item.text());
        // A wrong tenant or name has been noted; it can't be compared with others.
        if let (Some(name), Some(item)) = (&name, &name_item)
            && tenant != Some(None)
        {
            let tenant = tenant.clone().flatten();
            match seen.iter().find(|(pipeline, of, _)| pipeline == name && *of == tenant) {
                Some((_, _, line)) => {
                    let whose = tenant.map_or_else(|| "for every tenant".to_owned(), |tenant| format!("for tenant `{tenant}`"));
                    item.mistake(format_args!("the pipeline `{name}` {whose} stands in line {line} already: put both together"));
                }
                None => seen.push((name.clone(), tenant, item.line())),
            }
        }
        let reporters = actions(&mut table, connections);
        table.finish();
        entries.push(PipelineRoutes { pipeline: name.unwrap_or_default(), tenant: tenant.flatten(), reporters });
    }
    Routes::new(entries)
}

fn actions(table: &mut Table<'_>, connections: &[String]) -> BTreeMap<Action, Vec<Reporter>> {
    let mut reporters: BTreeMap<Action, Vec<Reporter>> = BTreeMap::new();
    for (name, action) in Action::NAMES {
        let Some(mut table) = table.table(name) else { continue };
        let of_action = reporters.entry(action).or_default();
        for (connection, item) in table.take_rest() {
            if !connections.contains(&connection) {
                let meant = closest(&connection, connections.iter().map(String::as_str));
                let hint = meant.map(|meant| format!("; did you mean `{meant}`?")).unwrap_or_default();
                item.mistake(format_args!("there is no connection `{connection}`{hint}"));
            }
            if of_action.iter().any(|reporter| reporter.connection.as_str() == connection) {
                item.mistake("`merge-failure` and `merge-conflict` are one action, and it reports to this connection already");
            }
            of_action.extend(reporter(&connection, item));
        }
    }
    reporters
}

fn reporter(connection: &str, item: Item<'_>) -> Option<Reporter> {
    let mut table = item.table()?;
    let template = match table.take("topic") {
        None => {
            table.missing("topic", "is required: the topic to publish to");
            None
        }
        Some(item) => topic(&item),
    };
    let qos = table.field("qos", Qos::default(), "0, 1 or 2", |item| Qos::try_from(item.as_whole()?).ok()).value;
    let retain = table.flag("retain", false);
    let include_returned_data = table.flag("include-returned-data", false);
    table.finish();
    Some(Reporter { connection: ConnectionName::from(connection), template: template?, qos, retain, include_returned_data })
}

fn topic(item: &Item<'_>) -> Option<TopicTemplate> {
    let text = item.read("a text in quotes", |item| item.as_text().map(str::to_owned))?;
    TopicTemplate::parse(&text).map_err(|error| item.mistake(error)).ok()
}
