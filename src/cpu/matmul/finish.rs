//! What happens to a tile after its product: bias, activation, scale, residual, or the slope of an activation.

use super::matrix::{Rows, RowsMut};
use super::tile::{get, put};
use crate::simd::{LANES, Simd, Task};
use crate::storage::Stored;
use crate::vector_math::Activation;
use crate::vector_math::activation::{Curve, with_curve};

/// Bytes of a cache line.
const LINE: usize = 64;

/// What is added to a layer's output at the end.
#[derive(Default)]
pub enum Residual<'a, T = f32> {
    /// Nothing.
    #[default]
    None,
    /// A tensor [M, N].
    From(Rows<'a, T>),
    /// What the output holds already.
    InPlace,
}

/// What follows the product of a linear layer: y = residual + scale · activation(x Wᵀ + bias).
#[derive(Default)]
pub struct Epilogue<'a, T = f32> {
    /// Added to each row, `[N]`.
    pub bias: Option<&'a [f32]>,
    /// Receives x Wᵀ + bias, [M, N], for the backward pass.
    pub pre_activation: Option<RowsMut<'a, T>>,
    /// Applied to each element.
    pub activation: Option<Activation>,
    /// LayerScale: multiplied into each row, `[N]`.
    pub scale: Option<&'a [f32]>,
    /// Added last.
    pub residual: Residual<'a, T>,
}

/// The activation in front of a layer, seen from behind: its kind and its argument z [M, K].
#[derive(Clone, Copy)]
pub struct Slope<'a, T = f32> {
    /// Which activation.
    pub activation: Activation,
    /// Its argument, saved by the forward pass.
    pub pre_activation: Rows<'a, T>,
}

/// A matrix that a tile reads or writes elementwise: start and row distance.
#[derive(Clone, Copy)]
pub struct Plane<T = f32> {
    start: *mut T,
    stride: usize,
}

impl<T: Stored> Plane<T> {
    pub fn read(rows: Rows<'_, T>) -> Self {
        Self {
            start: rows.start.cast_mut(),
            stride: rows.stride,
        }
    }

    pub fn write(rows: &RowsMut<'_, T>) -> Self {
        Self {
            start: rows.start,
            stride: rows.stride,
        }
    }

    #[inline(always)]
    pub fn at(self, row: usize, column: usize) -> *mut T {
        self.start.wrapping_add(row * self.stride + column)
    }

    pub fn stride(self) -> usize {
        self.stride
    }
}

/// The epilogue as raw parts, shared by all tasks of a product.
#[derive(Clone, Copy)]
pub struct Finish<T = f32> {
    pub bias: Option<*const f32>,
    pub pre_activation: Option<Plane<T>>,
    pub activation: Option<Activation>,
    pub scale: Option<*const f32>,
    pub residual: Option<Plane<T>>,
    pub slope: Option<(Activation, Plane<T>)>,
    pub output: Plane<T>,
}

// SAFETY: each task reads and writes only its own rows and columns through these pointers.
unsafe impl<T: Stored> Send for Finish<T> {}
// SAFETY: as above.
unsafe impl<T: Stored> Sync for Finish<T> {}

impl<T: Stored> Finish<T> {
    /// Only stores to `output`.
    pub fn plain(output: &RowsMut<'_, T>) -> Self {
        Self {
            bias: None,
            pre_activation: None,
            activation: None,
            scale: None,
            residual: None,
            slope: None,
            output: Plane::write(output),
        }
    }

    /// Whether product and bias may go to the output directly, adding to it where `Some(1.0)`.
    pub fn beta(&self) -> Option<f32> {
        let bare = self.pre_activation.is_none()
            && self.activation.is_none()
            && self.scale.is_none()
            && self.slope.is_none();
        match self.residual {
            _ if !bare => None,
            None => Some(0.0),
            Some(plane) if plane.start == self.output.start => Some(1.0),
            Some(_) => None,
        }
    }
}

impl<T: Stored> Finish<T> {
    /// Asks for a tile of everything the epilogue reads, before a product that takes long enough for it to arrive: rows of a tile
    /// are too short and too far apart for the processor to see them coming. What is only written is not asked for: stores wait for
    /// nothing, and the requests cost the products of a Zen 5 1 to 3 %.
    #[inline(always)]
    pub fn prefetch<S: Simd>(
        &self,
        simd: S,
        (row, rows): (usize, usize),
        (column, columns): (usize, usize),
    ) {
        let argument = self.slope.map(|(_, plane)| plane);
        for plane in [self.residual, argument].into_iter().flatten() {
            for r in row..row + rows {
                for c in (column..column + columns).step_by(LINE / size_of::<T>()) {
                    simd.prefetch(plane.at(r, c).cast());
                }
            }
        }
    }
}

/// Finishes one tile of products.
pub(super) struct FinishTile<'a, T = f32> {
    pub finish: &'a Finish<T>,
    /// The products, rows `products_stride` apart.
    pub products: *const f32,
    pub products_stride: usize,
    /// Where the tile lies: first row, rows, first column, columns.
    pub row: usize,
    pub rows: usize,
    pub column: usize,
    pub columns: usize,
}

/// No activation.
#[derive(Clone, Copy)]
struct Identity;

impl Curve for Identity {
    #[inline(always)]
    fn value<S: Simd>(self, _simd: S, x: S::Vector) -> S::Vector {
        x
    }
    #[inline(always)]
    fn slope<S: Simd>(self, simd: S, _x: S::Vector) -> S::Vector {
        simd.splat(1.0)
    }
}

impl<T: Stored> FinishTile<'_, T> {
    #[inline(always)]
    fn forward<S: Simd, C: Curve>(&self, simd: S, curve: C) {
        let f = self.finish;
        for (r, c) in self.vectors() {
            let (row, column) = (self.row + r, self.column + c);
            let count = (self.columns - c).min(LANES);
            // SAFETY: the products hold whole vectors for every row and column of the tile. `linear` checked that every
            // matrix and vector of the epilogue covers the output's shape, and `count` lanes from `column` lie inside
            // it; the tile belongs to this task alone.
            unsafe {
                let mut x = simd.load(self.products.add(r * self.products_stride + c));
                if let Some(bias) = f.bias {
                    x = simd.add(x, get(simd, bias.add(column), count));
                }
                if let Some(plane) = f.pre_activation {
                    put(simd, plane.at(row, column), count, x);
                }
                x = curve.value(simd, x);
                match (f.scale, f.residual) {
                    (None, None) => {}
                    (Some(scale), None) => x = simd.mul(get(simd, scale.add(column), count), x),
                    (None, Some(r)) => x = simd.add(get(simd, r.at(row, column), count), x),
                    (Some(scale), Some(r)) => {
                        let scale = get(simd, scale.add(column), count);
                        x = simd.mul_add(scale, x, get(simd, r.at(row, column), count));
                    }
                }
                put(simd, f.output.at(row, column), count, x);
            }
        }
    }

    #[inline(always)]
    fn backward<S: Simd, C: Curve>(&self, simd: S, curve: C, argument: Plane<T>) {
        let f = self.finish;
        for (r, c) in self.vectors() {
            let (row, column) = (self.row + r, self.column + c);
            let count = (self.columns - c).min(LANES);
            // SAFETY: as in `forward`, checked by `linear_backward_input`.
            unsafe {
                let product = simd.load(self.products.add(r * self.products_stride + c));
                let slope = curve.slope(simd, get(simd, argument.at(row, column), count));
                let x = match f.residual {
                    None => simd.mul(product, slope),
                    Some(r) => simd.mul_add(product, slope, get(simd, r.at(row, column), count)),
                };
                put(simd, f.output.at(row, column), count, x);
            }
        }
    }

    /// Row and first column of every vector of the tile, counted from its corner.
    #[inline(always)]
    fn vectors(&self) -> impl Iterator<Item = (usize, usize)> {
        let columns = self.columns;
        (0..self.rows).flat_map(move |r| (0..columns).step_by(LANES).map(move |c| (r, c)))
    }
}

impl<T: Stored> Task for FinishTile<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match (self.finish.slope, self.finish.activation) {
            (Some((activation, argument)), _) => {
                with_curve!(activation, curve => self.backward(simd, curve, argument));
            }
            (None, Some(activation)) => {
                with_curve!(activation, curve => self.forward(simd, curve));
            }
            (None, None) => self.forward(simd, Identity),
        }
    }
}
