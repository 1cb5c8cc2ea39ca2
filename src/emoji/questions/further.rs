//! Further questions about a scene that is there already: one image then answers several, each read off it anew.

use std::collections::HashSet;

use super::maker::{
    BACKGROUND, HOW_MANY, Maker, WHOSE_FLAG, question_count_of_kind, question_kind, question_what,
    yes_no,
};
use crate::colours::Colour;
use crate::question_kind::QuestionKind;
use crate::scenes::Scene;
use keel_data::chat::Turn;
use keel_data::prepare::PLAIN_BACKGROUND;

/// Share of the counts of one that are asked: most things are there once, and the answer should not be known before.
const COUNTS_OF_ONE: f32 = 0.3;

impl Maker<'_> {
    /// Up to `most` questions about `scene`, all different from `first` and from each other.
    pub(super) fn further(&mut self, scene: &Scene, first: &str, most: usize) -> Vec<Turn> {
        let mut turns: Vec<Turn> = Vec::new();
        for _ in 0..4 * most {
            if turns.len() == most {
                break;
            }
            let kind = *self.text.pick(&QuestionKind::SCENES);
            let Some((question, answer)) = self.about(scene, kind) else {
                continue;
            };
            if question != first && turns.iter().all(|turn| turn.question != question) {
                turns.push(Turn { question, answer });
            }
        }
        turns
    }

    /// A question of `kind` about `scene` with its answer, where the scene allows one.
    fn about(&mut self, scene: &Scene, kind: QuestionKind) -> Option<(String, String)> {
        let emoji = self.emoji;
        let shown: Vec<usize> = scene.objects.iter().map(|object| object.concept).collect();
        let at = self.text.below(shown.len());
        let concept = emoji.concept(shown[at]);
        let category = |index: usize| emoji.concept(index).category;
        let distinct = shown.iter().collect::<HashSet<_>>().len() == shown.len();
        match kind {
            QuestionKind::What => Some((question_what(scene, at), concept.name.clone())),
            QuestionKind::Count => Some((HOW_MANY.to_owned(), shown.len().to_string())),
            QuestionKind::CountOf => {
                let by_category = self.text.chance(0.5);
                let alike = |&&other: &&usize| {
                    if by_category {
                        category(other) == concept.category
                    } else {
                        other == shown[at]
                    }
                };
                let count = shown.iter().filter(alike).count();
                // A thing that is there is mostly there once: without this the answer would be one nearly always.
                if count == 1 && !self.text.chance(COUNTS_OF_ONE) {
                    return None;
                }
                let question = if by_category {
                    question_count_of_kind(&emoji.categories()[concept.category])
                } else {
                    format!("how many pictures of {}?", concept.name)
                };
                Some((question, count.to_string()))
            }
            QuestionKind::Colour => self.colour_of(scene, at, false),
            QuestionKind::IsColour => self.colour_of(scene, at, true),
            // The plain background comes too often to be worth asking for.
            QuestionKind::Background => (scene.background != PLAIN_BACKGROUND).then(|| {
                let colour = Colour::of(scene.background);
                (BACKGROUND.to_owned(), colour.word().to_owned())
            }),
            QuestionKind::Category => {
                let answer = emoji.categories()[concept.category].clone();
                Some((question_kind(scene, at), answer))
            }
            QuestionKind::Side if distinct => self.side_of(scene, at, false),
            QuestionKind::IsSide if distinct => self.side_of(scene, at, true),
            QuestionKind::Neighbour if distinct => self.neighbour_of(scene, at),
            QuestionKind::Country => {
                let country = |&index: &usize| emoji.concept(index).country.clone();
                let mut countries = shown.iter().filter_map(country);
                match (countries.next(), countries.next()) {
                    (Some(one), None) => Some((WHOSE_FLAG.to_owned(), one)),
                    _ => None,
                }
            }
            QuestionKind::IsThere => {
                let yes = self.text.chance(0.5);
                let asked = if yes { shown[at] } else { self.other(&shown)? };
                let question = format!("can you see {}?", emoji.concept(asked).phrase);
                Some((question, yes_no(yes)))
            }
            _ => None,
        }
    }
}
