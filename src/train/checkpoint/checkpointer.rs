//! When a run saves, what it keeps, and how it finds what to go on from.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::disk::uninterrupted;
use super::file::{self, Position, Snapshot};
use super::optimizer_state::OptimizerValues;
use super::saver::Saver;
use crate::run::{Run, RunState, inside_stage, newest_first, stage_label, step_label};
use keel_base::clock::Clock;
use keel_base::error::{Error, Result};
use keel_engine::executor::Session;

/// Writes a run's checkpoints: those inside stages while the next steps run, those after stages at once. What is saved
/// belongs to the [`Run`] and the [`RunState`] that are handed over; of its own it has only the one on its way.
#[derive(Debug)]
pub(crate) struct Checkpointer {
    saver: Saver,
}

fn position(run: &Run, state: &RunState, stage: usize, step: u64) -> Position {
    let name = run.recipe.stages.get(stage).map(|stage| stage.name.clone());
    Position {
        stage,
        stage_name: name.unwrap_or_default(),
        step,
        seed: run.recipe.seed,
        skipped: state.skipped,
        guard: state.guard.clone(),
        recipe: run.recipe.to_toml(),
        inputs: run.inputs.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
    }
}

impl Checkpointer {
    /// No checkpoint is on its way; what training waits for them is measured by `clock`.
    pub fn new(clock: Clock) -> Checkpointer {
        Checkpointer {
            saver: Saver::new(clock),
        }
    }

    /// Saves after stage `index` and waits until it is on the disk. Nothing of the optimiser is in it: the next stage begins with its own.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file; whatever the executor reports.
    pub fn save_stage(&mut self, run: &Run, state: &RunState, index: usize) -> Result<()> {
        let position = position(run, state, index + 1, 0);
        let path = after_stage(run, index);
        let snapshot = Snapshot::take(position, &run.layout, run.executor.as_ref(), None)?;
        snapshot.write(run.folder.disk().as_ref(), &path)
    }

    /// Saves after `step` steps of stage `index` and waits until it is on the disk. Returns the file.
    ///
    /// # Errors
    /// As [`Checkpointer::save_stage`].
    pub fn save_step(
        &mut self,
        run: &Run,
        state: &RunState,
        index: usize,
        step: u64,
        session: &dyn Session,
    ) -> Result<PathBuf> {
        self.finish(run, state, index)?;
        let path = inside(run, index, step);
        let position = position(run, state, index, step);
        let executor = run.executor.as_ref();
        let snapshot = Snapshot::take(position, &run.layout, executor, Some(session))?;
        snapshot.write(run.folder.disk().as_ref(), &path)?;
        // Only once the new one is safe.
        rotate(run, state, index)?;
        Ok(path)
    }

    /// Begins to save after `step` steps of stage `index`, while the next steps run.
    ///
    /// # Errors
    /// Whatever the executor reports; [`Error::Stopped`] where no thread can be had.
    pub fn begin_step(
        &mut self,
        run: &Run,
        state: &RunState,
        index: usize,
        step: u64,
        session: &dyn Session,
    ) -> Result<()> {
        self.finish(run, state, index)?;
        let path = inside(run, index, step);
        let position = position(run, state, index, step);
        self.saver.begin(run.folder.disk(), &path, || {
            Snapshot::take(position, &run.layout, run.executor.as_ref(), Some(session))
        })
    }

    /// Waits for the checkpoint under way. One for which there was no room costs itself alone: the run says so and goes on.
    ///
    /// # Errors
    /// [`Error::Stopped`] where the run's folder is gone or may not be written any more: nothing that is trained from here on
    /// would be kept. [`Error::Io`] where an old checkpoint cannot be removed; whatever an observer ends the run for.
    pub fn finish(&mut self, run: &Run, state: &RunState, index: usize) -> Result<()> {
        let Some(saved) = self.saver.wait() else {
            return Ok(());
        };
        match saved.outcome {
            Ok(()) => rotate(run, state, index),
            Err(problem) if is_lost(&problem) => Err(Error::stopped(
                format!("run {}", run.folder.path().display()),
                format!("its folder is gone or can no longer be written ({problem})"),
                "bring it back, and go on from its newest checkpoint with --resume",
            )),
            Err(problem) => run.warn(&format!(
                "{} was not saved, and the run goes on: {problem}",
                saved.path.display()
            )),
        }
    }

    /// Checkpoints inside stages, and the seconds that training waited for them, since this was last asked.
    pub fn take_waited(&mut self) -> (u64, f64) {
        self.saver.take_waited()
    }
}

/// Whether a checkpoint could not be written because of where it goes, and no later one can be either.
fn is_lost(problem: &Error) -> bool {
    match problem {
        Error::Io { source, .. } => matches!(
            source.kind(),
            ErrorKind::NotFound
                | ErrorKind::NotADirectory
                | ErrorKind::PermissionDenied
                | ErrorKind::ReadOnlyFilesystem
        ),
        _ => false,
    }
}

fn inside(run: &Run, index: usize, step: u64) -> PathBuf {
    let name = &run.recipe.stages[index].name;
    run.folder.checkpoint(&step_label(index + 1, name, step))
}

/// The checkpoint after stage `index`.
pub(crate) fn after_stage(run: &Run, index: usize) -> PathBuf {
    let name = &run.recipe.stages[index].name;
    run.folder.checkpoint(&stage_label(index + 1, name))
}

/// Removes the oldest checkpoints of the stage under way. While losses are bad the older ones are what there is to go
/// back to.
fn rotate(run: &Run, state: &RunState, index: usize) -> Result<()> {
    if !state.guard.is_well() {
        return Ok(());
    }
    let (newest, every) = (run.options.keep, run.options.keep_every);
    run.folder.rotate(index as u64 + 1, newest, every)
}

/// Reads a checkpoint's parameters into the run's executor; returns the optimiser's state that goes with them, where it is one
/// inside a stage.
///
/// # Errors
/// As [`file::load`].
pub(crate) fn restore(
    run: &Run,
    path: &Path,
    position: &Position,
) -> Result<Option<OptimizerValues>> {
    let program = match run.programs.get(position.stage) {
        Some(Some(program)) if position.step > 0 => Some(program.as_ref()),
        _ => None,
    };
    let sink = &mut |offset, values: &[f32]| run.executor.write_parameters(offset, values);
    Ok(file::load(path, &run.layout, program, sink)?.optimizer)
}

/// The newest checkpoint inside stage `index` at which the run was well. Newer ones, from among bad steps or damaged, are
/// removed: nothing must go on from them again, not a later resume either.
///
/// # Errors
/// [`Error::Io`] naming the file or folder.
pub(crate) fn newest_well(run: &Run, index: usize) -> Result<Option<(Position, PathBuf)>> {
    for path in inside_stage(run.folder.path(), index as u64 + 1)? {
        match file::check(&path) {
            Ok(position) if position.guard.is_well() => return Ok(Some((position, path))),
            _ => {
                let removed = uninterrupted(|| run.folder.disk().remove(&path));
                removed.map_err(|problem| Error::io(&path, "remove the file", problem))?;
            }
        }
    }
    Ok(None)
}

/// The newest checkpoint of a run folder that is complete and undamaged; what is wrong with newer ones becomes a line each.
///
/// # Errors
/// What is wrong with the newest where no other is valid; [`Error::Io`] when the folder cannot be read.
pub(crate) fn newest_valid(
    run: &Path,
    passed_over: &mut Vec<String>,
) -> Result<Option<(Position, PathBuf)>> {
    let mut first = None;
    for path in newest_first(run)? {
        match file::check(&path) {
            Ok(position) => return Ok(Some((position, path))),
            Err(problem) => {
                passed_over.push(format!("passed over: {problem}"));
                first.get_or_insert(problem);
            }
        }
    }
    first.map_or(Ok(None), Err)
}
