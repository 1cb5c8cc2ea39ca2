//! The two lead steps, and a GPU's step, loaded with made-up inputs.

use std::sync::Arc;

use keel::data::batch::IGNORED;
use keel::data::chat::ChatTokenizer;
use keel::data::tokenizer::IMAGE;
use keel::executor::{Executor, SelectedDevice, Session};
use keel::model::{declare, initialise};
use keel::tensor::DType;
use keel::train::{Recipe, Stage, compile_step, optimizer_scalars};

/// The steps' names, as in bench/peers/steps.py, and the numbers they train.
pub const STEPS: [(&str, usize); 2] = [("contrastive", 4_652_353), ("stage_three", 7_839_168)];

/// The step that GPUs are timed with, and the numbers it trains: those of OpenAI's CLIP ViT-L/14.
pub const GPU_STEP: (&str, usize) = ("vit_large", 427_616_513);

/// One loaded step. The executor holds the parameters that the session works on.
pub struct Lead {
    pub executor: Box<dyn Executor>,
    pub session: Box<dyn Session>,
    pub stage: Stage,
    /// Bytes that the plan says a run takes.
    pub planned_bytes: u64,
}

/// Loads a step on the chosen device.
pub fn load(name: &str, selected: &SelectedDevice) -> Lead {
    let (path, text) = if name == GPU_STEP.0 {
        ("bench/vit_large.toml", include_str!("vit_large.toml"))
    } else {
        ("bench/lead.toml", include_str!("lead.toml"))
    };
    let recipe = Recipe::parse(path, text, &[]).expect("the benchmark's recipe is valid");
    let stage = recipe.stage(name).expect("one of STEPS, or GPU_STEP");
    let layout = declare(&recipe.model, recipe.contrastive_loss).expect("valid sizes");
    let trained = layout.count(|module| stage.trains.iter().any(|name| name == module));
    let (_, expected) = STEPS
        .into_iter()
        .chain([GPU_STEP])
        .find(|(step, _)| *step == name)
        .expect("one of STEPS, or GPU_STEP");
    assert_eq!(trained, expected, "{name} trains what the peer trains");
    let executor = selected
        .open(layout.elements())
        .unwrap_or_else(|problem| panic!("{problem}"));
    executor
        .write_parameters(0, &initialise(&layout, recipe.seed))
        .unwrap();
    let program = compile_step(
        &recipe,
        stage,
        &layout,
        &recipe.batch_shape(stage, ChatTokenizer::embedded().image()),
        selected.compile_target(),
        None,
    )
    .expect("the step can be planned");
    let report = keel::program::MemoryReport::new(&program, &layout);
    let mut session = executor
        .load(Arc::new(program))
        .unwrap_or_else(|problem| panic!("{problem}"));
    fill(session.as_mut(), stage.max_tokens);
    optimizer_scalars(stage, [0, 1], 1.0)
        .write(session.as_mut())
        .expect("every step has the inputs");
    Lead {
        executor,
        session,
        stage: stage.clone(),
        planned_bytes: report.total(),
    }
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
