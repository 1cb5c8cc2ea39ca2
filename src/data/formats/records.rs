//! The words of a pair: plain captions, JSON captions, questions with answers, and conversations in the spellings of LLaVA
//! and ShareGPT (`conversations`: `from`, `value`) and of OpenAI (`messages`: `role`, `content`).

use serde_json::{Map, Value};

use super::skips::Reason;
use crate::text::chat::Turn;
use crate::text::chat::{MARK, marked_before};
use keel_base::error::{Error, Result};

/// What is said about an image, or without one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordText {
    /// The caption or first answer, trimmed, never empty.
    pub caption: String,
    /// The first question.
    pub prompt: Option<String>,
    /// Questions and answers after that.
    pub further: Vec<Turn>,
    /// What the system says first, in place of the chat's own words.
    pub system: Option<String>,
}

impl RecordText {
    /// A caption and nothing else.
    pub fn caption(caption: String) -> RecordText {
        RecordText {
            caption,
            prompt: None,
            further: Vec::new(),
            system: None,
        }
    }

    /// How many images the questions mark the places of, each by [`MARK`].
    pub fn marks(&self) -> usize {
        let further = self.further.iter().map(|turn| turn.question.as_str());
        let questions = self.prompt.as_deref().into_iter().chain(further);
        questions.map(|text| text.matches(MARK).count()).sum()
    }

    /// Holds the words to the number of images that come with them. One that the first question marks comes before it,
    /// wherever the mark is, and needs none; so do several that nothing marks, and get some.
    ///
    /// # Errors
    /// The reason to count it under, and [`Error::Content`], where marks and images differ or are too many.
    pub fn for_images(mut self, name: &str, images: usize) -> Result<RecordText, Problem> {
        if images > MOST_IMAGES {
            let problem = format!("it shows {images} images, at most {MOST_IMAGES} can be");
            return Err(bad(name, problem, "split it"));
        }
        let question = self.prompt.as_deref().unwrap_or_default();
        match (self.marks(), images) {
            (0, 0 | 1) => {}
            (1, 1) if question.contains(MARK) => {
                let question = question.replace(MARK, "").trim().to_owned();
                self.prompt = (!question.is_empty()).then_some(question);
            }
            (0, _) => self.prompt = Some(marked_before(question, images)),
            (marks, _) if marks == images => {}
            (marks, _) => {
                let problem = format!("it marks the places of {marks} images and has {images}");
                return Err(bad(name, problem, "give as many images as marks"));
            }
        }
        Ok(self)
    }
}

/// Most images of a sample.
pub const MOST_IMAGES: usize = 64;

/// A problem and the reason it is counted under.
type Problem = (Reason, Error);

/// Stand-ins for what is no image.
const REFUSED: [&str; 2] = ["<video>", "<audio>"];

fn bad(name: &str, problem: impl ToString, remedy: &str) -> Problem {
    (Reason::BadRecord, Error::content(name, problem, remedy))
}

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
pub(crate) fn trimmed(name: &str, text: &str) -> Result<String, Problem> {
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
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(bad(name, "it is JSON, but no object", remedy)),
        // The line is named by the caller; the parser's own count would always be 1.
        Err(error) => {
            let problem = format!("it is not JSON (column {})", error.column());
            Err(bad(name, problem, remedy))
        }
    }
}

/// As [`words_of_json`], of an object already read.
pub(crate) fn words_of_object(
    name: &str,
    object: &Map<String, Value>,
) -> Result<RecordText, Problem> {
    let text = |key: &str| -> Result<Option<&str>, Problem> {
        match object.get(key) {
            None => Ok(None),
            Some(value) => value
                .as_str()
                .map(Some)
                .ok_or_else(|| bad(name, format!("its {key} is not a string"), "make it one")),
        }
    };
    for key in ["caption", "text"] {
        if let Some(text) = text(key)? {
            return trimmed(name, text).map(RecordText::caption);
        }
    }
    for key in ["conversations", "messages"] {
        if let Some(turns) = object.get(key) {
            let turns = turns
                .as_array()
                .ok_or_else(|| bad(name, format!("its {key} are no list"), "make them one"))?;
            return conversation(name, turns);
        }
    }
    if let Some(answer) = text("answer")? {
        let question = text("question")?.unwrap_or_default();
        return question_and_answer(name, question, answer);
    }
    let problem = Error::content(
        name,
        "it has neither caption, text, conversations, messages nor answer",
        "add a caption",
    );
    Err((Reason::NoCaption, problem))
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

/// Who speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Speaker {
    System,
    User,
    Assistant,
}

/// The paths of images that the parts of a message name.
pub(crate) fn images_in_messages(object: &Map<String, Value>) -> Vec<String> {
    let turns = object.get("messages").and_then(Value::as_array);
    let parts = turns
        .into_iter()
        .flatten()
        .filter_map(|turn| turn["content"].as_array());
    let named = |part: &Value| {
        let place = match part["type"].as_str()? {
            "image" => &part["image"],
            "image_url" => &part["image_url"]["url"],
            _ => return None,
        };
        place.as_str().map(str::to_owned)
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

/// Questions and answers in turn, the system's words before them where there are any.
fn conversation(name: &str, turns: &[Value]) -> Result<RecordText, Problem> {
    let mut system = None;
    let mut pairs: Vec<Turn> = Vec::new();
    let mut open: Option<String> = None;
    for (index, turn) in turns.iter().enumerate() {
        let (speaker, text) = said(name, turn)?;
        match (speaker, open.take()) {
            (Speaker::System, None) if index == 0 => {
                system = Some(text.trim().to_owned()).filter(|text| !text.is_empty());
            }
            (Speaker::User, None) => open = Some(text.trim().to_owned()),
            (Speaker::Assistant, Some(question)) => pairs.push(Turn {
                question,
                answer: trimmed(name, &text)?,
            }),
            _ => {
                let problem = format!("its turn {} does not answer the one before", index + 1);
                return Err(bad(name, problem, "let user and assistant speak in turn"));
            }
        }
    }
    if open.is_some() {
        return Err(bad(
            name,
            "its last question has no answer",
            "answer it or leave it out",
        ));
    }
    let mut pairs = pairs.into_iter();
    let Some(first) = pairs.next() else {
        return Err(bad(
            name,
            "its conversation has no question with an answer",
            "add one",
        ));
    };
    Ok(RecordText {
        caption: first.answer,
        prompt: (!first.question.is_empty()).then_some(first.question),
        further: pairs.collect(),
        system,
    })
}
