//! A vision tower's own pooled output: one row for an image, as the published towers give it.
//!
//! Refinement does without it, as SAILViT does; it is what a tower's pre-training contrasted, so it is what the tower is
//! measured by beside the mean of its tokens.
//!
//! Sources: CLIP (Radford et al. 2021) and DINOv2 (Oquab et al. 2023), the class token; AIM (El-Nouby et al. 2024), a learned
//! query; SigLIP (Zhai et al. 2023), the attention pooling of Zhai et al. 2022.

use super::block::{BlockConfig, feed_forward, projection};
use super::{ModelInput, NormKind, Scope, VisionConfig};
use keel_base::error::Result;
use keel_engine::ops;
use keel_engine::tape::{Init, Tape, Value};
use keel_engine::tensor::TensorType;

/// How a tower pools its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VisionHead {
    /// The class token of the features.
    ClassToken,
    /// y = W·attend(query, keys, values) + b of a learned query.
    Query,
    /// p = attend(Wq·probe + b, keys, values) projected; y = p + mlp(norm(p)).
    Probe,
}

/// Records the pooled output [B, C] of `features` [B, T, C], the tower's output with its class token.
///
/// # Errors
/// Whatever recording reports.
pub fn vision_head(
    tape: &mut Tape,
    config: &VisionConfig,
    head: VisionHead,
    features: Value,
) -> Result<Value> {
    let batch = tape.shape(features).dims()[0];
    let heads = config.block().heads;
    let width = config.width;
    let scope = Scope::module("vision_head");
    let xavier = Init::XavierUniform;
    let attend = |tape: &mut Tape, query: Value, bias: bool| -> Result<Value> {
        let shape = [2 * width, width];
        let (weight, bias) = projection(tape, &scope, "key_value", shape, xavier, bias)?;
        let key_value = ops::linear(tape, features, weight, bias)?;
        let y = ops::cross_attention(tape, query, key_value, heads)?;
        let y = tape.reshape(y, [batch, width])?;
        let (weight, bias) = projection(tape, &scope, "out", [width, width], xavier, true)?;
        ops::linear(tape, y, weight, bias)
    };
    tape.scoped(scope.path(), |tape| match head {
        VisionHead::ClassToken => {
            let place = tape.input(ModelInput::ClassToken, TensorType::i32([batch]));
            ops::select_token(tape, features, place)
        }
        // A learned query that is used as it is (AIM); the probe of SigLIP goes through a projection first and has an
        // MLP behind.
        VisionHead::Query => {
            let query = scope.plain(tape, "probe", [1, width], Init::Normal(0.02))?;
            let query = ops::cast(tape, query, tape.precision())?;
            attend(tape, query, config.qkv_bias)
        }
        VisionHead::Probe => {
            let probe = scope.plain(tape, "probe", [1, width], Init::Normal(0.02))?;
            let probe = ops::cast(tape, probe, tape.precision())?;
            let shape = [width, width];
            let (weight, bias) = projection(tape, &scope, "query", shape, xavier, true)?;
            let query = ops::linear(tape, probe, weight, bias)?;
            let pooled = attend(tape, query, true)?;
            let settings = BlockConfig {
                norm: NormKind::Layer,
                bias: true,
                layer_scale: None,
                lora: None,
                ..config.block()
            };
            feed_forward(tape, &scope, pooled, &settings)
        }
    })
}
