//! Where the elements of query, key and value lie, and which keys a query sees.

use super::{Heads, Mask};
use crate::tensor::{DType, TensorType};
use keel_base::error::{Error, Result};

/// Which tensors hold query, key and value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Form {
    /// One tensor [B, T, (H+2Hk)·D].
    Packed,
    /// A tensor [B, 1, (H+2Hk)·D] whose queries ask, and one [B, T, (H+2Hk)·D] whose keys and values answer.
    Next,
    /// A query tensor [B, Tq, H·D] or [Tq, H·D], and a tensor [B, T, 2·H·D] of keys and values.
    Cross,
}

impl Form {
    /// The number of inputs that hold query, key and value.
    pub fn sources(self) -> usize {
        match self {
            Form::Packed => 1,
            Form::Next | Form::Cross => 2,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Form::Packed => "attention",
            Form::Next => "next_attention",
            Form::Cross => "cross_attention",
        }
    }
}

/// The place of one of query, key and value in its tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Element of the first head in a row.
    pub start: usize,
    /// Elements from a row to the next.
    pub row: usize,
    /// Elements from a batch row to the next; 0 when all share one.
    pub batch: usize,
}

/// The sizes of one attention.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub heads: Heads,
    /// B.
    pub batch: usize,
    /// Tq.
    pub query_tokens: usize,
    /// T.
    pub key_tokens: usize,
    /// Keys that every query sees; beyond them a query sees those up to its own position.
    pub seen_by_all: usize,
    pub query: Layout,
    pub key: Layout,
    pub value: Layout,
}

impl Geometry {
    /// Checks the inputs (query and key_value, or qkv, without segments).
    pub fn new(heads: Heads, mask: Mask, form: Form, inputs: &[TensorType]) -> Result<Geometry> {
        check_heads(form.name(), heads)?;
        let dim = heads.dim;
        // Both forms become the same strides, so that everything behind this point has one loop for either.
        let (batch, query_tokens, key_tokens, query, key, value) = match form {
            Form::Packed => {
                let width = heads.packed_width();
                let [batch, tokens] = rows("attention", "qkv", inputs[0], width)?;
                let at = |head: usize| Layout {
                    start: head * dim,
                    row: width,
                    batch: tokens * width,
                };
                let (key, value) = (heads.query, heads.query + heads.key_value);
                (batch, tokens, tokens, at(0), at(key), at(value))
            }
            Form::Next => {
                let width = heads.packed_width();
                let [batch, key_tokens] = rows("next_attention", "cache", inputs[1], width)?;
                let own = TensorType::new(inputs[1].dtype, [batch, 1, width]);
                if inputs[0] != own {
                    return Err(Error::shape("next_attention", "qkv", own, inputs[0]));
                }
                let at = |head: usize, tokens: usize| Layout {
                    start: head * dim,
                    row: width,
                    batch: tokens * width,
                };
                let (key, value) = (heads.query, heads.query + heads.key_value);
                let [key, value] = [key, value].map(|head| at(head, key_tokens));
                (batch, 1, key_tokens, at(0, 1), key, value)
            }
            Form::Cross => {
                if heads.key_value != heads.query {
                    return Err(Error::shape(
                        "cross_attention",
                        "heads",
                        "as many key heads as query heads",
                        format!("{heads:?}"),
                    ));
                }
                let width = heads.query_width();
                let [batch, key_tokens] =
                    rows("cross_attention", "key_value", inputs[1], 2 * width)?;
                let is_same_type = inputs[0].dtype == inputs[1].dtype;
                let (query_tokens, query_batch) = match *inputs[0].shape.dims() {
                    [tokens, columns] if tokens > 0 && columns == width && is_same_type => {
                        (tokens, 0)
                    }
                    [query_batch, tokens, columns]
                        if query_batch == batch
                            && tokens > 0
                            && columns == width
                            && is_same_type =>
                    {
                        (tokens, tokens * width)
                    }
                    _ => {
                        return Err(Error::shape(
                            "cross_attention",
                            "query",
                            format!(
                                "{} [{batch}, Tq, {width}] or [Tq, {width}]",
                                inputs[1].dtype
                            ),
                            inputs[0],
                        ));
                    }
                };
                let query = Layout {
                    start: 0,
                    row: width,
                    batch: query_batch,
                };
                let at = |start: usize| Layout {
                    start,
                    row: 2 * width,
                    batch: key_tokens * 2 * width,
                };
                (batch, query_tokens, key_tokens, query, at(0), at(width))
            }
        };
        let seen_by_all = match mask {
            Mask::Full => key_tokens,
            Mask::Causal => 0,
            Mask::Prefix(count) => count.min(key_tokens),
        };
        Ok(Geometry {
            heads,
            batch,
            query_tokens,
            key_tokens,
            seen_by_all,
            query,
            key,
            value,
        })
    }

    /// Query heads that share one key head.
    pub fn group(&self) -> usize {
        self.heads.query / self.heads.key_value
    }

    /// Factor of the scores, D^-1/2.
    pub fn scale(&self) -> f64 {
        (self.heads.dim as f64).powf(-0.5)
    }

    /// Query `token` sees the keys 0..limit.
    pub fn limit(&self, token: usize) -> usize {
        self.seen_by_all.max(token + 1).min(self.key_tokens)
    }

    /// Pairs of query and key that the mask lets see, over the batch and the heads.
    pub fn pairs(&self) -> f64 {
        let of_one: usize = (0..self.query_tokens).map(|token| self.limit(token)).sum();
        of_one as f64 * (self.batch * self.heads.query) as f64
    }

    /// The type of the output: [B, Tq, H·D].
    pub fn output(&self, dtype: DType) -> TensorType {
        let width = self.heads.query_width();
        TensorType::new(dtype, [self.batch, self.query_tokens, width])
    }

    /// The type of the saved log-sum-exp: f32 [B, H, Tq].
    pub fn log_sum_exp(&self) -> TensorType {
        TensorType::f32([self.batch, self.heads.query, self.query_tokens])
    }
}

impl Layout {
    /// The first element of head `head` of row `token` of batch row `batch`.
    pub fn at(&self, batch: usize, token: usize, head: usize, dim: usize) -> usize {
        batch * self.batch + token * self.row + self.start + head * dim
    }
}

/// Whether two tokens of one row may see each other: same segment, and not padding.
pub(super) fn same_segment(segments: Option<&[i32]>, first: usize, second: usize) -> bool {
    segments.is_none_or(|segments| segments[first] >= 0 && segments[first] == segments[second])
}

/// Checks that heads are grouped evenly and of a supported size.
pub(crate) fn check_heads(op: &'static str, heads: Heads) -> Result<()> {
    let is_grouped = heads.key_value > 0 && heads.query.is_multiple_of(heads.key_value);
    if !is_grouped || heads.query == 0 || heads.dim == 0 || !heads.dim.is_multiple_of(8) {
        return Err(Error::shape(
            op,
            "heads",
            "query heads a multiple of the key heads, and a head dim that is a multiple of 8",
            format!("{heads:?}"),
        ));
    }
    Ok(())
}

/// The outer dimensions of a float tensor [B, T, width].
pub(crate) fn rows(
    op: &'static str,
    tensor: &str,
    ty: TensorType,
    width: usize,
) -> Result<[usize; 2]> {
    match *ty.shape.dims() {
        [batch, tokens, columns] if columns == width && tokens > 0 && ty.dtype.is_float() => {
            Ok([batch, tokens])
        }
        _ => Err(Error::shape(
            op,
            tensor,
            format!("floats [B, T, {width}] with at least one token"),
            ty,
        )),
    }
}
