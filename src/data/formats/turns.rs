//! Conversations, in the spellings of LLaVA and ShareGPT (`conversations`: `from`, `value`) and of OpenAI (`messages`: `role`,
//! `content`).

use serde_json::{Map, Value};

use super::record_text::{Problem, RecordText, bad, trimmed};
use crate::text::chat::{MARK, Turn};

/// Stand-ins for what is no image.
const REFUSED: [&str; 2] = ["<video>", "<audio>"];

/// Keys by which a turn says whether it is learnt: ms-swift, OpenAI and Mistral, axolotl.
pub(super) const SUPERVISION: [&str; 5] = ["loss", "loss_scale", "weight", "train", "training"];

/// Who speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Speaker {
    System,
    User,
    Assistant,
}

/// The paths of images that the parts of a message name.
pub(super) fn images_in_messages<'a>(object: &'a Map<String, Value>) -> Vec<&'a str> {
    let turns = object.get("messages").and_then(Value::as_array);
    let parts = turns
        .into_iter()
        .flatten()
        .filter_map(|turn| turn["content"].as_array());
    let named = |part: &'a Value| {
        let place = match part["type"].as_str()? {
            "image" => &part["image"],
            "image_url" if part["image_url"].is_string() => &part["image_url"],
            "image_url" => &part["image_url"]["url"],
            _ => return None,
        };
        place.as_str()
    };
    parts.flatten().filter_map(named).collect()
}

/// Who says what in one turn; parts that stand for images become placeholders.
fn said(name: &str, turn: &Value) -> Result<(Speaker, String), Problem> {
    let role = turn["from"].as_str().or(turn["role"].as_str());
    let speaker = match role {
        Some("human" | "user") => Speaker::User,
        Some("gpt" | "assistant" | "model") => Speaker::Assistant,
        Some("system") => Speaker::System,
        Some(other) => {
            let problem = format!("{other} speaks in it, beside system, user and assistant");
            return Err(bad(name, problem, "leave such turns out"));
        }
        None => {
            return Err(bad(
                name,
                "a turn has no from and no role",
                "say who speaks",
            ));
        }
    };
    let content = if turn["value"].is_null() {
        &turn["content"]
    } else {
        &turn["value"]
    };
    let text = match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let mut text = String::new();
            for part in parts {
                match part["type"].as_str() {
                    Some("text") => text.push_str(part["text"].as_str().unwrap_or_default()),
                    Some("image" | "image_url") => text.push_str(MARK),
                    _ => {
                        let problem = "a part of a message is neither text nor an image";
                        return Err(bad(name, problem, "leave it out"));
                    }
                }
            }
            text
        }
        _ => {
            return Err(bad(
                name,
                "a turn says nothing",
                "give it a value or a content",
            ));
        }
    };
    if let Some(other) = REFUSED.iter().find(|mark| text.contains(**mark)) {
        return Err(bad(name, format!("it is about a {other}"), "leave it out"));
    }
    Ok((speaker, text))
}

/// Whether a turn is learnt, where it says so.
fn supervision(name: &str, turn: &Value) -> Result<Option<bool>, Problem> {
    let mut learnt = None;
    for key in SUPERVISION {
        let value = match &turn[key] {
            Value::Null => continue,
            Value::Bool(value) => *value,
            // Zero and one are the whole of what can be honoured: answers are not weighed one by one.
            Value::Number(value) if value.as_f64() == Some(0.0) => false,
            Value::Number(value) if value.as_f64() == Some(1.0) => true,
            value => {
                let problem = format!("the {key} of a turn is {value}");
                return Err(bad(name, problem, "a turn is learnt (1) or not (0)"));
            }
        };
        learnt = Some(learnt.unwrap_or(true) && value);
    }
    Ok(learnt)
}

/// Questions and answers in turn, the system's words before them where there are any.
///
/// LLaVA's training code passes over a first turn that is not the user's and learns nothing from a last question: both are
/// common in ShareGPT's conversations, and left out here.
pub(super) fn conversation(name: &str, turns: &[Value]) -> Result<RecordText, Problem> {
    let mut system = None;
    let mut pairs: Vec<Turn> = Vec::new();
    let mut unsupervised = Vec::new();
    let mut open: Option<String> = None;
    let mut is_trimmed = false;
    for (index, turn) in turns.iter().enumerate() {
        let (speaker, text) = said(name, turn)?;
        let is_learnt = supervision(name, turn)?;
        if speaker != Speaker::Assistant && is_learnt == Some(true) {
            let problem = format!("its turn {} is to be learnt and is no answer", index + 1);
            return Err(bad(name, problem, "only answers are: leave the key out"));
        }
        match (speaker, open.take()) {
            (Speaker::System, None) if index == 0 => {
                system = Some(text.trim().to_owned()).filter(|text| !text.is_empty());
            }
            (Speaker::User, None) => open = Some(text.trim().to_owned()),
            (Speaker::Assistant, Some(question)) => {
                if is_learnt == Some(false) {
                    unsupervised.push(pairs.len());
                }
                pairs.push(Turn {
                    question,
                    answer: trimmed(name, &text)?,
                });
            }
            (Speaker::Assistant, None) if pairs.is_empty() && !is_trimmed => is_trimmed = true,
            _ => {
                let problem = format!("its turn {} does not answer the one before", index + 1);
                return Err(bad(name, problem, "let user and assistant speak in turn"));
            }
        }
    }
    if let Some(question) = open {
        // Without it the image would be shown at another place, or to nobody.
        if question.contains(MARK) && !pairs.is_empty() {
            let problem = "its last question shows an image and has no answer";
            return Err(bad(name, problem, "answer it or leave it out"));
        }
        is_trimmed = true;
    }
    if unsupervised.len() == pairs.len() && !pairs.is_empty() {
        let problem = "none of its answers is to be learnt";
        return Err(bad(name, problem, "leave it out"));
    }
    let mut pairs = pairs.into_iter();
    let Some(first) = pairs.next() else {
        let problem = "its conversation has no question with an answer";
        return Err(bad(name, problem, "add one"));
    };
    Ok(RecordText {
        prompt: (!first.question.is_empty()).then_some(first.question),
        further: pairs.collect(),
        system,
        unsupervised,
        is_trimmed,
        ..RecordText::caption(first.answer)
    })
}
