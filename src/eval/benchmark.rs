//! Benchmarks in VLMEvalKit's layout: how a question is put, and when an answer counts as right, by the rules that
//! VLMEvalKit applies where no other model is asked to judge (`exact_matching`).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::benchmark_rules::{chosen_option, short_answers_match, yes_or_no};
use super::statistics::{PairedTest, clustered_interval, clustered_test};
use keel_data::benchmark::BenchmarkItem;

/// How questions are put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wording {
    /// The bare question.
    Plain,
    /// As VLMEvalKit does by default, options and instruction included.
    VlmEvalKit,
}

impl Wording {
    /// All of them.
    pub const ALL: [Wording; 2] = [Wording::Plain, Wording::VlmEvalKit];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Wording::Plain => "plain",
            Wording::VlmEvalKit => "vlmevalkit",
        }
    }

    /// What the model is asked.
    pub fn question(self, item: &BenchmarkItem) -> String {
        if self == Wording::Plain {
            return item.question.clone();
        }
        match AnswerKind::of(item) {
            AnswerKind::Choice => {
                let hint = item.hint.as_ref();
                let hint = hint.map_or(String::new(), |hint| format!("Hint: {hint}\n"));
                let options = item.options.iter();
                let options: String = options
                    .map(|(letter, text)| format!("{letter}. {text}\n"))
                    .collect();
                format!(
                    "{hint}Question: {}\nOptions:\n{options}Please select the correct answer from the options above. \n",
                    item.question
                )
            }
            // MME's questions say it themselves.
            AnswerKind::YesNo if item.question.to_lowercase().contains("yes or no") => {
                item.question.clone()
            }
            AnswerKind::YesNo => format!("{} Please answer yes or no.", item.question),
            AnswerKind::Short => format!(
                "{}\nAnswer the question using a single word or phrase.",
                item.question
            ),
        }
    }
}

/// What kind of answer a question wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnswerKind {
    /// One of its options.
    Choice,
    /// Yes or no.
    YesNo,
    /// A few words.
    Short,
}

impl AnswerKind {
    /// Of a question: by its options, then by its right answer.
    pub fn of(item: &BenchmarkItem) -> AnswerKind {
        match item.answer.to_lowercase().as_str() {
            _ if !item.options.is_empty() => AnswerKind::Choice,
            "yes" | "no" => AnswerKind::YesNo,
            _ => AnswerKind::Short,
        }
    }

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            AnswerKind::Choice => "multiple choice",
            AnswerKind::YesNo => "yes or no",
            AnswerKind::Short => "short answer",
        }
    }
}

/// The right answers of a short question: one, or a list such as `['red', 'crimson']`.
fn right_answers(answer: &str) -> Vec<String> {
    let list = answer
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let Some(list) = list else {
        return vec![answer.to_owned()];
    };
    let strip = |part: &str| part.trim().trim_matches(['\'', '"']).to_owned();
    list.split(',').map(strip).collect()
}

/// Whether an answer is right.
pub fn is_right(item: &BenchmarkItem, answer: &str) -> bool {
    match AnswerKind::of(item) {
        AnswerKind::Choice => chosen_option(answer, &item.options)
            .is_some_and(|letter| letter.to_string() == item.answer),
        AnswerKind::YesNo => yes_or_no(answer) == Some(item.answer.eq_ignore_ascii_case("yes")),
        AnswerKind::Short => {
            let right = right_answers(&item.answer);
            right.iter().any(|right| short_answers_match(answer, right))
        }
    }
}

/// One answered question, as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnsweredItem {
    /// Index in the benchmark.
    pub index: String,
    /// What it belongs to.
    pub category: String,
    /// The kind of answer.
    pub kind: AnswerKind,
    /// The model's answer; none where the question does not fit into its context.
    pub prediction: Option<String>,
    /// The right one.
    pub answer: String,
    /// Whether it is right.
    pub is_right: bool,
    /// Share that guessing gets right: one by the number of options, a half for yes or no, 0 for words.
    pub chance: f64,
    /// What its image is told from others by; empty in files of versions that did not say.
    #[serde(default)]
    pub image: String,
}

/// Questions of one category or kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Questions.
    pub count: usize,
    /// Answered rightly.
    pub right: usize,
    /// That did not fit into the context; they count as wrong.
    pub too_long: usize,
    /// Right by guessing, on average.
    pub chance: f64,
    /// Half the width of the 95 % confidence interval of the share that is right, with the questions about one image as one
    /// draw; nothing where all are about the same image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub half_width: Option<f64>,
}

impl Score {
    fn of<'a>(items: impl Iterator<Item = &'a AnsweredItem> + Clone) -> Score {
        let mut score = Score::default();
        for item in items.clone() {
            score.count += 1;
            score.right += usize::from(item.is_right);
            score.too_long += usize::from(item.prediction.is_none());
            score.chance += item.chance;
        }
        let right = items.map(|item| (item.image.as_str(), f64::from(u8::from(item.is_right))));
        score.half_width = clustered_interval(right).half_width;
        score
    }

    /// The share of right answers; nothing is answered right where nothing is asked.
    pub fn share(&self) -> f64 {
        self.right as f64 / self.count.max(1) as f64
    }
}

/// What a benchmark gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BenchmarkScore {
    /// Over all questions.
    pub all: Score,
    /// By kind of answer.
    pub by_kind: BTreeMap<String, Score>,
    /// By category, where the file has them.
    pub by_category: BTreeMap<String, Score>,
}

impl BenchmarkScore {
    /// Of answered questions.
    pub fn of(items: &[AnsweredItem]) -> BenchmarkScore {
        let kinds: BTreeSet<&str> = items.iter().map(|item| item.kind.name()).collect();
        let categories: BTreeSet<&str> = items.iter().map(|item| item.category.as_str()).collect();
        let of_kind = |kind: &str| Score::of(items.iter().filter(|item| item.kind.name() == kind));
        let of_category =
            |category: &str| Score::of(items.iter().filter(|item| item.category == category));
        BenchmarkScore {
            all: Score::of(items.iter()),
            by_kind: kinds
                .into_iter()
                .map(|kind| (kind.to_owned(), of_kind(kind)))
                .collect(),
            by_category: categories
                .into_iter()
                .filter(|category| !category.is_empty())
                .map(|category| (category.to_owned(), of_category(category)))
                .collect(),
        }
    }
}

/// Two models' answers to the same questions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchmarkComparison {
    /// Questions that the first answers rightly and the second does not.
    pub only_first: usize,
    /// Questions that the second answers rightly and the first does not.
    pub only_second: usize,
    /// The first's share of right answers less the second's, and its test, with the questions about one image as one draw.
    pub test: PairedTest,
}

impl BenchmarkComparison {
    /// Of answers to the same questions in the same order.
    ///
    /// # Panics
    /// When the questions differ.
    pub fn of(first: &[AnsweredItem], second: &[AnsweredItem]) -> BenchmarkComparison {
        let indexes = |items: &[AnsweredItem]| -> Vec<String> {
            items.iter().map(|item| item.index.clone()).collect()
        };
        assert_eq!(
            indexes(first),
            indexes(second),
            "answers to the same questions"
        );
        let pairs = || first.iter().zip(second);
        let only = |wanted: [bool; 2]| {
            let is_so =
                |(a, b): &(&AnsweredItem, &AnsweredItem)| [a.is_right, b.is_right] == wanted;
            pairs().filter(is_so).count()
        };
        let differences = pairs().map(|(a, b)| {
            let right = |item: &AnsweredItem| f64::from(u8::from(item.is_right));
            (a.image.as_str(), right(a) - right(b))
        });
        BenchmarkComparison {
            only_first: only([true, false]),
            only_second: only([false, true]),
            test: clustered_test(differences),
        }
    }
}
