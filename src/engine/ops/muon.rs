//! Muon for matrices (Jordan et al. 2024), beside AdamW for everything else: momentum, orthogonalised by Newton–Schulz steps
//! whose products are those of linear layers.
//!
//! With gradient g scaled by the clip factor, momentum μ and a matrix p [R, C]: m ← m + (1 − μ)(g − m), the direction of
//! Nesterov u = g + μ (m − g), X = u / ‖u‖_F; five times X ← (aI + bA + cA²) X with A = X Xᵀ, or X (aI + bA + cA²) with
//! A = Xᵀ X where R > C: the smaller of both; p ← p (1 − η λ) − η 0.2 √max(R, C) X. The last factor gives a step the size
//! that AdamW's has (Liu et al. 2025, arXiv 2502.16982, eq. 4), so that both go by one learning rate and one weight decay.
//! PyTorch has the same as torch.optim.Muon with `adjust_lr_fn="match_rms_adamw"`.
//!
//! Products are in the program's precision, sums f32. A clip factor that is not finite leaves parameter, momentum and bf16
//! copy as they are.

use half::bf16;
use rayon::prelude::*;

use super::OPTIMIZER_SCALARS;
use super::adamw::Run;
use super::cast::cast;
use super::grad_norm::GradNorm;
use super::linear::{linear, product, transposed_product};
use super::parameter_groups::GROUP_SCALARS;
use super::shapes::{expect_inputs, expect_type};
use crate::launch::kernels::constants::muon::{MUON_ELEMENTS, MUON_THREADS};
use crate::launch::{Argument, KernelEntry, Launch, blocks, index, kernels};
use crate::tape::{
    Arena, CompileTarget, Cost, CpuArgs, Element, Fill, GradientEntry, Op, ParameterLayout,
    ParameterSpec, ReferenceArgs, Tape, Value, with_element,
};
use crate::tensor::{DType, TensorType};
use keel_base::error::{Error, Result};
use keel_cpu::round;

/// The coefficients a, b and c of a Newton–Schulz step.
const COEFFICIENTS: [f64; 3] = [3.4445, -4.775, 2.0315];

/// Newton–Schulz steps of an update.
const STEPS: usize = 5;

/// The least norm that a direction is divided by.
const LEAST_NORM: f64 = 1e-7;

/// How the root mean square of AdamW's steps is met.
const ADAMW_RMS: f64 = 0.2;

/// Elements of one task.
const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// A launch of `kernel` with a thread to each few of `elements`.
fn launch(
    kernel: &'static KernelEntry,
    elements: usize,
    arguments: Vec<Argument>,
) -> Result<Vec<Launch>> {
    let blocks = blocks(kernel, elements, MUON_THREADS * MUON_ELEMENTS)?;
    Ok(vec![Launch::new(kernel, blocks, arguments)])
}

/// Records the orthogonal matrix nearest to u f32 [R, C], as Newton–Schulz steps come to it: singular values between about 0.7
/// and 1.2, in the tape's precision.
///
/// # Errors
/// [`Error::Shape`] when u is no f32 matrix.
pub fn orthogonalize(tape: &mut Tape, u: Value) -> Result<Value> {
    let shape = tape.shape(u);
    let precision = tape.precision();
    let (rows, columns) = (shape.rows(), shape.columns());
    // The norm of gradients, with a scale of one and no limit.
    let ty = TensorType::f32([OPTIMIZER_SCALARS]);
    let ones = tape.record_one(Fill { ty, value: 1.0 }, &[])?;
    let flat = tape.reshape(u, [shape.numel()])?;
    let norm = tape.record_one(GradNorm, &[flat, ones])?;
    let mut x = tape.record_one(Normalize { dtype: precision }, &[u, norm])?;
    for _ in 0..STEPS {
        let is_tall = rows > columns;
        let gram = if is_tall {
            let gram = transposed_product(tape, x, x)?;
            cast(tape, gram, precision)?
        } else {
            linear(tape, x, x, None)?
        };
        // Gram matrices are their own transposes, and so is what is made of them.
        let square = linear(tape, gram, gram, None)?;
        let polynomial = tape.record_one(Polynomial, &[gram, square])?;
        x = if is_tall {
            linear(tape, x, polynomial, None)?
        } else {
            product(tape, polynomial, x)?
        };
    }
    Ok(x)
}

/// Records the steps of the matrices of a run whose directions lie in the gradient arena; `groups` and `scale` are the groups'
/// scalars and the clip factor.
pub(super) fn record_steps(
    tape: &mut Tape,
    layout: &ParameterLayout,
    run: &Run,
    [groups, scale]: [Value; 2],
) -> Result<()> {
    let range = run.gradients..run.gradients + run.elements;
    let entries = tape.gradient_entries().iter();
    let entries = entries.filter(|entry| range.contains(&entry.offset));
    let entries: Vec<GradientEntry> = entries.cloned().collect();
    for entry in entries {
        let parameter = layout.get(&entry.parameter);
        let parameter = parameter.expect("trained parameters are laid out");
        let [rows, columns] = matrix(&parameter.spec)?;
        let elements = rows * columns;
        let direction = tape.arena_range(Arena::Gradients, entry.offset, elements);
        let direction = tape.reshape(direction, [rows, columns])?;
        let x = orthogonalize(tape, direction)?;
        let x = tape.reshape(x, [elements])?;
        let place = parameter.offset;
        let own = tape.arena_range(Arena::Parameters, place, elements);
        let mut inputs = vec![own, x, groups, scale];
        let writes_bf16_copy = tape.precision() == DType::Bf16;
        if writes_bf16_copy {
            inputs.push(tape.arena_range(Arena::ParametersBf16, place, elements));
        }
        let op = MuonUpdate {
            group: run.group,
            factor: (ADAMW_RMS * (rows.max(columns) as f64).sqrt()) as f32,
            writes_bf16_copy,
        };
        tape.record_update(op, &inputs)?;
    }
    Ok(())
}

/// The sides of a parameter that is a matrix.
fn matrix(spec: &ParameterSpec) -> Result<[usize; 2]> {
    spec.shape.dims().try_into().map_err(|_| {
        let what = format!("the optimiser of {}", spec.name);
        Error::setting(
            what,
            "AdamW, or Muon for a matrix",
            format!("Muon for {}", spec.shape),
        )
    })
}

/// Inputs: gradients [n], momentum [n], clip factor [1]. Outputs: the new momentum, the direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct MuonMomentum {
    pub momentum: f32,
    /// 1 − μ, computed in f64.
    pub rest: f32,
}

impl MuonMomentum {
    /// With momentum μ.
    pub fn new(momentum: f64) -> MuonMomentum {
        MuonMomentum {
            momentum: momentum as f32,
            rest: (1.0 - momentum) as f32,
        }
    }
}

impl Op for MuonMomentum {
    fn name(&self) -> &'static str {
        "muon_momentum"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [gradients, momentum, scale] = &expect_inputs(self.name(), inputs)?;
        let want = TensorType::f32(gradients.shape);
        expect_type(self.name(), "gradients", "f32", want, *gradients)?;
        expect_type(
            self.name(),
            "momentum",
            "like the gradients",
            want,
            *momentum,
        )?;
        let one = TensorType::f32([1]);
        expect_type(self.name(), "clip_scale", "one number", one, *scale)?;
        Ok(vec![want; 2])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([g, m, scale], [momentum, direction]) = args.split();
        let scale = scale.float()[0];
        let [mu, rest] = [self.momentum, self.rest].map(f64::from);
        for i in 0..g.float().len() {
            let (g, m) = (g.float()[i] * scale, m.float()[i]);
            let moved = m + rest * (g - m);
            [momentum.float_mut()[i], direction.float_mut()[i]] = match scale.is_finite() {
                true => [moved, g + mu * (moved - g)],
                false => [m, 0.0],
            };
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        let before = [1, 0].map(|input| args.inputs.f32_or_in_place(input));
        let scale = args.inputs.f32(2)[0];
        let [m, direction] = args.outputs.f32();
        for (out, before) in [&mut *m, &mut *direction].into_iter().zip(before) {
            if let Some(before) = before {
                out.copy_from_slice(before);
            }
        }
        if !scale.is_finite() {
            direction.fill(0.0);
            return;
        }
        m.par_chunks_mut(ELEMENTS_PER_TASK)
            .zip(direction.par_chunks_mut(ELEMENTS_PER_TASK))
            .for_each(|(m, direction)| {
                for (m, direction) in m.iter_mut().zip(direction) {
                    let g = *direction * scale;
                    *m += self.rest * (g - *m);
                    *direction = g + self.momentum * (*m - g);
                }
            });
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let elements = inputs[0].numel();
        let arguments = vec![
            Argument::output(0),
            Argument::output(1),
            Argument::input(0),
            Argument::input(1),
            Argument::input(2),
            Argument::F32(self.momentum),
            Argument::F32(self.rest),
            Argument::I64(elements as i64),
        ];
        launch(kernels::MUON_MOMENTUM_F32, elements, arguments)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(7.0 * inputs[0].numel() as f64, inputs, outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 1), (1, 0)]
    }
}

/// Inputs: u f32 [R, C], its norm [1]. Output: u / norm.
#[derive(Clone, Copy, Debug)]
struct Normalize {
    dtype: DType,
}

impl Normalize {
    fn compute<T: Element>(args: CpuArgs<'_>) {
        let (u, norm) = (args.inputs.f32(0), args.inputs.f32(1)[0]);
        let norm = norm.max(LEAST_NORM as f32);
        let x = args.outputs.in_order().next::<T>();
        x.par_chunks_mut(ELEMENTS_PER_TASK)
            .zip(u.par_chunks(ELEMENTS_PER_TASK))
            .for_each(|(x, u)| {
                for (x, u) in x.iter_mut().zip(u) {
                    *x = T::rounded(u / norm);
                }
            });
    }
}

impl Op for Normalize {
    fn name(&self) -> &'static str {
        "muon_normalize"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [u, norm] = &expect_inputs(self.name(), inputs)?;
        if u.shape.rank() != 2 || u.dtype != DType::F32 {
            return Err(Error::shape(self.name(), "direction", "f32 [R, C]", u));
        }
        let one = TensorType::f32([1]);
        expect_type(self.name(), "norm", "one number", one, *norm)?;
        Ok(vec![TensorType::new(self.dtype, u.shape)])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([u, norm], [x]) = args.split();
        let norm = norm.float()[0].max(LEAST_NORM);
        for (x, u) in x.float_mut().iter_mut().zip(u.float()) {
            *x = u / norm;
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_element!(self.dtype, T => Normalize::compute::<T>(args));
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let elements = inputs[0].numel();
        let arguments = vec![
            Argument::output(0),
            Argument::input(0),
            Argument::input(1),
            Argument::I64(elements as i64),
        ];
        launch(kernels::MUON_NORMALIZE.of(self.dtype)?, elements, arguments)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(inputs[0].numel() as f64, inputs, outputs)
    }
}

/// Inputs: A [k, k], A² [k, k]. Output: aI + bA + cA².
#[derive(Clone, Copy, Debug)]
struct Polynomial;

impl Polynomial {
    fn compute<T: Element>(args: CpuArgs<'_>) {
        let (gram, square) = (args.inputs.of::<T>(0), args.inputs.of::<T>(1));
        let k = args.input_types[0].shape.columns();
        let [a, b, c] = COEFFICIENTS.map(|number| number as f32);
        let out = args.outputs.in_order().next::<T>();
        let rows = gram.par_chunks(k.max(1)).zip(square.par_chunks(k.max(1)));
        out.par_chunks_mut(k.max(1)).zip(rows).enumerate().for_each(
            |(row, (out, (gram, square)))| {
                for (column, (out, (g, s))) in
                    out.iter_mut().zip(gram.iter().zip(square)).enumerate()
                {
                    let diagonal = if row == column { a } else { 0.0 };
                    *out = T::rounded(diagonal + (b * g.widen() + c * s.widen()));
                }
            },
        );
    }
}

impl Op for Polynomial {
    fn name(&self) -> &'static str {
        "muon_polynomial"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [gram, square] = &expect_inputs(self.name(), inputs)?;
        let k = gram.shape.columns();
        let want = TensorType::new(gram.dtype, [k, k]);
        if gram != &want || !gram.dtype.is_float() {
            return Err(Error::shape(self.name(), "gram", "floats [k, k]", gram));
        }
        expect_type(self.name(), "square", "like gram", want, *square)?;
        Ok(vec![want])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([gram, square], [out]) = args.split();
        let k = gram.columns();
        let [a, b, c] = COEFFICIENTS;
        for (i, out) in out.float_mut().iter_mut().enumerate() {
            let diagonal = if i % (k + 1) == 0 { a } else { 0.0 };
            *out = diagonal + (b * gram.float()[i] + c * square.float()[i]);
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_element!(args.input_types[0].dtype, T => Polynomial::compute::<T>(args));
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let gram = inputs[0];
        let kernel = kernels::MUON_POLYNOMIAL.of(gram.dtype)?;
        let [a, b, c] = COEFFICIENTS.map(|number| Argument::F32(number as f32));
        let arguments = vec![
            Argument::output(0),
            Argument::input(0),
            Argument::input(1),
            a,
            b,
            c,
            index(kernel, "the smaller side of a matrix", gram.shape.columns())?,
        ];
        launch(kernel, gram.numel(), arguments)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(4.0 * inputs[0].numel() as f64, inputs, outputs)
    }
}

/// Inputs: parameters [n], X [n], the groups' scalars, clip factor, and the parameters' bf16 copy where a program reads it;
/// outputs: the new parameters, then the new bf16 copy.
#[derive(Clone, Copy, Debug)]
struct MuonUpdate {
    group: usize,
    /// 0.2 √max(R, C).
    factor: f32,
    writes_bf16_copy: bool,
}

/// Inputs before the bf16 copy.
const INPUTS: usize = 4;

impl MuonUpdate {
    /// η and λ of the op's group.
    fn rate_and_decay<T: Copy>(&self, groups: &[T]) -> [T; GROUP_SCALARS] {
        let row = groups.as_chunks().0.get(self.group);
        *row.expect("infer has seen the group's row")
    }

    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let before = args.inputs.f32_or_in_place(0);
        let x = args.inputs.of::<T>(1);
        let [rate, decay] = self.rate_and_decay(args.inputs.f32(2));
        let moves = args.inputs.f32(3)[0].is_finite();
        let mut outputs = args.outputs.in_order();
        let p = outputs.next::<f32>();
        if let Some(before) = before {
            p.copy_from_slice(before);
        }
        let (keep, rate) = (1.0 - rate * decay, rate * self.factor);
        if moves {
            p.par_chunks_mut(ELEMENTS_PER_TASK)
                .zip(x.par_chunks(ELEMENTS_PER_TASK))
                .for_each(|(p, x)| {
                    for (p, x) in p.iter_mut().zip(x) {
                        *p = *p * keep - rate * x.widen();
                    }
                });
        }
        if self.writes_bf16_copy {
            let bf16_copy = outputs.next::<bf16>();
            bf16_copy
                .par_chunks_mut(ELEMENTS_PER_TASK)
                .zip(p.par_chunks(ELEMENTS_PER_TASK))
                .for_each(|(bf16_copy, p)| round(p, bf16_copy));
        }
    }
}

impl Op for MuonUpdate {
    fn name(&self) -> &'static str {
        "muon_update"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [p, x, groups, scale, bf16_copy @ ..] = inputs else {
            let want = format!("{INPUTS} values");
            return Err(Error::shape(self.name(), "inputs", want, inputs.len()));
        };
        let want = TensorType::f32(p.shape);
        expect_type(self.name(), "parameters", "f32", want, *p)?;
        let want_x = TensorType::new(x.dtype, p.shape);
        expect_type(
            self.name(),
            "x",
            "floats, one for each parameter",
            want_x,
            *x,
        )?;
        let rows = groups.shape.rows();
        if *groups != TensorType::f32([rows, GROUP_SCALARS]) || self.group >= rows {
            let want = format!("f32 [groups, {GROUP_SCALARS}] with a row {}", self.group);
            return Err(Error::shape(self.name(), "group_scalars", want, groups));
        }
        let one = TensorType::f32([1]);
        expect_type(self.name(), "clip_scale", "one number", one, *scale)?;
        let mut outputs = vec![want];
        if self.writes_bf16_copy {
            let want = TensorType::new(DType::Bf16, p.shape);
            if *bf16_copy != [want] {
                let found = format!("{bf16_copy:?}");
                return Err(Error::shape(self.name(), "bf16 copy", want, found));
            }
            outputs.push(want);
        }
        Ok(outputs)
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let [p, x, groups, scale, ..] = args.inputs else {
            unreachable!("inferred");
        };
        let [p_new, bf16_copy @ ..] = args.outputs else {
            unreachable!("inferred");
        };
        let [rate, decay] = self.rate_and_decay(groups.float());
        let moves = scale.float()[0].is_finite();
        let (keep, rate) = (1.0 - rate * decay, rate * f64::from(self.factor));
        let values = p.float().iter().zip(x.float());
        for (new, (p, x)) in p_new.float_mut().iter_mut().zip(values) {
            *new = if moves { p * keep - rate * x } else { *p };
        }
        if let [bf16_copy] = bf16_copy {
            bf16_copy.float_mut().copy_from_slice(p_new.float());
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_element!(args.input_types[1].dtype, T => self.compute::<T>(args));
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let elements = inputs[0].numel();
        let bf16_copy = match self.writes_bf16_copy {
            true => Argument::output(1),
            false => Argument::Null,
        };
        let arguments = vec![
            Argument::output(0),
            bf16_copy,
            Argument::input(0),
            Argument::input(1),
            Argument::Input {
                index: 2,
                offset: self.group * GROUP_SCALARS * size_of::<f32>(),
            },
            Argument::input(3),
            Argument::F32(self.factor),
            Argument::I64(elements as i64),
        ];
        let kernel = kernels::MUON_UPDATE.of(inputs[1].dtype)?;
        launch(kernel, elements, arguments)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(3.0 * inputs[0].numel() as f64, &inputs[..INPUTS], outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        if self.writes_bf16_copy {
            &[(0, 0), (1, INPUTS)]
        } else {
            &[(0, 0)]
        }
    }
}
