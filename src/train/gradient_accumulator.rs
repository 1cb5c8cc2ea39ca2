//! The loss and the gradients of one optimiser step, accumulated over its micro-batches.
//!
//! A step minimises Σₘ Wₘ Lₘ / Σₘ Wₘ over its micro-batches m, with Wₘ the sum of the token weights in m. The next-token
//! loss of a micro-batch is already a mean by those weights, so its part is that of the whole batch at once, however the
//! batch is divided. The contrastive loss sees the pairs of its micro-batch alone. Each run adds Wₘ ∇Lₘ to the gradient arena; the
//! division by Σ Wₘ is the gradient scale of the update.

use super::recipe::Stage;
use super::run::StepNumbers;
use keel_base::clock::Stopwatch;
use keel_base::error::Result;
use keel_data::batch::{Batch, SampleInfo};
use keel_engine::executor::Session;

/// The weight Wₘ of a micro-batch; 1 where the batch is not divided, or predicts no tokens.
pub(super) fn weight(stage: &Stage, batch: &Batch) -> f32 {
    if stage.micro_batches() > 1 && stage.next_token_weight > 0.0 {
        batch.weights.iter().map(|w| f64::from(*w)).sum::<f64>() as f32
    } else {
        1.0
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct GradientAccumulator {
    /// Σ Wₘ.
    weight: f64,
    /// Σ Wₘ Lₘ.
    loss: f64,
    /// The same of each term of the loss.
    terms: Vec<(&'static str, f64)>,
    /// Names of the samples.
    pub keys: Vec<String>,
}

impl GradientAccumulator {
    /// Takes in the weight and the samples of a micro-batch that is about to run.
    pub fn take(&mut self, weight: f32, samples: Vec<SampleInfo>) {
        self.weight += f64::from(weight);
        self.keys
            .extend(samples.into_iter().map(|sample| sample.key));
    }

    /// 1 / Σ Wₘ; 1 where nothing has weight, and with it no gradient.
    pub fn gradient_scale(&self) -> f64 {
        if self.weight > 0.0 {
            1.0 / self.weight
        } else {
            1.0
        }
    }

    /// Reads what the run of a micro-batch of this weight left.
    ///
    /// # Errors
    /// Whatever the session reports.
    pub fn read(&mut self, session: &dyn Session, stage: &Stage, weight: f32) -> Result<()> {
        let weight = f64::from(weight);
        let scalar = |name: &str| -> Result<f64> { Ok(session.read_f64(name)?[0]) };
        self.loss += weight * scalar("loss")?;
        for (name, factor) in [
            ("next_token", stage.next_token_weight),
            ("contrastive", stage.contrastive_weight),
        ] {
            if factor > 0.0 {
                let term = weight * scalar(&format!("loss.{name}"))?;
                match self.terms.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, sum)) => *sum += term,
                    None => self.terms.push((name, term)),
                }
            }
        }
        Ok(())
    }

    /// The numbers of the step that `under_way` has measured, after its last run.
    ///
    /// # Errors
    /// Whatever the session reports.
    pub fn numbers(
        &self,
        session: &dyn Session,
        stage: &Stage,
        [step, steps]: [u64; 2],
        under_way: &Stopwatch,
    ) -> Result<StepNumbers> {
        let scale = self.gradient_scale();
        let terms = self.terms.iter();
        Ok(StepNumbers {
            loss: scale * self.loss,
            terms: terms.map(|(name, sum)| (*name, scale * sum)).collect(),
            gradient_norm: session.read_f64("gradient_norm")?[0],
            learning_rate: stage.learning_rate_at(step, steps),
            seconds: under_way.seconds(),
        })
    }
}
