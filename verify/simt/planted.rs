//! Mistakes planted in the kernels of the product, at the places where threads wait for each other: each must show, as a
//! report or as other bits than the kernel gives without it. A test that could not see them would prove nothing.

use super::emulator;
use crate::harness::Random;
use keel::error::Result;
use keel::executor::simt::{Argument, Buffer, Element, Emulator, Options};

/// One argument of a kernel.
enum Part {
    /// Floats drawn at random.
    In(usize),
    /// Floats that the kernel writes.
    Out(usize),
    Null,
    I32(i32),
    I64(i64),
    F32(f32),
}

/// A launch of one block or a few.
struct Trial {
    kernel: &'static str,
    grid: [u32; 3],
    parts: Vec<Part>,
}

impl Trial {
    /// The bits of everything the kernel writes.
    fn run(&self, emulator: &Emulator, options: &Options<'_>) -> Result<Vec<u32>> {
        let mut random = Random::new(7);
        let mut buffers: Vec<Buffer> = Vec::new();
        for part in &self.parts {
            if let Part::In(count) | Part::Out(count) = part {
                let mut buffer = emulator.allocate(Element::F32, *count)?;
                if let Part::In(_) = part {
                    buffer.write(&random.normals(*count, 1.0))?;
                }
                buffers.push(buffer);
            }
        }
        let mut next = buffers.iter();
        let arguments: Vec<Argument<'_>> = self
            .parts
            .iter()
            .map(|part| match part {
                Part::In(_) | Part::Out(_) => Argument::whole(next.next().expect("one for each")),
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
        let pointers = self
            .parts
            .iter()
            .filter(|part| matches!(part, Part::In(_) | Part::Out(_)));
        let mut found = Vec::new();
        for (part, buffer) in pointers.zip(&buffers) {
            if let Part::Out(_) = part {
                found.extend(buffer.read::<f32>()?.iter().map(|x| x.to_bits()));
            }
        }
        Ok(found)
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
    };
    trial.must_catch(
        &emulator,
        "grad_norm: no barrier before the warps' sums are added",
    );
}
