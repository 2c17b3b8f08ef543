//! Which files `pipelines` names: a file is itself, a folder is every `*.yaml` and `*.yml` in it and below, sorted by path.
//!
//! As Zuul does it with `zuul.d`: a folder with a `.zuul.ignore` in it is passed over, with everything below. So is what begins with a
//! dot, which is never configuration: editors leave such files, and Kubernetes shows a mounted configuration twice that way.

use std::fs;
use std::path::{Path, PathBuf};

/// Deeper is a link that leads in a circle.
const MAX_DEPTH: usize = 32;
/// More is not a folder of pipelines.
const MAX_FILES: usize = 10_000;
/// Marks a folder that Zuul doesn't read.
const IGNORE: &str = ".zuul.ignore";

/// The files that a path stands for.
///
/// # Errors
/// What can't be read, or is too much: the path and the reason.
pub(super) fn under(path: &Path) -> Result<Vec<PathBuf>, (PathBuf, String)> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    walk(path, 0, &mut found)?;
    found.sort();
    if found.is_empty() {
        return Err((path.to_owned(), "has no *.yaml and no *.yml in it".to_owned()));
    }
    Ok(found)
}

fn walk(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), (PathBuf, String)> {
    let because = |reason: String| (folder.to_owned(), reason);
    if depth > MAX_DEPTH {
        return Err(because(format!("is more than {MAX_DEPTH} folders deep: does a link lead in a circle?")));
    }
    let unreadable = |error: std::io::Error| because(format!("can't be read: {error}"));
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        names.push(entry.map_err(unreadable)?.file_name());
    }
    if names.iter().any(|name| name == IGNORE) {
        return Ok(());
    }
    for name in names {
        let path = folder.join(&name);
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if path.is_dir() {
            walk(&path, depth + 1, found)?;
        } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            if found.len() >= MAX_FILES {
                return Err(because(format!("and the folders around it have more than {MAX_FILES} files")));
            }
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let found = under(folder).unwrap();
        found.iter().map(|path| path.strip_prefix(folder).unwrap().display().to_string()).collect()
    }

    #[test]
    fn a_folder_is_all_of_its_yaml_sorted_by_path() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        for name in [
            "b.yaml",
            "a/z.yml",
            "a/b/c.yaml",
            "notes.txt",
            ".b.yaml.swp",
            ".hidden/x.yaml",
            "plays/.zuul.ignore",
            "plays/x.yaml",
            "plays/deep/y.yaml",
        ] {
            write(name);
        }
        assert_eq!(names(folder.path()), ["a/b/c.yaml", "a/z.yml", "b.yaml"]);
        assert_eq!(under(&folder.path().join("notes.txt")).unwrap(), [folder.path().join("notes.txt")]);
        std::os::unix::fs::symlink(folder.path(), folder.path().join("a/circle")).unwrap();
        assert!(under(folder.path()).unwrap_err().1.contains("in a circle"));
        let empty = tempfile::tempdir().unwrap();
        assert!(under(empty.path()).unwrap_err().1.contains("no *.yaml"));
    }
}
