//! The text tower of contrastive warm start (Radford et al. 2021, §2.4): causal, pooled at the end token.

use super::block::{block, norm};
use super::{Scope, TextConfig};
use keel_base::error::Result;
use keel_engine::ops::{self, Mask, Positions};
use keel_engine::tape::{Init, Tape, Value};

/// Records the tower. `tokens` i32 [B, T] with their ends i32 `[B]` → features [B, C].
///
/// Named values: `text.blocks.<l>`, `text.hidden`.
///
/// # Errors
/// Whatever recording reports.
pub fn text_tower(
    tape: &mut Tape,
    config: &TextConfig,
    tokens: Value,
    ends: Value,
) -> Result<Value> {
    let scope = Scope::module("text");
    let table = [config.vocabulary, config.width];
    let table = scope.plain(tape, "embedding", table, Init::Normal(0.02))?;
    let position = [config.context_length, config.width];
    let position = scope.plain(tape, "position", position, Init::Normal(0.02))?;
    let mut x = ops::embedding(tape, table, tokens)?;
    x = ops::add_position(tape, x, position, None)?;
    let settings = config.block();
    for layer in 0..config.depth {
        let part = scope.child("blocks").child(layer);
        x = block(
            tape,
            &part,
            x,
            &settings,
            Mask::Causal,
            None,
            Positions::Sequential,
        )?;
        tape.name(x, part.path());
    }
    let x = norm(
        tape,
        &scope,
        "final_norm",
        x,
        settings.norm,
        settings.norm_epsilon,
    )?;
    tape.name(x, "text.hidden");
    ops::select_token(tape, x, ends)
}
