//! What ranks send one another: each rank's value for all (all-gather), or a slice of it for each (exchange).
//!
//! The first dimension is cut by rank. all_gather: y = [x of rank 0, x of rank 1, …]; exchange: slice q of y is slice r of
//! rank q's x, on rank r. Nothing is added: sums over ranks are [`super::tree_sum`] of what was exchanged.
//!
//! Losses over ranks are sums: L = Σ over ranks of what each records. With that, ∂L/∂x of an all-gather is the sum over ranks
//! of their gradients of the slice that x became, an exchange and a tree sum; that of an exchange is an exchange.
//!
//! A collective is two ops, begin and finish, so that a rank computes what stands between them while bytes travel. Neither
//! has a kernel. One rank alone has all there is, and records nothing.

use super::shapes::expect_inputs;
use crate::launch::Launch;
use crate::tape::{
    Backward, CollectivePart, CompileTarget, Cost, CpuArgs, Op, ReferenceArgs, Tape, Value,
};
use crate::tensor::{Shape, TensorType};
use keel_base::error::{Error, Result};
use keel_ranks::Kind;

use super::tree_sum::tree_sum;

/// Records the values of all ranks one after the other along the first dimension: [n, …] becomes [ranks·n, …].
///
/// # Errors
/// [`Error::Shape`] for a value without dimensions.
pub fn all_gather(tape: &mut Tape, x: Value) -> Result<Value> {
    if tape.world().ranks == 1 {
        return Ok(x);
    }
    let begun = begin(tape, Kind::AllGather, x)?;
    finish(tape, begun)
}

/// Records slice r of every rank's value on rank r, in the order of the ranks, the first dimension cut into a slice for each.
///
/// # Errors
/// [`Error::Shape`] when the first dimension is no multiple of the number of ranks.
pub fn exchange(tape: &mut Tape, x: Value) -> Result<Value> {
    if tape.world().ranks == 1 {
        return Ok(x);
    }
    let begun = begin(tape, Kind::Exchange, x)?;
    finish(tape, begun)
}

/// A collective that is recorded up to its finish.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    number: usize,
    kind: Kind,
    sent: Value,
    arriving: Value,
}

/// Records the beginning of a collective.
pub(super) fn begin(tape: &mut Tape, kind: Kind, sent: Value) -> Result<Begun> {
    let number = tape.next_collective();
    let ranks = tape.world().ranks;
    let op = Begin {
        number,
        kind,
        ranks,
    };
    let arriving = tape.record_one(op, &[sent])?;
    Ok(Begun {
        number,
        kind,
        sent,
        arriving,
    })
}

/// Records the end of a collective; returns what has arrived.
pub(super) fn finish(tape: &mut Tape, begun: Begun) -> Result<Value> {
    let op = Finish {
        number: begun.number,
        kind: begun.kind,
    };
    tape.record_one(op, &[begun.arriving, begun.sent])
}

/// `shape` with another first dimension.
fn with_rows(shape: Shape, rows: usize) -> Shape {
    let mut dims = shape.dims().to_vec();
    dims[0] = rows;
    Shape::from(&dims[..])
}

/// Input: what is sent. Output: what arrives, undefined until the finish.
#[derive(Clone, Copy, Debug)]
struct Begin {
    number: usize,
    kind: Kind,
    ranks: usize,
}

impl Op for Begin {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::AllGather => "all_gather_begin",
            Kind::Exchange => "exchange_begin",
        }
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [x] = &expect_inputs(self.name(), inputs)?;
        let rows = x.shape.dims().first().copied().unwrap_or(0);
        let is_whole = match self.kind {
            Kind::AllGather => x.shape.rank() > 0,
            Kind::Exchange => x.shape.rank() > 0 && rows.is_multiple_of(self.ranks),
        };
        if !is_whole {
            let want = match self.kind {
                Kind::AllGather => "of at least one dimension".to_owned(),
                Kind::Exchange => format!("with a multiple of {} rows, a slice a rank", self.ranks),
            };
            return Err(Error::shape(self.name(), "x", want, x));
        }
        Ok(vec![match self.kind {
            Kind::AllGather => TensorType::new(x.dtype, with_rows(x.shape, rows * self.ranks)),
            Kind::Exchange => *x,
        }])
    }

    fn reference(&self, _: ReferenceArgs<'_>) {
        unreachable!("an executor hands a collective to its engine")
    }

    fn cpu(&self, _: CpuArgs<'_>) {
        unreachable!("an executor hands a collective to its engine")
    }

    fn launches(
        &self,
        _: &[TensorType],
        _: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        Ok(Vec::new())
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        let (tape, dy) = (&mut *backward.tape, backward.gradients[0]);
        let dy = dy.expect("backward runs only where the loss depends on an output");
        let exchanged = exchange(tape, dy)?;
        Ok(vec![Some(match self.kind {
            Kind::Exchange => exchanged,
            Kind::AllGather => tree_sum(tape, exchanged, self.ranks)?,
        })])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        Cost::streaming(0.0, inputs, outputs)
    }

    fn collective(&self) -> Option<(usize, CollectivePart)> {
        Some((self.number, CollectivePart::Begin(self.kind)))
    }
}

/// Inputs: what begin made, what it sends. Output: what has arrived, in the place where it arrived.
#[derive(Clone, Copy, Debug)]
struct Finish {
    number: usize,
    kind: Kind,
}

impl Op for Finish {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::AllGather => "all_gather_finish",
            Kind::Exchange => "exchange_finish",
        }
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>> {
        let [arriving, _] = &expect_inputs(self.name(), inputs)?;
        Ok(vec![*arriving])
    }

    fn reference(&self, _: ReferenceArgs<'_>) {
        unreachable!("an executor hands a collective to its engine")
    }

    fn cpu(&self, _: CpuArgs<'_>) {
        unreachable!("an executor hands a collective to its engine")
    }

    fn launches(
        &self,
        _: &[TensorType],
        _: &[TensorType],
        _: CompileTarget,
    ) -> Result<Vec<Launch>> {
        Ok(Vec::new())
    }

    fn backward(&self, backward: &mut Backward<'_>) -> Result<Vec<Option<Value>>> {
        Ok(vec![Some(backward.gradient(0)), None])
    }

    fn cost(&self, _: &[TensorType], _: &[TensorType]) -> Cost {
        Cost::default()
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn collective(&self) -> Option<(usize, CollectivePart)> {
        Some((self.number, CollectivePart::Finish))
    }
}
