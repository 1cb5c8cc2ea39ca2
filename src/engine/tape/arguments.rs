//! What an executor hands to an op when it runs: its inputs, outputs and scratch memory.

use half::bf16;
use keel_cpu::matmul::Factor;

use crate::tensor::{Shape, TensorType};

/// A dense array of the reference executor. Every float type is held as `f64`.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Dimensions, row-major.
    pub shape: Shape,
    /// The elements.
    pub data: ArrayData,
}

/// The elements of an [`Array`].
#[derive(Clone, Debug, PartialEq)]
pub enum ArrayData {
    /// Of any float type.
    Float(Vec<f64>),
    /// Of type `i32`.
    Int(Vec<i32>),
}

impl Array {
    /// An array of zeros of the given type.
    pub fn zeros(ty: &TensorType) -> Array {
        let data = if ty.dtype.is_float() {
            ArrayData::Float(vec![0.0; ty.numel()])
        } else {
            ArrayData::Int(vec![0; ty.numel()])
        };
        Array {
            shape: ty.shape,
            data,
        }
    }

    /// The elements of a float array.
    ///
    /// # Panics
    /// When the array holds integers, which [`super::Op::infer`] has excluded.
    pub fn float(&self) -> &[f64] {
        match &self.data {
            ArrayData::Float(values) => values,
            ArrayData::Int(_) => panic!("infer admits only float values here"),
        }
    }

    /// The elements of a float array, to write.
    ///
    /// # Panics
    /// When the array holds integers, which [`super::Op::infer`] has excluded.
    pub fn float_mut(&mut self) -> &mut [f64] {
        match &mut self.data {
            ArrayData::Float(values) => values,
            ArrayData::Int(_) => panic!("infer admits only float values here"),
        }
    }

    /// The elements of an integer array.
    ///
    /// # Panics
    /// When the array holds floats, which [`super::Op::infer`] has excluded.
    pub fn int(&self) -> &[i32] {
        match &self.data {
            ArrayData::Int(values) => values,
            ArrayData::Float(_) => panic!("infer admits only integers here"),
        }
    }

    /// The elements of an integer array, to write.
    ///
    /// # Panics
    /// When the array holds floats, which [`super::Op::infer`] has excluded.
    pub fn int_mut(&mut self) -> &mut [i32] {
        match &mut self.data {
            ArrayData::Int(values) => values,
            ArrayData::Float(_) => panic!("infer admits only integers here"),
        }
    }

    /// The innermost dimension.
    pub fn columns(&self) -> usize {
        self.shape.columns()
    }
}

/// The arguments of [`super::Op::reference`]: inputs and outputs never share memory here. Outputs start as zeros.
#[derive(Debug)]
pub struct ReferenceArgs<'a> {
    /// The inputs.
    pub inputs: &'a [&'a Array],
    /// The outputs, of the inferred types.
    pub outputs: &'a mut [Array],
}

impl<'a> ReferenceArgs<'a> {
    /// The inputs and outputs as arrays of known length.
    ///
    /// # Panics
    /// When the counts differ from those the op was recorded with.
    pub fn split<const I: usize, const O: usize>(self) -> ([&'a Array; I], [&'a mut Array; O]) {
        let inputs = self
            .inputs
            .try_into()
            .expect("an op runs with the inputs it was recorded with");
        let mut outputs = self.outputs.iter_mut();
        let outputs = std::array::from_fn(|_| {
            outputs
                .next()
                .expect("an op runs with the outputs it inferred")
        });
        (inputs, outputs)
    }
}

/// A float type in which the values of a program are stored, as the processor's kernels name it.
pub trait Element: Factor + bytemuck::Pod {
    /// The elements of an input of this type.
    fn of_input<'a>(input: Input<'a>) -> Option<&'a [Self]>;
    /// The elements of an output of this type.
    fn of_output<'a, 'b>(output: &'b mut Output<'a>) -> Option<&'b mut [Self]>;
}

impl Element for f32 {
    fn of_input<'a>(input: Input<'a>) -> Option<&'a [f32]> {
        match input {
            Input::F32(values) => Some(values),
            _ => None,
        }
    }

    fn of_output<'a, 'b>(output: &'b mut Output<'a>) -> Option<&'b mut [f32]> {
        match output {
            Output::F32(values) => Some(values),
            _ => None,
        }
    }
}

impl Element for bf16 {
    fn of_input<'a>(input: Input<'a>) -> Option<&'a [bf16]> {
        match input {
            Input::Bf16(values) => Some(values),
            _ => None,
        }
    }

    fn of_output<'a, 'b>(output: &'b mut Output<'a>) -> Option<&'b mut [bf16]> {
        match output {
            Output::Bf16(values) => Some(values),
            _ => None,
        }
    }
}

/// Evaluates `$body` with `$element` as the [`Element`] of the float type `$dtype`.
macro_rules! with_element {
    ($dtype:expr, $element:ident => $body:expr) => {
        match $dtype {
            $crate::tensor::DType::Bf16 => {
                type $element = half::bf16;
                $body
            }
            _ => {
                type $element = f32;
                $body
            }
        }
    };
}
pub(crate) use with_element;

/// One input of a CPU kernel.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Elements of type f32.
    F32(&'a [f32]),
    /// Elements of type bf16.
    Bf16(&'a [bf16]),
    /// Integer elements.
    I32(&'a [i32]),
    /// The input lies in the place of the output with this index: read it there.
    InPlace(usize),
}

/// One output of a CPU kernel. Its memory holds anything, unless an input lies in its place.
#[derive(Debug)]
pub enum Output<'a> {
    /// Elements of type f32.
    F32(&'a mut [f32]),
    /// Elements of type bf16.
    Bf16(&'a mut [bf16]),
    /// Integer elements.
    I32(&'a mut [i32]),
}

/// The arguments of [`super::Op::cpu`].
#[derive(Debug)]
pub struct CpuArgs<'a> {
    /// The inputs.
    pub inputs: Inputs<'a>,
    /// The outputs; take them with [`Outputs::f32`] or [`Outputs::in_order`].
    pub outputs: Outputs<'a>,
    /// Scratch memory of the size that [`super::Op::workspace`] asked for, 64-byte aligned; holds anything.
    pub workspace: &'a mut [f32],
    /// The input types.
    pub input_types: &'a [TensorType],
    /// The output types.
    pub output_types: &'a [TensorType],
}

/// The inputs of a CPU kernel.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a>(pub &'a [Input<'a>]);

impl<'a> Inputs<'a> {
    /// Float input `index`, stored as `T`.
    ///
    /// # Panics
    /// When the input is of another type or lies in an output's place; ops that allow that use [`Inputs::of_or_in_place`].
    pub fn of<T: Element>(&self, index: usize) -> &'a [T] {
        match self.of_or_in_place(index) {
            Some(values) => values,
            None => panic!("input {index} lies in an output's place"),
        }
    }

    /// Float input `index`, stored as `T`, or `None` when the output already holds it.
    ///
    /// # Panics
    /// When the input is of another type, which [`super::Op::infer`] has excluded.
    pub fn of_or_in_place<T: Element>(&self, index: usize) -> Option<&'a [T]> {
        match self.0[index] {
            Input::InPlace(_) => None,
            input => match T::of_input(input) {
                Some(values) => Some(values),
                None => panic!("infer admits only another type at input {index}"),
            },
        }
    }

    /// Input `index` of type f32.
    ///
    /// # Panics
    /// As [`Inputs::of`].
    pub fn f32(&self, index: usize) -> &'a [f32] {
        self.of(index)
    }

    /// Input `index` of type f32, or `None` when the output already holds it.
    ///
    /// # Panics
    /// As [`Inputs::of_or_in_place`].
    pub fn f32_or_in_place(&self, index: usize) -> Option<&'a [f32]> {
        self.of_or_in_place(index)
    }

    /// Integer input `index`.
    ///
    /// # Panics
    /// When the input is of another type, which [`super::Op::infer`] has excluded.
    pub fn i32(&self, index: usize) -> &'a [i32] {
        match self.0[index] {
            Input::I32(values) => values,
            _ => panic!("infer admits only i32 at input {index}"),
        }
    }

    /// The number of inputs.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the op has no inputs.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The outputs of a CPU kernel.
#[derive(Debug)]
pub struct Outputs<'a>(pub &'a mut [Output<'a>]);

impl<'a> Outputs<'a> {
    /// The first `O` outputs, all of type f32.
    ///
    /// # Panics
    /// When the op has fewer outputs or one of them is of another type, which [`super::Op::infer`] has excluded.
    pub fn f32<const O: usize>(self) -> [&'a mut [f32]; O] {
        let mut outputs = self.in_order();
        std::array::from_fn(|_| outputs.next())
    }

    /// The outputs one after the other, each by its type.
    pub fn in_order(self) -> OutputsInOrder<'a> {
        OutputsInOrder(self.0.iter_mut())
    }

    /// The first output, of integer type.
    ///
    /// # Panics
    /// When it holds floats, which [`super::Op::infer`] has excluded.
    pub fn i32(self) -> &'a mut [i32] {
        match self.0.first_mut() {
            Some(Output::I32(values)) => values,
            _ => panic!("infer makes the output an i32 value"),
        }
    }
}

/// The outputs of a CPU kernel that have not been taken yet.
#[derive(Debug)]
pub struct OutputsInOrder<'a>(std::slice::IterMut<'a, Output<'a>>);

impl<'a> OutputsInOrder<'a> {
    /// The next output, stored as `T`.
    ///
    /// # Panics
    /// When there is none or it is of another type, which [`super::Op::infer`] has excluded.
    // Not an iterator: each call says the type of what it takes.
    #[allow(clippy::should_implement_trait)]
    pub fn next<T: Element>(&mut self) -> &'a mut [T] {
        let output = self.0.next().and_then(T::of_output);
        output.expect("infer makes the output of this type")
    }
}
