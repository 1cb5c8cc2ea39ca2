//! Feature distillation: a teacher, a vision tower that is not trained, sees the same images, and the features of the tower are held
//! to its features, patch by patch.
//!
//! Where the two are of different widths, the tower's features go through a learned projection first, unless only the features of
//! one tower are compared with each other.

use serde::{Deserialize, Serialize};

use super::vision::{TowerFeatures, patch_tokens, tower_layers};
use super::{ModelConfig, OUTPUT_LAYER, Regularisation, Scope};
use keel_base::error::{Error, Result};
use keel_engine::ops;
use keel_engine::tape::{Init, Tape, Value};
use keel_engine::tensor::DType;

/// The module of the teacher's parameters, which no stage trains.
pub const TEACHER: &str = "teacher";

/// The module of the projection between towers of different widths.
pub const DISTILLATION: &str = "distillation";

/// How features are held to those of the teacher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DistillationLoss {
    /// The mean over patches of 1 − cos of the angle between the two features. Their lengths are left free.
    #[default]
    Cosine,
    /// The mean over patches and channels of the squared difference.
    Mse,
    /// The mean over pairs of patches of one image of the squared difference of their cosines: how alike an image's patches are to
    /// each other is held, and features themselves are left free, of any width (Gram anchoring; Siméoni et al. 2025, arXiv
    /// 2508.10104, section 4.2).
    Gram,
}

impl DistillationLoss {
    /// Whether features are compared with the teacher's themselves, so that both have to be equally wide.
    pub fn compares_features(self) -> bool {
        self != DistillationLoss::Gram
    }
}

/// What a stage distills.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Distillation {
    /// Weight of the loss; 0 records none, and no teacher.
    pub weight: f32,
    /// Its form.
    pub loss: DistillationLoss,
}

/// Records the teacher on `images` f32 [N, 3, S, S], and the loss f32 `[1]` of the tower's `features` against its features.
///
/// A teacher that is a copy of the tower is compared in the layer that the connector takes, another tower by its output.
///
/// # Errors
/// [`Error::Setting`] when the model has no teacher; whatever recording reports.
pub(super) fn distill(
    tape: &mut Tape,
    config: &ModelConfig,
    images: Value,
    features: &TowerFeatures,
    loss: DistillationLoss,
) -> Result<Value> {
    let Some(tower) = config.teacher_tower() else {
        let want = "a teacher, [model.teacher], in a stage that distills";
        return Err(Error::setting("model.teacher", want, "none"));
    };
    let nothing = Regularisation::default();
    let teacher = tower_layers(tape, (&tower, TEACHER), images, &nothing)?;
    let is_copy = config
        .teacher
        .as_ref()
        .is_some_and(|teacher| teacher.tower.is_none());
    let layer = config.connector.select_layer;
    let theirs = teacher.selected(if is_copy { layer } else { OUTPUT_LAYER });
    let ours = patch_tokens(tape, &config.vision, features.selected(layer))?;
    let theirs = patch_tokens(tape, &tower, theirs)?;
    tape.scoped(DISTILLATION, |tape| {
        let ours = if config.projects_features() && loss.compares_features() {
            let shape = [tower.width, config.vision.width];
            let scope = Scope::module(DISTILLATION);
            let weight = scope.matrix(tape, "projection", shape, Init::XavierUniform)?;
            ops::linear(tape, ours, weight, None)?
        } else {
            ours
        };
        match loss {
            DistillationLoss::Mse => ops::squared_error(tape, ours, theirs),
            DistillationLoss::Cosine => {
                // Rows of length one: ‖x − y‖² = 2 (1 − ⟨x, y⟩).
                let ours = ops::l2_normalize(tape, ours, 1e-12)?;
                let theirs = ops::l2_normalize(tape, theirs, 1e-12)?;
                let error = ops::squared_error(tape, ours, theirs)?;
                ops::weighted_sum(tape, &[(error, tower.width as f32 / 2.0)])
            }
            DistillationLoss::Gram => {
                let [ours, theirs] = [ours, theirs].map(|features| {
                    // Before they are normalised: a matrix of bf16 numbers would have lost small differences.
                    let features = ops::cast(tape, features, DType::F32)?;
                    let features = ops::l2_normalize(tape, features, 1e-12)?;
                    ops::gram(tape, features)
                });
                ops::squared_error(tape, ours?, theirs?)
            }
        }
    })
}
