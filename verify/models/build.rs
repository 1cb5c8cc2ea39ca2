//! The engine's configurations from those of the goldens.

use keel::model::{LanguageConfig, LearnedPositions, MlpKind, NormKind, TextConfig, VisionConfig};
use serde_json::Value as Json;

fn number(config: &Json, key: &str) -> usize {
    config[key]
        .as_u64()
        .unwrap_or_else(|| panic!("no number {key}")) as usize
}

fn float(config: &Json, key: &str) -> f32 {
    config[key]
        .as_f64()
        .unwrap_or_else(|| panic!("no number {key}")) as f32
}

fn switch(config: &Json, key: &str) -> bool {
    config[key]
        .as_bool()
        .unwrap_or_else(|| panic!("no switch {key}"))
}

fn norm(config: &Json) -> NormKind {
    match config["norm"].as_str() {
        Some("rms_norm") => NormKind::Rms,
        Some("layer_norm") => NormKind::Layer,
        other => panic!("no norm {other:?}"),
    }
}

fn mlp(config: &Json) -> MlpKind {
    match (config["mlp"].as_str(), config["activation"].as_str()) {
        (Some("swiglu"), Some("silu")) => MlpKind::SwiGlu,
        (Some("classic"), Some("gelu")) => MlpKind::Gelu,
        (Some("classic"), Some("gelu_tanh")) => MlpKind::GeluTanh,
        (Some("classic"), Some("quick_gelu")) => MlpKind::GeluQuick,
        other => panic!("no feed-forward half {other:?}"),
    }
}

/// One switch for all biases but those of queries, keys and values.
fn bias(config: &Json) -> bool {
    let out = switch(config, "out_bias");
    assert_eq!(out, switch(config, "mlp_bias"));
    out
}

pub fn vision_config(config: &Json) -> VisionConfig {
    let vision = VisionConfig {
        image_size: number(config, "image_size"),
        patch_size: number(config, "patch_size"),
        width: number(config, "width"),
        depth: number(config, "layers"),
        heads: number(config, "heads"),
        mlp_width: number(config, "mlp_width"),
        norm: norm(config),
        norm_epsilon: float(config, "norm_eps"),
        mlp: mlp(config),
        patch_bias: switch(config, "patch_bias"),
        patch_norm: switch(config, "patch_norm"),
        class_token: switch(config, "class_token"),
        pre_norm: switch(config, "pre_norm"),
        final_norm: switch(config, "final_norm"),
        qkv_bias: switch(config, "qkv_bias"),
        bias: bias(config),
        layer_scale: switch(config, "layer_scale").then_some(1.0),
        registers: 0,
        learned_positions: LearnedPositions::default(),
        rope_theta: None,
        key_bias: true,
        qk_norm: false,
        lora: None,
    };
    vision.validate().expect("the golden's tower is possible");
    vision
}

pub fn text_config(config: &Json) -> TextConfig {
    assert!(switch(config, "qkv_bias") && bias(config) && switch(config, "final_norm"));
    assert_eq!(norm(config), NormKind::Layer);
    let text = TextConfig {
        vocabulary: number(config, "vocabulary"),
        context_length: number(config, "context"),
        width: number(config, "width"),
        depth: number(config, "layers"),
        heads: number(config, "heads"),
        mlp_width: number(config, "mlp_width"),
        mlp: mlp(config),
        norm_epsilon: float(config, "norm_eps"),
    };
    text.validate().expect("the golden's tower is possible");
    text
}

pub fn language_config(config: &Json) -> LanguageConfig {
    let language = LanguageConfig {
        vocabulary: number(config, "vocabulary"),
        width: number(config, "width"),
        depth: number(config, "layers"),
        heads: number(config, "heads"),
        key_value_heads: number(config, "kv_heads"),
        head_dim: number(config, "head_dim"),
        mlp_width: number(config, "mlp_width"),
        rope_theta: float(config, "rope_theta"),
        norm_epsilon: float(config, "norm_eps"),
        qkv_bias: switch(config, "qkv_bias"),
        qk_norm: switch(config, "qk_norm"),
        tied_embeddings: switch(config, "tied"),
        lora: None,
    };
    language
        .validate()
        .expect("the golden's decoder is possible");
    language
}
