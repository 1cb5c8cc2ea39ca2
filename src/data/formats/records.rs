//! The words of a pair: plain captions, JSON captions, questions with answers, and conversations ([`super::turns`]). Every
//! format that is not JSON is turned into such an object first, so that all are read alike.

use serde_json::{Map, Value};

use super::limits::MAX_TEXT_BYTES;
use super::skips::Reason;
use super::turns;
use crate::text::chat::{MARK, Turn, marked_before};
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
    /// Answers that are read and not learnt, by their place in the conversation.
    pub unsupervised: Vec<usize>,
    /// Whether an answer without a question before the first, or a question without an answer behind the last, was left out.
    pub is_trimmed: bool,
}

impl RecordText {
    /// A caption and nothing else.
    pub fn caption(caption: String) -> RecordText {
        RecordText {
            caption,
            prompt: None,
            further: Vec::new(),
            system: None,
            unsupervised: Vec::new(),
            is_trimmed: false,
        }
    }

    /// Bytes of all words.
    fn size(&self) -> u64 {
        let first = [&self.caption].into_iter().chain(&self.prompt);
        let further = self.further.iter();
        let further = further.flat_map(|turn| [&turn.question, &turn.answer]);
        let words = first.chain(&self.system).chain(further);
        words.map(|text| text.len() as u64).sum()
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
pub(super) type Problem = (Reason, Error);

/// Keys that change what a record says and that nothing here can honour.
const REFUSED_KEYS: [&str; 6] = ["video", "videos", "audio", "audios", "tools", "functions"];

/// The keys of conversations.
const TURNS: [&str; 2] = ["conversations", "messages"];

/// A record that cannot be understood.
pub(super) fn bad(name: &str, problem: impl ToString, remedy: &str) -> Problem {
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
            Value::String(text) => text,
            Value::Object(answer) if answer["answer"].is_string() => {
                answer["answer"].as_str().unwrap_or_default()
            }
            Value::Null => continue,
            _ => {
                return Err(bad(
                    name,
                    format!("its {key} is not a string"),
                    "make it one",
                ));
            }
        };
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
