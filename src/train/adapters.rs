//! Low-rank adapters of a recipe's towers and folders of PEFT: which a run begins with, and which it leaves.

use std::collections::BTreeSet;
use std::path::Path;

use super::checkpoint::Sink;
use super::recipe::Recipe;
use keel_base::error::{Error, Result};
use keel_engine::tape::ParameterLayout;
use keel_model::{BlockConfig, declare};
use keel_weights::{AdapterFolder, Folder, LinearModule, SubModel, VisionLayout, language_modules};

/// A tower that adapters belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tower {
    /// The vision tower.
    Vision,
    /// The language model.
    Language,
}

impl Recipe {
    /// The settings of a tower's blocks.
    pub(crate) fn block(&self, tower: Tower) -> BlockConfig {
        match tower {
            Tower::Vision => self.model.vision.block(),
            Tower::Language => self.model.language.block(),
        }
    }

    /// The linear modules of a tower's blocks, under the names of the folder that its weights come from; of a tower without one, in
    /// `layout` or the first layout that can say its settings.
    ///
    /// # Errors
    /// As [`SubModel::all`], and when no layout can say the settings.
    pub(crate) fn linear_modules(
        &self,
        tower: Tower,
        layout: Option<VisionLayout>,
    ) -> Result<Vec<LinearModule>> {
        let parameters = || declare(&self.model, self.contrastive_loss);
        let open = |path: &String| Folder::open(Path::new(path));
        match tower {
            Tower::Vision => match (&self.vision_weights, layout) {
                (Some(path), None) => {
                    let folder = open(path)?;
                    Ok(SubModel::vision(&folder)?.0.linear_modules())
                }
                (_, layout) => {
                    let config = &self.model.vision;
                    let layout = match layout {
                        Some(layout) => layout,
                        None => VisionLayout::of(config)?,
                    };
                    Ok(layout.linear_modules(config, &*parameters()?))
                }
            },
            Tower::Language => match &self.language_weights {
                Some(path) => {
                    let folder = open(path)?;
                    Ok(SubModel::language(&folder)?.0.linear_modules())
                }
                None => language_modules(&self.model.language, &*parameters()?),
            },
        }
    }

    /// Takes the settings of a folder of adapters. Returns what is worth saying of those that are not taken.
    ///
    /// # Errors
    /// As [`AdapterFolder::open`] and [`AdapterFolder::lora`].
    pub(crate) fn begin_with_adapter(
        &mut self,
        tower: Tower,
        path: &Path,
    ) -> Result<Option<String>> {
        let modules = self.linear_modules(tower, None)?;
        let folder = AdapterFolder::open(path)?;
        let lora = folder.lora(&self.block(tower), &modules)?;
        match tower {
            Tower::Vision => self.model.vision.lora = Some(lora),
            Tower::Language => self.model.language.lora = Some(lora),
        }
        let dropout = folder.dropout();
        Ok((dropout != 0.0).then(|| {
            format!(
                "the adapters in {} were trained with lora_dropout {dropout}, and are trained without it here",
                path.display()
            )
        }))
    }

    /// Gives the values of the adapters that the recipe's folders hold; returns the names of their parameters.
    ///
    /// # Errors
    /// As [`AdapterFolder::read`], and when a folder's settings are not the recipe's.
    pub(crate) fn give_adapters(
        &self,
        layout: &ParameterLayout,
        sink: Sink<'_>,
    ) -> Result<BTreeSet<String>> {
        let mut given = BTreeSet::new();
        for (tower, key, path) in [
            (Tower::Vision, "vision", &self.vision_adapter),
            (Tower::Language, "language", &self.language_adapter),
        ] {
            let Some(path) = path else { continue };
            let modules = self.linear_modules(tower, None)?;
            let block = self.block(tower);
            let folder = AdapterFolder::open(Path::new(path))?;
            if block.lora.as_ref() != Some(&folder.lora(&block, &modules)?) {
                return Err(Error::setting(
                    format!("model.{key}.lora"),
                    format!("the settings in {path}; --{key}-adapter {path} takes them from there"),
                    "others",
                ));
            }
            folder.read(&block, &modules, &mut |name, values| {
                let entry = layout.get(name).expect("the settings lay it out");
                given.insert(name.to_owned());
                sink(entry.offset, values)
            })?;
        }
        Ok(given)
    }
}
