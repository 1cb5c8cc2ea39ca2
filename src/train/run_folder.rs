//! The folder of a run: who may write it, and where things lie in it.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Result};

/// An exclusively held run folder. The lock goes when the value is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    _lock: File,
    metrics: File,
    log: File,
}

impl RunFolder {
    /// Creates a new run in `path`, or in the next free `runs/<name>-<n>`.
    ///
    /// # Errors
    /// [`Error::Setting`] when the folder already holds a run or another process writes to it.
    pub fn create(path: Option<&Path>, name: &str) -> Result<RunFolder> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => next_free(name)?,
        };
        if path.join("recipe.toml").exists() {
            return Err(Error::setting(
                format!("--out {}", path.display()),
                "a folder without a run; continue that run with --resume, or choose another folder",
                "a run",
            ));
        }
        RunFolder::open(path)
    }

    /// Opens the folder of an existing run to continue it.
    ///
    /// # Errors
    /// [`Error::Setting`] when there is no run or another process writes to it.
    pub fn resume(path: &Path) -> Result<RunFolder> {
        if !path.join("recipe.toml").exists() {
            return Err(Error::setting(
                format!("--resume {}", path.display()),
                "the folder of a run (with a recipe.toml)",
                "none there",
            ));
        }
        RunFolder::open(path.to_owned())
    }

    fn open(path: PathBuf) -> Result<RunFolder> {
        let checkpoints = path.join("checkpoints");
        std::fs::create_dir_all(&checkpoints)
            .map_err(|problem| Error::io(&checkpoints, "create the folder", problem))?;
        let lock_path = path.join("lock");
        let lock = File::create(&lock_path)
            .map_err(|problem| Error::io(&lock_path, "create the file", problem))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            Error::setting(
                format!("run folder {}", path.display()),
                "a folder that no other process trains in; wait for it or choose another --out",
                "one that is in use",
            )
        })?;
        let append = |name: &str| {
            let path = path.join(name);
            File::options()
                .create(true)
                .append(true)
                .open(&path)
                .map_err(|problem| Error::io(&path, "open", problem))
        };
        Ok(RunFolder {
            metrics: append("metrics.jsonl")?,
            log: append("log.txt")?,
            _lock: lock,
            path,
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The checkpoint's file for `label`, for example `2-stage-ii`.
    pub fn checkpoint(&self, label: &str) -> PathBuf {
        self.path
            .join("checkpoints")
            .join(format!("{label}.safetensors"))
    }

    /// Appends one line to metrics.jsonl.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn metric(&mut self, row: &serde_json::Value) -> Result<()> {
        writeln!(self.metrics, "{row}")
            .map_err(|problem| Error::io(self.path.join("metrics.jsonl"), "write", problem))
    }

    /// Appends one line to log.txt.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn log(&mut self, line: &str) -> Result<()> {
        writeln!(self.log, "{line}")
            .map_err(|problem| Error::io(self.path.join("log.txt"), "write", problem))
    }

    /// Writes a file of the run durably.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        super::checkpoint::write_durably(&self.path.join(name), bytes)
    }
}

fn next_free(name: &str) -> Result<PathBuf> {
    for number in 1..10_000 {
        let path = PathBuf::from("runs").join(format!("{name}-{number}"));
        if !path.exists() {
            return Ok(path);
        }
    }
    Err(Error::setting(
        "runs",
        "room for another run folder",
        "10,000 runs of that name",
    ))
}

/// The newest checkpoint of a run folder.
///
/// # Errors
/// [`Error::Setting`] when there is none.
pub fn newest_checkpoint(run: &Path) -> Result<PathBuf> {
    let folder = run.join("checkpoints");
    let entries = std::fs::read_dir(&folder)
        .map_err(|problem| Error::io(&folder, "read the folder", problem))?;
    let mut found: Vec<(std::time::SystemTime, PathBuf)> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .collect();
    found.sort();
    found.pop().map(|(_, path)| path).ok_or_else(|| {
        Error::setting(
            format!("run {}", run.display()),
            "a run with at least one checkpoint",
            "none: it stopped before the first was written",
        )
    })
}
