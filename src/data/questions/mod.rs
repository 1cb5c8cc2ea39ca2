//! Questions about scenes. For each kind the answer is drawn before the scene where that keeps answers balanced: counts,
//! sides, colours and categories are uniform, yes and no equally likely whatever the question's words, so that guessing
//! from the text alone is weak. Every answer is computed from the scene's description and true of its pixels.

mod further;
mod sides;

use super::augment::Augmentation;
use super::colours::Colour;
use super::library::{Library, Pool};
use super::scenes::{Arrangement, Scene, compose};
use super::task::{QuestionKind, Sample, TaskKind, Turn, View};
use keel_base::random::Stream;

const HOW_MANY: &str = "how many things are there?";
const BACKGROUND: &str = "what colour is the background?";
const WHOSE_FLAG: &str = "which country's flag is there?";

/// A question about a scene and its answer.
struct Asked {
    scene: Scene,
    question: String,
    answer: String,
}

/// What every question is made from.
struct Maker<'a> {
    library: &'a Library,
    pool: &'a Pool,
    augmentation: Augmentation,
    text: &'a mut Stream,
    look: &'a mut Stream,
}

/// A scene that shows the concept `primary`, with a question of `kind`; where the pool cannot serve the kind (no flags,
/// no single-coloured things), or no clear scene turns up, the question is [`QuestionKind::What`].
pub fn ask(
    library: &Library,
    pool: &Pool,
    primary: usize,
    kind: QuestionKind,
    augmentation: &Augmentation,
    text: &mut Stream,
    look: &mut Stream,
) -> Sample {
    let mut maker = Maker {
        library,
        pool,
        augmentation: augmentation.true_colours(),
        text,
        look,
    };
    let mut asked = None;
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
        .map(|object| library.concept(object.concept).key.as_str())
        .collect();
    Sample {
        key,
        kind: TaskKind::Scenes,
        question_kind: Some(kind),
        caption: caption(library, &asked.scene),
        context: describe(library, pool, kind, &asked.scene),
        view: View::Scene(asked.scene),
        question: asked.question,
        answer: asked.answer,
        further: Vec::new(),
        system: None,
    }
}

/// Up to `most` further questions about the scene of `sample`, no two alike, of all kinds that the scene allows. A sample
/// without a scene gets none. Their answers are those that the scene happens to give, not balanced as the first's.
pub fn ask_further(
    library: &Library,
    pool: &Pool,
    sample: &Sample,
    most: usize,
    text: &mut Stream,
    look: &mut Stream,
) -> Vec<Turn> {
    let View::Scene(scene) = &sample.view else {
        return Vec::new();
    };
    let mut maker = Maker {
        library,
        pool,
        augmentation: Augmentation::NONE,
        text,
        look,
    };
    maker.further(scene, &sample.question, most)
}

/// A short text for a scene: the names of one or two objects, the categories of more.
fn caption(library: &Library, scene: &Scene) -> String {
    let concepts = scene
        .objects
        .iter()
        .map(|object| library.concept(object.concept));
    let words: Vec<&str> = if scene.objects.len() <= 2 {
        concepts.map(|concept| concept.phrase.as_str()).collect()
    } else {
        concepts
            .map(|concept| library.categories()[concept.category].as_str())
            .collect()
    };
    words.join(" and ")
}

/// The scene in words, with what is needed to answer a question of `kind` without seeing it.
fn describe(library: &Library, pool: &Pool, kind: QuestionKind, scene: &Scene) -> String {
    let speaks_of_colours = matches!(
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
            let concept = library.concept(object.concept);
            match concept.palette(pool.artist).single() {
                Some(colour) if speaks_of_colours => {
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

    /// A concept that cannot be mistaken for one of `shown`.
    fn other(&mut self, shown: &[usize]) -> Option<usize> {
        let all = &self.pool.all;
        self.draw(all, shown, |_| true)
    }

    /// A concept of `from` that cannot be mistaken for one of `shown` and satisfies `fits`.
    fn draw(
        &mut self,
        from: &[usize],
        shown: &[usize],
        fits: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        if from.is_empty() {
            return None;
        }
        let library = self.library;
        (0..64)
            .map(|_| *self.text.pick(from))
            .find(|&drawn| fits(drawn) && !shown.iter().any(|&one| confusable(library, one, drawn)))
    }

    fn compose(&mut self, arrangement: Arrangement, concepts: &[usize]) -> Scene {
        compose(
            self.library,
            self.pool,
            arrangement,
            concepts,
            &self.augmentation,
            self.look,
        )
    }

    /// `concepts` in a random order in a random arrangement of their number.
    fn arrange(&mut self, concepts: &mut [usize]) -> Scene {
        self.text.shuffle(concepts);
        let arrangement = *self.text.pick(Arrangement::of_count(concepts.len()));
        self.compose(arrangement, concepts)
    }

    /// `first` and as many others as it takes to have `count`.
    fn fill(&mut self, first: &[usize], count: usize) -> Option<Vec<usize>> {
        let mut shown = first.to_vec();
        while shown.len() < count {
            shown.push(self.other(&shown)?);
        }
        Some(shown)
    }

    fn what(&mut self, primary: usize) -> Asked {
        let count = 1 + self.text.below(4);
        let mut shown = self
            .fill(&[primary], count)
            .unwrap_or_else(|| vec![primary]);
        let scene = self.arrange(&mut shown);
        let at = position(&scene, primary);
        Asked {
            question: question_what(&scene, at),
            answer: self.library.concept(primary).name.clone(),
            scene,
        }
    }

    fn count(&mut self, primary: usize) -> Option<Asked> {
        let count = 1 + self.text.below(4);
        let mut shown = self.fill(&[primary], count)?;
        let scene = self.arrange(&mut shown);
        Some(Asked {
            scene,
            question: HOW_MANY.to_owned(),
            answer: count.to_string(),
        })
    }

    fn count_of(&mut self, primary: usize) -> Option<Asked> {
        let count = 1 + self.text.below(4);
        let total = count + self.text.below(5 - count);
        let concept = self.library.concept(primary);
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
                    let (library, all) = (self.library, &self.pool.all);
                    let differs =
                        |other| !by_category || library.concept(other).category != category;
                    self.draw(all, &shown, differs)?
                }
            };
            shown.push(next);
        }
        let scene = self.arrange(&mut shown);
        Some(Asked {
            scene,
            question: if by_category {
                question_count_of_kind(&self.library.categories()[category])
            } else {
                format!("how many pictures of {}?", concept.name)
            },
            answer: count.to_string(),
        })
    }

    /// The target of a question whose answers are groups: `primary` alone as often as keeps the groups balanced, else
    /// a concept of a uniformly drawn group together with `primary` and perhaps others.
    fn balanced(
        &mut self,
        primary: usize,
        group_of_primary: Option<usize>,
        groups: &[usize],
        members: &[Vec<usize>],
    ) -> Option<(usize, Vec<usize>)> {
        if let Some(group) = group_of_primary {
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

    fn colour(&mut self, primary: usize, yes_or_no: bool) -> Option<Asked> {
        let (library, pool) = (self.library, self.pool);
        let single = |index: usize| library.concept(index).palette(pool.artist).single();
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
    fn colour_of(&mut self, scene: &Scene, at: usize, yes_or_no: bool) -> Option<(String, String)> {
        let concept = self.library.concept(scene.objects[at].concept);
        let palette = concept.palette(scene.artist);
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

    fn background(&mut self, primary: usize) -> Option<Asked> {
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

    fn category(&mut self, primary: usize) -> Option<Asked> {
        let (library, pool) = (self.library, self.pool);
        let group = Some(library.concept(primary).category);
        let (target, mut shown) =
            self.balanced(primary, group, &pool.categories, &pool.by_category)?;
        let scene = self.arrange(&mut shown);
        Some(Asked {
            question: question_kind(&scene, position(&scene, target)),
            answer: library.categories()[library.concept(target).category].clone(),
            scene,
        })
    }

    fn country(&mut self, primary: usize) -> Option<Asked> {
        let (library, pool) = (self.library, self.pool);
        let (target, mut shown) = if library.concept(primary).country.is_some() {
            (primary, vec![primary])
        } else {
            let flag = self.draw(&pool.flags, &[primary], |_| true)?;
            let (count, mut shown) = (2 + self.text.below(3), vec![flag, primary]);
            while shown.len() < count {
                let no_flag = |index: usize| library.concept(index).country.is_none();
                shown.push(self.draw(&pool.all, &shown, no_flag)?);
            }
            (flag, shown)
        };
        let scene = self.arrange(&mut shown);
        Some(Asked {
            scene,
            question: WHOSE_FLAG.to_owned(),
            answer: library.concept(target).country.clone()?,
        })
    }

    fn is_there(&mut self, primary: usize) -> Option<Asked> {
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
            question: format!("can you see {}?", self.library.concept(asked).phrase),
            answer: yes_no(yes),
        })
    }
}

/// Whether all words of one name are words of the other's: "cat" and "cat face".
fn confusable(library: &Library, one: usize, other: usize) -> bool {
    let name = |index: usize| library.concept(index).name.as_str();
    let within = |few: &str, many: &str| {
        few.split(' ')
            .all(|word| many.split(' ').any(|w| w == word))
    };
    within(name(one), name(other)) || within(name(other), name(one))
}

fn position(scene: &Scene, concept: usize) -> usize {
    let found = scene
        .objects
        .iter()
        .position(|object| object.concept == concept);
    found.expect("a question's target is put into its scene")
}

fn question_what(scene: &Scene, at: usize) -> String {
    match scene.objects.len() {
        1 => "what is this?".to_owned(),
        _ => format!("what is {}?", scene.place(at)),
    }
}

fn question_kind(scene: &Scene, at: usize) -> String {
    match scene.objects.len() {
        1 => "what kind of thing is this?".to_owned(),
        _ => format!("what kind of thing is {}?", scene.place(at)),
    }
}

fn question_count_of_kind(category: &str) -> String {
    format!("how many of kind {category}?")
}

fn yes_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}
