//! Keys of `config.json` that change nothing of what a model computes.
//!
//! transformers dumps every default of its base class into every part of a model, and tools add keys of their own. Some of these
//! keys say nothing whatever they hold; others name code that Keel has not, and change nothing only while it is switched off.
//! This table holds for all families. A family adds rows of its own by [`Key::Idle`](super::key::Key::Idle), and a key that a
//! family reads is the family's: this table is asked last.

use serde_json::Value as Json;

/// A key that changes nothing of what a model computes, at the values that are allowed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Idle {
    pub name: &'static str,
    pub at: IdleAt,
}

/// The values at which a key changes nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) enum IdleAt {
    /// Whatever it holds.
    Any,
    /// What it would switch on is off: null, false, 0, or an empty text, list or object.
    Off,
}

impl Idle {
    /// A key that changes nothing whatever it holds.
    pub const fn any(name: &'static str) -> Idle {
        Idle {
            name,
            at: IdleAt::Any,
        }
    }

    /// A key that changes nothing while it is off.
    pub const fn off(name: &'static str) -> Idle {
        Idle {
            name,
            at: IdleAt::Off,
        }
    }
}

impl IdleAt {
    /// Whether a key changes nothing at `value`.
    pub fn holds(self, value: &Json) -> bool {
        match (self, value) {
            (IdleAt::Any, _) | (_, Json::Null) => true,
            (IdleAt::Off, Json::Bool(switch)) => !switch,
            (IdleAt::Off, Json::Number(number)) => number.as_f64() == Some(0.0),
            (IdleAt::Off, Json::String(text)) => text.is_empty(),
            (IdleAt::Off, Json::Array(list)) => list.is_empty(),
            (IdleAt::Off, Json::Object(map)) => map.is_empty(),
        }
    }

    /// What would be accepted in place of `value`, for messages.
    pub fn wanted(value: &Json) -> &'static str {
        match value {
            Json::Bool(_) => "false",
            Json::Number(_) => "0",
            _ => "nothing",
        }
    }
}

/// The values at which a key that no row of its own family has read changes nothing in any family; nothing for a key that this
/// table does not know.
pub(crate) fn shared(key: &str) -> Option<IdleAt> {
    if SILENT.contains(&key) {
        return Some(IdleAt::Any);
    }
    OFF.contains(&key).then_some(IdleAt::Off)
}

/// The names of the shared rows, for near misses.
pub(crate) fn shared_names() -> impl Iterator<Item = &'static str> {
    SILENT.iter().chain(OFF).copied()
}

/// Where a model came from, how it was or will be run, special tokens, the generation settings that old files repeat in every
/// part, and what belongs to other parts: none of it says what the part computes.
const SILENT: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation",
    "_flash_attn_2_enabled",
    "_name_or_path",
    "_out_features",
    "_out_indices",
    "architectures",
    "apply_layernorm",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "label2id",
    "length_penalty",
    "loss_type",
    "max_length",
    "max_position_embeddings",
    "max_window_layers",
    "min_length",
    "model_max_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "out_features",
    "out_indices",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "projection_dim",
    "projection_size",
    "remove_invalid_values",
    "repetition_penalty",
    "reshape_hidden_states",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "stage_names",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    // A tower has no words to embed; decoders read it.
    "tie_word_embeddings",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_flash_attention_2",
    "use_flash_attn",
    "use_return_dict",
    // That of the language model beside a tower; decoders read it.
    "vocab_size",
];

/// What would have to be computed otherwise if it were on.
const OFF: &[&str] = &[
    "add_cross_attention",
    "chunk_size_feed_forward",
    "is_decoder",
    "is_encoder_decoder",
    "moe_config",
    // Heads that are cut out of the layers it lists.
    "pruned_heads",
    // Numbers that are stored by other types than Keel reads.
    "quantization_config",
    "use_moe",
    "use_mrope",
];
