//! A vision tower's own pooling: which tensors of its folder it is made of.

use std::sync::Arc;

use super::families::Pooling;
use super::tensor_resolver::TensorResolver;
use super::{Folder, SubModel, SubModelConfig};
use keel_base::error::Result;
use keel_engine::tape::{ParameterLayout, Tape};
use keel_engine::tensor::TensorType;
use keel_model::{ModelInput, VisionHead, vision_head};

impl SubModel {
    /// What pools this vision tower's tokens, out of the folder that it was found in; nothing where the family or the folder
    /// pools none.
    ///
    /// # Errors
    /// [`keel_base::error::Error::Content`] naming the tensor that is missing or of the wrong shape.
    pub fn head(&self, folder: &Folder) -> Result<Option<(SubModel, VisionHead)>> {
        let (SubModelConfig::Vision(config), Some((pooling, prefix))) =
            (self.config(), &self.pooling)
        else {
            return Ok(None);
        };
        let Pooling { head, names } = *pooling;
        // Folders of towers alone often leave it out.
        let first = names.first().map_or("", |(_, ways)| ways[0][0]);
        let module = first.split('.').next().unwrap_or_default();
        let beginning = format!("{prefix}{module}.");
        if !names.is_empty() && !folder.tensors().keys().any(|t| t.starts_with(&beginning)) {
            return Ok(None);
        }
        let mut tape = Tape::declaring();
        let tokens = config.tokens();
        let features = TensorType::f32([1, tokens, config.width]);
        let features = tape.input(ModelInput::Features, features);
        vision_head(&mut tape, config, head, features)?;
        let resolver = TensorResolver {
            folder,
            names,
            prefix: prefix.clone(),
            heads: config.block().heads,
            patch: 0,
            patches_by_pixel: false,
            decoder: None,
        };
        let layout = Arc::new(ParameterLayout::new(&tape.specs()));
        let mut part = SubModel::bare(
            "Pooled output",
            SubModelConfig::Head(config.clone(), head),
            layout.clone(),
        );
        let entries = layout.entries().iter();
        part.sources = entries
            .map(|entry| resolver.source(entry))
            .collect::<Result<_>>()?;
        Ok(Some((part, head)))
    }
}
