//! Merges neighbouring image tokens into wider ones.
//!
//! y[b, i·(w/f)+j, (di·f+dj)·C + c] = x[b, (f·i+di)·w + f·j+dj, c] for di, dj in 0..f: the neighbours of a square
//! follow one another row by row, as the connector of InternVL and SAIL-VL orders them. Backward is the inverse.
//! Elements dj·C + c of one di lie together on both sides, so every move is f·C elements long.
//!
//! Shapes: x [B, h·w, C], y [B, h·w/f², f²·C]. Nothing is saved or computed; every byte is read and written once.

use rayon::prelude::*;

use crate::launch::{Argument, Launch, index, kernels, move_blocks};
use crate::tape::{
    Backward, CompileTarget, Cost, CpuArgs, Element, Op, ReferenceArgs, Tape, Value, with_element,
};
use crate::tensor::TensorType;
use keel_base::error::{Error, Result};

/// Merges squares of `factor` × `factor` tokens of a grid.
///
/// Shapes: `x` [B, height·width, C], row-major; the result is [B, height·width/factor², factor²·C], the tokens of a
/// square in row-major order. Drop class tokens before.
///
/// # Errors
/// [`Error::Shape`] when the grid is not `x`'s or `factor` does not divide its sides.
pub fn pixel_unshuffle(
    tape: &mut Tape,
    x: Value,
    height: usize,
    width: usize,
    factor: usize,
) -> Result<Value> {
    let op = PixelUnshuffle {
        height,
        width,
        factor,
        direction: Direction::Merge,
    };
    tape.record_one(op, &[x])
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Direction {
    /// [B, h·w, C] → [B, h·w/f², f²·C].
    Merge,
    /// The inverse.
    Spread,
}

/// Input: x. Output: y.
#[derive(Clone, Copy, Debug)]
struct PixelUnshuffle {
    height: usize,
    width: usize,
    factor: usize,
    direction: Direction,
}

impl PixelUnshuffle {
    /// Calls `copy(fine, merged)` with the first elements of all runs of f·C elements of one row of squares, whose fine
    /// tokens are `columns` wide.
    fn runs(&self, columns: usize, mut copy: impl FnMut(usize, usize)) {
        let factor = self.factor;
        for j in 0..self.width / factor {
            for di in 0..factor {
                let fine = (di * self.width + factor * j) * columns;
                copy(fine, (j * factor + di) * factor * columns);
            }
        }
    }

    /// The width C of the fine tokens.
    fn columns(&self, input: &TensorType) -> usize {
        match self.direction {
            Direction::Merge => input.shape.columns(),
            Direction::Spread => input.shape.columns() / (self.factor * self.factor),
        }
    }
}

impl PixelUnshuffle {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let x = args.inputs.of::<T>(0);
        let y = args.outputs.in_order().next::<T>();
        let columns = self.columns(&args.input_types[0]);
        let run = self.factor * columns;
        // A task is one row of squares; both sides hold it in one piece.
        let squares = self.factor * self.width * columns;
        y.par_chunks_mut(squares)
            .zip(x.par_chunks(squares))
            .for_each(|(y, x)| {
                self.runs(columns, |fine, merged| match self.direction {
                    Direction::Merge => y[merged..][..run].copy_from_slice(&x[fine..][..run]),
                    Direction::Spread => y[fine..][..run].copy_from_slice(&x[merged..][..run]),
                });
            });
    }
}

impl Op for PixelUnshuffle {
    fn name(&self) -> &'static str {
        "pixel_unshuffle"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let (height, width, factor) = (self.height, self.width, self.factor);
        let divides = factor > 0 && height.is_multiple_of(factor) && width.is_multiple_of(factor);
        if !divides || height == 0 || width == 0 {
            return Err(Error::shape(
                self.name(),
                "the grid",
                format!("divisible by the factor {factor} on both sides"),
                format!("{height} × {width}: pad or resize it"),
            ));
        }
        let square = factor * factor;
        let (tokens, width_rule) = match self.direction {
            Direction::Merge => (height * width, 1),
            Direction::Spread => (height * width / square, square),
        };
        match *inputs[0].shape.dims() {
            [batch, found, columns]
                if found == tokens
                    && columns > 0
                    && columns.is_multiple_of(width_rule)
                    && inputs[0].dtype.is_float() =>
            {
                let shape = match self.direction {
                    Direction::Merge => [batch, tokens / square, columns * square],
                    Direction::Spread => [batch, tokens * square, columns / square],
                };
                Ok(vec![TensorType::new(inputs[0].dtype, shape)])
            }
            _ => {
                let want = format!("floats [B, {tokens}, C] for a grid of {height} × {width}");
                Err(Error::shape(self.name(), "x", want, inputs[0]))
            }
        }
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([x], [y]) = args.split();
        let (factor, width) = (self.factor, self.width);
        let columns = match self.direction {
            Direction::Merge => x.columns(),
            Direction::Spread => y.columns(),
        };
        let one = self.height * width * columns;
        for (x, y) in x.float().chunks(one).zip(y.float_mut().chunks_mut(one)) {
            for row in 0..self.height {
                for column in 0..width {
                    for c in 0..columns {
                        let fine = (row * width + column) * columns + c;
                        let square = row / factor * (width / factor) + column / factor;
                        let place = row % factor * factor + column % factor;
                        let merged = (square * factor * factor + place) * columns + c;
                        match self.direction {
                            Direction::Merge => y[merged] = x[fine],
                            Direction::Spread => y[fine] = x[merged],
                        }
                    }
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
        outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let (family, fine) = match self.direction {
            Direction::Merge => (kernels::PIXEL_UNSHUFFLE_MERGE, inputs[0]),
            Direction::Spread => (kernels::PIXEL_UNSHUFFLE_SPREAD, outputs[0]),
        };
        let kernel = family.of(fine.dtype)?;
        let arguments = vec![
            Argument::output(0),
            Argument::input(0),
            Argument::I64(fine.shape.rows() as i64),
            index(kernel, "the number of columns", fine.shape.columns())?,
            index(kernel, "the grid's height", self.height)?,
            index(kernel, "the grid's width", self.width)?,
            index(kernel, "the factor", self.factor)?,
        ];
        let blocks = move_blocks(kernel, fine)?;
        Ok(vec![Launch::new(kernel, blocks, arguments)])
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let direction = match self.direction {
            Direction::Merge => Direction::Spread,
            Direction::Spread => Direction::Merge,
        };
        let dy = backward.gradient(0);
        let dx = backward
            .tape
            .record_one(PixelUnshuffle { direction, ..*self }, &[dy])?;
        Ok(vec![Some(dx)])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(0.0, inputs, outputs)
    }
}
