//! Zuul's own files, read as they are: the MQTT connections of `zuul.conf`, and the pipelines of its YAML.
//!
//! ```text
//! zuul.conf ──ini──▶ sections ──interpolate──▶ values ──connections──▶ the same checks as [connection.NAME] ──▶ ConnectionConfig
//! *.yaml ──files──▶ ──yaml──▶ tree ──pipelines──▶ PipelineRoutes
//! ```
//!
//! The rule: a file that works for Zuul works here, and what it says means the same. So what belongs to other drivers and other items
//! is passed over, and what Zuul ignores is noted and not refused; but what Zuul would take and Tidings can't do is a mistake, with
//! file, line and key. Names and defaults were read from Zuul 14's sources, and `merge-failure` from 5.2's.
//!
//! Where two say the same: a connection of `tidings.toml` takes the place of the one of that name in `zuul.conf`, as a whole (with the
//! MQTT listener in use `zuul.conf` points at Tidings, and the broker has to stand somewhere). Pipelines add up; one action that reports
//! twice to one connection is a mistake.

mod connections;
mod files;
mod ini;
mod interpolate;
mod pipelines;
mod scalar;
mod yaml;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use connections::{MqttConnection, OptionPlace};

use super::mistake::{ConfigErrors, Mistake};
use super::raw::{File, Item, Table};
use super::{ConnectionConfig, MAX_FILE, read_bounded};
use crate::core::route::{PipelineRoutes, Routes};
use pipelines::{Known, Pipeline, Pipelines, Source};

/// The largest YAML file, in bytes. Generated ones of large installations have a few hundred KiB.
const MAX_YAML: u64 = 8 << 20;

/// Which of Zuul's files were read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ZuulFiles {
    /// `zuul.conf`.
    pub conf: Option<PathBuf>,
    /// Files with pipelines, those in folders too.
    pub pipelines: Vec<PathBuf>,
}

/// A `zuul.conf`, as far as it is about MQTT.
#[derive(Debug, Clone, Default)]
pub struct ZuulConf {
    /// Its MQTT connections, in the order of the file.
    pub connections: Vec<MqttConnection>,
    /// The names of its other connections.
    pub others: Vec<String>,
    /// What is right but probably not meant.
    pub notes: Vec<String>,
}

/// What is right but probably not meant, of the file that is being read.
#[derive(Debug, Default)]
struct Findings {
    name: String,
    notes: Vec<String>,
}

impl Findings {
    fn of(name: &str) -> Findings {
        Findings { name: name.to_owned(), notes: Vec::new() }
    }

    fn note(&mut self, note: String) {
        self.notes.push(note);
    }
}

/// What `[zuul]` brings.
#[derive(Debug, Default)]
pub(super) struct Section {
    /// The connections of `zuul.conf` that `tidings.toml` doesn't give itself.
    pub connections: Vec<ConnectionConfig>,
    /// Their names, also of those that have a mistake.
    pub names: Vec<String>,
    pipelines: Vec<Pipeline>,
    /// What was read.
    pub files: ZuulFiles,
    /// What is right but probably not meant.
    pub notes: Vec<String>,
}

/// Reads `[zuul]`. `taken` are the names of the connections that `tidings.toml` gives itself.
pub(super) fn section(mut table: Table<'_>, taken: &[String], environment: &dyn Fn(&str) -> Option<String>) -> Section {
    let mut section = Section::default();
    let mut known = Known { mqtt: taken.to_vec(), ..Known::default() };
    if let Some(item) = table.take("conf")
        && let Some(path) = item.text()
    {
        match conf(Path::new(&path), taken, environment) {
            Err(reason) => {
                known.is_partial = true;
                item.mistake(format_args!("{path} {reason}"));
            }
            Ok((found, notes, mistakes)) => {
                known.is_partial = !mistakes.is_empty();
                if found.mqtt.is_empty() && mistakes.is_empty() {
                    section.notes.push(format!("{path}: there is no connection with `driver=mqtt`"));
                }
                table.mistakes_elsewhere(mistakes);
                section.notes.extend(notes);
                // A name that Zuul has for something else means that in Zuul's pipelines.
                known.mqtt.retain(|name| !found.others.contains(name));
                known
                    .mqtt
                    .extend(found.mqtt.iter().filter(|connection| connection.config.is_some()).map(|connection| connection.name.clone()));
                known.others = found.others;
                section.names = found.mqtt.iter().map(|connection| connection.name.clone()).collect();
                section.connections = found.mqtt.into_iter().filter_map(|connection| connection.config).collect();
            }
        }
        section.files.conf = Some(path.into());
    }
    let mut pipelines = Pipelines::default();
    let list = table.take("pipelines");
    let list = list.filter(|list| list.read("a list of paths", |list| list.is_list().then_some(())).is_some());
    for item in list.map(Item::entries).unwrap_or_default() {
        let Some((item, path, tenant)) = place(item) else { continue };
        match read_pipelines(Path::new(&path), tenant.as_deref(), &known, &mut pipelines) {
            Err((culprit, reason)) => item.mistake(format_args!("{} {reason}", culprit.display())),
            Ok(read) => {
                table.mistakes_elsewhere(read.mistakes);
                section.notes.extend(read.notes);
                section.files.pipelines.extend(read.files);
            }
        }
    }
    section.pipelines = pipelines.found;
    table.finish();
    section
}

/// `"path"`, or `{ tenant = "…", path = "…" }`: whose mistakes are reported, path and tenant.
fn place(item: Item<'_>) -> Option<(Item<'_>, String, Option<String>)> {
    if !item.is_table() {
        let path = item.read("a path in quotes, or `{ tenant = \"…\", path = \"…\" }`", |item| {
            item.as_text().filter(|text| !text.is_empty()).map(str::to_owned)
        })?;
        return Some((item, path, None));
    }
    let mut table = item.table()?;
    let (path, tenant) = (table.take("path"), table.take("tenant"));
    if path.is_none() {
        table.missing("path", "is required: a file or a folder");
    }
    // Without a tenant the path alone would do.
    if tenant.is_none() {
        table.missing("tenant", "is required: the tenant whose pipelines these are");
    }
    table.finish();
    let (path, tenant) = (path?, tenant?);
    let (text, tenant) = (path.text(), tenant.text());
    Some((path, text?, Some(tenant?)))
}

type Conf = (connections::Connections, Vec<String>, Vec<Mistake>);

fn conf(path: &Path, taken: &[String], environment: &dyn Fn(&str) -> Option<String>) -> Result<Conf, String> {
    let text = read_bounded(path, MAX_FILE)?;
    let name = path.display().to_string();
    let file = File::new(&name, &text);
    let (ini, faults) = ini::parse(&text);
    let mut findings = Findings::of(&name);
    let mut found = connections::Connections::default();
    if faults.is_empty() {
        found = connections::read(&file, &ini, taken, environment, &mut findings);
    }
    for fault in faults {
        file.note(Some(fault.line), fault.key, fault.message);
    }
    Ok((found, findings.notes, file.into_mistakes()))
}

#[derive(Default)]
struct Yaml {
    files: Vec<PathBuf>,
    notes: Vec<String>,
    mistakes: Vec<Mistake>,
}

fn read_pipelines(path: &Path, tenant: Option<&str>, known: &Known, into: &mut Pipelines) -> Result<Yaml, (PathBuf, String)> {
    let mut read = Yaml::default();
    for file in files::under(path)? {
        let text = read_bounded(&file, MAX_YAML).map_err(|reason| (file.clone(), reason))?;
        let name = file.display().to_string();
        let mut findings = Findings::of(&name);
        let source = Source { file: &File::new(&name, &text), name: &name, text: &text, tenant, is_named: file == path };
        pipelines::read(&source, known, into, &mut findings);
        read.mistakes.extend(source.file.take_mistakes());
        read.notes.extend(findings.notes);
        read.files.push(file);
    }
    Ok(read)
}

/// The routes of both; `root` is the file that `routes` were read from.
pub(super) fn join(routes: Routes, section: &mut Section, root: &Table<'_>) -> Routes {
    let mut mistakes = Vec::new();
    for Pipeline { routes: from_zuul, file, lines } in &section.pipelines {
        let same = routes.entries().iter().find(|entry| entry.pipeline == from_zuul.pipeline && entry.tenant == from_zuul.tenant);
        let Some(same) = same else { continue };
        for (action, connection, line) in lines {
            let reporters = same.reporters.get(action);
            if reporters.is_some_and(|reporters| reporters.iter().any(|reporter| reporter.connection == *connection)) {
                mistakes.push(Mistake {
                    file: file.clone(),
                    line: Some(*line),
                    key: Some(format!("pipeline.{}.{action}.{connection}", from_zuul.pipeline)),
                    message: format!(
                        "{} has a reporter of this pipeline and action to this connection already: take one out",
                        root.file_name()
                    ),
                });
            }
        }
    }
    root.mistakes_elsewhere(mistakes);
    let from_zuul = section.pipelines.drain(..).map(|pipeline| pipeline.routes);
    Routes::new(routes.entries().iter().cloned().chain(from_zuul).collect())
}

/// The MQTT connections of a `zuul.conf`.
///
/// # Errors
/// Every mistake in it, as far as it is about them.
pub fn read_conf(path: &Path, environment: &dyn Fn(&str) -> Option<String>) -> Result<ZuulConf, ConfigErrors> {
    match conf(path, &[], environment) {
        Err(reason) => Err(ConfigErrors::one(Mistake::of_file(&path.display().to_string(), reason))),
        Ok((_, _, mistakes)) if !mistakes.is_empty() => Err(ConfigErrors { mistakes }),
        Ok((found, notes, _)) => Ok(ZuulConf { connections: found.mqtt, others: found.others, notes }),
    }
}

/// The pipelines of files and folders that report to one of the MQTT `connections`, and what is to be noted about them. `others` are the
/// names of connections that lead elsewhere.
///
/// # Errors
/// Every mistake in them.
pub fn read_pipelines_of(
    paths: &[PathBuf],
    connections: &[String],
    others: &[String],
) -> Result<(Vec<PipelineRoutes>, Vec<String>), ConfigErrors> {
    let known = Known { mqtt: connections.to_vec(), others: others.to_vec(), is_partial: false };
    let (mut pipelines, mut notes, mut mistakes) = (Pipelines::default(), Vec::new(), Vec::new());
    for path in paths {
        match read_pipelines(path, None, &known, &mut pipelines) {
            Err((culprit, reason)) => mistakes.push(Mistake::of_file(&culprit.display().to_string(), reason)),
            Ok(read) => {
                notes.extend(read.notes);
                mistakes.extend(read.mistakes);
            }
        }
    }
    if mistakes.is_empty() {
        Ok((pipelines.found.into_iter().map(|pipeline| pipeline.routes).collect(), notes))
    } else {
        Err(ConfigErrors { mistakes })
    }
}
