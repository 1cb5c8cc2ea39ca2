//! How a tile of products of stored bf16 numbers is computed: widened, in pairs, or on a unit for whole tiles.

use super::pairs;
use super::tile::Tile;
use super::unit_tile::{self, TileRegisters};
use crate::bf16_products::Bf16Products;
use crate::simd::{LANES, Simd, Task, dispatch, dispatch_pairs};
use crate::tile_unit::{Model, Tiles, amx};

/// A way of computing tiles.
pub(super) trait Way: Copy + Send + Sync + 'static {
    /// Whether factors are cells of two terms ([`pairs`]), or f32 numbers.
    const HAS_CELLS: bool;
    /// Whether a left factor is packed in rows along the reduction, or across it.
    const PACKS_LEFT_IN_ROWS: bool;
    /// What a task holds while it computes tiles.
    type Unit;

    /// Takes it.
    fn take(self) -> Self::Unit;

    /// Rows of the largest tile.
    fn rows<S: Simd>() -> usize;

    /// Rows of the largest tile whose left factor has rows of terms that lie `stride` apart.
    fn rows_at<S: Simd>(_stride: usize) -> usize {
        Self::rows::<S>()
    }

    /// Columns of the largest tile: whole vectors, and at most [`super::WIDEST`].
    fn columns<S: Simd>() -> usize {
        S::TILE_VECTORS * LANES
    }

    /// Rows of the tiles that `rows` are cut into: equal ones rather than full ones and a small rest.
    fn equal_rows<S: Simd>(rows: usize) -> usize {
        let tiles = rows.div_ceil(Self::rows::<S>()).max(1);
        rows.div_ceil(tiles).max(1)
    }

    /// Computes a tile.
    ///
    /// # Safety
    /// 1. As for [`Tile::compute`], with rows and columns of this way's tile; with cells, depth and distances count them.
    unsafe fn compute<S: Simd>(unit: &mut Self::Unit, simd: S, tile: Tile<'_>);
}

/// Numbers that were widened to f32.
#[derive(Clone, Copy)]
pub(super) struct Widened;

impl Way for Widened {
    const HAS_CELLS: bool = false;
    const PACKS_LEFT_IN_ROWS: bool = false;
    type Unit = ();

    fn take(self) {}

    fn rows<S: Simd>() -> usize {
        S::TILE_ROWS
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>((): &mut (), simd: S, tile: Tile<'_>) {
        // SAFETY: the caller's contract.
        unsafe { tile.compute(simd) }
    }
}

/// Cells, by the instruction for pairs or its model.
#[derive(Clone, Copy)]
pub(super) struct Pairs;

impl Way for Pairs {
    const HAS_CELLS: bool = true;
    const PACKS_LEFT_IN_ROWS: bool = false;
    type Unit = ();

    fn take(self) {}

    fn rows<S: Simd>() -> usize {
        S::TILE_ROWS
    }

    fn rows_at<S: Simd>(stride: usize) -> usize {
        super::linear::tile_rows::<S>(stride / 2)
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>((): &mut (), simd: S, tile: Tile<'_>) {
        // SAFETY: the caller's contract.
        unsafe { tile.compute_pairs(simd) }
    }
}

/// Cells, by a unit for tiles.
#[derive(Clone, Copy)]
pub(super) struct OnUnit<T>(T);

impl<T: Tiles> Way for OnUnit<T> {
    const HAS_CELLS: bool = true;
    const PACKS_LEFT_IN_ROWS: bool = true;
    type Unit = TileRegisters<T::Unit>;

    #[inline(always)]
    fn take(self) -> TileRegisters<T::Unit> {
        TileRegisters::new(self.0.take())
    }

    fn rows<S: Simd>() -> usize {
        unit_tile::ROWS
    }

    fn columns<S: Simd>() -> usize {
        unit_tile::COLUMNS
    }

    fn equal_rows<S: Simd>(_rows: usize) -> usize {
        // A register takes sixteen rows, whether they are needed or not.
        unit_tile::ROWS
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(unit: &mut Self::Unit, simd: S, tile: Tile<'_>) {
        // SAFETY: the caller's contract.
        unsafe { unit.compute(simd, tile) }
    }
}

/// Work that can run on any path, and compute its tiles in any way: a [`Task`] of two parameters.
pub(super) trait WayTask {
    /// What the work returns.
    type Output;
    /// Does the work on `simd`.
    fn run<S: Simd, W: Way>(self, simd: S, way: W) -> Self::Output;
}

/// A task with its way.
struct On<T, W>(T, W);

impl<T: WayTask, W: Way> Task for On<T, W> {
    type Output = T::Output;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> T::Output {
        self.0.run(simd, self.1)
    }
}

/// Runs `task` with numbers widened.
pub(super) fn dispatch_widened<T: WayTask>(task: T) -> T::Output {
    dispatch(On(task, Widened))
}

/// Runs `task` on cells: on a unit where `products` says so, and otherwise in pairs.
pub(super) fn dispatch_cells<T: WayTask>(products: Bf16Products, task: T) -> T::Output {
    match products {
        Bf16Products::Tiles => match amx() {
            Some(amx) => dispatch_pairs(On(task, OnUnit(amx))),
            None => dispatch(On(task, OnUnit(Model))),
        },
        Bf16Products::Pairs | Bf16Products::Widened => dispatch_pairs(On(task, Pairs)),
    }
}

/// Cells that hold the terms of a way's factors, or the terms themselves where it has none.
pub(super) fn length<W: Way>(terms: usize) -> usize {
    if W::HAS_CELLS {
        pairs::cells(terms)
    } else {
        terms
    }
}
