//! SigLIP (Zhai et al. 2023) and SigLIP 2 (Tschannen et al. 2025). Towers of SigLIP 2 at a fixed resolution have SigLIP's form
//! and its `model_type`; its NaFlex towers, which are read at their own grid of patches, have a form of theirs.

use serde_json::json;

use super::clip::NAMES;
use super::family::{
    CLASSIC, COLOURS, ImageProcessor, Layout, Pooling, VisionForm, activation_name,
    classic_activation, norm_epsilon, sizes,
};
use super::idle::Idle;
use super::key::Key;
use super::names::Names;
use crate::pos_embed_interp::Scaling;
use keel_model::{VisionConfig, VisionHead};

pub(super) const FORMS: &[VisionForm] = &[
    VisionForm {
        title: "SigLIP vision tower",
        model_types: &["siglip_vision_model"],
        pair_type: Some("siglip"),
        form: CLASSIC,
        keys: &[KEYS, &SIZES, PALIGEMMA],
        layouts: &[Layout {
            name: "siglip",
            architecture: "SiglipVisionModel",
            model_type: "siglip_vision_model",
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
                "layer_norm_eps",
                "vision_use_head",
            ],
            is_general: false,
        }],
        names: NAMES,
        probes: PROBES,
        ignored: IGNORED,
        patches_by_pixel: false,
        size_key: "image_size",
        tell_size: None,
        scaling: Scaling::Bicubic,
        takes_any_size: false,
        pooling: Some(POOLING),
        processor: &PROCESSOR,
    },
    VisionForm {
        title: "SigLIP 2 vision tower (NaFlex, at its own grid)",
        model_types: &["siglip2_vision_model"],
        pair_type: Some("siglip2"),
        form: CLASSIC,
        keys: &[
            KEYS,
            &SIZES,
            &[Key::Own {
                name: "num_patches",
                read: |settings, config| {
                    let patches = settings.number("num_patches", 256)?;
                    let side = patches.isqrt();
                    if side * side != patches {
                        return Err(settings.refuse("num_patches", "a square", patches));
                    }
                    config.image_size = side.saturating_mul(config.patch_size);
                    Ok(())
                },
                write: |config| json!(config.patches()),
            }],
        ],
        layouts: &[],
        names: NAMES,
        probes: PROBES,
        ignored: IGNORED,
        patches_by_pixel: true,
        size_key: "num_patches",
        tell_size: None,
        scaling: Scaling::FilteredBilinear,
        takes_any_size: false,
        pooling: Some(POOLING),
        processor: &PROCESSOR,
    },
];

const KEYS: &[Key<VisionConfig>] = &[
    COLOURS,
    Key::Pools {
        name: "vision_use_head",
    },
    norm_epsilon("layer_norm_eps", 1e-6),
    Key::Own {
        name: "hidden_act",
        read: |settings, config| classic_activation(settings, "gelu_pytorch_tanh", config),
        write: activation_name,
    },
];

/// What PaliGemma's files say in the tower's settings of the connector behind it, and of the positions that sizes give.
const PALIGEMMA: &[Key<VisionConfig>] = &[
    Key::Idle(Idle::any("num_image_tokens")),
    Key::Idle(Idle::any("projector_hidden_act")),
    Key::Check(|settings, config| {
        let patches = match config.patch_size {
            0 => 0,
            patch => (config.image_size / patch).pow(2),
        };
        settings.only_number("num_positions", patches, patches)
    }),
];

const SIZES: [Key<VisionConfig>; 6] = sizes([768, 12, 12, 3072], [224, 16]);

const PROBES: &[&str] = &["embeddings.patch_embedding.weight"];

const IGNORED: &[(&str, &str)] = &[
    ("embeddings.position_ids", "positions counted out"),
    ("head.", "attention pooling head"),
];

const PROCESSOR: ImageProcessor = ImageProcessor {
    class: "SiglipImageProcessor",
    marker: "Siglip",
    by_shorter_edge: false,
    cuts_of_both: false,
};

const POOLING: Pooling = Pooling {
    head: VisionHead::Probe,
    names: HEAD,
};

/// The attention that pools the tokens. Query, keys and values are stacked in one tensor.
const HEAD: &[Names] = &[
    ("probe", &[&["head.probe"]]),
    ("query", &[&["head.attention.in_proj"]]),
    ("key_value", &[&["head.attention.in_proj"]]),
    ("out", &[&["head.attention.out_proj"]]),
    ("norm2", &[&["head.layernorm"]]),
    ("mlp.fc1", &[&["head.mlp.fc1"]]),
    ("mlp.fc2", &[&["head.mlp.fc2"]]),
];
