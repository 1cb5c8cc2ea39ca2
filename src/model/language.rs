//! The decoder in the Qwen2.5 and Qwen3 forms: rotary positions, grouped heads, RMSNorm, SwiGLU.
//!
//! Split in three so that image tokens can be spliced in between: embed, trunk, head.

use super::block::{NextPlace, block, cached_block, norm};
use super::{LanguageConfig, ModelInput, Scope};
use keel_base::error::Result;
use keel_engine::ops::{self, Mask, Positions};
use keel_engine::tape::{Init, Tape, Value};
use keel_engine::tensor::TensorType;

fn scope() -> Scope {
    Scope::module("language")
}

fn table(tape: &mut Tape, config: &LanguageConfig) -> Result<Value> {
    let shape = [config.vocabulary, config.width];
    // Not decayed: a token that no batch holds would shrink towards zero, though nothing has been learned of it.
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

/// Records the blocks and the final norm for the next token of each row. `x` [B, 1, D] → hidden states [B, 1, D].
///
/// Each layer keeps the queries, keys and values of the tokens before in a cache [B, T, (H+2Hk)·D] of the program
/// ([`Tape::cached`], in the layers' order), writes its own token's row there and attends to the rows up to it: T pairs a
/// head at most.
///
/// Inputs: `slots` i32 [B, T], 1 at the token's place and 0 elsewhere; `seen` i32 [B, T], 0 up to that place and −1 beyond;
/// `position` i32 [B, 1], the place.
///
/// # Errors
/// Whatever recording reports.
pub fn language_step(
    tape: &mut Tape,
    config: &LanguageConfig,
    x: Value,
    tokens: usize,
) -> Result<Value> {
    let batch = tape.shape(x).dims()[0];
    let place = NextPlace {
        tokens,
        slots: tape.input(ModelInput::Slots, TensorType::i32([batch, tokens])),
        position: tape.input(ModelInput::Position, TensorType::i32([batch, 1])),
        seen: tape.input(ModelInput::Seen, TensorType::i32([batch, tokens])),
    };
    let settings = config.block();
    let mut x = x;
    for layer in 0..config.depth {
        let part = scope().child("blocks").child(layer);
        x = cached_block(tape, &part, x, &settings, &place)?;
    }
    norm(
        tape,
        &scope(),
        "final_norm",
        x,
        settings.norm,
        settings.norm_epsilon,
    )
}

/// The name of what a layer's attention reads in a program that runs whole rows: the rows of its cache.
pub fn cached_rows(layer: usize) -> String {
    scope().child("blocks").child(layer).full("attended")
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
    let weight = if config.tied_embeddings {
        table(tape, config)?
    } else {
        let shape = [config.vocabulary, config.width];
        scope()
            .child("head")
            .matrix(tape, "weight", shape, Init::Normal(0.02))?
    };
    Ok(LanguageHead { weight })
}
