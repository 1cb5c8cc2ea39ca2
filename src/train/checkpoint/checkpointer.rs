//! When a run saves, what it keeps, and how it finds what to go on from.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::copies::hold_alike;
use super::disk::Disk;
use super::file::{self, Position, Snapshot};
use super::optimizer_state::OptimizerValues;
use super::saver::Saver;
use super::shard::{OptimizerShard, ShardFile, remove_checkpoint, shard_path};
use crate::run::{Run, RunState, best_label, inside_stage, newest_first, stage_label, step_label};
use keel_base::clock::Clock;
use keel_base::error::{Error, Result};
use keel_engine::executor::Session;
use keel_engine::program::Program;
use keel_ranks::World;

/// Writes a run's checkpoints: those inside stages while the next steps run, those after stages at once. What is saved
/// belongs to the [`Run`] and the [`RunState`] that are handed over; of its own it has only the one on its way.
///
/// Of several ranks each saves its part of the optimiser's state. When all parts are there, which ranks tell one another
/// between two steps, the first writes the checkpoint's own file.
#[derive(Debug)]
pub(crate) struct Checkpointer {
    saver: Saver,
    /// The checkpoint of several ranks whose parts are on their way.
    pending: Option<Pending>,
    /// One that could not be written.
    failed: Option<(PathBuf, Error)>,
}

/// A checkpoint of several ranks until all have saved their parts.
#[derive(Debug)]
struct Pending {
    path: PathBuf,
    /// What the first rank writes then.
    snapshot: Option<Snapshot>,
    /// How this rank's part fared.
    own: Option<Result<String>>,
}

/// The averages of a stage, as a rank keeps them, with the program that says where each parameter's lie.
pub(crate) type Averages = (OptimizerValues, Arc<Program>);

/// What a rank tells of its part of a checkpoint.
const UNDER_WAY: u8 = 0;
/// Followed by the hash.
const SAVED: u8 = 1;
/// Followed by the reason.
const FAILED: u8 = 2;

fn position(run: &Run, state: &RunState, stage: usize, step: u64) -> Position {
    let name = run.recipe.stages.get(stage).map(|stage| stage.name.clone());
    Position {
        stage,
        stage_name: name.unwrap_or_default(),
        step,
        seed: run.recipe.seed,
        skipped: state.skipped,
        guard: state.guard.clone(),
        validations: state.validations.clone(),
        recipe: run.recipe.to_toml(),
        inputs: run.inputs.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        shards: Vec::new(),
        has_masters_in_shards: false,
    }
}

impl Checkpointer {
    /// No checkpoint is on its way; what training waits for them is measured by `clock`.
    pub fn new(clock: Clock) -> Checkpointer {
        Checkpointer {
            saver: Saver::new(clock),
            pending: None,
            failed: None,
        }
    }

    /// Saves after stage `index` and waits until it is on the disk. Of what the optimiser kept only the averages are in it: the
    /// next stage begins with its own.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file; [`Error::CopiesDiffer`] where ranks hold different parameters; whatever the executor reports.
    pub fn save_stage(
        &mut self,
        run: &Run,
        state: &RunState,
        index: usize,
        averages: Option<&Averages>,
    ) -> Result<()> {
        let stage = &run.recipe.stages[index].name;
        hold_alike(run, &format!("the end of stage {stage}"))?;
        let path = after_stage(run, index);
        let mut position = position(run, state, index + 1, 0);
        let mut own = averages;
        if let (Some((values, program)), true) = (averages, run.ranks() > 1) {
            position.shards = save_shards(run, &path, values, program)?;
            own = None;
        }
        if run.is_first() {
            let (layout, executor) = (&run.layout, run.executor.as_ref());
            let mut snapshot = Snapshot::take(position, layout, executor, None)?;
            if let Some((values, program)) = own {
                snapshot.keep(values.clone(), program);
            }
            snapshot.write(run.folder.disk().as_ref(), &path)?;
        }
        run.meet("the checkpoint after a stage")
    }

    /// Saves the parameters after `step` steps of stage `index` as its best ones so far, and waits until they are on the disk.
    /// Nothing of the optimiser is with them: no run goes on from there. Returns the file. Called on the first rank alone.
    ///
    /// # Errors
    /// As [`Checkpointer::save_stage`].
    pub fn save_best(
        &mut self,
        run: &Run,
        state: &RunState,
        index: usize,
        step: u64,
    ) -> Result<PathBuf> {
        let position = position(run, state, index, step);
        let path = best_of(run, index);
        let snapshot = Snapshot::take(position, &run.layout, run.executor.as_ref(), None)?;
        snapshot.write(run.folder.disk().as_ref(), &path)?;
        Ok(path)
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
        self.begin_step(run, state, index, step, session)?;
        if let Some((_, problem)) = self.settle(run, state, index)? {
            return Err(problem);
        }
        run.meet("a checkpoint")?;
        Ok(inside(run, index, step))
    }

    /// Begins to save after `step` steps of stage `index`, while the next steps run.
    ///
    /// # Errors
    /// [`Error::CopiesDiffer`] where ranks hold different parameters; whatever the executor reports; [`Error::Stopped`] where no
    /// thread can be had.
    pub fn begin_step(
        &mut self,
        run: &Run,
        state: &RunState,
        index: usize,
        step: u64,
        session: &dyn Session,
    ) -> Result<()> {
        self.finish(run, state, index)?;
        let stage = &run.recipe.stages[index].name;
        hold_alike(run, &format!("stage {stage}, step {step}"))?;
        let path = inside(run, index, step);
        let position = position(run, state, index, step);
        let disk = run.folder.disk().clone();
        let executor = run.executor.as_ref();
        if run.ranks() == 1 {
            let to = path.clone();
            return self.saver.begin(&path, || {
                let snapshot = Snapshot::take(position, &run.layout, executor, Some(session))?;
                Ok(move || written(&snapshot, disk.as_ref(), &to))
            });
        }
        let own = shard_path(&path, run.options.seat.world());
        let to = own.clone();
        self.saver.begin(&own, || {
            let shard = OptimizerShard::take(session, &run.layout)?;
            Ok(move || shard.write(disk.as_ref(), &to))
        })?;
        let mut position = position;
        position.has_masters_in_shards = !session.program().masters_in_shards().is_empty();
        let snapshot = match run.is_first() {
            true => Some(Snapshot::take(position, &run.layout, executor, None)?),
            false => None,
        };
        self.pending = Some(Pending {
            path,
            snapshot,
            own: None,
        });
        Ok(())
    }

    /// Looks between two steps whether the parts of all ranks are there, and has the first rank begin with the rest.
    ///
    /// # Errors
    /// Whatever the votes report; [`Error::Stopped`] where no thread can be had.
    pub fn look(&mut self, run: &Run) -> Result<()> {
        if self.pending.is_some() {
            self.gather_parts(run, false)?;
        }
        Ok(())
    }

    fn gather_parts(&mut self, run: &Run, waits: bool) -> Result<()> {
        let pending = self.pending.as_mut().expect("its caller has looked");
        if pending.own.is_none() && (waits || self.saver.is_done()) {
            pending.own = self.saver.wait().map(|saved| saved.outcome);
        }
        let (state, said) = match &pending.own {
            None => (UNDER_WAY, String::new()),
            Some(Ok(hash)) => (SAVED, hash.clone()),
            Some(Err(problem)) => (FAILED, problem.to_string()),
        };
        let told = [&[state][..], said.as_bytes()].concat();
        let heard = run
            .options
            .seat
            .votes()
            .gather("the parts of a checkpoint", &told)?;
        if heard.iter().any(|told| told[0] == UNDER_WAY) {
            return Ok(());
        }
        let Some(pending) = self.pending.take() else {
            return Ok(());
        };
        let said = |told: &[u8]| String::from_utf8_lossy(&told[1..]).into_owned();
        let world = run.options.seat.world();
        if let Some(rank) = heard.iter().position(|told| told[0] == FAILED) {
            if state == SAVED {
                // Without the others it is no use; what cannot be removed now is when the run is taken up.
                let _ = run.folder.disk().remove(&shard_path(&pending.path, world));
            }
            let remedy = "make room for it, and go on from the newest checkpoint with --resume";
            let problem = Error::stopped(format!("rank {rank}"), said(&heard[rank]), remedy);
            self.failed = Some((pending.path, problem));
            return Ok(());
        }
        let Some(mut snapshot) = pending.snapshot else {
            return Ok(());
        };
        let file = |(rank, told): (usize, &Vec<u8>)| {
            shard_file(&pending.path, World { rank, ..world }, &told[1..])
        };
        snapshot.position.shards = heard.iter().enumerate().map(file).collect();
        let (disk, to) = (run.folder.disk().clone(), pending.path.clone());
        let write = move || written(&snapshot, disk.as_ref(), &to);
        self.saver.begin(&pending.path, || Ok(write))
    }

    /// Waits for the checkpoint under way. One for which there was no room costs itself alone: the run says so and goes on.
    ///
    /// # Errors
    /// [`Error::Stopped`] where the run's folder is gone or may not be written any more: nothing that is trained from here on
    /// would be kept. [`Error::Io`] where an old checkpoint cannot be removed; whatever an observer ends the run for.
    pub fn finish(&mut self, run: &Run, state: &RunState, index: usize) -> Result<()> {
        match self.settle(run, state, index)? {
            Some((path, problem)) if run.is_first() => run.warn(&format!(
                "{} was not saved, and the run goes on: {problem}",
                path.display()
            )),
            _ => Ok(()),
        }
    }

    /// Waits for the checkpoint under way; returns the one that could not be written, where that is no reason to end.
    fn settle(
        &mut self,
        run: &Run,
        state: &RunState,
        index: usize,
    ) -> Result<Option<(PathBuf, Error)>> {
        if self.pending.is_some() {
            self.gather_parts(run, true)?;
        }
        let Some(saved) = self.saver.wait() else {
            return Ok(self.failed.take());
        };
        match saved.outcome {
            Ok(_) => rotate(run, state, index).map(|()| None),
            Err(problem) if is_lost(&problem) => Err(Error::stopped(
                format!("run {}", run.folder.path().display()),
                format!("its folder is gone or can no longer be written ({problem})"),
                "bring it back, and go on from its newest checkpoint with --resume",
            )),
            Err(problem) => Ok(Some((saved.path, problem))),
        }
    }

    /// Checkpoints inside stages, and the seconds that training waited for them, since this was last asked.
    pub fn take_waited(&mut self) -> (u64, f64) {
        self.saver.take_waited()
    }
}

/// Has every rank write its part of the averages after a stage; returns the files of all.
fn save_shards(
    run: &Run,
    path: &Path,
    values: &OptimizerValues,
    program: &Program,
) -> Result<Vec<ShardFile>> {
    let seat = &run.options.seat;
    let shard = OptimizerShard::of(values, program, &run.layout);
    let hash = shard.write(run.folder.disk().as_ref(), &shard_path(path, seat.world()))?;
    let votes = seat.votes();
    let heard = votes.gather("the averages after a stage", hash.as_bytes())?;
    let told = heard.iter().enumerate();
    Ok(told
        .map(|(rank, hash)| {
            shard_file(
                path,
                World {
                    rank,
                    ..seat.world()
                },
                hash,
            )
        })
        .collect())
}

/// The file of a rank's part of the checkpoint `path`, as the checkpoint names it.
fn shard_file(path: &Path, world: World, hash: &[u8]) -> ShardFile {
    let path = shard_path(path, world);
    let name = path.file_name().unwrap_or_default();
    ShardFile {
        name: name.to_string_lossy().into_owned(),
        blake3: String::from_utf8_lossy(hash).into_owned(),
    }
}

/// Writes a checkpoint's own file, which has its hash inside.
fn written(snapshot: &Snapshot, disk: &dyn Disk, path: &Path) -> Result<String> {
    snapshot.write(disk, path).map(|()| String::new())
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

/// The best checkpoint of stage `index` by its validations.
fn best_of(run: &Run, index: usize) -> PathBuf {
    let name = &run.recipe.stages[index].name;
    run.folder.checkpoint(&best_label(index + 1, name))
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
/// As [`file::load`]; [`Error::Content`] naming a file of the middle of a stage without it.
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
    let optimizer = file::load(path, &run.layout, program, sink)?.optimizer;
    // Going on without it would be another run, with nothing said.
    if program.is_some() && optimizer.is_none() {
        return Err(without_optimizer(path));
    }
    Ok(optimizer)
}

/// What is wrong with a checkpoint that a run cannot go on from in the middle of a stage.
pub(crate) fn without_optimizer(path: &Path) -> Error {
    Error::content(
        path.display(),
        "it is of the middle of a stage and holds nothing of the optimiser",
        "remove it, and the run goes on from the one before",
    )
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
                remove_checkpoint(run.folder.disk().as_ref(), &path)?;
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
