//! The five ops the tape itself needs: a view, a constant, a copy, a part and a sum.

use rayon::prelude::*;

use super::{
    Backward, CompileTarget, Cost, CpuArgs, Element, Op, ParameterLayout, ReferenceArgs, Value,
    with_element,
};
use crate::launch::kernels::constants::basic::BASIC_THREADS;
use crate::launch::{Argument, Family, Launch, blocks, kernels, vector};
use crate::tensor::{Shape, TensorType};
use keel_base::error::{Error, Result};

/// Elements that one task of an elementwise op works on: long enough to hide the hand-over, short enough to share.
pub(crate) const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// The launch of an elementwise kernel of `cuda/basic.cu`: y, the operands, n.
fn elementwise(family: Family, ty: TensorType, operands: &[Argument]) -> Result<Vec<Launch>> {
    let kernel = family.of(ty.dtype)?;
    let blocks = blocks(kernel, ty.numel(), BASIC_THREADS * vector(ty))?;
    let mut arguments = vec![Argument::output(0)];
    arguments.extend(operands);
    arguments.push(Argument::I64(ty.numel() as i64));
    Ok(vec![Launch::new(kernel, blocks, arguments)])
}

/// The same bytes under another shape. Nothing runs.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// The new shape.
    pub shape: Shape,
}

impl Op for View {
    fn name(&self) -> &'static str {
        "view"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        if inputs[0].numel() != self.shape.numel() {
            return Err(Error::shape(
                "view",
                "x",
                format!("{} elements for {}", self.shape.numel(), self.shape),
                inputs[0],
            ));
        }
        Ok(vec![TensorType::new(inputs[0].dtype, self.shape)])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([x], [y]) = args.split();
        y.data = x.data.clone();
    }

    fn cpu(&self, _args: CpuArgs<'_>) {}

    fn launches(
        &self,
        _inputs: &[TensorType],
        _outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        Ok(Vec::new())
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let shape = backward.tape.shape(backward.inputs[0]);
        let dy = backward.gradient(0);
        Ok(vec![Some(backward.tape.reshape(dy, shape)?)])
    }

    fn cost(&self, _inputs: &[TensorType], _outputs: &[TensorType]) -> Cost {
        Cost::default()
    }

    fn is_view(&self) -> bool {
        true
    }
}

/// Every element the same number.
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    /// The output's type.
    pub ty: TensorType,
    /// The number.
    pub value: f32,
}

impl Fill {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let y = args.outputs.in_order().next::<T>();
        y.fill(T::rounded(self.value));
    }
}

impl Op for Fill {
    fn name(&self) -> &'static str {
        "fill"
    }

    fn infer(&self, _inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        Ok(vec![self.ty])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([], [y]) = args.split();
        y.float_mut().fill(f64::from(self.value));
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_element!(args.output_types[0].dtype, T => self.compute::<T>(args));
    }

    fn launches(
        &self,
        _inputs: &[TensorType],
        outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let [y] = outputs else {
            unreachable!("inferred")
        };
        let kernel = kernels::FILL.of(y.dtype)?;
        let blocks = blocks(kernel, y.numel(), BASIC_THREADS)?;
        let arguments = vec![
            Argument::output(0),
            Argument::F32(self.value),
            Argument::I64(y.numel() as i64),
        ];
        Ok(vec![Launch::new(kernel, blocks, arguments)])
    }

    fn backward(&self, _backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        Ok(vec![])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(0.0, inputs, outputs)
    }
}

/// y = x in memory of its own.
#[derive(Clone, Copy, Debug)]
pub struct Copy;

impl Copy {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let x = args.inputs.of::<T>(0);
        let y = args.outputs.in_order().next::<T>();
        y.par_chunks_mut(ELEMENTS_PER_TASK)
            .zip(x.par_chunks(ELEMENTS_PER_TASK))
            .for_each(|(y, x)| y.copy_from_slice(x));
    }
}

impl Op for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        Ok(vec![inputs[0]])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([x], [y]) = args.split();
        y.data = x.data.clone();
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
        elementwise(kernels::COPY, inputs[0], &[Argument::input(0)])
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        Ok(vec![Some(backward.gradient(0))])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(0.0, inputs, outputs)
    }
}

/// y = x[first .. first + elements], of x in a row.
#[derive(Clone, Copy, Debug)]
pub struct Slice {
    /// The first element.
    pub first: usize,
    /// How many.
    pub elements: usize,
}

impl Slice {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let x = &args.inputs.of::<T>(0)[self.first..][..self.elements];
        let y = args.outputs.in_order().next::<T>();
        y.par_chunks_mut(ELEMENTS_PER_TASK)
            .zip(x.par_chunks(ELEMENTS_PER_TASK))
            .for_each(|(y, x)| y.copy_from_slice(x));
    }
}

impl Op for Slice {
    fn name(&self) -> &'static str {
        "slice"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let x = inputs[0];
        let is_inside = self.first + self.elements <= x.numel();
        if !is_inside || !self.first.is_multiple_of(ParameterLayout::ALIGNMENT) {
            let want = format!(
                "of {} elements or more behind the first {}, which are a multiple of {}",
                self.elements,
                self.first,
                ParameterLayout::ALIGNMENT
            );
            return Err(Error::shape("slice", "x", want, x));
        }
        Ok(vec![TensorType::new(x.dtype, [self.elements])])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([x], [y]) = args.split();
        y.float_mut()
            .copy_from_slice(&x.float()[self.first..][..self.elements]);
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
        let offset = self.first * inputs[0].dtype.size();
        let part = Argument::Input { index: 0, offset };
        elementwise(kernels::COPY, outputs[0], &[part])
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(0.0, outputs, outputs)
    }
}

/// y = a + b, elementwise; y may take the place of either.
#[derive(Clone, Copy, Debug)]
pub struct Add;

impl Add {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let a = args.inputs.of_or_in_place::<T>(0);
        let b = args.inputs.of_or_in_place::<T>(1);
        let y = args.outputs.in_order().next::<T>();
        let chunks = y.par_chunks_mut(ELEMENTS_PER_TASK);
        match (a, b) {
            (Some(a), Some(b)) => chunks
                .zip(
                    a.par_chunks(ELEMENTS_PER_TASK)
                        .zip(b.par_chunks(ELEMENTS_PER_TASK)),
                )
                .for_each(|(y, (a, b))| {
                    for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
                        *y = T::rounded(a.widen() + b.widen());
                    }
                }),
            // Addition commutes bit for bit, so it does not matter which of the two lies in the output.
            (Some(other), None) | (None, Some(other)) => {
                chunks
                    .zip(other.par_chunks(ELEMENTS_PER_TASK))
                    .for_each(|(y, other)| {
                        for (y, other) in y.iter_mut().zip(other) {
                            *y = T::rounded(y.widen() + other.widen());
                        }
                    });
            }
            // Both operands are one value, and it lies in the output: y = 2 y.
            (None, None) => chunks.for_each(|y| {
                for y in y {
                    *y = T::rounded(y.widen() + y.widen());
                }
            }),
        }
    }
}

impl Op for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [a, b] = inputs else {
            return Err(Error::shape("add", "inputs", "two values", inputs.len()));
        };
        if a != b || !a.dtype.is_float() {
            return Err(Error::shape("add", "b", format!("of a's type, {a}"), b));
        }
        Ok(vec![*a])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([a, b], [y]) = args.split();
        for ((y, a), b) in y.float_mut().iter_mut().zip(a.float()).zip(b.float()) {
            *y = a + b;
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
        let operands = [Argument::input(0), Argument::input(1)];
        elementwise(kernels::ADD, inputs[0], &operands)
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let dy = backward.gradient(0);
        Ok((0..2)
            .map(|input| backward.needs(input).then_some(dy))
            .collect())
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(outputs[0].numel() as f64, inputs, outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (0, 1)]
    }
}
