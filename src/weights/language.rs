//! Language settings: Qwen2, Qwen2.5 and Qwen3.

use serde_json::Value as Json;

use super::settings::Settings;
use keel_base::error::{Error, Result};
use keel_model::LanguageConfig;

/// Model types of language models.
pub(super) const LANGUAGE_TYPES: &[&str] = &["qwen2", "qwen3"];

/// Reads a decoder's settings. `kind` is one of [`LANGUAGE_TYPES`].
///
/// # Errors
/// [`Error::Setting`] naming the key that is no number, that Keel has no code for, or that Keel does not know.
pub(super) fn read(kind: &str, settings: &Settings) -> Result<(&'static str, LanguageConfig)> {
    let is_third = match kind {
        "qwen2" => false,
        "qwen3" => true,
        other => {
            return Err(Error::setting(
                "config.json: model_type",
                format!("one of {}", LANGUAGE_TYPES.join(", ")),
                other,
            ));
        }
    };
    match settings.text("hidden_act", "silu")? {
        "silu" => {}
        other => return Err(settings.refuse("hidden_act", "silu", other)),
    }
    settings.only_switch("use_sliding_window", false, false)?;
    // Without use_sliding_window its width stands unused.
    settings.number("sliding_window", 0)?;
    if let Some(other) = settings
        .texts("layer_types")?
        .into_iter()
        .find(|kind| *kind != "full_attention")
    {
        return Err(settings.refuse("layer_types", "full_attention", other));
    }
    let width = settings.number("hidden_size", 4096)?;
    let heads = settings.number("num_attention_heads", 32)?;
    let head_dim = match is_third {
        true => settings.number("head_dim", 128)?,
        false => settings.number("head_dim", width / heads.max(1))?,
    };
    let config = LanguageConfig {
        vocabulary: settings.number("vocab_size", 151_936)?,
        width,
        depth: settings.number("num_hidden_layers", 32)?,
        heads,
        key_value_heads: settings.number("num_key_value_heads", 32)?,
        head_dim,
        mlp_width: settings.number("intermediate_size", 22_016)?,
        rope_theta: rope_theta(settings)?,
        norm_epsilon: settings.float("rms_norm_eps", 1e-6)?,
        qkv_bias: !is_third,
        qk_norm: is_third,
        tied: settings.switch("tie_word_embeddings", false)?,
    };
    // Qwen2 has biases on queries, keys and values and none on the output, whatever this key says; Qwen3 has none.
    if is_third {
        settings.only_switch("attention_bias", false, false)?;
    }
    let title = match is_third {
        false => "Qwen2 language model (the Qwen2.5 form)",
        true => "Qwen3 language model",
    };
    Ok((title, config))
}

/// The base of the rotary positions: its own key, or since version 5 of transformers one of `rope_parameters`.
fn rope_theta(settings: &Settings) -> Result<f32> {
    let mut theta = settings.float("rope_theta", 10_000.0)?;
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(rope) = settings.object(key)? else {
            continue;
        };
        for (name, value) in rope {
            match (name.as_str(), value) {
                ("rope_theta", value) if value.as_f64().is_some() => {
                    theta = value.as_f64().unwrap_or_default() as f32;
                }
                ("rope_type" | "type", Json::String(kind)) if kind == "default" => {}
                _ => {
                    return Err(settings.refuse(
                        &format!("{key}.{name}"),
                        "rope_type \"default\"",
                        value,
                    ));
                }
            }
        }
    }
    Ok(theta)
}
