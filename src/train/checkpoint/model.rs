//! A checkpoint's model before anything computes: what measuring, asking and exporting open.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::file::{self, Position};
use crate::recipe::Recipe;
use crate::run::{newest_checkpoint, recipe_of};
use keel_base::error::{Error, Result};
use keel_data::chat::ChatTokenizer;
use keel_engine::executor::Executor;
use keel_engine::tape::ParameterLayout;
use keel_model::declare;

/// See the module's documentation.
pub(crate) struct CheckpointModel {
    /// The checkpoint's file.
    pub path: PathBuf,
    /// Where the run stood.
    pub position: Position,
    /// The recipe in it.
    pub recipe: Recipe,
    /// How the model speaks.
    pub tokenizer: Arc<ChatTokenizer>,
    /// Where its parameters lie.
    pub layout: Arc<ParameterLayout>,
}

impl CheckpointModel {
    /// Opens a run's newest checkpoint, or the checkpoint that `path` names.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Content`] or [`Error::Setting`] naming the file.
    pub fn open(path: &Path) -> Result<CheckpointModel> {
        let path = if path.is_file() {
            path.to_owned()
        } else {
            recipe_of(path)?;
            newest_checkpoint(path)?.ok_or_else(|| {
                Error::setting(
                    format!("run {}", path.display()),
                    "a run with at least one checkpoint",
                    "none (it stopped before the first was written)",
                )
            })?
        };
        let position = file::read_position(&path)?;
        let what = format!("recipe in {}", path.display());
        let recipe = Recipe::parse(&what, &position.recipe, &[])?;
        // Checkpoints lie one folder below their run.
        let tokenizer = recipe.chat_tokenizer(path.parent().and_then(Path::parent))?;
        let layout = declare(&recipe.model, recipe.contrastive_loss)?;
        Ok(CheckpointModel {
            path,
            position,
            recipe,
            tokenizer,
            layout,
        })
    }

    /// Writes all parameters into an executor's arena.
    ///
    /// # Errors
    /// As [`file::load`].
    pub fn write_parameters(&self, executor: &dyn Executor) -> Result<()> {
        let sink = &mut |offset, values: &[f32]| executor.write_parameters(offset, values);
        file::load(&self.path, &self.layout, None, sink).map(|_| ())
    }

    /// All parameters in arena order.
    ///
    /// # Errors
    /// As [`file::load`].
    pub fn parameters(&self) -> Result<Vec<f32>> {
        file::parameters(&self.path, &self.layout)
    }

    /// All parameters in arena order, averages in the place of those that the stage trained.
    ///
    /// # Errors
    /// As [`file::load_averages`].
    pub fn averages(&self) -> Result<Vec<f32>> {
        let mut averages = vec![0.0f32; self.layout.elements()];
        file::load_averages(&self.path, &self.layout, &mut |offset, values| {
            averages[offset..offset + values.len()].copy_from_slice(values);
            Ok(())
        })?;
        Ok(averages)
    }
}
