//! Checksums of shards: a file B3SUMS beside them, as `b3sum` writes and checks it.
//!
//! Decoders let most flipped bits of an image pass, and an archive cut short between two entries looks whole: only a
//! checksum of the shard tells. Where the file is there, every shard that it lists is held to it when the data are opened.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::files::open_file;
use keel_base::error::{Error, Result};
use keel_stores::{is_address, shown};

/// Shards without a checksum that are named.
const EXAMPLES: usize = 3;

/// The file's name.
const NAME: &str = "B3SUMS";

/// The checksums of the files in one folder.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sums {
    path: PathBuf,
    /// By file name.
    sums: BTreeMap<String, blake3::Hash>,
}

/// The folder of a file and its name there.
fn split(file: &Path) -> Option<(&Path, &str)> {
    let folder = file.parent()?;
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    Some((folder, file.file_name()?.to_str()?))
}

impl Sums {
    /// The checksums that lie in `folder`; nothing where there are none.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read, [`Error::Content`] naming the line that is no checksum.
    fn of_folder(folder: &Path) -> Result<Option<Sums>> {
        let path = folder.join(NAME);
        let mut text = String::new();
        if !path.exists() {
            return Ok(None);
        }
        let (mut file, _) = open_file(&path)?;
        file.read_to_string(&mut text)
            .map_err(|problem| Error::io(&path, "read", problem))?;
        let mut sums = BTreeMap::new();
        for (number, line) in text.lines().enumerate() {
            let parts = line.split_once("  ");
            let parts =
                parts.and_then(|(sum, name)| Some((blake3::Hash::from_hex(sum).ok()?, name)));
            let Some((sum, name)) = parts else {
                return Err(Error::content(
                    format!("{}, line {}", path.display(), number + 1),
                    "it is no checksum and name as b3sum writes them",
                    "remove the file, and write it anew with keel data sums",
                ));
            };
            sums.insert(name.trim_start_matches("./").to_owned(), sum);
        }
        Ok(Some(Sums { path, sums }))
    }

    /// Holds a file of the folder to its checksum; one that is not listed is not held to anything.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read, [`Error::Content`] when its content is another.
    fn check(&self, file: &Path) -> Result<()> {
        let listed = split(file).and_then(|(_, name)| self.sums.get(name));
        match listed {
            Some(sum) if sum_of(file)? != *sum => Err(Error::content(
                file.display(),
                format!("its content is not what {} says", self.path.display()),
                "fetch or pack it again",
            )),
            _ => Ok(()),
        }
    }
}

/// The BLAKE3 checksum of a file.
///
/// # Errors
/// [`Error::Io`] when it cannot be read.
fn sum_of(file: &Path) -> Result<blake3::Hash> {
    let (content, _) = open_file(file)?;
    let mut hasher = blake3::Hasher::new();
    hasher
        .update_reader(content)
        .map_err(|problem| Error::io(file, "read", problem))?;
    Ok(hasher.finalize())
}

/// The files of sums that shards' `paths` would be listed in, with what they hold then: what they list already, and the
/// checksums of these shards as they are now.
///
/// # Errors
/// As reading the files and the list beside them.
pub fn summed(paths: &[String]) -> Result<Vec<(PathBuf, String)>> {
    let mut folders: BTreeMap<PathBuf, Sums> = BTreeMap::new();
    for path in paths {
        if is_address(path) {
            let want = "shards on this machine: stores keep checksums of their own";
            return Err(Error::setting("keel data sums", want, shown(path)));
        }
        let path = Path::new(path);
        let Some((folder, name)) = split(path) else {
            let want = "a shard";
            return Err(Error::setting("the data", want, path.display()));
        };
        if !folders.contains_key(folder) {
            let path = folder.join(NAME);
            let known = Sums::of_folder(folder)?.map(|known| known.sums);
            let sums = known.unwrap_or_default();
            folders.insert(folder.to_owned(), Sums { path, sums });
        }
        let sums = folders.get_mut(folder).expect("it was just made");
        sums.sums.insert(name.to_owned(), sum_of(path)?);
    }
    let text = |sums: &Sums| -> String {
        let lines = sums.sums.iter();
        lines
            .map(|(name, sum)| format!("{sum}  {name}\n"))
            .collect()
    };
    let files = folders.into_values();
    Ok(files.map(|sums| (sums.path.clone(), text(&sums))).collect())
}

/// Holds shards to the checksums beside them.
pub(super) struct Checks {
    folders: BTreeMap<PathBuf, Option<Sums>>,
}

impl Checks {
    /// Reads the checksums beside the shards of these paths.
    ///
    /// # Errors
    /// As [`Sums::of_folder`].
    pub fn beside(paths: &[String]) -> Result<Checks> {
        let mut folders = BTreeMap::new();
        for path in paths {
            if let Some((folder, _)) = split(Path::new(path))
                && !folders.contains_key(folder)
            {
                folders.insert(folder.to_owned(), Sums::of_folder(folder)?);
            }
        }
        Ok(Checks { folders })
    }

    /// As [`Sums::check`] by the checksums beside the file.
    ///
    /// # Errors
    /// As [`Sums::check`].
    pub fn check(&self, path: &str) -> Result<()> {
        let path = Path::new(path);
        let sums = split(path).and_then(|(folder, _)| self.folders.get(folder)?.as_ref());
        sums.map_or(Ok(()), |sums| sums.check(path))
    }

    /// What the lists beside these shards leave out, a sentence for each that does: a list whose names match nothing holds no
    /// shard to anything, and must not pass for one that does.
    pub fn remarks(&self, paths: &[String]) -> Vec<String> {
        let of_folder = |(folder, sums): (&PathBuf, &Option<Sums>)| {
            let sums = sums.as_ref()?;
            let names = paths.iter().filter_map(|path| split(Path::new(path)));
            let names = names.filter(|(other, _)| *other == folder.as_path());
            let names: Vec<&str> = names.map(|(_, name)| name).collect();
            let unlisted = names.iter().filter(|name| !sums.sums.contains_key(**name));
            let unlisted: Vec<&str> = unlisted.copied().collect();
            if unlisted.is_empty() {
                return None;
            }
            let more = if unlisted.len() > EXAMPLES {
                ", …"
            } else {
                ""
            };
            Some(format!(
                "{}: {} of {} shards listed; without a checksum: {}{more}",
                sums.path.display(),
                names.len() - unlisted.len(),
                names.len(),
                unlisted[..unlisted.len().min(EXAMPLES)].join(", ")
            ))
        };
        self.folders.iter().filter_map(of_folder).collect()
    }
}
