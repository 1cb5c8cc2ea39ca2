//! What the decoders that Keel reads have in common: RMS norms, rotary positions, gated feed-forward halves, and the names of
//! their tensors. Their families differ in biases, query and key norms, defaults and windows.

use serde_json::{Map, Value as Json};

use super::family::{LanguageForm, LengthLimit};
use super::key::{Key, plain};
use super::names::Names;
use crate::hf_config::Settings;
use keel_base::error::Result;
use keel_model::LanguageConfig;

/// The form without biases and without query and key norms. Families say what they do otherwise.
pub(super) const FORM: LanguageConfig = LanguageConfig {
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
    lora: None,
};

/// What all of them share. Families say what is empty here: title, class, keys, and what is written.
pub(super) const DECODER: LanguageForm = LanguageForm {
    title: "",
    model_type: "",
    architecture: "",
    form: FORM,
    keys: &[],
    written: &[],
    names: NAMES,
    probes: PROBES,
    ignored: IGNORED,
    trunk: "model.",
    head: "lm_head.weight",
    length_limit: |_| Ok(None),
};

/// The keys that every family writes: its class and sizes, and then, after a head dim where one is written, the rest.
pub(super) const WRITTEN_SIZES: &[&str] = &[
    "architectures",
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
];
pub(super) const WRITTEN_FORM: &[&str] = &[
    "intermediate_size",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
];

/// A decoder's sizes where its settings do not say them, as a family's code has them.
pub(super) struct Defaults {
    pub vocabulary: usize,
    pub depth: usize,
    pub mlp_width: usize,
}

/// What is read before the head dim, whose default goes by width and heads.
pub(super) const FIRST: &[Key<LanguageConfig>] = &[
    Key::OnlyText {
        name: "hidden_act",
        want: "silu",
        default: "silu",
    },
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

/// The head dim where a file need not say it: width ÷ heads.
pub(super) const HEAD_DIM: Key<LanguageConfig> = Key::Own {
    name: "head_dim",
    read: |settings, config| {
        let default = config.width / config.heads.max(1);
        config.head_dim = settings.number("head_dim", default)?;
        Ok(())
    },
    write: |config| config.head_dim.into(),
};

/// Refuses windows by which some layers attend to their nearest tokens only.
pub(super) const FULL_ATTENTION: Key<LanguageConfig> = Key::Check(|settings, _| {
    let mut kinds = settings.texts("layer_types")?.into_iter();
    match kinds.find(|kind| *kind != "full_attention") {
        Some(other) => Err(settings.refuse("layer_types", "full_attention", other)),
        None => Ok(()),
    }
});

/// The keys of a decoder's sizes with a family's defaults.
pub(super) const fn sizes(defaults: Defaults) -> [Key<LanguageConfig>; 3] {
    [
        Key::Count {
            name: "vocab_size",
            default: defaults.vocabulary,
            field: |config| &mut config.vocabulary,
        },
        Key::Count {
            name: "num_hidden_layers",
            default: defaults.depth,
            field: |config| &mut config.depth,
        },
        Key::Count {
            name: "intermediate_size",
            default: defaults.mlp_width,
            field: |config| &mut config.mlp_width,
        },
    ]
}

/// The keys of norms and embeddings.
pub(super) const SHARED: &[Key<LanguageConfig>] = &[
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
];

/// The key of the rotary base, in a family whose code reads sequences of up to `LONGEST` tokens by default.
pub(super) const fn rope<const LONGEST: usize>() -> [Key<LanguageConfig>; 2] {
    [
        Key::Own {
            name: "rope_theta",
            read: |settings, config| {
                config.rope_theta = rope_theta(settings)?;
                rope_limit::<LONGEST>(settings)?;
                Ok(())
            },
            write: |config| plain(config.rope_theta),
        },
        // The longest sequence that the published models were trained on; Keel's rotary positions have no end.
        Key::Hint {
            name: "max_position_embeddings",
            value: LONGEST,
        },
    ]
}

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
pub(super) fn rope_limit<const LONGEST: usize>(settings: &Settings) -> Result<Option<LengthLimit>> {
    let tokens = settings.number("max_position_embeddings", LONGEST)?;
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
            limit = Some(LengthLimit { tokens, key });
        }
    }
    Ok(limit)
}

/// As [`rope_limit`], in a family with a window of `sliding_window` tokens, `window` where the file does not say it; a null switches it
/// off. A window leaves sequences alone that fit in it: every token sees all before it.
pub(super) fn window_limit<const LONGEST: usize>(
    settings: &Settings,
    window: Option<usize>,
) -> Result<Option<LengthLimit>> {
    let rope = rope_limit::<LONGEST>(settings)?;
    let tokens = match settings.has("sliding_window") {
        true => Some(settings.number("sliding_window", 0)?),
        false if settings.is_null("sliding_window") => None,
        false => window,
    };
    let window = tokens.map(|tokens| LengthLimit {
        tokens,
        key: "sliding_window",
    });
    let limits = rope.into_iter().chain(window);
    Ok(limits.min_by_key(|limit| limit.tokens))
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
