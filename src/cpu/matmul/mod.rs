//! Matrix products in f32.
//!
//! Three threaded forms carry a linear layer through a step: [`linear`] (y = x Wᵀ and what follows it),
//! [`linear_input_gradient`] (dx = dy W) and [`linear_weight_gradient`] (dW = dyᵀ x, db). [`product`] is one
//! single-threaded strided product for tiles of other kernels.
//!
//! The products are written here and not taken from the `gemm` crate, which they were measured against: that crate
//! allocates its packing buffers on every call, packs the weight again for every block of rows, and cannot fuse what
//! follows the product. Ours packs the weight once per call into the caller's workspace, reads the activations where
//! they lie, and applies bias, activation, scale and residual to each tile while it is in the first-level cache.
//!
//! Bits: an element of [`linear`], [`linear_input_gradient`] and [`product`] is one chain of fused multiply-adds in
//! index order, whatever the tiling, the threads or the vector width. [`linear_weight_gradient`] sums blocks of rows
//! whose borders follow from the shape, in order.
#![allow(unsafe_code)]

mod finish;
mod linear;
mod matrix;
mod pack;
mod product;
mod tile;
mod weight_gradient;

pub use finish::{Epilogue, Residual};
pub use linear::{
    linear, linear_input_gradient, linear_input_gradient_workspace, linear_workspace,
};
pub use matrix::{Operand, Rows, RowsMut};
pub use product::{product, product_workspace};
pub use weight_gradient::{linear_weight_gradient, linear_weight_gradient_workspace};

/// Widest tile of any path, in columns: what workspaces are rounded up to.
const WIDEST: usize = 32;

/// What a linear layer's gradient passes through on its way to the layer before.
pub use finish::Slope;
