//! What a sample is: the words, the image to be drawn, and where both came from. Samples are made by task sources and
//! become rows of a batch in [`assemble`](super::assemble).

use std::borrow::Cow;
use std::sync::Arc;

use super::identities::ImageContent;
use super::task::Task;
use crate::images::frame::{Drawing, Frame};
use crate::images::image_view::ImageView;
use crate::images::pixels::Pixels;
use crate::images::tiles;
use crate::text::chat::{Conversation, Turn};
use keel_base::error::Result;

/// The image of a sample, not yet drawn.
#[derive(Clone, Debug)]
pub enum View {
    /// No image: the sample is text only.
    None,
    /// An image that is drawn for the batch.
    Drawn(Arc<dyn Drawing>),
    /// A user's image.
    Image(ImageView),
    /// A user's images, at least one, each whole, in the places that the questions mark by
    /// [`MARK`](crate::chat::MARK).
    Images(Vec<ImageView>),
}

impl View {
    /// Whether there is an image.
    pub fn is_some(&self) -> bool {
        !matches!(self, View::None)
    }

    /// The grid of tiles that a user's image is cut into, at most `most`; what is drawn is drawn at any size and stays
    /// whole.
    pub fn grid(&self, most: usize, side: u32) -> [u32; 2] {
        match self {
            View::Image(image) if most > 1 => {
                tiles::grid(image.size, most.min(image.most_tiles), side)
            }
            _ => [1, 1],
        }
    }

    /// Draws what takes slots, the tiles of a grid or several images, as planes `[3, side, side]` in the form of `pixels`, each
    /// into the next of `out`.
    ///
    /// # Errors
    /// As [`ImageView::square`].
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
        if let View::Image(image) = self {
            let tiles = image.tiles(pixels, grid, side as u32)?.into_iter();
            squares.extend(tiles.map(|tile| (tile, image.tint)));
        }
        for image in self.several() {
            squares.push((image.square(pixels, side as u32)?, image.tint));
        }
        for (square, tint) in squares {
            let planes = out.next().expect("there is a slot for every square");
            Frame::of(&square).write_normalised(tint, planes);
            pixels.apply(planes);
        }
        Ok(())
    }

    /// Whether there is one image, so that the sample can take part in a contrastive loss: it has the batch's row of that
    /// image.
    pub fn is_one(&self) -> bool {
        self.is_some() && self.several().is_empty()
    }

    /// The images, where there are several: they take slots, as tiles do.
    pub fn several(&self) -> &[ImageView] {
        match self {
            View::Images(images) if images.len() > 1 => images,
            _ => &[],
        }
    }

    /// The same with all of the user's image, as it stands beside its tiles.
    pub fn whole(&self) -> View {
        match self {
            View::Image(image) => View::Image(image.unwindowed()),
            other => other.clone(),
        }
    }

    /// Draws planes `[3, side, side]` of numbers from −1 to 1 into `out`, a user's image scaled as `pixels` says; zeros
    /// where there is no image, or several.
    ///
    /// # Errors
    /// As [`ImageView::square`].
    pub fn render(&self, (side, pixels): (usize, &Pixels), out: &mut [f32]) -> Result<()> {
        match self {
            View::None => out.fill(0.0),
            View::Drawn(drawing) => drawing.draw(side, out),
            View::Image(image) => image.draw((side, pixels), out)?,
            View::Images(images) => match &images[..] {
                [image] => image.draw((side, pixels), out)?,
                _ => out.fill(0.0),
            },
        }
        Ok(())
    }
}

/// One sample before it becomes numbers.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Names the sample in reports. Samples of other shards or folders may have the same.
    pub key: String,
    /// The task it belongs to.
    pub task: Task,
    /// The kind of question, where one is asked that has a kind: accuracies and baselines are reported for each.
    pub question_kind: Option<Cow<'static, str>>,
    /// The image.
    pub view: View,
    /// Text that stands where an image would, in text-only samples.
    pub context: String,
    /// The question; may be empty.
    pub question: String,
    /// The answer; may be empty only where `context` is the whole text.
    pub answer: String,
    /// What is asked after that about the same image, in order.
    pub further: Vec<Turn>,
    /// What the system says first, in place of the chat's own words.
    pub system: Option<String>,
    /// Answers that are read and not learnt, by their place in the conversation; of a text without an image, where there are
    /// any, the context and the questions are not learnt either.
    pub unsupervised: Vec<usize>,
    /// The text for the contrastive side; empty in text-only samples.
    pub caption: String,
}

impl Sample {
    /// In [`Sample::unsupervised`], the place of no answer: all answers are learnt, and nothing else is.
    pub const ANSWERS_ALONE: usize = usize::MAX;

    /// What its one image shows; nothing where there is no image, or several.
    pub fn image_content(&self) -> Option<ImageContent<'_>> {
        match &self.view {
            View::None => None,
            View::Drawn(_) => Some(ImageContent::Drawn(&self.key)),
            View::Image(image) => Some(ImageContent::Pixels(image.content())),
            View::Images(images) => match &images[..] {
                [image] => Some(ImageContent::Pixels(image.content())),
                _ => None,
            },
        }
    }

    /// What is said, for a model that takes `image_tokens` tokens of an image.
    pub fn conversation(&self, image_tokens: usize) -> Conversation<'_> {
        let mut turns = Vec::with_capacity(1 + self.further.len());
        if self.view.is_some() || !self.question.is_empty() || !self.answer.is_empty() {
            turns.push([self.question.as_str(), self.answer.as_str()]);
        }
        let further = self.further.iter();
        turns.extend(further.map(|turn| [turn.question.as_str(), turn.answer.as_str()]));
        Conversation {
            image_tokens: if self.view.is_some() { image_tokens } else { 0 },
            is_marked: matches!(self.view, View::Images(_)),
            // An image stands in its place.
            context: if self.view.is_some() {
                ""
            } else {
                &self.context
            },
            turns,
            system: self.system.as_deref(),
            unsupervised: &self.unsupervised,
        }
    }
}
