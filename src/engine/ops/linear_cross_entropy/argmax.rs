//! The word of the largest logit, without storing logits: for answers and captions.

use std::ops::Range;

use rayon::prelude::*;

use super::launches::Sizes;
use super::products::{Products, with_products};
use super::tiles::{Head, TILE_ROWS, WORKERS, product_size, workspace_bytes};
use super::{Element, check_product, logits, outer};
use crate::launch::Launch;
use crate::tape::{Backward, CompileTarget, Cost, CpuArgs, Op, ReferenceArgs, Tape, Target, Value};
use crate::tensor::TensorType;
use keel_base::error::{Error, Result};

/// Records the word of the largest logit for each row: `hidden` [.., D], `weight` [V, D] of its type → i32 [..]. Ties go to
/// the smaller word.
///
/// # Errors
/// [`Error::Shape`] when the widths differ.
pub fn linear_argmax(tape: &mut Tape, hidden: Value, weight: Value) -> Result<Value> {
    tape.record_one(LinearArgmax, &[hidden, weight])
}

#[derive(Clone, Copy, Debug)]
struct LinearArgmax;

impl LinearArgmax {
    /// The processor's kernel for values stored as `T`.
    fn compute<T: Element, P: Products<T>>(&self, args: CpuArgs<'_>) {
        let head = Head::<T>::of(&args);
        let scratch = args.workspace;
        let next = args.outputs.i32();
        if head.n <= TILE_ROWS {
            return few_rows::<T, P>(&head, next, scratch);
        }
        let worker_rows = head.worker_rows();
        next.par_chunks_mut(worker_rows)
            .zip(scratch.par_chunks_mut(head.scratch()))
            .enumerate()
            .for_each(|(worker, (next, scratch))| {
                let first = worker * worker_rows;
                head.supervised::<P>(first..first + next.len(), scratch, |rows, h, scratch| {
                    let mut best = NOTHING;
                    find_best::<T, P>(&head, (h, rows.len()), 0..head.v, scratch, &mut best);
                    for (row, best) in rows.iter().zip(best) {
                        next[row - first] = best.1;
                    }
                });
            });
    }
}

/// The largest logit of each row and its word.
type Best = [(f32, i32); TILE_ROWS];

const NOTHING: Best = [(f32::NEG_INFINITY, 0); TILE_ROWS];

/// Finds the largest logit of `count` rows `h` among the words of a range.
fn find_best<T: Element, P: Products<T>>(
    head: &Head<'_, T>,
    (h, count): (&[P::Term], usize),
    range: Range<usize>,
    scratch: &mut [f32],
    best: &mut Best,
) {
    head.words::<P>(h, count, range, scratch, |z, words, _| {
        for (best, z) in best.iter_mut().zip(z.chunks(words.len())) {
            for (word, z) in words.clone().zip(z) {
                // Words come in rising order, and only a larger logit replaces: ties go to the smaller word.
                if *z > best.0 {
                    *best = (*z, word as i32);
                }
            }
        }
    });
}

/// As generation asks for it: too few rows to be divided, so that the words are.
fn few_rows<T: Element, P: Products<T>>(head: &Head<'_, T>, next: &mut [i32], scratch: &mut [f32]) {
    let words = head.worker_words();
    let mut found = [NOTHING; WORKERS];
    found
        .par_iter_mut()
        .zip(scratch.par_chunks_mut(head.scratch()))
        .enumerate()
        .take(head.v.div_ceil(words))
        .for_each(|(worker, (best, scratch))| {
            let range = worker * words..head.v.min((worker + 1) * words);
            head.supervised::<P>(0..head.n, scratch, |rows, h, scratch| {
                find_best::<T, P>(head, (h, rows.len()), range.clone(), scratch, best);
            });
        });
    for (row, next) in next.iter_mut().enumerate() {
        let mut best = NOTHING[row];
        for found in &found {
            if found[row].0 > best.0 {
                best = found[row];
            }
        }
        *next = best.1;
    }
}

impl Op for LinearArgmax {
    fn name(&self) -> &'static str {
        "linear_argmax"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [hidden, weight] = inputs else {
            return Err(Error::shape(
                "linear_argmax",
                "inputs",
                "two values",
                inputs.len(),
            ));
        };
        check_product("linear_argmax", hidden, weight)?;
        Ok(vec![TensorType::i32(outer(hidden))])
    }

    fn reference(&self, args: ReferenceArgs<'_>) {
        let ([h, w], [next]) = args.split();
        let d = h.columns();
        for (row, next) in next.int_mut().iter_mut().enumerate() {
            let z = logits(h.float(), w.float(), row, d);
            let best = (0..z.len()).max_by(|a, b| z[*a].total_cmp(&z[*b]).then(b.cmp(a)));
            *next = best.expect("a vocabulary is not empty") as i32;
        }
    }

    fn cpu(&self, args: CpuArgs<'_>) {
        with_products!(args, T, P => self.compute::<T, P>(args));
    }

    fn launches(
        &self,
        inputs: &[TensorType],
        _outputs: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        Sizes::of(inputs).argmax()
    }

    fn backward(&self, _: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        Ok(vec![None, None])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(2.0 * product_size(inputs), inputs, outputs)
    }

    fn workspace(
        &self,
        inputs: &[TensorType],
        _: &[TensorType],
        compile_target: CompileTarget,
    ) -> usize {
        match compile_target.target {
            Target::Cuda => Sizes::of(inputs).argmax_workspace(),
            _ => workspace_bytes(inputs, compile_target.target),
        }
    }
}
