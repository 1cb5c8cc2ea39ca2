//! Benchmarks in VLMEvalKit's layout: how a question is put, and when an answer counts as right, by the rules that
//! VLMEvalKit applies where no other model is asked to judge (`exact_matching`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::benchmark_rules::{chosen_option, short_answers_match, yes_or_no};
use keel_data::benchmark::BenchmarkItem;

/// How questions are put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

impl Score {
    fn add(&mut self, item: &AnsweredItem) {
        self.count += 1;
        self.right += usize::from(item.is_right);
        self.too_long += usize::from(item.prediction.is_none());
        self.chance += item.chance;
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
    /// Adds an answered question.
    pub fn add(&mut self, item: &AnsweredItem) {
        self.all.add(item);
        let kind = item.kind.name().to_owned();
        self.by_kind.entry(kind).or_default().add(item);
        if !item.category.is_empty() {
            let category = item.category.clone();
            self.by_category.entry(category).or_default().add(item);
        }
    }
}
