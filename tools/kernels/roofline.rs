//! The least time that a chip needs for an op (Williams, Waterman and Patterson 2009): its arithmetic at the chip's speed,
//! or its bytes at the memory's, whichever takes longer. Both come from the op's own cost, so this holds for any kernel.
//!
//! Matrix products are measured against the tensor cores' bf16 speed, an f32 program's against a sixth of it, because each f32
//! product is six products of bf16 parts. Everything else is measured against the chip's f32 arithmetic.

use super::{CHIPS, Chip, Direction, Size, examples, record_update, update_shape};
use keel_base::error::{Error, Result};
use keel_engine::program::{CompileOptions, PlannedOp, Program};
use keel_engine::tape::{Cost, Tape, Target, UPDATE};
use keel_engine::tensor::DType;

/// bf16 products that make up one f32 product: hi·hi, hi·mid, mid·hi, hi·lo, lo·hi, mid·mid.
const PARTS_OF_F32: f64 = 6.0;

/// What takes longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Matrix products on the tensor cores.
    Tensor,
    /// Arithmetic outside them.
    Arithmetic,
    /// Reading and writing device memory.
    Memory,
}

impl Bound {
    /// The word for tables.
    pub const fn name(self) -> &'static str {
        match self {
            Bound::Tensor => "tensor",
            Bound::Arithmetic => "arithmetic",
            Bound::Memory => "memory",
        }
    }
}

/// One op of an example and the work it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// The example's op.
    pub example: &'static str,
    /// Its shape.
    pub shape: String,
    /// The op of the program: the example's own, or one of its backward.
    pub op: &'static str,
    /// What the program computes in.
    pub precision: DType,
    /// Whether its work is matrix products.
    pub is_product: bool,
    /// Flops and bytes.
    pub cost: Cost,
    /// The kernels it launches; empty when it has none for these types.
    pub kernels: Vec<String>,
}

impl Work {
    /// The least seconds on `chip`, and what bounds it.
    pub fn least_seconds(&self, chip: &Chip) -> (f64, Bound) {
        let (peak, bound) = match (self.is_product, self.precision) {
            (true, DType::Bf16) => (chip.tensor_flops, Bound::Tensor),
            (true, _) => (chip.tensor_flops / PARTS_OF_F32, Bound::Tensor),
            (false, _) => (chip.f32_flops, Bound::Arithmetic),
        };
        let arithmetic = self.cost.flops / peak;
        let memory = (self.cost.bytes_read + self.cost.bytes_written) / chip.bandwidth;
        if arithmetic > memory {
            (arithmetic, bound)
        } else {
            (memory, Bound::Memory)
        }
    }

    /// Flops for each byte.
    pub fn intensity(&self) -> f64 {
        self.cost.flops / (self.cost.bytes_read + self.cost.bytes_written)
    }

    /// The least seconds on each chip.
    pub fn on_every_chip(&self) -> [(f64, Bound); CHIPS.len()] {
        CHIPS.map(|chip| self.least_seconds(&chip))
    }
}

/// An example or the update, recorded.
pub(super) struct Recorded {
    /// Its op, `update` for the update.
    pub example: &'static str,
    /// Its shape.
    pub shape: String,
    is_product: bool,
    precision: DType,
    /// The tape.
    pub tape: Tape,
    /// Elements of the parameter arena.
    pub elements: usize,
}

/// Every example of a size and the update in `precision`, forward and backward. An op that has no form in that precision is
/// recorded in f32.
pub(super) fn record_all(size: Size, precision: DType) -> Result<Vec<Recorded>> {
    let mut all = Vec::new();
    for example in examples(size) {
        let (precision, tape) = match example.record(precision, Direction::Both) {
            Ok(tape) => (precision, tape),
            // An op that has no form in this precision runs in f32 in every program; any other error is one.
            Err(Error::Shape { .. }) => (DType::F32, example.record(DType::F32, Direction::Both)?),
            Err(problem) => return Err(problem),
        };
        all.push(Recorded {
            example: example.op,
            shape: example.shape,
            is_product: example.is_product,
            precision,
            tape,
            elements: 0,
        });
    }
    let (rows, columns) = update_shape(size);
    let (tape, layout) = record_update(precision, rows, columns)?;
    all.push(Recorded {
        example: UPDATE,
        shape: format!("{} parameters", rows * columns),
        is_product: false,
        precision,
        tape,
        elements: layout.elements(),
    });
    Ok(all)
}

/// The ops of every example of a size in `precision`, forward and backward, and of the update. An op that has no form in
/// that precision is given in f32.
///
/// # Errors
/// Whatever recording or planning an example reports.
pub fn works(size: Size, precision: DType) -> Result<Vec<Work>> {
    let options = CompileOptions {
        // Where the values lie does not matter here, so nothing is searched for.
        share_memory: false,
        ..CompileOptions::new(Target::Cuda)
    };
    let mut all: Vec<Work> = Vec::new();
    for mut recorded in record_all(size, precision)? {
        let tape = std::mem::replace(&mut recorded.tape, Tape::declaring());
        let program = Program::compile(tape, &options)?;
        for work in works_of(&recorded, &program).into_iter().flatten() {
            // A layer of another form has the same backward.
            if !all.contains(&work) {
                all.push(work);
            }
        }
    }
    Ok(all)
}

/// The work of each op of an example's program; none for what only prepares the update.
pub(super) fn works_of(recorded: &Recorded, program: &Program) -> Vec<Option<Work>> {
    let works = program.ops().iter().map(|op| {
        let is_counted = recorded.example != UPDATE || op.instruction.scope.as_ref() == UPDATE;
        is_counted.then(|| Work {
            example: recorded.example,
            shape: recorded.shape.clone(),
            is_product: recorded.is_product,
            ..work(program, op, recorded.precision)
        })
    });
    works.collect()
}

/// The work of one op of a program; the caller names the example.
fn work(program: &Program, op: &PlannedOp, precision: DType) -> Work {
    let instruction = &op.instruction;
    let [inputs, outputs] = instruction.types(program.values());
    let launches = instruction
        .op
        .launches(&inputs, &outputs, program.compile_target());
    Work {
        example: "",
        shape: String::new(),
        op: instruction.op.name(),
        precision,
        is_product: false,
        cost: program.op_cost(op),
        kernels: launches.map_or(Vec::new(), |launches| {
            launches
                .into_iter()
                .map(|launch| launch.kernel.name.to_owned())
                .collect()
        }),
    }
}
