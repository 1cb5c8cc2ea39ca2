//! The rooms of training data: no files that import each other in a circle. That they take nothing from above is cargo's to
//! say: each is a package.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The room of data, which others stand on.
const DATA: &str = "src/data";

/// The embedded world, which stands on it.
const EMOJI: &str = "src/emoji";

/// Files below `folder`, with their text but for comments.
fn files(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder is part of the checkout") {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let text = fs::read_to_string(&path).expect("a source file");
            let lines = text.lines().map(|line| match line.trim_start() {
                line if line.starts_with("//") => "",
                _ => line,
            });
            found.push((path.clone(), lines.collect::<Vec<_>>().join("\n")));
        }
    }
    found.sort();
    found
}

/// The paths in `text` that begin with `root::`, each as its parts after that.
fn paths<'a>(text: &'a str, root: &str) -> Vec<Vec<&'a str>> {
    let root = format!("{root}::");
    let starts = text.match_indices(&root).map(|(at, _)| at);
    let starts = starts.filter(|at| {
        !text[..*at].ends_with(|letter: char| letter.is_alphanumeric() || "_:".contains(letter))
    });
    starts
        .map(|at| {
            let rest = &text[at + root.len()..];
            let is_path = |letter: char| letter.is_alphanumeric() || "_:".contains(letter);
            let end = rest.find(|letter| !is_path(letter)).unwrap_or(rest.len());
            rest[..end].split("::").collect()
        })
        .collect()
}

/// The file that a path from `folder` leads to: that of the module which its first parts name.
fn file_of(mut folder: PathBuf, parts: &[&str]) -> PathBuf {
    for part in parts {
        let file = folder.join(format!("{part}.rs"));
        if file.exists() {
            return file;
        }
        if part.is_empty() || !folder.join(part).is_dir() {
            break;
        }
        folder = folder.join(part);
    }
    let own = folder.join("lib.rs");
    if own.exists() {
        own
    } else {
        folder.join("mod.rs")
    }
}

/// Which files of `room` each of them imports.
fn imports(room: &Path) -> BTreeMap<PathBuf, Vec<PathBuf>> {
    let mut imports = BTreeMap::new();
    for (path, text) in files(room) {
        let here = path.parent().expect("a file lies in a folder").to_owned();
        // `super` of a folder's mod.rs is the folder above; a package's lib.rs has none.
        let above = if path.ends_with("mod.rs") {
            here.parent().expect("a room lies in src").to_owned()
        } else {
            here
        };
        let own = paths(&text, "crate");
        let own = own.iter().map(|parts| file_of(room.to_owned(), parts));
        let beside = paths(&text, "super");
        let beside = beside.iter().map(|parts| file_of(above.clone(), parts));
        let all = own.chain(beside).filter(|other| *other != path);
        imports.insert(path.clone(), all.collect());
    }
    imports
}

/// A circle of imports, if there is one: files that are taken away once all that they import have been.
fn circle(mut imports: BTreeMap<PathBuf, Vec<PathBuf>>) -> Vec<PathBuf> {
    loop {
        let free = |others: &Vec<PathBuf>| others.iter().all(|other| !imports.contains_key(other));
        let done = imports.iter().find(|(_, others)| free(others));
        let Some(done) = done.map(|(path, _)| path.clone()) else {
            return imports.into_keys().collect();
        };
        imports.remove(&done);
    }
}

#[test]
fn no_files_of_data_or_of_the_embedded_world_import_each_other_in_a_circle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for room in [DATA, EMOJI] {
        let imports = imports(&root.join(room));
        let count: usize = imports.values().map(Vec::len).sum();
        assert!(count > imports.len(), "{room}: {count} imports were seen");
        let circle = circle(imports);
        assert!(circle.is_empty(), "{room}: {circle:#?}");
    }
}

#[test]
fn a_circle_is_found_where_there_is_one() {
    let file = |name: &str| PathBuf::from(name);
    let of = |pairs: &[(&str, &[&str])]| {
        let entries = pairs.iter();
        entries
            .map(|(path, others)| (file(path), others.iter().map(|o| file(o)).collect()))
            .collect()
    };
    assert!(circle(of(&[("a", &["b"]), ("b", &["c"]), ("c", &[])])).is_empty());
    let found = circle(of(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])]));
    assert_eq!(found.len(), 3, "the circle and what imports from it");
    let text = "use super::chat::{Turn, MARK};\nlet x = crate::data::images::image::Image;";
    assert_eq!(paths(text, "super"), [["chat", ""]]);
    assert_eq!(paths(text, "crate::data")[0], ["images", "image", "Image"]);
}
