//! A request for an answer, read from OpenAI's form. What is not offered is refused by name; nothing is passed over.

use serde_json::{Map, Value as Json};

use super::fault::Fault;
use super::image;
use keel_data::chat::MARK;
use keel_data::image::Image;
use keel_eval::Sampling;
use keel_train::Chat;

/// Most texts that end an answer.
const MOST_STOPS: usize = 16;
/// The largest temperature of OpenAI's form.
const MOST_TEMPERATURE: f64 = 2.0;

/// A request for an answer.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    /// The conversation.
    pub chat: Chat,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Most tokens of the answer.
    pub most_tokens: Option<usize>,
    /// Texts that end the answer, without being part of it.
    pub stops: Vec<String>,
    /// Whether the answer is sent as it comes.
    pub is_streamed: bool,
    /// Whether a stream ends with the counts of tokens.
    pub counts_usage: bool,
    /// An answer that was given, for who wants to look at it.
    pub answer: Option<String>,
}

/// Fields that say nothing about the answer: whom it is for and how it is kept, where nothing is kept.
const WITHOUT_EFFECT: [&str; 7] = [
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
];

/// Fields that are known, and the one value that asks for nothing.
fn asks_for_nothing(key: &str, value: &Json) -> bool {
    let is_zero = || value.as_f64() == Some(0.0);
    match key {
        "n" => value.as_u64() == Some(1),
        "presence_penalty" | "frequency_penalty" => is_zero(),
        "logprobs" => value == &Json::Bool(false),
        "top_logprobs" => is_zero(),
        "response_format" => value["type"] == "text",
        _ => is_empty(value),
    }
}

fn is_empty(value: &Json) -> bool {
    match value {
        Json::Null => true,
        Json::Array(list) => list.is_empty(),
        Json::Object(map) => map.is_empty(),
        _ => false,
    }
}

impl ChatRequest {
    /// Reads `body`, for the model `served` that has room for `most_images`.
    ///
    /// # Errors
    /// What is wrong with it, by the field.
    pub fn read(body: &[u8], served: &str, most_images: usize) -> Result<ChatRequest, Fault> {
        let body: Json = serde_json::from_slice(body).map_err(Fault::json)?;
        let Json::Object(fields) = body else {
            return Err(Fault::json("it is no object"));
        };
        let mut request = ChatRequest {
            chat: Chat::default(),
            sampling: Sampling::Greedy,
            most_tokens: None,
            stops: Vec::new(),
            is_streamed: false,
            counts_usage: false,
            answer: None,
        };
        let (mut temperature, mut top_p, mut seed) = (1.0, 1.0, None);
        let mut names_model = false;
        for (key, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
            match key.as_str() {
                "model" => {
                    let found = text(key, value)?;
                    if found != served {
                        return Err(Fault::model(found, served));
                    }
                    names_model = true;
                }
                "messages" => {}
                "max_tokens" | "max_completion_tokens" => {
                    request.most_tokens = Some(count(key, value)?);
                }
                "temperature" => temperature = number(key, value, MOST_TEMPERATURE)?,
                "top_p" => top_p = number(key, value, 1.0)?,
                "seed" => seed = Some(whole(key, value)?),
                "stop" => request.stops = stops(value)?,
                "stream" => request.is_streamed = flag(key, value)?,
                "stream_options" => request.counts_usage = counts_usage(value)?,
                "answer" => request.answer = Some(text(key, value)?.to_owned()),
                key if WITHOUT_EFFECT.contains(&key) || asks_for_nothing(key, value) => {}
                key => {
                    return Err(Fault::unsupported(
                        key,
                        format!("{key} with this value is not offered here; leave it out"),
                    ));
                }
            }
        }
        if !names_model {
            let message = format!("model is missing; this server answers as {served:?}");
            return Err(Fault::request("model", message));
        }
        if temperature > 0.0 {
            request.sampling = Sampling::Random {
                temperature,
                // At least the likeliest token is drawn from.
                top_p: f64::max(top_p, f64::MIN_POSITIVE),
                seed: seed.unwrap_or_else(any_seed),
            };
        }
        request.chat = Messages::read(&fields, most_images)?.into_chat()?;
        Ok(request)
    }
}

/// A seed that nobody knows beforehand.
fn any_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

fn text<'a>(param: &str, value: &'a Json) -> Result<&'a str, Fault> {
    let found = value.as_str();
    found.ok_or_else(|| Fault::request(param, format!("{param} must be a string, and is {value}")))
}

fn flag(param: &str, value: &Json) -> Result<bool, Fault> {
    let found = value.as_bool();
    found.ok_or_else(|| {
        Fault::request(
            param,
            format!("{param} must be true or false, and is {value}"),
        )
    })
}

fn count(param: &str, value: &Json) -> Result<usize, Fault> {
    match value.as_u64() {
        Some(count) if count > 0 => Ok(usize::try_from(count).unwrap_or(usize::MAX)),
        _ => Err(Fault::request(
            param,
            format!("{param} must be a whole number above 0, and is {value}"),
        )),
    }
}

fn number(param: &str, value: &Json, most: f64) -> Result<f64, Fault> {
    match value.as_f64() {
        Some(number) if (0.0..=most).contains(&number) => Ok(number),
        _ => Err(Fault::request(
            param,
            format!("{param} must be a number from 0 to {most}, and is {value}"),
        )),
    }
}

fn whole(param: &str, value: &Json) -> Result<u64, Fault> {
    let found = value.as_u64().or(value.as_i64().map(|seed| seed as u64));
    found.ok_or_else(|| {
        Fault::request(
            param,
            format!("{param} must be a whole number, and is {value}"),
        )
    })
}

fn stops(value: &Json) -> Result<Vec<String>, Fault> {
    let list = match value {
        Json::String(_) => std::slice::from_ref(value),
        Json::Array(list) => list,
        _ => &[][..],
    };
    let texts: Option<Vec<String>> = list
        .iter()
        .map(|stop| stop.as_str().map(str::to_owned))
        .collect();
    let is_list = value.is_string() || value.is_array();
    match texts {
        Some(texts) if is_list && texts.len() <= MOST_STOPS => {
            match texts.iter().all(|text| !text.is_empty()) {
                true => Ok(texts),
                false => Err(Fault::request("stop", "stop must hold no empty string")),
            }
        }
        _ => Err(Fault::request(
            "stop",
            format!("stop must be a string, or a list of at most {MOST_STOPS} strings"),
        )),
    }
}

fn counts_usage(value: &Json) -> Result<bool, Fault> {
    let param = "stream_options";
    let Json::Object(options) = value else {
        return Err(Fault::request(param, format!("{param} must be an object")));
    };
    let mut counts = false;
    for (key, value) in options {
        match key.as_str() {
            "include_usage" => counts = flag("stream_options.include_usage", value)?,
            "include_obfuscation" if value == &Json::Bool(false) => {}
            key => {
                let param = format!("{param}.{key}");
                let message = format!("{param} is not offered here; leave it out");
                return Err(Fault::unsupported(&param, message));
            }
        }
    }
    Ok(counts)
}

/// One part of a message.
#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Image,
}

/// The messages of a conversation.
#[derive(Default)]
struct Messages {
    system: Option<String>,
    /// What the user says, and what was answered.
    turns: Vec<(Vec<Part>, Option<String>)>,
    images: Vec<Image>,
}

impl Messages {
    fn read(fields: &Map<String, Json>, most_images: usize) -> Result<Messages, Fault> {
        let list = fields.get("messages").and_then(Json::as_array);
        let Some(list) = list.filter(|list| !list.is_empty()) else {
            let message = "messages must be a list with at least one message";
            return Err(Fault::request("messages", message));
        };
        let count = image::count(list);
        if count > most_images {
            let message = format!(
                "{count} images are more than the {most_images} that fit into the model's context"
            );
            return Err(Fault::coded("messages", "context_length_exceeded", message));
        }
        let mut messages = Messages::default();
        for (number, message) in list.iter().enumerate() {
            messages.take(&format!("messages[{number}]"), message)?;
        }
        if messages
            .turns
            .last()
            .is_none_or(|(_, answer)| answer.is_some())
        {
            let message = "the last message must be the user's, which is then answered";
            return Err(Fault::request("messages", message));
        }
        Ok(messages)
    }

    fn take(&mut self, at: &str, message: &Json) -> Result<(), Fault> {
        let Json::Object(fields) = message else {
            return Err(Fault::request(at, format!("{at} must be an object")));
        };
        let known = ["role", "content"];
        let mut others = fields
            .iter()
            .filter(|(key, _)| !known.contains(&key.as_str()));
        if let Some((key, _)) = others.find(|(_, value)| !is_empty(value)) {
            let param = format!("{at}.{key}");
            let message = format!("{param} is not offered here; leave it out");
            return Err(Fault::unsupported(&param, message));
        }
        let at_role = format!("{at}.role");
        let role = text(&at_role, fields.get("role").unwrap_or(&Json::Null))?;
        let content = fields.get("content").unwrap_or(&Json::Null);
        let at_content = format!("{at}.content");
        match role {
            "system" | "developer" => {
                if !self.turns.is_empty() {
                    let message = "what the system says must come before all turns";
                    return Err(Fault::request(at, message));
                }
                let words = words(&at_content, content)?;
                self.system = Some(match self.system.take() {
                    Some(before) => format!("{before}\n{words}"),
                    None => words,
                });
            }
            "user" => {
                let parts = self.parts(&at_content, content)?;
                match self.turns.last_mut() {
                    Some((before, None)) => before.extend(parts),
                    _ => self.turns.push((parts, None)),
                }
            }
            "assistant" => match self.turns.last_mut() {
                Some((_, answer @ None)) => *answer = Some(words(&at_content, content)?),
                _ => {
                    let message = "an answer must follow a message of the user's";
                    return Err(Fault::request(at, message));
                }
            },
            role => {
                let message = format!(
                    "the role {role:?} is not offered; there are system, user and assistant"
                );
                return Err(Fault::request(at_role, message));
            }
        }
        Ok(())
    }

    /// The parts of what the user says, whose images are taken in.
    fn parts(&mut self, at: &str, content: &Json) -> Result<Vec<Part>, Fault> {
        let Json::Array(list) = content else {
            return Ok(vec![Part::Text(words(at, content)?)]);
        };
        let mut parts = Vec::with_capacity(list.len());
        for (number, part) in list.iter().enumerate() {
            let at = format!("{at}[{number}]");
            parts.push(match part["type"].as_str() {
                Some("text") => Part::Text(text(&format!("{at}.text"), &part["text"])?.to_owned()),
                Some("image_url") => {
                    let image = image::read(&format!("{at}.image_url"), &part["image_url"])?;
                    self.images.push(image);
                    Part::Image
                }
                _ => return Err(unknown_part(&at, part)),
            });
        }
        Ok(parts)
    }

    /// The conversation as a run is asked it. One image in the first turn stands before its question wherever the message has
    /// it, as it does in training; of several each stands where the message has it, or where the text marks it.
    fn into_chat(self) -> Result<Chat, Fault> {
        let is_first = |turn: &(Vec<Part>, _)| turn.0.contains(&Part::Image);
        let is_alone = self.images.len() == 1 && self.turns.first().is_some_and(is_first);
        let is_marked = !self.images.is_empty() && !is_alone;
        let mut turns = Vec::with_capacity(self.turns.len());
        for (parts, answer) in self.turns {
            let question = match is_marked {
                true => marked_question(&parts)?,
                false => question(&parts),
            };
            turns.push([question, answer.unwrap_or_default()]);
        }
        Ok(Chat {
            system: self.system,
            turns,
            images: self.images,
            is_marked,
        })
    }
}

fn unknown_part(at: &str, part: &Json) -> Fault {
    let message = match part["type"].as_str() {
        Some(kind) => {
            format!(
                "{at} is of the type {kind:?}, which is not offered; there are text and image_url"
            )
        }
        None => format!("{at} must be an object with a type, text or image_url"),
    };
    Fault::request(at, message)
}

/// The text of a content without images.
fn words(at: &str, content: &Json) -> Result<String, Fault> {
    match content {
        Json::String(text) => Ok(text.clone()),
        Json::Array(list) => {
            let mut texts = Vec::with_capacity(list.len());
            for (number, part) in list.iter().enumerate() {
                let at = format!("{at}[{number}]");
                if part["type"] != "text" {
                    return Err(Fault::request(&*at, format!("{at} must be a text here")));
                }
                texts.push(text(&format!("{at}.text"), &part["text"])?);
            }
            Ok(texts.join("\n"))
        }
        _ => Err(Fault::request(
            at,
            format!("{at} must be a string or a list of parts"),
        )),
    }
}

fn texts(parts: &[Part]) -> impl Iterator<Item = &str> {
    parts.iter().filter_map(|part| match part {
        Part::Text(text) => Some(text.as_str()),
        Part::Image => None,
    })
}

/// What is asked beside images that have their place.
fn question(parts: &[Part]) -> String {
    texts(parts).collect::<Vec<_>>().join("\n")
}

/// What is asked with a mark for each image.
fn marked_question(parts: &[Part]) -> Result<String, Fault> {
    let images = parts.len() - texts(parts).count();
    let marks: usize = texts(parts).map(|text| text.matches(MARK).count()).sum();
    if marks > 0 {
        return match marks == images {
            true => Ok(question(parts)),
            false => Err(Fault::request(
                "messages",
                format!(
                    "a message marks {marks} places by {MARK} and has {images} images; give one for each, or no mark"
                ),
            )),
        };
    }
    let mut asked = String::new();
    let mut follows_text = false;
    for part in parts {
        if follows_text {
            asked.push('\n');
        }
        follows_text = matches!(part, Part::Text(_));
        match part {
            Part::Text(text) => asked.push_str(text),
            Part::Image => {
                asked.push_str(MARK);
                asked.push('\n');
            }
        }
    }
    Ok(asked)
}
