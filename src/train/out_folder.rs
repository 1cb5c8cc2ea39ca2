//! Holds `--out` to folders that nobody else has: what a run, an ablation or an export writes must not end up among a
//! stranger's files, where a later one could not tell them apart.

use std::path::Path;

use keel_base::error::{Error, Result};

/// Refuses a folder with entries that are not `own`. A folder that is not there yet, or is empty, is good.
///
/// # Errors
/// [`Error::Setting`] naming one of the entries; [`Error::Io`] when the folder cannot be read.
pub(super) fn refuse_foreign(out: &Path, own: impl Fn(&str) -> bool) -> Result<()> {
    if !out.exists() {
        return Ok(());
    }
    let refuse = |found: String| {
        let want = "a new or empty folder";
        Err(Error::setting(
            format!("--out {}", out.display()),
            want,
            found,
        ))
    };
    if !out.is_dir() {
        return refuse("a file".to_owned());
    }
    let entries =
        std::fs::read_dir(out).map_err(|problem| Error::io(out, "read the folder", problem))?;
    let names = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    // The same one whatever order the system lists them in.
    let foreign = names.filter(|name| !own(name)).min();
    match foreign {
        Some(name) => refuse(format!("a folder with other files in it ({name})")),
        // It is nobody's to fill, also where nothing lies in it.
        None if out.canonicalize().is_ok_and(|out| out.parent().is_none()) => {
            refuse("the root of the file system".to_owned())
        }
        None => Ok(()),
    }
}
