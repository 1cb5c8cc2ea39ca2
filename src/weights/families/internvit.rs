//! InternViT (Chen et al. 2024): in the form of its own code and in that of transformers.

use serde_json::{Value as Json, json};

use super::clip::PROCESSOR;
use super::family::{
    CLASSIC, COLOURS, Layout, Pooling, VisionForm, activation_name, classic_activation,
    norm_epsilon, sizes,
};
use super::idle::Idle;
use super::key::{Key, plain};
use super::names::Names;
use crate::hf_config::Settings;
use crate::pos_embed_interp::Scaling;
use keel_base::error::Result;
use keel_model::{NormKind, VisionConfig};

pub(super) const FORMS: &[VisionForm] = &[
    VisionForm {
        title: "InternViT vision tower",
        model_types: &["intern_vit_6b"],
        pair_type: None,
        form: VisionConfig {
            class_token: true,
            final_norm: false,
            layer_scale: Some(0.1),
            ..CLASSIC
        },
        keys: &[
            &[
                COLOURS,
                Key::Own {
                    name: "norm_type",
                    read: |settings, config| read_norm(settings, "rms_norm", config),
                    write: norm_name,
                },
                Key::Switch {
                    name: "qk_normalization",
                    default: true,
                    field: |config| &mut config.qk_norm,
                },
                Key::Switch {
                    name: "qkv_bias",
                    default: false,
                    field: |config| &mut config.qkv_bias,
                },
                norm_epsilon("layer_norm_eps", 1e-6),
                ACTIVATION,
            ],
            EXPERTS,
            &sizes([3200, 48, 25, 12_800], [224, 14]),
        ],
        layouts: &[],
        names: NAMES,
        probes: PROBES,
        ignored: IGNORED,
        patches_by_pixel: false,
        size_key: "image_size",
        tell_size: None,
        scaling: Scaling::Bicubic,
        takes_any_size: false,
        pooling: Some(Pooling::CLASS_TOKEN),
        processor: &PROCESSOR,
    },
    VisionForm {
        title: "InternViT vision tower",
        model_types: &["internvl_vision"],
        pair_type: None,
        form: VisionConfig {
            class_token: true,
            ..CLASSIC
        },
        keys: &[TRANSFORMERS],
        layouts: &[Layout {
            name: "internvit",
            architecture: "InternVLVisionModel",
            model_type: "internvl_vision",
            naming: 1,
            keys: &[
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "intermediate_size",
                "image_size",
                "patch_size",
                "num_channels",
                "hidden_act",
                "architectures",
                "model_type",
                "layer_norm_eps",
                "norm_type",
                "attention_bias",
                "use_qk_norm",
                "use_absolute_position_embeddings",
                "use_mask_token",
                "use_mean_pooling",
                "layer_scale_init_value",
            ],
            // Towers of DINOv2 go into it, too.
            is_general: true,
        }],
        names: NAMES,
        probes: PROBES,
        ignored: IGNORED,
        patches_by_pixel: false,
        size_key: "image_size",
        tell_size: None,
        scaling: Scaling::Bicubic,
        takes_any_size: false,
        pooling: Some(Pooling::CLASS_TOKEN),
        processor: &PROCESSOR,
    },
];

/// The experts of a form that was never published with them switched on: without `use_moe` its other keys mean nothing.
const EXPERTS: &[Key<VisionConfig>] = &[
    Key::Idle(Idle::off("use_moe")),
    Key::Idle(Idle::any("capacity_factor")),
    Key::Idle(Idle::any("eval_capacity_factor")),
    Key::Idle(Idle::any("laux_allreduce")),
    Key::Idle(Idle::any("moe_coeff_ratio")),
    Key::Idle(Idle::any("moe_intermediate_size")),
    Key::Idle(Idle::any("moe_output_scale")),
    Key::Idle(Idle::any("noisy_gate_policy")),
    Key::Idle(Idle::any("num_experts")),
    Key::Idle(Idle::any("num_routed_experts")),
    Key::Idle(Idle::any("num_shared_experts")),
    Key::Idle(Idle::any("shared_expert_intermediate_size")),
    Key::Idle(Idle::any("use_residual")),
    Key::Idle(Idle::any("use_rts")),
    Key::Idle(Idle::any("use_weighted_residual")),
];

const TRANSFORMERS: &[Key<VisionConfig>] = &[
    COLOURS,
    Key::Own {
        name: "norm_type",
        read: |settings, config| read_norm(settings, "layer_norm", config),
        write: norm_name,
    },
    Key::Switch {
        name: "use_qk_norm",
        default: false,
        field: |config| &mut config.qk_norm,
    },
    Key::OnlySwitch {
        name: "use_absolute_position_embeddings",
        want: true,
        default: true,
    },
    Key::IdleSwitch {
        name: "use_mask_token",
    },
    Key::Switch {
        name: "attention_bias",
        default: false,
        field: |config| &mut config.qkv_bias,
    },
    Key::Own {
        name: "use_mean_pooling",
        read: |settings, config| {
            config.final_norm = !settings.switch("use_mean_pooling", true)?;
            Ok(())
        },
        write: |config| json!(!config.final_norm),
    },
    Key::Own {
        name: "layer_scale_init_value",
        read: |settings, config| {
            config.layer_scale = Some(settings.float("layer_scale_init_value", 0.1)?);
            Ok(())
        },
        write: |config| plain(config.layer_scale.unwrap_or(0.0)),
    },
    // The final norm of transformers is a LayerNorm whatever the blocks have.
    Key::Check(|settings, config| {
        if config.final_norm && config.norm == NormKind::Rms {
            let want = "layer_norm where use_mean_pooling is false";
            return Err(settings.refuse("norm_type", want, "rms_norm"));
        }
        Ok(())
    }),
    norm_epsilon("layer_norm_eps", 1e-6),
    // The norms of queries and keys have an ε that no key says.
    Key::Check(|settings, config| {
        if config.qk_norm && config.norm_epsilon != QK_EPSILON {
            let want = "1e-6 where use_qk_norm is true";
            return Err(settings.refuse("layer_norm_eps", want, config.norm_epsilon));
        }
        Ok(())
    }),
    ACTIVATION,
    Key::Edges {
        name: "image_size",
        default: 448,
        field: |config| &mut config.image_size,
    },
    Key::Edges {
        name: "patch_size",
        default: 14,
        field: |config| &mut config.patch_size,
    },
    Key::Count {
        name: "hidden_size",
        default: 1024,
        field: |config| &mut config.width,
    },
    Key::Count {
        name: "num_hidden_layers",
        default: 24,
        field: |config| &mut config.depth,
    },
    Key::Count {
        name: "num_attention_heads",
        default: 16,
        field: |config| &mut config.heads,
    },
    Key::Count {
        name: "intermediate_size",
        default: 4096,
        field: |config| &mut config.mlp_width,
    },
];

/// ε of the norms of queries and keys in transformers.
const QK_EPSILON: f32 = 1e-6;

const ACTIVATION: Key<VisionConfig> = Key::Own {
    name: "hidden_act",
    read: |settings, config| classic_activation(settings, "gelu", config),
    write: activation_name,
};

fn read_norm(settings: &Settings, default: &'static str, config: &mut VisionConfig) -> Result<()> {
    config.norm = match settings.text("norm_type", default)? {
        "layer_norm" => NormKind::Layer,
        "rms_norm" => NormKind::Rms,
        other => return Err(settings.refuse("norm_type", "layer_norm or rms_norm", other)),
    };
    Ok(())
}

fn norm_name(config: &VisionConfig) -> Json {
    match config.norm {
        NormKind::Layer => json!("layer_norm"),
        NormKind::Rms => json!("rms_norm"),
    }
}

const PROBES: &[&str] = &[
    "embeddings.patch_embedding.weight",
    "embeddings.patch_embeddings.projection.weight",
];

const IGNORED: &[(&str, &str)] = &[("embeddings.mask_token", "mask token of pre-training")];

/// The names of its own code, then those of transformers.
const NAMES: &[Names] = &[
    (
        "patch_embed",
        &[
            &["embeddings.patch_embedding"],
            &["embeddings.patch_embeddings.projection"],
        ],
    ),
    (
        "position",
        &[
            &["embeddings.position_embedding"],
            &["embeddings.position_embeddings"],
        ],
    ),
    (
        "class_token",
        &[&["embeddings.class_embedding"], &["embeddings.cls_token"]],
    ),
    (
        "blocks.{l}.norm1",
        &[
            &["encoder.layers.{l}.norm1"],
            &["encoder.layer.{l}.layernorm_before"],
        ],
    ),
    (
        "blocks.{l}.attention.qkv",
        &[
            &["encoder.layers.{l}.attn.qkv"],
            &[
                "encoder.layer.{l}.attention.q_proj",
                "encoder.layer.{l}.attention.k_proj",
                "encoder.layer.{l}.attention.v_proj",
            ],
        ],
    ),
    (
        "blocks.{l}.attention.q_norm",
        &[
            &["encoder.layers.{l}.attn.q_norm"],
            &["encoder.layer.{l}.attention.q_norm"],
        ],
    ),
    (
        "blocks.{l}.attention.k_norm",
        &[
            &["encoder.layers.{l}.attn.k_norm"],
            &["encoder.layer.{l}.attention.k_norm"],
        ],
    ),
    (
        "blocks.{l}.attention.out",
        &[
            &["encoder.layers.{l}.attn.proj"],
            &["encoder.layer.{l}.attention.projection_layer"],
        ],
    ),
    (
        "blocks.{l}.layer_scale1",
        &[&["encoder.layers.{l}.ls1"], &["encoder.layer.{l}.lambda_1"]],
    ),
    (
        "blocks.{l}.norm2",
        &[
            &["encoder.layers.{l}.norm2"],
            &["encoder.layer.{l}.layernorm_after"],
        ],
    ),
    (
        "blocks.{l}.mlp.fc1",
        &[
            &["encoder.layers.{l}.mlp.fc1"],
            &["encoder.layer.{l}.mlp.fc1"],
        ],
    ),
    (
        "blocks.{l}.mlp.fc2",
        &[
            &["encoder.layers.{l}.mlp.fc2"],
            &["encoder.layer.{l}.mlp.fc2"],
        ],
    ),
    (
        "blocks.{l}.layer_scale2",
        &[&["encoder.layers.{l}.ls2"], &["encoder.layer.{l}.lambda_2"]],
    ),
    ("final_norm", &[&["layernorm"]]),
];
