//! Questions about a scene, each with its one-word answer.

use super::question_kind::QuestionKind;
use super::scene::{PANELS, Scene, column, row};
use super::words::{COLOURS, COLUMNS, COUNTS, DIGITS, ROWS, SHAPES};
use keel_base::random::Stream;
use keel_data::chat::Turn;

/// Share of the questions for a count that ask for a colour which is there for certain. Without it most answers were 0.
const COUNTED_COLOUR_IS_THERE: f32 = 0.75;

/// What a question asks of a scene: questions of equal facts have equal answers or give each other's away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fact {
    Shape(usize),
    Colour(usize),
    Digit(usize),
    /// Every panel's colour.
    Colours,
}

impl Fact {
    /// Whether an answer about `other` says something about this one.
    fn is_told_by(self, other: Fact) -> bool {
        let is_colour = |fact| matches!(fact, Fact::Colour(_) | Fact::Colours);
        let counts = self == Fact::Colours || other == Fact::Colours;
        self == other || (counts && is_colour(self) && is_colour(other))
    }
}

/// A question of `kind` about `scene`.
pub fn ask(scene: &Scene, kind: QuestionKind, stream: &mut Stream) -> Turn {
    asked(scene, kind, stream).0
}

/// Up to `most` questions about one scene, none of which another gives away.
pub fn ask_several(scene: &Scene, most: usize, stream: &mut Stream) -> Vec<(QuestionKind, Turn)> {
    let mut turns = Vec::with_capacity(most);
    let mut told: Vec<Fact> = Vec::with_capacity(most);
    // A few draws more than questions: what is told already is drawn again, not forever.
    for _ in 0..3 * most {
        if turns.len() == most {
            break;
        }
        let kind = *stream.pick(&QuestionKind::ALL);
        let (turn, fact) = asked(scene, kind, stream);
        if !told.iter().any(|other| fact.is_told_by(*other)) {
            told.push(fact);
            turns.push((kind, turn));
        }
    }
    turns
}

fn asked(scene: &Scene, kind: QuestionKind, stream: &mut Stream) -> (Turn, Fact) {
    let place = stream.below(PANELS);
    let panel = scene.panels[place];
    let (row, column) = (row(place), column(place));
    let at = format!("{}{}", ROWS[row], COLUMNS[column]);
    let shape = SHAPES[panel.shape];
    let (question, answer, fact) = match kind {
        QuestionKind::ShapeAt => (format!("what is{at}?"), shape, Fact::Shape(place)),
        QuestionKind::ColourAt => (
            format!("what colour is{at}?"),
            COLOURS[panel.colour],
            Fact::Colour(place),
        ),
        QuestionKind::DigitAt => (format!("read{at}"), DIGITS[panel.digit], Fact::Digit(place)),
        QuestionKind::ColourOf => (
            format!("what colour is the{shape}?"),
            COLOURS[panel.colour],
            Fact::Colour(place),
        ),
        QuestionKind::DigitOf => (
            format!("read the{shape}"),
            DIGITS[panel.digit],
            Fact::Digit(place),
        ),
        QuestionKind::RowOf => (
            format!("is the{shape} top or bottom?"),
            ROWS[row],
            Fact::Shape(place),
        ),
        QuestionKind::ColumnOf => (
            format!("is the{shape} left or right?"),
            COLUMNS[column],
            Fact::Shape(place),
        ),
        QuestionKind::Count => {
            let any = stream.below(COLOURS.len());
            let colour = if stream.chance(COUNTED_COLOUR_IS_THERE) {
                panel.colour
            } else {
                any
            };
            let question = format!("how many are{}?", COLOURS[colour]);
            (question, COUNTS[scene.count_of(colour)], Fact::Colours)
        }
    };
    let turn = Turn {
        question,
        answer: answer.to_owned(),
    };
    (turn, fact)
}
