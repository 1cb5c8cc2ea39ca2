//! The update: three steps against PyTorch, a bad step that must change nothing, clamps, the norm, bf16 copies.

use std::sync::Arc;

use keel::executor::simt::Options;
use keel::executor::{CpuExecutor, Executor, ReferenceExecutor, Session, SimtExecutor};
use keel::ops::{
    ADAMW_STATE, OPTIMIZER_SCALARS, Optimizer, OptimizerInput, ParameterGroup, ParameterGroups,
    UpdateOptions, record_update,
};
use keel::program::{CompileOptions, Program};
use keel::tape::{Arena, Init, ParameterLayout, ParameterSpec, Tape, Target};
use keel::tensor::{DType, TensorType};

use crate::harness::{Golden, gpu, ptx};
use keel_ptx::PtxExecutor;

/// A program whose gradients are its inputs: parameters `a.decayed` [n] and `a.plain` [m].
struct Update {
    layout: Arc<ParameterLayout>,
    executor: Box<dyn Executor>,
    session: Box<dyn Session>,
    precision: DType,
}

/// The slots of the optimiser's state.
const FIRST: &str = ADAMW_STATE[0];
const SECOND: &str = ADAMW_STATE[1];

const NAMES: [&str; 2] = ["a.decayed", "a.plain"];

/// The program on every executor present, in both precisions; the emulator under every schedule, and the GPU where there is
/// one.
fn updates(sizes: [usize; 2], options: &UpdateOptions) -> Vec<Update> {
    updates_of(sizes, &ParameterGroups::decaying(0.1), options, |tape| tape)
}

/// As [`updates`], of these groups, on tapes that `of` has changed.
fn updates_of(
    sizes: [usize; 2],
    groups: &ParameterGroups,
    options: &UpdateOptions,
    of: impl Fn(Tape) -> Tape,
) -> Vec<Update> {
    let specs = [0, 1].map(|index| ParameterSpec {
        name: NAMES[index].into(),
        shape: [sizes[index]].into(),
        init: Init::Constant(0.0),
        decays: index == 0,
    });
    let layout = Arc::new(ParameterLayout::new(&specs));
    let elements = layout.elements();
    let mut executors: Vec<(Box<dyn Executor>, Target, DType)> = Vec::new();
    for precision in [DType::F32, DType::Bf16] {
        executors.push((
            Box::new(CpuExecutor::new(elements, 2).unwrap()),
            Target::Cpu { threads: 2 },
            precision,
        ));
        executors.push((
            Box::new(ReferenceExecutor::new(elements)),
            Target::Reference,
            precision,
        ));
        for options in Options::proof(5) {
            if let Ok(executor) = SimtExecutor::isolating(elements, options) {
                executors.push((Box::new(executor), Target::Cuda, precision));
            }
        }
        if let Some(gpu) = gpu() {
            let executor = gpu.executor(elements);
            executors.push((Box::new(executor), Target::Cuda, precision));
        }
        if let Some(seen) = ptx::seen() {
            let record = seen.record.clone();
            let executor = PtxExecutor::new(elements, keel_ptx::Options::default(), record);
            executors.push((Box::new(executor.unwrap()), Target::Cuda, precision));
        }
    }
    executors
        .into_iter()
        .map(|(executor, target, precision)| {
            let tape = Tape::new(layout.clone(), |_| true).in_precision(precision);
            let mut tape = of(tape);
            let mut seeds = Vec::new();
            for (index, spec) in specs.iter().enumerate() {
                let parameter = tape.parameter(spec.clone()).unwrap();
                let ty = TensorType::f32([sizes[index]]);
                let gradient = tape.input(format!("g{index}"), ty);
                seeds.push((parameter, gradient));
            }
            tape.backward_from(&seeds).unwrap();
            record_update(&mut tape, &layout, groups, options).unwrap();
            let options = CompileOptions {
                share_memory: target != Target::Cuda,
                ..CompileOptions::new(target)
            };
            let program = Program::compile(tape, &options).unwrap();
            if let Some(gpu) = gpu()
                && target == Target::Cuda
            {
                gpu.note("update", &program);
            }
            let session = executor.load(Arc::new(program)).unwrap();
            Update {
                layout: layout.clone(),
                executor,
                session,
                precision,
            }
        })
        .collect()
}

impl Update {
    fn parameter(&self, index: usize) -> Vec<f64> {
        let entry = self.layout.get(NAMES[index]).unwrap();
        let mut values = vec![0.0f32; entry.spec.shape.numel()];
        self.executor
            .read_parameters(entry.offset, &mut values)
            .unwrap();
        values.into_iter().map(f64::from).collect()
    }

    fn write(&self, index: usize, values: &[f32]) {
        self.executor
            .write_parameters(self.layout.get(NAMES[index]).unwrap().offset, values)
            .unwrap();
    }

    /// The bf16 copies of a parameter, where the program keeps them.
    fn bf16_copy(&self, index: usize) -> Option<Vec<f32>> {
        let entry = self.layout.get(NAMES[index]).unwrap();
        let all = (self.precision == DType::Bf16)
            .then(|| self.session.read_arena(Arena::ParametersBf16).unwrap())?;
        Some(all[entry.offset..][..entry.spec.shape.numel()].to_vec())
    }

    /// One step with these numbers and gradients.
    fn step(&mut self, scalars: &Scalars, gradients: [&[f32]; 2]) {
        let Scalars { shared, groups } = scalars;
        for (input, values) in [
            (OptimizerInput::Scalars, &shared[..]),
            (OptimizerInput::GroupScalars, &groups[..]),
        ] {
            self.session.write_f32(input.name(), values).unwrap();
        }
        self.write_gradients(gradients);
        self.session.run().unwrap();
    }

    /// Adds these gradients to those of the next step.
    fn accumulate(&mut self, gradients: [&[f32]; 2]) {
        self.write_gradients(gradients);
        self.session.run_gradients().unwrap();
    }

    fn write_gradients(&mut self, gradients: [&[f32]; 2]) {
        for (index, gradient) in gradients.iter().enumerate() {
            let name = format!("g{index}");
            self.session.write_f32(&name, gradient).unwrap();
        }
    }

    /// The arena of one of the optimiser's slots.
    fn state(&self, slot: &str) -> Arena {
        let state = self.session.program().optimizer_state();
        let found = state.iter().find(|state| state.name == slot);
        found.expect("AdamW has the slot").arena
    }

    /// What the optimiser keeps of a parameter in one of its slots.
    fn moment(&self, index: usize, slot: &str) -> Vec<f64> {
        let arena = self.state(slot);
        let entries = self.session.program().gradient_entries();
        let entry = entries
            .iter()
            .find(|entry| entry.parameter == NAMES[index])
            .unwrap();
        let count = self.layout.get(NAMES[index]).unwrap().spec.shape.numel();
        let all = self.session.read_arena(arena).unwrap();
        all[entry.offset..entry.offset + count]
            .iter()
            .map(|x| f64::from(*x))
            .collect()
    }
}

/// The scalar inputs of a step.
#[derive(Clone, Copy)]
struct Scalars {
    /// β₁, β₂, ε, largest norm, both corrections, 1 − β₁, 1 − β₂, t, gradient scale.
    shared: [f32; OPTIMIZER_SCALARS],
    /// Rate and decay of two groups.
    groups: [f32; 4],
}

/// The largest norm among the shared scalars.
const LARGEST_NORM: usize = 3;

/// The step's number there.
const STEP: usize = 8;

/// The gradient scale there.
const GRADIENT_SCALE: usize = 9;

/// Rounding of one f32 update: three roundings of the largest number, for the values read back as f32.
fn assert_near(what: &str, want: &[f64], got: &[f64]) {
    let scale = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    for (index, (want, got)) in want.iter().zip(got).enumerate() {
        let error = (want - got).abs();
        let allowed = 4.0 * f64::from(f32::EPSILON) * scale;
        assert!(
            error <= allowed,
            "{what}[{index}]: want {want:e}, got {got:e}"
        );
    }
}

#[test]
fn three_steps_match_pytorch_with_and_without_clipping() {
    for golden in Golden::open("op_adamw").cases() {
        let names = ["decayed", "plain"];
        let sizes = names.map(|name| golden.shape(&format!("input.{name}")).numel());
        let setting = |key: &str| golden.config[key].as_f64().unwrap();
        for mut update in updates(sizes, &UpdateOptions::default()) {
            for (index, name) in names.iter().enumerate() {
                update.write(index, &golden.f32s(&format!("input.{name}")));
            }
            for step in 0..3 {
                let count = step as i32 + 1;
                let (beta1, beta2) = (setting("beta1"), setting("beta2"));
                let shared = [
                    beta1,
                    beta2,
                    setting("eps"),
                    setting("max_norm"),
                    1.0 - beta1.powi(count),
                    1.0 - beta2.powi(count),
                    1.0 - beta1,
                    1.0 - beta2,
                    f64::from(count),
                    1.0,
                ];
                let rate = golden.floats("input.rates")[step];
                let groups = [rate, setting("weight_decay"), rate, 0.0];
                for (input, values) in [
                    (OptimizerInput::Scalars, &shared[..]),
                    (OptimizerInput::GroupScalars, &groups[..]),
                ] {
                    update.session.write_f64(input.name(), values).unwrap();
                }
                for (index, name) in names.iter().enumerate() {
                    let all = golden.f32s(&format!("input.{name}_gradients"));
                    let gradient = &all[step * sizes[index]..(step + 1) * sizes[index]];
                    update
                        .session
                        .write_f32(&format!("g{index}"), gradient)
                        .unwrap();
                }
                update.session.run().unwrap();
                let what = format!(
                    "{} step {step} on {}",
                    golden.name,
                    update.executor.describe()
                );
                let norm = update.session.read_f64("gradient_norm").unwrap();
                assert_near(
                    &format!("{what}: norm"),
                    &golden.floats("value.norms")[step..=step],
                    &norm,
                );
                for (index, name) in names.iter().enumerate() {
                    let range = step * sizes[index]..(step + 1) * sizes[index];
                    let want = |key: &str| {
                        golden.floats(&format!("value.{name}{key}"))[range.clone()].to_vec()
                    };
                    assert_near(
                        &format!("{what}: {name}"),
                        &want(""),
                        &update.parameter(index),
                    );
                    if let Some(bf16_copy) = update.bf16_copy(index) {
                        let rounded = update.parameter(index).into_iter().map(to_nearest);
                        assert_eq!(bf16_copy, rounded.collect::<Vec<f32>>(), "{what}: {name}");
                    }
                    let moment = update.moment(index, FIRST);
                    assert_near(
                        &format!("{what}: m of {name}"),
                        &want("_first_moment"),
                        &moment,
                    );
                    let moment = update.moment(index, SECOND);
                    assert_near(
                        &format!("{what}: v of {name}"),
                        &want("_second_moment"),
                        &moment,
                    );
                }
            }
        }
    }
}

/// A number as bf16 holds it.
fn to_nearest(value: f64) -> f32 {
    half::bf16::from_f32(value as f32).to_f32()
}

/// A step of AdamW with the default numbers, rate 0.1 and decay 0.1.
const SCALARS: Scalars = Scalars {
    shared: [0.9, 0.999, 1e-8, 1.0, 0.1, 0.001, 0.1, 0.001, 1.0, 1.0],
    groups: [0.1, 0.1, 0.1, 0.0],
};

#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    for (bad, random_rounding) in [(f32::NAN, None), (f32::INFINITY, None), (f32::NAN, Some(3))] {
        let options = UpdateOptions {
            random_rounding,
            ..UpdateOptions::default()
        };
        for mut update in updates([20, 3], &options) {
            // Not representable in bf16, so that a bf16 copy rounded at random again would show.
            update.write(0, &[0.3; 20]);
            update.write(1, &[-0.7; 3]);
            update.step(&SCALARS, [&[1.0; 20], &[1.0, bad, 1.0]]);
            assert_eq!(update.parameter(0), [f64::from(0.3f32); 20]);
            assert_eq!(update.parameter(1), [f64::from(-0.7f32); 3]);
            assert_eq!(update.moment(0, FIRST), [0.0; 20]);
            assert_eq!(update.moment(1, SECOND), [0.0; 3]);
            if let Some(bf16_copy) = update.bf16_copy(0) {
                assert_eq!(bf16_copy, [to_nearest(0.3); 20]);
            }
            let factor = update.session.read_f64("clip_scale").unwrap()[0];
            assert!(factor.is_nan(), "{factor}");
        }
    }
}

#[test]
fn accumulated_gradients_update_as_their_mean_does_and_leave_nothing_behind() {
    // Quarters of small whole numbers: sums and means of three are exact, times a power of two.
    let draws = |seed: usize| -> Vec<f32> {
        (0..MANY)
            .map(|i| ((i * 31 + seed * 7) % 23) as f32 / 4.0 - 2.75)
            .collect()
    };
    let [first, second, third] = [0, 1, 2].map(draws);
    let sums = |count: usize| -> Vec<f32> {
        let sum = first.iter().zip(&second).zip(&third);
        sum.take(count).map(|((a, b), c)| a + b + c).collect()
    };
    for clip in [0.0, 1.0, 1e6] {
        let mut scalars = SCALARS;
        scalars.shared[LARGEST_NORM] = clip;
        let plain = updates([MANY, 3], &UpdateOptions::default());
        let groups = ParameterGroups::decaying(0.1);
        let options = UpdateOptions::default();
        let accumulating = updates_of([MANY, 3], &groups, &options, Tape::accumulating_gradients);
        for (mut plain, mut accumulating) in plain.into_iter().zip(accumulating) {
            // Twice: the second step begins from a cleared arena.
            for _ in 0..2 {
                let means: Vec<f32> = sums(MANY).iter().map(|sum| sum / 4.0).collect();
                plain.step(&scalars, [&means, &means[..3]]);
                accumulating.accumulate([&first, &first[..3]]);
                accumulating.accumulate([&second, &second[..3]]);
                let sum = accumulating.session.read_arena(Arena::Gradients).unwrap();
                assert_eq!(sum[1], first[1] + second[1]);
                let mut scalars = scalars;
                scalars.shared[GRADIENT_SCALE] = 0.25;
                accumulating.step(&scalars, [&third, &third[..3]]);
                for name in ["gradient_norm", "clip_scale"] {
                    let [mut want, found] = [&plain, &accumulating]
                        .map(|update| update.session.read_f64(name).unwrap()[0]);
                    if name == "clip_scale" {
                        want /= 4.0;
                    }
                    assert_near(name, &[want], &[found]);
                }
                for index in 0..2 {
                    assert_near("p", &plain.parameter(index), &accumulating.parameter(index));
                    let [want, found] =
                        [&plain, &accumulating].map(|update| update.moment(index, SECOND));
                    assert_near("v", &want, &found);
                }
                let left = accumulating.session.read_arena(Arena::Gradients).unwrap();
                assert!(left.iter().all(|g| g.to_bits() == 0));
            }
        }
    }
}

#[test]
fn each_group_learns_at_its_own_rate_and_decays_by_its_own_factor() {
    // Both parameters decay here, whatever they are declared to do, and each has a rate of its own.
    let of = |pattern: &str, learning_rate_factor: f64, weight_decay: f64| ParameterGroup {
        patterns: vec![pattern.into()],
        decays: None,
        learning_rate_factor,
        weight_decay,
        optimizer: Optimizer::AdamW,
    };
    let groups = [of("a.pl*n", 0.5, 0.25), of("*", 2.0, 0.5)];
    let groups = ParameterGroups::new(groups.to_vec()).unwrap();
    let options = UpdateOptions::default();
    let gradients: [&[f32]; 2] = [&[1.5; 20], &[-0.5, 0.25, 2.0]];
    for mut update in updates_of([20, 3], &groups, &options, |tape| tape) {
        update.write(0, &[0.5; 20]);
        update.write(1, &[-0.75; 3]);
        let scalars = Scalars {
            groups: groups.scalars(0.0625).try_into().unwrap(),
            ..SCALARS
        };
        assert_eq!(scalars.groups, [0.03125, 0.25, 0.125, 0.5]);
        update.step(&scalars, gradients);
        // The first step goes by the sign of the gradient.
        let step = |before: f64, sign: f64, [rate, decay]: [f64; 2]| {
            before * (1.0 - rate * decay) - rate * sign
        };
        let want = [step(0.5, 1.0, [0.125, 0.5]); 20];
        assert_near("a.decayed", &want, &update.parameter(0));
        let want = [-1.0, 1.0, 1.0].map(|sign| step(-0.75, sign, [0.03125, 0.25]));
        assert_near("a.plain", &want, &update.parameter(1));
    }
}

#[test]
fn a_parameter_belongs_to_the_first_group_that_takes_it() {
    let parameter = |name: &str, decays: bool| ParameterSpec {
        name: name.into(),
        shape: [1].into(),
        init: Init::Constant(0.0),
        decays,
    };
    let group = |pattern: &str, decays: Option<bool>| ParameterGroup {
        patterns: vec![pattern.into()],
        decays,
        learning_rate_factor: 1.0,
        weight_decay: 0.0,
        optimizer: Optimizer::AdamW,
    };
    let groups = ParameterGroups::new(vec![
        group("vision.blocks.1.*", Some(true)),
        group("vision.blocks.*.norm*.weight", None),
        group("language.head", None),
        group("vision.*", None),
    ])
    .unwrap();
    for (name, decays, want) in [
        ("vision.blocks.1.qkv.weight", true, 0),
        ("vision.blocks.1.qkv.bias", false, 3),
        ("vision.blocks.12.norm2.weight", false, 1),
        ("vision.blocks.12.norm2.weight.x", false, 3),
        ("vision.blocks.norm.weight", false, 3),
        ("language.head", true, 2),
    ] {
        let found = groups.index_of(&parameter(name, decays)).unwrap();
        assert_eq!(found, want, "{name}");
    }
    let problem = groups.index_of(&parameter("language.head.weight", true));
    let problem = problem.unwrap_err().to_string();
    for part in ["language.head.weight", "takes what is left", "vision.*"] {
        assert!(problem.contains(part), "{problem}");
    }
    assert!(ParameterGroups::new(Vec::new()).is_err());
}

#[test]
fn a_clamped_scalar_stays_between_its_bounds() {
    let options = UpdateOptions {
        clamps: vec![("a.plain", -0.25, 0.25)],
        ..UpdateOptions::default()
    };
    for mut update in updates([20, 1], &options) {
        let mut scalars = SCALARS;
        scalars.shared[LARGEST_NORM] = 0.0;
        scalars.groups = [10.0, 0.0, 10.0, 0.0];
        let first = update.state(FIRST);
        for (gradient, want) in [(-1.0, 0.25), (1.0, -0.25)] {
            update.write(1, &[0.0]);
            update.session.write_arena(first, &[0.0; 48]).unwrap();
            update.step(&scalars, [&[0.0; 20], &[gradient]]);
            assert_eq!(update.parameter(1), [want]);
        }
    }
}

/// Enough for several blocks of the norm's kernel, and no multiple of a vector.
const MANY: usize = 9_001;

#[test]
fn the_norm_of_many_gradients_is_that_of_their_squares_summed_exactly() {
    let gradients: Vec<f32> = (0..MANY).map(|i| ((i * 37) % 101) as f32 * 1e15).collect();
    let squares: f64 = gradients.iter().map(|g| f64::from(*g).powi(2)).sum();
    for mut update in updates([MANY, 3], &UpdateOptions::default()) {
        update.step(&SCALARS, [&gradients, &[0.0; 3]]);
        let norm = update.session.read_f64("gradient_norm").unwrap();
        assert_near("norm", &[squares.sqrt()], &norm);
        let factor = update.session.read_f64("clip_scale").unwrap();
        assert_near("factor", &[1.0 / squares.sqrt()], &factor);
    }
}

#[test]
fn bf16_copies_rounded_at_random_are_neighbours_that_keep_the_mean() {
    let seed = 11;
    let options = UpdateOptions {
        random_rounding: Some(seed),
        ..UpdateOptions::default()
    };
    // A rate of zero leaves the parameters alone; 0.3 lies 0.6 of a bf16 step above its lower neighbour 0.298828125.
    let mut scalars = SCALARS;
    scalars.groups = [0.0; 4];
    for mut update in updates([MANY, 1], &options) {
        let Some(before) = update.bf16_copy(0) else {
            continue;
        };
        update.write(0, &vec![0.3; MANY]);
        let mut seen = vec![before];
        for step in [1, 2, 1] {
            scalars.shared[STEP] = step as f32;
            update.step(&scalars, [&vec![1.0; MANY], &[1.0]]);
            let bf16_copy = update.bf16_copy(0).unwrap();
            let offset = update.layout.get(NAMES[0]).unwrap().offset;
            let want = (0..MANY).map(|i| rounded_at_random(0.3, seed, step, offset + i));
            assert_eq!(bf16_copy, want.collect::<Vec<f32>>());
            let (below, above) = (0.298_828_13f32, 0.300_781_25f32);
            let ups = bf16_copy.iter().filter(|x| **x == above).count();
            let downs = bf16_copy.iter().filter(|x| **x == below).count();
            assert_eq!(ups + downs, MANY);
            let share = f64::from(0.3 - below) / f64::from(above - below);
            let (mean, deviation) = (
                share * MANY as f64,
                (share * (1.0 - share) * MANY as f64).sqrt(),
            );
            // Six standard deviations of that many throws.
            assert!(
                (ups as f64 - mean).abs() < 6.0 * deviation,
                "{ups} of {MANY}"
            );
            seen.push(bf16_copy);
        }
        assert_ne!(seen[1], seen[2], "another step rounds otherwise");
        assert_eq!(seen[1], seen[3], "a repeated step rounds alike");
    }
}

/// The definition, once more: bits of the number plus sixteen random ones, cut off behind bf16's.
fn rounded_at_random(value: f32, seed: u64, step: u64, element: usize) -> f32 {
    let mix = |bits: u64| {
        let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    };
    let gamma = 0x9e37_79b9_7f4a_7c15u64;
    let key = mix(seed.wrapping_add(gamma.wrapping_mul(step)));
    let draw = mix(key.wrapping_add(gamma.wrapping_mul(element as u64 / 4)));
    let random = draw.to_le_bytes();
    let at = element % 4 * 2;
    let random = u32::from(u16::from_le_bytes([random[at], random[at + 1]]));
    f32::from_bits((value.to_bits() + random) >> 16 << 16)
}
