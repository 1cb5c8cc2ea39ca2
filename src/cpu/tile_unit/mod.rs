//! Units that multiply whole tiles of bf16 numbers: Intel's AMX, and its model.
//!
//! A unit has eight registers of sixteen rows of sixteen cells. A cell holds an f32 number, or two terms of a reduction in bf16 as
//! the instruction for pairs has them ([`Simd::dot_pairs`]). Register 0 to 3 hold sums here, 4 and 5 left factors, 6 and 7 right
//! ones. What drives a unit ([`crate::matmul`]) is written once over [`TileUnit`], so that where there is no AMX the same code is
//! proven on the model.

#![allow(unsafe_code)]

mod amx;
mod model;

use std::cell::Cell;
use std::marker::PhantomData;

use crate::simd::{LANES, Level, Simd, level};

#[cfg(target_arch = "x86_64")]
pub use amx::encodings;
pub use amx::{Amx, Facts, NoAmx, PALETTE, admit};
pub use model::{Model, multiply_add};

/// Rows of a register, and the cells of a row.
pub const SIDE: usize = LANES;
/// Cells of a register.
pub const CELLS: usize = SIDE * SIDE;

/// A kind of unit: the right to take one for as long as a task computes.
pub trait Tiles: Copy + Send + Sync + 'static {
    /// The unit of one thread.
    type Unit: TileUnit;

    /// Takes this thread's unit, whose registers then hold zeros. One at a time.
    ///
    /// # Panics
    /// When this thread has one that lives.
    fn take(self) -> Self::Unit;
}

/// That a thread has taken its unit. There is one at a time: taking another would clear the registers of the first.
struct Taken {
    /// It belongs to the thread.
    of_thread: PhantomData<*const ()>,
}

thread_local! {
    static IS_TAKEN: Cell<bool> = const { Cell::new(false) };
}

impl Taken {
    fn new() -> Taken {
        assert!(
            !IS_TAKEN.replace(true),
            "a thread takes a second tile unit while it has one"
        );
        Taken {
            of_thread: PhantomData,
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        IS_TAKEN.set(false);
    }
}

/// The registers of one thread.
pub trait TileUnit {
    /// Sets a register to zero.
    fn zero<const TILE: usize>(&mut self);
    /// Reads sixteen rows of sixteen cells, `stride` cells apart, into a register.
    ///
    /// # Safety
    /// 1. They are readable.
    unsafe fn load<const TILE: usize>(&mut self, from: *const f32, stride: usize);
    /// Writes the sixteen rows of a register `stride` cells apart.
    ///
    /// # Safety
    /// 1. They are writable.
    unsafe fn store<const TILE: usize>(&self, to: *mut f32, stride: usize);
    /// `SUM[i, j] += Σₖ LEFT[i, k] · RIGHT[k, j]` over cells k, as [`multiply_add`] says; `simd` is what a model computes with.
    fn multiply<S: Simd, const SUM: usize, const LEFT: usize, const RIGHT: usize>(
        &mut self,
        simd: S,
    );
}

/// The machine's AMX, where this thread may use it: where there is some ([`Amx::find`]), and the thread is not held to a narrower
/// path ([`crate::simd::limit`]).
pub fn amx() -> Option<Amx> {
    (level() == Level::Avx512)
        .then(Amx::find)
        .and_then(Result::ok)
}
