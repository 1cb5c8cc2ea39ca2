//! The questions every shape rule asks. Answers are [`Error::Shape`] with the op's and the tensor's name.

use crate::tensor::{DType, Shape, TensorType};
use keel_base::error::{Error, Result};

/// The inputs as an array, or an error when the op got another number of them.
pub(super) fn expect_inputs<const COUNT: usize>(
    op: &'static str,
    inputs: &[TensorType],
) -> Result<[TensorType; COUNT]> {
    inputs.try_into().map_err(|_| {
        let want = format!("{COUNT} values");
        Error::shape(op, "inputs", want, format!("{} values", inputs.len()))
    })
}

/// `got` holds floats and has at least `rank` dimensions.
pub(super) fn expect_float(
    op: &'static str,
    tensor: &str,
    rank: usize,
    got: TensorType,
) -> Result<()> {
    if !got.dtype.is_float() || got.shape.rank() < rank {
        let want = format!("a float tensor of rank {rank} or more");
        return Err(Error::shape(op, tensor, want, got));
    }
    Ok(())
}

/// `got` holds floats [B, T, C]: T tokens of C columns in each of B batch rows. Returns B, T and C.
pub(super) fn expect_tokens(op: &'static str, tensor: &str, got: TensorType) -> Result<[usize; 3]> {
    match *got.shape.dims() {
        [b, t, c] if got.dtype.is_float() => Ok([b, t, c]),
        _ => Err(Error::shape(op, tensor, "floats [B, T, C]", got)),
    }
}

/// `got` is of this type and shape; `rule` says why in the letters of the op's documentation.
pub(super) fn expect_type(
    op: &'static str,
    tensor: &str,
    rule: &str,
    want: TensorType,
    got: TensorType,
) -> Result<()> {
    if want != got {
        return Err(Error::shape(op, tensor, format!("{want} {rule}"), got));
    }
    Ok(())
}

/// `got` is a vector [length] of the given element type.
pub(super) fn expect_vector(
    op: &'static str,
    tensor: &str,
    rule: &str,
    (dtype, length): (DType, usize),
    got: TensorType,
) -> Result<()> {
    expect_type(op, tensor, rule, TensorType::new(dtype, [length]), got)
}

/// The shape with its innermost dimension replaced.
pub(super) fn with_columns(shape: Shape, columns: usize) -> Shape {
    let mut dims = [1; Shape::MAX_RANK];
    let rank = shape.rank().max(1);
    dims[..shape.rank()].copy_from_slice(shape.dims());
    dims[rank - 1] = columns;
    Shape::new(&dims[..rank])
}
