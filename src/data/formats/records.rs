//! The words of a pair: plain captions, JSON captions, questions with answers, and conversations (`turns`). Every
//! format that is not JSON is turned into such an object first, so that all are read alike.

use serde_json::{Map, Value};

pub use super::record_text::{MOST_IMAGES, RecordText};

use super::limits::MAX_TEXT_BYTES;
use super::record_text::{Problem, bad, trimmed};
use super::skips::Reason;
use super::turns;
use crate::text::chat::MARK;
use keel_base::error::{Error, Result};

/// Keys that change what a record says and that nothing here can honour.
pub(super) const REFUSED_KEYS: [&str; 6] =
    ["video", "videos", "audio", "audios", "tools", "functions"];

/// The keys of conversations.
const TURNS: [&str; 2] = ["conversations", "messages"];

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

/// The words in a JSON object: `caption`, `text`, `question` and `answer`, `conversations` or `messages`.
///
/// # Errors
/// The reason to count it under, and [`Error::Content`].
pub fn words_of_json(name: &str, bytes: &[u8]) -> Result<RecordText, Problem> {
    words_of_object(name, &object(name, bytes)?)
}

/// A JSON object, or the place where it goes wrong.
pub(crate) fn object(name: &str, bytes: &[u8]) -> Result<Map<String, Value>, Problem> {
    let remedy = "write one JSON object, or remove it";
    match serde_json::from_slice(bytes.trim_ascii_end()) {
        Ok(Value::Object(mut object)) => {
            drop_nulls(&mut object);
            Ok(object)
        }
        Ok(_) => Err(bad(name, "it is JSON, but no object", remedy)),
        // The line is named by the caller; the parser's own count would always be 1.
        Err(error) => {
            let problem = format!("it is not JSON (column {})", error.column());
            Err(bad(name, problem, remedy))
        }
    }
}

/// Drops keys without a value: `datasets` writes a null for each column that a record does not use.
pub(crate) fn drop_nulls(object: &mut Map<String, Value>) {
    object.retain(|_, value| !value.is_null());
}

/// As [`words_of_json`], of an object already read and without nulls.
pub(crate) fn words_of_object(
    name: &str,
    object: &Map<String, Value>,
) -> Result<RecordText, Problem> {
    for key in REFUSED_KEYS {
        if object.get(key).is_some_and(|value| !is_blank(value)) {
            let problem = format!("it has {key}, which cannot be shown to the model");
            return Err(bad(name, problem, "leave such records out"));
        }
    }
    let mut words = said_by(name, object)?;
    let size = words.size();
    if size > MAX_TEXT_BYTES {
        let problem = format!("its words have {size} bytes, the limit is {MAX_TEXT_BYTES}");
        let error = Error::content(name, problem, "shorten them");
        return Err((Reason::TooLarge, error));
    }
    if let Some(system) = text_of(name, object, "system")? {
        let system = system.trim();
        match &words.system {
            Some(first) if first != system && !system.is_empty() => {
                let problem = "its key system and its turn of the system differ";
                return Err(bad(name, problem, "keep one of them"));
            }
            None if !system.is_empty() => words.system = Some(system.to_owned()),
            _ => {}
        }
    }
    Ok(words)
}

/// Whether a value says nothing.
pub(super) fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty(),
        Value::Array(values) => values.is_empty(),
        _ => false,
    }
}

/// The string at a key, where there is one.
fn text_of<'a>(
    name: &str,
    object: &'a Map<String, Value>,
    key: &str,
) -> Result<Option<&'a str>, Problem> {
    let text = |value: &'a Value| {
        let text = value.as_str();
        text.ok_or_else(|| bad(name, format!("its {key} is not a string"), "make it one"))
    };
    object.get(key).map(text).transpose()
}

/// The first of the known keys that says something.
fn said_by(name: &str, object: &Map<String, Value>) -> Result<RecordText, Problem> {
    // A record uses one of its columns; an empty string says that it does not use this one.
    let mut is_empty = false;
    for key in ["caption", "text"] {
        match text_of(name, object, key)? {
            Some(text) if text.trim_start_matches('\u{feff}').trim().is_empty() => is_empty = true,
            Some(text) => return trimmed(name, text).map(RecordText::caption),
            None => {}
        }
    }
    for key in TURNS {
        if let Some(turns) = object.get(key) {
            let turns = turns
                .as_array()
                .ok_or_else(|| bad(name, format!("its {key} are no list"), "make them one"))?;
            return turns::conversation(name, turns);
        }
    }
    let answer = ["answer", "answers"]
        .into_iter()
        .find_map(|key| Some((key, object.get(key)?)));
    let question = text_of(name, object, "question")?;
    if let Some((key, answer)) = answer
        && let Some(answer) = chosen_answer(name, key, answer)?
    {
        return question_and_answer(name, question.unwrap_or_default(), answer);
    }
    if answer.is_some() || question.is_some_and(|question| !question.trim().is_empty()) {
        let problem = Error::content(
            name,
            "its question has no answer",
            "name a split that has answers: those of test splits are mostly kept back",
        );
        return Err((Reason::NoAnswer, problem));
    }
    if is_empty {
        return trimmed(name, "").map(RecordText::caption);
    }
    let problem = Error::content(
        name,
        "it has neither caption, text, conversations, messages nor answer",
        "add a caption",
    );
    Err((Reason::NoCaption, problem))
}

/// The answer to learn of one answer or of those of several people: the one that most of them gave, the first of these where
/// several are as frequent. Lists hold strings, or objects with an `answer` (VQAv2, TextVQA), or stand below `text` (SQuAD).
fn chosen_answer<'a>(name: &str, key: &str, value: &'a Value) -> Result<Option<&'a str>, Problem> {
    let values = match value {
        Value::Array(values) => values,
        Value::Object(object) => match object.get("text") {
            Some(Value::Array(values)) => values,
            _ => return Err(bad(name, format!("its {key} are no list"), "make them one")),
        },
        value => std::slice::from_ref(value),
    };
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for value in values {
        let answer = match value {
            Value::String(text) => Some(text.as_str()),
            Value::Object(answer) => answer.get("answer").and_then(Value::as_str),
            Value::Null => continue,
            _ => None,
        };
        let answer = answer.ok_or_else(|| {
            let problem = format!("its {key} is not a string");
            bad(name, problem, "make it one")
        })?;
        let answer = answer.trim();
        match counts.iter_mut().find(|(other, _)| *other == answer) {
            Some((_, count)) => *count += 1,
            None if answer.is_empty() => {}
            None => counts.push((answer, 1)),
        }
    }
    // The last of equals would win without the turn.
    let most = counts.iter().rev().max_by_key(|(_, count)| *count);
    Ok(most.map(|(answer, _)| *answer))
}

/// One question, possibly empty, and its answer.
pub(crate) fn question_and_answer(
    name: &str,
    question: &str,
    answer: &str,
) -> Result<RecordText, Problem> {
    let question = question.trim().to_owned();
    Ok(RecordText {
        prompt: (!question.is_empty()).then_some(question),
        ..RecordText::caption(trimmed(name, answer)?)
    })
}

/// Whether a record holds a conversation, which may be about no image.
pub(crate) fn is_conversation(object: &Map<String, Value>) -> bool {
    TURNS.iter().any(|key| object.contains_key(*key))
}

/// Whether a conversation's words stand for an image somewhere.
pub(crate) fn has_placeholder(object: &Map<String, Value>) -> bool {
    ["conversations", "messages", "question"]
        .iter()
        .any(|key| object.get(*key).is_some_and(holds))
}

fn holds(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains(MARK),
        Value::Array(values) => values.iter().any(holds),
        Value::Object(object) => {
            let kind = object.get("type").and_then(Value::as_str);
            matches!(kind, Some("image" | "image_url")) || object.values().any(holds)
        }
        _ => false,
    }
}
