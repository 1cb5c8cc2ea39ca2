//! Vision settings: AIMv2 and SAILViT, CLIP, SigLIP and SigLIP 2, InternViT, DINOv2.
//!
//! Where a key is absent the family's own default stands, as in the code that published it.

use super::families::{AIMV2, AIMV2_HEAD, CLIP, DINOV2, INTERNVIT, Names, SIGLIP_HEAD};
use super::head::Pooling;
use super::settings::Settings;
use keel_base::error::{Error, Result};
use keel_model::{MlpKind, NormKind, VisionConfig, VisionHead};

/// A family of towers, as its folder says it.
#[derive(Debug)]
pub(super) struct VisionFamily {
    pub title: &'static str,
    pub names: &'static [Names],
    /// Tensors by which the tower's place among others is found.
    pub probes: &'static [&'static str],
    /// Beginnings of names that Keel's tower does without, and what they are.
    pub aside: &'static [(&'static str, &'static str)],
    /// Whether the patch projection is a matrix over (row, column, colour), not a convolution.
    pub patches_by_pixel: bool,
    /// How the tower pools its tokens, where it does.
    pub pooling: Option<Pooling>,
}

/// What a tower is trained without; [`super::Part::head`] reads it.
const HEAD: (&str, &str) = ("head.", "attention pooling head");

/// Model types of towers.
pub(super) const VISION_TYPES: &[&str] = &[
    "aimv2",
    "aimv2_vision_model",
    "sailvit",
    "clip_vision_model",
    "siglip_vision_model",
    "siglip2_vision_model",
    "intern_vit_6b",
    "internvl_vision",
    "dinov2",
];

/// Reads a tower's settings. `kind` is one of [`VISION_TYPES`].
///
/// # Errors
/// [`Error::Setting`] naming the key that is no number, that Keel has no code for, or that Keel does not know.
pub(super) fn read(kind: &str, settings: &Settings) -> Result<(VisionFamily, VisionConfig)> {
    settings.only_number("num_channels", 3, 3)?;
    match kind {
        "aimv2" | "aimv2_vision_model" | "sailvit" => aimv2(settings),
        "clip_vision_model" => clip(settings),
        "siglip_vision_model" => siglip(settings, false),
        "siglip2_vision_model" => siglip(settings, true),
        "intern_vit_6b" => internvit(settings, true),
        "internvl_vision" => internvit(settings, false),
        "dinov2" => dinov2(settings),
        other => Err(Error::setting(
            "config.json: model_type",
            format!("one of {}", VISION_TYPES.join(", ")),
            other,
        )),
    }
}

/// Width, depth, heads and feed-forward width, whose keys all families share, then the classic form.
fn sizes(
    settings: &Settings,
    [width, depth, heads, mlp_width]: [usize; 4],
    [image_size, patch_size]: [usize; 2],
) -> Result<VisionConfig> {
    Ok(VisionConfig {
        image_size: settings.number("image_size", image_size)?,
        patch_size: settings.number("patch_size", patch_size)?,
        width: settings.number("hidden_size", width)?,
        depth: settings.number("num_hidden_layers", depth)?,
        heads: settings.number("num_attention_heads", heads)?,
        mlp_width: settings.number("intermediate_size", mlp_width)?,
        norm: NormKind::Layer,
        norm_epsilon: 1e-6,
        mlp: MlpKind::Gelu,
        patch_bias: true,
        patch_norm: false,
        class_token: false,
        pre_norm: false,
        final_norm: true,
        qkv_bias: true,
        bias: true,
        layer_scale: None,
    })
}

fn activation(settings: &Settings, default: &'static str) -> Result<MlpKind> {
    match settings.text("hidden_act", default)? {
        "gelu" => Ok(MlpKind::Gelu),
        "gelu_pytorch_tanh" | "gelu_new" => Ok(MlpKind::GeluTanh),
        "quick_gelu" => Ok(MlpKind::GeluQuick),
        other => Err(settings.refuse("hidden_act", "gelu, gelu_pytorch_tanh or quick_gelu", other)),
    }
}

fn aimv2(settings: &Settings) -> Result<(VisionFamily, VisionConfig)> {
    let family = VisionFamily {
        title: "AIMv2 vision tower (the SAILViT form)",
        names: AIMV2,
        probes: &[
            "preprocessor.patchifier.proj.weight",
            "embeddings.patch_embed.weight",
        ],
        aside: &[HEAD],
        patches_by_pixel: false,
        pooling: settings.switch("use_head", true)?.then_some(Pooling {
            head: VisionHead::Query,
            names: AIMV2_HEAD,
        }),
    };
    settings.only_switch("is_native", false, false)?;
    match settings.text("hidden_act", "silu")? {
        "silu" => {}
        other => return Err(settings.refuse("hidden_act", "silu", other)),
    }
    let qkv_bias = settings.switch("qkv_bias", false)?;
    // In transformers the output projection follows qkv_bias; in the model's own code it follows use_bias, as the rest.
    let bias = match settings.has("use_bias") {
        true => settings.switch("use_bias", false)?,
        false => {
            let bias = settings.switch("mlp_bias", false)?;
            if settings.has("mlp_bias") && bias != qkv_bias {
                return Err(settings.refuse("mlp_bias", format!("{qkv_bias} as qkv_bias"), bias));
            }
            bias
        }
    };
    let config = VisionConfig {
        norm: NormKind::Rms,
        norm_epsilon: settings.float("rms_norm_eps", 1e-5)?,
        mlp: MlpKind::SwiGlu,
        patch_norm: true,
        qkv_bias,
        bias,
        ..sizes(settings, [1024, 24, 8, 2816], [224, 14])?
    };
    Ok((family, config))
}

fn clip(settings: &Settings) -> Result<(VisionFamily, VisionConfig)> {
    let family = VisionFamily {
        title: "CLIP vision tower",
        names: CLIP,
        probes: &["embeddings.patch_embedding.weight"],
        aside: &[
            ("embeddings.position_ids", "positions counted out"),
            ("visual_projection.", "projection to the contrastive space"),
        ],
        patches_by_pixel: false,
        pooling: Some(Pooling::CLASS_TOKEN),
    };
    let config = VisionConfig {
        norm_epsilon: settings.float("layer_norm_eps", 1e-5)?,
        mlp: activation(settings, "quick_gelu")?,
        patch_bias: false,
        class_token: true,
        pre_norm: true,
        ..sizes(settings, [768, 12, 12, 3072], [224, 32])?
    };
    Ok((family, config))
}

fn siglip(settings: &Settings, is_naflex: bool) -> Result<(VisionFamily, VisionConfig)> {
    let family = VisionFamily {
        title: match is_naflex {
            false => "SigLIP vision tower",
            true => "SigLIP 2 vision tower (NaFlex, at its own grid)",
        },
        names: CLIP,
        probes: &["embeddings.patch_embedding.weight"],
        aside: &[("embeddings.position_ids", "positions counted out"), HEAD],
        patches_by_pixel: is_naflex,
        pooling: settings
            .switch("vision_use_head", true)?
            .then_some(Pooling {
                head: VisionHead::Probe,
                names: SIGLIP_HEAD,
            }),
    };
    let mut config = VisionConfig {
        norm_epsilon: settings.float("layer_norm_eps", 1e-6)?,
        mlp: activation(settings, "gelu_pytorch_tanh")?,
        ..sizes(settings, [768, 12, 12, 3072], [224, 16])?
    };
    if is_naflex {
        let patches = settings.number("num_patches", 256)?;
        let side = patches.isqrt();
        if side * side != patches {
            return Err(settings.refuse("num_patches", "a square", patches));
        }
        config.image_size = side.saturating_mul(config.patch_size);
    }
    Ok((family, config))
}

fn internvit(settings: &Settings, is_own: bool) -> Result<(VisionFamily, VisionConfig)> {
    let family = VisionFamily {
        title: "InternViT vision tower",
        names: INTERNVIT,
        probes: &[
            "embeddings.patch_embedding.weight",
            "embeddings.patch_embeddings.projection.weight",
        ],
        aside: &[("embeddings.mask_token", "mask token of pre-training")],
        patches_by_pixel: false,
        pooling: Some(Pooling::CLASS_TOKEN),
    };
    let norm = match settings.text("norm_type", if is_own { "rms_norm" } else { "layer_norm" })? {
        "layer_norm" => NormKind::Layer,
        "rms_norm" => NormKind::Rms,
        other => return Err(settings.refuse("norm_type", "layer_norm or rms_norm", other)),
    };
    let (qkv_bias, final_norm, layer_scale) = match is_own {
        true => {
            settings.only_switch("qk_normalization", false, true)?;
            (settings.switch("qkv_bias", false)?, false, 0.1)
        }
        false => {
            settings.only_switch("use_qk_norm", false, false)?;
            settings.only_switch("use_absolute_position_embeddings", true, true)?;
            settings.switch("use_mask_token", false)?;
            (
                settings.switch("attention_bias", false)?,
                !settings.switch("use_mean_pooling", true)?,
                settings.float("layer_scale_init_value", 0.1)?,
            )
        }
    };
    // The final norm of transformers is a LayerNorm whatever the blocks have.
    if final_norm && norm == NormKind::Rms {
        return Err(settings.refuse(
            "norm_type",
            "layer_norm where use_mean_pooling is false",
            "rms_norm",
        ));
    }
    let defaults = match is_own {
        true => ([3200, 48, 25, 12_800], [224, 14]),
        false => ([1024, 24, 16, 4096], [448, 14]),
    };
    let config = VisionConfig {
        norm,
        norm_epsilon: settings.float("layer_norm_eps", 1e-6)?,
        mlp: activation(settings, "gelu")?,
        class_token: true,
        final_norm,
        qkv_bias,
        layer_scale: Some(layer_scale),
        ..sizes(settings, defaults.0, defaults.1)?
    };
    Ok((family, config))
}

fn dinov2(settings: &Settings) -> Result<(VisionFamily, VisionConfig)> {
    let family = VisionFamily {
        title: "DINOv2 vision tower",
        names: DINOV2,
        probes: &["embeddings.patch_embeddings.projection.weight"],
        aside: &[
            ("embeddings.mask_token", "mask token of pre-training"),
            ("classifier.", "classifier"),
        ],
        patches_by_pixel: false,
        pooling: Some(Pooling::CLASS_TOKEN),
    };
    settings.switch("use_mask_token", true)?;
    let mut config = sizes(settings, [768, 12, 12, 0], [224, 14])?;
    let wide = f64::from(config.width as u32) * f64::from(settings.float("mlp_ratio", 4.0)?);
    let wide = wide as usize;
    let is_gated = settings.switch("use_swiglu_ffn", false)?;
    config.mlp = match is_gated {
        // The activation of the gated form is silu whatever hidden_act says.
        true => {
            settings.text("hidden_act", "gelu")?;
            MlpKind::SwiGlu
        }
        false => activation(settings, "gelu")?,
    };
    config.mlp_width = match is_gated {
        true => (wide * 2 / 3).next_multiple_of(8),
        false => wide,
    };
    config.class_token = true;
    config.norm_epsilon = settings.float("layer_norm_eps", 1e-6)?;
    config.qkv_bias = settings.switch("qkv_bias", true)?;
    config.layer_scale = Some(settings.float("layerscale_value", 1.0)?);
    Ok((family, config))
}
