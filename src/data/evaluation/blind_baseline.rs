//! What a model that never sees an image could score: the best answers from the question's text alone.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::batching::sample::Sample;

/// A question with its kind and answer, all that a blind baseline sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuestionAnswer {
    /// Kind of question.
    pub kind: Cow<'static, str>,
    /// The question.
    pub question: String,
    /// The right answer.
    pub answer: String,
}

impl QuestionAnswer {
    /// That of a sample; nothing for samples without a question of a kind.
    pub fn of(sample: &Sample) -> Option<QuestionAnswer> {
        Some(QuestionAnswer {
            kind: sample.question_kind.clone()?,
            question: sample.question.clone(),
            answer: sample.answer.clone(),
        })
    }
}

/// For each kind in `test`, in the order in which they first come, the share of questions that the blind baseline answers
/// rightly, 0..1. Of two baselines, fitted on `train`, the better one counts: the commonest answer of the kind; and the
/// commonest answer to exactly this question, or of the kind where the question is new. Ties go to the answer that sorts
/// first.
pub fn blind_baseline(
    train: &[QuestionAnswer],
    test: &[QuestionAnswer],
) -> Vec<(Cow<'static, str>, f64)> {
    let mut of_kind: HashMap<&str, AnswerCounts<'_>> = HashMap::new();
    let mut of_question: HashMap<(&str, &str), AnswerCounts<'_>> = HashMap::new();
    for QuestionAnswer {
        kind,
        question,
        answer,
    } in train
    {
        let counts = of_kind.entry(kind).or_default();
        *counts.entry(answer).or_default() += 1;
        let counts = of_question.entry((kind, question)).or_default();
        *counts.entry(answer).or_default() += 1;
    }
    let mut scores: Vec<(&Cow<'static, str>, Score)> = Vec::new();
    for asked in test {
        let by_kind = commonest(of_kind.get(&*asked.kind));
        let by_question = commonest(of_question.get(&(&*asked.kind, asked.question.as_str())));
        let known = scores.iter().position(|(kind, _)| **kind == asked.kind);
        let known = known.unwrap_or_else(|| {
            scores.push((&asked.kind, Score::default()));
            scores.len() - 1
        });
        let is_right = |guess: Option<&str>| usize::from(guess == Some(asked.answer.as_str()));
        let score = &mut scores[known].1;
        score.asked += 1;
        score.by_kind += is_right(by_kind);
        score.by_question += is_right(by_question.or(by_kind));
    }
    let share = |score: Score| score.by_kind.max(score.by_question) as f64 / score.asked as f64;
    let scores = scores.into_iter();
    scores
        .map(|(kind, score)| (kind.clone(), share(score)))
        .collect()
}

/// How often each answer was given.
type AnswerCounts<'a> = HashMap<&'a str, usize>;

#[derive(Clone, Copy, Default)]
struct Score {
    asked: usize,
    by_kind: usize,
    by_question: usize,
}

fn commonest<'a>(answers: Option<&AnswerCounts<'a>>) -> Option<&'a str> {
    let order = |(x, n): &(&&'a str, &usize), (y, m): &(&&'a str, &usize)| n.cmp(m).then(y.cmp(x));
    answers?.iter().max_by(order).map(|(&answer, _)| answer)
}
