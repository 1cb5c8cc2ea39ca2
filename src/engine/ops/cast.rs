//! The same numbers in another storage type.
//!
//! y = x, rounded to nearest (ties to even) where the type is narrower; dx = dy in x's type. The reference holds every
//! float in f64 and leaves the rounding to whoever stores y. Nothing is saved; bound by memory.

use half::bf16;
use rayon::prelude::*;

use crate::launch::kernels::constants::cast::{CAST_ELEMENTS, CAST_THREADS};
use crate::launch::{Argument, Launch, blocks, kernels};
use crate::tape::{Backward, CompileTarget, Cost, CpuArgs, Op, ReferenceArgs, Tape, Value};
use crate::tensor::{DType, TensorType};
use keel_base::error::{Error, Result};
use keel_cpu::{round, widen};

/// Elements that one task converts.
const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// Records x in the type `dtype`; x itself where it has that type already.
///
/// # Errors
/// [`Error::Shape`] for integers.
pub fn cast(tape: &mut Tape, x: Value, dtype: DType) -> Result<Value> {
    if tape.ty(x).dtype == dtype {
        Ok(x)
    } else {
        tape.record_one(Cast { dtype }, &[x])
    }
}

/// Input: x. Output: y of another float type.
#[derive(Clone, Copy, Debug)]
struct Cast {
    dtype: DType,
}

impl Op for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let x = inputs[0];
        if !x.dtype.is_float() || !self.dtype.is_float() || x.dtype == self.dtype {
            let want = format!("floats of another type than {}", self.dtype);
            return Err(Error::shape(self.name(), "x", want, x));
        }
        Ok(vec![TensorType::new(self.dtype, x.shape)])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([x], [y]) = args.split();
        y.data = x.data.clone();
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        // Two float types, and one of them is not the other.
        match self.dtype {
            DType::Bf16 => {
                let (x, y) = (args.inputs.f32(0), args.outputs.in_order().next::<bf16>());
                y.par_chunks_mut(ELEMENTS_PER_TASK)
                    .zip(x.par_chunks(ELEMENTS_PER_TASK))
                    .for_each(|(y, x)| round(x, y));
            }
            _ => {
                let (x, y) = (args.inputs.of::<bf16>(0), args.outputs.in_order().next());
                y.par_chunks_mut(ELEMENTS_PER_TASK)
                    .zip(x.par_chunks(ELEMENTS_PER_TASK))
                    .for_each(|(y, x)| widen(x, y));
            }
        }
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let x = inputs[0];
        // Two float types, and one of them is not the other.
        let kernel = match self.dtype {
            DType::Bf16 => kernels::CAST_F32_TO_BF16,
            _ => kernels::CAST_BF16_TO_F32,
        };
        let blocks = blocks(kernel, x.numel(), CAST_THREADS * CAST_ELEMENTS)?;
        let arguments = vec![
            Argument::output(0),
            Argument::input(0),
            Argument::I64(x.numel() as i64),
        ];
        Ok(vec![Launch::new(kernel, blocks, arguments)])
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let dtype = backward.tape.ty(backward.inputs[0]).dtype;
        let dy = backward.gradient(0);
        Ok(vec![Some(cast(backward.tape, dy, dtype)?)])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(0.0, inputs, outputs)
    }
}
