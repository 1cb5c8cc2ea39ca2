//! Captions: short ones for coarse alignment, dense ones with group, colours and keywords, and the reading tasks. All are
//! made from one concept (or a row of keys) of the pool and never mention anything that is not in the picture's facts.

use super::augment::Augmentation;
use super::embedded::Artist;
use super::library::{Entry, Library, Pool};
use super::names::{Reading, with_article};
use super::scenes::{Arrangement, compose};
use super::task::{QuestionKind, Sample, TaskKind, View};
use keel_base::random::Stream;

/// What stands around a phrase in a short caption; the first is what evaluation uses.
pub const SHORT_TEMPLATES: [[&str; 2]; 5] = [
    ["", ""],
    ["a picture of ", ""],
    ["this is ", ""],
    ["an emoji of ", ""],
    ["", " on its own"],
];

/// The caption of a concept as evaluation uses it.
pub fn plain_caption(concept: &Entry) -> String {
    concept.phrase.clone()
}

/// One concept alone with its name. Most captions are the bare phrase.
pub fn short(
    library: &Library,
    pool: &Pool,
    index: usize,
    augmentation: &Augmentation,
    text: &mut Stream,
    look: &mut Stream,
) -> Sample {
    let concept = library.concept(index);
    let template = if text.chance(0.6) {
        SHORT_TEMPLATES[0]
    } else {
        *text.pick(&SHORT_TEMPLATES[1..])
    };
    let caption = format!("{}{}{}", template[0], concept.phrase, template[1]);
    Sample {
        key: concept.key.clone(),
        kind: TaskKind::ShortCaptions,
        question_kind: None,
        view: single(library, pool, index, augmentation, look),
        context: String::new(),
        question: String::new(),
        answer: caption.clone(),
        further: Vec::new(),
        system: None,
        caption,
    }
}

/// One concept alone, described. `attempt` counts earlier versions that were too long: each has one detail less.
pub fn dense(
    library: &Library,
    pool: &Pool,
    index: usize,
    attempt: usize,
    augmentation: &Augmentation,
    text: &mut Stream,
    look: &mut Stream,
) -> Sample {
    let concept = library.concept(index);
    let keywords = text.below(3);
    let mut words = vec![concept.phrase.clone()];
    words.extend(details_of(
        library,
        concept,
        pool.artist,
        keywords.saturating_sub(attempt),
        text,
    ));
    if attempt > 3 {
        words.truncate(2);
    }
    let caption = words.join(", ");
    Sample {
        key: concept.key.clone(),
        kind: TaskKind::DenseCaptions,
        question_kind: None,
        view: single(library, pool, index, &augmentation.true_colours(), look),
        context: String::new(),
        question: "describe this".to_owned(),
        answer: caption.clone(),
        further: Vec::new(),
        system: None,
        caption,
    }
}

/// Group, colours and up to `keywords` keywords of a concept, everything but its name.
pub fn details_of(
    library: &Library,
    concept: &Entry,
    artist: Artist,
    keywords: usize,
    text: &mut Stream,
) -> Vec<String> {
    let mut details = vec![with_article(&library.subcategories()[concept.subcategory])];
    let colours = concept.palette(artist).dominant(0.15, 2);
    if !colours.is_empty() {
        details.push(
            colours
                .iter()
                .map(|colour| colour.word())
                .collect::<Vec<_>>()
                .join(" and "),
        );
    }
    let mut order: Vec<&String> = concept.keywords.iter().collect();
    text.shuffle(&mut order);
    details.extend(order.into_iter().take(keywords).cloned());
    details
}

/// One concept alone in the frame.
fn single(
    library: &Library,
    pool: &Pool,
    index: usize,
    augmentation: &Augmentation,
    look: &mut Stream,
) -> View {
    View::Scene(compose(
        library,
        pool,
        Arrangement::Single,
        &[index],
        augmentation,
        look,
    ))
}

/// What a reading item shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadingItem {
    /// One concept, by its index.
    Single(usize),
    /// A row of two or three random keys.
    Row,
}

/// The items of the reading task: every readable concept at least once, each kind of reading about equally often.
pub fn reading_items(library: &Library, pool: &Pool) -> Vec<ReadingItem> {
    /// About how many items a kind of reading has in an epoch.
    const SHARE: usize = 120;
    let mut items = Vec::new();
    for kind in QuestionKind::READING {
        let of_kind: Vec<usize> = pool
            .readable
            .iter()
            .copied()
            .filter(|&index| library.concept(index).reading.as_ref().map(kind_of) == Some(kind))
            .collect();
        let times = (SHARE / of_kind.len().max(1)).max(1);
        for _ in 0..times {
            items.extend(of_kind.iter().copied().map(ReadingItem::Single));
        }
    }
    if pool.keys.len() > 1 {
        items.extend([ReadingItem::Row; SHARE]);
    }
    items
}

fn kind_of(reading: &Reading) -> QuestionKind {
    match reading {
        Reading::Key(_) => QuestionKind::Keys,
        Reading::Text(_) => QuestionKind::Text,
        Reading::Time { .. } => QuestionKind::Time,
        Reading::Code(_) => QuestionKind::Code,
        Reading::Direction(_) => QuestionKind::Direction,
    }
}

/// The kind of question that `item` asks; nothing where it cannot be read.
pub fn item_kind(library: &Library, item: ReadingItem) -> Option<QuestionKind> {
    match item {
        ReadingItem::Single(index) => library.concept(index).reading.as_ref().map(kind_of),
        ReadingItem::Row => Some(QuestionKind::Keys),
    }
}

/// A reading question about `item`; nothing where the item cannot be read.
pub fn reading(
    library: &Library,
    pool: &Pool,
    item: ReadingItem,
    augmentation: &Augmentation,
    text: &mut Stream,
    look: &mut Stream,
) -> Option<Sample> {
    let (concepts, arrangement) = match item {
        ReadingItem::Single(index) => (vec![index], Arrangement::Single),
        ReadingItem::Row => {
            if pool.keys.is_empty() {
                return None;
            }
            let row = if text.chance(0.5) {
                Arrangement::Row2
            } else {
                Arrangement::Row3
            };
            let keys = row.slots().iter().map(|_| *text.pick(&pool.keys)).collect();
            (keys, row)
        }
    };
    let readings: Option<Vec<&Reading>> = concepts
        .iter()
        .map(|&index| library.concept(index).reading.as_ref())
        .collect();
    let readings = readings?;
    let kind = kind_of(readings.first()?);
    let question = match kind {
        QuestionKind::Keys if concepts.len() > 1 => "read the keys",
        QuestionKind::Keys => "which key is this?",
        QuestionKind::Text => "what does it say?",
        QuestionKind::Time => "what time is it?",
        QuestionKind::Code => "which letters stand for this flag?",
        _ => "where does it point?",
    };
    let answer: String = readings.iter().map(|reading| reading.answer()).collect();
    let first = library.concept(concepts[0]);
    let caption = match concepts.len() {
        1 => first.phrase.clone(),
        _ => format!("keycaps {answer}"),
    };
    Some(Sample {
        key: concepts
            .iter()
            .map(|&index| library.concept(index).key.as_str())
            .collect(),
        kind: TaskKind::Reading,
        question_kind: Some(kind),
        view: View::Scene(compose(
            library,
            pool,
            arrangement,
            &concepts,
            augmentation,
            look,
        )),
        context: String::new(),
        question: question.to_owned(),
        answer,
        further: Vec::new(),
        system: None,
        caption,
    })
}
