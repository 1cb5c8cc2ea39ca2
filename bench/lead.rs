//! The lead steps, a GPU's step, and the features of a tower, loaded with made-up inputs.

use std::sync::Arc;

use keel::data::batch::IGNORED;
use keel::data::chat::ChatTokenizer;
use keel::data::tokenizer::IMAGE;
use keel::error::Result;
use keel::executor::{Executor, SelectedDevice, Session};
use keel::model::{ModelInput, declare, initialise, vision_tower};
use keel::program::{CompileOptions, Program};
use keel::tape::{CompileTarget, ParameterLayout, Tape};
use keel::tensor::{DType, TensorType};
use keel::train::{Recipe, Stage, compile_step, optimizer_scalars};

/// The steps' names, as in bench/peers/steps.py, and the numbers they train.
pub const STEPS: [(&str, usize); 2] = [("contrastive", 4_652_353), ("stage_three", 7_839_168)];

/// The step that GPUs are timed with, and the numbers it trains: those of OpenAI's CLIP ViT-L/14.
pub const GPU_STEP: (&str, usize) = ("vit_large", 427_616_513);

/// The step that processors are timed with as well, and the numbers it trains: that of ViT-S/16.
pub const PUBLISHED_STEP: (&str, usize) = ("vit_small", 23_622_913);

/// The forward pass of the tower of [`PUBLISHED_STEP`] over its batch: what using a tower takes.
pub const FEATURES: &str = "vit_small_features";

/// [`PUBLISHED_STEP`] with its activations held to [`BUDGET`], the rest recomputed in the backward pass.
pub const BUDGETED: &str = "vit_small_budget";

/// What holds a step's peak under half of PyTorch's in f32, bytes: 2,177 MiB there, 360 of parameters, gradients and moments here.
const BUDGET: u64 = 640 << 20;

/// What a step is called in bench/peers/steps.py, which has no budget.
pub fn peer_step(name: &str) -> &str {
    match name {
        BUDGETED => PUBLISHED_STEP.0,
        name => name,
    }
}

/// One loaded step. The executor holds the parameters that the session works on.
pub struct Lead {
    pub executor: Box<dyn Executor>,
    pub session: Box<dyn Session>,
    pub stage: Stage,
    /// Bytes that the plan says a run takes.
    pub planned_bytes: u64,
}

impl Lead {
    /// Runs it once, to its end.
    pub fn run(&mut self) {
        self.session.run().expect("a step runs");
        // On a GPU the step is done when something of it has been read.
        let output = match self.session.program().output("gradient_norm") {
            Ok(_) => "gradient_norm",
            Err(_) => "features",
        };
        self.session.read_f32(output).expect("one or the other");
    }
}

/// Loads a step on the chosen device.
pub fn load(name: &str, selected: &SelectedDevice) -> Lead {
    let is_features = name == FEATURES;
    let budget = (name == BUDGETED).then_some(BUDGET);
    let name = match name {
        FEATURES | BUDGETED => PUBLISHED_STEP.0,
        name => name,
    };
    let (path, text) = if name == GPU_STEP.0 {
        ("bench/vit_large.toml", include_str!("vit_large.toml"))
    } else if name == PUBLISHED_STEP.0 {
        ("bench/vit_small.toml", include_str!("vit_small.toml"))
    } else {
        ("bench/lead.toml", include_str!("lead.toml"))
    };
    let recipe = Recipe::parse(path, text, &[]).expect("the benchmark's recipe is valid");
    let stage = recipe.stage(name).expect("one of the steps above");
    let layout = declare(&recipe.model, recipe.contrastive_loss).expect("valid sizes");
    let trained = layout.count(|module| stage.trains.iter().any(|name| name == module));
    let (_, expected) = STEPS
        .into_iter()
        .chain([GPU_STEP, PUBLISHED_STEP])
        .find(|(step, _)| *step == name)
        .expect("one of the steps above");
    assert_eq!(trained, expected, "{name} trains what the peer trains");
    let executor = selected
        .open(layout.elements())
        .unwrap_or_else(|problem| panic!("{problem}"));
    executor
        .write_parameters(0, &initialise(&layout, recipe.seed))
        .unwrap();
    let shape = recipe.batch_shape(stage, ChatTokenizer::embedded().image());
    let target = selected.compile_target();
    let program = match is_features {
        true => features(&recipe, &layout, shape.batch, target),
        false => compile_step(&recipe, stage, &layout, &shape, target, budget),
    };
    let program = program.expect("the step can be planned");
    let report = keel::program::MemoryReport::new(&program, &layout);
    let mut session = executor
        .load(Arc::new(program))
        .unwrap_or_else(|problem| panic!("{problem}"));
    fill(session.as_mut(), stage.max_tokens);
    if !is_features {
        let groups = stage.parameter_groups(&layout);
        let groups = groups.expect("a stage trains something");
        optimizer_scalars(stage, &groups, [0, 1], 1.0)
            .write(session.as_mut())
            .expect("every step has the inputs");
    }
    Lead {
        executor,
        session,
        stage: stage.clone(),
        planned_bytes: report.total(),
    }
}

/// The tower's features of a batch of images.
fn features(
    recipe: &Recipe,
    layout: &Arc<ParameterLayout>,
    batch: usize,
    target: CompileTarget,
) -> Result<Program> {
    let side = recipe.model.vision.image_size;
    let mut tape = Tape::new(layout.clone(), |_| false).in_precision(target.precision);
    let images = TensorType::f32([batch, 3, side, side]);
    let images = tape.input(ModelInput::Images, images);
    let features = vision_tower(&mut tape, &recipe.model.vision, images)?;
    tape.output(features, "features");
    Program::compile(tape, &CompileOptions::new(target))
}

/// Numbers that look like data: images in −1..1, image tokens first, every text token supervised.
fn fill(session: &mut dyn Session, tokens: usize) {
    let names: Vec<String> = session.program().input_names().map(str::to_owned).collect();
    for name in names {
        let program = session.program();
        let ty = program.ty(program.input(&name).expect("listed"));
        let count = ty.numel();
        let scattered = |index: usize| (index * 2_654_435_761 % 4_294_967_296) >> 8;
        if ty.dtype == DType::I32 {
            let value = |index: usize| -> i32 {
                let place = index % tokens;
                match name.as_str() {
                    "tokens" if place < 16 => i32::from(IMAGE),
                    "targets" if !(15..63).contains(&place) => IGNORED,
                    "caption_end" => 31,
                    _ => (6 + scattered(index) % 506) as i32,
                }
            };
            let values: Vec<i32> = (0..count).map(value).collect();
            session
                .write_i32(&name, &values)
                .expect("of the input's type");
        } else {
            let value = |index: usize| match name.as_str() {
                "images" => scattered(index) as f32 / 8_388_608.0 - 1.0,
                _ => 1.0,
            };
            let values: Vec<f32> = (0..count).map(value).collect();
            session
                .write_f32(&name, &values)
                .expect("of the input's type");
        }
    }
}
