//! How the products of `cuda/product.cuh` are cut over a chip: the size of a block's tile, and how often the sum is split.

use crate::launch::kernels::constants::kernel::MULTIPROCESSORS;
use crate::launch::kernels::constants::product::{LARGE_TILE, SMALL_TILE, STEP_BYTES};
use crate::launch::{Argument, KernelEntry, Sizes, blocks};
use crate::tensor::DType;
use keel_base::error::{Error, Result};

/// Blocks that a multiprocessor works on at the least where a sum can be split so far: with one alone nothing is computed
/// while it waits.
const BLOCKS_EACH: usize = 2;

/// A chip, as far as it decides how often a sum is split.
struct Chip {
    multiprocessors: usize,
    /// Cycles that a multiprocessor takes for a step of a large tile in bf16, 2·128²·32 operations.
    step: f64,
    /// Bytes that its memory moves in a cycle.
    bytes: f64,
}

/// The chips that the cut of a product is weighed for, the smallest first. They are constants and not the chip at hand: where a sum is split decides its bits.
/// Speeds from NVIDIA's data sheets; of Hopper's tensor cores `mma.sync` reaches 0.62 (Luo et al. 2024, table 7).
const CHIPS: [Chip; 3] = [
    // A100: 2048 operations a cycle, 2.04 TB/s at 1.41 GHz.
    Chip {
        multiprocessors: 108,
        step: 512.0,
        bytes: 1446.0,
    },
    // H100: 4096, 3.35 TB/s at 1.83 GHz.
    Chip {
        multiprocessors: 132,
        step: 413.0,
        bytes: 1830.0,
    },
    // RTX 4090: 512, 1.01 TB/s at 2.52 GHz.
    Chip {
        multiprocessors: 128,
        step: 2048.0,
        bytes: 400.0,
    },
];

/// How much longer than the best number of splits a smaller one may take: parts of a sum need memory of their own.
const SLOWER: f64 = 1.05;

/// The fewest steps of a split: below that, writing and adding the parts costs more than it saves.
const FEWEST_STEPS: usize = 4;

/// The most splits that are looked at beyond those that fill the multiprocessors.
const MOST_SPLITS: usize = 2 * MULTIPROCESSORS;

/// Places by which the sizes of a product stay below 2³¹: kernels count up to a tile past the end.
const MARGIN: usize = 1024;

/// One product C [rows, columns] = Σ over `inner`, cut into launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiling {
    is_small: bool,
    /// Tiles of C down and across.
    pub down: usize,
    /// Tiles of C across.
    pub across: usize,
    /// Blocks that share a tile, each with its part of the sum.
    pub splits: usize,
    /// Steps along the sum that each of them takes; the last may have fewer.
    pub steps: usize,
}

impl Tiling {
    /// A product whose sum every block takes whole.
    pub fn whole([rows, columns, inner]: [usize; 3], dtype: DType) -> Tiling {
        let large = Tiling::new([rows, columns, inner], dtype, LARGE_TILE, 1);
        // Large tiles read each operand less often, and a product takes half as long again with small ones; but only if there
        // is one for every multiprocessor of the smallest chip. Otherwise half the chip would stand by.
        if large.down * large.across >= CHIPS[0].multiprocessors {
            large
        } else {
            Tiling::new([rows, columns, inner], dtype, SMALL_TILE, 1)
        }
    }

    /// A product whose sum may be split, where there are fewer tiles than places for blocks.
    pub fn split([rows, columns, inner]: [usize; 3], dtype: DType) -> Tiling {
        let of = |tile| {
            let product = [rows, columns, inner];
            let whole = Tiling::new(product, dtype, tile, 1);
            let tiles = (whole.down * whole.across).max(1);
            let most = (whole.steps / FEWEST_STEPS).clamp(1, MOST_SPLITS);
            let fewest = (BLOCKS_EACH * MULTIPROCESSORS / tiles).clamp(1, most);
            let time =
                |splits| Tiling::new(product, dtype, tile, splits).time(product, dtype, tile);
            let best = (fewest..=most).map(time).fold(f64::INFINITY, f64::min);
            let splits = (fewest..=most).find(|splits| time(*splits) <= SLOWER * best);
            Tiling::new(product, dtype, tile, splits.unwrap_or(fewest))
        };
        let large = of(LARGE_TILE);
        if large.down * large.across * large.splits >= MULTIPROCESSORS {
            large
        } else {
            of(SMALL_TILE)
        }
    }

    /// By tiles of one size of `ProductShapes` in `cuda/product.cuh`.
    fn new([rows, columns, inner]: [usize; 3], dtype: DType, tile: usize, splits: usize) -> Tiling {
        let all_steps = inner.div_ceil(STEP_BYTES / dtype.size());
        let steps = all_steps.div_ceil(splits).max(1);
        Tiling {
            is_small: tile == SMALL_TILE,
            down: rows.div_ceil(tile),
            across: columns.div_ceil(tile),
            // Whole steps each: rounding up may leave the last splits with none, and those are not launched.
            splits: all_steps.div_ceil(steps).max(1),
            steps,
        }
    }

    /// The time on the chip that it suits least, in units of what that chip would take if the work were spread evenly and sums
    /// were whole: the blocks that the fullest multiprocessor gets, one after the other, and the parts of the sums on their way
    /// through memory.
    fn time(&self, [rows, columns, inner]: [usize; 3], dtype: DType, tile: usize) -> f64 {
        let tiles = self.down * self.across;
        let all_steps = tiles * inner.div_ceil(STEP_BYTES / dtype.size()).max(1);
        let area = (tile * tile) as f64 / (LARGE_TILE * LARGE_TILE) as f64;
        // The six products of an f32 step have half the depth.
        let products = if dtype == DType::Bf16 { 1.0 } else { 3.0 };
        let parts = if self.splits > 1 { 2 * self.splits } else { 0 };
        let bytes = (parts * rows * columns * DType::F32.size()) as f64;
        let of = |chip: &Chip| {
            let step = chip.step * area * products;
            let steps = (tiles * self.splits).div_ceil(chip.multiprocessors) * self.steps;
            let even = all_steps as f64 / chip.multiprocessors as f64 * step;
            (steps as f64 * step + bytes / chip.bytes) / even
        };
        CHIPS.iter().map(of).fold(0.0, f64::max)
    }

    /// The kernel of this size for operands of `dtype`.
    ///
    /// # Errors
    /// [`Error::Kernel`] when there is none for that type.
    pub fn kernel(&self, sizes: Sizes, dtype: DType) -> Result<&'static KernelEntry> {
        let family = if self.is_small {
            sizes.small
        } else {
            sizes.large
        };
        family.of(dtype)
    }

    /// Blocks in x, y, z.
    ///
    /// # Errors
    /// [`Error::Kernel`] when there are more tiles than a grid has blocks.
    pub fn grid(&self, kernel: &KernelEntry) -> Result<[u32; 3]> {
        Ok([
            blocks(kernel, self.down * self.across, 1)?,
            1,
            self.splits as u32,
        ])
    }
}

/// How much longer than evenly spread work `launches` of equal blocks take, one after the other, on the chip that they suit
/// least.
pub(crate) fn unevenness(launches: impl Iterator<Item = usize> + Clone) -> f64 {
    let blocks: usize = launches.clone().sum();
    let of = |chip: &Chip| {
        let turns = |blocks: usize| blocks.div_ceil(chip.multiprocessors);
        let turns: usize = launches.clone().map(turns).sum();
        (turns * chip.multiprocessors) as f64 / blocks.max(1) as f64
    };
    CHIPS.iter().map(of).fold(0.0, f64::max)
}

/// A size of a product as an argument.
///
/// # Errors
/// [`Error::Kernel`] when the kernel's 32-bit numbers cannot reach a tile past it.
pub(crate) fn size(kernel: &KernelEntry, what: &str, size: usize) -> Result<Argument> {
    const LARGEST: usize = i32::MAX as usize - MARGIN;
    if size > LARGEST {
        return Err(Error::kernel(format!(
            "kernel {kernel}: {what} is at most {LARGEST}, but {size} is wanted; use a smaller batch"
        )));
    }
    Ok(Argument::I32(size as i32))
}
