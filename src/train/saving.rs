//! When a run saves, and how it goes back to what it saved.

use super::checkpoint::{self, Position, Snapshot};
use super::guard::{Guard, MOST_STRIKES};
use super::recipe::Stage;
use super::run_folder::inside_stage;
use super::trainer::Beginning;
use super::trainer::Trainer;
use keel_base::error::{Error, Result};
use keel_engine::executor::Session;
use keel_engine::tape::Arena;

impl Trainer {
    fn position(&self, stage: usize, step: u64) -> Position {
        Position {
            stage,
            stage_name: self
                .recipe
                .stages
                .get(stage)
                .map_or(String::new(), |s| s.name.clone()),
            step,
            seed: self.recipe.seed,
            skipped: self.skipped,
            guard: self.guard.clone(),
            recipe: self.recipe.to_toml(),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }

    /// Saves and waits until it is on the disk. `session` adds the moments of a stage under way.
    pub(super) fn save(
        &mut self,
        stage: usize,
        step: u64,
        label: &str,
        session: Option<&dyn Session>,
    ) -> Result<()> {
        if session.is_some() {
            self.finish_saving(stage)?;
        }
        let path = self.folder.checkpoint(label);
        let position = self.position(stage, step);
        let snapshot = Snapshot::take(position, &self.layout, self.executor.as_ref(), session)?;
        snapshot.write(self.folder.disk().as_ref(), &path)?;
        // Only once the new one is safe; and only those of the stage under way.
        match session {
            Some(_) => self.rotate(stage),
            None => Ok(()),
        }
    }

    /// Begins to save while the next steps run.
    pub(super) fn begin_saving(
        &mut self,
        stage: usize,
        step: u64,
        label: &str,
        session: &dyn Session,
    ) -> Result<()> {
        self.finish_saving(stage)?;
        let path = self.folder.checkpoint(label);
        let position = self.position(stage, step);
        let (layout, executor) = (&self.layout, self.executor.as_ref());
        self.saver.begin(self.folder.disk(), &path, || {
            Snapshot::take(position, layout, executor, Some(session))
        })
    }

    /// Waits for the checkpoint under way. One that could not be written costs itself alone: the run says so and goes on.
    pub(super) fn finish_saving(&mut self, stage: usize) -> Result<()> {
        let Some(saved) = self.saver.wait() else {
            return Ok(());
        };
        match saved.outcome {
            Ok(()) => self.rotate(stage),
            Err(problem) => self.warn(&format!(
                "{} was not saved, and the run goes on: {problem}",
                saved.path.display()
            )),
        }
    }

    /// Removes the oldest checkpoints of the stage under way. While losses are bad the older ones are what there is to go
    /// back to.
    fn rotate(&self, stage: usize) -> Result<()> {
        match self.guard.is_well() {
            true => {
                let (newest, every) = (self.options.keep, self.options.keep_every);
                self.folder.rotate(stage as u64 + 1, newest, every)
            }
            false => Ok(()),
        }
    }

    /// Puts the run back to the newest step of the stage at which it was well, with the data of the bad steps, the last of
    /// which was `last`, left out. Returns the step.
    pub(super) fn go_back(
        &mut self,
        index: usize,
        stage: &Stage,
        last: u64,
        session: &mut dyn Session,
    ) -> Result<u64> {
        self.finish_saving(index)?;
        let mut found = None;
        for path in inside_stage(self.folder.path(), index as u64 + 1)? {
            match checkpoint::check(&path) {
                Ok(position) if position.guard.is_well() => {
                    found = Some((position, path));
                    break;
                }
                // From among the bad steps, or damaged: neither is gone on from again.
                _ => {
                    let removed = self.folder.disk().remove(&path);
                    removed.map_err(|problem| Error::io(&path, "remove the file", problem))?;
                }
            }
        }
        let (step, healthy, from) = match found {
            Some((position, path)) => {
                let moments = self.restore(&path, &position)?;
                let (first, second) = moments.unwrap_or_default();
                session.write_arena(Arena::FirstMoments, &first)?;
                session.write_arena(Arena::SecondMoments, &second)?;
                self.skipped = position.skipped;
                let from = path.display().to_string();
                (position.step, position.guard, from)
            }
            None => {
                self.skipped = self.restart_stage(index, stage, session)?;
                (0, Guard::default(), "the beginning of the stage".to_owned())
            }
        };
        let end = self.guard.batch_of(last);
        let (guard, first) = self.guard.go_back(healthy, last);
        self.guard = guard;
        self.warn(&format!(
            "stage {}: {MOST_STRIKES} bad steps in a row; going back to step {step} ({from}) and leaving out the batches {first} to {end}",
            stage.name,
        ))?;
        Ok(step)
    }

    /// Puts back the parameters and moments that the stage began with; returns the samples skipped before it.
    fn restart_stage(
        &mut self,
        index: usize,
        stage: &Stage,
        session: &mut dyn Session,
    ) -> Result<u64> {
        let begins_here = |beginning: &Beginning| beginning.stage == index;
        let skipped = match self.beginning.as_ref().is_some_and(begins_here) || index == 0 {
            true => {
                self.begin_with(index)?;
                0
            }
            false => {
                let name = &self.recipe.stages[index - 1].name;
                let path = self.folder.checkpoint(&format!("{index}-{name}"));
                let sink =
                    &mut |offset, values: &[f32]| self.executor.write_parameters(offset, values);
                let before = checkpoint::load(&path, &self.layout, &[], sink)?;
                before.position.skipped
            }
        };
        self.refresh(index, stage)?;
        for arena in [Arena::FirstMoments, Arena::SecondMoments] {
            let zeros = vec![0.0; session.read_arena(arena)?.len()];
            session.write_arena(arena, &zeros)?;
        }
        Ok(skipped)
    }
}
