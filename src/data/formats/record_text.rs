//! What a record says, once understood, and how it is said that it cannot be.

use super::skips::Reason;
use crate::text::chat::{MARK, Turn, marked_before};
use keel_base::error::Error;

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
    pub(super) fn size(&self) -> u64 {
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

/// A record that cannot be understood.
pub(super) fn bad(name: &str, problem: impl ToString, remedy: &str) -> Problem {
    (Reason::BadRecord, Error::content(name, problem, remedy))
}

/// Without blanks and byte-order mark around it.
pub(super) fn trimmed(name: &str, text: &str) -> Result<String, Problem> {
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
