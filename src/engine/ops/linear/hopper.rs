//! The products of linear layers on Hopper's own instructions (`cuda/linear_sm90.cu`): when they take the place of the portable kernels,
//! how a weight's gradient is split, and their tensor maps.

use crate::launch::kernels::constants::kernel::MULTIPROCESSORS;
use crate::launch::kernels::constants::linear_sm90::{
    HOPPER_COLUMNS, HOPPER_INNER, HOPPER_PIECE, HOPPER_ROWS,
};
use crate::launch::{KernelEntry, Mapped, Swizzle, TensorMap, TensorMapShape};
use crate::tape::{CompileTarget, Tier};
use crate::tensor::{DType, TensorType};
use keel_base::error::Result;

/// What the pitches of tensor maps are multiples of, in elements of bf16.
const PITCH: usize = 8;

/// A product with a kernel of the tier.
pub(super) trait OnHopper: Copy {
    /// Why the product keeps to the portable kernels on a target of the Hopper tier; `None` where it takes that tier's. It
    /// follows from type and shape alone, as everything that may decide a sum's order.
    fn refusal(self, dtype: DType) -> Option<String>;

    /// As [`Op::keeps_portable`](crate::tape::Op::keeps_portable).
    fn keeps_portable(self, dtype: DType, tier: Tier) -> Option<String> {
        match tier {
            Tier::Portable => None,
            Tier::Hopper => self.refusal(dtype),
        }
    }

    /// Whether a target's program takes the tier's kernel.
    fn is_chosen(self, dtype: DType, compile_target: CompileTarget) -> bool {
        compile_target.tier == Tier::Hopper && self.refusal(dtype).is_none()
    }
}

/// A product [rows, columns] = left [rows, inner] · Wᵀ for W [columns, inner], or left · W for W [inner, columns].
#[derive(Clone, Copy, Debug)]
pub(super) struct HopperProduct {
    pub rows: usize,
    pub columns: usize,
    pub inner: usize,
}

impl HopperProduct {
    /// The product by the types of its left operand and its result.
    pub fn of(left: TensorType, result: TensorType) -> HopperProduct {
        HopperProduct {
            rows: result.shape.rows(),
            columns: result.shape.columns(),
            inner: left.shape.columns(),
        }
    }

    fn tiles(self) -> usize {
        self.rows.div_ceil(HOPPER_ROWS) * self.columns.div_ceil(HOPPER_COLUMNS)
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

impl OnHopper for HopperProduct {
    fn refusal(self, dtype: DType) -> Option<String> {
        let HopperProduct {
            rows,
            columns,
            inner,
        } = self;
        let pitches = [("inner length", inner), ("number of columns", columns)];
        if let Some(refusal) = refusal_of(dtype, pitches) {
            return Some(refusal);
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
}

/// Why values or pitches keep to the portable kernels.
fn refusal_of(dtype: DType, pitches: [(&str, usize); 2]) -> Option<String> {
    if dtype != DType::Bf16 {
        return Some(format!("values of {dtype}, where wgmma is used for bf16"));
    }
    let mut pitches = pitches.into_iter();
    let wrong = pitches.find(|(_, size)| *size == 0 || !size.is_multiple_of(PITCH));
    wrong.map(|(what, size)| format!("{what} {size}, where tensor maps want a multiple of {PITCH}"))
}

/// Clocks in which the tensor cores of a multiprocessor multiply a step of a tile: 2 · 128 · 256 · 64 operations, 4096 a clock.
const STEP_CLOCKS: f64 = 1024.0;

/// Bytes that an H100's memory moves in a clock: 3.35 TB/s at 1.83 GHz.
const CLOCK_BYTES: f64 = 1830.0;

/// How much longer than the best number of splits a smaller one may take: parts need memory of their own.
const SLOWER: f64 = 1.05;

/// The fewest steps of a split: below that, writing and adding the parts costs more than it saves.
const FEWEST_STEPS: usize = 4;

/// A weight's gradient [columns, inner] as a sum over `rows`.
#[derive(Clone, Copy, Debug)]
pub(super) struct HopperWeight {
    pub rows: usize,
    pub columns: usize,
    pub inner: usize,
}

impl HopperWeight {
    fn tiles(self) -> usize {
        self.columns.div_ceil(HOPPER_ROWS) * self.inner.div_ceil(HOPPER_COLUMNS)
    }

    fn all_steps(self) -> usize {
        self.rows.div_ceil(HOPPER_INNER)
    }

    /// Steps of 64 rows that a split takes; the last may have fewer. From the shape alone and for 132 multiprocessors, as a split
    /// decides a sum's bits.
    pub fn steps(self) -> usize {
        let all = self.all_steps();
        let most = (all / FEWEST_STEPS).clamp(1, 2 * MULTIPROCESSORS);
        let time = |splits: usize| {
            let steps = all.div_ceil(splits);
            let splits = all.div_ceil(steps.max(1));
            let turns = (self.tiles() * splits).div_ceil(MULTIPROCESSORS);
            let parts = if splits > 1 { 2 * splits } else { 0 };
            let bytes = (parts * self.columns * self.inner * DType::F32.size()) as f64;
            (turns * steps) as f64 * STEP_CLOCKS + bytes / CLOCK_BYTES
        };
        let best = (1..=most).map(time).fold(f64::INFINITY, f64::min);
        let splits = (1..=most).find(|splits| time(*splits) <= SLOWER * best);
        all.div_ceil(splits.unwrap_or(1)).max(1)
    }

    /// How many parts that makes of the sum.
    pub fn splits(self) -> usize {
        self.all_steps().div_ceil(self.steps())
    }

    /// Blocks, which take a tile and a split in turn.
    pub fn blocks(self) -> u32 {
        (self.tiles() * self.splits()).min(MULTIPROCESSORS) as u32
    }

    /// Elements of the parts of dW in the workspace; none when there is only one. Behind them lie those of db.
    pub fn part_elements(self) -> usize {
        match self.splits() {
            1 => 0,
            splits => splits * self.columns * self.inner,
        }
    }

    /// Bytes of workspace: the parts of dW, then those of db where it is wanted.
    pub fn workspace(self, has_bias: bool) -> usize {
        let sums = if has_bias {
            self.splits() * self.columns
        } else {
            0
        };
        (self.part_elements() + sums) * DType::F32.size()
    }

    /// dy [rows, columns] or x [rows, inner], in boxes that lie side by side.
    pub fn operand(self, kernel: &KernelEntry, of: Mapped, columns: usize) -> Result<TensorMap> {
        matrix(
            kernel,
            of,
            [self.rows, columns],
            [HOPPER_PIECE, HOPPER_INNER],
        )
    }
}

impl OnHopper for HopperWeight {
    fn refusal(self, dtype: DType) -> Option<String> {
        let HopperWeight {
            rows,
            columns,
            inner,
        } = self;
        let pitches = [("inner length", inner), ("number of columns", columns)];
        if let Some(refusal) = refusal_of(dtype, pitches) {
            return Some(refusal);
        }
        let units = self.tiles() * self.splits();
        (2 * units <= MULTIPROCESSORS).then(|| {
            format!(
                "{units} parts of tiles of {columns} × {inner} over {rows} rows, where {MULTIPROCESSORS} multiprocessors have a \
                 turn of smaller ones"
            )
        })
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
