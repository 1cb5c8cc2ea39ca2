//! `cargo tool reference`: the recipe reference, docs/recipes.md, from the doc comments of what recipes and ablation plans
//! are deserialised into.
//!
//! The source is parsed rather than the types asked at run time: doc comments, types and defaults stand there side by side,
//! and the product carries nothing for its documentation.

mod page;
mod schema;

use std::path::{Path, PathBuf};

use schema::Schema;

/// The page, below the repository's root.
pub const PAGE: &str = "docs/recipes.md";

/// What writes the page anew.
pub const COMMAND: &str = "cargo tool reference --write";

/// The page that the source below `root`/src gives.
///
/// # Errors
/// A sentence that names the file that cannot be read or parsed, or the key that lacks what the page needs.
pub fn render(root: &Path) -> Result<String, String> {
    let mut schema = Schema::default();
    let mut folders = vec![root.join("src")];
    let mut files: Vec<PathBuf> = Vec::new();
    while let Some(folder) = folders.pop() {
        let unreadable = |problem| format!("cannot read {}: {problem}", folder.display());
        for entry in std::fs::read_dir(&folder).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    for path in files {
        let text = std::fs::read_to_string(&path)
            .map_err(|problem| format!("cannot read {}: {problem}", path.display()))?;
        schema
            .add(&text)
            .map_err(|problem| format!("{}: {problem}", path.display()))?;
    }
    page::page(&schema)
}

/// Holds the page to the source, or writes it.
///
/// # Errors
/// A sentence: of [`render`], or that the page differs, with what writes it.
pub fn run(arguments: &[String]) -> Result<(), String> {
    let write = match arguments {
        [] => false,
        [flag] if flag == "--write" => true,
        other => {
            return Err(format!(
                "reference takes --write or nothing, but was given {other:?}"
            ));
        }
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (path, text) = (root.join(PAGE), render(&root)?);
    if write {
        return std::fs::write(&path, text)
            .map_err(|problem| format!("cannot write {}: {problem}", path.display()));
    }
    match std::fs::read_to_string(&path) {
        Ok(found) if found == text => Ok(()),
        _ => Err(format!("{PAGE} is out of date; {COMMAND} writes it")),
    }
}
