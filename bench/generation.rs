//! Tokens a second of greedy generation, with and without the cache of keys and values, on the model of the default
//! recipe with untrained parameters: `cargo bench --bench generation`.

use std::time::Instant;

use keel::data::chat::{ChatTokenizer, Conversation};
use keel::eval::{Answerer, EvalContext, Generator, Sampling};
use keel::executor::{CpuExecutor, Executor};
use keel::model::{declare, initialise};
use keel::train::Recipe;

/// Rounds of which the fastest counts.
const ROUNDS: usize = 5;

fn main() {
    let recipe = Recipe::load("emoji", &[]).expect("the built-in recipe");
    let config = &recipe.model;
    let layout = declare(config, recipe.contrastive_loss).expect("the built-in model");
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let cpu = CpuExecutor::new(layout.elements(), threads).expect("memory and threads");
    cpu.write_parameters(0, &initialise(&layout, 1)).unwrap();
    let tokenizer = ChatTokenizer::embedded();
    let prompt = tokenizer.prompt(&Conversation {
        image_tokens: config.image_tokens(),
        is_marked: false,
        system: None,
        context: "",
        unsupervised: &[],
        turns: vec![["what is this?", ""]],
    });
    let images = vec![0.1; 3 * config.vision.image_size * config.vision.image_size];
    println!("{}", cpu.describe());
    for tokens in [80, 160, 320] {
        let context = EvalContext {
            config,
            layout: &layout,
            executor: &cpu,
            tokenizer,
            pixels: keel::data::pixels::Pixels::default(),
            head: None,
        };
        let shape = context.batch_shape(1, tokens, 8);
        let mut cached = Generator::new(context, shape, Sampling::Greedy).expect("it loads");
        let mut uncached = Answerer::new(context, shape).expect("it loads");
        let prompts = [prompt.clone()];
        let (answer, with) = fastest(|| {
            cached
                .generate(&images, &prompts)
                .expect("it runs")
                .remove(0)
        });
        let (again, without) = fastest(|| {
            uncached
                .generate_uncached(&images, &prompt)
                .expect("it runs")
        });
        assert_eq!(answer, again);
        println!(
            "{} tokens: {:.0} a second with the cache, {:.0} without: {:.1} times as fast",
            answer.len(),
            answer.len() as f64 / with,
            answer.len() as f64 / without,
            without / with
        );
    }
}

fn fastest<T>(mut run: impl FnMut() -> T) -> (T, f64) {
    let mut best = f64::INFINITY;
    let mut last = None;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        last = Some(run());
        best = best.min(start.elapsed().as_secs_f64());
    }
    (last.expect("there is a round"), best)
}
