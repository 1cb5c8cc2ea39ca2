//! Build products named by what they were made from, so that nothing is compiled twice: not by another profile, not with
//! another feature, not after switching branches back and forth.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

/// A folder of build products.
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// The cache that all build scripts under one target folder share.
    pub fn beside(out: &Path) -> Cache {
        // OUT_DIR is <target>/<profile>/build/<package>/out.
        let folder = out.ancestors().nth(4).unwrap_or(out).join("keel-cuda");
        std::fs::create_dir_all(&folder)
            .unwrap_or_else(|error| panic!("cannot create {}: {error}", folder.display()));
        Cache { folder }
    }

    /// The file for `key`; it may not exist yet.
    pub fn path(&self, key: &str, extension: &str) -> PathBuf {
        self.folder.join(format!("{key}.{extension}"))
    }

    /// Puts a finished file in its place at once, so that a concurrent build sees all of it or nothing.
    pub fn store(&self, from: &Path, to: &Path) {
        let partial = to.with_extension(format!("{}.part", std::process::id()));
        // Renamed into place: another build may read the cache at any moment, and must never see half a file.
        std::fs::copy(from, &partial)
            .and_then(|_| std::fs::rename(&partial, to))
            .unwrap_or_else(|error| panic!("cannot store {}: {error}", to.display()));
    }

    /// As [`Cache::store`], from memory.
    pub fn store_text(&self, text: &str, to: &Path) {
        let partial = to.with_extension(format!("{}.part", std::process::id()));
        std::fs::write(&partial, text)
            .and_then(|()| std::fs::rename(&partial, to))
            .unwrap_or_else(|error| panic!("cannot store {}: {error}", to.display()));
    }
}

/// A name for what `source`, everything it includes from this repository, and `settings` decide.
pub fn key(source: &Path, settings: &[String]) -> String {
    let mut texts = BTreeMap::new();
    collect(source, &mut texts);
    let contents: Vec<&String> = texts.values().collect();
    format!(
        "{:016x}{:016x}",
        digest(0, &contents, settings),
        digest(1, &contents, settings)
    )
}

/// A name for what `settings` alone decide.
pub fn key_of_settings(settings: &[String]) -> String {
    format!(
        "{:016x}{:016x}",
        digest(0, &[], settings),
        digest(1, &[], settings)
    )
}

fn digest(salt: u64, contents: &[&String], settings: &[String]) -> u64 {
    #[allow(deprecated)]
    // the only hasher of the standard library that gives the same value every time
    let mut hasher = std::hash::SipHasher::new_with_keys(salt, 0);
    contents.hash(&mut hasher);
    settings.hash(&mut hasher);
    hasher.finish()
}

/// Reads a file and, through its `#include "..."` lines, the files it needs.
fn collect(path: &Path, texts: &mut BTreeMap<PathBuf, String>) {
    let path = path
        .canonicalize()
        .unwrap_or_else(|error| panic!("cannot find {}: {error}", path.display()));
    if texts.contains_key(&path) {
        return;
    }
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    let included: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("#include \"")?.strip_suffix('"'))
        .map(|name| path.parent().expect("a file lies in a folder").join(name))
        .collect();
    texts.insert(path, text);
    for file in included {
        collect(&file, texts);
    }
}
