//! A vision tower's own pooling: which tensors of its folder it is made of.

use std::sync::Arc;

use super::families::Names;
use super::finder::Finder;
use super::{Folder, Part, Tower};
use keel_base::error::Result;
use keel_model::{VisionHead, vision_head};
use keel_engine::tape::{ParameterLayout, Tape};
use keel_engine::tensor::TensorType;

/// How a family pools, and the names of what it takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pooling {
    pub head: VisionHead,
    pub names: &'static [Names],
}

impl Pooling {
    /// By the class token, which takes nothing more.
    pub const CLASS_TOKEN: Pooling = Pooling {
        head: VisionHead::ClassToken,
        names: &[],
    };
}

impl Part {
    /// What pools this vision tower's tokens, out of the folder that it was found in; nothing where the family or the folder
    /// pools none.
    ///
    /// # Errors
    /// [`keel_base::error::Error::Content`] naming the tensor that is missing or of the wrong shape.
    pub fn head(&self, folder: &Folder) -> Result<Option<(Part, VisionHead)>> {
        let (Tower::Vision(config), Some((pooling, prefix))) = (self.tower(), &self.pooling) else {
            return Ok(None);
        };
        let Pooling { head, names } = *pooling;
        // Folders of towers alone often leave it out.
        let beginning = format!("{prefix}head.");
        if !names.is_empty() && !folder.tensors().keys().any(|t| t.starts_with(&beginning)) {
            return Ok(None);
        }
        let mut tape = Tape::declaring();
        let tokens = config.patches() + usize::from(config.class_token);
        let features = TensorType::f32([1, tokens, config.width]);
        let features = tape.input("features", features);
        vision_head(&mut tape, config, head, features)?;
        let finder = Finder {
            folder,
            names,
            prefix: prefix.clone(),
            heads: config.block().heads,
            patch: 0,
            patches_by_pixel: false,
        };
        let layout = Arc::new(ParameterLayout::new(&tape.specs()));
        let mut part = Part::bare(
            "Pooled output",
            Tower::Head(config.clone(), head),
            layout.clone(),
        );
        let entries = layout.entries().iter();
        part.sources = entries
            .map(|entry| finder.source(entry))
            .collect::<Result<_>>()?;
        Ok(Some((part, head)))
    }
}
