//! The chats of folders: which template one was trained on is read from it and never guessed, and an export ends and lays out its
//! chats as the run did.

use std::fs;
use std::path::Path;

use keel::data::chat::ChatTemplate;
use keel::train::folder_chat_template;
use keel::weights::Folder;
use serde_json::{Value as Json, json};

use super::hub;
use super::starting::language_with_rows;
use crate::command::{keel, tiny_recipe};

/// The chat template of F06's decoder: turns, and no system turn of its own.
const TURNS: &str = "{% for m in messages %}<|im_start|>{{m.role}}\n{{m.content}}<|im_end|>\n{% endfor %}\
                     {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A folder with these settings; only its header is asked for weights.
fn folder(config: &Json, files: &[(&str, String)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let weights = hub("qwen2").join("model.safetensors");
    fs::copy(weights, folder.path().join("model.safetensors")).unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn template(
    config: &Json,
    files: &[(&str, String)],
) -> Result<(ChatTemplate, &'static str), String> {
    let folder = folder(config, files);
    let folder = Folder::open(folder.path()).unwrap_or_else(|e| panic!("{e}"));
    folder_chat_template(&folder).map_err(|problem| problem.to_string())
}

#[test]
fn a_whole_model_names_its_template_and_other_names_are_refused() {
    let whole = |name: &str| json!({"template": name, "llm_config": {"model_type": "qwen2"}});
    // Keel's own names, for layouts that InternVL has none for, come back too.
    for known in ChatTemplate::ALL {
        let found = template(&whole(known.internvl_name()), &[]);
        assert_eq!(found, Ok((known, "config.json")));
    }
    let found = template(&whole("Hermes-2"), &[]).unwrap();
    assert_eq!(found.0, ChatTemplate::Hermes2);
    for other in ["phi3-chat", "internvl2_5_thinking", "vicuna_v1.1", ""] {
        let problem = template(&whole(other), &[]).unwrap_err();
        for words in [
            "config.json: template",
            "internvl2_5",
            "Hermes-2",
            "--chat",
            other,
        ] {
            assert!(problem.contains(words), "no {words:?} in: {problem}");
        }
    }
}

#[test]
fn a_decoder_has_the_template_that_its_files_render() {
    let decoder = json!({"model_type": "qwen2"});
    let settings = |template: Json| {
        (
            "tokenizer_config.json",
            json!({"chat_template": template}).to_string(),
        )
    };
    let found = template(&decoder, &[settings(json!(TURNS))]);
    assert_eq!(found, Ok((ChatTemplate::ChatMl, "tokenizer_config.json")));
    // A file of its own goes before; of several by name the default counts.
    let jinja = ChatTemplate::Qwen3.to_jinja();
    let files = [
        settings(json!(TURNS)),
        ("chat_template.jinja", jinja.clone()),
    ];
    assert_eq!(
        template(&decoder, &files),
        Ok((ChatTemplate::Qwen3, "chat_template.jinja"))
    );
    let several =
        json!([{"name": "tool_use", "template": TURNS}, {"name": "default", "template": jinja}]);
    let found = template(&decoder, &[settings(several)]);
    assert_eq!(found, Ok((ChatTemplate::Qwen3, "tokenizer_config.json")));
    let files = [(
        "chat_template.json",
        json!({"chat_template": TURNS}).to_string(),
    )];
    assert_eq!(
        template(&decoder, &files),
        Ok((ChatTemplate::ChatMl, "chat_template.json"))
    );

    for (files, words) in [
        (vec![], "says no chat template"),
        (vec![settings(json!(null))], "says no chat template"),
        (
            vec![settings(json!(
                "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
            ))],
            "renders a question as",
        ),
        (
            vec![settings(json!("{% for m in messages %}"))],
            "cannot be read",
        ),
        (
            vec![settings(json!("{{ raise_exception('never') }}"))],
            "cannot be rendered",
        ),
        (
            vec![settings(json!(
                "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
            ))],
            "cannot be rendered",
        ),
        (
            vec![("tokenizer_config.json", "[".to_owned())],
            "is not a JSON object",
        ),
    ] {
        let problem = template(&decoder, &files).unwrap_err();
        assert!(problem.contains(words), "no {words:?} in: {problem}");
        assert_eq!(problem.lines().count(), 1, "{problem}");
    }
}

/// A base decoder of Qwen's kind: its texts end with <|endoftext|>, id 420 of the golden tokenizer, and its answers with 422.
fn base_decoder(path: &Path, files: &[(&str, String)]) {
    language_with_rows("qwen2", path, 429);
    let golden = Path::new("verify/goldens/chat/tokenizer.json");
    fs::copy(golden, path.join("tokenizer.json")).unwrap();
    for (name, text) in files {
        fs::write(path.join(name), text).unwrap();
    }
}

fn json_of(path: &Path) -> Json {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Trains the decoder in `path` for a step and exports it. Returns what the export said.
fn exported(path: &Path, chat: &[&str]) -> String {
    fs::write(path.join("my.toml"), tiny_recipe(&["warm-up"])).unwrap();
    let train = "train --device cpu --recipe my.toml --no-evaluation --max-steps 1 --language decoder --out run";
    let train: Vec<&str> = train.split(' ').chain(chat.iter().copied()).collect();
    keel(path, &train).fine();
    let export = ["export", "run", "--part", "language", "--out", "out"];
    keel(path, &export).fine().stdout
}

#[test]
fn an_export_stops_where_the_chats_of_its_run_stop() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let token = json!({"content": "<|endoftext|>", "special": true});
    let settings =
        json!({"eos_token": token, "pad_token": "<|endoftext|>", "chat_template": TURNS});
    base_decoder(
        &path.join("decoder"),
        &[
            (
                "generation_config.json",
                json!({"eos_token_id": 420, "max_new_tokens": 2048}).to_string(),
            ),
            (
                "special_tokens_map.json",
                json!({"eos_token": "<|endoftext|>"}).to_string(),
            ),
            ("tokenizer_config.json", settings.to_string()),
        ],
    );
    let said = exported(path, &["--chat", "qwen2.5"]);
    for words in [
        "generation_config.json names <|im_end|>",
        "eos_token",
        "by the template qwen2.5",
    ] {
        assert!(said.contains(words), "no {words:?} in: {said}");
    }
    let out = path.join("out");
    let generation = json_of(&out.join("generation_config.json"));
    assert_eq!(
        generation,
        json!({"eos_token_id": [422, 420], "max_new_tokens": 2048})
    );
    let settings = json_of(&out.join("tokenizer_config.json"));
    assert_eq!(settings["eos_token"], "<|im_end|>");
    assert_eq!(settings["pad_token"], "<|endoftext|>");
    assert_eq!(
        json_of(&out.join("special_tokens_map.json"))["eos_token"],
        "<|im_end|>"
    );
    // The folder says by itself what it was trained on.
    let out = Folder::open(&out).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(folder_chat_template(&out).unwrap().0, ChatTemplate::Qwen25);
}

#[test]
fn a_folder_that_says_its_chats_rightly_leaves_as_it_came() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let files = [
        (
            "generation_config.json",
            "{\"eos_token_id\":[422,420]}".to_owned(),
        ),
        (
            "tokenizer_config.json",
            "{\"eos_token\":\"<|im_end|>\"}".to_owned(),
        ),
        ("chat_template.jinja", TURNS.to_owned()),
    ];
    base_decoder(&path.join("decoder"), &files);
    let said = exported(path, &[]);
    assert_eq!(said.lines().count(), 1, "{said}");
    for (name, text) in &files {
        let there = fs::read_to_string(path.join("out").join(name)).unwrap();
        assert_eq!(&there, text, "{name}");
    }
}

#[test]
fn a_folder_that_says_nothing_of_its_chats_says_it_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    base_decoder(&path.join("decoder"), &[]);
    let train = [
        "train",
        "--device",
        "cpu",
        "--recipe",
        "tiny",
        "--language",
        "decoder",
    ];
    keel(path, &train).refused(&["decoder", "says no chat template", "--chat", "qwen2.5"]);
    exported(path, &["--chat", "chatml"]);
    let out = path.join("out");
    assert_eq!(
        json_of(&out.join("generation_config.json")),
        json!({"eos_token_id": 422})
    );
    let folder = Folder::open(&out).unwrap_or_else(|e| panic!("{e}"));
    let found = folder_chat_template(&folder).unwrap();
    assert_eq!(found, (ChatTemplate::ChatMl, "tokenizer_config.json"));
}

/// Rotary positions that change in long sequences only are taken, and longer stages refused.
#[test]
fn stages_that_are_longer_than_the_rotary_positions_hold_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let decoder = path.join("decoder");
    language_with_rows("qwen2", &decoder, 512);
    let scale = |longest: usize| {
        let mut config = json_of(&decoder.join("config.json"));
        config["rope_scaling"] = json!({"type": "dynamic", "factor": 2.0});
        config["max_position_embeddings"] = json!(longest);
        fs::write(decoder.join("config.json"), config.to_string()).unwrap();
    };
    fs::write(path.join("my.toml"), tiny_recipe(&["warm-up"])).unwrap();
    let train = [
        "train",
        "--device",
        "cpu",
        "--recipe",
        "my.toml",
        "--language",
        "decoder",
        "--dry-run",
    ];
    scale(32_768);
    let said = keel(path, &train).fine().stdout;
    assert!(
        said.contains("changes sequences of more than 32768 tokens only"),
        "{said}"
    );
    scale(8);
    keel(path, &train).refused(&["stage.warm-up.max_tokens", "at most 8", "rope_scaling"]);
}
