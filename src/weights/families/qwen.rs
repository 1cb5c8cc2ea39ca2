//! Qwen2, Qwen2.5, which has its form, and Qwen3 (their technical reports).

use serde_json::{Map, Value as Json};

use super::family::LanguageForm;
use super::idle::Idle;
use super::key::{Key, plain};
use super::names::Names;
use crate::hf_config::Settings;
use keel_base::error::Result;
use keel_model::LanguageConfig;

pub(super) const FORMS: &[LanguageForm] = &[
    LanguageForm {
        title: "Qwen2 language model (the Qwen2.5 form)",
        model_type: "qwen2",
        architecture: "Qwen2ForCausalLM",
        // Queries, keys and values have biases and the output none, whatever attention_bias says.
        form: LanguageConfig {
            qkv_bias: true,
            ..FORM
        },
        keys: &[
            FIRST,
            &[Key::Own {
                name: "head_dim",
                read: |settings, config| {
                    let default = config.width / config.heads.max(1);
                    config.head_dim = settings.number("head_dim", default)?;
                    Ok(())
                },
                write: |config| config.head_dim.into(),
            }],
            SHARED,
            // Its code gives queries, keys and values biases whatever the key says.
            &[Key::Idle(Idle::any("attention_bias"))],
        ],
        written: &[
            "architectures",
            "model_type",
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "intermediate_size",
            "hidden_act",
            "rms_norm_eps",
            "rope_theta",
            "tie_word_embeddings",
            "use_sliding_window",
            "max_position_embeddings",
        ],
        names: NAMES,
        probes: PROBES,
        ignored: IGNORED,
        trunk: "model.",
        head: "lm_head.weight",
        position_limit,
    },
    LanguageForm {
        title: "Qwen3 language model",
        model_type: "qwen3",
        architecture: "Qwen3ForCausalLM",
        form: LanguageConfig {
            qk_norm: true,
            ..FORM
        },
        keys: &[
            FIRST,
            &[Key::Count {
                name: "head_dim",
                default: 128,
                field: |config| &mut config.head_dim,
            }],
            SHARED,
            &[Key::OnlySwitch {
                name: "attention_bias",
                want: false,
                default: false,
            }],
        ],
        written: &[
            "architectures",
            "model_type",
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "intermediate_size",
            "hidden_act",
            "rms_norm_eps",
            "rope_theta",
            "tie_word_embeddings",
            "use_sliding_window",
            "max_position_embeddings",
            "head_dim",
            "attention_bias",
        ],
        names: NAMES,
        probes: PROBES,
        ignored: IGNORED,
        trunk: "model.",
        head: "lm_head.weight",
        position_limit,
    },
];

const FORM: LanguageConfig = LanguageConfig {
    vocabulary: 0,
    width: 0,
    depth: 0,
    heads: 0,
    key_value_heads: 0,
    head_dim: 0,
    mlp_width: 0,
    rope_theta: 0.0,
    norm_epsilon: 0.0,
    qkv_bias: false,
    qk_norm: false,
    tied_embeddings: false,
};

/// What is read before the head dim, whose default in Qwen2 goes by width and heads.
const FIRST: &[Key<LanguageConfig>] = &[
    Key::OnlyText {
        name: "hidden_act",
        want: "silu",
        default: "silu",
    },
    Key::OnlySwitch {
        name: "use_sliding_window",
        want: false,
        default: false,
    },
    // Without use_sliding_window its width stands unused.
    Key::Idle(Idle::any("sliding_window")),
    Key::Check(|settings, _| {
        let mut kinds = settings.texts("layer_types")?.into_iter();
        match kinds.find(|kind| *kind != "full_attention") {
            Some(other) => Err(settings.refuse("layer_types", "full_attention", other)),
            None => Ok(()),
        }
    }),
    Key::Count {
        name: "hidden_size",
        default: 4096,
        field: |config| &mut config.width,
    },
    Key::Count {
        name: "num_attention_heads",
        default: 32,
        field: |config| &mut config.heads,
    },
];

const SHARED: &[Key<LanguageConfig>] = &[
    Key::Count {
        name: "vocab_size",
        default: 151_936,
        field: |config| &mut config.vocabulary,
    },
    Key::Count {
        name: "num_hidden_layers",
        default: 32,
        field: |config| &mut config.depth,
    },
    Key::Count {
        name: "num_key_value_heads",
        default: 32,
        field: |config| &mut config.key_value_heads,
    },
    Key::Count {
        name: "intermediate_size",
        default: 22_016,
        field: |config| &mut config.mlp_width,
    },
    Key::Own {
        name: "rope_theta",
        read: |settings, config| {
            config.rope_theta = rope_theta(settings)?;
            Ok(())
        },
        write: |config| plain(config.rope_theta),
    },
    Key::Float {
        name: "rms_norm_eps",
        default: 1e-6,
        field: |config| &mut config.norm_epsilon,
    },
    Key::Switch {
        name: "tie_word_embeddings",
        default: false,
        field: |config| &mut config.tied_embeddings,
    },
    // The longest sequence that the published models were trained on; Keel's rotary positions have no end.
    Key::Hint {
        name: "max_position_embeddings",
        value: 32_768,
    },
];

/// The base of the rotary positions: its own key, or since version 5 of transformers one of `rope_parameters`.
fn rope_theta(settings: &Settings) -> Result<f32> {
    let mut theta = settings.positive("rope_theta", 10_000.0)?;
    for (key, rope) in ropes(settings)? {
        if let Some(value) = rope.get("rope_theta") {
            let name = format!("{key}.rope_theta");
            theta = settings.single(&name, value)?;
            if theta <= 0.0 {
                return Err(settings.refuse(&name, "a number above 0", value));
            }
        }
    }
    position_limit(settings)?;
    Ok(theta)
}

/// What changes the rotary positions, where something does: the key, and what it holds.
fn ropes<'a>(settings: &Settings<'a>) -> Result<Vec<(&'static str, &'a Map<String, Json>)>> {
    let mut ropes = Vec::new();
    for key in ["rope_scaling", "rope_parameters"] {
        ropes.extend(settings.object(key)?.map(|rope| (key, rope)));
    }
    Ok(ropes)
}

/// The length of a sequence up to which the rotary positions are what Keel computes; nothing where they always are.
///
/// `dynamic` leaves positions as they are up to `max_position_embeddings`, and changes them all in longer sequences. The other
/// ways of scaling change them in every sequence.
///
/// # Errors
/// [`keel_base::error::Error::Setting`] naming the key that changes positions in every sequence.
fn position_limit(settings: &Settings) -> Result<Option<usize>> {
    let longest = settings.number("max_position_embeddings", 32_768)?;
    let mut limit = None;
    for (key, rope) in ropes(settings)? {
        let kind = ["rope_type", "type"]
            .iter()
            .find_map(|name| rope.get(*name));
        let kind = kind.map_or(Some("default"), Json::as_str);
        let factor = rope.get("factor").and_then(Json::as_f64);
        // The type first: what else stands there goes by it.
        let mut keys: Vec<_> = rope.iter().collect();
        keys.sort_by_key(|(name, _)| !matches!(name.as_str(), "rope_type" | "type"));
        for (name, value) in keys {
            let is_neutral = match name.as_str() {
                "rope_theta" => true,
                "rope_type" | "type" => match value.as_str() {
                    // It divides positions by its factor.
                    Some("linear") => factor == Some(1.0),
                    other => matches!(other, Some("default" | "dynamic")),
                },
                // What it scales is refused with the type, where that is another.
                "factor" => true,
                "partial_rotary_factor" => value.as_f64() == Some(1.0),
                "original_max_position_embeddings" => kind == Some("dynamic"),
                _ => value.is_null(),
            };
            if !is_neutral {
                let name = format!("{key}.{name}");
                let want =
                    "rope_type \"default\", or \"dynamic\" in sequences that it leaves alone";
                return Err(settings.refuse(&name, want, value));
            }
        }
        if kind == Some("dynamic") {
            limit = Some(longest);
        }
    }
    Ok(limit)
}

const PROBES: &[&str] = &["embed_tokens.weight"];

const IGNORED: &[(&str, &str)] = &[("rotary_emb.inv_freq", "rotary frequencies counted out")];

const NAMES: &[Names] = &[
    ("embedding", &[&["embed_tokens.weight"]]),
    ("blocks.{l}.norm1", &[&["layers.{l}.input_layernorm"]]),
    (
        "blocks.{l}.attention.qkv",
        &[&[
            "layers.{l}.self_attn.q_proj",
            "layers.{l}.self_attn.k_proj",
            "layers.{l}.self_attn.v_proj",
        ]],
    ),
    (
        "blocks.{l}.attention.q_norm",
        &[&["layers.{l}.self_attn.q_norm"]],
    ),
    (
        "blocks.{l}.attention.k_norm",
        &[&["layers.{l}.self_attn.k_norm"]],
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
        &[&["layers.{l}.mlp.gate_proj", "layers.{l}.mlp.up_proj"]],
    ),
    ("blocks.{l}.mlp.down", &[&["layers.{l}.mlp.down_proj"]]),
    ("final_norm", &[&["norm"]]),
];
