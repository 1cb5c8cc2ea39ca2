//! Pairs in a folder of images: captions from `captions.txt`, from a text file beside each image, or, where there is
//! neither, from the name of the sub-folder.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::archive::InputFile;
use super::digest;
use super::files::is_passed_over;
use super::image_place::lies_below;
use super::limits::{IMAGE_ENDINGS, MAX_TEXT_BYTES, unread};
use super::record_text::bad;
use super::records;
use super::rows::next_row;
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

    /// Takes in every image's name and size, and its caption.
    pub fn add_to(&self, hasher: &mut blake3::Hasher) {
        let sizes = self.pairs.par_iter().map(|pair| {
            // One that is not there is counted when it is drawn.
            let found = fs::metadata(self.root.join(&pair.path));
            found.map_or(u64::MAX, |found| found.len())
        });
        let sizes: Vec<u64> = sizes.collect();
        for (pair, size) in self.pairs.iter().zip(sizes) {
            digest::add_text(hasher, pair.path.as_os_str().as_encoded_bytes());
            digest::add_text(hasher, pair.caption.as_bytes());
            hasher.update(&size.to_le_bytes());
        }
    }
}

/// Names of the lists that Hugging Face's image folders have in any of their folders, best first.
const METADATA: [&str; 3] = ["metadata.jsonl", "metadata.csv", "metadata.parquet"];

/// What lies below a folder.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Paths of images, sorted.
    images: Vec<PathBuf>,
    /// Paths of images of kinds that are not read, sorted.
    unread: Vec<PathBuf>,
    shards: usize,
    /// Lists of what images show, the first kind of each folder that has one, sorted.
    pub metadata: Vec<PathBuf>,
}

impl Listing {
    /// Walks over all folders below `root`; one that is reached twice, through a link, is walked once.
    pub fn of(root: &Path) -> Result<Listing> {
        let mut listing = Listing::default();
        listing.walk(root, root, &mut HashSet::new())?;
        listing.images.sort();
        listing.unread.sort();
        listing.metadata.sort();
        Ok(listing)
    }

    fn walk(&mut self, root: &Path, folder: &Path, visited: &mut HashSet<PathBuf>) -> Result<()> {
        let io = |error| Error::io(folder, "read the folder", error);
        if !visited.insert(folder.canonicalize().map_err(io)?) {
            return Ok(());
        }
        let mut lists: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if is_passed_over(path.strip_prefix(root).unwrap_or(&path)) {
                continue;
            }
            let ending = path.extension().map(OsStr::to_ascii_lowercase);
            let ending = ending.as_deref().and_then(OsStr::to_str);
            let ending = ending.unwrap_or_default();
            if path.is_dir() {
                self.walk(root, &path, visited)?;
            } else if IMAGE_ENDINGS.contains(&ending) {
                self.images.push(path);
            } else if unread("", ending).is_some() {
                self.unread.push(path);
            } else if ending == "tar" {
                self.shards += 1;
            } else if rank(&path) < METADATA.len() {
                lists.push(path);
            }
        }
        self.metadata
            .extend(lists.into_iter().min_by_key(|path| rank(path)));
        Ok(())
    }

    /// Whether the folder is described by lists: by one of its own before `captions.txt`, by those of folders in it after.
    pub fn is_described(&self, root: &Path) -> bool {
        let mut own = self.metadata.iter();
        let has_own = own.any(|path| path.parent() == Some(root));
        has_own || !self.metadata.is_empty() && !root.join(CAPTIONS).exists()
    }

    /// A sentence about images that no list describes, in their folder or one around it; nothing where there are none.
    pub fn undescribed(&self) -> Option<String> {
        let described: HashSet<&Path> = self.metadata.iter().filter_map(|m| m.parent()).collect();
        let is_described = |path: &Path| path.ancestors().any(|folder| described.contains(folder));
        let mut images = self.images.iter().filter(|path| !is_described(path));
        let first = images.next()?;
        Some(format!(
            "{} images are left out, since no metadata file is in their folder or one around it ({}, for example)",
            1 + images.count(),
            first.display()
        ))
    }
}

/// The place of a file's name among those of lists.
fn rank(path: &Path) -> usize {
    let is_called = |name: &str| path.file_name() == Some(OsStr::new(name));
    METADATA
        .into_iter()
        .position(is_called)
        .unwrap_or(METADATA.len())
}

/// The list that a folder of one's own making has.
const CAPTIONS: &str = "captions.txt";

pub(crate) fn open(root: &Path, listing: &Listing, skips: &SkipLog) -> Result<Folder> {
    let name = root.display().to_string();
    let list = root.join(CAPTIONS);
    let outcomes = if list.exists() {
        listed(&list)?
    } else {
        let (images, shards) = (&listing.images, listing.shards);
        if images.is_empty() && shards > 0 {
            return Err(Error::content(
                name,
                format!("the folder holds {shards} .tar files and no images"),
                "name the shards themselves, as in shards-{000..009}.tar",
            ));
        }
        let read = images.par_iter().map(|path| captioned(root, path));
        let unread = listing.unread.par_iter().filter_map(|path| not_read(path));
        read.chain(unread).collect()
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

/// An image of a kind that is not read.
fn not_read(path: &Path) -> Option<Outcome> {
    let ending = path.extension()?.to_ascii_lowercase();
    let error = unread(&path.display().to_string(), ending.to_str()?)?;
    Some(Err((Reason::BadImage, error)))
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
    let fields = match line.split_once('\t') {
        Some((path, caption)) => [path.to_owned(), caption.to_owned()],
        None => fields_of(&name, line)?,
    };
    let [path, caption] = fields.each_ref().map(|field| field.trim());
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

/// Path and caption with a comma between them. Where one of them begins with a quote the line is CSV (Flickr8k's is); else all
/// that follows the first comma is the caption, with its own commas.
fn fields_of(name: &str, line: &str) -> Result<[String; 2], (Reason, Error)> {
    let Some((path, caption)) = line.split_once(',') else {
        let problem = "it has no tab and no comma between image and caption";
        return Err(bad(name, problem, "add one"));
    };
    if !path.starts_with('"') && !caption.starts_with('"') {
        return Ok([path.to_owned(), caption.to_owned()]);
    }
    let row = next_row(&mut line.as_bytes(), b',').unwrap_or_default();
    let fields = row.filter(|row| row.defect.is_none()).map(|row| row.fields);
    let fields = fields.and_then(|fields| <[Vec<u8>; 2]>::try_from(fields).ok());
    let Some(fields) = fields else {
        let problem = "its quotes are not those of CSV";
        let remedy = "write the caption in quotes and quotes in it twice, on one line";
        return Err(bad(name, problem, remedy));
    };
    // What was valid as text before it was cut at commas and quotes is so after.
    Ok(fields.map(|field| String::from_utf8_lossy(&field).into_owned()))
}
