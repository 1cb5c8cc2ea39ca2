//! How questions are made: which concepts are shown, in which scene, and what is asked of it.

use crate::colours::Colour;
use crate::emoji_set::{EmojiSet, Pool};
use crate::scenes::{Arrangement, Scene, compose};
use keel_base::random::Stream;
use keel_data::augment::Augmentation;

pub const HOW_MANY: &str = "how many things are there?";
pub const BACKGROUND: &str = "what colour is the background?";
pub const WHOSE_FLAG: &str = "which country's flag is there?";

/// A question about a scene and its answer.
pub struct Asked {
    pub scene: Scene,
    pub question: String,
    pub answer: String,
}

/// What every question is made from.
pub struct Maker<'a> {
    pub emoji: &'a EmojiSet,
    pub pool: &'a Pool,
    pub augmentation: Augmentation,
    pub text: &'a mut Stream,
    pub look: &'a mut Stream,
}

impl Maker<'_> {
    /// A concept that cannot be mistaken for one of `shown`.
    pub fn other(&mut self, shown: &[usize]) -> Option<usize> {
        let all = &self.pool.all;
        self.draw(all, shown, |_| true)
    }

    /// A concept of `from` that cannot be mistaken for one of `shown` and satisfies `fits`.
    pub fn draw(
        &mut self,
        from: &[usize],
        shown: &[usize],
        fits: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        if from.is_empty() {
            return None;
        }
        let emoji = self.emoji;
        // Tries with an end: a small pool may hold nothing that fits, and the question is then left out.
        (0..64)
            .map(|_| *self.text.pick(from))
            .find(|&drawn| fits(drawn) && !shown.iter().any(|&one| confusable(emoji, one, drawn)))
    }

    pub fn compose(&mut self, arrangement: Arrangement, concepts: &[usize]) -> Scene {
        compose(
            self.emoji,
            self.pool,
            arrangement,
            concepts,
            &self.augmentation,
            self.look,
        )
    }

    /// `concepts` in a random order in a random arrangement of their number.
    pub fn arrange(&mut self, concepts: &mut [usize]) -> Scene {
        self.text.shuffle(concepts);
        let arrangement = *self.text.pick(Arrangement::of_count(concepts.len()));
        self.compose(arrangement, concepts)
    }

    /// `first` and as many others as it takes to have `count`.
    pub fn fill(&mut self, first: &[usize], count: usize) -> Option<Vec<usize>> {
        let mut shown = first.to_vec();
        while shown.len() < count {
            shown.push(self.other(&shown)?);
        }
        Some(shown)
    }

    pub fn what(&mut self, primary: usize) -> Asked {
        let count = 1 + self.text.below(4);
        let mut shown = self
            .fill(&[primary], count)
            .unwrap_or_else(|| vec![primary]);
        let scene = self.arrange(&mut shown);
        let at = position(&scene, primary);
        Asked {
            question: question_what(&scene, at),
            answer: self.emoji.concept(primary).name.clone(),
            scene,
        }
    }

    pub fn count(&mut self, primary: usize) -> Option<Asked> {
        let count = 1 + self.text.below(4);
        let mut shown = self.fill(&[primary], count)?;
        let scene = self.arrange(&mut shown);
        Some(Asked {
            scene,
            question: HOW_MANY.to_owned(),
            answer: count.to_string(),
        })
    }

    pub fn count_of(&mut self, primary: usize) -> Option<Asked> {
        let count = 1 + self.text.below(4);
        // Count first and others after it: every count is equally likely, whatever the concept.
        let total = count + self.text.below(5 - count);
        let concept = self.emoji.concept(primary);
        let category = concept.category;
        let by_category = self.text.chance(0.5);
        let mut shown = vec![primary];
        while shown.len() < total {
            let same = shown.len() < count;
            let next = match (same, by_category) {
                (true, false) => primary,
                (true, true) => {
                    let of_category = &self.pool.by_category[category];
                    self.draw(of_category, &shown, |_| true)?
                }
                (false, _) => {
                    let (emoji, all) = (self.emoji, &self.pool.all);
                    let differs = |other| !by_category || emoji.concept(other).category != category;
                    self.draw(all, &shown, differs)?
                }
            };
            shown.push(next);
        }
        let scene = self.arrange(&mut shown);
        Some(Asked {
            scene,
            question: if by_category {
                question_count_of_kind(&self.emoji.categories()[category])
            } else {
                format!("how many pictures of {}?", concept.name)
            },
            answer: count.to_string(),
        })
    }

    /// The target of a question whose answers are groups: `primary` alone as often as keeps the groups balanced, else
    /// a concept of a uniformly drawn group together with `primary` and perhaps others.
    pub fn balanced(
        &mut self,
        primary: usize,
        group_of_primary: Option<usize>,
        groups: &[usize],
        members: &[Vec<usize>],
    ) -> Option<(usize, Vec<usize>)> {
        if let Some(group) = group_of_primary {
            // Kept with the probability that makes every group as frequent as the smallest: the most frequent one would
            // otherwise be a good guess.
            let least = groups.iter().map(|&g| members[g].len()).min().unwrap_or(0);
            if self.text.chance(least as f32 / members[group].len() as f32) {
                return Some((primary, vec![primary]));
            }
        }
        if groups.is_empty() {
            return None;
        }
        let group = *self.text.pick(groups);
        let target = self.draw(&members[group], &[primary], |_| true)?;
        let count = 2 + self.text.below(3);
        let shown = self.fill(&[target, primary], count)?;
        Some((target, shown))
    }

    pub fn colour(&mut self, primary: usize, yes_or_no: bool) -> Option<Asked> {
        let (emoji, pool) = (self.emoji, self.pool);
        let single = |index: usize| emoji.concept(index).palette(pool.vendor).single();
        let group = single(primary).map(|colour| colour as usize);
        let (target, mut shown) = self.balanced(primary, group, &pool.colours, &pool.by_colour)?;
        let scene = self.arrange(&mut shown);
        let at = position(&scene, target);
        let (question, answer) = self.colour_of(&scene, at, yes_or_no)?;
        Some(Asked {
            scene,
            question,
            answer,
        })
    }

    /// Asks for the colour of the object `at`, which has a single one.
    pub fn colour_of(
        &mut self,
        scene: &Scene,
        at: usize,
        yes_or_no: bool,
    ) -> Option<(String, String)> {
        let concept = self.emoji.concept(scene.objects[at].concept);
        let palette = concept.palette(scene.vendor);
        let colour = palette.single()?;
        let thing = match scene.objects.len() {
            1 => "this".to_owned(),
            _ => format!("the thing {}", scene.place(at)),
        };
        if !yes_or_no {
            let question = format!("what colour is {thing}?");
            return Some((question, colour.word().to_owned()));
        }
        let yes = self.text.chance(0.5);
        let asked = if yes {
            colour
        } else {
            let colours = self.pool.colours.iter().map(|&index| Colour::ALL[index]);
            let absent: Vec<Colour> = colours
                .filter(|&other| other != colour && palette.share(other) < 0.1)
                .collect();
            if absent.is_empty() {
                return None;
            }
            *self.text.pick(&absent)
        };
        Some((format!("is {thing} {}?", asked.word()), yes_no(yes)))
    }

    pub fn background(&mut self, primary: usize) -> Option<Asked> {
        let count = 1 + self.text.below(3);
        let mut shown = self.fill(&[primary], count)?;
        self.augmentation = self.augmentation.coloured_background();
        let scene = self.arrange(&mut shown);
        Some(Asked {
            answer: Colour::of(scene.background).word().to_owned(),
            scene,
            question: BACKGROUND.to_owned(),
        })
    }

    pub fn category(&mut self, primary: usize) -> Option<Asked> {
        let (emoji, pool) = (self.emoji, self.pool);
        let group = Some(emoji.concept(primary).category);
        let (target, mut shown) =
            self.balanced(primary, group, &pool.categories, &pool.by_category)?;
        let scene = self.arrange(&mut shown);
        Some(Asked {
            question: question_kind(&scene, position(&scene, target)),
            answer: emoji.categories()[emoji.concept(target).category].clone(),
            scene,
        })
    }

    pub fn country(&mut self, primary: usize) -> Option<Asked> {
        let (emoji, pool) = (self.emoji, self.pool);
        let (target, mut shown) = if emoji.concept(primary).country.is_some() {
            (primary, vec![primary])
        } else {
            let flag = self.draw(&pool.flags, &[primary], |_| true)?;
            let (count, mut shown) = (2 + self.text.below(3), vec![flag, primary]);
            while shown.len() < count {
                let no_flag = |index: usize| emoji.concept(index).country.is_none();
                shown.push(self.draw(&pool.all, &shown, no_flag)?);
            }
            (flag, shown)
        };
        let scene = self.arrange(&mut shown);
        Some(Asked {
            scene,
            question: WHOSE_FLAG.to_owned(),
            answer: emoji.concept(target).country.clone()?,
        })
    }

    pub fn is_there(&mut self, primary: usize) -> Option<Asked> {
        let count = 1 + self.text.below(4);
        let mut shown = self.fill(&[primary], count)?;
        let yes = self.text.chance(0.5);
        let asked = if yes {
            *self.text.pick(&shown)
        } else {
            self.other(&shown)?
        };
        let scene = self.arrange(&mut shown);
        Some(Asked {
            scene,
            question: format!("can you see {}?", self.emoji.concept(asked).phrase),
            answer: yes_no(yes),
        })
    }
}

/// Whether all words of one name are words of the other's: "cat" and "cat face".
pub fn confusable(emoji: &EmojiSet, one: usize, other: usize) -> bool {
    let name = |index: usize| emoji.concept(index).name.as_str();
    let within = |few: &str, many: &str| {
        few.split(' ')
            .all(|word| many.split(' ').any(|w| w == word))
    };
    within(name(one), name(other)) || within(name(other), name(one))
}

pub fn position(scene: &Scene, concept: usize) -> usize {
    let found = scene
        .objects
        .iter()
        .position(|object| object.concept == concept);
    found.expect("a question's target is put into its scene")
}

pub fn question_what(scene: &Scene, at: usize) -> String {
    match scene.objects.len() {
        1 => "what is this?".to_owned(),
        _ => format!("what is {}?", scene.place(at)),
    }
}

pub fn question_kind(scene: &Scene, at: usize) -> String {
    match scene.objects.len() {
        1 => "what kind of thing is this?".to_owned(),
        _ => format!("what kind of thing is {}?", scene.place(at)),
    }
}

pub fn question_count_of_kind(category: &str) -> String {
    format!("how many of kind {category}?")
}

pub fn yes_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}
