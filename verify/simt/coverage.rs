//! Every kernel of the product runs in some program: none is left over, and none is reached by a handwritten launch alone.
//! The programs here are small and reach each variant of each kernel once; whether results are right is for the cases of
//! verify/ops.

use std::collections::BTreeSet;
use std::sync::Arc;

use keel::error::Result;
use keel::executor::kernel_table::KERNELS;
use keel::executor::resolved::resolve;
use keel::executor::simt::Options;
use keel::executor::{Executor, SimtExecutor};
use keel::ops::{
    self, Activation, Contrastive, ContrastiveMask, Heads, Mask, Optimizer, ParameterGroup,
    ParameterGroups, Positions, UpdateOptions,
};
use keel::program::{CompileOptions, Program};
use keel::ranks::order::BUCKET;
use keel::ranks::{Seat, World};
use keel::tape::{
    Add, CompileTarget, Copy, Fill, Init, ParameterLayout, ParameterSpec, Tape, Target, Tier, Value,
};
use keel::tensor::{DType, Shape, TensorType};
use keel_kernel_report::{self as kernels, Direction, Size};

use super::emulator;
use crate::harness::{Random, on_ranks};

/// Records a program of one op or a few and returns its result.
pub type Record = fn(&mut Inputs<'_>) -> Result<Value>;

/// A tape, and inputs by the rule of every program: matrices in its precision, vectors and images in f32.
pub struct Inputs<'a>(&'a mut Tape);

impl Inputs<'_> {
    /// The tape they are recorded on.
    pub fn tape(&mut self) -> &mut Tape {
        self.0
    }

    fn add(&mut self, ty: TensorType, has_gradient: bool) -> Value {
        let name = format!("input.{}", self.0.values().len());
        if has_gradient {
            self.0.input_with_gradient(name, ty)
        } else {
            self.0.input(name, ty)
        }
    }

    /// Floats that owe a gradient.
    pub fn x<const R: usize>(&mut self, shape: [usize; R]) -> Value {
        let dtype = match R {
            2 | 3 => self.0.precision(),
            _ => DType::F32,
        };
        self.add(TensorType::new(dtype, shape), true)
    }

    /// A matrix that owes none.
    pub fn frozen<const R: usize>(&mut self, shape: [usize; R]) -> Value {
        let dtype = self.0.precision();
        self.add(TensorType::new(dtype, shape), false)
    }

    /// Numbers that are f32 in every precision and owe none.
    pub fn constant<const R: usize>(&mut self, shape: [usize; R]) -> Value {
        self.add(TensorType::f32(shape), false)
    }

    /// Zeros and ones.
    fn integers<const R: usize>(&mut self, shape: [usize; R]) -> Value {
        self.add(TensorType::i32(shape), false)
    }
}

const HEADS: Heads = Heads {
    query: 2,
    key_value: 1,
    dim: 8,
};

pub fn linear(t: &mut Inputs<'_>, rows: usize, inner: usize, columns: usize) -> Result<Value> {
    let (x, w, b) = (t.x([rows, inner]), t.x([columns, inner]), t.x([columns]));
    ops::linear(t.0, x, w, Some(b))
}

pub fn norms(t: &mut Inputs<'_>, columns: usize) -> Result<Value> {
    let (x, w, b) = (t.x([2, columns]), t.x([columns]), t.x([columns]));
    let y = ops::layer_norm(t.0, x, w, b, 1e-6)?;
    let y = ops::rms_norm(t.0, y, w, 1e-6)?;
    ops::l2_normalize(t.0, y, 1e-12)
}

fn attention(t: &mut Inputs<'_>, dim: usize) -> Result<Value> {
    let heads = Heads { dim, ..HEADS };
    let qkv = t.x([1, 3, heads.packed_width()]);
    ops::attention(t.0, qkv, heads, Mask::Causal, None)
}

/// Square images in patches; a side of 9 leaves a column and a row of patches of 4 over.
pub fn patch_embed(t: &mut Inputs<'_>, [images, side, patch, width]: [usize; 4]) -> Result<Value> {
    let patches = (side / patch).pow(2);
    let (images, w) = (
        t.x([images, 3, side, side]),
        t.x([width, 3 * patch * patch]),
    );
    let (b, position) = (t.x([width]), t.x([patches, width]));
    ops::patch_embed(t.0, images, w, Some(b), Some(position), patch)
}

pub fn contrastive(
    t: &mut Inputs<'_>,
    [pairs, width]: [usize; 2],
    kind: Contrastive,
    is_masked: bool,
) -> Result<Value> {
    let features = [t.x([pairs, width]), t.x([pairs, width]), t.x([1])];
    let bias = (kind == Contrastive::Sigmoid).then(|| t.x([1]));
    let mask = if is_masked {
        ContrastiveMask {
            pairs: Some(t.integers([1])),
            identities: Some([t.integers([pairs]), t.integers([pairs])]),
        }
    } else {
        ContrastiveMask::default()
    };
    ops::contrastive_loss(t.0, features, bias, mask, kind)
}

/// What to run, smallest shapes first.
pub const PROGRAMS: &[(&str, Record)] = &[
    ("linear", |t| linear(t, 5, 20, 7)),
    ("linear with a split sum", |t| linear(t, 600, 8, 7)),
    ("linear with only its bias trained", |t| {
        let (x, w, b) = (t.x([5, 20]), t.frozen([7, 20]), t.x([7]));
        ops::linear(t.0, x, w, Some(b))
    }),
    ("linear and an activation", |t| {
        let (x, w) = (t.x([5, 20]), t.x([7, 20]));
        ops::linear_activation(t.0, x, w, None, Activation::GeluErf)
    }),
    ("activation", |t| {
        let x = t.x([5, 20]);
        ops::activation(t.0, x, Activation::GeluErf)
    }),
    ("add_columns", |t| {
        let (x, part) = (t.x([5, 20]), t.x([5, 8]));
        ops::add_columns(t.0, x, part, 8)
    }),
    ("norms, narrow", |t| norms(t, 20)),
    ("norms, middle", |t| norms(t, 520)),
    ("norms", |t| norms(t, 1032)),
    ("norms, broad", |t| norms(t, 2056)),
    ("norms, wide", |t| norms(t, 4104)),
    ("layer_scale", |t| {
        let (x, w, gamma, residual) = (t.x([5, 20]), t.x([7, 20]), t.x([7]), t.x([5, 7]));
        ops::linear_layer_scale(t.0, x, w, None, gamma, residual)
    }),
    ("swiglu", |t| {
        let x = t.x([5, 20]);
        ops::swiglu(t.0, x)
    }),
    ("qk_norm and rope", |t| {
        let (qkv, w) = (t.x([1, 3, HEADS.packed_width()]), t.x([8]));
        let y = ops::qk_norm(t.0, qkv, w, w, HEADS, 1e-6)?;
        ops::rope(t.0, y, HEADS, 1e4, Positions::Sequential)
    }),
    ("attention, 32", |t| attention(t, 32)),
    ("attention, 64", |t| attention(t, 64)),
    ("attention, 96", |t| attention(t, 96)),
    ("attention, 128", |t| attention(t, 128)),
    ("attention with queries of its own", |t| {
        let heads = Heads {
            key_value: HEADS.query,
            ..HEADS
        };
        let width = heads.query * heads.dim;
        let (query, key_value) = (t.x([1, width]), t.x([2, 3, 2 * width]));
        ops::cross_attention(t.0, query, key_value, heads)
    }),
    ("attention of the next token", |t| {
        let width = HEADS.packed_width();
        let (qkv, cache) = (t.constant([2, 1, width]), t.constant([2, 5, width]));
        let seen = t.integers([2, 5]);
        ops::next_attention(t.0, qkv, cache, HEADS, seen)
    }),
    ("patch_embed", |t| patch_embed(t, [2, 9, 4, 12])),
    ("embedding and splice", |t| {
        let (table, ids, image) = (t.x([6, 20]), t.integers([2, 5]), t.x([2, 2, 20]));
        let text = ops::embedding(t.0, table, ids)?;
        ops::splice(t.0, text, ids, image, 1)
    }),
    ("pooling", |t| {
        let (x, weights) = (t.x([2, 5, 20]), t.constant([2, 5]));
        ops::mean_pool(t.0, x, Some(weights))
    }),
    ("pixel_unshuffle", |t| {
        let x = t.x([2, 4, 20]);
        ops::pixel_unshuffle(t.0, x, 2, 2, 2)
    }),
    ("position", |t| {
        let (x, position, class) = (t.x([2, 4, 20]), t.x([5, 20]), t.x([20]));
        ops::add_position(t.0, x, position, Some(class))
    }),
    ("insert_tokens", |t| {
        let (x, tokens) = (t.x([2, 4, 20]), t.x([3, 20]));
        ops::insert_tokens(t.0, x, tokens, 1)
    }),
    ("the tape's own", |t| {
        let (x, ids) = (t.x([5, 20]), t.integers([4]));
        let ty = t.0.ty(x);
        let copied = t.0.record_one(Copy, &[x])?;
        let filled = t.0.record_one(Fill { ty, value: 0.5 }, &[])?;
        let ids = t.0.record_one(Copy, &[ids])?;
        t.0.output(ids, "ids");
        t.0.record_one(Add, &[copied, filled])
    }),
    ("cast", |t| {
        let x = t.x([5, 20]);
        let other = match t.0.precision() {
            DType::Bf16 => DType::F32,
            _ => DType::Bf16,
        };
        ops::cast(t.0, x, other)
    }),
    ("weighted_sum", |t| {
        let (a, b) = (t.x([1]), t.x([1]));
        ops::weighted_sum(t.0, &[(a, 1.0), (b, 0.5)])
    }),
    ("tree_accumulate", |t| {
        let types = [
            TensorType::f32([20]),
            TensorType::f32([40]),
            TensorType::i32([1]),
        ];
        let inputs = types.map(|ty| t.add(ty, false));
        let [sum, _] = ops::tree_accumulate(t.tape(), inputs, 4)?;
        Ok(sum)
    }),
    ("squared_error", |t| {
        let (x, y) = (t.x([5, 20]), t.x([5, 20]));
        ops::squared_error(t.0, x, y)
    }),
    ("gram", |t| {
        let x = t.x([2, 5, 20]);
        let x = ops::cast(t.0, x, DType::F32)?;
        ops::gram(t.0, x)
    }),
    ("tree_sum", |t| {
        let x = t.x([6, 20]);
        ops::tree_sum(t.0, x, 3)
    }),
    ("contrastive_loss, InfoNCE", |t| {
        contrastive(t, [5, 12], Contrastive::InfoNce, false)
    }),
    ("contrastive_loss, sigmoid", |t| {
        contrastive(t, [5, 12], Contrastive::Sigmoid, false)
    }),
    ("contrastive_loss of some, InfoNCE", |t| {
        contrastive(t, [5, 12], Contrastive::InfoNce, true)
    }),
    ("contrastive_loss of some, sigmoid", |t| {
        contrastive(t, [5, 12], Contrastive::Sigmoid, true)
    }),
    ("linear_cross_entropy", |t| {
        let (hidden, w) = (t.x([5, 20]), t.x([30, 20]));
        let (targets, weights) = (t.integers([5]), t.constant([5]));
        ops::linear_cross_entropy(t.0, hidden, w, targets, weights)
    }),
    ("linear_cross_entropy of a frozen matrix", |t| {
        let (hidden, w) = (t.x([5, 20]), t.frozen([30, 20]));
        let (targets, weights) = (t.integers([5]), t.constant([5]));
        ops::linear_cross_entropy(t.0, hidden, w, targets, weights)
    }),
    ("linear_cross_entropy of frozen states", |t| {
        let (hidden, w) = (t.frozen([5, 20]), t.x([30, 20]));
        let (targets, weights) = (t.integers([5]), t.constant([5]));
        ops::linear_cross_entropy(t.0, hidden, w, targets, weights)
    }),
    ("linear_argmax", |t| {
        let (hidden, w) = (t.frozen([5, 20]), t.frozen([30, 20]));
        ops::linear_argmax(t.0, hidden, w)
    }),
];

/// The program, with the gradients of everything that owes one.
pub fn program(record: Record, precision: DType) -> Result<Program> {
    compiled(record, true, CompileOptions::new(Target::Cuda), precision)
}

/// As [`program`], of the Hopper tier.
pub fn program_on_hopper(record: Record, precision: DType) -> Result<Program> {
    compiled(record, true, on_hopper(precision), precision)
}

/// As [`gradients`], of the Hopper tier.
pub fn gradients_on_hopper(record: Record, precision: DType) -> Result<Program> {
    compiled(record, false, on_hopper(precision), precision)
}

fn on_hopper(precision: DType) -> CompileOptions {
    CompileOptions::new(CompileTarget {
        target: Target::Cuda,
        precision,
        tier: Tier::Hopper,
    })
}

/// The gradients alone: what only the result needs is not computed.
pub fn gradients(record: Record, precision: DType) -> Result<Program> {
    compiled(record, false, CompileOptions::new(Target::Cuda), precision)
}

fn compiled(
    record: Record,
    gives_result: bool,
    options: CompileOptions,
    precision: DType,
) -> Result<Program> {
    let mut tape =
        Tape::new(Arc::new(ParameterLayout::default()), |_| false).in_precision(precision);
    let y = record(&mut Inputs(&mut tape))?;
    if gives_result {
        tape.output(y, "y");
    }
    if tape.requires_gradient(y) {
        let ty = tape.ty(y);
        let cotangent = tape.input("cotangent", ty);
        tape.backward_from(&[(y, cotangent)])?;
    }
    let options = CompileOptions {
        // So that a machine may give every value memory of its own.
        share_memory: false,
        ..options
    };
    Program::compile(tape, &options)
}

/// An update of three parameters, one of them by Muon and one clamped between two numbers, with averages.
pub fn update(world: World, precision: DType) -> (Program, usize) {
    let specs = ["a.matrix", "a.tall", "a.scale"].map(|name| ParameterSpec {
        name: name.into(),
        shape: Shape::new(match name {
            "a.scale" => &[1],
            "a.tall" => &[12, 5],
            _ => &[5, 20],
        }),
        init: Init::Constant(0.0),
        decays: true,
    });
    let layout = Arc::new(ParameterLayout::new(&specs));
    let tape = Tape::new(layout.clone(), |_| true).in_precision(precision);
    let mut tape = tape.over_ranks(world, BUCKET);
    let mut seeds = Vec::new();
    for (index, spec) in specs.iter().enumerate() {
        let parameter = tape.parameter(spec.clone()).expect("it is laid out");
        let ty = TensorType::f32(spec.shape);
        seeds.push((parameter, tape.input(format!("g{index}"), ty)));
    }
    tape.backward_from(&seeds).expect("both are trained");
    let options = UpdateOptions {
        clamps: vec![("a.scale", -1.0, 1.0)],
        ema_decay: Some(0.5),
        ..UpdateOptions::default()
    };
    let mut groups = ParameterGroups::decaying(0.1).groups().to_vec();
    groups.insert(
        0,
        ParameterGroup {
            patterns: vec!["a.tall".into()],
            optimizer: Optimizer::Muon { momentum: 0.95 },
            ..groups[0].clone()
        },
    );
    let groups = ParameterGroups::new(groups).expect("three");
    ops::record_update(&mut tape, &layout, &groups, &options).expect("something is trained");
    let program = Program::compile(tape, &CompileOptions::new(Target::Cuda)).expect("it is small");
    (program, layout.elements())
}

fn names(program: &Program) -> Result<Vec<String>> {
    let steps = resolve(program)?;
    let launches = steps.into_iter().flat_map(|step| step.launches);
    Ok(launches
        .map(|launch| launch.kernel.name.to_owned())
        .collect())
}

/// Runs on numbers drawn at random, and returns the kernels that ran.
fn run(what: &str, program: Program, elements: usize, seat: &Seat) -> Vec<String> {
    let kernels = names(&program).unwrap_or_else(|problem| panic!("{what}: {problem}"));
    let executor = SimtExecutor::new(elements, Options::default());
    let mut executor = executor.expect("the emulator is there");
    if let Some(engine) = seat.engine() {
        executor.join(engine.clone()).expect("it takes an engine");
    }
    run_on(&executor, program).unwrap_or_else(|problem| panic!("{what}: {problem}"));
    kernels
}

/// Runs `program` on numbers drawn at random.
pub fn run_on(executor: &dyn Executor, program: Program) -> Result<()> {
    let mut session = executor.load(Arc::new(program))?;
    let mut random = Random::new(11);
    let mut inputs: Vec<String> = session.program().input_names().map(str::to_owned).collect();
    // A program has them in no order, and each shall draw the same numbers in every run.
    inputs.sort();
    for input in inputs {
        let value = session.program().input(&input).expect("listed");
        let ty = session.program().ty(value);
        match ty.dtype {
            DType::I32 => session.write_i32(&input, &random.integers(ty.numel(), 2))?,
            _ => session.write_f32(&input, &random.normals(ty.numel(), 1.0))?,
        }
    }
    session.run()
}

#[test]
fn every_kernel_is_launched_by_some_program() {
    if emulator().is_none() {
        return;
    }
    let mut launched: BTreeSet<String> = BTreeSet::new();
    for precision in [DType::F32, DType::Bf16] {
        for (what, record) in PROGRAMS {
            let what = format!("{what} in {precision}");
            let program =
                program(*record, precision).unwrap_or_else(|problem| panic!("{what}: {problem}"));
            launched.extend(run(&what, program, 0, &Seat::default()));
        }
        // Kernels for tiles that only large products have: launched at the shapes they are for, which the emulator would
        // take hours over; verify/simt/product.rs runs the kernels themselves.
        for example in kernels::examples(Size::Large) {
            for options in [CompileOptions::new(Target::Cuda), on_hopper(precision)] {
                let names = example
                    .record(precision, Direction::Both)
                    .and_then(|tape| Program::compile(tape, &options))
                    .and_then(|program| names(&program))
                    .unwrap_or_else(|problem| panic!("{}: {problem}", example.op));
                launched.extend(names);
            }
        }
    }
    for ranks in [1, 2] {
        let launched_by = on_ranks(ranks, |seat| {
            let run_in = |precision| {
                let (program, elements) = update(seat.world(), precision);
                run("an update", program, elements, &seat)
            };
            [DType::F32, DType::Bf16].map(run_in).concat()
        });
        launched.extend(launched_by.into_iter().flatten());
    }
    let left_over: Vec<&str> = KERNELS
        .iter()
        .map(|kernel| kernel.name)
        .filter(|name| !launched.contains(*name))
        .collect();
    assert!(
        left_over.is_empty(),
        "no program launches {}: remove them, or add the program that does",
        left_over.join(", ")
    );
    let unknown: Vec<&String> = launched
        .iter()
        .filter(|name| !KERNELS.iter().any(|kernel| kernel.name == **name))
        .collect();
    assert!(unknown.is_empty(), "there are no kernels {unknown:?}");
}
