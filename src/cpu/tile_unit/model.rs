//! A unit in memory: what the instructions of AMX compute, for machines without them.

use super::{CELLS, SIDE, Taken, TileUnit, Tiles};
use crate::simd::{LANES, Simd, Task};

/// Registers of a unit.
const REGISTERS: usize = 8;

/// The right to take a unit in memory, which every machine has.
#[derive(Clone, Copy, Debug)]
pub struct Model;

/// A unit in memory.
pub struct ModelUnit {
    registers: Box<[[f32; CELLS]; REGISTERS]>,
    /// Memory could be had twice; the registers that it stands for could not.
    _taken: Taken,
}

impl Tiles for Model {
    type Unit = ModelUnit;

    fn take(self) -> ModelUnit {
        ModelUnit {
            registers: Box::new([[0.0; CELLS]; REGISTERS]),
            _taken: Taken::new(),
        }
    }
}

impl TileUnit for ModelUnit {
    fn zero<const TILE: usize>(&mut self) {
        self.registers[TILE] = [0.0; CELLS];
    }

    unsafe fn load<const TILE: usize>(&mut self, from: *const f32, stride: usize) {
        for (row, cells) in self.registers[TILE].chunks_exact_mut(SIDE).enumerate() {
            // SAFETY: the caller vouches for sixteen rows.
            unsafe { std::ptr::copy(from.add(row * stride), cells.as_mut_ptr(), SIDE) };
        }
    }

    unsafe fn store<const TILE: usize>(&self, to: *mut f32, stride: usize) {
        for (row, cells) in self.registers[TILE].chunks_exact(SIDE).enumerate() {
            // SAFETY: the caller vouches for sixteen rows.
            unsafe { std::ptr::copy(cells.as_ptr(), to.add(row * stride), SIDE) };
        }
    }

    fn multiply<S: Simd, const SUM: usize, const LEFT: usize, const RIGHT: usize>(
        &mut self,
        simd: S,
    ) {
        let mut sums = self.registers[SUM];
        let (left, right) = (&self.registers[LEFT], &self.registers[RIGHT]);
        simd.call(MultiplyAdd(&mut sums, left, right));
        self.registers[SUM] = sums;
    }
}

/// `sums[i, j] += Σₖ left[i, k] · right[k, j]`, as `tdpbf16ps` computes it for full registers (Intel's manual, volume 2): of the
/// sixteen cells k in order, the products of the lower terms are added up by themselves, from zero, and so are those of the upper
/// terms; then the two sums are added, and the result to what the register held. Each multiplication with its addition is rounded
/// once, and each addition, to nearest with ties to even; subnormal operands and results become zero. Matrices are in rows of
/// sixteen cells.
pub fn multiply_add(sums: &mut [f32; CELLS], left: &[f32; CELLS], right: &[f32; CELLS]) {
    crate::simd::dispatch(MultiplyAdd(sums, left, right));
}

struct MultiplyAdd<'a>(&'a mut [f32; CELLS], &'a [f32; CELLS], &'a [f32; CELLS]);

/// The lower and the upper term of a cell in f32.
#[inline(always)]
fn terms(cell: f32) -> [f32; 2] {
    let bits = cell.to_bits();
    [bits << 16, bits & 0xffff_0000].map(|bits| {
        let term = f32::from_bits(bits);
        if term.is_subnormal() {
            0.0f32.copysign(term)
        } else {
            term
        }
    })
}

/// x, with zeros in the place of subnormal numbers.
#[inline(always)]
fn normal<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
    let is_small = simd.less(simd.abs(x), simd.splat(f32::MIN_POSITIVE));
    simd.select(is_small, simd.copy_sign(simd.splat(0.0), x), x)
}

impl Task for MultiplyAdd<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let MultiplyAdd(sums, left, right) = self;
        let mut lower = [[0.0; LANES]; SIDE];
        let mut upper = lower;
        for (index, cell) in right.iter().enumerate() {
            let (row, column) = (index / SIDE, index % SIDE);
            [lower[row][column], upper[row][column]] = terms(*cell);
        }
        let rows = sums.chunks_exact_mut(SIDE);
        for (sums, left) in rows.zip(left.chunks_exact(SIDE)) {
            let (mut even, mut odd) = (simd.splat(0.0), simd.splat(0.0));
            for ((cell, lower), upper) in left.iter().zip(&lower).zip(&upper) {
                let [low, high] = terms(*cell);
                // SAFETY: sixteen lanes lie in each array.
                let (lower, upper) =
                    unsafe { (simd.load(lower.as_ptr()), simd.load(upper.as_ptr())) };
                even = normal(simd, simd.mul_add(simd.splat(low), lower, even));
                odd = normal(simd, simd.mul_add(simd.splat(high), upper, odd));
            }
            let both = normal(simd, simd.add(even, odd));
            // SAFETY: sixteen lanes lie in a row.
            unsafe {
                let held = normal(simd, simd.load(sums.as_ptr()));
                simd.store(sums.as_mut_ptr(), normal(simd, simd.add(held, both)));
            }
        }
    }
}
