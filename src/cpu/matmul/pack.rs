//! Packing the right factor into panels: [depth, tile width] each, zero-padded, read front to back by the tile.

use super::matrix::Operand;
use crate::simd::{LANES, Simd};
use crate::storage::Stored;

/// Packs columns `column..column + count` of `b` [depth, columns], rows `row..row + depth`, into `panel`, whose rows
/// are `width` long.
///
/// # Safety
/// 1. The range lies inside `b`; 2. `count <= width`, a multiple of 16; 3. `panel` is writable for `depth` · `width`
///    and overlaps nothing else.
#[inline(always)]
pub(super) unsafe fn panel<S: Simd, T: Stored>(
    simd: S,
    b: Operand<'_, T>,
    (row, depth): (usize, usize),
    (column, count): (usize, usize),
    panel: *mut f32,
    width: usize,
) {
    let stride = b.rows.stride;
    if !b.transposed {
        let start = b.rows.start.wrapping_add(row * stride + column);
        if count == width && width == S::TILE_VECTORS * LANES {
            for k in 0..depth {
                for v in 0..S::TILE_VECTORS {
                    // SAFETY: `width` lanes lie inside row `row + k` of B and inside the panel's row.
                    unsafe {
                        let x = T::load(simd, start.add(k * stride + v * LANES));
                        simd.store(panel.add(k * width + v * LANES), x);
                    }
                }
            }
            return;
        }
        for k in 0..depth {
            for first in (0..width).step_by(LANES) {
                let present = count.saturating_sub(first).min(LANES);
                // SAFETY: `present` lanes lie inside row `row + k` of B; the panel's row holds `width`.
                unsafe {
                    let x = super::tile::get(simd, start.wrapping_add(k * stride + first), present);
                    simd.store(panel.add(k * width + first), x);
                }
            }
        }
        return;
    }
    // Column j of B is row j of the stored matrix: blocks of 16 × 16 are transposed in registers.
    let start = b.rows.start.wrapping_add(column * stride + row);
    for first in (0..width).step_by(LANES) {
        let present = count.saturating_sub(first).min(LANES);
        let mut k = 0;
        if present == LANES {
            while k + LANES <= depth {
                // SAFETY: sixteen stored rows and sixteen of their columns lie inside; so does the panel's block.
                unsafe {
                    let from = start.add(first * stride + k);
                    // The panel behind this one lies in as many rows, too many for the processor to see it coming.
                    for j in 0..LANES {
                        let next = start.wrapping_add((first + width + j) * stride + k);
                        simd.prefetch(next.cast());
                    }
                    transpose(simd, from, stride, panel.add(k * width + first), width);
                }
                k += LANES;
            }
        }
        for k in k..depth {
            for j in 0..LANES {
                // SAFETY: columns below `present` lie inside B; the panel's row holds `width`.
                unsafe {
                    *panel.add(k * width + first + j) = if j < present {
                        (*start.add((first + j) * stride + k)).widen()
                    } else {
                        0.0
                    };
                }
            }
        }
    }
}

/// Writes the transpose of a 16 × 16 block in f32.
///
/// # Safety
/// 1. Sixteen rows of sixteen numbers, `from_stride` apart, are readable; 2. the same at `to` is writable.
#[inline(always)]
unsafe fn transpose<S: Simd, T: Stored>(
    simd: S,
    from: *const T,
    from_stride: usize,
    to: *mut f32,
    to_stride: usize,
) {
    // SAFETY: the caller's contract; a block that is widened first lies in the array.
    unsafe {
        if T::IS_F32 {
            simd.transpose(from.cast(), from_stride, to, to_stride);
            return;
        }
        let mut block = [0.0f32; LANES * LANES];
        for row in 0..LANES {
            let x = T::load(simd, from.add(row * from_stride));
            simd.store(block.as_mut_ptr().add(row * LANES), x);
        }
        simd.transpose(block.as_ptr(), LANES, to, to_stride);
    }
}
