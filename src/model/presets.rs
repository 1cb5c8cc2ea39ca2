//! Published model sizes, and the small ones that the built-in recipes train from nothing.

use super::{LanguageConfig, LearnedPositions, MlpKind, NormKind, VisionConfig};
use keel_base::error::{Error, Result};

/// A published vision tower. With it no other key is required: one that stands beside it overrides the preset's value.
pub const VISION_PRESETS: &[&str] = &[
    "sailvit-large",
    "sailvit-huge",
    "clip-large-14",
    "siglip-so400m-14-384",
    "internvit-300m-448",
    "dinov2-large-14-518",
];

/// A published language model. With it no other key is required: one that stands beside it overrides the preset's value.
pub const LANGUAGE_PRESETS: &[&str] = &[
    "qwen2.5-0.5b",
    "qwen2.5-1.5b",
    "qwen2.5-7b",
    "qwen3-0.6b",
    "qwen3-1.7b",
];

/// The AIMv2 form that SAILViT has (Fini et al. 2024; SAIL-VL2 report, §2.1).
fn aimv2(width: usize, heads: usize, mlp_width: usize) -> VisionConfig {
    VisionConfig {
        image_size: 448,
        patch_size: 14,
        width,
        depth: 24,
        heads,
        mlp_width,
        norm: NormKind::Rms,
        norm_epsilon: 1e-5,
        mlp: MlpKind::SwiGlu,
        patch_bias: true,
        patch_norm: true,
        class_token: false,
        pre_norm: false,
        final_norm: true,
        qkv_bias: false,
        bias: false,
        layer_scale: None,
        registers: 0,
        learned_positions: LearnedPositions::ClassTokenAndPatches,
        rope_theta: None,
        key_bias: true,
        qk_norm: false,
        lora: None,
    }
}

/// The classic form: LayerNorm, biases, GELU.
fn classic(image_size: usize, width: usize, depth: usize, heads: usize) -> VisionConfig {
    VisionConfig {
        image_size,
        patch_size: 14,
        width,
        depth,
        heads,
        mlp_width: 4 * width,
        norm: NormKind::Layer,
        norm_epsilon: 1e-6,
        mlp: MlpKind::Gelu,
        patch_bias: true,
        patch_norm: false,
        class_token: true,
        pre_norm: false,
        final_norm: true,
        qkv_bias: true,
        bias: true,
        layer_scale: None,
        registers: 0,
        learned_positions: LearnedPositions::ClassTokenAndPatches,
        rope_theta: None,
        key_bias: true,
        qk_norm: false,
        lora: None,
    }
}

/// The vision tower of that name.
///
/// # Errors
/// [`Error::Setting`] listing the presets.
pub fn vision_preset(name: &str) -> Result<VisionConfig> {
    Ok(match name {
        "sailvit-large" => aimv2(1024, 8, 2816),
        "sailvit-huge" => aimv2(1536, 12, 4096),
        // Radford et al. 2021; the final norm of the public weights stands on the class token alone.
        "clip-large-14" => VisionConfig {
            norm_epsilon: 1e-5,
            mlp: MlpKind::GeluQuick,
            patch_bias: false,
            pre_norm: true,
            ..classic(224, 1024, 24, 16)
        },
        // Zhai et al. 2023; 27 × 27 patches of a 384-pixel image.
        "siglip-so400m-14-384" => VisionConfig {
            mlp: MlpKind::GeluTanh,
            mlp_width: 4304,
            class_token: false,
            ..classic(384, 1152, 27, 16)
        },
        // Chen et al. 2024.
        "internvit-300m-448" => VisionConfig {
            final_norm: false,
            layer_scale: Some(0.1),
            ..classic(448, 1024, 24, 16)
        },
        // Oquab et al. 2024, without the mask token, which only its pre-training uses.
        "dinov2-large-14-518" => VisionConfig {
            layer_scale: Some(1.0),
            ..classic(518, 1024, 24, 16)
        },
        _ => return Err(unknown("vision preset", name, VISION_PRESETS)),
    })
}

/// The language model of that name (Qwen2.5 and Qwen3 technical reports).
///
/// # Errors
/// [`Error::Setting`] listing the presets.
pub fn language_preset(name: &str) -> Result<LanguageConfig> {
    let qwen = |width, mlp_width, depth, heads, key_value_heads, head_dim| LanguageConfig {
        vocabulary: 151_936,
        width,
        depth,
        heads,
        key_value_heads,
        head_dim,
        mlp_width,
        rope_theta: 1e6,
        norm_epsilon: 1e-6,
        qkv_bias: true,
        qk_norm: false,
        tied_embeddings: true,
        lora: None,
    };
    let qwen3 = |config| LanguageConfig {
        qkv_bias: false,
        qk_norm: true,
        ..config
    };
    Ok(match name {
        "qwen2.5-0.5b" => qwen(896, 4864, 24, 14, 2, 64),
        "qwen2.5-1.5b" => qwen(1536, 8960, 28, 12, 2, 128),
        "qwen2.5-7b" => LanguageConfig {
            vocabulary: 152_064,
            tied_embeddings: false,
            ..qwen(3584, 18_944, 28, 28, 4, 128)
        },
        "qwen3-0.6b" => qwen3(qwen(1024, 3072, 28, 16, 8, 128)),
        "qwen3-1.7b" => qwen3(qwen(2048, 6144, 28, 16, 8, 128)),
        _ => return Err(unknown("language preset", name, LANGUAGE_PRESETS)),
    })
}

fn unknown(what: &str, name: &str, known: &[&str]) -> Error {
    Error::setting(what, format!("one of {}", known.join(", ")), name)
}
