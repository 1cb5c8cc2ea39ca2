//! A weighted sum of scalars: several losses made one.
//!
//! y = Σ_k c_k x_k over x_k [1]; ∂x_k = c_k dy. Saves nothing.

use crate::launch::{Argument, Launch, kernels};
use crate::tape::{Backward, CompileTarget, Cost, CpuArgs, Op, ReferenceArgs, Tape, Value};
use crate::tensor::TensorType;
use keel_base::error::{Error, Result};

/// Records Σ weight · value over scalars f32 `[1]`.
///
/// # Errors
/// [`Error::Shape`] when there are none or one is not `[1]`.
pub fn weighted_sum(tape: &mut Tape, terms: &[(Value, f32)]) -> Result<Value> {
    let values: Vec<Value> = terms.iter().map(|(value, _)| *value).collect();
    let weights = terms.iter().map(|(_, weight)| *weight).collect();
    tape.record_one(WeightedSum { weights }, &values)
}

#[derive(Clone, Debug)]
struct WeightedSum {
    weights: Vec<f32>,
}

impl Op for WeightedSum {
    fn name(&self) -> &'static str {
        "weighted_sum"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        const OP: &str = "weighted_sum";
        if inputs.is_empty() || inputs.len() != self.weights.len() {
            return Err(Error::shape(
                OP,
                "terms",
                "at least one scalar",
                inputs.len(),
            ));
        }
        for (index, ty) in inputs.iter().enumerate() {
            if *ty != TensorType::f32([1]) {
                return Err(Error::shape(OP, format!("term {index}"), "f32 [1]", ty));
            }
        }
        Ok(vec![TensorType::f32([1])])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let terms = args.inputs.iter().zip(&self.weights);
        let sum = terms
            .map(|(x, weight)| f64::from(*weight) * x.float()[0])
            .sum();
        args.outputs[0].float_mut()[0] = sum;
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let terms = self.weights.iter().enumerate();
        let sum: f64 = terms
            .map(|(i, weight)| f64::from(*weight) * f64::from(args.inputs.f32(i)[0]))
            .sum();
        let [y] = args.outputs.f32();
        y[0] = sum as f32;
    }

    fn launches(
        &self,
        _inputs: &[TensorType],
        _outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let term = |(index, weight): (usize, &f32)| {
            // One launch a term: there are a handful, and a kernel that took any number of pointers would need them in
            // memory.
            let addend = match index {
                0 => Argument::Null,
                _ => Argument::output(0),
            };
            let arguments = vec![
                Argument::output(0),
                Argument::input(index),
                addend,
                Argument::F32(*weight),
            ];
            Launch::new(kernels::WEIGHTED_SUM_F32, 1, arguments)
        };
        Ok(self.weights.iter().enumerate().map(term).collect())
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let dy = backward.gradient(0);
        let mut gradients = Vec::with_capacity(self.weights.len());
        for (index, weight) in self.weights.iter().enumerate() {
            gradients.push(if backward.needs(index) {
                Some(weighted_sum(backward.tape, &[(dy, *weight)])?)
            } else {
                None
            });
        }
        Ok(gradients)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(2.0 * inputs.len() as f64, inputs, outputs)
    }
}
