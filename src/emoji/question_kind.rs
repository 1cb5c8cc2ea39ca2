//! The kinds of questions that are asked about the embedded concepts.

use std::borrow::Cow;

use keel_data::sample::Sample;

/// A kind of question; accuracies and baselines are reported for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QuestionKind {
    /// The name of a thing, alone or at a place.
    What,
    /// How many things there are.
    Count,
    /// How many there are of one name or category.
    CountOf,
    /// The colour of a thing.
    Colour,
    /// The colour of the background.
    Background,
    /// The category of a thing.
    Category,
    /// On which side of one thing another is.
    Side,
    /// What is on a side of a thing.
    Neighbour,
    /// Whose flag it is.
    Country,
    /// Yes or no: is it there?
    IsThere,
    /// Yes or no: is one thing on that side of another?
    IsSide,
    /// Yes or no: has it that colour?
    IsColour,
    /// The digits on one to three keys.
    Keys,
    /// Letters and words.
    Text,
    /// The time on a clock face.
    Time,
    /// The two letters of a flag.
    Code,
    /// Where something points.
    Direction,
}

impl QuestionKind {
    /// The kinds asked about scenes.
    pub const SCENES: [QuestionKind; 12] = [
        QuestionKind::What,
        QuestionKind::Count,
        QuestionKind::CountOf,
        QuestionKind::Colour,
        QuestionKind::Background,
        QuestionKind::Category,
        QuestionKind::Side,
        QuestionKind::Neighbour,
        QuestionKind::Country,
        QuestionKind::IsThere,
        QuestionKind::IsSide,
        QuestionKind::IsColour,
    ];

    /// The kinds that are read off an image.
    pub const OCR: [QuestionKind; 5] = [
        QuestionKind::Keys,
        QuestionKind::Text,
        QuestionKind::Time,
        QuestionKind::Code,
        QuestionKind::Direction,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            QuestionKind::What => "what",
            QuestionKind::Count => "count",
            QuestionKind::CountOf => "count_of",
            QuestionKind::Colour => "colour",
            QuestionKind::Background => "background",
            QuestionKind::Category => "category",
            QuestionKind::Side => "side",
            QuestionKind::Neighbour => "neighbour",
            QuestionKind::Country => "country",
            QuestionKind::IsThere => "is_there",
            QuestionKind::IsSide => "is_side",
            QuestionKind::IsColour => "is_colour",
            QuestionKind::Keys => "keys",
            QuestionKind::Text => "text",
            QuestionKind::Time => "time",
            QuestionKind::Code => "code",
            QuestionKind::Direction => "direction",
        }
    }

    /// The kind that a sample of these tasks asks; nothing where it asks none.
    pub fn of(sample: &Sample) -> Option<QuestionKind> {
        let name = sample.question_kind.as_deref()?;
        let mut kinds = QuestionKind::SCENES.into_iter().chain(QuestionKind::OCR);
        kinds.find(|kind| kind.name() == name)
    }
}

impl From<QuestionKind> for Cow<'static, str> {
    fn from(kind: QuestionKind) -> Cow<'static, str> {
        Cow::Borrowed(kind.name())
    }
}
