//! Mistakes planted in the kernels of the product, at the places where threads wait for each other: each must show, as a
//! report or as other bits than the kernel gives without it. A test that could not see them would prove nothing.

use std::collections::BTreeMap;

use super::emulator;
use crate::harness::Random;
use keel::error::Result;
use keel::executor::simt::{Argument, Buffer, Element, Emulator, Options};

/// One argument of a kernel.
#[derive(Clone)]
enum Part {
    /// Floats drawn at random.
    In(usize),
    /// Floats that the kernel writes.
    Out(usize),
    /// Written in the place of the input that is this argument.
    Over(usize),
    Null,
    I32(i32),
    I64(i64),
    F32(f32),
}

/// A launch of one block or a few.
#[derive(Clone)]
struct Trial {
    kernel: &'static str,
    grid: [u32; 3],
    parts: Vec<Part>,
    /// The spread of the inputs.
    scale: f64,
}

impl Trial {
    /// The bits of everything the kernel writes.
    fn run(&self, emulator: &Emulator, options: &Options<'_>) -> Result<Vec<u32>> {
        let mut random = Random::new(7);
        let mut buffers: BTreeMap<usize, Buffer> = BTreeMap::new();
        for (at, part) in self.parts.iter().enumerate() {
            if let Part::In(count) | Part::Out(count) = part {
                let mut buffer = emulator.allocate(Element::F32, *count)?;
                if let Part::In(_) = part {
                    buffer.write(&random.normals(*count, self.scale))?;
                }
                buffers.insert(at, buffer);
            }
        }
        let parts = self.parts.iter().enumerate();
        let arguments: Vec<Argument<'_>> = parts
            .map(|(at, part)| match part {
                Part::In(_) | Part::Out(_) => Argument::whole(&buffers[&at]),
                Part::Over(input) => Argument::whole(&buffers[input]),
                Part::Null => Argument::Null,
                Part::I32(value) => Argument::I32(*value),
                Part::I64(value) => Argument::I64(*value),
                Part::F32(value) => Argument::F32(*value),
            })
            .collect();
        let kernel = emulator.kernel(self.kernel)?;
        let block = [kernel.threads.expect("a fixed block"), 1, 1];
        let shared = kernel.shared_bytes;
        emulator.launch(&kernel, self.grid, block, shared, &arguments, options)?;
        let mut found = Vec::new();
        for (at, part) in self.parts.iter().enumerate() {
            let written = match part {
                Part::Out(_) => &buffers[&at],
                Part::Over(input) => &buffers[input],
                _ => continue,
            };
            found.extend(written.read::<f32>()?.iter().map(|x| x.to_bits()));
        }
        Ok(found)
    }

    /// Panics unless the kernel gives the same bits when output `output` lies in the place of input `input`.
    fn must_work_in_place(&self, emulator: &Emulator, output: usize, input: usize) {
        let mut in_place = self.clone();
        in_place.parts[output] = Part::Over(input);
        for options in Options::proof(3) {
            let [apart, over] = [self, &in_place].map(|trial| {
                trial
                    .run(emulator, &options)
                    .unwrap_or_else(|problem| panic!("{}: {problem}", self.kernel))
            });
            assert_eq!(apart, over, "{}: {output} over {input}", self.kernel);
        }
    }

    /// Panics unless `bug` shows under one of the schedules that every kernel case runs under.
    fn must_catch(&self, emulator: &Emulator, bug: &str) {
        let right = self
            .run(emulator, &Options::default())
            .unwrap_or_else(|problem| panic!("{}: {problem}", self.kernel));
        let caught = Options::proof(0).iter().any(|options| {
            let options = Options {
                planted_bug: Some(bug),
                ..*options
            };
            match self.run(emulator, &options) {
                Ok(found) => found != right,
                // A name that the kernel's source does not have is no catch.
                Err(problem) => !problem.to_string().contains("PLANTED_BUG"),
            }
        });
        assert!(caught, "{}: {bug}", self.kernel);
    }
}

/// Forward: sum, y, statistics, x, residual, weight, bias, epsilon, rows, columns.
fn layer_norm_forward(kernel: &'static str, rows: usize, columns: usize) -> Trial {
    let count = rows * columns;
    let parts = vec![
        Part::Null,
        Part::Out(count),
        Part::Out(2 * rows),
        Part::In(count),
        Part::Null,
        Part::In(columns),
        Part::In(columns),
        Part::F32(1e-6),
        Part::I64(rows as i64),
        Part::I32(columns as i32),
    ];
    Trial {
        kernel,
        grid: [rows as u32, 1, 1],
        parts,
        scale: 1.0,
    }
}

/// One block of backward: dx, partials, dy, x, weight, statistics, addend, rows, columns.
fn layer_norm_backward(kernel: &'static str, rows: usize, columns: usize) -> Trial {
    let count = rows * columns;
    let parts = vec![
        Part::Out(count),
        Part::Out(2 * columns),
        Part::In(count),
        Part::In(count),
        Part::In(columns),
        Part::In(2 * rows),
        Part::Null,
        Part::I64(rows as i64),
        Part::I32(columns as i32),
    ];
    Trial {
        kernel,
        grid: [1, 1, 1],
        parts,
        scale: 1.0,
    }
}

/// dy, gate_up [rows, 2·width].
fn swiglu_backward(rows: usize, width: usize) -> Trial {
    let parts = vec![
        Part::Out(2 * rows * width),
        Part::In(rows * width),
        Part::In(2 * rows * width),
        Part::I64(rows as i64),
        Part::I32(width as i32),
        Part::I32(3),
    ];
    Trial {
        kernel: "swiglu_backward_f32",
        grid: [rows.div_ceil(3) as u32, 1, 1],
        parts,
        scale: 1.0,
    }
}

/// Two query heads and one of keys and of values, D 24, turned by their places.
fn rope(rows: usize) -> Trial {
    let count = rows * 4 * 24;
    let parts = vec![
        Part::Out(count),
        Part::In(count),
        Part::Null,
        Part::I64(rows as i64),
        Part::I32(0),
        Part::I32(0),
        Part::I32(0),
        Part::I32(1),
        Part::I64(f64::log2(1e4).to_bits().cast_signed()),
        Part::F32(1.0),
        Part::I32(3),
        Part::I32(1),
        Part::I32(24),
        Part::I64(rows as i64),
    ];
    Trial {
        kernel: "rope_f32",
        grid: [rows.div_ceil(8) as u32, 1, 1],
        parts,
        scale: 1.0,
    }
}

/// The same heads, normalised; `tensors` come first.
fn qk_norm(kernel: &'static str, rows: usize, tensors: &[Part]) -> Trial {
    let mut parts = tensors.to_vec();
    parts.extend([
        Part::In(24),
        Part::In(24),
        Part::F32(1e-6),
        Part::I32(2),
        Part::I32(3),
        Part::I32(4),
        Part::I32(24),
        Part::I32(8),
        Part::I32(4 * rows as i32),
    ]);
    Trial {
        kernel,
        // Backward takes heads in turn, forward each once.
        grid: [(4 * rows).div_ceil(32) as u32, 1, 1],
        parts,
        scale: 1.0,
    }
}

/// Two chunks of rows and one tile of columns.
fn layer_scale_backward(rows: usize, columns: usize) -> Trial {
    let count = rows * columns;
    let parts = vec![
        Part::Out(count),
        Part::Out(2 * columns),
        Part::In(count),
        Part::In(columns),
        Part::In(count),
        Part::I64(rows as i64),
        Part::I32(columns as i32),
        Part::I32(2),
    ];
    Trial {
        kernel: "layer_scale_backward_f32",
        grid: [2, 1, 1],
        parts,
        scale: 1.0,
    }
}

/// y, norms, x, ε, rows, columns, with a block a row.
fn l2_normalize_forward(rows: usize, columns: usize) -> Trial {
    let parts = vec![
        Part::Out(rows * columns),
        Part::Out(rows),
        Part::In(rows * columns),
        Part::F32(1e-12),
        Part::I64(rows as i64),
        Part::I32(columns as i32),
    ];
    Trial {
        kernel: "l2_normalize_forward_f32",
        grid: [rows as u32, 1, 1],
        parts,
        scale: 1.0,
    }
}

#[test]
fn kernels_may_write_in_the_place_of_what_they_read() {
    let Some(emulator) = emulator() else { return };
    layer_norm_forward("layer_norm_forward_f32", 3, 600).must_work_in_place(&emulator, 1, 3);
    let mut with_residual = layer_norm_forward("layer_norm_forward_f32", 3, 600);
    with_residual.parts[0] = Part::Out(1800);
    with_residual.parts[4] = Part::In(1800);
    with_residual.must_work_in_place(&emulator, 0, 3);
    with_residual.must_work_in_place(&emulator, 0, 4);
    let mut accumulating = layer_norm_backward("layer_norm_backward_narrow_f32", 9, 130);
    accumulating.parts[6] = Part::In(9 * 130);
    accumulating.must_work_in_place(&emulator, 0, 6);
    swiglu_backward(7, 37).must_work_in_place(&emulator, 0, 2);
    rope(11).must_work_in_place(&emulator, 0, 1);
    let count = 11 * 4 * 24;
    let tensors = [Part::Out(count), Part::In(count)];
    qk_norm("qk_norm_forward_f32", 11, &tensors).must_work_in_place(&emulator, 0, 1);
    let tensors = [
        Part::Out(count),
        Part::Null,
        Part::In(count),
        Part::In(count),
    ];
    qk_norm("qk_norm_backward_f32", 11, &tensors).must_work_in_place(&emulator, 0, 3);
    l2_normalize_forward(3, 600).must_work_in_place(&emulator, 0, 2);
    let parts = vec![
        Part::Out(3 * 600),
        Part::In(3 * 600),
        Part::In(3),
        Part::In(3 * 600),
        Part::F32(1e-12),
        Part::I64(3),
        Part::I32(600),
    ];
    let l2_backward = Trial {
        kernel: "l2_normalize_backward_f32",
        grid: [3, 1, 1],
        parts,
        scale: 1.0,
    };
    l2_backward.must_work_in_place(&emulator, 0, 3);
}

#[test]
fn a_norm_has_the_same_bits_however_many_rows_a_block_takes() {
    let Some(emulator) = emulator() else { return };
    for kernel in [
        "layer_norm_forward_narrow_f32",
        "layer_norm_forward_middle_f32",
        "rms_norm_forward_narrow_f32",
        "rms_norm_forward_middle_f32",
        "rms_norm_forward_f32",
    ] {
        let mut one_each = layer_norm_forward(kernel, 11, 517);
        if kernel.contains("narrow") {
            one_each = layer_norm_forward(kernel, 11, 130);
        }
        if kernel.starts_with("rms") {
            one_each.parts[6] = Part::Null;
        }
        let mut in_turn = one_each.clone();
        in_turn.grid = [2, 1, 1];
        let right = one_each.run(&emulator, &Options::default()).unwrap();
        for options in Options::proof(5) {
            assert_eq!(in_turn.run(&emulator, &options).unwrap(), right, "{kernel}");
        }
    }
}

#[test]
fn bugs_planted_in_the_norms_are_caught() {
    let Some(emulator) = emulator() else { return };
    layer_norm_forward("layer_norm_forward_f32", 3, 600).must_catch(
        &emulator,
        "block_sum: no barrier before the partial sums are read",
    );
    layer_norm_backward("layer_norm_backward_f32", 6, 600)
        .must_catch(&emulator, "norm: the same partial sums for every row");
    let mut in_turn = layer_norm_forward("layer_norm_forward_middle_f32", 6, 600);
    in_turn.grid = [2, 1, 1];
    in_turn.must_catch(&emulator, "norm: the same partial sums for every sum");
    for bug in [
        "norm: no barrier before the teams' sums are added",
        "norm: no barrier before the sums are written again",
    ] {
        layer_norm_backward("layer_norm_backward_narrow_f32", 6, 130).must_catch(&emulator, bug);
    }
    let parts = vec![
        Part::Out(40),
        Part::Out(40),
        Part::In(2 * 40 * 11),
        Part::I32(11),
        Part::I32(40),
    ];
    let sums = Trial {
        kernel: "norm_backward_parameters_f32",
        grid: [2, 2, 1],
        parts,
        scale: 1.0,
    };
    sums.must_catch(
        &emulator,
        "add_partials: no barrier before the groups' sums are added",
    );
}

#[test]
fn bugs_planted_in_the_gradient_norm_are_caught() {
    let Some(emulator) = emulator() else { return };
    let trial = Trial {
        kernel: "grad_norm_squares_f32",
        grid: [2, 1, 1],
        parts: vec![Part::Out(4), Part::In(3001), Part::I64(3001)],
        scale: 1.0,
    };
    trial.must_catch(
        &emulator,
        "grad_norm: no barrier before the warps' sums are added",
    );
}

#[test]
fn bugs_planted_in_the_ops_on_rows_are_caught() {
    let Some(emulator) = emulator() else { return };
    rope(11).must_catch(&emulator, "rope: no barrier before the table is read");
    let count = 11 * 4 * 24;
    let tensors = [
        Part::Out(count),
        Part::Out(2 * 2 * 24),
        Part::In(count),
        Part::In(count),
    ];
    qk_norm("qk_norm_backward_f32", 11, &tensors).must_catch(
        &emulator,
        "qk_norm: no barrier before the groups' sums are added",
    );
    layer_scale_backward(40, 100).must_catch(
        &emulator,
        "layer_scale: no barrier before the warps' sums are added",
    );
    // So short that their squares vanish.
    let mut tiny = l2_normalize_forward(3, 600);
    tiny.scale = 1e-30;
    tiny.must_catch(
        &emulator,
        "team_max: no barrier before the warps' maxima are compared",
    );
}

/// y, x, weights, index, equal factor, tokens, columns, with a block for each batch row and 128 columns.
fn pooling_forward(batch: usize, tokens: usize, columns: usize) -> Trial {
    let parts = vec![
        Part::Out(batch * columns),
        Part::In(batch * tokens * columns),
        Part::In(batch * tokens),
        Part::Null,
        Part::F32(0.0),
        Part::I32(tokens as i32),
        Part::I32(columns as i32),
    ];
    Trial {
        kernel: "pooling_forward_f32",
        grid: [batch as u32, columns.div_ceil(128) as u32, 1],
        parts,
        scale: 1.0,
    }
}

#[test]
fn bugs_planted_in_pooling_are_caught() {
    let Some(emulator) = emulator() else { return };
    pooling_forward(2, 19, 150).must_catch(
        &emulator,
        "pooling: no barrier before the warps' sums are read",
    );
}

#[test]
fn bugs_planted_in_the_gradient_of_a_table_are_caught() {
    let Some(emulator) = emulator() else { return };
    let count = 600;
    let run = |options: &Options<'_>| -> Result<Vec<i32>> {
        let [mut order, mut keys, mut ids] = [(); 3].map(|()| {
            emulator
                .allocate(Element::I32, count)
                .expect("a little memory")
        });
        ids.write(&Random::new(5).integers(count, 40))?;
        for buffer in [&mut order, &mut keys] {
            buffer.write(&vec![-1i32; count])?;
        }
        let arguments = [
            Argument::whole(&order),
            Argument::whole(&keys),
            Argument::whole(&ids),
            Argument::I32(count as i32),
            Argument::I32(30),
        ];
        let kernel = emulator.kernel("embedding_backward_order_i32")?;
        let shared = kernel.shared_bytes;
        emulator.launch(&kernel, [3, 1, 1], [256, 1, 1], shared, &arguments, options)?;
        order.read::<i32>()
    };
    let ids = Random::new(5).integers(count, 40);
    let mut want: Vec<i32> = (0..count as i32).collect();
    want.sort_by_key(|place| ids[*place as usize].min(30));
    for bug in [
        "embedding: no barrier before the keys are compared",
        "embedding: no barrier before the next keys are written",
    ] {
        let mut caught = false;
        for options in Options::proof(0) {
            assert_eq!(run(&options).expect("the kernel is clean"), want);
            let options = Options {
                planted_bug: Some(bug),
                ..options
            };
            caught |= match run(&options) {
                Ok(found) => found != want,
                Err(problem) => !problem.to_string().contains("PLANTED_BUG"),
            };
        }
        assert!(caught, "{bug}");
    }
}
