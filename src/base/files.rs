//! Opening files in folders that somebody else may have prepared: a run, an export or a report that came by mail.
//!
//! [`File::create`] follows links, so a folder with the right link in it turns "write the log" into "overwrite that file
//! over there"; and opening a pipe waits for its other end. What Keel writes and what it reads on a stranger's word goes
//! through here.

use std::fs::File;
use std::io;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// What becomes of the content that a file has already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writing {
    /// It goes.
    Replace,
    /// It stays, and what is written comes after it. The file can be read too.
    Append,
}

/// Opens a file of Keel's own to write to, and makes it where there is none. A link, a pipe, a device and a file that has
/// another name elsewhere are refused and left as they are.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] with a sentence for what is no file of its own; whatever else the system reports.
pub fn open_own(path: &Path, writing: Writing) -> io::Result<File> {
    // Not truncated on opening: what it is has to be known first. Asking before opening would leave time to swap it.
    let file = File::options()
        .read(true)
        .write(true)
        .append(writing == Writing::Append)
        .create(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
        .open(path)
        .map_err(|problem| {
            if problem.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
                not_own("a link")
            } else {
                problem
            }
        })?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(not_own("no regular file"));
    }
    if found.nlink() > 1 {
        return Err(not_own("a file that has another name elsewhere"));
    }
    if writing == Writing::Replace {
        file.set_len(0)?;
    }
    Ok(file)
}

/// Reads a file that Keel may have written, and makes it where there is none: what [`open_own`] refuses is not read either.
///
/// # Errors
/// As [`open_own`].
pub fn read_own(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_own(path, Writing::Append)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Refuses a folder that is a link: what is written in it would land elsewhere. One that is not there is no link.
///
/// # Errors
/// As [`open_own`].
pub fn refuse_linked_folder(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(found) if found.is_symlink() => Err(not_own("a link")),
        _ => Ok(()),
    }
}

/// Opens a file to read. What is no regular file is refused before it is opened: opening a pipe would wait for a writer.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for a pipe, a device or a folder; whatever else the system reports.
pub fn open_regular(path: &Path) -> io::Result<File> {
    if !path.metadata()?.is_file() {
        let problem = "it is not a regular file";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    }
    File::open(path)
}

/// What is refused to be written to.
fn not_own(found: &str) -> io::Error {
    let problem = format!("it is {found}, and Keel writes to files of its own only; remove it");
    io::Error::new(io::ErrorKind::InvalidInput, problem)
}
