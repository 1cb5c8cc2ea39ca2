//! Objects of stores as files: addresses among paths, errors in our words, and the threads that wait for a network.

use std::ffi::OsStr;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use keel_base::error::{Error, Result};
use keel_stores::{Failure, Object, Windows, is_address, shown};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// Threads that read what is remote: most of the time each waits for an answer.
const READERS: usize = 32;

/// The address that a path is, if it is one.
pub(crate) fn address_of(path: &Path) -> Option<&str> {
    path.to_str().filter(|text| is_address(text))
}

/// The name of a file or an object as messages and digests say it.
pub(crate) fn name_of(path: &Path) -> String {
    match address_of(path) {
        Some(address) => shown(address).to_owned(),
        None => path.display().to_string(),
    }
}

/// The ending of a file's or an object's name, in lower case.
pub(crate) fn ending_of(data: &str) -> Option<String> {
    let ending = Path::new(without_query(data)).extension();
    let ending = ending.and_then(OsStr::to_str);
    ending.map(str::to_ascii_lowercase)
}

/// What the paths in a list, a table or a file of rows are relative to.
pub(crate) fn folder_of(path: &Path) -> PathBuf {
    let path = address_of(path).map_or(path, |address| Path::new(without_query(address)));
    path.parent().map(Path::to_owned).unwrap_or_default()
}

fn without_query(data: &str) -> &str {
    if is_address(data) { shown(data) } else { data }
}

/// Opens an object.
///
/// # Errors
/// [`Error::Io`] where the store says that it is not there or may not be seen, or the address is none;
/// [`Error::Stopped`] where no answer can be had.
pub(crate) fn open(address: &str) -> Result<Arc<Object>> {
    let object = Object::open(address).map_err(|failure| match failure.kind {
        ErrorKind::NotFound
        | ErrorKind::PermissionDenied
        | ErrorKind::InvalidInput
        | ErrorKind::Unsupported => Error::io(shown(address), "open", failure.into()),
        _ => stopped(shown(address), failure),
    })?;
    Ok(Arc::new(object))
}

/// An object that was opened and cannot be read. It is never passed over as a bad sample is: which samples a run trains on
/// must not depend on a network.
pub(crate) fn stopped(name: &str, failure: Failure) -> Error {
    Error::stopped(name, failure.problem, failure.remedy)
}

/// What is wrong with an image that a list or a table names: one that a store does not have is a missing file, and anything else
/// that a store says stops whatever reads it, as [`stopped`] does.
pub(crate) fn but_missing(error: Error) -> Error {
    match error {
        Error::Io { path, source, .. }
            if source.kind() != ErrorKind::NotFound && address_of(&path).is_some() =>
        {
            let failure = source
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<Failure>());
            match failure {
                Some(failure) => stopped(&name_of(&path), failure.clone()),
                None => Error::io(path, "open", source),
            }
        }
        other => other,
    }
}

/// An object from its beginning to its end.
///
/// # Errors
/// As [`open`].
pub(crate) fn reader(address: &str) -> Result<impl Read + Send + use<>> {
    Ok(Windows::reader(open(address)?))
}

/// Does something with as many threads as there are cores, or as wait well where it reads what is remote.
pub(crate) fn with_readers<T: Send>(is_remote: bool, work: impl FnOnce() -> T + Send) -> Result<T> {
    static POOL: OnceLock<ThreadPool> = OnceLock::new();
    if !is_remote {
        return Ok(work());
    }
    if let Some(pool) = POOL.get() {
        return Ok(pool.install(work));
    }
    let threads = ThreadPoolBuilder::new().num_threads(READERS);
    let made = threads.thread_name(|number| format!("reader {number}"));
    let made = made.build().map_err(|problem| {
        let remedy = "allow the process more threads";
        Error::stopped("the threads that read object stores", problem, remedy)
    })?;
    Ok(POOL.get_or_init(|| made).install(work))
}
