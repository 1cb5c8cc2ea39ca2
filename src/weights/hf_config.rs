//! Reads a model's settings key by key, so that no key goes unnoticed.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value as Json};

use keel_base::error::{Error, Result, nearest};

/// Keys that say nothing of what a model computes: where it came from, how it was or will be run, special tokens, and the
/// generation settings that old files repeat in every part.
const HARMLESS: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "_out_features",
    "_out_indices",
    "add_cross_attention",
    "architectures",
    "apply_layernorm",
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
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "length_penalty",
    "max_length",
    "max_position_embeddings",
    "max_window_layers",
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
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
    "pruned_heads",
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
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
    "use_flash_attn",
];

/// Shares of units that training elsewhere drops at random. They change nothing of what a trained model computes, and Keel
/// trains without them.
const REGULARISERS: &[&str] = &[
    "attention_dropout",
    "attention_probs_dropout_prob",
    "drop_path_rate",
    "dropout",
    "hidden_dropout_prob",
    "projection_dropout",
];

/// One object of `config.json`.
pub(super) struct Settings<'a> {
    what: String,
    map: &'a Map<String, Json>,
    read: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Settings<'a> {
    /// `what` names the object in messages.
    pub fn new(what: String, map: &'a Map<String, Json>) -> Settings<'a> {
        Settings {
            what,
            map,
            read: RefCell::default(),
        }
    }

    fn get(&self, key: &'static str) -> Option<&'a Json> {
        self.read.borrow_mut().insert(key);
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn name(&self, key: &str) -> String {
        format!("{}: {key}", self.what)
    }

    /// Whether the key is there, without counting it as read.
    pub fn has(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|value| !value.is_null())
    }

    /// A whole number; a list of equal numbers, as for height and width, is one.
    pub fn number(&self, key: &'static str, default: usize) -> Result<usize> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        let one = match value.as_array().map(Vec::as_slice) {
            Some([first, rest @ ..]) if rest.iter().all(|x| x == first) => first,
            _ => value,
        };
        match one.as_u64() {
            Some(number) => Ok(number as usize),
            None => Err(Error::setting(self.name(key), "a whole number", value)),
        }
    }

    /// A number.
    pub fn float(&self, key: &'static str, default: f64) -> Result<f32> {
        match self.get(key) {
            None => Ok(default as f32),
            Some(value) => match value.as_f64() {
                Some(number) if number.is_finite() => Ok(number as f32),
                _ => Err(Error::setting(self.name(key), "a number", value)),
            },
        }
    }

    /// True or false.
    pub fn switch(&self, key: &'static str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| Error::setting(self.name(key), "true or false", value)),
        }
    }

    /// A text.
    pub fn text(&self, key: &'static str, default: &'a str) -> Result<&'a str> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_str()
                .ok_or_else(|| Error::setting(self.name(key), "a text", value)),
        }
    }

    /// An object, where there is one.
    pub fn object(&self, key: &'static str) -> Result<Option<&'a Map<String, Json>>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_object() {
                Some(map) => Ok(Some(map)),
                None => Err(Error::setting(self.name(key), "an object", value)),
            },
        }
    }

    /// Texts, where there are any.
    pub fn texts(&self, key: &'static str) -> Result<Vec<&'a str>> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        let texts = value
            .as_array()
            .and_then(|list| list.iter().map(Json::as_str).collect());
        texts.ok_or_else(|| Error::setting(self.name(key), "a list of texts", value))
    }

    /// Refuses what Keel has no code for.
    pub fn refuse(&self, key: &str, want: impl ToString, found: impl ToString) -> Error {
        let want = format!("{}, the only form Keel computes", want.to_string());
        Error::setting(self.name(key), want, found)
    }

    /// Refuses a switch that stands the wrong way.
    pub fn only_switch(&self, key: &'static str, want: bool, default: bool) -> Result<()> {
        match self.switch(key, default)? {
            found if found == want => Ok(()),
            found => Err(self.refuse(key, want, found)),
        }
    }

    /// Refuses another text.
    pub fn only_text(&self, key: &'static str, want: &'a str, default: &'a str) -> Result<()> {
        match self.text(key, default)? {
            found if found == want => Ok(()),
            found => Err(self.refuse(key, want, found)),
        }
    }

    /// Refuses another number.
    pub fn only_number(&self, key: &'static str, want: usize, default: usize) -> Result<()> {
        match self.number(key, default)? {
            found if found == want => Ok(()),
            found => Err(self.refuse(key, want, found)),
        }
    }

    /// Refuses keys that nobody read and that may change what the model computes. Returns the regularisers that are on.
    pub fn finish(self) -> Result<Vec<String>> {
        let read = self.read.borrow();
        let mut on = Vec::new();
        for (key, value) in self.map {
            if REGULARISERS.contains(&key.as_str()) {
                if value.as_f64().is_some_and(|share| share > 0.0) {
                    on.push(format!("{key} {value}"));
                }
            } else if !read.contains(key.as_str()) && !HARMLESS.contains(&key.as_str()) {
                let names = read.iter().copied().chain(HARMLESS.iter().copied());
                let near = nearest(key, names).unwrap_or_default();
                return Err(Error::setting(
                    self.name(key),
                    format!(
                        "only settings that Keel knows for this model, the nearest being {near}; take it out if it does not \
                         change what the model computes"
                    ),
                    value,
                ));
            }
        }
        Ok(on)
    }
}
