//! The decoder in the Qwen2.5 and Qwen3 forms: rotary positions, grouped heads, RMSNorm, SwiGLU.
//!
//! Split in three so that image tokens can be spliced in between: embed, trunk, head.

use super::block::{block, norm};
use super::{LanguageConfig, Scope};
use crate::error::Result;
use crate::ops::{self, Mask, Positions};
use crate::tape::{Init, Tape, Value};

fn scope() -> Scope {
    Scope::module("language")
}

fn table(tape: &mut Tape, config: &LanguageConfig) -> Result<Value> {
    let shape = [config.vocabulary, config.width];
    scope().plain(tape, "embedding", shape, Init::Normal(0.02))
}

/// Looks tokens up. `tokens` i32 [B, T] → [B, T, D].
///
/// # Errors
/// Whatever recording reports.
pub fn embed_tokens(tape: &mut Tape, config: &LanguageConfig, tokens: Value) -> Result<Value> {
    tape.scoped("language.embedding", |tape| {
        let table = table(tape, config)?;
        ops::embedding(tape, table, tokens)
    })
}

/// Records the blocks and the final norm. `x` [B, T, D] → hidden states [B, T, D].
///
/// `packed` holds segment numbers and positions, both i32 [B, T], where several samples share a row. Values are named
/// `<name>.inputs`, `<name>.blocks.<l>` and `<name>.hidden`: a tape may record the trunk twice, for the conversation and
/// for the caption.
///
/// # Errors
/// Whatever recording reports.
pub fn language_trunk(
    tape: &mut Tape,
    config: &LanguageConfig,
    x: Value,
    packed: Option<(Value, Value)>,
    name: &str,
) -> Result<Value> {
    let settings = config.block();
    tape.name(x, format!("{name}.inputs"));
    let mut x = x;
    for layer in 0..config.depth {
        let part = scope().child("blocks").child(layer);
        let (segments, positions) = match packed {
            Some((segments, positions)) => (Some(segments), Positions::Given(positions)),
            None => (None, Positions::Sequential),
        };
        x = block(tape, &part, x, &settings, Mask::Causal, segments, positions)?;
        tape.name(x, format!("{name}.blocks.{layer}"));
    }
    let x = norm(
        tape,
        &scope(),
        "final_norm",
        x,
        settings.norm,
        settings.norm_epsilon,
    )?;
    tape.name(x, format!("{name}.hidden"));
    Ok(x)
}

/// The output product of a decoder.
#[derive(Clone, Copy, Debug)]
pub struct LanguageHead {
    /// [V, D]: the embedding table when tied.
    pub weight: Value,
}

/// Declares the output product.
///
/// # Errors
/// When the layout holds another shape.
pub fn language_head(tape: &mut Tape, config: &LanguageConfig) -> Result<LanguageHead> {
    let weight = match config.tied {
        true => table(tape, config)?,
        false => {
            let shape = [config.vocabulary, config.width];
            scope()
                .child("head")
                .matrix(tape, "weight", shape, Init::Normal(0.02))?
        }
    };
    Ok(LanguageHead { weight })
}
