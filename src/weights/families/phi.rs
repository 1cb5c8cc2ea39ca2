//! Phi-3 (Abdin et al. 2024): Llama's arithmetic, with queries, keys and values in one product and both feed-forward halves in another.

use super::decoder::{
    DECODER, Defaults, FULL_ATTENTION, HEAD_DIM, WRITTEN_FORM, WRITTEN_SIZES, rope, sizes,
    window_limit,
};
use super::family::LanguageForm;
use super::idle::Idle;
use super::key::Key;
use super::names::Names;
use keel_model::LanguageConfig;
use serde_json::{Value as Json, json};

pub(super) const FORMS: &[LanguageForm] = &[LanguageForm {
    title: "Phi-3 language model",
    model_type: "phi3",
    architecture: "Phi3ForCausalLM",
    keys: &[
        FIRST,
        &[HEAD_DIM],
        &sizes(Defaults {
            vocabulary: 32_064,
            depth: 32,
            mlp_width: 8192,
        }),
        REST,
        &rope::<LONGEST>(),
        &[FULL_ATTENTION],
    ],
    written: &[
        WRITTEN_SIZES,
        WRITTEN_FORM,
        &["max_position_embeddings", "sliding_window"],
    ],
    names: NAMES,
    length_limit: |settings| window_limit::<LONGEST>(settings, None),
    ..DECODER
}];

/// The longest sequence that its code reads by default.
const LONGEST: usize = 4096;

const FIRST: &[Key<LanguageConfig>] = &[
    Key::OnlyText {
        name: "hidden_act",
        want: "silu",
        default: "silu",
    },
    Key::Count {
        name: "hidden_size",
        default: 3072,
        field: |config| &mut config.width,
    },
    Key::Count {
        name: "num_attention_heads",
        default: 32,
        field: |config| &mut config.heads,
    },
];

const REST: &[Key<LanguageConfig>] = &[
    Key::Own {
        name: "num_key_value_heads",
        read: |settings, config| {
            config.key_value_heads = settings.number("num_key_value_heads", config.heads)?;
            Ok(())
        },
        write: |config| json!(config.key_value_heads),
    },
    Key::Float {
        name: "rms_norm_eps",
        default: 1e-5,
        field: |config| &mut config.norm_epsilon,
    },
    Key::Switch {
        name: "tie_word_embeddings",
        default: false,
        field: |config| &mut config.tied_embeddings,
    },
    Key::OnlySwitch {
        name: "attention_bias",
        want: false,
        default: false,
    },
    // Phi-4-mini turns three quarters of a head.
    Key::Own {
        name: "partial_rotary_factor",
        read: |settings, _| match settings.float("partial_rotary_factor", 1.0)? {
            1.0 => Ok(()),
            share => Err(settings.refuse("partial_rotary_factor", "1", share)),
        },
        write: |_| json!(1.0),
    },
    // Its width is read where the limit of lengths is.
    Key::Own {
        name: "sliding_window",
        read: |settings, _| settings.number("sliding_window", 0).map(drop),
        write: |_| Json::Null,
    },
    // Where scaling of positions begins, which is refused itself.
    Key::Idle(Idle::any("original_max_position_embeddings")),
];

const NAMES: &[Names] = &[
    ("embedding", &[&["embed_tokens.weight"]]),
    ("blocks.{l}.norm1", &[&["layers.{l}.input_layernorm"]]),
    (
        "blocks.{l}.attention.qkv",
        &[&["layers.{l}.self_attn.qkv_proj"]],
    ),
    (
        "blocks.{l}.attention.out",
        &[&["layers.{l}.self_attn.o_proj"]],
    ),
    (
        "blocks.{l}.norm2",
        &[&["layers.{l}.post_attention_layernorm"]],
    ),
    (
        "blocks.{l}.mlp.gate_up",
        &[&["layers.{l}.mlp.gate_up_proj"]],
    ),
    ("blocks.{l}.mlp.down", &[&["layers.{l}.mlp.down_proj"]]),
    ("final_norm", &[&["norm"]]),
];
