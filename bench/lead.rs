//! The two lead steps, loaded on the processor with made-up inputs.

use std::sync::Arc;

use keel::data::batch::IGNORED;
use keel::data::tokenizer::IMAGE;
use keel::executor::{CpuExecutor, Executor, Session};
use keel::model::{declare, initialise};
use keel::tape::Target;
use keel::tensor::DType;
use keel::train::{Recipe, compile_step, hyper, step_shape};

/// The steps' names, as in bench/peers/steps.py, and the numbers they train.
pub const STEPS: [(&str, usize); 2] = [("contrastive", 4_652_353), ("stage_three", 7_839_168)];

/// One loaded step.
pub struct Lead {
    pub executor: CpuExecutor,
    pub session: Box<dyn Session>,
    /// Bytes that the plan says a run takes.
    pub planned_bytes: u64,
}

/// Loads a step on `threads` threads.
pub fn load(name: &str, threads: usize) -> Lead {
    let recipe = Recipe::parse("bench/lead.toml", include_str!("lead.toml"), &[])
        .expect("the benchmark's recipe is valid");
    let stage = recipe.stage(name).expect("one of STEPS");
    let layout = declare(&recipe.model, recipe.contrastive_form.into()).expect("valid sizes");
    let trained = layout.count(|module| stage.trains.iter().any(|name| name == module));
    let (_, expected) = STEPS
        .into_iter()
        .find(|(step, _)| *step == name)
        .expect("one of STEPS");
    assert_eq!(trained, expected, "{name} trains what the peer trains");
    let executor = CpuExecutor::new(layout.elements(), threads).expect("memory and threads");
    executor.write_parameters(0, &initialise(&layout, recipe.seed));
    let target = Target::Cpu { threads };
    let program = compile_step(
        &recipe,
        stage,
        &layout,
        &step_shape(stage, None),
        target,
        None,
    )
    .expect("the step can be planned");
    let report = keel::program::MemoryReport::new(&program, &layout);
    let mut session = executor
        .load(Arc::new(program))
        .expect("the step fits in memory");
    fill(session.as_mut(), stage.tokens);
    let hyper = hyper(stage, 0, 1);
    session
        .write_f32("hyper", &hyper)
        .expect("every step has the input");
    Lead {
        executor,
        session,
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
