//! Several samples to a sequence: places that do not overlap, and the loss and gradients of samples apart.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use keel::data::assemble::assemble;
use keel::data::batch::{Batch, BatchShape, TokenWeighting};
use keel::data::chat::ChatTokenizer;
use keel::data::packing::Packing;
use keel::data::pixels::Pixels;
use keel::data::sample::Sample;
use keel::executor::{CpuExecutor, Executor, ReferenceExecutor};
use keel::model::initialise;
use keel::program::{CompileOptions, Program};
use keel::tape::Target;
use keel::tensor::DType;
use keel::train::{Stage, batch_inputs, optimizer_scalars, record_step};
use proptest::prelude::*;

use crate::program::Tiny;
use crate::tasks_mixture::{all_tasks, mixture};

proptest! {
    #[test]
    fn packed_samples_overlap_nowhere_and_are_left_out_only_without_room(
        lengths in prop::collection::vec(1usize..60, 1..80), rows in 1usize..12, seed: u64
    ) {
        let tokens = 64;
        let seen: Vec<bool> = (0..lengths.len()).map(|i| seed >> (i % 64) & 1 == 1).collect();
        let packing = Packing::new(&lengths, &seen, rows, tokens);
        let mut once: Vec<usize> = packing.samples.iter().map(|p| p.sample).collect();
        once.sort_unstable();
        prop_assert_eq!(once, (0..lengths.len()).collect::<Vec<_>>());
        let mut taken = vec![vec![false; tokens]; rows];
        let mut segments: HashMap<usize, Vec<(usize, usize)>> = HashMap::new();
        for packed in &packing.samples {
            let Some(room) = packed.place else { continue };
            let range = room.start..room.start + lengths[packed.sample];
            for used in &mut taken[room.row][range] {
                prop_assert!(!*used);
                *used = true;
            }
            segments.entry(room.row).or_default().push((room.segment, room.start));
        }
        for found in segments.values_mut() {
            found.sort_unstable();
            prop_assert!(found.iter().enumerate().all(|(index, (segment, _))| index == *segment));
            prop_assert!(found.windows(2).all(|pair| pair[0].1 < pair[1].1));
        }
        let room = taken.iter().map(|row| row.iter().filter(|used| !**used).count()).max().unwrap();
        let order: Vec<(u8, usize, usize)> = packing.samples.iter().map(|packed| match packed.place {
            Some(at) if seen[packed.sample] => (0, at.row, at.segment),
            None if seen[packed.sample] => (1, 0, 0),
            Some(at) => (2, at.row, at.segment),
            None => (3, 0, 0),
        }).collect();
        prop_assert!(
            order.is_sorted(),
            "images are spliced in the order of their places, and come before text: {:?}", order
        );
        for packed in packing.samples.iter().filter(|packed| packed.place.is_none()) {
            prop_assert!(lengths[packed.sample] > room);
        }
    }
}

/// Samples of the tiny model's stage III: scenes with images and facts without.
const SAMPLES: usize = 8;

/// Of an image of the tiny model: 32 pixels in patches of 8, two by two in one.
const IMAGE_TOKENS: usize = 4;

fn shape(pack: usize, tokens: usize) -> BatchShape {
    BatchShape {
        tiling: keel::data::tiles::Tiling::NONE,
        batch: SAMPLES,
        pack,
        image_size: 32,
        image_tokens: IMAGE_TOKENS,
        tokens,
        caption_tokens: 32,
        image_id: ChatTokenizer::embedded().image(),
        pixels: Pixels::default(),
    }
}

fn samples() -> Vec<Sample> {
    let mixture = mixture(&all_tasks(), shape(1, 80));
    let (samples, _) = mixture.samples(3).unwrap();
    let seen = samples.iter().filter(|s| s.view.is_some()).count();
    assert!(
        seen > 2 && seen < SAMPLES,
        "{seen} of {SAMPLES} with images"
    );
    samples
}

fn batch(samples: &[Sample], pack: usize, tokens: usize) -> Batch {
    let tokenizer = ChatTokenizer::embedded();
    let shape = shape(pack, tokens);
    assemble(samples, &shape, TokenWeighting::Square, tokenizer).unwrap()
}

/// Loss and gradients of one step of `stage` on `batch`.
pub fn losses_and_gradients(
    tiny: &Tiny,
    stage: &Stage,
    batch: &Batch,
    (executor, target): (&dyn Executor, Target),
) -> BTreeMap<String, Vec<f64>> {
    executor
        .write_parameters(0, &initialise(&tiny.layout, 1))
        .unwrap();
    let shape = tiny
        .recipe
        .batch_shape(stage, ChatTokenizer::embedded().image());
    let tape = record_step(&tiny.recipe, stage, &tiny.layout, &shape, DType::F32).unwrap();
    let program = Program::compile(tape, &CompileOptions::new(target)).unwrap();
    let mut session = executor.load(Arc::new(program)).unwrap();
    let inputs = batch_inputs(session.program()).unwrap();
    inputs.write(&mut *session, batch).unwrap();
    let groups = stage.parameter_groups(&tiny.layout).unwrap();
    let scalars = optimizer_scalars(stage, &groups, [0, 10], 1.0);
    scalars.write(&mut *session).unwrap();
    session.run().unwrap();
    let names = session.program().output_names().map(str::to_owned);
    let names: Vec<String> = names
        .filter(|name| name.starts_with("loss") || name.starts_with("gradient."))
        .collect();
    names
        .into_iter()
        .map(|name| {
            let values = session.read_f64(&name).unwrap();
            (name, values)
        })
        .collect()
}

/// The stage with its samples apart in sequences of 80 tokens, and packed into two of 320.
fn stages(tiny: &Tiny) -> [Stage; 2] {
    let apart = tiny.recipe.stage("world-knowledge").unwrap().clone();
    assert_eq!((apart.batch_size, apart.max_tokens), (SAMPLES, 80));
    let packed = Stage {
        samples_per_sequence: 4,
        max_tokens: 320,
        ..apart.clone()
    };
    [apart, packed]
}

#[test]
fn samples_that_share_a_sequence_give_the_loss_and_gradients_of_samples_apart() {
    let tiny = Tiny::new();
    let samples = samples();
    let [apart, packed] = stages(&tiny);
    let batches = [batch(&samples, 1, 80), batch(&samples, 4, 320)];
    assert_eq!(batches[1].skipped.without_room, 0);
    assert_eq!(batches[1].tokens.len(), 2 * 320);
    let elements = tiny.layout.elements();
    let reference = ReferenceExecutor::new(elements);
    let cpu = CpuExecutor::new(elements, 2).unwrap();
    let executors: [(&dyn Executor, Target, f64); 2] = [
        // f64 sums in another order; f32 sums of some thousand terms in another order.
        (&reference, Target::Reference, 1e-11),
        (&cpu, Target::Cpu { threads: 2 }, 1e-4),
    ];
    for (executor, target, allowed) in executors {
        let [apart, packed] = [(&apart, &batches[0]), (&packed, &batches[1])]
            .map(|(stage, batch)| losses_and_gradients(&tiny, stage, batch, (executor, target)));
        assert_eq!(apart.len(), packed.len());
        for (name, apart) in &apart {
            let scale = apart.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            for (apart, packed) in apart.iter().zip(&packed[name]) {
                assert!(
                    (apart - packed).abs() <= allowed * scale,
                    "{name}: {apart} and {packed}"
                );
            }
        }
    }
}

#[test]
fn a_sample_without_room_is_counted_and_keeps_its_caption() {
    let samples = samples();
    let batch = batch(&samples, 8, 80);
    let without = batch.skipped.without_room as usize;
    assert!(without > 0 && without < SAMPLES, "{without}");
    assert_eq!(batch.samples.len(), SAMPLES);
    assert_eq!(batch.tokens.len(), 80);
    let ends = batch.caption_weights.chunks(32);
    let captions = ends.filter(|row| row.iter().any(|w| *w > 0.0)).count();
    let seen = samples.iter().filter(|s| !s.caption.is_empty()).count();
    assert_eq!(captions, seen);
}
