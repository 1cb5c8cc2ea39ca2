//! Scaled dot-product attention over packed query, key and value rows, and over separate ones.
//!
//! Forward, for each batch row b and query head h (key head h·Hk/H):
//!   S = D^-1/2 · q kᵀ      P = softmax over the visible keys      o = P v      lse = log Σ exp S
//! Backward, from the saved lse (Dao 2023, FlashAttention-2, algorithm 2):
//!   P = exp(S − lse)   δ = Σ_d do·o   dS = P ∘ (do vᵀ − δ)   dq = D^-1/2 dS k   dk = D^-1/2 dSᵀ q   dv = Pᵀ do
//! with dk and dv summed over the query heads that share a key head.
//!
//! Saved for backward: the inputs, o, and lse f32 [B,H,T]; never a [T,T] matrix. Work over the pairs a mask lets see:
//! 4·H·D flops a pair forward, 10·H·D backward (S again, dP, and three gradients). Bytes: the inputs and outputs once.
//!
//! Dropout and biases on the scores are not here: no supported model trains with them.

mod cpu;
mod geometry;
mod launches;
mod op;
mod reference;

pub(super) use self::geometry::{check_heads, rows};

use self::geometry::Form;
use self::op::Attention;
use crate::tape::{Tape, Value};
use keel_base::error::Result;

/// The heads of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// Query heads, H.
    pub query: usize,
    /// Key and value heads, Hk; H is a multiple of it and each serves H / Hk neighbouring query heads.
    pub key_value: usize,
    /// Elements of one head, D.
    pub dim: usize,
}

impl Heads {
    /// The width of packed rows, (H + 2·Hk)·D: the query heads, then the key heads, then the value heads.
    pub fn packed_width(&self) -> usize {
        (self.query + 2 * self.key_value) * self.dim
    }

    /// The width of query and output rows, H·D.
    pub fn query_width(&self) -> usize {
        self.query * self.dim
    }
}

/// Which keys a query sees. Segments narrow it further.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mask {
    /// All of them.
    Full,
    /// Those up to its own position.
    Causal,
    /// Those up to its own position, and the first n whatever its position: they see each other fully.
    Prefix(usize),
}

/// Self-attention over packed rows.
///
/// Shapes: `qkv` [B, T, (H+2Hk)·D] holds the query heads, then the key heads, then the value heads of each row; the
/// result is [B, T, H·D]. `segments` i32 [B, T] packs several sequences in one row: a token sees only tokens of its own
/// segment, on top of `mask`, whose positions count from the start of the row. A negative segment is padding: it
/// yields zeros and takes no gradient.
///
/// Source: Vaswani et al. 2017, eq. 1; grouped heads after Ainslie et al. 2023; computed after Dao 2023.
///
/// # Errors
/// [`keel_base::error::Error::Shape`] when H is not a multiple of Hk, D is not a multiple of 8, or a shape differs.
pub fn attention(
    tape: &mut Tape,
    qkv: Value,
    heads: Heads,
    mask: Mask,
    segments: Option<Value>,
) -> Result<Value> {
    let op = Attention {
        heads,
        mask,
        form: Form::Packed,
        saves: tape.requires_gradient(qkv),
    };
    match segments {
        Some(segments) => tape.record_one(op, &[qkv, segments]),
        None => tape.record_one(op, &[qkv]),
    }
}

/// Attention of other rows to keys and values, without a mask, for attention pooling.
///
/// Shapes: `query` [B, Tq, H·D], or [Tq, H·D] when every batch row asks the same; `key_value` [B, T, 2·H·D] holds the
/// key heads, then the value heads of each row; the result is [B, Tq, H·D].
///
/// # Errors
/// [`keel_base::error::Error::Shape`] when Hk differs from H, D is not a multiple of 8, or a shape differs.
pub fn cross_attention(
    tape: &mut Tape,
    query: Value,
    key_value: Value,
    heads: Heads,
) -> Result<Value> {
    let op = Attention {
        heads,
        mask: Mask::Full,
        form: Form::Cross,
        saves: tape.requires_gradient(query) || tape.requires_gradient(key_value),
    };
    tape.record_one(op, &[query, key_value])
}

/// Attention of the next token of each row to the tokens up to it, whose rows lie in a cache.
///
/// Shapes: `qkv` [B, 1, (H+2Hk)·D] as in [`attention`], of which the query heads are read; `cache` [B, T, (H+2Hk)·D], of which
/// the key and value heads are read, the token's own row among them; `seen` i32 [B, T] is 0 at the places up to the token's and
/// −1 beyond. The result is [B, 1, H·D], the bits of the token's row of [`attention`] over the cache. It has no gradient.
///
/// # Errors
/// [`keel_base::error::Error::Shape`] when H is not a multiple of Hk, D is not a multiple of 8, or a shape differs.
pub fn next_attention(
    tape: &mut Tape,
    qkv: Value,
    cache: Value,
    heads: Heads,
    seen: Value,
) -> Result<Value> {
    let op = Attention {
        heads,
        mask: Mask::Full,
        form: Form::Next,
        saves: false,
    };
    tape.record_one(op, &[qkv, cache, seen])
}
