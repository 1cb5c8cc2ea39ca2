//! A narrower matrix added to some columns of a wider one: y = x, and y[.., first + w] = x[.., first + w] + part[.., w] for the W
//! columns of the part. ∂x = dy; ∂part is dy's columns from `first` on.
//!
//! What adapts one of several projections that are packed into one product adds to that one's columns alone. Nothing is saved;
//! bound by memory, and where y takes x's place only the part's columns are touched.

use rayon::prelude::*;

use crate::launch::{Argument, Launch, index, kernels, move_blocks};
use crate::ops::shapes::{expect_float, expect_inputs, expect_type, with_columns};
use crate::tape::{
    Backward, CompileTarget, Cost, CpuArgs, Element, Op, ReferenceArgs, Tape, Value, with_element,
};
use crate::tensor::TensorType;
use keel_base::error::{Error, Result};

/// Rows of one task of the processor.
const ROWS_PER_TASK: usize = 64;

/// Records x [.., C] with `part` [.., W] of the same type and rows added to its columns from `first` on. The result may take x's
/// place.
///
/// # Errors
/// [`Error::Shape`] when the part does not lie within x's columns.
pub fn add_columns(tape: &mut Tape, x: Value, part: Value, first: usize) -> Result<Value> {
    tape.record_one(AddColumns { first }, &[x, part])
}

/// Inputs x, part; output y.
#[derive(Clone, Copy, Debug)]
struct AddColumns {
    first: usize,
}

impl AddColumns {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let (columns, width) = (
            args.input_types[0].shape.columns(),
            args.input_types[1].shape.columns(),
        );
        let x = args.inputs.of_or_in_place::<T>(0);
        let part = args.inputs.of::<T>(1);
        let y = args.outputs.in_order().next::<T>();
        let task = ROWS_PER_TASK * columns;
        y.par_chunks_mut(task)
            .zip(part.par_chunks(ROWS_PER_TASK * width))
            .enumerate()
            .for_each(|(index, (y, part))| {
                if let Some(x) = x {
                    y.copy_from_slice(&x[index * task..][..y.len()]);
                }
                for (y, part) in y.chunks_mut(columns).zip(part.chunks(width)) {
                    for (y, part) in y[self.first..].iter_mut().zip(part) {
                        *y = T::rounded(y.widen() + part.widen());
                    }
                }
            });
    }
}

impl Op for AddColumns {
    fn name(&self) -> &'static str {
        "add_columns"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [x, part] = expect_inputs(self.name(), inputs)?;
        expect_float(self.name(), "x", 1, x)?;
        expect_float(self.name(), "part", 1, part)?;
        let width = part.shape.columns();
        let want = TensorType::new(x.dtype, with_columns(x.shape, width));
        expect_type(self.name(), "part", "x's rows and type", want, part)?;
        if width == 0 || self.first + width > x.shape.columns() {
            let want = format!(
                "1 to {} columns",
                x.shape.columns().saturating_sub(self.first)
            );
            return Err(Error::shape(self.name(), "part", want, part));
        }
        Ok(vec![x])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([x, part], [y]) = args.split();
        let (columns, width) = (x.columns(), part.columns());
        y.float_mut().copy_from_slice(x.float());
        for (index, part) in part.float().iter().enumerate() {
            y.float_mut()[index / width * columns + self.first + index % width] += part;
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
        let (part, y) = (inputs[1], outputs[0]);
        let kernel = kernels::ADD_COLUMNS_FORWARD.of(y.dtype)?;
        let arguments = vec![
            Argument::output(0),
            Argument::input(0),
            Argument::input(1),
            Argument::I64(y.shape.rows() as i64),
            index(kernel, "the number of columns", y.shape.columns())?,
            index(kernel, "the first column", self.first)?,
            index(kernel, "the part's columns", part.shape.columns())?,
        ];
        let blocks = move_blocks(kernel, y)?;
        Ok(vec![Launch::new(kernel, blocks, arguments)])
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let dy = backward.gradient(0);
        let width = backward.tape.shape(backward.inputs[1]).columns();
        let dpart = match backward.needs(1) {
            true => {
                let op = AddColumnsBackward {
                    first: self.first,
                    width,
                };
                Some(backward.tape.record_one(op, &[dy])?)
            }
            false => None,
        };
        Ok(vec![backward.needs(0).then_some(dy), dpart])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(inputs[1].numel() as f64, inputs, outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}

/// Input dy; output ∂part.
#[derive(Clone, Copy, Debug)]
struct AddColumnsBackward {
    first: usize,
    width: usize,
}

impl AddColumnsBackward {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let columns = args.input_types[0].shape.columns();
        let dy = args.inputs.of::<T>(0);
        let dpart = args.outputs.in_order().next::<T>();
        dpart
            .par_chunks_mut(ROWS_PER_TASK * self.width)
            .zip(dy.par_chunks(ROWS_PER_TASK * columns))
            .for_each(|(dpart, dy)| {
                for (dpart, dy) in dpart.chunks_mut(self.width).zip(dy.chunks(columns)) {
                    dpart.copy_from_slice(&dy[self.first..][..self.width]);
                }
            });
    }
}

impl Op for AddColumnsBackward {
    fn name(&self) -> &'static str {
        "add_columns_backward"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [dy] = expect_inputs(self.name(), inputs)?;
        expect_float(self.name(), "dy", 1, dy)?;
        let dpart = TensorType::new(dy.dtype, with_columns(dy.shape, self.width));
        Ok(vec![dpart])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([dy], [dpart]) = args.split();
        let columns = dy.columns();
        for (index, dpart) in dpart.float_mut().iter_mut().enumerate() {
            let (row, column) = (index / self.width, index % self.width);
            *dpart = dy.float()[row * columns + self.first + column];
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
        let (dy, dpart) = (inputs[0], outputs[0]);
        let kernel = kernels::ADD_COLUMNS_BACKWARD.of(dy.dtype)?;
        let arguments = vec![
            Argument::output(0),
            Argument::input(0),
            Argument::I64(dy.shape.rows() as i64),
            index(kernel, "the number of columns", dy.shape.columns())?,
            index(kernel, "the first column", self.first)?,
            index(kernel, "the part's columns", self.width)?,
        ];
        let blocks = move_blocks(kernel, dpart)?;
        Ok(vec![Launch::new(kernel, blocks, arguments)])
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(0.0, outputs, outputs)
    }
}
