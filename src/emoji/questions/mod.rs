//! Questions about scenes. For each kind the answer is drawn before the scene where that keeps answers balanced: counts,
//! sides, colours and categories are uniform, yes and no equally likely whatever the question's words, so that guessing
//! from the text alone is weak. Every answer is computed from the scene's description and true of its pixels.

mod further;
mod maker;
mod sides;

use std::sync::Arc;

use maker::{Asked, Maker};

use super::colours::Colour;
use super::emoji_set::{EmojiSet, Pool};
use super::question_kind::QuestionKind;
use super::scenes::Scene;
use super::tasks;
use keel_base::random::Stream;
use keel_data::augment::Augmentation;
use keel_data::chat::Turn;
use keel_data::sample::Sample;

/// A scene that shows the concept `primary`, with a question of `kind`; where the pool cannot serve the kind (no flags,
/// no single-coloured things), or no clear scene turns up, the question is [`QuestionKind::What`].
pub fn ask(
    emoji: &Arc<EmojiSet>,
    pool: &Pool,
    primary: usize,
    kind: QuestionKind,
    augmentation: &Augmentation,
    text: &mut Stream,
    look: &mut Stream,
) -> Sample {
    let mut maker = Maker {
        emoji,
        pool,
        augmentation: augmentation.true_colours(),
        text,
        look,
    };
    let mut asked = None;
    // A kind may find no scene for a concept (no second flag, no clear side): a few tries, then the question that
    // always works.
    for _ in 0..8 {
        asked = maker.question(primary, kind);
        if asked.is_some() {
            break;
        }
    }
    let (kind, asked) = match asked {
        Some(asked) => (kind, asked),
        None => (QuestionKind::What, maker.what(primary)),
    };
    let key = asked
        .scene
        .objects
        .iter()
        .map(|object| emoji.concept(object.concept).key.as_str())
        .collect();
    Sample {
        key,
        task: tasks::VQA,
        question_kind: Some(kind.into()),
        caption: caption(emoji, &asked.scene),
        context: describe(emoji, pool, kind, &asked.scene),
        view: asked.scene.view(emoji),
        question: asked.question,
        answer: asked.answer,
        further: Vec::new(),
        unsupervised: Vec::new(),
        system: None,
    }
}

/// Up to `most` further questions about the scene of `sample`, no two alike, of all kinds that the scene allows. A sample
/// without a scene gets none. Their answers are those that the scene happens to give, not balanced as the first's.
pub fn ask_further(
    emoji: &EmojiSet,
    pool: &Pool,
    sample: &Sample,
    most: usize,
    text: &mut Stream,
    look: &mut Stream,
) -> Vec<Turn> {
    let Some(scene) = Scene::of(&sample.view) else {
        return Vec::new();
    };
    let mut maker = Maker {
        emoji,
        pool,
        augmentation: Augmentation::NONE,
        text,
        look,
    };
    maker.further(scene, &sample.question, most)
}

/// A short text for a scene: the names of one or two objects, the categories of more.
fn caption(emoji: &EmojiSet, scene: &Scene) -> String {
    let concepts = scene
        .objects
        .iter()
        .map(|object| emoji.concept(object.concept));
    let words: Vec<&str> = if scene.objects.len() <= 2 {
        concepts.map(|concept| concept.phrase.as_str()).collect()
    } else {
        concepts
            .map(|concept| emoji.categories()[concept.category].as_str())
            .collect()
    };
    words.join(" and ")
}

/// The scene in words, with what is needed to answer a question of `kind` without seeing it.
fn describe(emoji: &EmojiSet, pool: &Pool, kind: QuestionKind, scene: &Scene) -> String {
    let names_colours = matches!(
        kind,
        QuestionKind::Colour
            | QuestionKind::IsColour
            | QuestionKind::Side
            | QuestionKind::IsSide
            | QuestionKind::Neighbour
    );
    let mut parts: Vec<String> = scene
        .objects
        .iter()
        .enumerate()
        .map(|(at, object)| {
            let place = scene.place(at);
            let concept = emoji.concept(object.concept);
            match concept.palette(pool.vendor).single() {
                Some(colour) if names_colours => {
                    format!("{} {} {place}", colour.word(), concept.name)
                }
                _ => format!("{} {place}", concept.name),
            }
        })
        .collect();
    if kind == QuestionKind::Background {
        parts.push(format!("on {}", Colour::of(scene.background).word()));
    }
    parts.join(", ")
}

impl Maker<'_> {
    fn question(&mut self, primary: usize, kind: QuestionKind) -> Option<Asked> {
        match kind {
            QuestionKind::Count => self.count(primary),
            QuestionKind::CountOf => self.count_of(primary),
            QuestionKind::Colour => self.colour(primary, false),
            QuestionKind::IsColour => self.colour(primary, true),
            QuestionKind::Background => self.background(primary),
            QuestionKind::Category => self.category(primary),
            QuestionKind::Side => self.side(primary, false),
            QuestionKind::IsSide => self.side(primary, true),
            QuestionKind::Neighbour => self.neighbour(primary),
            QuestionKind::Country => self.country(primary),
            QuestionKind::IsThere => self.is_there(primary),
            _ => Some(self.what(primary)),
        }
    }
}
