//! Qwen2, Qwen2.5, which has its form, and Qwen3 (their technical reports).

use super::decoder::{
    DECODER, Defaults, FIRST, FORM, FULL_ATTENTION, HEAD_DIM, SHARED, WRITTEN_FORM, WRITTEN_SIZES,
    rope, rope_limit, sizes,
};
use super::family::LanguageForm;
use super::idle::Idle;
use super::key::Key;
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
            WINDOW,
            &[HEAD_DIM],
            SIZES,
            SHARED,
            ROPE,
            // Its code gives queries, keys and values biases whatever the key says.
            &[Key::Idle(Idle::any("attention_bias"))],
        ],
        written: &[
            WRITTEN_SIZES,
            WRITTEN_FORM,
            &["use_sliding_window", "max_position_embeddings"],
        ],
        length_limit: rope_limit::<LONGEST>,
        ..DECODER
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
            WINDOW,
            &[Key::Count {
                name: "head_dim",
                default: 128,
                field: |config| &mut config.head_dim,
            }],
            SIZES,
            SHARED,
            ROPE,
            &[Key::OnlySwitch {
                name: "attention_bias",
                want: false,
                default: false,
            }],
        ],
        written: &[
            WRITTEN_SIZES,
            WRITTEN_FORM,
            &[
                "use_sliding_window",
                "max_position_embeddings",
                "head_dim",
                "attention_bias",
            ],
        ],
        length_limit: rope_limit::<LONGEST>,
        ..DECODER
    },
];

/// The longest sequence that the code of either reads by default.
const LONGEST: usize = 32_768;

const ROPE: &[Key<LanguageConfig>] = &rope::<LONGEST>();

/// Windows are switched on by a key of their own; without it their width stands unused.
const WINDOW: &[Key<LanguageConfig>] = &[
    Key::OnlySwitch {
        name: "use_sliding_window",
        want: false,
        default: false,
    },
    Key::Idle(Idle::any("sliding_window")),
    FULL_ATTENTION,
];

const SIZES: &[Key<LanguageConfig>] = &{
    let [vocabulary, depth, mlp_width] = sizes(Defaults {
        vocabulary: 151_936,
        depth: 32,
        mlp_width: 22_016,
    });
    let key_value_heads = Key::Count {
        name: "num_key_value_heads",
        default: 32,
        field: |config: &mut LanguageConfig| &mut config.key_value_heads,
    };
    [vocabulary, depth, key_value_heads, mlp_width]
};
