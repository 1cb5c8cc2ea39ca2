//! The launches of `cuda/linear_cross_entropy.cu`, and the scratch memory between them.

use crate::launch::kernels::constants::product::LARGE_TILE as TILE;
use crate::launch::kernels::constants::scores::REDUCE_WARPS;
use crate::launch::{Argument, KernelEntry, Launch, blocks, kernels};
use crate::ops::linear::tiles::{Tiling, size, unevenness};
use crate::tensor::{DType, TensorType};
use keel_base::error::Result;

/// N, V and D of a product of hidden states with the output matrix, and the storage type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    n: usize,
    v: usize,
    d: usize,
    dtype: DType,
}

/// A range of the workspace from byte `offset` on.
fn scratch(offset: usize, element: DType) -> Argument {
    Argument::Workspace { offset, element }
}

impl Sizes {
    pub fn of(inputs: &[TensorType]) -> Sizes {
        Sizes {
            n: inputs[0].shape.rows(),
            v: inputs[1].shape.rows(),
            d: inputs[0].shape.columns(),
            dtype: inputs[0].dtype,
        }
    }

    fn tiles(&self) -> usize {
        self.v.div_ceil(TILE)
    }

    /// N, V and D as the kernels take them.
    fn arguments(&self, kernel: &KernelEntry) -> Result<[Argument; 3]> {
        Ok([
            size(kernel, "the number of rows", self.n)?,
            size(kernel, "the vocabulary", self.v)?,
            size(kernel, "the inner length", self.d)?,
        ])
    }

    /// A launch over the tiles of `rows` rows of logits.
    fn over_tiles(
        &self,
        kernel: &'static KernelEntry,
        rows: usize,
        arguments: Vec<Argument>,
    ) -> Result<Launch> {
        let blocks = blocks(kernel, rows.div_ceil(TILE) * self.tiles(), 1)?;
        Ok(Launch::new(kernel, blocks, arguments))
    }

    /// Bytes between forward's kernels: two numbers for each row and tile, and each row's own logit and loss.
    pub fn forward_workspace(&self) -> usize {
        (2 * self.n * self.tiles() + 2 * self.n) * size_of::<f32>()
    }

    /// Log-sums by tile, then by row, then the loss.
    pub fn forward(&self) -> Result<Vec<Launch>> {
        let pairs = 2 * self.n * self.tiles() * size_of::<f32>();
        let part = scratch(0, DType::F32);
        let own = scratch(pairs, DType::F32);
        let losses = scratch(pairs + self.n * size_of::<f32>(), DType::F32);
        let (targets, weights) = (Argument::input(2), Argument::input(3));
        let kernel = kernels::LINEAR_CROSS_ENTROPY_FORWARD.of(self.dtype)?;
        let [n, v, d] = self.arguments(kernel)?;
        let operands = [Argument::input(0), Argument::input(1), targets];
        let mut launches = Vec::new();
        if self.n > 0 {
            let arguments = [&[part, own], &operands[..], &[n, v, d]].concat();
            launches.push(self.over_tiles(kernel, self.n, arguments)?);
            let name = kernels::LINEAR_CROSS_ENTROPY_ROWS_F32;
            let tiles = size(name, "the number of tiles", self.tiles())?;
            let arguments = vec![Argument::output(1), losses, part, own, targets, n, tiles, v];
            let blocks = blocks(name, self.n, REDUCE_WARPS)?;
            launches.push(Launch::new(name, blocks, arguments));
        }
        let arguments = vec![
            Argument::output(0),
            Argument::output(2),
            losses,
            weights,
            targets,
            n,
        ];
        let name = kernels::LINEAR_CROSS_ENTROPY_TOTAL_F32;
        launches.push(Launch::new(name, 1, arguments));
        Ok(launches)
    }

    /// Rows of a block of logits: its gradient is about as large as h and W together, or one row of tiles.
    fn block_rows(&self) -> usize {
        // The gradient of a block of rows goes through memory between two kernels. As large as the operands it costs
        // about as much traffic as they do; whole rows of tiles, so that no tile is computed twice.
        let most = (self.n + self.v) * self.d / self.v.max(1) / TILE;
        // ∂h of a block has few tiles and a long sum: twelve rows of twelve tiles would keep 132 multiprocessors busy for two
        // turns, the second of which has twelve to do. So a block has the number of rows that fills its turns best, but not
        // less than half of what memory allows.
        let (all, across) = (self.n.div_ceil(TILE), self.d.div_ceil(TILE));
        let most = most.clamp(1, all.max(1));
        let lost = |down: usize| {
            let launches = (0..all).step_by(down);
            unevenness(launches.map(|first| down.min(all - first) * across))
        };
        // Of equals the first, which is the largest.
        let down = (most.div_ceil(2)..=most)
            .rev()
            .min_by(|a, b| lost(*a).total_cmp(&lost(*b)))
            .unwrap_or(most);
        (down * TILE).min(self.n)
    }

    /// Bytes of the gradient of one block of rows.
    pub fn gradient_workspace(&self) -> usize {
        self.block_rows() * self.v * self.dtype.size()
    }

    /// For each block of rows, its gradient in the workspace, and what `products` make of it, given the block's first row and
    /// number of rows.
    fn by_row_blocks(
        &self,
        products: &[&dyn Fn(usize, usize) -> Result<Launch>],
    ) -> Result<Vec<Launch>> {
        let mut launches = Vec::new();
        let block_rows = self.block_rows();
        for first in (0..self.n).step_by(block_rows.max(1)) {
            let rows = block_rows.min(self.n - first);
            let kernel = kernels::LINEAR_CROSS_ENTROPY_BACKWARD.of(self.dtype)?;
            let [_, v, d] = self.arguments(kernel)?;
            let mut arguments = vec![scratch(0, self.dtype)];
            arguments.extend((0..7).map(Argument::input));
            arguments.extend([
                size(kernel, "the first row", first)?,
                size(kernel, "the number of rows", rows)?,
                v,
                d,
            ]);
            launches.push(self.over_tiles(kernel, rows, arguments)?);
            for product in products {
                launches.push(product(first, rows)?);
            }
        }
        Ok(launches)
    }

    /// ∂h, block of rows by block of rows.
    pub fn hidden_gradient(&self) -> Result<Vec<Launch>> {
        self.by_row_blocks(&[&|first, rows| self.hidden_product(0, first, rows)])
    }

    /// ∂W in f32, growing with each block of rows. The first is added to input 7 where `accumulates`.
    pub fn weight_gradient(&self, accumulates: bool) -> Result<Vec<Launch>> {
        self.by_row_blocks(&[&|first, rows| self.weight_product(accumulates, first, rows)])
    }

    /// Both, ∂W first among the outputs, from one gradient of each block of rows.
    pub fn both_gradients(&self, accumulates: bool) -> Result<Vec<Launch>> {
        self.by_row_blocks(&[
            &|first, rows| self.weight_product(accumulates, first, rows),
            &|first, rows| self.hidden_product(1, first, rows),
        ])
    }

    /// Output `index`, ∂h, of a block of rows: its gradient · W.
    fn hidden_product(&self, index: usize, first: usize, rows: usize) -> Result<Launch> {
        let tiling = Tiling::whole([rows, self.d, self.v], self.dtype);
        let kernel = tiling.kernel(kernels::LINEAR_BACKWARD_INPUT_SIZES, self.dtype)?;
        let [_, v, d] = self.arguments(kernel)?;
        let offset = first * self.d * self.dtype.size();
        let arguments = vec![
            Argument::Output { index, offset },
            scratch(0, self.dtype),
            Argument::input(1),
            Argument::Null,
            size(kernel, "the number of rows", rows)?,
            v,
            d,
            crate::ops::Activation::argument(None),
        ];
        let grid = tiling.grid(kernel)?;
        Ok(Launch::on_grid(kernel, grid, arguments))
    }

    /// Output 0, ∂W, with a block of rows more: its gradientᵀ · h.
    fn weight_product(&self, accumulates: bool, first: usize, rows: usize) -> Result<Launch> {
        let tiling = Tiling::whole([self.v, self.d, rows], self.dtype);
        let kernel = tiling.kernel(kernels::LINEAR_BACKWARD_WEIGHT_SIZES, self.dtype)?;
        let [_, v, d] = self.arguments(kernel)?;
        // One block of rows after the other on one stream, so each adds to what the one before has left: in order,
        // without atomics.
        let addend = match (first, accumulates) {
            (0, true) => Argument::input(7),
            (0, false) => Argument::Null,
            _ => Argument::output(0),
        };
        let arguments = vec![
            Argument::output(0),
            Argument::Null,
            addend,
            scratch(0, self.dtype),
            Argument::Input {
                index: 0,
                offset: first * self.d * self.dtype.size(),
            },
            size(kernel, "the number of rows", rows)?,
            v,
            d,
            size(kernel, "the number of steps", tiling.steps)?,
        ];
        let grid = tiling.grid(kernel)?;
        Ok(Launch::on_grid(kernel, grid, arguments))
    }

    /// Bytes between the kernels of the largest word: a logit and a word for each row and tile.
    pub fn argmax_workspace(&self) -> usize {
        2 * self.n * self.tiles() * size_of::<f32>()
    }

    /// The largest word by tile, then by row.
    pub fn argmax(&self) -> Result<Vec<Launch>> {
        if self.n == 0 {
            return Ok(Vec::new());
        }
        let logits = scratch(0, DType::F32);
        let words = scratch(self.argmax_workspace() / 2, DType::I32);
        let kernel = kernels::LINEAR_ARGMAX_TILES.of(self.dtype)?;
        let [n, v, d] = self.arguments(kernel)?;
        let operands = [logits, words, Argument::input(0), Argument::input(1)];
        let tiles = self.over_tiles(kernel, self.n, [&operands[..], &[n, v, d]].concat())?;
        let name = kernels::LINEAR_ARGMAX_ROWS_F32;
        let count = size(name, "the number of tiles", self.tiles())?;
        let arguments = vec![Argument::output(0), logits, words, n, count];
        let rows = Launch::new(name, blocks(name, self.n, REDUCE_WARPS)?, arguments);
        Ok(vec![tiles, rows])
    }
}
