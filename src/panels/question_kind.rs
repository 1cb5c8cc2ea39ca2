//! The kinds of questions about panels, each with the closed set that its answers come from.

use std::borrow::Cow;

use super::words::{COLOURS, COLUMNS, COUNTS, DIGITS, ROWS, SHAPES};

/// A kind of question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QuestionKind {
    /// The shape at a place.
    ShapeAt,
    /// The colour at a place.
    ColourAt,
    /// The digit at a place.
    DigitAt,
    /// The colour of a shape.
    ColourOf,
    /// The digit on a shape.
    DigitOf,
    /// The row of a shape.
    RowOf,
    /// The column of a shape.
    ColumnOf,
    /// How many panels have a colour.
    Count,
}

impl QuestionKind {
    /// All kinds.
    pub const ALL: [QuestionKind; 8] = [
        QuestionKind::ShapeAt,
        QuestionKind::ColourAt,
        QuestionKind::DigitAt,
        QuestionKind::ColourOf,
        QuestionKind::DigitOf,
        QuestionKind::RowOf,
        QuestionKind::ColumnOf,
        QuestionKind::Count,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            QuestionKind::ShapeAt => "shape_at",
            QuestionKind::ColourAt => "colour_at",
            QuestionKind::DigitAt => "digit_at",
            QuestionKind::ColourOf => "colour_of",
            QuestionKind::DigitOf => "digit_of",
            QuestionKind::RowOf => "row_of",
            QuestionKind::ColumnOf => "column_of",
            QuestionKind::Count => "count",
        }
    }

    /// Every answer that there is.
    pub fn answers(self) -> &'static [&'static str] {
        match self {
            QuestionKind::ShapeAt => &SHAPES,
            QuestionKind::ColourAt | QuestionKind::ColourOf => &COLOURS,
            QuestionKind::DigitAt | QuestionKind::DigitOf => &DIGITS,
            QuestionKind::RowOf => &ROWS,
            QuestionKind::ColumnOf => &COLUMNS,
            QuestionKind::Count => &COUNTS,
        }
    }
}

impl From<QuestionKind> for Cow<'static, str> {
    fn from(kind: QuestionKind) -> Cow<'static, str> {
        Cow::Borrowed(kind.name())
    }
}
