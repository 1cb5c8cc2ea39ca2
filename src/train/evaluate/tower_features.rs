//! What a published tower makes of image files.

use std::path::{Path, PathBuf};

use super::eval_tower::EvalTower;
use keel_base::error::Result;
use keel_data::image::{Image, ImageLimits};
use keel_data::pixels::Pixels;
use keel_eval::{FeatureForm, ImageFeatures};

/// Images that are computed at once.
const BATCH: usize = 16;

/// See the module's documentation.
pub struct TowerFeatures {
    features: ImageFeatures,
    pixels: Pixels,
    side: u32,
}

impl EvalTower {
    /// Loads what makes features in this form.
    ///
    /// # Errors
    /// As [`ImageFeatures::new`].
    pub fn features(&self, form: FeatureForm) -> Result<TowerFeatures> {
        let context = self.context();
        Ok(TowerFeatures {
            features: ImageFeatures::new(context, form, BATCH)?,
            pixels: context.pixels,
            side: self.image_size() as u32,
        })
    }
}

impl TowerFeatures {
    /// Calls `take` with the features of one batch of `files` after another, and the shape of those of one image.
    ///
    /// # Errors
    /// `Error::Io` or `Error::Content` naming a file that cannot be read; what the session or `take` reports.
    pub fn of_files(
        &mut self,
        files: &[PathBuf],
        mut take: impl FnMut(&[f32], &[usize]) -> Result<()>,
    ) -> Result<()> {
        for files in files.chunks(BATCH) {
            let images = files.iter().map(|file| self.numbers(file));
            let images: Vec<Vec<f32>> = images.collect::<Result<_>>()?;
            let rows = self.features.compute(&images)?;
            let shape = self.features.shape(rows.len() / images.len());
            take(&rows, &shape)?;
        }
        Ok(())
    }

    /// An image as the tower's processor makes it [3, S, S].
    fn numbers(&self, file: &Path) -> Result<Vec<f32>> {
        let image = Image::open(file, &ImageLimits::default())?;
        let square = self.pixels.prepared(&image, self.side);
        Ok(square.to_chw(self.pixels.mean, self.pixels.std))
    }
}
