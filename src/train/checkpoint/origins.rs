//! What a stage starts from, put into the executor: modules as an earlier stage left them, and modules begun anew.

use std::collections::BTreeMap;

use super::checkpointer::after_stage;
use super::file::load;
use crate::recipe::INITIAL;
use crate::run::Run;
use keel_base::error::Result;

/// Restores and reinitialises the modules that stage `index` says, and makes the teacher a copy of the tower where that is due. The
/// same values whenever the stage begins.
///
/// # Errors
/// [`keel_base::error::Error::Io`] or [`keel_base::error::Error::Content`] naming the checkpoint of an earlier stage; whatever weights' folders and the
/// executor report.
pub(crate) fn begin_stage(run: &Run, index: usize) -> Result<()> {
    let stages = &run.recipe.stages;
    let mut by_origin: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (module, origin) in &stages[index].restore {
        by_origin.entry(origin).or_default().push(module);
    }
    for (origin, modules) in by_origin {
        let mut sink = |offset: usize, values: &[f32]| {
            for entry in run.layout.entries() {
                let (first, end) = (entry.offset, entry.offset + entry.spec.shape.numel());
                let (from, to) = (first.max(offset), end.min(offset + values.len()));
                if from < to && modules.contains(&entry.spec.module()) {
                    let piece = &values[from - offset..to - offset];
                    run.executor.write_parameters(from, piece)?;
                }
            }
            Ok(())
        };
        match stages[..index]
            .iter()
            .position(|stage| stage.name == origin)
        {
            Some(earlier) => {
                load(&after_stage(run, earlier), &run.layout, None, &mut sink)?;
            }
            None => {
                assert_eq!(origin, INITIAL, "the recipe was checked");
                run.give_initial(&mut sink)?;
            }
        }
    }
    run.reinitialise(index)
}
