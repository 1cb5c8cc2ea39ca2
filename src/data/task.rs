//! What a sample is: the words, the picture to be drawn, and where both came from. Samples are made by the task files
//! (captions, reading, questions, facts) and become rows of a batch in `batch`.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::batch::Pixels;
use super::chat::Conversation;
use super::library::Library;
use super::photo::Photo;
use super::scenes::Scene;
use super::sprite::Frame;
use super::tiles;
use keel_base::error::Result;

/// A kind of training data, as recipes name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// An image of one concept and its name.
    ShortCaptions,
    /// An image of one concept with its category, colours and keywords.
    DenseCaptions,
    /// Keys, letters, clocks, flags and arrows to read.
    #[serde(rename = "ocr")]
    Reading,
    /// Composed scenes with questions and answers.
    #[serde(rename = "vqa")]
    Scenes,
    /// Text without an image.
    Facts,
    /// The user's own samples, given with `--data`.
    #[serde(rename = "samples")]
    Pairs,
}

impl TaskKind {
    /// All kinds.
    pub const ALL: [TaskKind; 6] = [
        TaskKind::ShortCaptions,
        TaskKind::DenseCaptions,
        TaskKind::Reading,
        TaskKind::Scenes,
        TaskKind::Facts,
        TaskKind::Pairs,
    ];

    /// The name in recipes and reports.
    pub fn name(self) -> &'static str {
        match self {
            TaskKind::ShortCaptions => "short_captions",
            TaskKind::DenseCaptions => "dense_captions",
            TaskKind::Reading => "ocr",
            TaskKind::Scenes => "vqa",
            TaskKind::Facts => "facts",
            TaskKind::Pairs => "samples",
        }
    }

    /// The kind of this name.
    pub fn of_name(name: &str) -> Option<TaskKind> {
        TaskKind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether its samples have a picture, as all but some of a user's pairs do; others have no part in a contrast.
    pub fn has_image(self) -> bool {
        self != TaskKind::Facts
    }
}

impl fmt::Display for TaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A kind of question; accuracies and baselines are reported for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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

    /// The kinds of reading.
    pub const READING: [QuestionKind; 5] = [
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
}

/// The picture of a sample, not yet drawn.
#[derive(Clone, Debug)]
pub enum View {
    /// No picture: the sample is text only.
    None,
    /// Embedded concepts.
    Scene(Scene),
    /// A user's picture.
    Photo(Photo),
    /// A user's pictures, at least one, each whole, in the places that the questions mark by [`MARK`](super::chat::MARK).
    Photos(Vec<Photo>),
}

impl View {
    /// Whether there is a picture.
    pub fn is_some(&self) -> bool {
        !matches!(self, View::None)
    }

    /// The grid of tiles that a user's picture is cut into, at most `most`; embedded concepts are drawn at any size and stay
    /// whole.
    pub fn grid(&self, most: usize, side: u32) -> [u32; 2] {
        match self {
            View::Photo(photo) if most > 1 => tiles::grid(photo.size, most, side),
            _ => [1, 1],
        }
    }

    /// Draws what takes slots, the tiles of a grid or several pictures, as planes `[3, side, side]` in the form of `pixels`, each
    /// into the next of `out`.
    ///
    /// # Errors
    /// As [`Photo::square`].
    ///
    /// # Panics
    /// When `out` ends before that.
    pub fn render_slots<'a>(
        &self,
        grid: [u32; 2],
        (side, pixels): (usize, &Pixels),
        out: &mut impl Iterator<Item = &'a mut [f32]>,
    ) -> Result<()> {
        let mut squares = Vec::new();
        if let View::Photo(photo) = self {
            let tiles = photo.tiles(pixels, grid, side as u32)?.into_iter();
            squares.extend(tiles.map(|tile| (tile, photo.tint)));
        }
        for photo in self.several() {
            squares.push((photo.square(pixels, side as u32)?, photo.tint));
        }
        for (square, tint) in squares {
            let planes = out.next().expect("there is a slot for every square");
            Frame::of(&square).write_normalised(tint, planes);
            pixels.apply(planes);
        }
        Ok(())
    }

    /// Whether there is one picture, so that the sample can be contrasted: it has the batch's row of that picture.
    pub fn is_one(&self) -> bool {
        self.is_some() && self.several().is_empty()
    }

    /// The pictures, where there are several: they take slots, as tiles do.
    pub fn several(&self) -> &[Photo] {
        match self {
            View::Photos(photos) if photos.len() > 1 => photos,
            _ => &[],
        }
    }

    /// The same with all of the user's picture, as it stands beside its tiles.
    pub fn whole(&self) -> View {
        match self {
            View::Photo(photo) => View::Photo(photo.unwindowed()),
            other => other.clone(),
        }
    }

    /// Draws planes `[3, side, side]` of numbers from −1 to 1 into `out`, a user's picture scaled as `pixels` says; zeros
    /// where there is no picture, or several.
    ///
    /// # Errors
    /// As [`Photo::square`].
    pub fn render(
        &self,
        library: &Library,
        (side, pixels): (usize, &Pixels),
        out: &mut [f32],
    ) -> Result<()> {
        match self {
            View::None => out.fill(0.0),
            View::Scene(scene) => scene.render(library, side, out),
            View::Photo(photo) => photo.draw((side, pixels), out)?,
            View::Photos(photos) => match &photos[..] {
                [photo] => photo.draw((side, pixels), out)?,
                _ => out.fill(0.0),
            },
        }
        Ok(())
    }
}

/// A further question about a sample's picture and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The question.
    pub question: String,
    /// The answer; never empty.
    pub answer: String,
}

/// One sample before it becomes numbers.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Names the sample in reports; in contrastive batches keys are distinct.
    pub key: String,
    /// The task it belongs to.
    pub kind: TaskKind,
    /// The kind of question, where one is asked.
    pub question_kind: Option<QuestionKind>,
    /// The picture.
    pub view: View,
    /// Text that stands where a picture would, in text-only samples.
    pub context: String,
    /// The question; may be empty.
    pub question: String,
    /// The answer; may be empty only where `context` is the whole text.
    pub answer: String,
    /// What is asked after that about the same picture, in order.
    pub further: Vec<Turn>,
    /// What the system says first, in place of the chat's own words.
    pub system: Option<String>,
    /// The text for the contrastive side; empty in text-only samples.
    pub caption: String,
}

impl Sample {
    /// What is said, for a model that takes `image_tokens` tokens of a picture.
    pub fn conversation(&self, image_tokens: usize) -> Conversation<'_> {
        let mut turns = Vec::with_capacity(1 + self.further.len());
        if self.view.is_some() || !self.question.is_empty() || !self.answer.is_empty() {
            turns.push([self.question.as_str(), self.answer.as_str()]);
        }
        let further = self.further.iter();
        turns.extend(further.map(|turn| [turn.question.as_str(), turn.answer.as_str()]));
        Conversation {
            image_tokens: match self.view.is_some() {
                true => image_tokens,
                false => 0,
            },
            is_marked: matches!(self.view, View::Photos(_)),
            // A picture stands in its place.
            context: match self.view.is_some() {
                true => "",
                false => &self.context,
            },
            turns,
            system: self.system.as_deref(),
        }
    }
}
