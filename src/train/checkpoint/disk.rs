//! What a run asks of the disk, one operation at a time: a test can break a run off after any of them, and put together
//! every folder that a power cut may leave.
//!
//! The rules that the operations are used by are POSIX's and no more: a file's content is on the disk once the file has
//! been flushed, its name once its folder has been; until then either may or may not be, in any order.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use keel_base::error::{Error, Result};
use keel_base::files::{Writing, open_own, refuse_linked_folder};

/// Operations that change folders and files.
pub trait Disk: Debug + Send + Sync {
    /// Creates one folder in a folder that is there.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] where there is one of that name; whatever else the disk reports.
    fn create_folder(&self, path: &Path) -> io::Result<()>;

    /// Creates a file, or empties the one of that name; never what a link of that name points to.
    ///
    /// # Errors
    /// Whatever the disk reports.
    fn create(&self, path: &Path) -> io::Result<Box<dyn OpenFile>>;

    /// Opens a file to write after its content, and makes it where there is none; never what a link of that name points to.
    ///
    /// # Errors
    /// Whatever the disk reports.
    fn append(&self, path: &Path) -> io::Result<Box<dyn OpenFile>>;

    /// Cuts a file back to its first `length` bytes; never what a link of that name points to.
    ///
    /// # Errors
    /// Whatever the disk reports.
    fn shorten(&self, path: &Path, length: u64) -> io::Result<()>;

    /// Gives a file another name in the same folder; one that had that name is gone.
    ///
    /// # Errors
    /// Whatever the disk reports.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// Whatever the disk reports.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Waits until the names in a folder are on the disk.
    ///
    /// # Errors
    /// Whatever the disk reports.
    fn flush_folder(&self, path: &Path) -> io::Result<()>;
}

/// A file that is being written.
pub trait OpenFile: Debug + Send {
    /// Writes some of `bytes`, from the first on, after what is there; returns how many. Often all, but a disk may take fewer.
    ///
    /// # Errors
    /// [`io::ErrorKind::Interrupted`] where a signal came first and nothing was written; whatever else the disk reports.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Waits until the content is on the disk.
    ///
    /// # Errors
    /// Whatever the disk reports.
    fn flush(&mut self) -> io::Result<()>;
}

/// The file systems of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalDisk;

impl Disk for LocalDisk {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        Ok(Box::new(open_own(path, Writing::Replace)?))
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        Ok(Box::new(open_own(path, Writing::Append)?))
    }

    fn shorten(&self, path: &Path, length: u64) -> io::Result<()> {
        open_own(path, Writing::Append)?.set_len(length)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn flush_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

impl OpenFile for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Write::write(self, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

/// The folder that holds `path`.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Creates a folder and those above it that lack, and has their names on the disk. One that is there already is fine.
///
/// # Errors
/// [`Error::Io`] naming the folder.
pub(crate) fn create_folders(disk: &dyn Disk, path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = parent_of(path);
    create_folders(disk, parent)?;
    match uninterrupted(|| disk.create_folder(path)) {
        // Another process was first.
        Err(problem) if problem.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        outcome => outcome.and_then(|()| uninterrupted(|| disk.flush_folder(parent))),
    }
    .map_err(|problem| Error::io(path, "create the folder", problem))
}

/// Creates the folder `inside` of `root`, which is there. No part of it below `root` may be a link: `root` is where the user
/// asked to write, and what lies in it may be a stranger's.
///
/// # Errors
/// [`Error::Io`] naming the folder.
pub(crate) fn create_inside(disk: &dyn Disk, root: &Path, inside: &str) -> Result<PathBuf> {
    let mut path = root.to_owned();
    for part in Path::new(inside) {
        path.push(part);
        refuse_linked_folder(&path)
            .map_err(|problem| Error::io(&path, "write in the folder", problem))?;
        create_folders(disk, &path)?;
    }
    Ok(path)
}

/// Bytes that are collected before they are written: a file of up to so many is one operation.
const BUFFERED: usize = 8 << 20;

/// Does `work` again for as long as a signal interrupts it: on file systems of a network it may, whatever it is, and that is
/// no failure.
pub(crate) fn uninterrupted<T>(mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match work() {
            Err(problem) if problem.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Writes all of `bytes` to a file, in as many writes as the disk makes of it.
///
/// # Errors
/// Whatever the disk reports; a part may have been written.
pub(crate) fn write_all(file: &mut dyn OpenFile, bytes: &[u8]) -> io::Result<()> {
    Through(file).write_all(bytes)
}

/// Lets [`std::io`] write to an open file: it writes what is left of a short write, and again where a signal interrupted.
struct Through<'a>(&'a mut dyn OpenFile);

impl Write for Through<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// As [`write_durably_with`], of bytes that are there.
///
/// # Errors
/// As [`write_durably_with`].
pub(crate) fn write_durably_on(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<()> {
    write_durably_with(disk, path, &mut |file| file.write_all(bytes))
}

/// Has `content` write a file under a temporary name, flushes it to the disk and renames: what carries the name is whole, and
/// once this has returned, it stays.
///
/// # Errors
/// [`Error::Io`] naming the file; the temporary file is removed, and what had the name before is untouched.
pub(crate) fn write_durably_with(
    disk: &dyn Disk,
    path: &Path,
    content: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(UNFINISHED);
    let temporary = PathBuf::from(temporary);
    // What cannot be begun is not removed either: it may be a stranger's.
    let file = uninterrupted(|| disk.create(&temporary));
    let mut file = file.map_err(|problem| Error::io(&temporary, "create the file", problem))?;
    let write = || -> io::Result<()> {
        let mut buffered = BufWriter::with_capacity(BUFFERED, Through(file.as_mut()));
        content(&mut buffered)?;
        buffered.flush()?;
        drop(buffered);
        uninterrupted(|| file.flush())?;
        drop(file);
        uninterrupted(|| disk.rename(&temporary, path))?;
        uninterrupted(|| disk.flush_folder(parent_of(path)))
    };
    write().map_err(|problem| {
        // The write has failed already; that the rest cannot be removed either changes nothing.
        let _ = uninterrupted(|| disk.remove(&temporary));
        Error::io(path, "write", problem)
    })
}

/// What is added to the name of a file while it is written.
const UNFINISHED: &str = ".part";

/// As the files of a run are written, on this machine's disk.
///
/// # Errors
/// [`Error::Io`] naming the file; the temporary file is removed.
pub fn write_durably(path: &Path, bytes: &[u8]) -> Result<()> {
    write_durably_on(&LocalDisk, path, bytes)
}

/// The folder `inside` of `root`, made where there is none; no part of it below `root` may be a link.
///
/// # Errors
/// [`Error::Io`] naming the folder.
pub fn folder_inside(root: &Path, inside: &str) -> Result<PathBuf> {
    create_inside(&LocalDisk, root, inside)
}

/// Removes the files of a folder that a process left half written which was killed: those whose finished name `is_own`. Other
/// files stay, whatever their ending.
///
/// # Errors
/// [`Error::Io`] naming the folder or file.
pub(crate) fn remove_unfinished(
    disk: &dyn Disk,
    folder: &Path,
    is_own: impl Fn(&str) -> bool,
) -> Result<()> {
    let entries = std::fs::read_dir(folder)
        .map_err(|problem| Error::io(folder, "read the folder", problem))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str());
        let finished = name.and_then(|name| name.strip_suffix(UNFINISHED));
        if finished.is_some_and(&is_own) && !path.is_dir() {
            uninterrupted(|| disk.remove(&path))
                .map_err(|problem| Error::io(&path, "remove the file", problem))?;
        }
    }
    Ok(())
}

/// Bytes that the file system of `folder` has free.
///
/// # Errors
/// [`Error::Io`] naming the folder.
pub fn free_bytes(folder: &Path) -> Result<u64> {
    let disk = rustix::fs::statvfs(folder)
        .map_err(|problem| Error::io(folder, "ask for the free space", problem.into()))?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Refuses to begin a file of `bytes` bytes where the disk has no room for it. A file system that does not tell is tried.
///
/// # Errors
/// [`Error::Io`] naming the file, what it takes and what is free.
pub(crate) fn has_room(path: &Path, bytes: u64) -> Result<()> {
    match free_bytes(parent_of(path)) {
        Ok(free) if free < bytes => {
            let problem = format!(
                "No space left on device: it takes {bytes} bytes, and {free} are free; free some, or keep fewer with --keep"
            );
            let kind = io::ErrorKind::StorageFull;
            Err(Error::io(path, "write", io::Error::new(kind, problem)))
        }
        _ => Ok(()),
    }
}
