//! Generation with a cache of keys and values gives what generation without one gives; draws follow the probabilities.

use std::sync::Arc;

use keel::data::chat::ChatTokenizer;
use keel::data::tokenizer::{ASSISTANT, BEGIN, IMAGE, USER};
use keel::eval::{Answerer, EvalContext, Generator, Sampling, draw_token};
use keel::executor::simt::Options;
use keel::executor::{CpuExecutor, Executor, ReferenceExecutor, SimtExecutor};
use keel::model::{ModelConfig, declare, initialise};
use keel::tape::ParameterLayout;
use keel::tensor::DType;
use keel::train::Recipe;

use crate::harness::Random;

/// A small untrained model with parameters large enough that answers differ.
fn model(sets: &[&str]) -> (Recipe, Arc<ParameterLayout>, Vec<f32>) {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    let recipe = Recipe::load("tiny", &sets).unwrap();
    let layout = declare(&recipe.model, recipe.contrastive_loss).unwrap();
    let mut values = initialise(&layout, 5);
    for value in &mut values {
        *value *= 3.0;
    }
    (recipe, layout, values)
}

fn context_of<'a>(
    config: &'a ModelConfig,
    layout: &'a Arc<ParameterLayout>,
    executor: &'a dyn Executor,
) -> EvalContext<'a> {
    EvalContext {
        config,
        layout,
        executor,
        tokenizer: ChatTokenizer::embedded(),
        pixels: keel::data::pixels::Pixels::default(),
        head: None,
    }
}

fn prompts(image_tokens: usize, questions: &[&[i32]]) -> Vec<Vec<i32>> {
    let prompt = |question: &&[i32]| {
        let mut ids = vec![i32::from(BEGIN)];
        ids.extend(std::iter::repeat_n(i32::from(IMAGE), image_tokens));
        ids.push(i32::from(USER));
        ids.extend_from_slice(question);
        ids.push(i32::from(ASSISTANT));
        ids
    };
    questions.iter().map(prompt).collect()
}

fn images(count: usize, side: usize) -> Vec<f32> {
    let mut random = Random::new(7);
    random.normals(count * 3 * side * side, 0.5)
}

#[test]
fn cached_generation_equals_uncached_generation() {
    // Grouped heads with biases, and as many heads as key heads with norms on queries and keys.
    for sets in [
        &[][..],
        &[
            "model.language.key_value_heads=2",
            "model.language.qk_norm=true",
            "model.language.qkv_bias=false",
        ],
    ] {
        let (recipe, layout, values) = model(sets);
        let config = &recipe.model;
        let side = config.vision.image_size;
        let tokens = 20;
        let prompts = prompts(config.image_tokens(), &[&[300], &[70, 200, 411], &[99, 98]]);
        let images = images(3, side);
        let reference = ReferenceExecutor::new(layout.elements());
        let cpu = CpuExecutor::new(layout.elements(), 2).unwrap();
        let executors: [&dyn Executor; 2] = [&reference, &cpu];
        for executor in executors {
            executor.write_parameters(0, &values).unwrap();
            let context = context_of(config, &layout, executor);
            let shape = |batch| context.batch_shape(batch, tokens, 8);
            // One row is empty: it must not disturb the others.
            let mut cached = Generator::new(context, shape(4), Sampling::Greedy).unwrap();
            let mut uncached = Answerer::new(context, shape(1)).unwrap();
            let answers = cached.generate(&images, &prompts).unwrap();
            for (row, prompt) in prompts.iter().enumerate() {
                let image = &images[row * 3 * side * side..][..3 * side * side];
                let wanted = uncached.generate_uncached(image, prompt).unwrap();
                assert_eq!(answers[row], wanted, "{}, row {row}", executor.describe());
                assert!(prompt.len() + wanted.len() <= tokens);
            }
            // They fill their rows, and are not all the same.
            assert!(
                answers.iter().any(|answer| answer.len() >= 8),
                "{answers:?}"
            );
            assert_ne!(answers[0][..3], answers[1][..3], "{answers:?}");
            // A session that has been used gives the same again, in another order of rows.
            let turned: Vec<Vec<i32>> = prompts.iter().rev().cloned().collect();
            let one = 3 * side * side;
            let of_turned: Vec<f32> = images.chunks(one).rev().flatten().copied().collect();
            let mut again = cached.generate(&of_turned, &turned).unwrap();
            again.reverse();
            assert_eq!(again, answers);
        }
    }
}

#[test]
fn cached_generation_equals_uncached_generation_on_the_emulated_kernels() {
    let sets = [
        "model.language.depth=1",
        "model.vision.depth=1",
        "model.vision.image_size=16",
    ];
    let (recipe, layout, values) = model(&sets);
    let config = &recipe.model;
    for precision in [DType::F32, DType::Bf16] {
        // Without a C++ compiler there is no emulator.
        let Ok(simt) = SimtExecutor::new(layout.elements(), Options::default()) else {
            return;
        };
        let simt = simt.in_precision(precision);
        simt.write_parameters(0, &values).unwrap();
        let prompts = prompts(config.image_tokens(), &[&[300, 77]]);
        let images = images(1, config.vision.image_size);
        let context = context_of(config, &layout, &simt);
        let shape = context.batch_shape(1, 9, 8);
        let mut cached = Generator::new(context, shape, Sampling::Greedy).unwrap();
        let mut uncached = Answerer::new(context, shape).unwrap();
        let answers = cached.generate(&images, &prompts).unwrap();
        assert_eq!(
            answers[0],
            uncached.generate_uncached(&images, &prompts[0]).unwrap()
        );
        assert!(answers[0].len() >= 2, "{answers:?}");
    }
}

#[test]
fn sampled_generation_is_drawn_by_its_seed_and_almost_greedy_when_cold() {
    let (recipe, layout, values) = model(&[]);
    let config = &recipe.model;
    let cpu = CpuExecutor::new(layout.elements(), 2).unwrap();
    cpu.write_parameters(0, &values).unwrap();
    let prompts = prompts(config.image_tokens(), &[&[300], &[300]]);
    let images = images(1, config.vision.image_size).repeat(2);
    let context = context_of(config, &layout, &cpu);
    let shape = context.batch_shape(2, 20, 8);
    let generate = |sampling| {
        let mut generator = Generator::new(context, shape, sampling).unwrap();
        generator.generate(&images, &prompts).unwrap()
    };
    let random = |temperature, seed| Sampling::Random {
        temperature,
        top_p: 1.0,
        seed,
    };
    assert_eq!(generate(random(1e-6, 1)), generate(Sampling::Greedy));
    let warm = generate(random(1.0, 1));
    assert_eq!(warm, generate(random(1.0, 1)));
    assert_ne!(warm, generate(random(1.0, 2)));
    assert_ne!(warm[0], warm[1], "rows draw from streams of their own");
}

#[test]
fn draws_follow_the_probabilities_and_stay_among_the_likeliest() {
    let logits: Vec<f64> = [0.1f64, 0.6, 0.3].iter().map(|p| p.ln()).collect();
    let token = |draw: f64| draw_token(&logits, 1.0, 1.0, draw);
    let drawn: Vec<usize> = (0..10)
        .map(|i| token((f64::from(i) + 0.5) / 10.0))
        .collect();
    assert_eq!(drawn, [1, 1, 1, 1, 1, 1, 2, 2, 2, 0]);
    // Half the temperature squares the odds: 36 to 9 to 1.
    assert_eq!(draw_token(&logits, 0.5, 1.0, 35.9 / 46.0), 1);
    assert_eq!(draw_token(&logits, 0.5, 1.0, 36.1 / 46.0), 2);
    // 0.6 reaches 0.5; 0.6 and 0.3 reach 0.8 and share what is drawn.
    assert_eq!(draw_token(&logits, 1.0, 0.5, 0.999), 1);
    assert_eq!(draw_token(&logits, 1.0, 0.8, 0.66), 1);
    assert_eq!(draw_token(&logits, 1.0, 0.8, 0.67), 2);
    assert_eq!(draw_token(&logits, 1.0, 0.8, 0.999), 2);
    assert_eq!(draw_token(&[1.0, 1.0], 1e-9, 0.1, 0.9), 0);
}

#[test]
fn prompts_that_do_not_fit_are_refused() {
    let (recipe, layout, _) = model(&[]);
    let cpu = CpuExecutor::new(layout.elements(), 1).unwrap();
    let context = context_of(&recipe.model, &layout, &cpu);
    let shape = context.batch_shape(1, 12, 8);
    let mut generator = Generator::new(context, shape, Sampling::Greedy).unwrap();
    let side = recipe.model.vision.image_size;
    for prompts in [
        vec![],
        vec![vec![1; 12]],
        vec![vec![1], vec![1]],
        vec![vec![]],
    ] {
        let problem = generator.generate(&images(1, side), &prompts).unwrap_err();
        assert!(
            problem.to_string().contains("prompts: expected"),
            "{problem}"
        );
    }
}
