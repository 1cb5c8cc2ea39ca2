//! DINOv2 (Oquab et al. 2024), in the classic form and in the gated one of its largest tower, and with registers (Darcet et al. 2024).

use serde_json::json;

use super::family::{
    CLASSIC, COLOURS, ImageProcessor, LAYER_SCALE, Layout, Pooling, VisionForm, activation_name,
    classic_activation, norm_epsilon, registers, sizes,
};
use super::idle::Idle;
use super::key::Key;
use super::names::Names;
use crate::pos_embed_interp::Scaling;
use keel_model::{MlpKind, VisionConfig};

pub(super) const FORMS: &[VisionForm] = &[
    VisionForm {
        keys: &[
            &[
                COLOURS,
                Key::IdleSwitch {
                    name: "use_mask_token",
                },
            ],
            SIZES,
            FEED_FORWARD,
            REST,
        ],
        layouts: &[Layout {
            name: "dinov2",
            architecture: "Dinov2Model",
            model_type: "dinov2",
            naming: 0,
            keys: &[
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "use_mask_token",
                "image_size",
                "patch_size",
                "num_channels",
                "hidden_act",
                "architectures",
                "model_type",
                "layer_norm_eps",
                "mlp_ratio",
                "use_swiglu_ffn",
                "qkv_bias",
                "layerscale_value",
            ],
            is_general: false,
        }],
        ..DINOV2
    },
    VisionForm {
        title: "DINOv2 vision tower (with registers)",
        model_types: &["dinov2_with_registers"],
        keys: &[
            &[COLOURS, registers("num_register_tokens", 4)],
            INTERPOLATION,
            SIZES,
            FEED_FORWARD,
            REST,
        ],
        layouts: &[Layout {
            name: "dinov2-registers",
            architecture: "Dinov2WithRegistersModel",
            model_type: "dinov2_with_registers",
            naming: 0,
            keys: &[
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_register_tokens",
                "image_size",
                "patch_size",
                "num_channels",
                "hidden_act",
                "architectures",
                "model_type",
                "layer_norm_eps",
                "mlp_ratio",
                "use_swiglu_ffn",
                "qkv_bias",
                "layerscale_value",
            ],
            is_general: false,
        }],
        // Its code smooths where it makes the table smaller, which DINOv2's does not.
        scaling: Scaling::FilteredBicubic,
        ..DINOV2
    },
];

/// How files of the first conversion say that positions are scaled, before the code did so always.
const INTERPOLATION: &[Key<VisionConfig>] = &[
    Key::OnlySwitch {
        name: "interpolate_antialias",
        want: true,
        default: true,
    },
    Key::Idle(Idle::off("interpolate_offset")),
];

/// What both share.
const DINOV2: VisionForm = VisionForm {
    title: "DINOv2 vision tower",
    model_types: &["dinov2"],
    pair_type: None,
    form: VisionConfig {
        class_token: true,
        ..CLASSIC
    },
    keys: &[],
    layouts: &[],
    names: NAMES,
    probes: &["embeddings.patch_embeddings.projection.weight"],
    ignored: &[
        ("embeddings.mask_token", "mask token of pre-training"),
        ("classifier.", "classifier"),
    ],
    patches_by_pixel: false,
    size_key: "image_size",
    tell_size: None,
    scaling: Scaling::Bicubic,
    takes_any_size: true,
    pooling: Some(Pooling::CLASS_TOKEN),
    processor: &ImageProcessor {
        class: "BitImageProcessor",
        marker: "Bit",
        by_shorter_edge: true,
        cuts_of_both: false,
    },
};

// The feed-forward width is a ratio, and intermediate_size no key of these files.
const SIZES: &[Key<VisionConfig>] = &sizes([768, 12, 12, 0], [224, 14]);

const REST: &[Key<VisionConfig>] = &[
    norm_epsilon("layer_norm_eps", 1e-6),
    Key::Switch {
        name: "qkv_bias",
        default: true,
        field: |config| &mut config.qkv_bias,
    },
    LAYER_SCALE,
];

/// The feed-forward width, whether it is gated, and the activation: each row goes by what those before it have read.
const FEED_FORWARD: &[Key<VisionConfig>] = &[
    Key::Own {
        name: "mlp_ratio",
        read: |settings, config| {
            let ratio = f64::from(settings.float("mlp_ratio", 4.0)?);
            config.mlp_width = (f64::from(config.width as u32) * ratio) as usize;
            Ok(())
        },
        write: |config| json!(ratio(config)),
    },
    Key::Own {
        name: "use_swiglu_ffn",
        read: |settings, config| {
            if settings.switch("use_swiglu_ffn", false)? {
                config.mlp = MlpKind::SwiGlu;
                config.mlp_width = gated_width(config.mlp_width);
            }
            Ok(())
        },
        write: |config| json!(is_gated(config)),
    },
    Key::Own {
        name: "hidden_act",
        read: |settings, config| {
            // The activation of the gated form is silu whatever hidden_act says.
            if is_gated(config) {
                settings.text("hidden_act", "gelu")?;
                return Ok(());
            }
            classic_activation(settings, "gelu", config)
        },
        write: |config| {
            if is_gated(config) {
                json!("gelu")
            } else {
                activation_name(config)
            }
        },
    },
];

fn is_gated(config: &VisionConfig) -> bool {
    config.mlp == MlpKind::SwiGlu
}

/// The whole number that gives the feed-forward width, or the next below: transformers takes no other since version 5. What it
/// cannot say is found by reading back what was written.
fn ratio(config: &VisionConfig) -> usize {
    let wide = if is_gated(config) {
        // Two thirds of a multiple of the width were rounded up to whole vectors.
        config.mlp_width * 3 / 2
    } else {
        config.mlp_width
    };
    wide / config.width.max(1)
}

/// The feed-forward width of a gated tower of which a classic one would have `wide`: two thirds, so that three matrices hold
/// about as much as two, in whole vectors of eight.
fn gated_width(wide: usize) -> usize {
    (wide.saturating_mul(2) / 3).next_multiple_of(8)
}

/// The names of published files, then those that transformers gives its modules since version 5.
const NAMES: &[Names] = &[
    (
        "patch_embed",
        &[&["embeddings.patch_embeddings.projection"]],
    ),
    ("position", &[&["embeddings.position_embeddings"]]),
    ("class_token", &[&["embeddings.cls_token"]]),
    ("registers", &[&["embeddings.register_tokens"]]),
    ("blocks.{l}.norm1", &[&["encoder.layer.{l}.norm1"]]),
    (
        "blocks.{l}.attention.qkv",
        &[
            &[
                "encoder.layer.{l}.attention.attention.query",
                "encoder.layer.{l}.attention.attention.key",
                "encoder.layer.{l}.attention.attention.value",
            ],
            &[
                "encoder.layer.{l}.attention.q_proj",
                "encoder.layer.{l}.attention.k_proj",
                "encoder.layer.{l}.attention.v_proj",
            ],
        ],
    ),
    (
        "blocks.{l}.attention.out",
        &[
            &["encoder.layer.{l}.attention.output.dense"],
            &["encoder.layer.{l}.attention.o_proj"],
        ],
    ),
    (
        "blocks.{l}.layer_scale1",
        &[&["encoder.layer.{l}.layer_scale1.lambda1"]],
    ),
    ("blocks.{l}.norm2", &[&["encoder.layer.{l}.norm2"]]),
    ("blocks.{l}.mlp.fc1", &[&["encoder.layer.{l}.mlp.fc1"]]),
    ("blocks.{l}.mlp.fc2", &[&["encoder.layer.{l}.mlp.fc2"]]),
    (
        "blocks.{l}.mlp.gate_up",
        &[
            &["encoder.layer.{l}.mlp.weights_in"],
            &[
                "encoder.layer.{l}.mlp.gate_proj",
                "encoder.layer.{l}.mlp.up_proj",
            ],
        ],
    ),
    (
        "blocks.{l}.mlp.down",
        &[
            &["encoder.layer.{l}.mlp.weights_out"],
            &["encoder.layer.{l}.mlp.down_proj"],
        ],
    ),
    (
        "blocks.{l}.layer_scale2",
        &[&["encoder.layer.{l}.layer_scale2.lambda1"]],
    ),
    ("final_norm", &[&["layernorm"]]),
];
