//! CLIP (Radford et al. 2021).

use super::family::{
    CLASSIC, COLOURS, ImageProcessor, Layout, Pooling, VisionForm, activation_name,
    classic_activation, norm_epsilon, sizes,
};
use super::key::Key;
use super::names::Names;
use crate::pos_embed_interp::Scaling;
use keel_model::VisionConfig;

pub(super) const FORMS: &[VisionForm] = &[VisionForm {
    title: "CLIP vision tower",
    // MetaCLIP 2 has its form.
    model_types: &["clip_vision_model", "metaclip_2_vision_model"],
    pair_type: Some("clip"),
    form: VisionConfig {
        patch_bias: false,
        class_token: true,
        pre_norm: true,
        ..CLASSIC
    },
    keys: &[
        &[
            COLOURS,
            norm_epsilon("layer_norm_eps", 1e-5),
            Key::Own {
                name: "hidden_act",
                read: |settings, config| classic_activation(settings, "quick_gelu", config),
                write: activation_name,
            },
        ],
        &sizes([768, 12, 12, 3072], [224, 32]),
    ],
    layouts: &[Layout {
        name: "clip",
        architecture: "CLIPVisionModel",
        model_type: "clip_vision_model",
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
        ],
        is_general: false,
    }],
    names: NAMES,
    probes: &["embeddings.patch_embedding.weight"],
    ignored: &[
        ("embeddings.position_ids", "positions counted out"),
        ("visual_projection.", "projection to the contrastive space"),
    ],
    patches_by_pixel: false,
    size_key: "image_size",
    tell_size: None,
    scaling: Scaling::Bicubic,
    takes_any_size: false,
    pooling: Some(Pooling::CLASS_TOKEN),
    processor: &PROCESSOR,
}];

/// AIMv2 and InternViT are published with it, too.
pub(super) const PROCESSOR: ImageProcessor = ImageProcessor {
    class: "CLIPImageProcessor",
    marker: "CLIP",
    by_shorter_edge: true,
    cuts_of_both: false,
};

/// SigLIP names its tensors the same way.
pub(super) const NAMES: &[Names] = &[
    ("patch_embed", &[&["embeddings.patch_embedding"]]),
    ("position", &[&["embeddings.position_embedding.weight"]]),
    ("class_token", &[&["embeddings.class_embedding"]]),
    ("pre_norm", &[&["pre_layrnorm"]]),
    ("blocks.{l}.norm1", &[&["encoder.layers.{l}.layer_norm1"]]),
    (
        "blocks.{l}.attention.qkv",
        &[&[
            "encoder.layers.{l}.self_attn.q_proj",
            "encoder.layers.{l}.self_attn.k_proj",
            "encoder.layers.{l}.self_attn.v_proj",
        ]],
    ),
    (
        "blocks.{l}.attention.out",
        &[&["encoder.layers.{l}.self_attn.out_proj"]],
    ),
    ("blocks.{l}.norm2", &[&["encoder.layers.{l}.layer_norm2"]]),
    ("blocks.{l}.mlp.fc1", &[&["encoder.layers.{l}.mlp.fc1"]]),
    ("blocks.{l}.mlp.fc2", &[&["encoder.layers.{l}.mlp.fc2"]]),
    ("final_norm", &[&["post_layernorm"]]),
];
