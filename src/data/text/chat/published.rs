//! A published tokeniser: `tokenizer.json` read by the tokenizers crate, and conversations laid out in its ids.

use std::collections::HashSet;
use std::fmt::Display;
use std::ops::Range;
use std::path::Path;

use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer};

use super::conversation::{Conversation, MARK, Sequence};
use super::template::{ChatTemplate, Frame};
use keel_base::error::{Error, Result};

/// What stands around an image, and what each of its tokens is.
const IMAGE: [&str; 3] = ["<img>", "<IMG_CONTEXT>", "</img>"];
/// Largest file, bytes; the largest published ones have about 20 MB.
const MAX_BYTES: u64 = 256 << 20;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Published {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    frame: Frame,
    begin: Option<i32>,
    open: i32,
    role_end: Option<i32>,
    close: i32,
    text_end: i32,
    image: [i32; 3],
    vocabulary: usize,
    added: Range<usize>,
    /// Ids that are no text.
    control: HashSet<u32>,
}

impl Published {
    pub fn open(path: &Path, template: ChatTemplate) -> Result<Published> {
        let size = std::fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
        let bad = |problem: String| {
            let remedy = "give the tokenizer.json that was published with the model";
            Error::content(path.display(), problem, remedy)
        };
        if size.len() > MAX_BYTES {
            return Err(bad(format!(
                "has {} bytes, the limit is {MAX_BYTES}",
                size.len()
            )));
        }
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
        Published::from_bytes(&bytes, template, &bad)
    }

    fn from_bytes(
        bytes: &[u8],
        template: ChatTemplate,
        bad: &dyn Fn(String) -> Error,
    ) -> Result<Published> {
        let no_json = |problem: &dyn Display| bad(format!("is no JSON ({problem})"));
        let text = std::str::from_utf8(bytes).map_err(|problem| no_json(&problem))?;
        // The library gives up, not back, on what is no JSON: that is found out before.
        serde_json::from_str::<Value>(text).map_err(|problem| no_json(&problem))?;
        // Read by the library's own instance of its reader: another would be a tenth of what a build of this crate compiles.
        let mut tokenizer: Tokenizer = text
            .parse()
            .map_err(|problem| bad(format!("is no tokeniser ({problem})")))?;
        // Cutting and filling is the batch's business.
        tokenizer
            .with_truncation(None)
            .map_err(|problem| bad(problem.to_string()))?;
        tokenizer.with_padding(None);
        let before = end_of(&tokenizer);
        let missing: Vec<AddedToken> = IMAGE
            .into_iter()
            .filter(|token| tokenizer.token_to_id(token).is_none())
            .map(|token| AddedToken::from(token, true))
            .collect();
        tokenizer.add_special_tokens(&missing);
        // Control tokens are placed by id below; in text their names are only characters.
        tokenizer.set_encode_special_tokens(true);
        let control: HashSet<u32> = tokenizer
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, _)| id)
            .collect();
        let id_of = |token: &str| -> Result<i32> {
            let id = tokenizer
                .token_to_id(token)
                .filter(|id| control.contains(id));
            id.map(|id| id as i32).ok_or_else(|| {
                bad(format!(
                    "has no control token {token}, which the layout {} needs",
                    template.name()
                ))
            })
        };
        let frame = template.frame();
        let (open, close) = (id_of(frame.open)?, id_of(frame.close)?);
        let mut image = [0; 3];
        for (id, token) in image.iter_mut().zip(IMAGE) {
            *id = id_of(token)?;
        }
        Ok(Published {
            begin: frame.begin.map(id_of).transpose()?,
            open,
            role_end: frame.role_end.map(id_of).transpose()?,
            close,
            text_end: id_of(frame.text_end).unwrap_or(close),
            frame,
            image,
            vocabulary: end_of(&tokenizer),
            added: before..end_of(&tokenizer),
            control,
            template,
            tokenizer,
        })
    }

    pub fn template(&self) -> ChatTemplate {
        self.template
    }

    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    pub fn added(&self) -> Range<usize> {
        self.added.clone()
    }

    pub fn image(&self) -> i32 {
        self.image[1]
    }

    pub fn begin(&self) -> Option<i32> {
        self.begin
    }

    pub fn end(&self) -> i32 {
        self.close
    }

    pub fn end_token(&self) -> &'static str {
        self.frame.close
    }

    pub fn to_json(&self) -> String {
        let json = serde_json::to_string_pretty(&self.tokenizer);
        json.expect("a tokeniser that was read can be written")
    }

    pub fn text_ids(&self) -> Vec<usize> {
        let mut ids: Vec<usize> = self
            .tokenizer
            .get_vocab(true)
            .into_values()
            .filter(|id| !self.control.contains(id))
            .map(|id| id as usize)
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    pub fn encode(&self, text: &str) -> Vec<i32> {
        let mut ids = Vec::new();
        self.push(text, &mut ids);
        ids
    }

    pub fn decode(&self, ids: &[i32]) -> String {
        let ids: Vec<u32> = ids
            .iter()
            .filter_map(|id| u32::try_from(*id).ok())
            .collect();
        // Only a decoder that the file misconfigures can fail; a model's own words never do.
        self.tokenizer.decode(&ids, true).unwrap_or_default()
    }

    fn push(&self, text: &str, ids: &mut Vec<i32>) {
        if text.is_empty() {
            return;
        }
        // A model without an unknown token drops what it cannot spell; nothing else can fail on a string.
        if let Ok(encoding) = self.tokenizer.encode_fast(text, false) {
            ids.extend(encoding.get_ids().iter().map(|id| *id as i32));
        }
    }

    /// Opens a turn. Text between two control tokens is one piece for the tokenizer, as it is where the whole turn is written out
    /// as one string: what is returned belongs before the turn's text.
    fn push_header(&self, role: &str, ids: &mut Vec<i32>) -> String {
        ids.push(self.open);
        match self.role_end {
            Some(role_end) => {
                self.push(role, ids);
                ids.push(role_end);
                self.frame.gap.to_owned()
            }
            None => format!("{role}{}", self.frame.gap),
        }
    }

    fn push_end(&self, ids: &mut Vec<i32>) {
        ids.push(self.close);
        self.push(self.template.between(), ids);
    }

    /// One turn and what follows it.
    fn push_turn(&self, role: &str, text: &[&str], ids: &mut Vec<i32>) {
        let header = self.push_header(role, ids);
        let text = text.concat();
        self.push(&(header + self.frame.trimmed(&text)), ids);
        self.push_end(ids);
    }

    /// The user's turn with an image between each two pieces of text. The control tokens around it part them for the tokenizer.
    fn push_images<'a>(
        &self,
        pieces: impl Iterator<Item = &'a str>,
        image_tokens: usize,
        ids: &mut Vec<i32>,
    ) {
        let [before, token, after] = self.image;
        let mut header = self.push_header("user", ids);
        let mut pieces = pieces.enumerate().peekable();
        while let Some((number, mut text)) = pieces.next() {
            if number > 0 {
                ids.push(before);
                ids.extend(std::iter::repeat_n(token, image_tokens));
                ids.push(after);
            }
            // White space at the ends of the turn is left out, and that beside images is its text's.
            if self.frame.trims && number == 0 {
                text = text.trim_start();
            }
            if self.frame.trims && pieces.peek().is_none() {
                text = text.trim_end();
            }
            self.push(&(std::mem::take(&mut header) + text), ids);
        }
        self.push_end(ids);
    }

    /// `text<|endoftext|>` for a text that is no conversation, all of it supervised but the first token, which nothing
    /// precedes; else turns.
    pub fn sequence(&self, conversation: &Conversation<'_>) -> Sequence {
        let mut sequence = Sequence::default();
        let ids = &mut sequence.ids;
        ids.extend(self.begin);
        if conversation.turns.is_empty() {
            self.push(conversation.context, ids);
            ids.push(self.text_end);
            sequence.supervised.push(1..ids.len());
            return sequence;
        }
        if let Some(system) = conversation.system.or(self.template.system()) {
            let before = self.template.before_system();
            let header = self.push_header("system", ids);
            self.push(&(header + before + self.frame.trimmed(system)), ids);
            self.push_end(ids);
        }
        let last = conversation.turns.len() - 1;
        for (index, [question, answer]) in conversation.turns.iter().enumerate() {
            let ids = &mut sequence.ids;
            match (index, conversation.image_tokens) {
                (_, image_tokens) if conversation.is_marked => {
                    self.push_images(question.split(MARK), image_tokens, ids);
                }
                (0, 0) if conversation.context.is_empty() => {
                    self.push_turn("user", &[question], ids);
                }
                (0, 0) => {
                    self.push_turn("user", &[conversation.context, "\n", question], ids);
                }
                (0, image_tokens) => {
                    let text = ["", &format!("\n{question}")];
                    self.push_images(text.into_iter(), image_tokens, ids);
                }
                _ => self.push_turn("user", &[question], ids),
            }
            self.push_answer(answer, index == last, &mut sequence);
        }
        sequence
    }

    /// The assistant's turn; its answer and end are supervised.
    fn push_answer(&self, answer: &str, is_last: bool, sequence: &mut Sequence) {
        let ids = &mut sequence.ids;
        let before = if is_last {
            self.template.before_last_answer()
        } else {
            ""
        };
        // The tokens that open the turn are counted on their own: the layouts end them with a new line, behind which
        // tokenizers of this kind always part words.
        let header = self.push_header("assistant", ids);
        self.push(&(header + before), ids);
        let from = ids.len();
        self.push(self.frame.trimmed(answer), ids);
        ids.push(self.close);
        sequence.supervised.push(from..ids.len());
        self.push(self.template.between(), ids);
    }
}

/// One more than the largest id.
fn end_of(tokenizer: &Tokenizer) -> usize {
    let largest = tokenizer.get_vocab(true).into_values().max();
    largest.map_or(0, |id| id as usize + 1)
}
