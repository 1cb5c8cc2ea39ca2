//! The launches of a loss over all ranks' pairs: the kernels of `cuda/contrastive_loss.cu` on the rows of one rank, once for
//! the images against all texts and once for the texts against all images. The workspace holds one block of rows.

use super::Contrastive;
use super::launches::{BLOCK_SCORES, FEWEST_ROWS, Layout, finish, total};
use crate::launch::kernels::constants::product::LARGE_TILE as TILE;
use crate::launch::kernels::constants::scores::REDUCE_WARPS;
use crate::launch::{Argument, KernelEntry, Launch, blocks, kernels};
use crate::ops::linear::tiles::{Tiling, size};
use crate::tensor::{DType, TensorType};
use keel_base::error::Result;
use keel_ranks::World;

/// A run of a rank's own rows.
#[derive(Clone, Copy)]
struct RowBlock {
    first: usize,
    rows: usize,
}

/// The types of one problem. See the module's documentation.
#[derive(Clone, Copy)]
pub(super) struct RankProblem {
    world: World,
    /// Rows of each rank.
    share: usize,
    e: usize,
    dtype: DType,
    kind: Contrastive,
}

/// Where the forward pass keeps log-sums of a block's rows and columns by tile and the diagonal of S (InfoNCE), or sums of
/// tiles.
struct Forward {
    row_part: Argument,
    column_part: Argument,
    own: usize,
    bytes: usize,
}

/// Where the backward pass keeps a row block's gradient, sums of thread blocks for each side, and parts of products.
struct Gradients {
    block: Argument,
    scale_part: [Argument; 2],
    bias_part: [Argument; 2],
    part: Argument,
    bytes: usize,
}

impl RankProblem {
    pub fn of(own: &TensorType, kind: Contrastive, world: World) -> RankProblem {
        RankProblem {
            world,
            share: own.shape.rows(),
            e: own.shape.columns(),
            dtype: own.dtype,
            kind,
        }
    }

    fn is_sigmoid(&self) -> bool {
        self.kind == Contrastive::Sigmoid
    }

    fn n(&self) -> usize {
        self.share * self.world.ranks
    }

    /// Rows of each block but the last.
    fn height(&self) -> usize {
        let room = (BLOCK_SCORES / self.n()).max(FEWEST_ROWS) / TILE * TILE;
        room.min(self.share.next_multiple_of(TILE))
    }

    fn row_blocks(&self) -> impl Iterator<Item = RowBlock> {
        let (share, height) = (self.share, self.height());
        (0..share).step_by(height).map(move |first| RowBlock {
            first,
            rows: height.min(share - first),
        })
    }

    fn tiles(&self, rows: usize) -> usize {
        rows.div_ceil(TILE) * self.n().div_ceil(TILE)
    }

    fn tiling(&self, rows: usize) -> Tiling {
        Tiling::split([rows, self.e, self.n()], self.dtype)
    }

    fn forward(&self) -> Forward {
        let (n, height) = (self.n(), self.height());
        let mut layout = Layout::default();
        let (rows, columns, own) = if self.is_sigmoid() {
            (self.tiles(height), 0, 0)
        } else {
            let tiles = |count: usize| count.div_ceil(TILE);
            (2 * height * tiles(n), 2 * n * tiles(height), n)
        };
        let row_part = layout.take(rows, DType::F32);
        let column_part = layout.take(columns, DType::F32);
        let Argument::Workspace { offset, .. } = layout.take(own, DType::F32) else {
            unreachable!("a layout hands out workspace")
        };
        Forward {
            row_part,
            column_part,
            own: offset,
            bytes: layout.bytes(),
        }
    }

    fn gradients(&self) -> Gradients {
        let (height, tiles) = (self.height(), self.tiles(self.height()));
        let parts = self.row_blocks();
        let parts = parts.map(|block| self.tiling(block.rows).splits * block.rows);
        let part = parts.max().unwrap_or(0) * self.e;
        let mut layout = Layout::default();
        let block = layout.take(height * self.n(), self.dtype);
        let mut floats = |elements| layout.take(elements, DType::F32);
        Gradients {
            block,
            scale_part: [floats(tiles), floats(tiles)],
            bias_part: [floats(tiles), floats(tiles)],
            part: floats(part),
            bytes: layout.bytes(),
        }
    }

    /// Bytes of workspace of the forward pass.
    pub fn forward_bytes(&self) -> usize {
        self.forward().bytes
    }

    /// Bytes of workspace of the backward pass.
    pub fn backward_bytes(&self) -> usize {
        self.gradients().bytes
    }

    /// n, the rows of a rank, e, the block's first row among all and its rows.
    fn sizes(&self, kernel: &KernelEntry, block: RowBlock) -> Result<[Argument; 5]> {
        let first = self.world.rank * self.share + block.first;
        Ok([
            size(kernel, "the number of pairs", self.n())?,
            size(kernel, "the number of pairs of a rank", self.share)?,
            size(kernel, "the width", self.e)?,
            size(kernel, "the first row", first)?,
            size(kernel, "the number of rows", block.rows)?,
        ])
    }

    /// How many of a rank's rows are pairs, of this one's or, behind the last rank's, of all; `counts` is the input.
    fn count(counts: usize, of: usize) -> Argument {
        Argument::Input {
            index: counts,
            offset: of * size_of::<i32>(),
        }
    }

    /// The launches of the loss: inputs own features of both sides, all features of both, log_scale, the bias of the sigmoid
    /// form, counts and identities.
    pub fn forward_launches(&self) -> Result<Vec<Launch>> {
        let work = self.forward();
        let input = Argument::input;
        let counts = if self.is_sigmoid() { 6 } else { 5 };
        let mask = [counts, counts + 1, counts + 2].map(input);
        let all_pairs = RankProblem::count(counts, self.world.ranks);
        let mut launches = Vec::new();
        if self.is_sigmoid() {
            for block in self.row_blocks() {
                let kernel = kernels::CONTRASTIVE_LOSS_SIGMOID_FORWARD.of(self.dtype)?;
                let mut arguments = vec![work.row_part];
                arguments.extend([2, 3, 4, 5].map(input));
                arguments.extend(mask);
                arguments.extend(self.sizes(kernel, block)?);
                arguments.push(Argument::I32((block.first == 0).into()));
                let grid = blocks(kernel, self.tiles(block.rows), 1)?;
                launches.push(Launch::new(kernel, grid, arguments));
            }
            let tiles = self.tiles(self.height());
            let parts = [work.row_part, all_pairs];
            launches.push(total(Argument::output(0), parts, tiles, 1.0)?);
            return Ok(launches);
        }
        let own = |row: usize| Argument::Workspace {
            offset: work.own + row * size_of::<f32>(),
            element: DType::F32,
        };
        for (side, features) in [(0, [2, 3]), (1, [3, 2])] {
            for block in self.row_blocks() {
                let kernel = kernels::CONTRASTIVE_LOSS_INFO_NCE_FORWARD.of(self.dtype)?;
                let mut arguments = vec![work.row_part, work.column_part, own(0)];
                arguments.extend(features.map(input));
                arguments.push(input(4));
                arguments.extend(mask);
                arguments.extend(self.sizes(kernel, block)?);
                let grid = blocks(kernel, self.tiles(block.rows), 1)?;
                launches.push(Launch::new(kernel, grid, arguments));
                launches.push(self.row_sums(&work, side, counts, block)?);
            }
        }
        let kernel = kernels::CONTRASTIVE_LOSS_INFO_NCE_TOTAL_F32;
        let mut arguments = [0, 1, 2].map(Argument::output).to_vec();
        arguments.extend([
            own(self.world.rank * self.share),
            RankProblem::count(counts, self.world.rank),
            all_pairs,
            size(kernel, "the number of pairs of a rank", self.share)?,
        ]);
        launches.push(Launch::new(kernel, 1, arguments));
        Ok(launches)
    }

    /// The log-sums of a block's rows.
    fn row_sums(
        &self,
        work: &Forward,
        side: usize,
        counts: usize,
        block: RowBlock,
    ) -> Result<Launch> {
        let kernel = kernels::CONTRASTIVE_LOSS_ROW_SUMS_F32;
        let arguments = vec![
            Argument::Output {
                index: 1 + side,
                offset: block.first * size_of::<f32>(),
            },
            work.row_part,
            RankProblem::count(counts, self.world.rank),
            size(kernel, "the number of pairs of a rank", self.share)?,
            size(kernel, "the first row", block.first)?,
            size(kernel, "the number of rows", block.rows)?,
            size(kernel, "the number of tiles", self.n().div_ceil(TILE))?,
        ];
        let grid = blocks(kernel, block.rows, REDUCE_WARPS)?;
        Ok(Launch::new(kernel, grid, arguments))
    }

    /// The launches of the gradients: inputs as [`RankProblem::forward_launches`], with r and c (InfoNCE) behind the features
    /// and scalars, then dL, then counts and identities.
    pub fn backward_launches(&self) -> Result<Vec<Launch>> {
        let work = self.gradients();
        let mut launches = Vec::new();
        for side in [0, 1] {
            for block in self.row_blocks() {
                launches.push(self.block_gradient(&work, side, block)?);
                if self.e > 0 {
                    launches.extend(self.feature_gradient(&work, side, block)?);
                }
            }
        }
        let tiles = self.tiles(self.height());
        let mut sum = |out, part| -> Result<()> {
            launches.push(total(out, [part, Argument::Null], tiles, 1.0)?);
            Ok(())
        };
        sum(Argument::output(2), work.scale_part[0])?;
        if self.is_sigmoid() {
            sum(Argument::output(3), work.bias_part[0])?;
        }
        Ok(launches)
    }

    /// e^a·G of a block of one side's rows.
    fn block_gradient(&self, work: &Gradients, side: usize, block: RowBlock) -> Result<Launch> {
        let (family, dloss) = if self.is_sigmoid() {
            (kernels::CONTRASTIVE_LOSS_SIGMOID_BACKWARD, 6)
        } else {
            (kernels::CONTRASTIVE_LOSS_INFO_NCE_BACKWARD, 7)
        };
        let kernel = family.of(self.dtype)?;
        let input = Argument::input;
        let mut arguments = vec![work.block, work.scale_part[side]];
        if self.is_sigmoid() {
            arguments.push(work.bias_part[side]);
        }
        // Of the texts, the rows of Gᵀ are the columns of G.
        arguments.extend([2 + side, 3 - side, 4].map(input));
        if self.is_sigmoid() {
            arguments.push(input(5));
        } else {
            arguments.extend([5 + side, 6 - side].map(input));
        }
        arguments.extend([dloss, dloss + 1, dloss + 2, dloss + 3].map(input));
        arguments.extend(self.sizes(kernel, block)?);
        arguments.push(Argument::I32((block.first == 0).into()));
        let grid = blocks(kernel, self.tiles(block.rows), 1)?;
        Ok(Launch::new(kernel, grid, arguments))
    }

    /// The gradients of a block of one side's features: e^a·G times the other side's.
    fn feature_gradient(
        &self,
        work: &Gradients,
        side: usize,
        block: RowBlock,
    ) -> Result<[Launch; 2]> {
        let tiling = self.tiling(block.rows);
        let kernel = tiling.kernel(kernels::CONTRASTIVE_LOSS_PRODUCT_SIZES, self.dtype)?;
        let product = Launch::on_grid(
            kernel,
            tiling.grid(kernel)?,
            vec![
                work.part,
                work.block,
                Argument::input(3 - side),
                size(kernel, "the number of rows", block.rows)?,
                size(kernel, "the number of pairs", self.n())?,
                size(kernel, "the width", self.e)?,
                size(kernel, "the number of steps", tiling.steps)?,
            ],
        );
        let out = Argument::Output {
            index: side,
            offset: block.first * self.e * self.dtype.size(),
        };
        let elements = block.rows * self.e;
        let sum = finish(self.dtype, [out, work.part], elements, tiling.splits)?;
        Ok([product, sum])
    }
}
