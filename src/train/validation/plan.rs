//! The programs of a stage's validation, planned before the first step: how much memory they take is known like a step's.

use std::sync::Arc;

use crate::recipe::{Recipe, Stage, StageKind};
use keel_base::error::Result;
use keel_data::batch::BatchShape;
use keel_data::tiles::Tiling;
use keel_engine::program::Program;
use keel_engine::tape::{CompileTarget, ParameterLayout};
use keel_eval::{GenerationPrograms, Sampling, plan_forward};
use keel_model::{ContrastivePair, Regularisation, contrasted_features, record_objectives};

/// Samples that the model is asked about.
const GENERATED: usize = 4;

/// Tokens beside those of the image that question and answer may have then.
const GENERATED_TOKENS: usize = 128;

/// What a stage's validation runs.
#[derive(Clone)]
pub struct ValidationPlan {
    /// The losses of a batch, forward alone.
    pub losses: Arc<Program>,
    /// The sizes of such a batch.
    pub shape: BatchShape,
    /// What its contrastive loss compares, where the stage has one.
    pub pair: Option<ContrastivePair>,
    /// What answers questions, in stages that show images to the language model.
    pub generation: Option<GenerationPrograms>,
}

impl ValidationPlan {
    /// Plans the validation of `stage` on at most `samples` samples. `stage` is what one rank computes of it, and one rank alone
    /// validates.
    ///
    /// # Errors
    /// Whatever recording or planning reports.
    pub fn new(
        recipe: &Recipe,
        stage: &Stage,
        layout: &Arc<ParameterLayout>,
        image_id: i32,
        compile_target: CompileTarget,
        samples: usize,
    ) -> Result<ValidationPlan> {
        let is_contrastive = stage.contrastive_weight > 0.0;
        let of_step = recipe.batch_shape(stage, image_id);
        // Samples share sequences as they do in a step, or rows that are mostly padding would take most of the time. Not so those of
        // a contrastive loss, which is comparable where it compares as many pairs, nor those of several images or tiles, whose
        // number differs from batch to batch.
        let pack = if is_contrastive || of_step.tiling.is_on() {
            1
        } else {
            stage.samples_per_sequence
        };
        // As many rows at once as a step has.
        let rows = if is_contrastive {
            stage.micro_batch()
        } else {
            stage.micro_batch() / stage.samples_per_sequence
        };
        let batch = rows.min(samples.div_ceil(pack)).max(1) * pack;
        let shape = BatchShape {
            batch,
            pack,
            tiling: stage.tiling(batch),
            ..of_step
        };
        let mut objectives = stage.objectives(recipe.contrastive_loss);
        objectives.holds_text_alone = true;
        objectives.regularisation = Regularisation::default();
        let pair = is_contrastive.then_some(objectives.pair);
        let keep = pair.map_or(Vec::new(), |pair| contrasted_features(pair).to_vec());
        let losses = plan_forward(layout, compile_target, keep, |tape| {
            record_objectives(tape, &recipe.model, &objectives, &shape).map(drop)
        })?;
        let speaks = stage.kind != StageKind::WarmStart && stage.next_token_weight > 0.0;
        let generation = if speaks {
            let most = shape.image_tokens + GENERATED_TOKENS;
            let shape = BatchShape {
                batch: GENERATED.min(samples).max(1),
                pack: 1,
                tiling: Tiling::NONE,
                tokens: stage.max_tokens.min(most),
                ..shape
            };
            let (model, how) = (&recipe.model, Sampling::Greedy);
            let programs = GenerationPrograms::new(model, layout, compile_target, shape, how);
            Some(programs?)
        } else {
            None
        };
        Ok(ValidationPlan {
            losses,
            shape,
            pair,
            generation,
        })
    }

    /// Bytes that a validation takes beside what the stage takes: its programs are loaded one after the other, each while the step's
    /// stays where it is.
    pub fn bytes(&self) -> u64 {
        let of = |program: &Program| {
            let arenas = program.session_arenas().map(|(_, arena)| {
                program.arena_elements(arena, 0) as u64 * arena.element().size() as u64
            });
            program.arena_bytes() as u64 + arenas.sum::<u64>()
        };
        let generation = self.generation.as_ref();
        let generation = generation.map_or(0, |both| of(&both.prompt) + of(&both.step));
        generation.max(of(&self.losses))
    }
}
