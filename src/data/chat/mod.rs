//! How a run speaks: a tokeniser and the layout of its conversations. The embedded one is small and always there; a
//! published language model brings its own (`tokenizer.json`), with the layout of chats it was trained on.
//!
//! Text of samples never becomes a control token: what looks like one is read as ordinary characters.

mod layout;
mod published;

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

pub use layout::Layout;
use published::Published;

use super::tokenizer::{ASSISTANT, BEGIN, END, FIRST_BYTE, IMAGE, PAD, Tokenizer, USER};
use keel_base::error::Result;

/// See the module's documentation.
#[derive(Debug)]
pub struct ChatTokenizer {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Embedded(&'static Tokenizer),
    Published(Box<Published>),
}

/// Where a picture stands in a question, in conversations that say so.
pub const MARK: &str = "<image>";

/// The question with marks of so many pictures before it.
pub fn marked_before(question: &str, pictures: usize) -> String {
    format!("{MARK}\n").repeat(pictures) + question
}

/// What is said about pictures, or without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation<'a> {
    /// Tokens that a picture takes, Ti; 0 where there is none.
    pub image_tokens: usize,
    /// Whether questions mark by [`MARK`] where pictures stand; else one stands before the first question, if any does.
    pub is_marked: bool,
    /// What the system says first, in place of the chat's own words.
    pub system: Option<&'a str>,
    /// Text that stands where a picture would.
    pub context: &'a str,
    /// Questions, possibly empty, and answers; none where the context is the whole text.
    pub turns: Vec<[&'a str; 2]>,
}

/// The ids of one conversation before padding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// All ids.
    pub ids: Vec<i32>,
    /// The supervised ids, one range an answer, in order.
    pub supervised: Vec<Range<usize>>,
}

impl ChatTokenizer {
    /// The embedded tokeniser with its layout.
    pub fn embedded() -> &'static Arc<ChatTokenizer> {
        static EMBEDDED: OnceLock<Arc<ChatTokenizer>> = OnceLock::new();
        EMBEDDED.get_or_init(|| {
            Arc::new(ChatTokenizer {
                kind: Kind::Embedded(Tokenizer::embedded()),
            })
        })
    }

    /// Reads `tokenizer.json`, of a model that was trained on chats of `layout`. Tokens that the layout needs for pictures
    /// and that the file lacks are added behind its own.
    ///
    /// # Errors
    /// [`keel_base::error::Error::Io`] or [`keel_base::error::Error::Content`] naming the file that cannot be read, is no tokeniser,
    /// or lacks the control tokens of the layout.
    pub fn open(path: &Path, layout: Layout) -> Result<ChatTokenizer> {
        Ok(ChatTokenizer {
            kind: Kind::Published(Box::new(Published::open(path, layout)?)),
        })
    }

    /// The layout of a published model's chats; nothing for the embedded tokeniser.
    pub fn layout(&self) -> Option<Layout> {
        match &self.kind {
            Kind::Embedded(_) => None,
            Kind::Published(published) => Some(published.layout()),
        }
    }

    /// Ids are below this.
    pub fn vocabulary(&self) -> usize {
        match &self.kind {
            Kind::Embedded(tokenizer) => tokenizer.len(),
            Kind::Published(published) => published.vocabulary(),
        }
    }

    /// Ids that the file does not hold and that were added for pictures, behind all others.
    pub fn added(&self) -> Range<usize> {
        match &self.kind {
            Kind::Embedded(tokenizer) => tokenizer.len()..tokenizer.len(),
            Kind::Published(published) => published.added(),
        }
    }

    /// The `tokenizer.json` that goes with the model, with what was added; nothing for the embedded tokeniser.
    pub fn to_json(&self) -> Option<String> {
        match &self.kind {
            Kind::Embedded(_) => None,
            Kind::Published(published) => Some(published.to_json()),
        }
    }

    /// The id that visual tokens are spliced over.
    pub fn image(&self) -> i32 {
        match &self.kind {
            Kind::Embedded(_) => i32::from(IMAGE),
            Kind::Published(published) => published.image(),
        }
    }

    /// The id that fills rows up; never supervised.
    pub fn pad(&self) -> i32 {
        match &self.kind {
            Kind::Embedded(_) => i32::from(PAD),
            Kind::Published(published) => published.end(),
        }
    }

    /// The id that ends an answer.
    pub fn end(&self) -> i32 {
        match &self.kind {
            Kind::Embedded(_) => i32::from(END),
            Kind::Published(published) => published.end(),
        }
    }

    /// Ids that stand for text and not for control, in order.
    pub fn text_ids(&self) -> Vec<usize> {
        match &self.kind {
            Kind::Embedded(tokenizer) => (usize::from(FIRST_BYTE)..tokenizer.len()).collect(),
            Kind::Published(published) => published.text_ids(),
        }
    }

    /// The ids of bare text.
    pub fn encode(&self, text: &str) -> Vec<i32> {
        match &self.kind {
            Kind::Embedded(tokenizer) => widen(&tokenizer.encode(text)),
            Kind::Published(published) => published.encode(text),
        }
    }

    /// The text behind `ids`, without control tokens.
    pub fn decode(&self, ids: &[i32]) -> String {
        match &self.kind {
            Kind::Embedded(tokenizer) => {
                let ids: Vec<u16> = ids
                    .iter()
                    .filter_map(|id| u16::try_from(*id).ok())
                    .collect();
                tokenizer.decode(&ids)
            }
            Kind::Published(published) => published.decode(ids),
        }
    }

    /// The ids of a caption as the contrastive side reads it: opened where the tokeniser has an opening, and ended.
    pub fn caption(&self, caption: &str) -> Vec<i32> {
        let mut ids = match &self.kind {
            Kind::Embedded(_) => vec![i32::from(BEGIN)],
            Kind::Published(_) => Vec::new(),
        };
        ids.extend(self.encode(caption));
        ids.push(self.end());
        ids
    }

    /// Lays out a conversation.
    ///
    /// Embedded, with a picture: `<begin> <image>×Ti <user> question <assistant> answer <end>`, the answer and `<end>`
    /// supervised; further turns follow as `<user> question <assistant> answer <end>`, supervised in the same way. Where
    /// questions mark where pictures stand, `<image>×Ti` stands at each mark. Text only:
    /// `<begin> context <user> question <assistant> answer <end>`, or `<begin> context <end>` when there are no turns,
    /// everything after `<begin>` supervised, as one answer. Published: as [`Layout`] says.
    pub fn sequence(&self, conversation: &Conversation<'_>) -> Sequence {
        match &self.kind {
            Kind::Embedded(tokenizer) => embedded_sequence(tokenizer, conversation),
            Kind::Published(published) => published.sequence(conversation),
        }
    }

    /// The ids up to the first answer of a conversation with a picture: what a model is given to go on from.
    pub fn prompt(&self, conversation: &Conversation<'_>) -> Vec<i32> {
        let mut sequence = self.sequence(conversation);
        let first = sequence.supervised.first().map_or(0, |answer| answer.start);
        sequence.ids.truncate(first);
        sequence.ids
    }
}

fn widen(ids: &[u16]) -> Vec<i32> {
    ids.iter().map(|id| i32::from(*id)).collect()
}

fn embedded_sequence(tokenizer: &Tokenizer, conversation: &Conversation<'_>) -> Sequence {
    let mut ids = vec![BEGIN];
    let mut supervised = Vec::with_capacity(conversation.turns.len());
    let picture = || std::iter::repeat_n(IMAGE, conversation.image_tokens);
    if !conversation.is_marked {
        ids.extend(picture());
    }
    tokenizer.encode_into(conversation.context, &mut ids);
    for (index, [question, answer]) in conversation.turns.iter().enumerate() {
        ids.push(USER);
        // There is no turn of the system here: the user says its words first.
        if let (0, Some(system)) = (index, conversation.system) {
            tokenizer.encode_into(&format!("{system}\n"), &mut ids);
        }
        match conversation.is_marked {
            false => tokenizer.encode_into(question, &mut ids),
            true => {
                for (number, text) in question.split(MARK).enumerate() {
                    if number > 0 {
                        ids.extend(picture());
                    }
                    tokenizer.encode_into(text, &mut ids);
                }
            }
        }
        ids.push(ASSISTANT);
        let from = ids.len();
        tokenizer.encode_into(answer, &mut ids);
        ids.push(END);
        supervised.push(from..ids.len());
    }
    if conversation.turns.is_empty() {
        ids.push(END);
    }
    if conversation.image_tokens == 0 {
        supervised.clear();
        supervised.push(1..ids.len());
    }
    Sequence {
        ids: widen(&ids),
        supervised,
    }
}
