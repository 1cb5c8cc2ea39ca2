//! The plain ViT (Dosovitskiy et al. 2021), which DeiT without distillation has too; DeiT with it (Touvron et al. 2021); and towers that were trained by other
//! means in that form: the encoders of MAE (He et al. 2022) and of I-JEPA (Assran et al. 2023), the last without a class token.

use super::family::{
    CLASSIC, COLOURS, ImageProcessor, Layout, Pooling, VisionForm, activation_name,
    classic_activation, norm_epsilon, sizes,
};
use super::idle::Idle;
use super::key::Key;
use super::names::Names;
use crate::pos_embed_interp::Scaling;
use keel_model::{LearnedPositions, VisionConfig};

pub(super) const FORMS: &[VisionForm] = &[
    VisionForm {
        title: "ViT vision tower",
        model_types: &["vit"],
        form: WITH_CLASS_TOKEN,
        layouts: &[Layout {
            name: "vit",
            architecture: "ViTModel",
            model_type: "vit",
            ..LAYOUT
        }],
        pooling: Some(Pooling::CLASS_TOKEN),
        ..VIT
    },
    VisionForm {
        title: "DeiT vision tower (distilled)",
        model_types: &["deit"],
        // The distillation token stands behind the class token, each with a position of its own.
        form: VisionConfig {
            registers: 1,
            learned_positions: LearnedPositions::AllTokens,
            ..WITH_CLASS_TOKEN
        },
        layouts: &[Layout {
            name: "deit",
            architecture: "DeiTModel",
            model_type: "deit",
            ..LAYOUT
        }],
        pooling: Some(Pooling::CLASS_TOKEN),
        processor: &ImageProcessor {
            class: "DeiTImageProcessor",
            marker: "DeiT",
            by_shorter_edge: false,
            cuts_of_both: true,
        },
        ..VIT
    },
    VisionForm {
        title: "MAE vision tower",
        model_types: &["vit_mae"],
        form: WITH_CLASS_TOKEN,
        keys: &[KEYS, DECODER_OF_MAE],
        layouts: &[Layout {
            name: "vit-mae",
            architecture: "ViTMAEModel",
            model_type: "vit_mae",
            ..LAYOUT
        }],
        pooling: Some(Pooling::CLASS_TOKEN),
        ..VIT
    },
    VisionForm {
        title: "I-JEPA vision tower",
        model_types: &["ijepa"],
        layouts: &[Layout {
            name: "ijepa",
            architecture: "IJepaModel",
            model_type: "ijepa",
            ..LAYOUT
        }],
        ..VIT
    },
];

/// What they share.
const VIT: VisionForm = VisionForm {
    title: "",
    model_types: &[],
    pair_type: None,
    form: CLASSIC,
    keys: &[KEYS],
    layouts: &[],
    names: NAMES,
    probes: &["embeddings.patch_embeddings.projection.weight"],
    ignored: &[
        ("embeddings.mask_token", "mask token of pre-training"),
        // A product and tanh of the class token, which classifiers do without.
        ("pooler.", "pooler of pre-training"),
        ("classifier.", "classifier"),
        ("cls_classifier.", "classifier"),
        ("distillation_classifier.", "classifier"),
        ("decoder.", "decoder of pre-training"),
    ],
    patches_by_pixel: false,
    size_key: "image_size",
    tell_size: None,
    scaling: Scaling::Bicubic,
    takes_any_size: false,
    pooling: None,
    processor: &ImageProcessor {
        class: "ViTImageProcessor",
        marker: "ViT",
        by_shorter_edge: false,
        cuts_of_both: false,
    },
};

const WITH_CLASS_TOKEN: VisionConfig = VisionConfig {
    class_token: true,
    ..CLASSIC
};

const LAYOUT: Layout = Layout {
    name: "",
    architecture: "",
    model_type: "",
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
        "qkv_bias",
    ],
    is_general: false,
};

const KEYS: &[Key<VisionConfig>] = &{
    let [image, patch, width, depth, heads, mlp_width] = sizes([768, 12, 12, 3072], [224, 16]);
    [
        COLOURS,
        image,
        patch,
        width,
        depth,
        heads,
        mlp_width,
        Key::Own {
            name: "hidden_act",
            read: |settings, config| classic_activation(settings, "gelu", config),
            write: activation_name,
        },
        norm_epsilon("layer_norm_eps", 1e-12),
        Key::Switch {
            name: "qkv_bias",
            default: true,
            field: |config| &mut config.qkv_bias,
        },
        // What the pooler and a head that paints masked images are made of.
        Key::Idle(Idle::any("encoder_stride")),
        Key::Idle(Idle::any("pooler_act")),
        Key::Idle(Idle::any("pooler_output_size")),
    ]
};

/// MAE hides patches and paints them while it pre-trains; its tower sees all of them afterwards.
const DECODER_OF_MAE: &[Key<VisionConfig>] = &[
    Key::Idle(Idle::any("decoder_hidden_size")),
    Key::Idle(Idle::any("decoder_intermediate_size")),
    Key::Idle(Idle::any("decoder_num_attention_heads")),
    Key::Idle(Idle::any("decoder_num_hidden_layers")),
    Key::Idle(Idle::any("mask_ratio")),
    Key::Idle(Idle::any("norm_pix_loss")),
];

/// The names of published files, then those that transformers gives its modules since version 5.
const NAMES: &[Names] = &[
    (
        "patch_embed",
        &[&["embeddings.patch_embeddings.projection"]],
    ),
    ("position", &[&["embeddings.position_embeddings"]]),
    ("class_token", &[&["embeddings.cls_token"]]),
    ("registers", &[&["embeddings.distillation_token"]]),
    (
        "blocks.{l}.norm1",
        &[
            &["encoder.layer.{l}.layernorm_before"],
            &["layers.{l}.layernorm_before"],
        ],
    ),
    (
        "blocks.{l}.attention.qkv",
        &[
            &[
                "encoder.layer.{l}.attention.attention.query",
                "encoder.layer.{l}.attention.attention.key",
                "encoder.layer.{l}.attention.attention.value",
            ],
            &[
                "layers.{l}.attention.q_proj",
                "layers.{l}.attention.k_proj",
                "layers.{l}.attention.v_proj",
            ],
        ],
    ),
    (
        "blocks.{l}.attention.out",
        &[
            &["encoder.layer.{l}.attention.output.dense"],
            &["layers.{l}.attention.o_proj"],
        ],
    ),
    (
        "blocks.{l}.norm2",
        &[
            &["encoder.layer.{l}.layernorm_after"],
            &["layers.{l}.layernorm_after"],
        ],
    ),
    (
        "blocks.{l}.mlp.fc1",
        &[
            &["encoder.layer.{l}.intermediate.dense"],
            &["layers.{l}.mlp.fc1"],
        ],
    ),
    (
        "blocks.{l}.mlp.fc2",
        &[&["encoder.layer.{l}.output.dense"], &["layers.{l}.mlp.fc2"]],
    ),
    ("final_norm", &[&["layernorm"]]),
];
