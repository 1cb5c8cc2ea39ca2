//! Rotary position embedding of packed query and key rows.
//!
//! The pair (x[i], x[i + D/2]) of every query and key head turns by an angle φ of its token:
//!   y[i] = x[i] cos φ − x[i + D/2] sin φ      y[i + D/2] = x[i + D/2] cos φ + x[i] sin φ      0 ≤ i < D/2
//! One axis: φ = position · θ^(−2i/D). Two axes: the pairs 0..D/4 turn by row · θ^(−2i/(D/2)), and the pairs D/4..D/2 by
//! column with the same frequencies, as in the vision tower of Qwen2-VL. Where a grid is centred, rows and columns are those
//! of the patches' centres, 2π · (2·(place + ½)/count − 1), so that a grid of any size spans the same angles, as in DINOv3.
//! Backward turns by −φ. Values are copied.
//!
//! Shapes: qkv and y [B, T, (H+2Hk)·D]. Saved: the positions, when they are given. 3·D flops a query or key head of a
//! row; every byte once, none when the output takes the input's place except those that turn.
//! Sources: Su et al. 2021, section 3.2.2, in the rotate-half order of GPT-NeoX; Siméoni et al. 2025 (DINOv3), section 3.2.

use std::f64::consts::TAU;

use rayon::prelude::*;

use super::attention::{Heads, check_heads, rows};
use crate::launch::kernels::constants::rope::{ROPE_PAIRS, ROPE_ROWS};
use crate::launch::{Argument, Launch, blocks, index, kernels};
use crate::ops::rows::rows_per_task;
use crate::tape::{
    Backward, CompileTarget, Cost, CpuArgs, Element, Op, ReferenceArgs, Tape, Target, Value,
    with_element,
};
use crate::tensor::{DType, TensorType};
use keel_base::error::{Error, Result};

/// The largest head that the table of `cuda/rope.cu` holds.
const LARGEST_DIM: usize = 2 * ROPE_PAIRS;

/// The positions of the tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Positions {
    /// 0, 1, 2, … in every batch row.
    Sequential,
    /// i32 [B, T]; or i32 [B, T, 2], the row and column of each token, for two axes.
    Given(Value),
    /// A row-major grid of T = height·width tokens: two axes.
    Grid {
        /// Rows of the grid.
        height: usize,
        /// Columns of the grid.
        width: usize,
    },
    /// A row-major grid of height·width patches by their centres, behind tokens that do not turn: two axes.
    CentredGrid {
        /// Tokens before the grid.
        before: usize,
        /// Rows of the grid.
        height: usize,
        /// Columns of the grid.
        width: usize,
    },
}

/// Turns the queries and keys of packed rows by their positions.
///
/// Shapes: `qkv` and the result [B, T, (H+2Hk)·D].
///
/// # Errors
/// [`Error::Shape`] when a shape differs, the grid has another number of tokens, or `theta` is not positive.
pub fn rope(
    tape: &mut Tape,
    qkv: Value,
    heads: Heads,
    theta: f32,
    positions: Positions,
) -> Result<Value> {
    let op = |form| Rope {
        heads,
        theta,
        form,
        turns_back: false,
    };
    match positions {
        Positions::Sequential => tape.record_one(op(Form::Sequential), &[qkv]),
        Positions::Given(positions) => tape.record_one(op(Form::Given), &[qkv, positions]),
        Positions::Grid { height, width } => {
            tape.record_one(op(Form::Grid { height, width }), &[qkv])
        }
        Positions::CentredGrid {
            before,
            height,
            width,
        } => {
            let form = Form::CentredGrid {
                before,
                height,
                width,
            };
            tape.record_one(op(form), &[qkv])
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Form {
    Sequential,
    /// Two axes when the positions have three dimensions.
    Given,
    Grid {
        height: usize,
        width: usize,
    },
    CentredGrid {
        before: usize,
        height: usize,
        width: usize,
    },
}

/// Inputs: qkv, and the positions where they are given. Output: y.
#[derive(Clone, Copy, Debug)]
struct Rope {
    heads: Heads,
    theta: f32,
    form: Form,
    /// Whether it turns by −φ.
    turns_back: bool,
}

/// How positions follow from a token's place.
#[derive(Clone, Copy)]
struct Angles<'a> {
    form: Form,
    positions: &'a [i32],
    axes: usize,
    /// D.
    dim: usize,
    theta: f64,
    sign: f64,
}

impl Angles<'_> {
    /// θ^(−2i/D), or θ^(−2i/(D/2)) within each axis's half of the pairs.
    fn frequency(&self, pair: usize) -> f64 {
        let pairs = self.dim / 2 / self.axes;
        self.theta.powf(-((pair % pairs) as f64) / pairs as f64)
    }

    /// What pair `pair` of row `row` multiplies its frequency with.
    fn position(&self, row: usize, pair: usize) -> f64 {
        let axis = pair / (self.dim / 2 / self.axes);
        let position = match self.form {
            Form::Sequential => row as f64,
            Form::Given => f64::from(self.positions[row * self.axes + axis]),
            Form::Grid { width, .. } if axis == 0 => (row / width) as f64,
            Form::Grid { width, .. } => (row % width) as f64,
            Form::CentredGrid { before, .. } if row < before => 0.0,
            Form::CentredGrid {
                before,
                height,
                width,
            } => match axis {
                0 => centre((row - before) / width, height),
                _ => centre((row - before) % width, width),
            },
        };
        position * self.sign
    }
}

/// 2π times the centre of the place `place` of `count` on an axis from −1 to 1.
fn centre(place: usize, count: usize) -> f64 {
    TAU * ((2 * place + 1) as f64 / count as f64 - 1.0)
}

impl Rope {
    fn angles<'a>(&self, positions: &'a [i32], inputs: &[TensorType]) -> Angles<'a> {
        Angles {
            form: self.form,
            positions,
            axes: self.axes(inputs),
            dim: self.heads.dim,
            theta: f64::from(self.theta),
            sign: if self.turns_back { -1.0 } else { 1.0 },
        }
    }

    fn axes(&self, inputs: &[TensorType]) -> usize {
        match self.form {
            Form::Sequential => 1,
            Form::Given => inputs[1].shape.rank() - 1,
            Form::Grid { .. } | Form::CentredGrid { .. } => 2,
        }
    }

    /// Rows of different angles: those of one batch row, unless positions are given for each.
    fn distinct_rows(&self, inputs: &[TensorType]) -> usize {
        match self.form {
            Form::Given => inputs[0].shape.rows(),
            _ => inputs[0].shape.dims()[1],
        }
    }

    /// Query and key heads: those that turn.
    fn turning(&self) -> usize {
        self.heads.query + self.heads.key_value
    }
}

impl Rope {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let qkv = args.inputs.of_or_in_place::<T>(0);
        let positions = match self.form {
            Form::Given => args.inputs.i32(1),
            _ => &[],
        };
        let y = args.outputs.in_order().next::<T>();
        let angles = self.angles(positions, args.input_types);
        let (width, dim) = (self.heads.packed_width(), self.heads.dim);
        // Sines and cosines once for each position and not for each head of each batch row: they cost far more than the
        // turning. A table row holds the cosines, then the sines of one row's pairs.
        let distinct = self.distinct_rows(args.input_types);
        let table = &mut args.workspace[..distinct * dim];
        let block = rows_per_task(16 * dim);
        table
            .par_chunks_mut(block * dim)
            .enumerate()
            .for_each(|(task, table)| {
                for pair in 0..dim / 2 {
                    let frequency = angles.frequency(pair);
                    for (row, table) in table.chunks_exact_mut(dim).enumerate() {
                        // In f64: a position in the thousands times a frequency leaves f32 no digits of the angle.
                        let angle = angles.position(task * block + row, pair) * frequency;
                        let (sine, cosine) = angle.sin_cos();
                        table[pair] = cosine as f32;
                        table[pair + dim / 2] = sine as f32;
                    }
                }
            });
        let table = &*table;
        let block = rows_per_task(width);
        y.par_chunks_mut(block * width)
            .enumerate()
            .for_each(|(task, y)| {
                if let Some(qkv) = qkv {
                    y.copy_from_slice(&qkv[task * block * width..][..y.len()]);
                }
                for (row, y) in y.chunks_exact_mut(width).enumerate() {
                    let row = (task * block + row) % distinct;
                    let (cosines, sines) = table[row * dim..][..dim].split_at(dim / 2);
                    for y in y.chunks_exact_mut(dim).take(self.turning()) {
                        turn(y, cosines, sines);
                    }
                }
            });
    }
}

impl Op for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        check_heads(self.name(), self.heads)?;
        // Also refuses NaN.
        if !(self.theta > 0.0 && self.theta.is_finite()) {
            let want = "a positive number";
            return Err(Error::shape(self.name(), "theta", want, self.theta));
        }
        let [batch, tokens] = rows(self.name(), "qkv", inputs[0], self.heads.packed_width())?;
        match self.form {
            Form::Sequential => {}
            Form::Given => {
                let dims = inputs[1].shape.dims();
                let fits = dims == [batch, tokens] || dims == [batch, tokens, 2];
                if !fits || inputs[1].dtype != DType::I32 {
                    let want = format!("i32 [{batch}, {tokens}] or [{batch}, {tokens}, 2]");
                    return Err(Error::shape(self.name(), "positions", want, inputs[1]));
                }
            }
            Form::Grid { height, width } => {
                hold_grid(self.name(), tokens, (height, width))?;
            }
            Form::CentredGrid {
                before,
                height,
                width,
            } => {
                let patches = tokens.saturating_sub(before);
                hold_grid(self.name(), patches, (height, width))?;
            }
        }
        Ok(vec![inputs[0]])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let qkv = args.inputs[0];
        let positions = args.inputs.get(1);
        let types: Vec<_> = args
            .inputs
            .iter()
            .map(|a| TensorType::f32(a.shape))
            .collect();
        let angles = self.angles(positions.map_or(&[], |p| p.int()), &types);
        let (width, dim) = (qkv.columns(), self.heads.dim);
        let distinct = self.distinct_rows(&types);
        let y = args.outputs[0].float_mut();
        y.copy_from_slice(qkv.float());
        for (row, y) in y.chunks_exact_mut(width).enumerate() {
            for y in y.chunks_exact_mut(dim).take(self.turning()) {
                for pair in 0..dim / 2 {
                    let angle = angles.position(row % distinct, pair) * angles.frequency(pair);
                    let (sine, cosine) = angle.sin_cos();
                    let (first, second) = (y[pair], y[pair + dim / 2]);
                    y[pair] = first * cosine - second * sine;
                    y[pair + dim / 2] = second * cosine + first * sine;
                }
            }
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_element!(args.input_types[0].dtype, T => self.compute::<T>(args));
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let kernel = kernels::ROPE.of(inputs[0].dtype)?;
        if self.heads.dim > LARGEST_DIM {
            return Err(Error::kernel(format!(
                "kernel {kernel}: a head has at most {LARGEST_DIM} columns, but {} are wanted; use more heads",
                self.heads.dim
            )));
        }
        let positions = match self.form {
            Form::Given => Argument::input(1),
            _ => Argument::Null,
        };
        // A height is told where the grid is centred.
        let [before, grid_height, grid_width] = match self.form {
            Form::Sequential | Form::Given => [0; 3],
            Form::Grid { width, .. } => [0, 0, width],
            Form::CentredGrid {
                before,
                height,
                width,
            } => [before, height, width],
        };
        let rows = inputs[0].shape.rows();
        // In f64, as its bits: arguments are no wider than f32 otherwise.
        let log2_theta = f64::from(self.theta).log2();
        let arguments = vec![
            Argument::output(0),
            Argument::input(0),
            positions,
            Argument::I64(self.distinct_rows(inputs) as i64),
            index(kernel, "the tokens before the grid", before)?,
            index(kernel, "the height of the grid", grid_height)?,
            index(kernel, "the width of the grid", grid_width)?,
            Argument::I32(self.axes(inputs) as i32),
            Argument::I64(log2_theta.to_bits().cast_signed()),
            Argument::F32(if self.turns_back { -1.0 } else { 1.0 }),
            index(kernel, "the number of heads", self.turning())?,
            index(kernel, "the number of heads", self.heads.key_value)?,
            Argument::I32(self.heads.dim as i32),
            Argument::I64(rows as i64),
        ];
        let blocks = blocks(kernel, rows, ROPE_ROWS)?;
        Ok(vec![Launch::new(kernel, blocks, arguments)])
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let op = Rope {
            turns_back: !self.turns_back,
            ..*self
        };
        let mut inputs = vec![backward.gradient(0)];
        inputs.extend(&backward.inputs[1..]);
        let gradient = backward.tape.record_one(op, &inputs)?;
        Ok([Some(gradient), None][..backward.inputs.len()].to_vec())
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let turned = inputs[0].shape.rows() * self.turning() * self.heads.dim;
        Cost::streaming(3.0 * turned as f64, inputs, outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        match compile_target.target {
            Target::Cpu { .. } => self.distinct_rows(inputs) * self.heads.dim * size_of::<f32>(),
            _ => 0,
        }
    }
}

/// Refuses a grid of another number of tokens.
fn hold_grid(op: &'static str, tokens: usize, (height, width): (usize, usize)) -> Result<()> {
    if height * width == tokens {
        return Ok(());
    }
    let want = format!("of {tokens} tokens");
    let got = format!("{height} × {width}");
    Err(Error::shape(op, "the grid", want, got))
}

/// Turns one head in its place.
fn turn<T: Element>(head: &mut [T], cosines: &[f32], sines: &[f32]) {
    let (first, second) = head.split_at_mut(cosines.len());
    let pairs = first.iter_mut().zip(second).zip(cosines).zip(sines);
    for (((first, second), cosine), sine) in pairs {
        let (x, y) = (first.widen(), second.widen());
        *first = T::rounded(x * cosine - y * sine);
        *second = T::rounded(y * cosine + x * sine);
    }
}
