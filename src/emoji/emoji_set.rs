//! The embedded concepts as the tasks see them: words ready for captions and answers, and each vendor's images as
//! sprites. Which concepts may be trained on is decided here and nowhere else: [`EmojiSet::training`] is the only list
//! that the training tasks draw from, and they draw with [`Vendor::Noto`] only.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;

use super::colours::{Colour, Palette};
use super::embedded::{self, EmbeddedConcept, EmbeddedConcepts, Vendor};
use super::names::{self, OcrContent};
use super::sprite::{self, Sprite};
use keel_base::error::{Error, Result};

/// Whether a concept is trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// Trained on, in Noto's style.
    Train,
    /// Never shown, named or described in training.
    HeldOut,
}

impl Split {
    /// The name for tables.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::HeldOut => "held-out",
        }
    }
}

/// A concept with everything that its tasks need.
#[derive(Debug)]
pub struct Concept {
    /// The emoji, unique.
    pub key: String,
    /// Plain name, unique: "red apple".
    pub name: String,
    /// Name with article: "a red apple".
    pub phrase: String,
    /// Keywords that are not words of the name.
    pub keywords: Vec<String>,
    /// Index in [`EmojiSet::categories`].
    pub category: usize,
    /// Index in [`EmojiSet::subcategories`].
    pub subcategory: usize,
    /// Trained on or held out.
    pub split: Split,
    /// What the image says, where it can be read.
    pub ocr: Option<OcrContent>,
    /// Whose flag it is.
    pub country: Option<String>,
    /// Whether left and right may be swapped.
    pub mirror_safe: bool,
    raw: EmbeddedConcept,
    /// What [`Vendor::ALL`] drew.
    drawings: [Drawing; 2],
}

/// Why nothing is wrong with the embedded concepts.
const TESTED: &str = "the shards are part of the program and tested with it";

/// One vendor's drawing of a concept. It is decoded when something asks for it, and its colours are measured apart from its
/// sprite: a task groups all concepts by colour and shows some of them.
#[derive(Debug, Default)]
struct Drawing {
    palette: OnceLock<Palette>,
    sprite: OnceLock<Sprite>,
}

impl Concept {
    fn new(raw: EmbeddedConcept, categories: &[String], subcategories: &[String]) -> Concept {
        let name = names::plain_name(&raw.name);
        let words: Vec<&str> = name.split(' ').collect();
        let index = |groups: &[String], word: &str| {
            let found = groups.binary_search_by(|group| group.as_str().cmp(word));
            found.expect("the groups were collected from these concepts")
        };
        let keywords = raw.keywords.iter().map(|keyword| keyword.to_lowercase());
        let fresh = |keyword: &String| *keyword != name && !words.contains(&keyword.as_str());
        Concept {
            key: raw.emoji.clone(),
            phrase: match OcrContent::of(&raw.emoji) {
                Some(OcrContent::Time { .. }) => format!("a clock at {name}"),
                _ => names::with_article(&name),
            },
            keywords: keywords.filter(fresh).collect(),
            category: index(categories, &names::category_word(&raw.category)),
            subcategory: index(subcategories, &names::subcategory_words(&raw.subcategory)),
            split: if raw.held_out {
                Split::HeldOut
            } else {
                Split::Train
            },
            ocr: OcrContent::of(&raw.emoji),
            country: names::country(&name, &raw.subcategory).map(str::to_owned),
            mirror_safe: names::mirror_safe(&name, &raw.category, &raw.subcategory),
            drawings: Default::default(),
            name,
            raw,
        }
    }

    /// The image of one vendor.
    pub fn sprite(&self, vendor: Vendor) -> &Sprite {
        self.drawings[vendor as usize].sprite.get_or_init(|| {
            let image = self.raw.image(vendor).expect(TESTED);
            let sides = [image.width, image.height].map(|side| side as usize);
            Sprite::new(sides[0], sides[1], &image.rgba)
        })
    }

    /// The colours of one vendor's image.
    pub fn palette(&self, vendor: Vendor) -> &Palette {
        let drawing = &self.drawings[vendor as usize];
        drawing.palette.get_or_init(|| {
            let colours = self.raw.colours(vendor).expect(TESTED);
            let quantised = |(colour, pixels)| (sprite::quantised(colour), pixels);
            Palette::measure(colours.into_iter().map(quantised))
        })
    }
}

/// All concepts, their groups, and the lists that tasks draw from.
#[derive(Debug)]
pub struct EmojiSet {
    concepts: Vec<Concept>,
    categories: Vec<String>,
    subcategories: Vec<String>,
    training: Vec<usize>,
    held_out: Vec<usize>,
}

impl EmojiSet {
    /// The set of the embedded concepts, made on first use and shared from then on.
    pub fn embedded() -> Arc<EmojiSet> {
        static EMBEDDED: OnceLock<Arc<EmojiSet>> = OnceLock::new();
        EMBEDDED
            .get_or_init(|| {
                let set = EmbeddedConcepts::load(embedded::NOTO, embedded::TWEMOJI)
                    .and_then(|concepts| EmojiSet::new(concepts.entries));
                Arc::new(set.expect(TESTED))
            })
            .clone()
    }

    /// Names and groups concepts; their drawings wait until they are asked for.
    ///
    /// # Errors
    /// `Content` when two concepts share an emoji or a plain name.
    pub fn new(raw: Vec<EmbeddedConcept>) -> Result<EmojiSet> {
        let mut categories: Vec<String> = raw
            .iter()
            .map(|concept| names::category_word(&concept.category))
            .collect();
        let mut subcategories: Vec<String> = raw
            .iter()
            .map(|concept| names::subcategory_words(&concept.subcategory))
            .collect();
        for groups in [&mut categories, &mut subcategories] {
            groups.sort();
            groups.dedup();
        }
        let concepts: Vec<Concept> = raw
            .into_par_iter()
            .map(|concept| Concept::new(concept, &categories, &subcategories))
            .collect();
        let mut seen: HashMap<&str, &str> = HashMap::new();
        for concept in &concepts {
            for word in [&concept.key, &concept.name] {
                if let Some(other) = seen.insert(word, &concept.key) {
                    return Err(Error::content(
                        format!("concept {}", concept.key),
                        format!("{word:?} already belongs to {other}"),
                        "give every concept its own name",
                    ));
                }
            }
        }
        let of = |split| {
            let chosen = |index: &usize| concepts[*index].split == split;
            (0..concepts.len()).filter(chosen).collect()
        };
        Ok(EmojiSet {
            training: of(Split::Train),
            held_out: of(Split::HeldOut),
            categories,
            subcategories,
            concepts,
        })
    }

    /// Every concept, trained on or not.
    pub fn concepts(&self) -> &[Concept] {
        &self.concepts
    }

    /// The concept at `index`.
    pub fn concept(&self, index: usize) -> &Concept {
        &self.concepts[index]
    }

    /// The words of the categories, sorted.
    pub fn categories(&self) -> &[String] {
        &self.categories
    }

    /// The words of the subcategories, sorted.
    pub fn subcategories(&self) -> &[String] {
        &self.subcategories
    }

    /// The concepts that training may use.
    pub fn training(&self) -> &[usize] {
        &self.training
    }

    /// The concepts of one split.
    pub fn of_split(&self, split: Split) -> &[usize] {
        match split {
            Split::Train => &self.training,
            Split::HeldOut => &self.held_out,
        }
    }

    /// The lists that the tasks of one vendor and split draw from.
    pub fn pool(&self, vendor: Vendor, split: Split) -> Pool {
        self.pool_of(vendor, self.of_split(split).to_vec())
    }

    /// As [`EmojiSet::pool`], of these concepts alone.
    pub fn pool_of(&self, vendor: Vendor, all: Vec<usize>) -> Pool {
        // Palettes are measured on first use; here all are wanted at once, so on all cores.
        all.par_iter().for_each(|index| {
            self.concepts[*index].palette(vendor);
        });
        let mut by_category = vec![Vec::new(); self.categories.len()];
        let mut by_colour = vec![Vec::new(); Colour::ALL.len()];
        let mut flags = Vec::new();
        let mut readable = Vec::new();
        for &index in &all {
            let concept = &self.concepts[index];
            by_category[concept.category].push(index);
            if let Some(colour) = concept.palette(vendor).single() {
                by_colour[colour as usize].push(index);
            }
            if concept.country.is_some() {
                flags.push(index);
            }
            if concept.ocr.is_some() {
                readable.push(index);
            }
        }
        let keys = readable
            .iter()
            .copied()
            .filter(|&index| matches!(self.concepts[index].ocr, Some(OcrContent::Key('0'..='9'))))
            .collect();
        Pool {
            vendor,
            categories: filled(&by_category, 1),
            by_category,
            // A colour that hardly any concept has would be learned as those concepts.
            colours: filled(&by_colour, all.len() / 250 + 1),
            all,
            by_colour,
            flags,
            readable,
            keys,
        }
    }
}

/// The lists that hold at least `least`.
fn filled(lists: &[Vec<usize>], least: usize) -> Vec<usize> {
    (0..lists.len())
        .filter(|&index| lists[index].len() >= least)
        .collect()
}

/// The concepts of one vendor and split, grouped as the tasks need them. All lists hold indices into the set.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Whose images are shown and measured.
    pub vendor: Vendor,
    /// Every concept of the split.
    pub all: Vec<usize>,
    /// The categories that have a concept.
    pub categories: Vec<usize>,
    /// Concepts by category.
    pub by_category: Vec<Vec<usize>>,
    /// The colours (as positions in [`Colour::ALL`]) that enough concepts have as their single colour.
    pub colours: Vec<usize>,
    /// Concepts by their single colour.
    pub by_colour: Vec<Vec<usize>>,
    /// Flags of countries and regions.
    pub flags: Vec<usize>,
    /// Concepts that say something.
    pub readable: Vec<usize>,
    /// Keycaps with one digit.
    pub keys: Vec<usize>,
}
