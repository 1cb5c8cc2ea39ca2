//! DINOv3 (Siméoni et al. 2025): rotary positions from the centre of the image, registers, no bias on keys; a gated feed-forward half
//! in its larger towers.

use serde_json::json;

use super::family::{
    CLASSIC, COLOURS, ImageProcessor, LAYER_SCALE, Layout, Pooling, VisionForm, activation_name,
    classic_activation, norm_epsilon, registers, sizes,
};
use super::key::{Key, plain};
use super::names::Names;
use crate::pos_embed_interp::Scaling;
use keel_model::{LearnedPositions, MlpKind, VisionConfig};

pub(super) const FORMS: &[VisionForm] = &[VisionForm {
    title: "DINOv3 vision tower",
    model_types: &["dinov3_vit"],
    pair_type: None,
    form: VisionConfig {
        class_token: true,
        learned_positions: LearnedPositions::None,
        ..CLASSIC
    },
    keys: &[
        &[COLOURS],
        &sizes([384, 12, 6, 1536], [224, 16]),
        FEED_FORWARD,
        BIASES,
        &[
            norm_epsilon("layer_norm_eps", 1e-5),
            LAYER_SCALE,
            registers("num_register_tokens", 0),
            Key::Own {
                name: "rope_theta",
                read: |settings, config| {
                    config.rope_theta = Some(settings.positive("rope_theta", 100.0)?);
                    Ok(())
                },
                write: |config| plain(config.rope_theta.unwrap_or(0.0)),
            },
        ],
    ],
    layouts: &[Layout {
        name: "dinov3",
        architecture: "DINOv3ViTModel",
        model_type: "dinov3_vit",
        naming: 0,
        keys: &[
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "num_register_tokens",
            "image_size",
            "patch_size",
            "num_channels",
            "hidden_act",
            "use_gated_mlp",
            "architectures",
            "model_type",
            "layer_norm_eps",
            "layerscale_value",
            "rope_theta",
            "query_bias",
            "key_bias",
            "value_bias",
            "proj_bias",
            "mlp_bias",
        ],
        is_general: false,
    }],
    names: NAMES,
    probes: &["embeddings.patch_embeddings.weight"],
    ignored: &[("embeddings.mask_token", "mask token of pre-training")],
    patches_by_pixel: false,
    size_key: "image_size",
    tell_size: None,
    // It has no table of positions.
    scaling: Scaling::Bicubic,
    takes_any_size: true,
    pooling: Some(Pooling::CLASS_TOKEN),
    processor: &ImageProcessor {
        class: "DINOv3ViTImageProcessor",
        marker: "DINOv3ViT",
        by_shorter_edge: false,
        cuts_of_both: false,
    },
}];

/// Whether the feed-forward half is gated, and the activation.
const FEED_FORWARD: &[Key<VisionConfig>] = &[
    Key::Own {
        name: "use_gated_mlp",
        read: |settings, config| {
            if settings.switch("use_gated_mlp", false)? {
                config.mlp = MlpKind::SwiGlu;
            }
            Ok(())
        },
        write: |config| json!(config.mlp == MlpKind::SwiGlu),
    },
    Key::Own {
        name: "hidden_act",
        read: |settings, config| {
            if config.mlp == MlpKind::SwiGlu {
                return settings.only_text("hidden_act", "silu", "gelu");
            }
            classic_activation(settings, "gelu", config)
        },
        write: activation_name,
    },
];

/// Queries and values have biases together, and keys have none without them; so have the other two projections.
const BIASES: &[Key<VisionConfig>] = &[
    Key::Switch {
        name: "query_bias",
        default: true,
        field: |config| &mut config.qkv_bias,
    },
    Key::Own {
        name: "value_bias",
        read: |settings, config| settings.only_switch("value_bias", config.qkv_bias, true),
        write: |config| json!(config.qkv_bias),
    },
    Key::Own {
        name: "key_bias",
        read: |settings, config| {
            if !config.qkv_bias {
                return settings.only_switch("key_bias", false, false);
            }
            config.key_bias = settings.switch("key_bias", false)?;
            Ok(())
        },
        write: |config| json!(config.qkv_bias && config.key_bias),
    },
    Key::Switch {
        name: "proj_bias",
        default: true,
        field: |config| &mut config.bias,
    },
    Key::Own {
        name: "mlp_bias",
        read: |settings, config| settings.only_switch("mlp_bias", config.bias, true),
        write: |config| json!(config.bias),
    },
];

/// The names of published files, then those that transformers gives its modules since version 5.
const NAMES: &[Names] = &[
    ("patch_embed", &[&["embeddings.patch_embeddings"]]),
    ("class_token", &[&["embeddings.cls_token"]]),
    ("registers", &[&["embeddings.register_tokens"]]),
    (
        "blocks.{l}.norm1",
        &[&["layer.{l}.norm1"], &["model.layer.{l}.norm1"]],
    ),
    (
        "blocks.{l}.attention.qkv",
        &[
            &[
                "layer.{l}.attention.q_proj",
                "layer.{l}.attention.k_proj",
                "layer.{l}.attention.v_proj",
            ],
            &[
                "model.layer.{l}.attention.q_proj",
                "model.layer.{l}.attention.k_proj",
                "model.layer.{l}.attention.v_proj",
            ],
        ],
    ),
    (
        "blocks.{l}.attention.query_value",
        &[
            &["layer.{l}.attention.q_proj", "layer.{l}.attention.v_proj"],
            &[
                "model.layer.{l}.attention.q_proj",
                "model.layer.{l}.attention.v_proj",
            ],
        ],
    ),
    (
        "blocks.{l}.attention.out",
        &[
            &["layer.{l}.attention.o_proj"],
            &["model.layer.{l}.attention.o_proj"],
        ],
    ),
    (
        "blocks.{l}.layer_scale1",
        &[
            &["layer.{l}.layer_scale1.lambda1"],
            &["model.layer.{l}.layer_scale1.lambda1"],
        ],
    ),
    (
        "blocks.{l}.norm2",
        &[&["layer.{l}.norm2"], &["model.layer.{l}.norm2"]],
    ),
    (
        "blocks.{l}.mlp.fc1",
        &[&["layer.{l}.mlp.up_proj"], &["model.layer.{l}.mlp.up_proj"]],
    ),
    (
        "blocks.{l}.mlp.fc2",
        &[
            &["layer.{l}.mlp.down_proj"],
            &["model.layer.{l}.mlp.down_proj"],
        ],
    ),
    (
        "blocks.{l}.mlp.gate_up",
        &[
            &["layer.{l}.mlp.gate_proj", "layer.{l}.mlp.up_proj"],
            &[
                "model.layer.{l}.mlp.gate_proj",
                "model.layer.{l}.mlp.up_proj",
            ],
        ],
    ),
    (
        "blocks.{l}.mlp.down",
        &[
            &["layer.{l}.mlp.down_proj"],
            &["model.layer.{l}.mlp.down_proj"],
        ],
    ),
    (
        "blocks.{l}.layer_scale2",
        &[
            &["layer.{l}.layer_scale2.lambda1"],
            &["model.layer.{l}.layer_scale2.lambda1"],
        ],
    ),
    ("final_norm", &[&["norm"]]),
];
