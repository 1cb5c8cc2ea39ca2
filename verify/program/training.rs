//! Short trainings of the tiny recipe on drawn inputs, for what must not change a single bit of a step.

use std::sync::Arc;

use keel::data::batch::BatchShape;
use keel::data::chat::ChatTokenizer;
use keel::error::Result;
use keel::executor::{CpuExecutor, Executor, Session};
use keel::model::{ModelInput, declare, initialise};
use keel::ops::{Contrastive, OptimizerInput};
use keel::program::{CompileOptions, Program};
use keel::tape::{ParameterLayout, Target};
use keel::tensor::DType;
use keel::train::{Recipe, Stage, StageKind, optimizer_scalars, record_step};

use crate::harness::Random;

/// Samples of a step.
const BATCH: usize = 3;

/// Steps of a training.
const STEPS: u64 = 2;

/// The id that stands for an image token.
const IMAGE: i32 = 3;

/// A recipe with its parameters laid out.
pub struct Tiny {
    pub recipe: Recipe,
    pub layout: Arc<ParameterLayout>,
}

/// Everything that training left behind, as bits.
#[derive(Clone, PartialEq)]
pub struct Outcome {
    losses: Vec<u32>,
    parameters: Vec<u32>,
    moments: Vec<u32>,
}

/// The sizes of `batch` samples of a stage, in the embedded tokeniser.
pub fn shape_of(recipe: &Recipe, stage: &Stage, batch: usize) -> BatchShape {
    BatchShape {
        batch,
        tiling: stage.tiling(batch),
        ..recipe.batch_shape(stage, ChatTokenizer::embedded().image())
    }
}

impl Tiny {
    pub fn new() -> Tiny {
        Tiny::with(&[])
    }

    /// The recipe with some settings replaced.
    pub fn with(sets: &[&str]) -> Tiny {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let recipe = Recipe::load("tiny", &sets).expect("a built-in recipe");
        let layout = declare(&recipe.model, Contrastive::InfoNce).expect("a built-in model");
        Tiny { recipe, layout }
    }

    /// The program of one step of `stage`.
    pub fn compile(&self, stage: &Stage, options: &CompileOptions) -> Result<Program> {
        self.compile_in(DType::F32, stage, options)
    }

    /// As [`Tiny::compile`], in a precision.
    pub fn compile_in(
        &self,
        precision: DType,
        stage: &Stage,
        options: &CompileOptions,
    ) -> Result<Program> {
        let shape = shape_of(&self.recipe, stage, BATCH);
        let tape = record_step(&self.recipe, stage, &self.layout, &shape, precision)?;
        Program::compile(tape, options)
    }

    /// An executor with first values, and the program loaded on it.
    pub fn load(&self, program: Program, threads: usize) -> (CpuExecutor, Box<dyn Session>) {
        let executor =
            CpuExecutor::new(self.layout.elements(), threads).expect("threads can be had");
        executor
            .write_parameters(0, &initialise(&self.layout, 1))
            .unwrap();
        let session = executor
            .load(Arc::new(program))
            .expect("a tiny step fits in memory");
        (executor, session)
    }

    /// Writes what step `step` reads, drawn from its number.
    pub fn write_inputs(&self, session: &mut dyn Session, stage: &Stage, step: u64) {
        let groups = stage.parameter_groups(&self.layout);
        let groups = groups.expect("the stage trains something");
        optimizer_scalars(stage, &groups, [step, STEPS.max(10)], 1.0)
            .write(session)
            .expect("every step has an optimiser");
        self.write_batch(session, stage, step);
    }

    /// As [`Tiny::write_inputs`], without what the optimiser reads.
    pub fn write_batch(&self, session: &mut dyn Session, stage: &Stage, step: u64) {
        let mut random = Random::new(1000 + step);
        let by_optimizer = OptimizerInput::ALL.map(OptimizerInput::name);
        let mut inputs = ModelInput::of(session.program(), &by_optimizer).expect("known inputs");
        // By name, so that what is drawn depends on nothing else.
        inputs.sort_by_key(|input| input.name());
        for input in inputs {
            let name = input.name();
            let value = session.program().input(name).expect("listed");
            let count = session.program().ty(value).numel();
            let written = match input {
                ModelInput::LossWeight => {
                    session.write_f32(name, &[0.25 + 0.5 * random.uniform() as f32])
                }
                ModelInput::Images => session.write_f32(name, &random.normals(count, 0.5)),
                ModelInput::Tokens => {
                    session.write_i32(name, &self.conversation(stage, &mut random))
                }
                ModelInput::CaptionTokens => session.write_i32(name, &words(count, &mut random)),
                ModelInput::CaptionEnd => {
                    session.write_i32(name, &random.integers(count, stage.max_caption_tokens))
                }
                ModelInput::CaptionWeights => {
                    session.write_f32(name, &vec![1.0 / stage.max_caption_tokens as f32; count])
                }
                ModelInput::Pairs => session.write_i32(name, &[BATCH as i32 - 1]),
                // The first two images and the second and third captions are equal.
                ModelInput::ImageIdentities => session.write_i32(name, &equal(count, 0)),
                ModelInput::CaptionIdentities => session.write_i32(name, &equal(count, 1)),
                ModelInput::Segments => session.write_i32(name, &packed(stage).0),
                ModelInput::Positions => session.write_i32(name, &packed(stage).1),
                ModelInput::Targets => {
                    let mut targets = words(count, &mut random);
                    for target in targets.iter_mut().step_by(3) {
                        *target = -100;
                    }
                    session.write_i32(name, &targets)
                }
                ModelInput::Weights => {
                    let weights = random.integers(count, 4);
                    let weights: Vec<f32> = weights.iter().map(|w| *w as f32 / 4.0).collect();
                    session.write_f32(name, &weights)
                }
                other => panic!("a step has a new input, {other:?}"),
            };
            written.expect("the input fits");
        }
    }

    /// Ids [B, T], with image tokens after the first where the stage splices images.
    fn conversation(&self, stage: &Stage, random: &mut Random) -> Vec<i32> {
        let mut ids = words(
            BATCH / stage.samples_per_sequence * stage.max_tokens,
            random,
        );
        if stage.kind != StageKind::WarmStart {
            for sample in ids.chunks_mut(stage.max_tokens / stage.samples_per_sequence) {
                sample[1..=self.recipe.model.image_tokens()].fill(IMAGE);
            }
        }
        ids
    }

    /// Trains from first values and returns all that changed.
    pub fn train(&self, stage: &Stage, options: &CompileOptions) -> Outcome {
        let program = self
            .compile(stage, options)
            .unwrap_or_else(|problem| panic!("{}: {problem}", stage.name));
        self.train_with(stage, program, options.compile_target.target)
    }

    /// As [`Tiny::train`], with a program that is there already.
    pub fn train_with(&self, stage: &Stage, program: Program, target: Target) -> Outcome {
        let Target::Cpu { threads } = target else {
            panic!("trainings run on the processor");
        };
        let (executor, mut session) = self.load(program, threads);
        let mut losses = Vec::new();
        for step in 0..STEPS {
            self.write_inputs(&mut *session, stage, step);
            session.run().expect("a step runs");
            let loss = session.read_f32("loss").expect("a step has a loss")[0];
            assert!(loss.is_finite(), "{}: the loss is {loss}", stage.name);
            losses.push(loss.to_bits());
        }
        let mut parameters = vec![0.0; self.layout.elements()];
        executor.read_parameters(0, &mut parameters).unwrap();
        assert!(
            parameters != initialise(&self.layout, 1),
            "{}: nothing was trained",
            stage.name
        );
        let state = session.program().optimizer_state().iter();
        let moments = state.flat_map(|state| session.read_arena(state.arena).unwrap());
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
        Outcome {
            losses,
            parameters: bits(parameters),
            moments: bits(moments.collect()),
        }
    }
}

/// Segments and positions of samples that share the sequences evenly, the last token of each sequence padding.
fn packed(stage: &Stage) -> (Vec<i32>, Vec<i32>) {
    let each = stage.max_tokens / stage.samples_per_sequence;
    let places = (0..BATCH / stage.samples_per_sequence).flat_map(|_| 0..stage.max_tokens);
    places
        .map(|place| {
            if place + 1 == stage.max_tokens {
                (-1, 0)
            } else {
                ((place / each) as i32, (place % each) as i32)
            }
        })
        .unzip()
}

/// Numbers of `count` rows of which that at `first` and the next are equal.
fn equal(count: usize, first: usize) -> Vec<i32> {
    let row = |row| i32::from(row == first || row == first + 1);
    (0..count).map(row).collect()
}

/// Ids that stand for words, not for anything special.
fn words(count: usize, random: &mut Random) -> Vec<i32> {
    let ids = random.integers(count, 500);
    ids.into_iter().map(|id| id + 8).collect()
}
