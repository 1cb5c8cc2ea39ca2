//! Every op that a step spends time in, forward and backward, at the lead steps' shapes.
//!
//!     cargo bench --bench kernels [-- FILTER]
//!
//! Criterion's elements a second are floating-point operations a second, from the ops' own costs.

use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use keel::error::Result;
use keel::executor::{CpuExecutor, Executor, Session};
use keel::ops::{self, Activation, Contrastive, Heads, Mask, Positions};
use keel::program::{CompileOptions, Program};
use keel::tape::{ParameterLayout, Tape, Target, Value};
use keel::tensor::{DType, TensorType};

type Record = fn(&mut Tape, &[Value]) -> Result<Value>;

/// An example: inputs by name and how the op is recorded on them.
struct Example {
    op: &'static str,
    shape: &'static str,
    inputs: Vec<TensorType>,
    record: Record,
}

fn f32s<const R: usize>(shape: [usize; R]) -> TensorType {
    TensorType::f32(shape)
}

const VISION: Heads = Heads {
    query: 3,
    key_value: 3,
    dim: 64,
};
const DECODER: Heads = Heads {
    query: 4,
    key_value: 2,
    dim: 64,
};

fn examples() -> Vec<Example> {
    let example = |op, shape, inputs, record| Example {
        op,
        shape,
        inputs,
        record,
    };
    vec![
        example(
            "linear",
            "[8192,192]x[576,192]",
            vec![f32s([8192, 192]), f32s([576, 192]), f32s([576])],
            |t, v| ops::linear(t, v[0], v[1], Some(v[2])),
        ),
        example(
            "linear_gelu",
            "[8192,192]x[768,192]",
            vec![f32s([8192, 192]), f32s([768, 192]), f32s([768])],
            |t, v| ops::linear_activation(t, v[0], v[1], Some(v[2]), Activation::GeluErf),
        ),
        example(
            "linear_residual",
            "[8192,768]x[192,768]",
            vec![
                f32s([8192, 768]),
                f32s([192, 768]),
                f32s([192]),
                f32s([8192, 192]),
            ],
            |t, v| ops::linear_residual(t, v[0], v[1], Some(v[2]), v[3]),
        ),
        example(
            "linear",
            "[4096,256]x[1536,256]",
            vec![f32s([4096, 256]), f32s([1536, 256])],
            |t, v| ops::linear(t, v[0], v[1], None),
        ),
        example(
            "attention",
            "full B128 T64 H3 D64",
            vec![f32s([128, 64, 576])],
            |t, v| ops::attention(t, v[0], VISION, Mask::Full, None),
        ),
        example(
            "attention",
            "causal B64 T64 H4/2 D64",
            vec![f32s([64, 64, 512])],
            |t, v| ops::attention(t, v[0], DECODER, Mask::Causal, None),
        ),
        example(
            "attention",
            "full B2 T1024 H8 D128",
            vec![f32s([2, 1024, 3072])],
            |t, v| {
                let heads = Heads {
                    query: 8,
                    key_value: 8,
                    dim: 128,
                };
                ops::attention(t, v[0], heads, Mask::Full, None)
            },
        ),
        example(
            "layer_norm",
            "[8192,192]",
            vec![f32s([8192, 192]), f32s([192]), f32s([192])],
            |t, v| ops::layer_norm(t, v[0], v[1], v[2], 1e-6),
        ),
        example(
            "rms_norm",
            "[4096,256]",
            vec![f32s([4096, 256]), f32s([256])],
            |t, v| ops::rms_norm(t, v[0], v[1], 1e-6),
        ),
        example("swiglu", "[4096,1536]", vec![f32s([4096, 1536])], |t, v| {
            ops::swiglu(t, v[0])
        }),
        example(
            "rope",
            "B64 T64 H4/2 D64",
            vec![f32s([64, 64, 512])],
            |t, v| ops::rope(t, v[0], DECODER, 1e6, Positions::Sequential),
        ),
        example(
            "patch_embed",
            "B128 64x64 patch 8 C192",
            vec![
                f32s([128, 3, 64, 64]),
                f32s([192, 192]),
                f32s([192]),
                f32s([64, 192]),
            ],
            |t, v| ops::patch_embed(t, v[0], v[1], Some(v[2]), Some(v[3]), 8),
        ),
        example(
            "pixel_unshuffle",
            "[64,64,192]",
            vec![f32s([64, 64, 192])],
            |t, v| ops::pixel_unshuffle(t, v[0], 8, 8, 2),
        ),
        example(
            "embedding",
            "V512 D256 B64 T64",
            vec![f32s([512, 256]), TensorType::i32([64, 64])],
            |t, v| ops::embedding(t, v[0], v[1]),
        ),
        example(
            "mean_pool",
            "[128,64,192]",
            vec![f32s([128, 64, 192])],
            |t, v| ops::mean_pool(t, v[0], None),
        ),
        example(
            "contrastive_loss",
            "N128 E128",
            vec![f32s([128, 128]), f32s([128, 128]), f32s([1])],
            |t, v| ops::contrastive_loss(t, v[0], v[1], v[2], None, Contrastive::InfoNce),
        ),
        example(
            "linear_cross_entropy",
            "[4096,256] V512",
            vec![
                f32s([4096, 256]),
                f32s([512, 256]),
                TensorType::i32([4096]),
                f32s([4096]),
            ],
            |t, v| ops::linear_cross_entropy(t, v[0], v[1], v[2], v[3]),
        ),
    ]
}

/// The example's program: the op alone, or with its backward under a made-up cotangent.
fn load(example: &Example, executor: &CpuExecutor, backward: bool) -> Result<Box<dyn Session>> {
    let mut tape = Tape::new(Arc::new(ParameterLayout::default()), |_| false);
    let inputs: Vec<Value> = example
        .inputs
        .iter()
        .enumerate()
        .map(|(index, ty)| match backward && ty.dtype.is_float() {
            true => tape.input_with_gradient(format!("x{index}"), *ty),
            false => tape.input(format!("x{index}"), *ty),
        })
        .collect();
    let output = (example.record)(&mut tape, &inputs)?;
    tape.output(output, "y");
    if backward {
        let ty = tape.ty(output);
        let cotangent = tape.input("dy", ty);
        tape.backward_from(&[(output, cotangent)])?;
    }
    let target = Target::Cpu {
        threads: executor.threads(),
    };
    let program = Program::compile(tape, &CompileOptions::new(target))?;
    let names: Vec<String> = program.input_names().map(str::to_owned).collect();
    let mut session = executor.load(Arc::new(program))?;
    for name in names {
        let ty = session.program().ty(session.program().input(&name)?);
        let scattered = |index: usize| (index * 2_654_435_761 % 4_294_967_296) >> 8;
        match ty.dtype {
            DType::I32 => {
                let values: Vec<i32> = (0..ty.numel())
                    .map(|i| (scattered(i) % 512) as i32)
                    .collect();
                session.write_i32(&name, &values)?;
            }
            _ => {
                let value = |i| scattered(i) as f32 / 8_388_608.0 - 1.0;
                let values: Vec<f32> = (0..ty.numel()).map(value).collect();
                session.write_f32(&name, &values)?;
            }
        }
    }
    Ok(session)
}

fn main() {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let executor = CpuExecutor::new(0, threads).expect("threads can be had");
    println!(
        "peak: {:.0} GFLOP/s on {threads} threads",
        executor.peak_flops() / 1e9
    );
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    for example in examples() {
        let mut group = criterion.benchmark_group(example.op);
        for (direction, backward) in [("forward", false), ("forward and backward", true)] {
            let mut session = load(&example, &executor, backward).expect("examples are valid");
            group.throughput(Throughput::Elements(session.program().cost().flops as u64));
            group.bench_function(BenchmarkId::new(direction, example.shape), |bencher| {
                bencher.iter(|| session.run().expect("the processor cannot fail"));
            });
        }
        group.finish();
    }
    criterion.final_summary();
}
