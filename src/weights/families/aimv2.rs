//! AIMv2 (Fini et al. 2024) and SAILViT, which has its form: under their own names and under those of transformers.

use serde_json::json;

use super::clip::PROCESSOR;
use super::family::{
    CLASSIC, COLOURS, Layout, Pooling, VisionForm, activation_name, norm_epsilon, sizes,
};
use super::key::Key;
use super::names::Names;
use crate::pos_embed_interp::Scaling;
use keel_model::{MlpKind, NormKind, VisionConfig, VisionHead};

pub(super) const FORMS: &[VisionForm] = &[VisionForm {
    title: "AIMv2 vision tower (the SAILViT form)",
    model_types: &["aimv2", "aimv2_vision_model", "sailvit"],
    pair_type: Some("aimv2"),
    form: VisionConfig {
        norm: NormKind::Rms,
        mlp: MlpKind::SwiGlu,
        patch_norm: true,
        ..CLASSIC
    },
    keys: &[KEYS, &sizes([1024, 24, 8, 2816], [224, 14])],
    layouts: &[
        Layout {
            name: "aimv2",
            architecture: "Aimv2VisionModel",
            model_type: "aimv2_vision_model",
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
                "rms_norm_eps",
                "qkv_bias",
                "mlp_bias",
                "is_native",
                "use_head",
            ],
            is_general: false,
        },
        Layout {
            name: "sailvit",
            architecture: "AIMv2Model",
            model_type: "aimv2",
            naming: 0,
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
                "rms_norm_eps",
                "qkv_bias",
                "use_bias",
            ],
            is_general: false,
        },
    ],
    names: NAMES,
    probes: &[
        "preprocessor.patchifier.proj.weight",
        "embeddings.patch_embed.weight",
    ],
    ignored: &[("head.", "attention pooling head")],
    patches_by_pixel: false,
    size_key: "image_size",
    tell_size: None,
    scaling: Scaling::Bicubic,
    takes_any_size: false,
    pooling: Some(Pooling {
        head: VisionHead::Query,
        names: HEAD,
    }),
    processor: &PROCESSOR,
}];

const KEYS: &[Key<VisionConfig>] = &[
    COLOURS,
    Key::Pools { name: "use_head" },
    Key::OnlySwitch {
        name: "is_native",
        want: false,
        default: false,
    },
    Key::Own {
        name: "hidden_act",
        read: |settings, _| settings.only_text("hidden_act", "silu", "silu"),
        write: activation_name,
    },
    Key::Switch {
        name: "qkv_bias",
        default: false,
        field: |config| &mut config.qkv_bias,
    },
    // In the model's own code the output projection follows use_bias, as the rest; in transformers it follows qkv_bias.
    Key::Own {
        name: "use_bias",
        read: |settings, config| {
            if settings.has("use_bias") {
                config.bias = settings.switch("use_bias", false)?;
            }
            Ok(())
        },
        write: |config| json!(config.bias),
    },
    Key::Own {
        name: "mlp_bias",
        read: |settings, config| {
            if settings.has("use_bias") {
                return Ok(());
            }
            config.bias = settings.switch("mlp_bias", false)?;
            if settings.has("mlp_bias") && config.bias != config.qkv_bias {
                let want = format!("{} as qkv_bias", config.qkv_bias);
                return Err(settings.refuse("mlp_bias", want, config.bias));
            }
            Ok(())
        },
        write: |config| json!(config.bias),
    },
    norm_epsilon("rms_norm_eps", 1e-5),
];

/// The names of the model's own code, then those of transformers.
const NAMES: &[Names] = &[
    (
        "patch_embed",
        &[
            &["preprocessor.patchifier.proj"],
            &["embeddings.patch_embed"],
        ],
    ),
    (
        "position",
        &[
            &["preprocessor.pos_embed"],
            &["embeddings.position_embedding.weight"],
        ],
    ),
    (
        "patch_norm",
        &[&["preprocessor.patchifier.norm"], &["embeddings.rms_norm"]],
    ),
    (
        "blocks.{l}.norm1",
        &[
            &["trunk.blocks.{l}.norm_1"],
            &["encoder.layers.{l}.rms_norm1"],
        ],
    ),
    (
        "blocks.{l}.attention.qkv",
        &[
            &["trunk.blocks.{l}.attn.qkv"],
            &[
                "encoder.layers.{l}.attention.q_proj",
                "encoder.layers.{l}.attention.k_proj",
                "encoder.layers.{l}.attention.v_proj",
            ],
        ],
    ),
    (
        "blocks.{l}.attention.out",
        &[
            &["trunk.blocks.{l}.attn.proj"],
            &["encoder.layers.{l}.attention.out_proj"],
        ],
    ),
    (
        "blocks.{l}.norm2",
        &[
            &["trunk.blocks.{l}.norm_2"],
            &["encoder.layers.{l}.rms_norm2"],
        ],
    ),
    (
        "blocks.{l}.mlp.gate_up",
        &[
            &["trunk.blocks.{l}.mlp.fc1", "trunk.blocks.{l}.mlp.fc3"],
            &[
                "encoder.layers.{l}.ffn.gate_proj",
                "encoder.layers.{l}.ffn.up_proj",
            ],
        ],
    ),
    (
        "blocks.{l}.mlp.down",
        &[
            &["trunk.blocks.{l}.mlp.fc2"],
            &["encoder.layers.{l}.ffn.down_proj"],
        ],
    ),
    ("final_norm", &[&["trunk.post_trunk_norm"], &["rms_norm"]]),
];

/// The learned query that pools the tokens.
const HEAD: &[Names] = &[
    ("probe", &[&["head.cls_token"]]),
    ("key_value", &[&["head.k_proj", "head.v_proj"]]),
    ("out", &[&["head.output_proj"]]),
];
