//! Normalisation over the innermost dimension: LayerNorm and RMSNorm, with or without a residual added before.
//!
//! Shapes: x and residual [.., C], weight and bias f32 [C], y [.., C] like x; M rows is the product of the leading
//! dimensions. The gradients of weight and bias are f32 whatever x is.
//!
//! Forward, with μ = mean x, r = (mean (x − μ)² + ε)^(−½) and h = (x − μ)·r: y = h ⊙ weight + bias (Ba et al. 2016, eq.
//! 3–4). RMSNorm is the same with μ = 0 and no bias (Zhang and Sennrich 2019, eq. 4). The variance is the biased one, in
//! two passes over a row that is in cache, so a large mean costs no digits.
//!
//! Backward, with g = dy ⊙ weight: dx = r·(g − mean g − h·mean(g ⊙ h)), without the mean of g for RMSNorm;
//! dweight = Σ over rows of dy ⊙ h, dbias = Σ over rows of dy. One pass over x and dy gives all three, and dx can be
//! added to a gradient that is there already.
//!
//! Saved for backward: x (the sum, with a residual) and (μ, r) of each row, 8·M bytes. Without a gradient nothing reads
//! the statistics, so they die with the op that makes them.
//! About 8·M·C flops forward and 14·M·C backward; forward moves 8·M·C bytes (16 with a residual), backward 12.

mod backward;
mod forward;
mod kernel;

use crate::tape::{Tape, Value};
use keel_base::error::Result;

use forward::Norm;

/// Which of the two normalisations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Layer,
    Rms,
}

/// y [.., C] = LayerNorm of x [.., C] with weight `[C]` and bias `[C]`.
///
/// # Errors
/// [`keel_base::error::Error::Shape`] when the shapes do not fit.
pub fn layer_norm(
    tape: &mut Tape,
    x: Value,
    weight: Value,
    bias: Value,
    epsilon: f32,
) -> Result<Value> {
    let outputs = record(tape, Kind::Layer, epsilon, false, &[x, weight, bias])?;
    Ok(outputs[0])
}

/// y [.., C] = RMSNorm of x [.., C] with weight `[C]`.
///
/// # Errors
/// [`keel_base::error::Error::Shape`] when the shapes do not fit.
pub fn rms_norm(tape: &mut Tape, x: Value, weight: Value, epsilon: f32) -> Result<Value> {
    let outputs = record(tape, Kind::Rms, epsilon, false, &[x, weight])?;
    Ok(outputs[0])
}

/// (sum, y): sum = x + residual and its LayerNorm; the sum may take the place of either.
///
/// # Errors
/// [`keel_base::error::Error::Shape`] when the shapes do not fit.
pub fn layer_norm_residual(
    tape: &mut Tape,
    x: Value,
    residual: Value,
    weight: Value,
    bias: Value,
    epsilon: f32,
) -> Result<(Value, Value)> {
    let inputs = [x, residual, weight, bias];
    let outputs = record(tape, Kind::Layer, epsilon, true, &inputs)?;
    Ok((outputs[0], outputs[1]))
}

/// (sum, y): sum = x + residual and its RMSNorm; the sum may take the place of either.
///
/// # Errors
/// [`keel_base::error::Error::Shape`] when the shapes do not fit.
pub fn rms_norm_residual(
    tape: &mut Tape,
    x: Value,
    residual: Value,
    weight: Value,
    epsilon: f32,
) -> Result<(Value, Value)> {
    let outputs = record(tape, Kind::Rms, epsilon, true, &[x, residual, weight])?;
    Ok((outputs[0], outputs[1]))
}

fn record(
    tape: &mut Tape,
    kind: Kind,
    epsilon: f32,
    has_residual: bool,
    inputs: &[Value],
) -> Result<Vec<Value>> {
    let op = Norm {
        kind,
        epsilon,
        has_residual,
    };
    tape.record(op, inputs)
}
