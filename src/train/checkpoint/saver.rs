//! Saves checkpoints while training goes on: what is to be saved is copied at the step, and written by a thread of its own.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use keel_base::clock::Clock;
use keel_base::error::{Error, Result};

/// At most one checkpoint on its way to the disk.
#[derive(Debug)]
pub(crate) struct Saver {
    clock: Clock,
    under_way: Option<(PathBuf, JoinHandle<Result<String>>)>,
    /// Checkpoints begun since the last [`Saver::take_waited`].
    count: u64,
    /// Seconds that training waited for copies and for an earlier checkpoint.
    waited: f64,
}

/// A run that ends early does not take the checkpoint with it that is on its way.
impl Drop for Saver {
    fn drop(&mut self) {
        // Nobody is left to hear of a failure: the run ends with a message of its own.
        let _ = self.wait();
    }
}

/// How a checkpoint fared that was on its way.
#[derive(Debug)]
pub(crate) struct Saved {
    /// Its file.
    pub path: PathBuf,
    /// Whether it is there, and the hash of its content where whoever wrote it gives one.
    pub outcome: Result<String>,
}

impl Saver {
    /// None is on its way; waiting is measured by `clock`.
    pub fn new(clock: Clock) -> Saver {
        Saver {
            clock,
            under_way: None,
            count: 0,
            waited: 0.0,
        }
    }

    /// Has `copy` copy what is to be saved, and what it returns write that to `path`. There must be none under way.
    ///
    /// # Errors
    /// Whatever `copy` reports; [`Error::Stopped`] where no thread can be had.
    pub fn begin<W>(&mut self, path: &Path, copy: impl FnOnce() -> Result<W>) -> Result<()>
    where
        W: FnOnce() -> Result<String> + Send + 'static,
    {
        assert!(self.under_way.is_none(), "one checkpoint at a time");
        let waiting = self.clock.start();
        let write = copy()?;
        let thread = std::thread::Builder::new()
            .name("keel-save".into())
            .spawn(write)
            .map_err(|problem| {
                Error::stopped("saving a checkpoint", problem, "end other programs")
            })?;
        self.under_way = Some((path.to_owned(), thread));
        self.count += 1;
        self.waited += waiting.seconds();
        Ok(())
    }

    /// Whether nothing is under way any more that has to be waited for.
    pub fn is_done(&self) -> bool {
        let thread = self.under_way.as_ref().map(|(_, thread)| thread);
        thread.is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the checkpoint that is under way, if there is one.
    pub fn wait(&mut self) -> Option<Saved> {
        let waiting = self.clock.start();
        let (path, thread) = self.under_way.take()?;
        let outcome = thread.join().unwrap_or_else(|_| {
            let advice = "report this as a defect of Keel";
            Err(Error::content(
                path.display(),
                "saving it broke off",
                advice,
            ))
        });
        self.waited += waiting.seconds();
        Some(Saved { path, outcome })
    }

    /// Checkpoints begun, and seconds waited for them, since this was last asked.
    pub fn take_waited(&mut self) -> (u64, f64) {
        (
            std::mem::take(&mut self.count),
            std::mem::take(&mut self.waited),
        )
    }
}
