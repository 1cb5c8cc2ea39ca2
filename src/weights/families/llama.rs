//! Llama 2 and 3 and what has their form, such as SmolLM2 and TinyLlama (Touvron et al. 2023; Grattafiori et al. 2024), and
//! Mistral (Jiang et al. 2023), which is that form with a window of attention.

use super::decoder::{
    DECODER, Defaults, FIRST, FULL_ATTENTION, HEAD_DIM, SHARED, WRITTEN_FORM, WRITTEN_SIZES, rope,
    rope_limit, sizes, window_limit,
};
use super::family::LanguageForm;
use super::idle::Idle;
use super::key::Key;
use serde_json::Value as Json;

use keel_model::LanguageConfig;

pub(super) const FORMS: &[LanguageForm] = &[
    LanguageForm {
        title: "Llama language model",
        model_type: "llama",
        architecture: "LlamaForCausalLM",
        keys: &[
            FIRST,
            &[HEAD_DIM],
            &sizes(Defaults {
                vocabulary: 32_000,
                depth: 32,
                mlp_width: 11_008,
            }),
            &[KEY_VALUE_HEADS],
            SHARED,
            &rope::<LLAMA_LONGEST>(),
            &[
                // Either gives its products biases, the output's among them.
                Key::OnlySwitch {
                    name: "attention_bias",
                    want: false,
                    default: false,
                },
                Key::OnlySwitch {
                    name: "mlp_bias",
                    want: false,
                    default: false,
                },
                // Rotary positions over neighbours instead of halves, in nanotron's own code.
                Key::OnlySwitch {
                    name: "rope_interleaved",
                    want: false,
                    default: false,
                },
                // In how many pieces products were computed while it was trained.
                Key::Idle(Idle::any("pretraining_tp")),
                // Notes of SmolLM2's authors for other programs.
                Key::Idle(Idle::any("is_llama_config")),
                Key::Idle(Idle::any("transformers.js_config")),
            ],
        ],
        written: &[
            WRITTEN_SIZES,
            &["head_dim"],
            WRITTEN_FORM,
            &["max_position_embeddings", "attention_bias", "mlp_bias"],
        ],
        length_limit: rope_limit::<LLAMA_LONGEST>,
        ..DECODER
    },
    LanguageForm {
        title: "Mistral language model",
        model_type: "mistral",
        architecture: "MistralForCausalLM",
        keys: &[
            FIRST,
            &[HEAD_DIM],
            &sizes(Defaults {
                vocabulary: 32_000,
                depth: 32,
                mlp_width: 14_336,
            }),
            &[Key::Count {
                name: "num_key_value_heads",
                default: 8,
                field: |config| &mut config.key_value_heads,
            }],
            SHARED,
            &rope::<MISTRAL_LONGEST>(),
            &[
                // Its width is read where the limit of lengths is.
                Key::Own {
                    name: "sliding_window",
                    read: |settings, _| settings.number("sliding_window", WINDOW).map(drop),
                    write: |_| Json::Null,
                },
                FULL_ATTENTION,
            ],
        ],
        written: &[
            WRITTEN_SIZES,
            &["head_dim"],
            WRITTEN_FORM,
            &["max_position_embeddings", "sliding_window"],
        ],
        length_limit: |settings| window_limit::<MISTRAL_LONGEST>(settings, Some(WINDOW)),
        ..DECODER
    },
];

/// The longest sequence that the code of each reads by default.
const LLAMA_LONGEST: usize = 2048;
const MISTRAL_LONGEST: usize = 131_072;
/// The width of Mistral's window where a file does not say it; a null switches the window off.
const WINDOW: usize = 4096;

/// As many heads of keys and values as of queries, where a file does not say it.
const KEY_VALUE_HEADS: Key<LanguageConfig> = Key::Own {
    name: "num_key_value_heads",
    read: |settings, config| {
        config.key_value_heads = settings.number("num_key_value_heads", config.heads)?;
        Ok(())
    },
    write: |config| config.key_value_heads.into(),
};
