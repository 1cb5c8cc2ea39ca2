//! The exponential moving average of parameters (EMA; Polyak and Juditsky 1992), over flat ranges of the arenas.
//!
//! e ← e + (1 − d)(p − e) after every update, with the decay d. The average begins as the parameters, which its owner writes
//! there. A clip factor that is not finite leaves it as it is: the step did not happen. Averages are f32, of the f32
//! parameters, in any precision. 3 flops and 12 bytes a parameter: bound by memory.

use rayon::prelude::*;

use super::shapes::expect_inputs;
use crate::launch::kernels::constants::ema::{EMA_ELEMENTS, EMA_THREADS};
use crate::launch::{Argument, Launch, blocks, kernels};
use crate::tape::{CompileTarget, Cost, CpuArgs, Op, ReferenceArgs};
use crate::tensor::TensorType;
use keel_base::error::{Error, Result};

/// The slot of the optimiser's state that holds the averages.
pub const EMA_STATE: &str = "ema";

/// Elements of one task.
const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// Inputs: averages [n], parameters [n], clip factor [1]. Output: the new averages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ema {
    /// 1 − d, computed in f64: in f32, 1 − 0.9999 would be wrong in its fourth digit.
    pub rest: f32,
}

impl Ema {
    /// Of this decay.
    pub fn new(decay: f64) -> Ema {
        Ema {
            rest: (1.0 - decay) as f32,
        }
    }
}

impl Op for Ema {
    fn name(&self) -> &'static str {
        "ema"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [average, parameters, scale] = &expect_inputs("ema", inputs)?;
        if *average != TensorType::f32(average.shape) {
            let want = TensorType::f32(average.shape);
            return Err(Error::shape("ema", "averages", want, average));
        }
        if parameters != average {
            return Err(Error::shape("ema", "parameters", average, parameters));
        }
        let want = TensorType::f32([1]);
        if *scale != want {
            return Err(Error::shape("ema", "clip_scale", want, scale));
        }
        Ok(vec![*average])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([average, parameters, scale], [out]) = args.split();
        let moves = scale.float()[0].is_finite();
        let values = average.float().iter().zip(parameters.float());
        for (out, (e, p)) in out.float_mut().iter_mut().zip(values) {
            *out = if moves {
                e + f64::from(self.rest) * (p - e)
            } else {
                *e
            };
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let before = args.inputs.f32_or_in_place(0);
        let (parameters, scale) = (args.inputs.f32(1), args.inputs.f32(2)[0]);
        let [average] = args.outputs.f32();
        if let Some(before) = before {
            average.copy_from_slice(before);
        }
        if !scale.is_finite() {
            return;
        }
        average
            .par_chunks_mut(ELEMENTS_PER_TASK)
            .zip(parameters.par_chunks(ELEMENTS_PER_TASK))
            .for_each(|(average, parameters)| {
                for (e, p) in average.iter_mut().zip(parameters) {
                    *e += self.rest * (p - *e);
                }
            });
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let (kernel, elements) = (kernels::EMA_F32, inputs[0].numel());
        let arguments = vec![
            Argument::output(0),
            Argument::input(0),
            Argument::input(1),
            Argument::input(2),
            Argument::F32(self.rest),
            Argument::I64(elements as i64),
        ];
        let blocks = blocks(kernel, elements, EMA_THREADS * EMA_ELEMENTS)?;
        Ok(vec![Launch::new(kernel, blocks, arguments)])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(3.0 * inputs[0].numel() as f64, inputs, outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}
