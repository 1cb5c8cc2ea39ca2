//! Rows of a table by their ids.
//!
//! Forward: y[b, t] = table[ids[b, t]]. Backward: dtable[v] = Σ dy[b, t] over the places where ids[b, t] = v, added in
//! the order of the places whatever the threads, so that a step's bits do not depend on them.
//! An id outside 0..V (a negative one marks padding) reads a row of zeros and gives no gradient.
//!
//! Shapes: table [V, C], ids i32 [..], y [.., C]. Saved: the ids. Bytes: N rows read and written; backward reads them
//! once and writes the table's gradient. Nothing is computed forward; N·C additions backward.

use rayon::prelude::*;

use crate::launch::kernels::constants::embedding::{CHUNK_PLACES, ORDER_THREADS, SUM_WARPS};
use crate::launch::kernels::constants::{kernel::WARP_LANES, moves::MOVE_THREADS};
use crate::launch::{Argument, Launch, blocks, index, kernels, move_blocks, vector};
use crate::ops::rows::rows_per_task;
use crate::tape::{
    Backward, CompileTarget, Cost, CpuArgs, Element, Op, ReferenceArgs, Tape, Target, Value,
    with_element,
};
use crate::tensor::{DType, Shape, TensorType};
use keel_base::error::{Error, Result};

/// Looks up rows of a table.
///
/// Shapes: `table` [V, C], `ids` i32 with any dimensions, for example [B, T]; the result has those and C. An id outside
/// 0..V gives a row of zeros and no gradient.
///
/// # Errors
/// [`Error::Shape`] when `table` is not a matrix of floats or `ids` are not integers.
pub fn embedding(tape: &mut Tape, table: Value, ids: Value) -> Result<Value> {
    tape.record_one(Embedding, &[table, ids])
}

/// What the gradient's kernels keep, in bytes: the sorted places and their ids, i32 [N], and what runs of equal ids leave
/// that go on from an earlier chunk, f32 [ceil(N / 32), C].
struct Scratch {
    keys: usize,
    heads: usize,
    bytes: usize,
}

impl Scratch {
    fn new(inputs: &[TensorType]) -> Scratch {
        let (columns, count) = (inputs[0].shape.columns(), inputs[1].numel());
        let list = (count * size_of::<i32>()).next_multiple_of(16);
        Scratch {
            keys: list,
            heads: 2 * list,
            bytes: 2 * list + count.div_ceil(CHUNK_PLACES) * columns * size_of::<f32>(),
        }
    }

    /// Order, keys and heads.
    fn arguments(&self) -> [Argument; 3] {
        let at = |offset, element| Argument::Workspace { offset, element };
        [
            at(0, DType::I32),
            at(self.keys, DType::I32),
            at(self.heads, DType::F32),
        ]
    }
}

/// The row that an id names, if there is one.
fn row(id: i32, rows: usize) -> Option<usize> {
    usize::try_from(id).ok().filter(|&row| row < rows)
}

/// Inputs: table, ids. Output: y.
#[derive(Clone, Copy, Debug)]
struct Embedding;

/// Inputs: dy, ids, and the sum to add to where `accumulates`. Output: dtable.
#[derive(Clone, Copy, Debug)]
struct EmbeddingBackward {
    /// V.
    vocabulary: usize,
    accumulates: bool,
}

impl Embedding {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let (table, ids) = (args.inputs.of::<T>(0), args.inputs.i32(1));
        let y = args.outputs.in_order().next::<T>();
        let width = args.input_types[0].shape.columns();
        let rows = args.input_types[0].shape.rows();
        let block = rows_per_task(width);
        y.par_chunks_mut(block * width)
            .zip(ids.par_chunks(block))
            .for_each(|(y, ids)| {
                for (y, id) in y.chunks_exact_mut(width).zip(ids) {
                    match row(*id, rows) {
                        Some(row) => y.copy_from_slice(&table[row * width..][..width]),
                        None => y.fill(T::default()),
                    }
                }
            });
    }
}

impl Op for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let (table, ids) = (inputs[0], inputs[1]);
        let [vocabulary, width] = *table.shape.dims() else {
            return Err(Error::shape("embedding", "table", "floats [V, C]", table));
        };
        if !table.dtype.is_float() || vocabulary == 0 || width == 0 {
            return Err(Error::shape("embedding", "table", "floats [V, C]", table));
        }
        if ids.dtype != DType::I32 || ids.shape.rank() >= Shape::MAX_RANK {
            return Err(Error::shape("embedding", "ids", "i32 [B, T]", ids));
        }
        let mut dims = ids.shape.dims().to_vec();
        dims.push(width);
        Ok(vec![TensorType::new(table.dtype, &dims[..])])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([table, ids], [y]) = args.split();
        let (rows, width) = (table.shape.rows(), table.columns());
        for (place, id) in ids.int().iter().enumerate() {
            if let Some(row) = row(*id, rows) {
                let from = &table.float()[row * width..(row + 1) * width];
                y.float_mut()[place * width..(place + 1) * width].copy_from_slice(from);
            }
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_element!(args.input_types[0].dtype, T => self.compute::<T>(args));
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let (table, y) = (inputs[0], outputs[0]);
        let kernel = kernels::EMBEDDING_FORWARD.of(table.dtype)?;
        let arguments = vec![
            Argument::output(0),
            Argument::input(0),
            Argument::input(1),
            Argument::I64(inputs[1].numel() as i64),
            index(kernel, "the number of columns", y.shape.columns())?,
            index(kernel, "the vocabulary", table.shape.rows())?,
        ];
        let blocks = move_blocks(kernel, y)?;
        Ok(vec![Launch::new(kernel, blocks, arguments)])
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let op = EmbeddingBackward {
            vocabulary: backward.tape.shape(backward.inputs[0]).rows(),
            accumulates: false,
        };
        let (dy, ids) = (backward.gradient(0), backward.inputs[1]);
        let d_table = backward.tape.record_one(op, &[dy, ids])?;
        Ok(vec![Some(d_table), None])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        // Rows that are read again and again count each time: the table may be far larger than what is read of it.
        Cost::streaming(0.0, &[outputs[0], inputs[1]], outputs)
    }
}

impl EmbeddingBackward {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element>(&self, args: CpuArgs<'_>) {
        let (dy, ids) = (args.inputs.of::<T>(0), args.inputs.i32(1));
        let sum = if self.accumulates {
            args.inputs.f32_or_in_place(2)
        } else {
            None
        };
        let [d_table] = args.outputs.f32();
        let width = args.input_types[0].shape.columns();
        // Each task owns a range of the table and reads all ids: cheap beside the rows, and the order stays fixed.
        let block = self.vocabulary.div_ceil(32).max(4);
        d_table
            .par_chunks_mut(block * width)
            .enumerate()
            .for_each(|(task, d_table)| {
                let first = task * block;
                match sum {
                    Some(sum) => d_table.copy_from_slice(&sum[first * width..][..d_table.len()]),
                    None if self.accumulates => {}
                    None => d_table.fill(0.0),
                }
                let rows = first..first + d_table.len() / width;
                for (place, id) in ids.iter().enumerate() {
                    let Some(row) = row(*id, self.vocabulary).filter(|row| rows.contains(row))
                    else {
                        continue;
                    };
                    let to = &mut d_table[(row - first) * width..][..width];
                    for (sum, dy) in to.iter_mut().zip(&dy[place * width..][..width]) {
                        *sum += dy.widen();
                    }
                }
            });
    }
}

impl Op for EmbeddingBackward {
    fn name(&self) -> &'static str {
        "embedding_backward"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let (dy, ids) = (inputs[0], inputs[1]);
        if dy.shape.rows() != ids.numel() {
            let want = format!("{} rows, one for each id", ids.numel());
            return Err(Error::shape(self.name(), "dy", want, dy));
        }
        let shape = [self.vocabulary, dy.shape.columns()];
        Ok(vec![TensorType::f32(shape)])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let (dy, ids) = (args.inputs[0], args.inputs[1]);
        let width = dy.columns();
        let d_table = args.outputs[0].float_mut();
        if self.accumulates {
            d_table.copy_from_slice(args.inputs[2].float());
        }
        for (dy, id) in dy.float().chunks_exact(width).zip(ids.int()) {
            if let Some(row) = row(*id, self.vocabulary) {
                for (sum, dy) in d_table[row * width..].iter_mut().zip(dy) {
                    *sum += dy;
                }
            }
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_element!(args.input_types[0].dtype, T => self.compute::<T>(args));
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        let (dy, d_table, count) = (inputs[0], outputs[0], inputs[1].numel());
        let (columns, chunks) = (dy.shape.columns(), count.div_ceil(CHUNK_PLACES));
        let [order, keys, heads] = Scratch::new(inputs).arguments();
        // By sorting and not by atomic additions, whose order no two runs share: places are sorted by id, runs of equal
        // ids are summed by chunks of fixed size, and what a run carries over from an earlier chunk is added last.
        let [start, sort, add] = [
            kernels::EMBEDDING_START_F32,
            kernels::EMBEDDING_BACKWARD_ORDER_I32,
            kernels::EMBEDDING_BACKWARD_HEADS_F32,
        ];
        let rows = kernels::EMBEDDING_BACKWARD_ROWS.of(dy.dtype)?;
        let addend = if self.accumulates {
            Argument::input(2)
        } else {
            Argument::Null
        };
        let places = index(sort, "the number of places", count)?;
        // The sort gives padding the key V, one past the last word.
        index(sort, "the vocabulary and one", self.vocabulary + 1)?;
        let vocabulary = index(sort, "the vocabulary", self.vocabulary)?;
        let width = index(rows, "the number of columns", columns)?;
        let tiles = |ty| columns.div_ceil(WARP_LANES * vector(ty));
        let (wide, narrow) = (tiles(dy), tiles(d_table));
        let start_arguments = vec![
            Argument::output(0),
            addend,
            Argument::I64(d_table.numel() as i64),
        ];
        let mut launches = vec![Launch::new(
            start,
            blocks(start, d_table.numel(), vector(d_table) * MOVE_THREADS)?,
            start_arguments,
        )];
        // Even without ids the table's gradient has to become zero, or the addend: that launch stands.
        if count == 0 {
            return Ok(launches);
        }
        launches.push(Launch::new(
            sort,
            blocks(sort, count, ORDER_THREADS)?,
            vec![order, keys, Argument::input(1), places, vocabulary],
        ));
        let arguments = vec![
            Argument::output(0),
            heads,
            order,
            keys,
            Argument::input(0),
            places,
            vocabulary,
            width,
            index(rows, "the number of tiles", wide)?,
        ];
        let grid = blocks(rows, chunks * wide, SUM_WARPS)?;
        launches.push(Launch::new(rows, grid, arguments));
        let arguments = vec![
            Argument::output(0),
            heads,
            keys,
            places,
            vocabulary,
            width,
            index(add, "the number of tiles", narrow)?,
        ];
        let grid = blocks(add, chunks * narrow, SUM_WARPS)?;
        launches.push(Launch::new(add, grid, arguments));
        Ok(launches)
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        _: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        match compile_target.target {
            Target::Cuda => Scratch::new(inputs).bytes,
            _ => 0,
        }
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(inputs[0].numel() as f64, inputs, outputs)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        if self.accumulates { &[(0, 2)] } else { &[] }
    }

    fn accumulating(&self) -> Option<Box<dyn Op>> {
        (!self.accumulates).then(|| {
            let op: Box<dyn Op> = Box::new(EmbeddingBackward {
                accumulates: true,
                ..*self
            });
            op
        })
    }
}
