//! Products with a weight matrix: y = f(x·Wᵀ + b) and y = residual + γ ⊙ (x·Wᵀ + b), with their gradients.
//!
//! Shapes: x [.., K], weight [N, K], bias and γ [N], residual and y [.., N]; M rows is the product of the leading dimensions.
//!
//! Forward, with z = x·Wᵀ + b: y = z, y = f(z) or y = residual + γ ⊙ z. Backward, with
//! dz = dy ⊙ f′(z) or γ ⊙ dy:
//! dx = dz·W, dW = dzᵀ·x, db = Σ over rows of dz, dresidual = dy,
//! dγ = Σ over rows of dy ⊙ z.
//!
//! Saved for backward: x and W; z where an activation or a scale follows and a gradient is required. f′(z) is applied by the
//! product that makes dy, where nothing else reads dy, and by an elementwise op otherwise. Each of the three products
//! takes 2·M·N·K flops. The products accumulate into an existing gradient for free.

mod activation;
mod backward_input;
pub(super) mod backward_weight;
mod forward;
mod hopper;
pub(super) mod tiles;

use crate::tape::{Tape, Value};
use crate::tensor::DType;
use keel_base::error::Result;
use keel_cpu::matmul;

pub use activation::{Activation, activation};
use backward_input::LinearBackwardInput;
use backward_weight::LinearBackwardWeight;
use forward::Linear;

/// Floats of workspace that a product of rows of `dtype` takes on the processor besides its packed weight, where it sums
/// over `inner` elements.
pub(super) fn widened_rows(dtype: DType, inner: usize, threads: usize) -> usize {
    match dtype {
        DType::Bf16 => matmul::widened_rows_workspace(inner, threads),
        _ => 0,
    }
}

/// y [.., N] = x·Wᵀ + b for x [.., K], weight [N, K], bias `[N]`.
///
/// # Errors
/// [`keel_base::error::Error::Shape`] when the shapes do not fit.
pub fn linear(tape: &mut Tape, x: Value, weight: Value, bias: Option<Value>) -> Result<Value> {
    let op = Linear {
        has_bias: bias.is_some(),
        ..Linear::default()
    };
    let inputs: Vec<Value> = [Some(x), Some(weight), bias]
        .into_iter()
        .flatten()
        .collect();
    tape.record_one(op, &inputs)
}

/// a·b for a [M, N] and b [N, K].
pub(super) fn product(tape: &mut Tape, a: Value, b: Value) -> Result<Value> {
    tape.record_one(LinearBackwardInput::default(), &[a, b])
}

/// aᵀ·b f32 for a [M, N] and b [M, K].
pub(super) fn transposed_product(tape: &mut Tape, a: Value, b: Value) -> Result<Value> {
    tape.record_one(LinearBackwardWeight::default(), &[a, b])
}

/// y [.., N] = activation(x·Wᵀ + b) for x [.., K], weight [N, K], bias `[N]`.
///
/// # Errors
/// [`keel_base::error::Error::Shape`] when the shapes do not fit.
pub fn linear_activation(
    tape: &mut Tape,
    x: Value,
    weight: Value,
    bias: Option<Value>,
    activation: Activation,
) -> Result<Value> {
    let inputs: Vec<Value> = [Some(x), Some(weight), bias]
        .into_iter()
        .flatten()
        .collect();
    let op = Linear {
        has_bias: bias.is_some(),
        activation: Some(activation),
        saves_pre_activation: inputs.iter().any(|v| tape.requires_gradient(*v)),
        ..Linear::default()
    };
    tape.record_one(op, &inputs)
}

/// y [.., N] = residual + x·Wᵀ + b for x [.., K], weight [N, K], bias `[N]`, residual [.., N]; y may take the residual's
/// place.
///
/// # Errors
/// [`keel_base::error::Error::Shape`] when the shapes do not fit.
pub fn linear_residual(
    tape: &mut Tape,
    x: Value,
    weight: Value,
    bias: Option<Value>,
    residual: Value,
) -> Result<Value> {
    let op = Linear {
        has_bias: bias.is_some(),
        has_residual: true,
        ..Linear::default()
    };
    let inputs: Vec<Value> = [Some(x), Some(weight), bias, Some(residual)]
        .into_iter()
        .flatten()
        .collect();
    tape.record_one(op, &inputs)
}

/// y [.., N] = residual + γ ⊙ (x·Wᵀ + b), a residual branch scaled per channel (LayerScale, Touvron et al. 2021, eq. 4),
/// for x [.., K], weight [N, K], bias `[N]`, `gamma` f32 `[N]`, residual [.., N]; y may take the residual's place.
///
/// # Errors
/// [`keel_base::error::Error::Shape`] when the shapes do not fit.
pub fn linear_layer_scale(
    tape: &mut Tape,
    x: Value,
    weight: Value,
    bias: Option<Value>,
    gamma: Value,
    residual: Value,
) -> Result<Value> {
    let inputs: Vec<Value> = [Some(x), Some(weight), bias, Some(residual), Some(gamma)]
        .into_iter()
        .flatten()
        .collect();
    let branch = [Some(x), Some(weight), bias, Some(gamma)];
    let op = Linear {
        has_bias: bias.is_some(),
        has_residual: true,
        has_scale: true,
        saves_pre_activation: branch
            .into_iter()
            .flatten()
            .any(|v| tape.requires_gradient(v)),
        ..Linear::default()
    };
    tape.record_one(op, &inputs)
}
