//! The launches of `cuda/contrastive_loss.cu`: blocks of rows of S, one after the other.
//!
//! Forward makes S once, backward once more; ∂u and ∂v are a product each: 8·N²·E flops in all. The workspace holds one
//! block, so memory grows with N and not with N².

use super::Contrastive;
use super::mask::MaskInputs;
use crate::launch::kernels::constants::linear::ELEMENTWISE_THREADS;
use crate::launch::kernels::constants::product::LARGE_TILE as TILE;
use crate::launch::kernels::constants::scores::{REDUCE_THREADS, REDUCE_WARPS};
use crate::launch::{Argument, KernelEntry, Launch, blocks, kernels, vector};
use crate::ops::linear::tiles::{Tiling, size};
use crate::tensor::{DType, TensorType};
use keel_base::error::Result;

/// Scores of a row block, where N leaves room: 128 MiB of bf16.
pub(super) const BLOCK_SCORES: usize = 1 << 26;
/// The fewest rows of a block where N leaves no room: each block reads and writes all of ∂v once.
pub(super) const FEWEST_ROWS: usize = 1024;
/// Rows of a block, at most: as many as there is room for.
pub(super) const BLOCK_ROWS: usize = usize::MAX;

/// A run of rows of S.
#[derive(Clone, Copy, Debug)]
struct RowBlock {
    first: usize,
    rows: usize,
    is_first: bool,
    is_last: bool,
}

/// Rows of each block but the last, `most` at most: at least two blocks for more than a tile of pairs, so that no N×N matrix
/// is ever stored.
fn block_height(n: usize, most: usize) -> usize {
    let room = (BLOCK_SCORES / n).max(FEWEST_ROWS).min(most.max(TILE)) / TILE * TILE;
    room.min(n.div_ceil(2).next_multiple_of(TILE))
}

fn row_blocks(n: usize, most: usize) -> impl Iterator<Item = RowBlock> {
    let height = block_height(n, most);
    (0..n).step_by(height).map(move |first| {
        let rows = height.min(n - first);
        RowBlock {
            first,
            rows,
            is_first: first == 0,
            is_last: first + rows == n,
        }
    })
}

/// The types of one problem.
#[derive(Clone, Copy, Debug)]
pub(super) struct Problem {
    n: usize,
    /// Rows of N that are this rank's: all of one rank's own.
    share: usize,
    e: usize,
    dtype: DType,
    kind: Contrastive,
    mask: MaskInputs,
    block_rows: usize,
}

/// Hands out ranges of the workspace.
#[derive(Default)]
pub(super) struct Layout {
    end: usize,
}

impl Layout {
    /// All bytes handed out so far.
    pub fn bytes(&self) -> usize {
        self.end
    }

    pub fn take(&mut self, elements: usize, element: DType) -> Argument {
        let offset = self.end.next_multiple_of(256);
        self.end = offset + elements * element.size();
        Argument::Workspace { offset, element }
    }
}

/// Where the forward pass keeps what it adds up. InfoNCE: log-sums of a block's rows and columns by tile, of the columns so
/// far, and the diagonal of S. Sigmoid: `row_part` alone, one sum a block.
struct Forward {
    row_part: Argument,
    column_part: Argument,
    state: Argument,
    own: Argument,
    bytes: usize,
}

/// Where the backward pass keeps a row block's gradient, sums of thread blocks, and parts of products.
struct Gradients {
    block: Argument,
    scale_part: Argument,
    bias_part: Argument,
    image_part: Argument,
    text_part: Argument,
    /// ∂v in f32, where the output is not.
    text_sum: Argument,
    bytes: usize,
}

impl Problem {
    pub fn of(
        inputs: &[TensorType],
        kind: Contrastive,
        mask: MaskInputs,
        block_rows: usize,
    ) -> Problem {
        Problem {
            n: inputs[0].shape.rows(),
            share: inputs[0].shape.rows(),
            e: inputs[0].shape.columns(),
            dtype: inputs[0].dtype,
            kind,
            mask,
            block_rows,
        }
    }

    /// The number of pairs, the images' identities and the texts', behind an op's `own` inputs; null where there are none.
    fn mask(&self, own: usize) -> [Argument; 3] {
        let places = self.mask.behind(own);
        let input = |index: Option<usize>| index.map_or(Argument::Null, Argument::input);
        let [images, texts] = [0, 1].map(|side| input(places.identities.map(|of| of[side])));
        [input(places.pairs), images, texts]
    }

    /// The number of pairs alone.
    fn pairs(&self, own: usize) -> Argument {
        self.mask(own)[0]
    }

    fn tiles(&self, rows: usize) -> usize {
        rows.div_ceil(TILE) * self.n.div_ceil(TILE)
    }

    /// ∂u of a row block: its sum over N is long and its result small.
    fn image_tiling(&self, rows: usize) -> Tiling {
        Tiling::split([rows, self.e, self.n], self.dtype)
    }

    /// ∂v of a row block.
    fn text_tiling(&self, rows: usize) -> Tiling {
        Tiling::split([self.n, self.e, rows], self.dtype)
    }

    fn forward(&self) -> Forward {
        let height = block_height(self.n, self.block_rows);
        let mut layout = Layout::default();
        let mut floats = |elements| layout.take(elements, DType::F32);
        let (row_part, column_part, state, own) = match self.kind {
            Contrastive::InfoNce => (
                floats(2 * height * self.n.div_ceil(TILE)),
                floats(2 * self.n * height.div_ceil(TILE)),
                floats(2 * self.n),
                floats(self.n),
            ),
            Contrastive::Sigmoid => (floats(self.tiles(height)), floats(0), floats(0), floats(0)),
        };
        Forward {
            row_part,
            column_part,
            state,
            own,
            bytes: layout.bytes(),
        }
    }

    fn gradients(&self) -> Gradients {
        let height = block_height(self.n, self.block_rows);
        let most = |part: &dyn Fn(usize) -> usize| {
            row_blocks(self.n, self.block_rows)
                .map(|block| part(block.rows))
                .max()
        };
        let image = most(&|rows| self.image_tiling(rows).splits * rows).unwrap_or(0);
        let text = most(&|rows| match self.text_tiling(rows).splits {
            1 => 0,
            splits => splits * self.n,
        })
        .unwrap_or(0);
        let own_sum = match self.dtype {
            DType::F32 => 0,
            _ => self.n,
        };
        let mut layout = Layout::default();
        let block = layout.take(height * self.n, self.dtype);
        let mut floats = |elements| layout.take(elements, DType::F32);
        Gradients {
            block,
            scale_part: floats(self.tiles(height)),
            bias_part: floats(self.tiles(height)),
            image_part: floats(image * self.e),
            text_part: floats(text * self.e),
            text_sum: floats(own_sum * self.e),
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

    /// n, the rows of it that are this rank's, e, the block's first row and its rows.
    fn sizes(&self, kernel: &KernelEntry, block: RowBlock) -> Result<[Argument; 5]> {
        Ok([
            size(kernel, "the number of pairs", self.n)?,
            size(kernel, "the number of pairs of a rank", self.share)?,
            size(kernel, "the width", self.e)?,
            size(kernel, "the first row", block.first)?,
            size(kernel, "the number of rows", block.rows)?,
        ])
    }

    /// The launches of the loss: inputs u, v, log_scale, then the bias of the sigmoid form, then those of the mask.
    pub fn forward_launches(&self) -> Result<Vec<Launch>> {
        let input = Argument::input;
        let mask = self.mask(self.kind.inputs());
        let work = self.forward();
        let mut launches = Vec::new();
        for block in row_blocks(self.n, self.block_rows) {
            let tiles = self.tiles(block.rows);
            if self.kind == Contrastive::Sigmoid {
                let kernel = kernels::CONTRASTIVE_LOSS_SIGMOID_FORWARD.of(self.dtype)?;
                let grid = blocks(kernel, tiles, 1)?;
                let mut arguments = vec![work.row_part, input(0), input(1), input(2), input(3)];
                arguments.extend(mask);
                arguments.extend(self.sizes(kernel, block)?);
                arguments.push(Argument::I32(block.is_first.into()));
                launches.push(Launch::new(kernel, grid, arguments));
                continue;
            }
            let kernel = kernels::CONTRASTIVE_LOSS_INFO_NCE_FORWARD.of(self.dtype)?;
            let grid = blocks(kernel, tiles, 1)?;
            let mut arguments = vec![work.row_part, work.column_part, work.own];
            arguments.extend([input(0), input(1), input(2)]);
            arguments.extend(mask);
            arguments.extend(self.sizes(kernel, block)?);
            launches.push(Launch::new(kernel, grid, arguments));
            launches.extend(self.log_sum_launches(&work, block)?);
        }
        launches.push(match self.kind {
            Contrastive::InfoNce => {
                let kernel = kernels::CONTRASTIVE_LOSS_INFO_NCE_TOTAL_F32;
                let n = size(kernel, "the number of pairs", self.n)?;
                let [loss, row, column] = [0, 1, 2].map(Argument::output);
                let arguments = vec![loss, row, column, work.own, mask[0], Argument::Null, n];
                Launch::new(kernel, 1, arguments)
            }
            Contrastive::Sigmoid => total(
                Argument::output(0),
                [work.row_part, mask[0]],
                self.tiles(block_height(self.n, self.block_rows)),
                self.n as f32,
            )?,
        });
        Ok(launches)
    }

    /// r of a block's rows, and the log-sums of the columns so far.
    fn log_sum_launches(&self, work: &Forward, block: RowBlock) -> Result<[Launch; 2]> {
        let row_sums = Argument::Output {
            index: 1,
            offset: block.first * size_of::<f32>(),
        };
        let kernel = kernels::CONTRASTIVE_LOSS_ROW_SUMS_F32;
        let rows = Launch::new(
            kernel,
            blocks(kernel, block.rows, REDUCE_WARPS)?,
            vec![
                row_sums,
                work.row_part,
                self.pairs(self.kind.inputs()),
                size(kernel, "the number of pairs", self.n)?,
                size(kernel, "the first row", block.first)?,
                size(kernel, "the number of rows", block.rows)?,
                size(kernel, "the number of tiles", self.n.div_ceil(TILE))?,
            ],
        );
        let kernel = kernels::CONTRASTIVE_LOSS_COLUMN_SUMS_F32;
        let columns = Launch::new(
            kernel,
            blocks(kernel, self.n, REDUCE_THREADS)?,
            vec![
                Argument::output(2),
                work.state,
                work.column_part,
                self.pairs(self.kind.inputs()),
                size(kernel, "the number of pairs", self.n)?,
                size(kernel, "the number of tiles", block.rows.div_ceil(TILE))?,
                Argument::I32(block.is_first.into()),
                Argument::I32(block.is_last.into()),
            ],
        );
        Ok([rows, columns])
    }

    /// The launches of the gradients: inputs u, v, log_scale, then r and c (InfoNCE) or the bias, then dL, then those of the
    /// mask.
    pub fn backward_launches(&self) -> Result<Vec<Launch>> {
        let work = self.gradients();
        let text = match self.dtype {
            DType::F32 => Argument::output(1),
            _ => work.text_sum,
        };
        let mut launches = Vec::new();
        for block in row_blocks(self.n, self.block_rows) {
            launches.push(self.block_gradient(&work, block)?);
            if self.e > 0 {
                launches.extend(self.image_gradient(&work, block)?);
                launches.extend(self.text_gradient(&work, block, text)?);
            }
        }
        if self.dtype != DType::F32 && self.e > 0 {
            let places = [Argument::output(1), text];
            launches.push(finish(self.dtype, places, self.n * self.e, 1)?);
        }
        let tiles = self.tiles(block_height(self.n, self.block_rows));
        let mut sum = |out, part| -> Result<()> {
            launches.push(total(out, [part, Argument::Null], tiles, 1.0)?);
            Ok(())
        };
        sum(Argument::output(2), work.scale_part)?;
        if self.kind == Contrastive::Sigmoid {
            sum(Argument::output(3), work.bias_part)?;
        }
        Ok(launches)
    }

    /// e^a·G of a row block.
    fn block_gradient(&self, work: &Gradients, block: RowBlock) -> Result<Launch> {
        let is_sigmoid = self.kind == Contrastive::Sigmoid;
        let family = if is_sigmoid {
            kernels::CONTRASTIVE_LOSS_SIGMOID_BACKWARD
        } else {
            kernels::CONTRASTIVE_LOSS_INFO_NCE_BACKWARD
        };
        let kernel = family.of(self.dtype)?;
        let mut arguments = vec![work.block, work.scale_part];
        if is_sigmoid {
            arguments.push(work.bias_part);
        }
        let inputs = if is_sigmoid { 5 } else { 6 };
        arguments.extend((0..inputs).map(Argument::input));
        arguments.extend(self.mask(inputs));
        arguments.extend(self.sizes(kernel, block)?);
        arguments.push(Argument::I32(block.is_first.into()));
        let grid = blocks(kernel, self.tiles(block.rows), 1)?;
        Ok(Launch::new(kernel, grid, arguments))
    }

    /// ∂u of the block's rows = e^a·G·v.
    fn image_gradient(&self, work: &Gradients, block: RowBlock) -> Result<[Launch; 2]> {
        let tiling = self.image_tiling(block.rows);
        let kernel = tiling.kernel(kernels::CONTRASTIVE_LOSS_PRODUCT_SIZES, self.dtype)?;
        let product = Launch::on_grid(
            kernel,
            tiling.grid(kernel)?,
            vec![
                work.image_part,
                work.block,
                Argument::input(1),
                size(kernel, "the number of rows", block.rows)?,
                size(kernel, "the number of pairs", self.n)?,
                size(kernel, "the width", self.e)?,
                size(kernel, "the number of steps", tiling.steps)?,
            ],
        );
        let out = Argument::Output {
            index: 0,
            offset: block.first * self.e * self.dtype.size(),
        };
        let places = [out, work.image_part];
        let sum = finish(self.dtype, places, block.rows * self.e, tiling.splits)?;
        Ok([product, sum])
    }

    /// ∂v += (e^a·G)ᵀ·u, by the kernels of a linear layer's weight.
    fn text_gradient(
        &self,
        work: &Gradients,
        block: RowBlock,
        sum: Argument,
    ) -> Result<Vec<Launch>> {
        let tiling = self.text_tiling(block.rows);
        let kernel = tiling.kernel(kernels::LINEAR_BACKWARD_WEIGHT_SIZES, self.dtype)?;
        let is_split = tiling.splits > 1;
        let before = if block.is_first { Argument::Null } else { sum };
        let product = Launch::on_grid(
            kernel,
            tiling.grid(kernel)?,
            vec![
                if is_split { work.text_part } else { sum },
                Argument::Null,
                if is_split { Argument::Null } else { before },
                work.block,
                Argument::Input {
                    index: 0,
                    offset: block.first * self.e * self.dtype.size(),
                },
                size(kernel, "the number of rows", block.rows)?,
                size(kernel, "the number of pairs", self.n)?,
                size(kernel, "the width", self.e)?,
                size(kernel, "the number of steps", tiling.steps)?,
            ],
        );
        if !is_split {
            return Ok(vec![product]);
        }
        let kernel = kernels::LINEAR_SUM_F32;
        let count = self.n * self.e;
        let add = Launch::new(
            kernel,
            blocks(kernel, count, 4 * ELEMENTWISE_THREADS)?,
            vec![
                sum,
                work.text_part,
                before,
                Argument::I64(count as i64),
                Argument::I32(tiling.splits as i32),
            ],
        );
        Ok(vec![product, add])
    }
}

/// `count` elements of features' gradients from their parts, `out` and `part`.
pub(super) fn finish(
    dtype: DType,
    [out, part]: [Argument; 2],
    count: usize,
    parts: usize,
) -> Result<Launch> {
    let kernel = kernels::CONTRASTIVE_LOSS_FINISH.of(dtype)?;
    let each = REDUCE_THREADS * vector(TensorType::new(dtype, [count]));
    let grid = blocks(kernel, count, each)?;
    let arguments = vec![
        out,
        part,
        Argument::I64(count as i64),
        Argument::I32(parts as i32),
    ];
    Ok(Launch::new(kernel, grid, arguments))
}

/// A scalar from the sums of blocks, divided by the number of pairs, where there is one, and else by `divisor`.
pub(super) fn total(
    out: Argument,
    [part, pairs]: [Argument; 2],
    count: usize,
    divisor: f32,
) -> Result<Launch> {
    let kernel = kernels::CONTRASTIVE_LOSS_TOTAL_F32;
    let count = size(kernel, "the number of blocks", count)?;
    let arguments = vec![out, part, pairs, count, Argument::F32(divisor)];
    Ok(Launch::new(kernel, 1, arguments))
}
