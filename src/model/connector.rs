//! The connector: 2×2 neighbours concatenated, LayerNorm, Linear, exact GELU, Linear (Chen et al. 2024, InternVL); without unshuffle
//! and norm the projector of LLaVA 1.5 (Liu et al. 2024).

use super::block::{norm, projection};
use super::vision::patch_tokens;
use super::{ModelConfig, NormKind, Scope};
use keel_base::error::Result;
use keel_engine::ops::{self, Activation};
use keel_engine::tape::{Init, Tape, Value};

/// Records the connector. `features` [B, T, C] of the vision tower → image tokens [B, Ti, D].
///
/// Named value: `connector.output`.
///
/// # Errors
/// Whatever recording reports.
pub fn connector(tape: &mut Tape, config: &ModelConfig, features: Value) -> Result<Value> {
    let scope = Scope::module("connector");
    let (vision, width) = (&config.vision, config.language.width);
    tape.scoped("connector", |tape| {
        let patches = patch_tokens(tape, vision, features)?;
        let side = vision.grid();
        let x = ops::pixel_unshuffle(tape, patches, side, side, config.connector.unshuffle_factor)?;
        let columns = tape.shape(x).columns();
        let x = match config.connector.norm {
            true => norm(tape, &scope, "norm", x, NormKind::Layer, 1e-5)?,
            false => x,
        };
        let xavier = Init::XavierUniform;
        let (weight, bias) = projection(tape, &scope, "fc1", [width, columns], xavier, true)?;
        let x = ops::linear_activation(tape, x, weight, bias, Activation::GeluErf)?;
        // Image tokens start at the size of token embeddings, so that neither drowns the other.
        let small = Init::Normal(0.02);
        let (weight, bias) = projection(tape, &scope, "fc2", [width, width], small, true)?;
        let x = ops::linear(tape, x, weight, bias)?;
        tape.name(x, "connector.output");
        Ok(x)
    })
}
