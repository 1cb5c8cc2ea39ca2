//! Matrix products in f32.
//!
//! Three threaded forms carry a linear layer through a step: [`linear`] (y = x Wᵀ and what follows it),
//! [`linear_backward_input`] (dx = dy W) and [`linear_backward_weight`] (dW = dyᵀ x, db). [`product`] is one
//! single-threaded strided product for tiles of other kernels, and [`product_of_pairs`] one of bf16 numbers in pairs or on a unit for tiles.
//!
//! The products are written here and not taken from the `gemm` crate, which they were measured against: that crate
//! allocates its packing buffers on every call, packs the weight again for every block of rows, and cannot fuse what
//! follows the product. Ours packs the weight once per call into the caller's workspace, reads the activations where
//! they lie, and applies bias, activation, scale and residual to each tile while it is in the first-level cache.
//!
//! Bits: an element of [`linear`], [`linear_backward_input`] and [`product`] is one chain of fused multiply-adds in
//! index order, whatever the tiling, the threads or the vector width. [`linear_backward_weight`] sums blocks of rows
//! whose borders follow from the shape, in order.
#![allow(unsafe_code)]

mod backward_weight;
mod bf16;
mod bf16_weight;
mod few_rows;
mod finish;
mod linear;
mod matrix;
mod pack;
mod pair_product;
mod pairs;
mod product;
mod tile;
mod unit_tile;
mod way;

pub use backward_weight::{linear_backward_weight, linear_backward_weight_workspace};
pub use bf16::widened_rows_workspace;
pub use finish::{Epilogue, Residual};
pub use linear::{
    Factor, linear, linear_backward_input, linear_backward_input_workspace, linear_workspace,
};
pub use matrix::{Hint, Operand, Rows, RowsMut};
pub use pair_product::{Cells, Panels, panels_workspace, product_of_pairs};
pub use product::{Extent, READ_BEYOND, Stairs, product, product_within, product_workspace};

/// Widest tile of any path, in columns: what workspaces are rounded up to.
const WIDEST: usize = 32;

/// What a linear layer's gradient passes through on its way to the layer before.
pub use finish::Slope;
