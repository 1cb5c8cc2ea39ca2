//! AdamW over flat stretches of the arenas, in one pass (Loshchilov and Hutter 2019, algorithm 2), and the recording of
//! a whole update.
//!
//! With gradient g scaled by the clip factor: m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g²,
//! p ← p − η λ p − η (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε). Everything that changes from step to step comes in as the
//! input `hyper` f32 [10]: η, β₁, β₂, ε, λ, largest gradient norm, 1 − β₁ᵗ, 1 − β₂ᵗ, 1 − β₁, 1 − β₂. The last four are
//! computed in f64: in f32, 1 − 0.999 would already be wrong in its fifth digit.
//! A clip factor that is not finite leaves parameters and moments as they are: a bad step is never applied.
//! 12 flops and 28 bytes a parameter: bound by memory.

use rayon::prelude::*;

use super::grad_norm::GradNorm;
use crate::error::{Error, Result};
use crate::tape::{Arena, Backward, Cost, CpuArgs, Op, Output, ReferenceArgs, Tape, Value};
use crate::tensor::{DType, TensorType};

/// Numbers of the input `hyper`.
pub(super) const HYPER: usize = 10;

/// Elements of one task.
const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// What an update does beyond AdamW.
#[derive(Clone, Debug, Default)]
pub struct UpdateOptions {
    /// Scalars held between two numbers after the update: parameter, least, most.
    pub clamps: Vec<(&'static str, f32, f32)>,
}

/// Records the update of everything that [`Tape::backward`] made gradients for: one gradient norm, then one AdamW for
/// each contiguous stretch of parameters that weight decay treats alike.
///
/// Input: `hyper` f32 [10]. Outputs: `gradient_norm` [1], `clip_scale` [1].
///
/// # Errors
/// [`Error::Setting`] when nothing is trained.
pub fn record_update(
    tape: &mut Tape,
    layout: &crate::tape::ParameterLayout,
    options: &UpdateOptions,
) -> Result<()> {
    let mut runs: Vec<Run> = Vec::new();
    for entry in tape.gradient_entries() {
        let parameter = layout
            .get(&entry.parameter)
            .expect("trained parameters are laid out");
        let (offset, decays) = (parameter.offset, parameter.spec.decays);
        match runs.last_mut() {
            Some(run)
                if run.decays == decays
                    && run.parameters + run.elements == offset
                    && run.gradients + run.elements == entry.offset =>
            {
                run.elements += entry.reserved;
            }
            _ => runs.push(Run {
                parameters: offset,
                gradients: entry.offset,
                elements: entry.reserved,
                decays,
            }),
        }
    }
    let Some(last) = runs.last() else {
        return Err(Error::setting(
            "update",
            "at least one trained parameter",
            "none",
        ));
    };
    let elements = last.gradients + last.elements;
    let trained: Vec<String> = tape
        .gradient_entries()
        .iter()
        .map(|entry| entry.parameter.clone())
        .collect();
    tape.scoped("update", |tape| {
        let hyper = tape.input("hyper", TensorType::f32([HYPER]));
        let gradients = tape.arena_range(Arena::Gradients, 0, elements);
        let norm = tape.record(GradNorm, &[gradients, hyper])?;
        tape.output(norm[0], "gradient_norm");
        tape.output(norm[1], "clip_scale");
        for run in runs {
            let range =
                |tape: &mut Tape, arena, offset| tape.arena_range(arena, offset, run.elements);
            let inputs = [
                range(tape, Arena::Parameters, run.parameters),
                range(tape, Arena::Gradients, run.gradients),
                range(tape, Arena::FirstMoments, run.gradients),
                range(tape, Arena::SecondMoments, run.gradients),
                hyper,
                norm[1],
            ];
            let op = AdamW {
                decays: run.decays,
                writes_twin: tape.precision() == DType::Bf16,
            };
            let outputs = tape.record_update(op, &inputs)?;
            if let Some(twin) = outputs.get(3) {
                tape.bind(*twin, Arena::ParametersBf16, run.parameters);
            }
        }
        for (name, least, most) in &options.clamps {
            if trained.iter().any(|trained| trained == name) {
                let offset = layout
                    .get(name)
                    .expect("trained parameters are laid out")
                    .offset;
                let value = tape.arena_range(Arena::Parameters, offset, 1);
                tape.record_update(
                    Clamp {
                        least: *least,
                        most: *most,
                    },
                    &[value],
                )?;
            }
        }
        Ok(())
    })
}

/// A contiguous stretch of parameters with the same decay.
struct Run {
    parameters: usize,
    gradients: usize,
    elements: usize,
    decays: bool,
}

/// Inputs parameters, gradients, first and second moments [n], hyper, clip factor; outputs the new parameters and
/// moments, then the new parameters in bf16 where a program reads them so.
#[derive(Clone, Copy, Debug)]
struct AdamW {
    decays: bool,
    writes_twin: bool,
}

impl Op for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [p, g, m, v, hyper, scale] = inputs else {
            return Err(Error::shape("adamw", "inputs", "six values", inputs.len()));
        };
        for (name, ty) in [
            ("gradients", g),
            ("first moments", m),
            ("second moments", v),
        ] {
            if ty != p {
                return Err(Error::shape("adamw", name, p, ty));
            }
        }
        for (name, ty, want) in [("hyper", hyper, HYPER), ("clip_scale", scale, 1)] {
            if *ty != TensorType::f32([want]) {
                return Err(Error::shape("adamw", name, TensorType::f32([want]), ty));
            }
        }
        let mut outputs = vec![*p, *m, *v];
        if self.writes_twin {
            outputs.push(TensorType::new(DType::Bf16, p.shape));
        }
        Ok(outputs)
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let [p, g, m, v, hyper, scale] = args.inputs else {
            unreachable!("inferred");
        };
        let [p_new, m_new, v_new, twin @ ..] = args.outputs else {
            unreachable!("inferred");
        };
        let &[
            rate,
            beta1,
            beta2,
            epsilon,
            decay,
            _,
            correction1,
            correction2,
            rest1,
            rest2,
        ] = hyper.float()
        else {
            unreachable!("inferred");
        };
        let scale = scale.float()[0];
        for i in 0..p.float().len() {
            let (p, m, v) = (p.float()[i], m.float()[i], v.float()[i]);
            let (p_out, m_out, v_out) = if scale.is_finite() {
                let g = g.float()[i] * scale;
                let m = beta1 * m + rest1 * g;
                let v = beta2 * v + rest2 * g * g;
                let decayed = if self.decays {
                    p * (1.0 - rate * decay)
                } else {
                    p
                };
                let step = (m / correction1) / ((v / correction2).sqrt() + epsilon);
                (decayed - rate * step, m, v)
            } else {
                (p, m, v)
            };
            p_new.float_mut()[i] = p_out;
            m_new.float_mut()[i] = m_out;
            v_new.float_mut()[i] = v_out;
            if let [twin] = twin {
                twin.float_mut()[i] = p_out;
            }
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let gradients = args.inputs.f32(1);
        let &[
            rate,
            beta1,
            beta2,
            epsilon,
            decay,
            _,
            correction1,
            correction2,
            rest1,
            rest2,
        ] = args.inputs.f32(4)
        else {
            unreachable!("inferred");
        };
        let scale = args.inputs.f32(5)[0];
        // Outside a program the moments and parameters may come in memory of their own.
        let before = [0, 2, 3].map(|input| args.inputs.f32_or_in_place(input));
        let outputs: [&mut [f32]; 3] = args.outputs.f32();
        let mut outputs = outputs.into_iter().zip(before).map(|(out, before)| {
            if let Some(before) = before {
                out.copy_from_slice(before);
            }
            out
        });
        let mut next = || outputs.next().expect("three outputs");
        let (p, m, v) = (next(), next(), next());
        if !scale.is_finite() {
            return;
        }
        let keep = if self.decays { 1.0 - rate * decay } else { 1.0 };
        let (rate, root) = (rate / correction1, 1.0 / correction2.sqrt());
        p.par_chunks_mut(ELEMENTS_PER_TASK)
            .zip(m.par_chunks_mut(ELEMENTS_PER_TASK))
            .zip(v.par_chunks_mut(ELEMENTS_PER_TASK))
            .zip(gradients.par_chunks(ELEMENTS_PER_TASK))
            .for_each(|(((p, m), v), g)| {
                for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
                    let g = g * scale;
                    *m = beta1 * *m + rest1 * g;
                    *v = beta2 * *v + rest2 * (g * g);
                    *p = *p * keep - rate * *m / (v.sqrt() * root + epsilon);
                }
            });
    }

    fn backward(&self, _: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        unreachable!("an update is not differentiated")
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(12.0 * inputs[0].numel() as f64, inputs, outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (1, 2), (2, 3)]
    }
}

/// Holds a scalar parameter between two numbers.
#[derive(Clone, Copy, Debug)]
struct Clamp {
    least: f32,
    most: f32,
}

impl Op for Clamp {
    fn name(&self) -> &'static str {
        "clamp"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        Ok(vec![inputs[0]])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([x], [y]) = args.split();
        for (y, x) in y.float_mut().iter_mut().zip(x.float()) {
            *y = x.clamp(f64::from(self.least), f64::from(self.most));
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let before = args.inputs.f32_or_in_place(0);
        for output in args.outputs.0 {
            let Output::F32(y) = output else { continue };
            if let Some(before) = before {
                y.copy_from_slice(before);
            }
            for y in y.iter_mut() {
                *y = y.clamp(self.least, self.most);
            }
        }
    }

    fn backward(&self, _: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        unreachable!("an update is not differentiated")
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(2.0 * inputs[0].numel() as f64, inputs, outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}
