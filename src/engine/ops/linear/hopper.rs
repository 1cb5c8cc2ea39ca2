//! The forward product and the input's gradient on Hopper's own instructions (`cuda/linear_sm90.cu`): when they take the place of the
//! portable kernels, and their tensor maps.

use crate::launch::kernels::constants::kernel::MULTIPROCESSORS;
use crate::launch::kernels::constants::linear_sm90::{
    HOPPER_COLUMNS, HOPPER_INNER, HOPPER_PIECE, HOPPER_ROWS,
};
use crate::launch::{KernelEntry, Mapped, Swizzle, TensorMap, TensorMapShape};
use crate::tape::{CompileTarget, Tier};
use crate::tensor::DType;
use keel_base::error::Result;

/// What the pitches of tensor maps are multiples of, in elements of bf16.
const PITCH: usize = 8;

/// A product [rows, columns] = left [rows, inner] · Wᵀ for W [columns, inner], or left · W for W [inner, columns].
#[derive(Clone, Copy, Debug)]
pub(super) struct HopperProduct {
    pub rows: usize,
    pub columns: usize,
    pub inner: usize,
}

impl HopperProduct {
    fn tiles(self) -> usize {
        self.rows.div_ceil(HOPPER_ROWS) * self.columns.div_ceil(HOPPER_COLUMNS)
    }

    /// Why the product keeps to the portable kernels on a target of the Hopper tier; `None` where it takes that tier's. It
    /// follows from type and shape alone, as everything that may decide a sum's order.
    pub fn refusal(self, dtype: DType) -> Option<String> {
        let HopperProduct {
            rows,
            columns,
            inner,
        } = self;
        if dtype != DType::Bf16 {
            return Some(format!("values of {dtype}, where wgmma is used for bf16"));
        }
        for (what, size) in [("inner length", inner), ("number of columns", columns)] {
            if size == 0 || !size.is_multiple_of(PITCH) {
                return Some(format!(
                    "{what} {size}, where tensor maps want a multiple of {PITCH}"
                ));
            }
        }
        // Of the portable kernels' tiles of half the size, twice as many run in one turn then, each in half the time.
        if 2 * self.tiles() <= MULTIPROCESSORS {
            return Some(format!(
                "{} of {rows} × {columns}, where {} multiprocessors have a turn of smaller ones",
                match self.tiles() {
                    1 => "one tile".to_owned(),
                    tiles => format!("{tiles} tiles"),
                },
                MULTIPROCESSORS
            ));
        }
        None
    }

    /// Whether a target's program takes the tier's kernel.
    pub fn is_chosen(self, dtype: DType, compile_target: CompileTarget) -> bool {
        compile_target.tier == Tier::Hopper && self.refusal(dtype).is_none()
    }

    /// Blocks, which take tiles in turn.
    pub fn blocks(self) -> u32 {
        self.tiles().min(MULTIPROCESSORS) as u32
    }

    /// The left operand [rows, inner], a tile's rows at once.
    pub fn left(self, kernel: &KernelEntry, of: Mapped) -> Result<TensorMap> {
        matrix(
            kernel,
            of,
            [self.rows, self.inner],
            [HOPPER_INNER, HOPPER_ROWS],
        )
    }

    /// The weight [columns, inner], a tile's columns at once.
    pub fn weight(self, kernel: &KernelEntry, of: Mapped) -> Result<TensorMap> {
        let shape = [self.columns, self.inner];
        matrix(kernel, of, shape, [HOPPER_INNER, HOPPER_COLUMNS])
    }

    /// The weight [inner, columns], of whose columns a tile takes several boxes side by side.
    pub fn weight_as_it_is(self, kernel: &KernelEntry, of: Mapped) -> Result<TensorMap> {
        let shape = [self.inner, self.columns];
        matrix(kernel, of, shape, [HOPPER_PIECE, HOPPER_INNER])
    }

    /// The result, or what is like it, in the pieces that a warpgroup stores.
    pub fn result(self, kernel: &KernelEntry, of: Mapped) -> Result<TensorMap> {
        let shape = [self.rows, self.columns];
        matrix(kernel, of, shape, [HOPPER_PIECE; 2])
    }
}

/// A matrix of bf16 whose rows follow each other, in boxes of `box_dims` columns and rows.
fn matrix(
    kernel: &KernelEntry,
    of: Mapped,
    [rows, columns]: [usize; 2],
    box_dims: [usize; 2],
) -> Result<TensorMap> {
    let shape = TensorMapShape {
        dims: &[columns as u64, rows as u64],
        strides: &[(columns * DType::Bf16.size()) as u64],
        box_dims: &box_dims.map(|extent| extent as u32),
        swizzle: Swizzle::Span128,
    };
    TensorMap::new(kernel, of, 0, DType::Bf16, shape)
}
