//! What is said about pictures, before it is laid out in the ids of a tokeniser.

use std::ops::Range;

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

/// A further question about a sample's picture and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The question.
    pub question: String,
    /// The answer; never empty.
    pub answer: String,
}
