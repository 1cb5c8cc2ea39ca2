//! What an exported folder says of its chats: where an answer ends, and how a conversation is laid out. A decoder that was published
//! for text alone ends its texts by another token than the chats that it was trained on here, and whoever generates with it
//! would go on past every answer.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value as Json, json};

use crate::chat_template::{
    CHAT_TEMPLATE, JINJA, TOKENIZER_SETTINGS, folder_chat_template_of, read_settings,
};
use keel_base::error::{Error, Result};
use keel_data::chat::ChatTokenizer;

/// What generates with a model stops at the tokens that stand here.
const GENERATION: &str = "generation_config.json";
/// Tokens by role, in older folders.
const SPECIAL_TOKENS: &str = "special_tokens_map.json";

/// Makes the files of `folder`, which were copied from the folder that the weights came in, say what the run's chats are. Files that
/// say so already stay as they came. Returns what was changed, a sentence each; nothing for the embedded tokenizer.
///
/// # Errors
/// [`Error::Io`] and [`Error::Content`] naming the file.
pub(super) fn tell_chat(folder: &Path, tokenizer: &ChatTokenizer) -> Result<Vec<String>> {
    let (Some(template), Some(end)) = (tokenizer.template(), tokenizer.end_token()) else {
        return Ok(Vec::new());
    };
    let mut notes = Vec::new();
    let generation = folder.join(GENERATION);
    let mut settings = read_settings(&generation)?;
    if add_end(&mut settings, tokenizer.end()) {
        write_json(&generation, &settings)?;
        notes.push(format!(
            "{GENERATION} names {end}, which ends the answers of the run's chats"
        ));
    }
    let path = folder.join(TOKENIZER_SETTINGS);
    let mut settings = read_settings(&path)?;
    let is_new = settings.is_empty();
    let mut is_changed = false;
    if is_new {
        settings.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    }
    if name_end(&mut settings, end) {
        is_changed = true;
        notes.push(format!("{TOKENIZER_SETTINGS} names {end} as its eos_token"));
    }
    let said = folder_chat_template_of(folder, &settings)?;
    if !matches!(said, Some((Ok(said), _)) if said == template) {
        let text = template.to_jinja();
        let jinja = folder.join(JINJA);
        let mut file = TOKENIZER_SETTINGS;
        if jinja.exists() {
            // It goes before all others.
            file = JINJA;
            fs::write(&jinja, text).map_err(|e| Error::io(&jinja, "write", e))?;
        } else {
            settings.insert(CHAT_TEMPLATE.into(), json!(text));
            is_changed = true;
        }
        notes.push(format!(
            "{file} lays out chats as the run did, by the template {}",
            template.name()
        ));
    }
    if is_changed {
        write_json(&path, &settings)?;
    }
    let path = folder.join(SPECIAL_TOKENS);
    let mut settings = read_settings(&path)?;
    if !settings.is_empty() && name_end(&mut settings, end) {
        write_json(&path, &settings)?;
    }
    Ok(notes)
}

/// Adds an id to those that end what is generated. Whether it was not there.
fn add_end(settings: &mut Map<String, Json>, end: i32) -> bool {
    let key = "eos_token_id";
    let ends = match settings.get(key) {
        None | Some(Json::Null) => json!(end),
        Some(Json::Array(ends)) if ends.contains(&json!(end)) => return false,
        Some(Json::Array(ends)) => [&[json!(end)], &ends[..]].concat().into(),
        Some(only) if *only == json!(end) => return false,
        Some(only) => json!([end, only]),
    };
    settings.insert(key.into(), ends);
    true
}

/// Makes `end` the token that ends a text. Whether it was another.
fn name_end(settings: &mut Map<String, Json>, end: &str) -> bool {
    let key = "eos_token";
    let token = match settings.get(key) {
        // A token with its flags.
        Some(Json::Object(token)) => token.get("content"),
        other => other,
    };
    if token.and_then(Json::as_str) == Some(end) {
        return false;
    }
    settings.insert(key.into(), json!(end));
    true
}

/// Writes settings as other tools do.
pub(super) fn write_json(path: &Path, config: &Map<String, Json>) -> Result<()> {
    let mut text = serde_json::to_string_pretty(config).expect("settings are plain data");
    text.push('\n');
    fs::write(path, text).map_err(|e| Error::io(path, "write", e))
}
