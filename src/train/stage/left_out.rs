//! What a step leaves out of the vision tower at random: a function of the run's seed, the stage's name, the step and the place of
//! the image in it, and of nothing else. So a resumed run leaves out the same, and so does one with other micro-batches, as long
//! as they hold the same images in the same order.

use crate::recipe::{Recipe, Stage};
use keel_base::error::Result;
use keel_base::random::{Purpose, Stream, scramble};
use keel_engine::executor::Session;
use keel_model::{DROP_PATH, ModelInput, Regularisation};

/// Draws what the micro-batches of one stage leave out.
#[derive(Clone, Debug)]
pub struct LeftOut {
    regularisation: Regularisation,
    /// Of run and stage.
    seed: u64,
    depth: usize,
    patches: usize,
    /// Tokens before the patches, which all stay.
    before: usize,
    /// Images of a micro-batch, tiles among them.
    images: usize,
}

impl LeftOut {
    /// For the micro-batches of `stage` of `recipe`.
    pub fn new(recipe: &Recipe, stage: &Stage) -> LeftOut {
        let vision = &recipe.model.vision;
        LeftOut {
            regularisation: stage.regularisation(),
            seed: scramble(recipe.seed ^ scramble(stage.number())),
            depth: vision.depth,
            patches: vision.patches(),
            before: vision.prefix_tokens(),
            images: stage.tiling(stage.micro_batch()).slots + stage.micro_batch(),
        }
    }

    /// The scales of the branches of every image of micro-batch `number`, counted over the stage and all ranks, by the input that takes
    /// them: 0 with the block's rate, else 1 / (1 − rate), which leaves the mean as it is.
    pub fn scales(&self, number: u64) -> Vec<(String, Vec<f32>)> {
        let dropping = self.regularisation.dropping(self.depth);
        let branches = dropping.iter().flat_map(|layer| [(*layer, 0), (*layer, 1)]);
        let mut scales: Vec<(f64, String, Vec<f32>)> = branches
            .map(|(layer, branch)| {
                let rate = self.regularisation.drop_path_of(layer, self.depth);
                (rate, Regularisation::scale_input(layer, branch), Vec::new())
            })
            .collect();
        for row in 0..self.images {
            let mut draws = self.stream(Purpose::DropPath, number, row);
            for (rate, _, scales) in &mut scales {
                let stays = draws.uniform() >= *rate;
                scales.push(if stays {
                    (1.0 / (1.0 - *rate)) as f32
                } else {
                    0.0
                });
            }
        }
        let named = scales.into_iter();
        named.map(|(_, name, scales)| (name, scales)).collect()
    }

    /// The tokens that stay in each image of micro-batch `number`, all of them counted over the batch, those before the patches
    /// first.
    pub fn kept(&self, number: u64) -> Vec<i32> {
        let before = self.before;
        let tokens = self.patches + before;
        let kept = self.regularisation.kept_patches(self.patches);
        let mut all = Vec::with_capacity(self.images * (before + kept));
        for row in 0..self.images {
            let mut draws = self.stream(Purpose::PatchDropout, number, row);
            let mut order: Vec<usize> = (before..tokens).collect();
            // The first places of a shuffle (Fisher and Yates), which need no more of it.
            for place in 0..kept {
                order.swap(place, place + draws.below(self.patches - place));
            }
            order.truncate(kept);
            order.sort_unstable();
            let own = (0..before).chain(order);
            all.extend(own.map(|token| (row * tokens + token) as i32));
        }
        all
    }

    /// The draws for one image of a micro-batch.
    fn stream(&self, purpose: Purpose, number: u64, row: usize) -> Stream {
        let place = number * self.images as u64 + row as u64;
        Stream::new(self.seed, purpose, 0, place)
    }

    /// Writes what micro-batch `number` leaves out.
    ///
    /// # Errors
    /// Whatever the session reports.
    pub(crate) fn write(&self, session: &mut dyn Session, number: u64) -> Result<()> {
        for (input, scales) in self.scales(number) {
            session.write_f32(&input, &scales)?;
        }
        if self.regularisation.patch_dropout > 0.0 {
            let kept = self.kept(number);
            session.write_i32(ModelInput::KeptPatches.name(), &kept)?;
        }
        Ok(())
    }
}

/// The inputs of a program that [`LeftOut::write`] writes.
pub(crate) fn is_left_out(input: &str) -> bool {
    input.starts_with(DROP_PATH) || input == ModelInput::KeptPatches.name()
}
