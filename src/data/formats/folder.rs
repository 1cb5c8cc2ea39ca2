//! Pairs in a folder of images: captions from `captions.txt`, from a text file beside each image, or, where there is
//! neither, from the name of the sub-folder.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::archive::InputFile;
use super::limits::{IMAGE_ENDINGS, MAX_TEXT_BYTES};
use super::lines::lies_below;
use super::records;
use super::skips::{Reason, SkipLog};
use keel_base::error::{Error, Result};

/// An opened folder.
#[derive(Debug)]
pub(crate) struct Folder {
    pub root: PathBuf,
    name: String,
    /// Sorted by path, or in the order of captions.txt.
    pub pairs: Vec<FolderPair>,
}

/// An image's path below the root, and its caption.
#[derive(Debug)]
pub(crate) struct FolderPair {
    pub path: PathBuf,
    pub caption: String,
}

impl Folder {
    pub fn name(&self) -> &str {
        &self.name
    }
}

pub(crate) fn open(root: &Path, skips: &SkipLog) -> Result<Folder> {
    let name = root.display().to_string();
    let list = root.join("captions.txt");
    let outcomes = if list.exists() {
        listed(&list)?
    } else {
        let mut images = Vec::new();
        let mut shards = 0;
        walk(root, &mut HashSet::new(), &mut images, &mut shards)?;
        if images.is_empty() && shards > 0 {
            return Err(Error::content(
                name,
                format!("the folder holds {shards} .tar files and no images"),
                "name the shards themselves, as in shards-{000..009}.tar",
            ));
        }
        images.sort();
        images
            .par_iter()
            .map(|path| captioned(root, path))
            .collect()
    };
    let mut pairs = Vec::new();
    for outcome in outcomes {
        match outcome {
            Ok(pair) => {
                skips.count_good();
                pairs.push(pair);
            }
            Err((reason, error)) => skips.count_bad(&name, reason, error),
        }
    }
    Ok(Folder {
        root: root.to_owned(),
        name,
        pairs,
    })
}

type Outcome = Result<FolderPair, (Reason, Error)>;

/// Collects images below `folder`; a folder reached twice, through a link, is walked once.
fn walk(
    folder: &Path,
    visited: &mut HashSet<PathBuf>,
    images: &mut Vec<PathBuf>,
    shards: &mut usize,
) -> Result<()> {
    let io = |error| Error::io(folder, "read the folder", error);
    if !visited.insert(folder.canonicalize().map_err(io)?) {
        return Ok(());
    }
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let ending = path.extension().map(|ending| ending.to_ascii_lowercase());
        let ending = ending
            .as_deref()
            .and_then(|ending| ending.to_str())
            .unwrap_or_default();
        if path.is_dir() {
            walk(&path, visited, images, shards)?;
        } else if IMAGE_ENDINGS.contains(&ending) {
            images.push(path);
        } else if ending == "tar" {
            *shards += 1;
        }
    }
    Ok(())
}

/// An image with the text file beside it, or the name of its sub-folder.
fn captioned(root: &Path, path: &Path) -> Outcome {
    let name = path.display().to_string();
    let relative = path
        .strip_prefix(root)
        .expect("found below the root")
        .to_owned();
    let beside = path.with_extension("txt");
    let caption = if beside.exists() {
        let text = read_text(&beside).map_err(|error| (Reason::Unreadable, error))?;
        records::caption_of_text(&beside.display().to_string(), &text)?
    } else {
        let folder = relative
            .parent()
            .and_then(Path::file_name)
            .and_then(|folder| folder.to_str());
        let words = folder.map(|folder| folder.replace(['_', '-'], " ").trim().to_owned());
        words.filter(|words| !words.is_empty()).ok_or_else(|| {
            let problem = Error::content(
                name,
                "it has no caption",
                "write one to a .txt file of the same name, or put it in a folder named after what it shows",
            );
            (Reason::NoCaption, problem)
        })?
    };
    Ok(FolderPair {
        path: relative,
        caption,
    })
}

fn read_text(path: &Path) -> Result<Vec<u8>> {
    let source = InputFile::open(path)?;
    if source.len() > MAX_TEXT_BYTES {
        let problem = format!(
            "it has {} bytes, the limit is {MAX_TEXT_BYTES}",
            source.len()
        );
        return Err(Error::content(&source.name, problem, "shorten it"));
    }
    source.read(0, source.len())
}

/// The lines of captions.txt: path, a tab (or, where there is none, a comma), caption.
fn listed(list: &Path) -> Result<Vec<Outcome>> {
    let source = InputFile::open(list)?;
    let bytes = source.read(0, source.len())?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Error::content(&source.name, "it is not UTF-8", "save it as UTF-8"))?;
    let lines = text.trim_start_matches('\u{feff}').lines().enumerate();
    let filled = lines.filter(|(_, line)| !line.trim().is_empty());
    // The heading that such files often have.
    let pairs = filled.filter(|(number, line)| {
        let heading = line
            .split(['\t', ','])
            .map(|field| field.trim().to_lowercase());
        *number > 0 || !heading.eq(["image".to_owned(), "caption".to_owned()])
    });
    Ok(pairs
        .map(|(number, line)| listed_pair(&source.name, number + 1, line))
        .collect())
}

fn listed_pair(list: &str, number: usize, line: &str) -> Outcome {
    let name = format!("{list}, line {number}");
    let Some((path, caption)) = line.split_once('\t').or_else(|| line.split_once(',')) else {
        let problem = "it has no tab and no comma between image and caption";
        return Err((Reason::BadRecord, Error::content(name, problem, "add one")));
    };
    let path = path.trim();
    if !lies_below(path) {
        let problem = "its image is not a path below the folder";
        let error = Error::content(name, problem, "write a relative path");
        return Err((Reason::RefusedEntry, error));
    }
    Ok(FolderPair {
        path: PathBuf::from(path),
        caption: records::caption_of_text(&name, caption.as_bytes())?,
    })
}
