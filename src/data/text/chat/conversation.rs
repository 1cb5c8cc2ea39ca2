//! What is said about images, before it is laid out in the ids of a tokeniser.

use std::ops::Range;

/// Where an image stands in a question, in conversations that say so.
pub const MARK: &str = "<image>";

/// The question with marks of so many images before it.
pub fn marked_before(question: &str, images: usize) -> String {
    format!("{MARK}\n").repeat(images) + question
}

/// What is said about images, or without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation<'a> {
    /// Tokens that an image takes, Ti; 0 where there is none.
    pub image_tokens: usize,
    /// Whether questions mark by [`MARK`] where images stand; else one stands before the first question, if any does.
    pub is_marked: bool,
    /// What the system says first, in place of the chat's own words.
    pub system: Option<&'a str>,
    /// Text that stands where an image would.
    pub context: &'a str,
    /// Questions, possibly empty, and answers; none where the context is the whole text.
    pub turns: Vec<[&'a str; 2]>,
    /// Answers that are read and not learnt, by their place among the turns. Where there are any, only the others are supervised.
    pub unsupervised: &'a [usize],
}

/// The ids of one conversation before padding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// All ids.
    pub ids: Vec<i32>,
    /// The supervised ids, one range an answer, in order.
    pub supervised: Vec<Range<usize>>,
}

impl Sequence {
    /// Takes answers out of what is supervised, by their place.
    pub(super) fn leave_out(&mut self, answers: &[usize]) {
        let mut place = 0;
        self.supervised.retain(|_| {
            place += 1;
            !answers.contains(&(place - 1))
        });
    }
}

/// A further question about a sample's image and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The question.
    pub question: String,
    /// The answer; never empty.
    pub answer: String,
}
