//! Features of images by a vision tower alone, for programs that go on from them.

use super::features::{Wanted, feature_session, means};
use crate::context::EvalContext;
use keel_base::error::{Error, Result};
use keel_engine::executor::Session;
use keel_model::{ModelInput, VisionHead};

/// What is computed of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeatureForm {
    /// The mean of its patch tokens `[C]`.
    Mean,
    /// What the tower itself makes one row of, such as its class token `[C]`.
    Pooled,
    /// Its patch tokens [T, C].
    Tokens,
}

impl FeatureForm {
    /// All of them.
    pub const ALL: [FeatureForm; 3] = [FeatureForm::Mean, FeatureForm::Pooled, FeatureForm::Tokens];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            FeatureForm::Mean => "mean",
            FeatureForm::Pooled => "pooled",
            FeatureForm::Tokens => "tokens",
        }
    }

    /// What it is, in a few words.
    pub fn about(self) -> &'static str {
        match self {
            FeatureForm::Mean => "The mean of its patch tokens",
            FeatureForm::Pooled => {
                "What the tower itself makes one row of, such as its class token"
            }
            FeatureForm::Tokens => "All patch tokens",
        }
    }
}

/// See the module's documentation.
pub struct ImageFeatures {
    session: Box<dyn Session>,
    form: FeatureForm,
    batch: usize,
    width: usize,
    /// Tokens in front of the patches.
    prefix: usize,
}

impl ImageFeatures {
    /// Loads what computes `batch` images at once.
    ///
    /// # Errors
    /// [`Error::Setting`] where the tower pools nothing and that is asked for; whatever recording or loading reports.
    pub fn new(context: EvalContext<'_>, form: FeatureForm, batch: usize) -> Result<ImageFeatures> {
        let is_pooled = form == FeatureForm::Pooled;
        if is_pooled && context.head.is_none() {
            let want = "mean or tokens, as this tower does not pool by itself";
            return Err(Error::setting("features", want, "pooled"));
        }
        let wanted = Wanted {
            pooled: is_pooled,
            ..Wanted::default()
        };
        let mut session = feature_session(context, wanted, batch)?;
        if is_pooled && context.head == Some(VisionHead::ClassToken) {
            session.write_i32(ModelInput::ClassToken.name(), &vec![0; batch])?;
        }
        let vision = &context.config.vision;
        Ok(ImageFeatures {
            session,
            form,
            batch,
            width: vision.width,
            prefix: vision.prefix_tokens(),
        })
    }

    /// The shape of one image's features, of which there are `elements`: `[C]`, or `[T, C]`.
    pub fn shape(&self, elements: usize) -> Vec<usize> {
        match self.form {
            FeatureForm::Tokens => vec![elements / self.width, self.width],
            FeatureForm::Mean | FeatureForm::Pooled => vec![elements],
        }
    }

    /// The features of `images` [n, 3, S, S], at most a batch of them: [n, C], or [n, T, C].
    ///
    /// # Errors
    /// Whatever the session reports.
    ///
    /// # Panics
    /// When there are more images than a batch has.
    pub fn compute(&mut self, images: &[Vec<f32>]) -> Result<Vec<f32>> {
        let count = images.len();
        assert!(count <= self.batch, "{count} images in {}", self.batch);
        if count == 0 {
            return Ok(Vec::new());
        }
        // A program has as many rows as it has: the last ones repeat the first images.
        let filled = images.iter().cycle().take(self.batch);
        let numbers: Vec<f32> = filled.flatten().copied().collect();
        self.session
            .write_f32(ModelInput::Images.name(), &numbers)?;
        self.session.run()?;
        let name = match self.form {
            FeatureForm::Pooled => "pooled",
            FeatureForm::Mean | FeatureForm::Tokens => "tower",
        };
        let mut rows = self.session.read_f32(name)?;
        let one = rows.len() / self.batch;
        rows.truncate(count * one);
        Ok(match self.form {
            FeatureForm::Pooled => rows,
            FeatureForm::Mean => means(&rows, count, self.width, self.prefix),
            FeatureForm::Tokens => {
                let patches = rows.chunks_exact(one);
                let patches = patches.flat_map(|image| &image[self.prefix * self.width..]);
                patches.copied().collect()
            }
        })
    }
}
