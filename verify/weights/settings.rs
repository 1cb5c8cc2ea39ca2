//! Settings alone, without a tensor: the `config.json` of published models key by key, those that transformers dumps by default,
//! and keys that change nothing at some values and are refused by name at others.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use keel::model::{LanguageConfig, LearnedPositions, VisionConfig};
use keel::weights::{LengthLimit, PartSettings, SubModelConfig, part_settings};
use serde_json::{Map, Value as Json, json};

use super::hub;

/// Files as their authors published them, and as two versions of transformers write the defaults of its classes.
fn published() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("verify/weights/published")
}

fn read(path: &Path) -> Map<String, Json> {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap_or_else(|e| panic!("{path:?}: {e}"))
}

fn parts(config: &Map<String, Json>) -> keel::error::Result<Vec<PartSettings>> {
    part_settings("config.json", config)
}

/// The settings that Keel makes of a file, in one line, or why it refuses the file.
fn line(config: &Map<String, Json>) -> String {
    let parts = match parts(config) {
        Ok(parts) => parts,
        Err(problem) => return format!("refused: {problem}"),
    };
    let one = |part: &PartSettings| match &part.config {
        SubModelConfig::Vision(config) => vision(config),
        SubModelConfig::Language(config) => language(config, part.length_limit),
        _ => unreachable!("config.json is of towers and decoders"),
    };
    parts.iter().map(one).collect::<Vec<_>>().join(" + ")
}

fn vision(config: &VisionConfig) -> String {
    let mut text = format!(
        "vision {}px/{} {}x{} heads {} mlp {} {:?} {:?} eps {}",
        config.image_size,
        config.patch_size,
        config.width,
        config.depth,
        config.heads,
        config.mlp_width,
        config.norm,
        config.mlp,
        config.norm_epsilon
    );
    for (is_on, name) in [
        (config.patch_bias, "patch-bias"),
        (config.patch_norm, "patch-norm"),
        (config.class_token, "class-token"),
        (config.pre_norm, "pre-norm"),
        (config.final_norm, "final-norm"),
        (config.qkv_bias, "qkv-bias"),
        (config.bias, "bias"),
        (config.layer_scale.is_some(), "layer-scale"),
        (!config.key_bias, "no-key-bias"),
        (config.qk_norm, "qk-norm"),
    ] {
        if is_on {
            write!(text, " {name}").unwrap();
        }
    }
    if config.registers > 0 {
        write!(text, " registers {}", config.registers).unwrap();
    }
    if config.learned_positions != LearnedPositions::default() {
        write!(text, " positions {:?}", config.learned_positions).unwrap();
    }
    if let Some(theta) = config.rope_theta {
        write!(text, " theta {theta}").unwrap();
    }
    text
}

fn language(config: &LanguageConfig, limit: Option<LengthLimit>) -> String {
    let mut text = format!(
        "language {}x{} heads {}/{} of {} mlp {} vocabulary {} theta {} eps {}",
        config.width,
        config.depth,
        config.heads,
        config.key_value_heads,
        config.head_dim,
        config.mlp_width,
        config.vocabulary,
        config.rope_theta,
        config.norm_epsilon
    );
    for (is_on, name) in [
        (config.qkv_bias, "qkv-bias"),
        (config.qk_norm, "qk-norm"),
        (config.tied_embeddings, "tied"),
    ] {
        if is_on {
            write!(text, " {name}").unwrap();
        }
    }
    if let Some(limit) = limit {
        write!(text, " up to {}", limit.tokens).unwrap();
    }
    text
}

#[test]
fn published_settings_are_taken_as_they_stand_or_refused_by_name() {
    let mut found = String::new();
    for folder in ["", "defaults-4.37.2", "defaults-5.24.0"] {
        let entries = fs::read_dir(published().join(folder)).unwrap();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|ending| ending == "json"));
        files.sort();
        assert!(!files.is_empty(), "{folder}");
        for path in files {
            let name = path.file_stem().unwrap().to_string_lossy();
            let slash = if folder.is_empty() { "" } else { "/" };
            writeln!(found, "{folder}{slash}{name}: {}", line(&read(&path))).unwrap();
        }
    }
    let wanted = fs::read_to_string(published().join("expected.txt")).unwrap_or_default();
    for (found, wanted) in found.lines().zip(wanted.lines()) {
        assert_eq!(found, wanted);
    }
    assert_eq!(found, wanted);
}

/// A golden folder's settings with `value` at `key`.
fn with(family: &str, key: &str, value: Json) -> Map<String, Json> {
    let mut config = read(&hub(family).join("config.json"));
    config.insert(key.to_owned(), value);
    config
}

#[test]
fn keys_that_change_nothing_are_taken_at_the_values_at_which_they_do() {
    let same = |family: &str, key: &str, value: Json| {
        let plain = line(&read(&hub(family).join("config.json")));
        assert_eq!(
            line(&with(family, key, value.clone())),
            plain,
            "{key} {value}"
        );
    };
    for (family, key, off, on) in [
        ("qwen2", "use_mrope", json!(false), json!(true)),
        ("qwen3", "use_mrope", json!(false), json!(true)),
        ("internvit", "use_moe", json!(false), json!(true)),
        (
            "qwen2",
            "moe_config",
            json!(null),
            json!({"num_experts": 8}),
        ),
        ("clip", "chunk_size_feed_forward", json!(0), json!(64)),
        ("siglip", "pruned_heads", json!({}), json!({"0": [1]})),
        ("dinov2", "add_cross_attention", json!(false), json!(true)),
        ("qwen2", "is_encoder_decoder", json!(false), json!(true)),
        (
            "qwen2",
            "quantization_config",
            json!(null),
            json!({"bits": 4}),
        ),
        ("siglip", "num_positions", json!(16), json!(256)),
        (
            "dinov2-registers",
            "interpolate_antialias",
            json!(true),
            json!(false),
        ),
        (
            "dinov2-registers",
            "interpolate_offset",
            json!(0.0),
            json!(0.1),
        ),
        ("dinov3", "value_bias", json!(true), json!(false)),
        ("dinov3", "mlp_bias", json!(true), json!(false)),
    ] {
        same(family, key, off);
        let problem = line(&with(family, key, on));
        let named = format!("refused: config.json: {key}: expected");
        assert!(problem.starts_with(&named), "{problem}");
    }
    for (family, key) in [
        ("clip", "tie_word_embeddings"),
        ("siglip", "unsloth_fixed"),
        ("qwen2", "attn_implementation"),
        ("qwen2", "unsloth_fixed"),
        ("qwen2", "attention_bias"),
        ("internvl", "_attn_implementation_internal"),
    ] {
        same(family, key, json!(true));
        same(family, key, json!(false));
    }
    // Experts that are not there have no settings; a tower has no words.
    same("internvit", "num_experts", json!(8));
    same("siglip", "vocab_size", json!(257_152));
    let problem = line(&with("clip", "num_experts", json!(8)));
    assert!(problem.contains("config.json: num_experts"), "{problem}");
}

/// What transformers 4.37.2 dumps beside a whole model's own settings says nothing of what it computes.
#[test]
fn a_dumped_model_is_the_model_without_the_dump() {
    let [dumped, bare] = ["dumped-internvl", "internvl-attn-implementation"]
        .map(|name| line(&read(&published().join(format!("{name}.json")))));
    assert_eq!(dumped, bare);
    assert!(dumped.starts_with("vision 32px/8") && dumped.contains(" + language 32x2"));
}

#[test]
fn numbers_that_no_model_can_have_are_refused_by_their_key() {
    for (family, key, value) in [
        ("clip", "layer_norm_eps", json!(0)),
        ("clip", "layer_norm_eps", json!(-1)),
        ("siglip", "layer_norm_eps", json!(1e-60)),
        ("aimv2", "rms_norm_eps", json!(1e39)),
        ("qwen2", "rms_norm_eps", json!(0.0)),
        ("qwen3", "rms_norm_eps", json!("NaN")),
        ("qwen2", "rope_theta", json!(1e308)),
        ("qwen2", "rope_theta", json!(0)),
        ("dinov2", "layerscale_value", json!(1e308)),
        ("dinov2", "mlp_ratio", json!(1e308)),
    ] {
        let problem = line(&with(family, key, value.clone()));
        let named = format!("refused: config.json: {key}: expected a number");
        assert!(problem.starts_with(&named), "{value}: {problem}");
    }
    let rope = json!({"rope_type": "default", "rope_theta": 1e308});
    let problem = line(&with("qwen2", "rope_parameters", rope));
    assert!(
        problem.contains("rope_parameters.rope_theta: expected a number"),
        "{problem}"
    );
    // What is left names the file, too.
    let problem = line(&with("clip", "num_attention_heads", json!(0)));
    assert!(
        problem.starts_with("refused: config.json: vision."),
        "{problem}"
    );
}

#[test]
fn rope_scaling_is_taken_where_it_leaves_sequences_alone() {
    let rope = |value: Json| {
        let mut config = with("qwen2", "max_position_embeddings", json!(512));
        config.insert("rope_scaling".into(), value);
        config
    };
    for (value, limit) in [
        (
            json!({"type": "dynamic", "factor": 2.0}),
            Some((512, "rope_scaling")),
        ),
        (
            json!({"type": "dynamic", "rope_type": "dynamic", "factor": 2.0}),
            Some((512, "rope_scaling")),
        ),
        (json!({"type": "linear", "factor": 1.0}), None),
        (
            json!({"rope_type": "default", "partial_rotary_factor": 1.0}),
            None,
        ),
        (json!(null), None),
    ] {
        let parts = parts(&rope(value.clone())).unwrap_or_else(|e| panic!("{value}: {e}"));
        let found = parts[0].length_limit.map(|limit| (limit.tokens, limit.key));
        assert_eq!(found, limit, "{value}");
    }
    for (value, word) in [
        (json!({"type": "yarn", "factor": 4.0}), "rope_scaling.type"),
        (
            json!({"type": "linear", "factor": 2.0}),
            "rope_scaling.type",
        ),
        (
            json!({"rope_type": "dynamic", "type": "yarn", "factor": 2.0}),
            "rope_scaling.type",
        ),
        (json!({"rope_type": 5}), "rope_scaling.rope_type"),
        (
            json!({"type": "default", "mrope_section": [16, 24, 24]}),
            "rope_scaling.mrope_section",
        ),
        (
            json!({"rope_type": "default", "partial_rotary_factor": 0.5}),
            "partial_rotary_factor",
        ),
    ] {
        let problem = line(&rope(value));
        assert!(
            problem.contains(&format!("{word}: expected"))
                || problem.contains(&format!(".{word}: expected")),
            "{problem}"
        );
    }
}

/// A window changes nothing of sequences that fit in it.
#[test]
fn a_window_is_taken_for_sequences_that_fit_in_it() {
    let limit = |value: Json| {
        let config = with("mistral", "sliding_window", value);
        parts(&config).unwrap_or_else(|e| panic!("{e}"))[0].length_limit
    };
    let window = |tokens| {
        Some(LengthLimit {
            tokens,
            key: "sliding_window",
        })
    };
    assert_eq!(limit(json!(8)), window(8));
    assert_eq!(limit(json!(null)), None);
    // Where the file is silent, the published code has a window.
    let mut config = with("mistral", "sliding_window", json!(8));
    config.remove("sliding_window");
    assert_eq!(parts(&config).unwrap()[0].length_limit, window(4096));
}

/// What open_clip computes otherwise is refused where it stands.
#[test]
fn settings_of_open_clip_that_change_the_maths_are_refused_by_name() {
    let path = hub("open-clip").join("open_clip_config.json");
    let config = Json::Object(read(&path));
    let line_with = |key: &str, value: Json| {
        let mut config = config.clone();
        *config.pointer_mut("/model_cfg/vision_cfg").unwrap() = json!({"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8, key: value});
        line(config.as_object().unwrap())
    };
    assert!(line_with("patch_dropout", json!(0.5)).starts_with("vision 32px/8 32x2 heads 2"));
    for (key, value) in [
        ("attentional_pool", json!(true)),
        ("final_ln_after_pool", json!(true)),
        ("pool_type", json!("avg")),
        ("pos_embed_type", json!("sin_cos_2d")),
        ("timm_model_name", json!("convnext_base")),
        ("norm_kwargs", json!({"eps": 1e-6})),
    ] {
        let problem = line_with(key, value);
        let named = format!("refused: config.json: model_cfg.vision_cfg: {key}: expected");
        assert!(problem.starts_with(&named), "{problem}");
    }
}

#[test]
fn a_pair_that_says_its_tower_twice_and_differently_is_refused() {
    let mut config = read(&published().join("clip-vit-large-patch14.json"));
    config["vision_config_dict"]["num_hidden_layers"] = json!(12);
    let problem = line(&config);
    assert!(
        problem.contains(
            "vision_config_dict.num_hidden_layers: expected what vision_config says, 24, found 12"
        ),
        "{problem}"
    );
    // What says nothing of the tower may differ.
    config["vision_config_dict"]["num_hidden_layers"] = json!(24);
    config["vision_config_dict"]["projection_dim"] = json!(512);
    assert!(line(&config).starts_with("vision 224px/14 1024x24"));
}
