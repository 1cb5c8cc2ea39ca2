//! The folder that an export is written to before it gets its name: complete under the name that was asked for, or not there.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::checkpoint::{LocalDisk, create_folders, parent_of};
use keel_base::error::{Error, Result};
use keel_base::files::{Writing, open_own};

/// The file that says of a folder that an export makes it. It goes when the folder is complete.
const MARK: &str = ".keel-export";

/// A folder under a temporary name, held by this process.
pub(super) struct ExportFolder {
    out: PathBuf,
    path: PathBuf,
    _mark: File,
}

impl ExportFolder {
    /// Makes the folder for what is to be called `out`. One that an earlier export left which was killed is emptied and taken;
    /// whatever else has that name is somebody's and stays.
    ///
    /// # Errors
    /// [`Error::Setting`] where the name is taken, or another export is at work there; [`Error::Io`] naming the folder.
    pub fn begin(out: &Path) -> Result<ExportFolder> {
        let mut path = out.components().collect::<PathBuf>().into_os_string();
        // Beside the folder, also where its name was given with a slash at the end.
        path.push(".part");
        let path = PathBuf::from(path);
        let refuse = |found: &str| {
            let want = format!(
                "a name that leaves {} free, where the export is written first (move that away, or choose another --out)",
                path.display()
            );
            Error::setting(format!("--out {}", out.display()), want, found)
        };
        create_folders(&LocalDisk, parent_of(&path))?;
        match fs::create_dir(&path) {
            Ok(()) => {}
            Err(problem) if problem.kind() == ErrorKind::AlreadyExists => {
                let is_folder = path.symlink_metadata().is_ok_and(|found| found.is_dir());
                let mark = path.join(MARK).symlink_metadata();
                if !is_folder || !mark.is_ok_and(|found| found.is_file()) {
                    return Err(refuse("something there that Keel did not make"));
                }
            }
            Err(problem) => return Err(Error::io(&path, "create the folder", problem)),
        }
        let mark = path.join(MARK);
        let mark = open_own(&mark, Writing::Append).map_err(|e| Error::io(&mark, "create", e))?;
        if flock(&mark, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(refuse("another export at work"));
        }
        empty(&path)?;
        Ok(ExportFolder {
            out: out.to_owned(),
            path,
            _mark: mark,
        })
    }

    /// Where files are written meanwhile.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the folder its name.
    ///
    /// # Errors
    /// [`Error::Io`] naming the folder, which is then gone.
    pub fn finish(self) -> Result<()> {
        let named = fs::rename(&self.path, &self.out);
        if let Err(problem) = named {
            self.abandon();
            return Err(Error::io(&self.out, "create the folder", problem));
        }
        let mark = self.out.join(MARK);
        fs::remove_file(&mark).map_err(|e| Error::io(&mark, "remove the file", e))?;
        sync(&self.out)?;
        sync(parent_of(&self.out))
    }

    /// Removes the folder after a failure.
    pub fn abandon(&self) {
        // The export has failed already; that the rest cannot be removed either changes nothing.
        let _ = empty(&self.path);
        let _ = fs::remove_file(self.path.join(MARK));
        let _ = fs::remove_dir(&self.path);
    }
}

/// Removes the files of an unfinished export but its mark. An export makes no folders and no links: what holds one holds
/// something of somebody else's, and is left as it is.
fn empty(folder: &Path) -> Result<()> {
    let io = |problem| Error::io(folder, "read the folder", problem);
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        if !entry.file_type().map_err(io)?.is_file() {
            return Err(Error::content(
                folder.display(),
                format!(
                    "{} in it is not of an export",
                    entry.file_name().to_string_lossy()
                ),
                "move it away, or choose another --out",
            ));
        }
        files.push(entry.path());
    }
    for path in files.iter().filter(|path| !path.ends_with(MARK)) {
        fs::remove_file(path).map_err(|e| Error::io(path, "remove the file", e))?;
    }
    Ok(())
}

/// Flushes a file or a folder to the disk.
///
/// # Errors
/// [`Error::Io`] naming it.
pub(super) fn sync(path: &Path) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    file.sync_all().map_err(|e| Error::io(path, "flush", e))
}
