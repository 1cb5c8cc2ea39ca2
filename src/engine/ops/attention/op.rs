//! The ops: attention forward and backward, in both forms.

use super::geometry::{Form, Geometry};
use super::{Heads, Mask, cpu, launches, reference};
use crate::launch::Launch;
use crate::tape::{
    Backward, CompileTarget, Cost, CpuArgs, Op, ReferenceArgs, Target, Value, with_element,
};
use crate::tensor::TensorType;
use keel_base::error::{Error, Result};

/// Inputs: qkv, or query and key_value; then segments where there are any. Outputs: o, and lse where it is saved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attention {
    pub heads: Heads,
    pub mask: Mask,
    pub form: Form,
    /// Whether the log-sum-exp is written for backward.
    pub saves: bool,
}

/// Inputs: those of [`Attention`] without segments, then o, lse, do, then segments where there are any.
/// Outputs: dqkv, or dquery and dkey_value.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttentionBackward {
    pub heads: Heads,
    pub mask: Mask,
    pub form: Form,
}

/// Checks the segments among `rest`, the inputs that follow the float ones.
fn check_segments(geometry: &Geometry, rest: &[TensorType]) -> Result<()> {
    let want = TensorType::i32([geometry.batch, geometry.key_tokens]);
    match rest {
        [] => Ok(()),
        [segments] if *segments == want => Ok(()),
        _ => Err(Error::shape("attention", "segments", want, rest[0])),
    }
}

impl Attention {
    pub(super) fn geometry(&self, inputs: &[TensorType]) -> Geometry {
        Geometry::new(self.heads, self.mask, self.form, inputs).expect("infer accepted the inputs")
    }
}

impl AttentionBackward {
    pub(super) fn geometry(&self, inputs: &[TensorType]) -> Geometry {
        Geometry::new(self.heads, self.mask, self.form, inputs).expect("infer accepted the inputs")
    }
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        self.form.name()
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let geometry = Geometry::new(self.heads, self.mask, self.form, inputs)?;
        check_segments(&geometry, &inputs[self.form.sources()..])?;
        let mut outputs = vec![geometry.output(inputs[0].dtype)];
        if self.saves {
            outputs.push(geometry.log_sum_exp());
        }
        Ok(outputs)
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        reference::forward(self, args);
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let dtype = args.input_types[0].dtype;
        if cpu::are_pairs(dtype) {
            return cpu::forward_in_pairs(self, args);
        }
        with_element!(dtype, T => cpu::forward::<T>(self, args));
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        launches::forward(self, inputs)
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        if self.form == Form::Next {
            return Ok(vec![None; backward.inputs.len()]);
        }
        let sources = self.form.sources();
        let op = AttentionBackward {
            heads: self.heads,
            mask: self.mask,
            form: self.form,
        };
        let mut inputs = backward.inputs[..sources].to_vec();
        inputs.extend([
            backward.outputs[0],
            backward.outputs[1],
            backward.gradient(0),
        ]);
        inputs.extend(&backward.inputs[sources..]);
        let gradients = backward.tape.record(op, &inputs)?;
        Ok((0..backward.inputs.len())
            .map(|input| {
                gradients
                    .get(input)
                    .copied()
                    .filter(|_| backward.needs(input))
            })
            .collect())
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let flops = self.geometry(inputs).pairs() * (4 * self.heads.dim) as f64;
        Cost::streaming(flops, inputs, outputs)
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        cpu::forward_workspace(
            &self.geometry(inputs),
            inputs[0].dtype,
            compile_target.target,
        )
    }
}

impl Op for AttentionBackward {
    fn name(&self) -> &'static str {
        match self.form {
            Form::Packed => "attention_backward",
            Form::Cross => "cross_attention_backward",
            Form::Next => unreachable!("it has no gradient"),
        }
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let sources = self.form.sources();
        let geometry = Geometry::new(self.heads, self.mask, self.form, inputs)?;
        check_segments(&geometry, &inputs[sources + 3..])?;
        let output = geometry.output(inputs[0].dtype);
        let saved = [output, geometry.log_sum_exp(), output];
        for (index, want) in saved.into_iter().enumerate() {
            let got = inputs[sources + index];
            if got != want {
                let tensor = ["o", "lse", "do"][index];
                return Err(Error::shape(self.name(), tensor, want, got));
            }
        }
        Ok(inputs[..sources].to_vec())
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        reference::backward(self, args);
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let dtype = args.input_types[0].dtype;
        if cpu::are_pairs(dtype) {
            return cpu::backward_in_pairs(self, args);
        }
        with_element!(dtype, T => cpu::backward::<T>(self, args));
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        launches::backward(self, inputs)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let flops = self.geometry(inputs).pairs() * (10 * self.heads.dim) as f64;
        Cost::streaming(flops, inputs, outputs)
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        let geometry = self.geometry(inputs);
        match compile_target.target {
            Target::Cuda => launches::backward_workspace(&geometry),
            _ => cpu::backward_workspace(&geometry, inputs[0].dtype, compile_target.target),
        }
    }
}
