//! A tokeniser and the template of its conversations. The embedded one is small and always there; a published language
//! model brings its own (`tokenizer.json`), with the template of the chats it was trained on.
//!
//! Text of samples never becomes a control token: what looks like one is read as ordinary characters.

mod conversation;
mod published;
mod recognise;
mod template;

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

pub use conversation::{Conversation, MARK, Sequence, Turn, marked_before};
use published::Published;
pub use template::ChatTemplate;

use super::tokenizer::{ASSISTANT, BEGIN, END, FIRST_BYTE, IMAGE, PAD, Tokenizer, USER};
use keel_base::error::Result;

/// See the module's documentation.
#[derive(Debug)]
pub struct ChatTokenizer {
    backend: Backend,
}

#[derive(Debug)]
enum Backend {
    Embedded(&'static Tokenizer),
    Published(Box<Published>),
}

impl ChatTokenizer {
    /// The embedded tokeniser with its layout.
    pub fn embedded() -> &'static Arc<ChatTokenizer> {
        static EMBEDDED: OnceLock<Arc<ChatTokenizer>> = OnceLock::new();
        EMBEDDED.get_or_init(|| {
            Arc::new(ChatTokenizer {
                backend: Backend::Embedded(Tokenizer::embedded()),
            })
        })
    }

    /// Reads `tokenizer.json`, of a model that was trained on chats of this `template`. Tokens that the template needs for images
    /// and that the file lacks are added behind its own.
    ///
    /// # Errors
    /// [`keel_base::error::Error::Io`] or [`keel_base::error::Error::Content`] naming the file that cannot be read, is no tokeniser,
    /// or lacks the control tokens of the template.
    pub fn open(path: &Path, template: ChatTemplate) -> Result<ChatTokenizer> {
        Ok(ChatTokenizer {
            backend: Backend::Published(Box::new(Published::open(path, template)?)),
        })
    }

    /// The template of a published model's chats; nothing for the embedded tokeniser.
    pub fn template(&self) -> Option<ChatTemplate> {
        match &self.backend {
            Backend::Embedded(_) => None,
            Backend::Published(published) => Some(published.template()),
        }
    }

    /// Ids are below this.
    pub fn vocabulary(&self) -> usize {
        match &self.backend {
            Backend::Embedded(tokenizer) => tokenizer.len(),
            Backend::Published(published) => published.vocabulary(),
        }
    }

    /// Ids that the file does not hold and that were added for images, behind all others.
    pub fn added(&self) -> Range<usize> {
        match &self.backend {
            Backend::Embedded(tokenizer) => tokenizer.len()..tokenizer.len(),
            Backend::Published(published) => published.added(),
        }
    }

    /// The `tokenizer.json` that goes with the model, with what was added; nothing for the embedded tokeniser.
    pub fn to_json(&self) -> Option<String> {
        match &self.backend {
            Backend::Embedded(_) => None,
            Backend::Published(published) => Some(published.to_json()),
        }
    }

    /// The id that visual tokens are spliced over.
    pub fn image(&self) -> i32 {
        match &self.backend {
            Backend::Embedded(_) => i32::from(IMAGE),
            Backend::Published(published) => published.image(),
        }
    }

    /// The id that fills rows up; never supervised.
    pub fn pad(&self) -> i32 {
        match &self.backend {
            Backend::Embedded(_) => i32::from(PAD),
            Backend::Published(published) => published.end(),
        }
    }

    /// The id that ends an answer.
    pub fn end(&self) -> i32 {
        match &self.backend {
            Backend::Embedded(_) => i32::from(END),
            Backend::Published(published) => published.end(),
        }
    }

    /// The control token that ends an answer, where the tokenizer is a published one.
    pub fn end_token(&self) -> Option<&'static str> {
        match &self.backend {
            Backend::Embedded(_) => None,
            Backend::Published(published) => Some(published.end_token()),
        }
    }

    /// Ids that stand for text and not for control, in order.
    pub fn text_ids(&self) -> Vec<usize> {
        match &self.backend {
            Backend::Embedded(tokenizer) => (usize::from(FIRST_BYTE)..tokenizer.len()).collect(),
            Backend::Published(published) => published.text_ids(),
        }
    }

    /// The ids of bare text.
    pub fn encode(&self, text: &str) -> Vec<i32> {
        match &self.backend {
            Backend::Embedded(tokenizer) => widen(&tokenizer.encode(text)),
            Backend::Published(published) => published.encode(text),
        }
    }

    /// The text behind `ids`, without control tokens.
    pub fn decode(&self, ids: &[i32]) -> String {
        match &self.backend {
            Backend::Embedded(tokenizer) => {
                let ids: Vec<u16> = ids
                    .iter()
                    .filter_map(|id| u16::try_from(*id).ok())
                    .collect();
                tokenizer.decode(&ids)
            }
            Backend::Published(published) => published.decode(ids),
        }
    }

    /// The ids of a caption as the contrastive side reads it: opened where the tokeniser has an opening, and ended.
    pub fn caption(&self, caption: &str) -> Vec<i32> {
        let mut ids = match &self.backend {
            Backend::Embedded(_) => vec![i32::from(BEGIN)],
            Backend::Published(published) => published.begin().into_iter().collect(),
        };
        ids.extend(self.encode(caption));
        ids.push(self.end());
        ids
    }

    /// Lays out a conversation.
    ///
    /// Embedded, with an image: `<begin> <image>×Ti <user> question <assistant> answer <end>`, the answer and `<end>`
    /// supervised; further turns follow as `<user> question <assistant> answer <end>`, supervised in the same way. Where
    /// questions mark where images stand, `<image>×Ti` stands at each mark. Text only:
    /// `<begin> context <user> question <assistant> answer <end>`, or `<begin> context <end>` when there are no turns,
    /// everything after `<begin>` supervised, as one answer. Published: as [`ChatTemplate`] says.
    pub fn sequence(&self, conversation: &Conversation<'_>) -> Sequence {
        let mut sequence = match &self.backend {
            Backend::Embedded(tokenizer) => embedded_sequence(tokenizer, conversation),
            Backend::Published(published) => published.sequence(conversation),
        };
        sequence.leave_out(conversation.unsupervised);
        sequence
    }

    /// The ids up to the last answer of a conversation, which is left empty: what a model is given to go on from, with
    /// images or without.
    pub fn open_prompt(&self, conversation: &Conversation<'_>) -> Vec<i32> {
        let mut ids = self.sequence(conversation).ids;
        // Behind an empty answer stands nothing but what ends it, which is no text of anybody's.
        let end = ids.iter().rposition(|id| *id == self.end());
        ids.truncate(end.unwrap_or(ids.len()));
        ids
    }

    /// The ids up to the first answer of a conversation with an image: what a model is given to go on from.
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
    let image = || std::iter::repeat_n(IMAGE, conversation.image_tokens);
    if !conversation.is_marked {
        ids.extend(image());
    }
    tokenizer.encode_into(conversation.context, &mut ids);
    for (index, [question, answer]) in conversation.turns.iter().enumerate() {
        ids.push(USER);
        // There is no turn of the system here: the user says its words first.
        if let (0, Some(system)) = (index, conversation.system) {
            tokenizer.encode_into(&format!("{system}\n"), &mut ids);
        }
        if conversation.is_marked {
            for (number, text) in question.split(MARK).enumerate() {
                if number > 0 {
                    ids.extend(image());
                }
                tokenizer.encode_into(text, &mut ids);
            }
        } else {
            tokenizer.encode_into(question, &mut ids)
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
    // Where a record says which answers are learnt, its questions are not either.
    if conversation.image_tokens == 0 && conversation.unsupervised.is_empty() {
        supervised.clear();
        supervised.push(1..ids.len());
    }
    Sequence {
        ids: widen(&ids),
        supervised,
    }
}
