//! The words of a pair: plain captions, JSON captions, and conversations of one question and one answer.

use serde_json::{Map, Value};

use super::skips::Reason;
use crate::error::{Error, Result};

/// What is said about a picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    /// The caption or answer, trimmed, never empty.
    pub caption: String,
    /// The question, without the picture's placeholder.
    pub prompt: Option<String>,
}

/// A problem and the reason it is counted under.
type Problem = (Reason, Error);

/// The stand-in for a picture inside a conversation.
const PLACEHOLDER: &str = "<image>";

/// A caption held as plain text.
///
/// # Errors
/// The reason to count it under, and [`Error::Content`], when it is not UTF-8 or has nothing but blanks.
pub fn caption_of_text(name: &str, bytes: &[u8]) -> Result<String, Problem> {
    let text = std::str::from_utf8(bytes).map_err(|_| {
        let problem = Error::content(name, "its caption is not UTF-8", "save it as UTF-8");
        (Reason::NoCaption, problem)
    })?;
    trimmed(name, text)
}

/// Without blanks and byte-order mark around it.
fn trimmed(name: &str, text: &str) -> Result<String, Problem> {
    let text = text.trim_start_matches('\u{feff}').trim();
    if text.is_empty() {
        let problem = Error::content(
            name,
            "its caption is empty",
            "write one, or remove the sample",
        );
        return Err((Reason::EmptyCaption, problem));
    }
    Ok(text.to_owned())
}

/// The words in a JSON object: `caption`, `text`, or `conversations` of one exchange.
///
/// # Errors
/// The reason to count it under, and [`Error::Content`].
pub fn words_of_json(name: &str, bytes: &[u8]) -> Result<Words, Problem> {
    words_of_object(name, &object(name, bytes)?)
}

/// A JSON object, or the place where it goes wrong.
pub(crate) fn object(name: &str, bytes: &[u8]) -> Result<Map<String, Value>, Problem> {
    let bad = |problem: String| {
        let error = Error::content(name, problem, "write one JSON object, or remove it");
        (Reason::BadRecord, error)
    };
    match serde_json::from_slice(bytes.trim_ascii_end()) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(bad("it is JSON, but no object".to_owned())),
        // The line is named by the caller; the parser's own count would always be 1.
        Err(error) => Err(bad(format!("it is not JSON (column {})", error.column()))),
    }
}

/// As [`words_of_json`], of an object already read.
pub(crate) fn words_of_object(name: &str, object: &Map<String, Value>) -> Result<Words, Problem> {
    for key in ["caption", "text"] {
        if let Some(value) = object.get(key) {
            let text = value.as_str().ok_or_else(|| {
                let problem = format!("its {key} is not a string");
                (
                    Reason::BadRecord,
                    Error::content(name, problem, "make it one"),
                )
            })?;
            return trimmed(name, text).map(|caption| Words {
                caption,
                prompt: None,
            });
        }
    }
    match object.get("conversations") {
        Some(turns) => exchange(name, turns),
        None => {
            let problem = Error::content(
                name,
                "it has neither caption, text nor conversations",
                "add a caption",
            );
            Err((Reason::NoCaption, problem))
        }
    }
}

/// A question by "human" and an answer by "gpt"; longer conversations are refused rather than cut.
fn exchange(name: &str, turns: &Value) -> Result<Words, Problem> {
    let said = |turn: &Value, speaker: &str| -> Option<String> {
        (turn["from"] == speaker).then(|| turn["value"].as_str().map(str::to_owned))?
    };
    let turns = turns.as_array().map_or(&[][..], Vec::as_slice);
    let pair = match turns {
        [question, answer] => said(question, "human").zip(said(answer, "gpt")),
        _ => None,
    };
    let (question, answer) = pair.ok_or_else(|| {
        let problem = "its conversations are not one turn by human and one by gpt";
        let error = Error::content(name, problem, "split it into single exchanges");
        (Reason::BadRecord, error)
    })?;
    let question = question.replace(PLACEHOLDER, "").trim().to_owned();
    Ok(Words {
        caption: trimmed(name, &answer)?,
        prompt: (!question.is_empty()).then_some(question),
    })
}
