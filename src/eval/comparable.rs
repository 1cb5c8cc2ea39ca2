//! The numbers of an evaluation by which models are compared, under names.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{BenchmarkScore, Evaluation, Measurements};

/// A number that models are compared by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    /// Its name in results.
    pub name: Cow<'static, str>,
    /// Its heading in tables.
    pub heading: Cow<'static, str>,
    /// Whether more of it is better.
    pub more_is_better: bool,
    /// Whether it is a share, shown in percent.
    pub is_share: bool,
}

/// What stands before the names of numbers of held-out samples.
const HELD_OUT: &str = "validation.";

/// The number of all questions of a benchmark; those of a category have its name after it.
const BENCHMARK: &str = "benchmark";

impl Compared {
    /// The number of this name: one of [`COMPARED`], a metric of a validation on held-out samples such as
    /// `validation.loss.questions`, or the share of right answers to a benchmark or to a category of it, `benchmark.colour`.
    pub fn named(name: &str) -> Option<Compared> {
        if let Some(known) = COMPARED.iter().find(|known| known.name == name) {
            return Some(known.clone());
        }
        let of = |heading: String, is_loss: bool| Compared {
            name: Cow::Owned(name.to_owned()),
            heading: Cow::Owned(heading),
            more_is_better: !is_loss,
            is_share: !is_loss,
        };
        if let Some(metric) = name.strip_prefix(HELD_OUT) {
            return Some(of(format!("held-out {metric}"), metric.starts_with("loss")));
        }
        match name.strip_prefix(BENCHMARK)? {
            "" => Some(of("benchmark, all questions".to_owned(), false)),
            category => {
                let category = category.strip_prefix('.')?;
                Some(of(format!("benchmark, {category}"), false))
            }
        }
    }

    /// The name of a metric of a validation on held-out samples.
    pub fn of_held_out(metric: &str) -> String {
        format!("{HELD_OUT}{metric}")
    }
}

/// The numbers of an answered benchmark by name: shares of right answers, of all questions and by category.
pub fn of_benchmark(score: &BenchmarkScore) -> BTreeMap<String, f64> {
    let all = (BENCHMARK.to_owned(), score.all.share());
    let of_category = score.by_category.iter().map(|(category, score)| {
        // A number's form of the target stands before a slash.
        let category = category.replace('/', "-");
        (format!("{BENCHMARK}.{category}"), score.share())
    });
    std::iter::once(all).chain(of_category).collect()
}

const fn share(name: &'static str, heading: &'static str) -> Compared {
    Compared {
        name: Cow::Borrowed(name),
        heading: Cow::Borrowed(heading),
        more_is_better: true,
        is_share: true,
    }
}

const fn loss(name: &'static str, heading: &'static str) -> Compared {
    Compared {
        name: Cow::Borrowed(name),
        heading: Cow::Borrowed(heading),
        more_is_better: false,
        is_share: false,
    }
}

/// Share of the questions of a kind that a language model has to answer from text for the kind to count.
pub const ANSWERABLE: f64 = 0.95;

/// Every number of [`comparable`], and of ablations of panels beside it, in the order of tables.
pub const COMPARED: &[Compared] = &[
    share("answerable.seen_style", "answerable questions, seen style"),
    share("answerable.new_style", "answerable questions, new style"),
    share(
        "answerable.new_concepts",
        "answerable questions, new combinations",
    ),
    share(
        "answerable.new_both",
        "answerable questions, new style and combinations",
    ),
    share("questions.seen_style", "questions, seen style"),
    share("questions.new_style", "questions, new style"),
    share("questions.new_concepts", "questions, new combinations"),
    share(
        "questions.new_both",
        "questions, new style and combinations",
    ),
    loss("answer_loss.seen_style", "answer loss, seen style"),
    loss("answer_loss.new_style", "answer loss, new style"),
    loss("answer_loss.new_concepts", "answer loss, new combinations"),
    loss(
        "answer_loss.new_both",
        "answer loss, new style and combinations",
    ),
    share("shape_at.seen_style", "shape at a place"),
    share("colour_at.seen_style", "colour at a place"),
    share("digit_at.seen_style", "digit at a place"),
    share("colour_of.seen_style", "colour of a shape"),
    share("digit_of.seen_style", "digit on a shape"),
    share("row_of.seen_style", "row of a shape"),
    share("column_of.seen_style", "column of a shape"),
    share("count.seen_style", "count of a colour"),
    share("recall_1.seen_style", "R@1, seen style"),
    share("recall_1.new_style", "R@1, new style"),
    share("recall_1.new_concepts", "R@1, new concepts"),
    share("recall_1.new_both", "R@1, new style and concepts"),
    share("zero_shot.seen_style", "zero-shot, seen style"),
    share("zero_shot.new_style", "zero-shot, new style"),
    share("zero_shot.new_concepts", "zero-shot, new concepts"),
    share("zero_shot.new_both", "zero-shot, new style and concepts"),
    share("neighbours.new_style", "neighbours, new style"),
    share("neighbours.new_concepts", "neighbours, new concepts"),
    share("linear-probe.new_style", "linear probe, new style"),
    share("linear-probe.new_concepts", "linear probe, new concepts"),
    share(
        "linear-probe, shape.seen_style",
        "linear probe of panels, shape",
    ),
    share(
        "linear-probe, colour.seen_style",
        "linear probe of panels, colour",
    ),
    share(
        "linear-probe, digit.seen_style",
        "linear probe of panels, digit",
    ),
    share("two-layer-probe.new_style", "two-layer probe, new style"),
    share(
        "two-layer-probe.new_concepts",
        "two-layer probe, new concepts",
    ),
    share("attentive-probe.new_style", "attentive probe, new style"),
    share(
        "attentive-probe.new_concepts",
        "attentive probe, new concepts",
    ),
    loss("caption_loss.seen_style", "caption loss, seen style"),
    loss("caption_loss.new_style", "caption loss, new style"),
    share("ceiling", "from text: questions"),
    share("ceiling.shape_at", "from text: shape at a place"),
    share("ceiling.colour_at", "from text: colour at a place"),
    share("ceiling.digit_at", "from text: digit at a place"),
    share("ceiling.colour_of", "from text: colour of a shape"),
    share("ceiling.digit_of", "from text: digit on a shape"),
    share("ceiling.row_of", "from text: row of a shape"),
    share("ceiling.column_of", "from text: column of a shape"),
    share("ceiling.count", "from text: count of a colour"),
    loss("drift.vision", "drift of the tower"),
    Compared {
        name: Cow::Borrowed("cka.vision"),
        heading: Cow::Borrowed("CKA with the tower as it came"),
        more_is_better: true,
        is_share: false,
    },
    loss("nearest_neighbour", "nearest text token"),
    loss("sliced_wasserstein", "sliced Wasserstein"),
    loss("plane.nearest", "nearest text token in the plane"),
    loss("plane.exact", "Wasserstein-1 in the plane"),
];

/// The split of questions; files of versions that asked of nothing else do not name it.
fn split_of(split: &str) -> &str {
    match split {
        "" => "train",
        split => split,
    }
}

/// Whether a set's images are of the panels.
fn is_of_panels(vendor: &str) -> bool {
    matches!(vendor, "panels" | "dark panels")
}

/// The name of a set: what of it was never trained on.
fn set_name(vendor: &str, split: &str) -> &'static str {
    match (vendor, split) {
        ("noto" | "panels", "train") => "seen_style",
        ("noto" | "panels", _) => "new_concepts",
        (_, "train") => "new_style",
        _ => "new_both",
    }
}

/// The mean share of right answers over the kinds that the language model answers from text alone at [`ANSWERABLE`] or better,
/// for each set of `evaluation` by name: a kind that it cannot answer says nothing about towers. `ceilings` are the shares by
/// kind from text. Nothing where it can answer none.
pub fn answerable(
    evaluation: &Evaluation,
    ceilings: &BTreeMap<String, f64>,
) -> BTreeMap<String, f64> {
    let can = |kind: &String| ceilings.get(kind).is_some_and(|share| *share >= ANSWERABLE);
    let mut numbers = BTreeMap::new();
    for asked in &evaluation.questions {
        let kinds = asked.by_kind.iter().filter(|(kind, _)| can(kind));
        let shares: Vec<f64> = kinds.map(|(_, (share, _))| *share).collect();
        if !shares.is_empty() {
            let mean = shares.iter().sum::<f64>() / shares.len() as f64;
            let name = set_name(&asked.vendor, split_of(&asked.split));
            numbers.insert(format!("answerable.{name}"), mean);
        }
    }
    numbers
}

/// The numbers of `evaluation` and `measurements` by name; those they do not have are left out.
pub fn comparable(evaluation: &Evaluation, measurements: &Measurements) -> BTreeMap<String, f64> {
    let mut numbers = BTreeMap::new();
    for set in &evaluation.sets {
        let name = set_name(&set.vendor, &set.split);
        if let Some(recall) = &set.recall {
            numbers.insert(format!("recall_1.{name}"), recall.image_to_text[0]);
        }
        if let Some(loss) = set.caption_loss {
            numbers.insert(format!("caption_loss.{name}"), loss);
        }
        if let Some(zero_shot) = set.zero_shot {
            numbers.insert(format!("zero_shot.{name}"), zero_shot);
        }
    }
    for asked in &evaluation.questions {
        let name = set_name(&asked.vendor, split_of(&asked.split));
        if is_of_panels(&asked.vendor) {
            let kinds = asked.by_kind.iter();
            numbers.extend(kinds.map(|(kind, (share, _))| (format!("{kind}.{name}"), *share)));
        }
        numbers.insert(format!("questions.{name}"), asked.accuracy);
        if let Some(loss) = asked.answer_loss {
            numbers.insert(format!("answer_loss.{name}"), loss);
        }
    }
    for probe in &measurements.probes {
        let name = set_name(&probe.set.vendor, &probe.set.split);
        numbers.insert(format!("{}.{name}", probe.probe), probe.accuracy);
    }
    let plane = measurements.distances.iter().find(|d| d.space == "plane");
    if let Some(plane) = plane {
        numbers.insert("plane.nearest".to_owned(), plane.nearest);
        numbers.insert("plane.exact".to_owned(), plane.exact);
    }
    for (name, value) in [
        ("nearest_neighbour", evaluation.nearest_neighbour),
        ("sliced_wasserstein", evaluation.sliced_wasserstein),
    ] {
        if let Some(value) = value {
            numbers.insert(name.to_owned(), value);
        }
    }
    numbers
}
