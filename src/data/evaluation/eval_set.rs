//! Evaluation sets: what a model is measured on, behind one trait. The embedded concepts are some of them; a list of a
//! user's own samples is another.
//!
//! A set gives the same samples in every run, on any machine, so that numbers of different stages and runs compare.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::blind_baseline::QuestionAnswer;
use crate::batching::sample::Sample;
use keel_base::error::{Error, Result};

/// What a set is called in tables, files and reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SetName {
    /// Where its images come from: a drawing style, or the name of a data set.
    pub vendor: String,
    /// Whether what it shows was trained on.
    pub split: String,
}

/// Classes that a set's images belong to, and the prompts that speak of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classes {
    /// Their names; at least one.
    pub names: Vec<String>,
    /// Prompts per class.
    pub templates: usize,
    /// All prompts, class by class: `prompts[class * templates + template]`.
    pub prompts: Vec<String>,
}

/// A kind of question whose answers are all known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosedAnswers {
    /// The kind, as [`Sample::question_kind`] names it.
    pub kind: Cow<'static, str>,
    /// Every answer that there is. No two begin with the same token.
    pub answers: Vec<String>,
}

/// Labels of the parts of images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regions {
    /// Regions along each side of an image: it has the square of that.
    pub across: usize,
    /// What is known of each region.
    pub facts: Vec<RegionFact>,
}

/// One label of each region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionFact {
    /// What it says.
    pub fact: Cow<'static, str>,
    /// Labels are below this.
    pub classes: usize,
    /// Image by image, row by row: `labels[(image * across + row) * across + column]`.
    pub labels: Vec<usize>,
}

/// Samples with what can be asked of a model about them. Only captions are asked for; what a set does not have is not
/// measured on it.
pub trait EvalSet: Send + Sync {
    /// Its name, unlike that of any other set of its suite.
    fn name(&self) -> SetName;

    /// At most `most` samples with one image and a caption each, no two with the same caption: always the same ones in the
    /// same order, those of a smaller number the first of those of a larger.
    fn captioned(&self, most: usize) -> Vec<Sample>;

    /// The captions by which a sample's image may be found, its own among them.
    fn wordings(&self, sample: &Sample) -> Vec<String> {
        vec![sample.caption.clone()]
    }

    /// The classes of its images.
    fn classes(&self) -> Option<Classes> {
        None
    }

    /// The class of each of `samples`, which [`EvalSet::captioned`] gave. Only asked where there are classes.
    fn labels(&self, samples: &[Sample]) -> Vec<usize> {
        vec![0; samples.len()]
    }

    /// Samples with a question of a kind each, at most `per_kind` of a kind, that all satisfy `fits`: the token limits of
    /// who asks. Nothing where the set has no questions.
    fn questions(&self, per_kind: usize, fits: &dyn Fn(&Sample) -> bool) -> Option<Vec<Sample>> {
        let _ = (per_kind, fits);
        None
    }

    /// The kinds of questions whose answers are known in advance: those are scored by the likeliest of these answers, and all
    /// others by what a model generates.
    fn closed_answers(&self) -> Vec<ClosedAnswers> {
        Vec::new()
    }

    /// What the parts of each of `samples` show, which [`EvalSet::captioned`] or [`EvalSet::questions`] gave.
    fn regions(&self, samples: &[Sample]) -> Option<Regions> {
        let _ = samples;
        None
    }

    /// The questions that a blind baseline for [`EvalSet::questions`] is fitted on; none leave it without an answer.
    fn blind_questions(&self) -> &[QuestionAnswer] {
        &[]
    }
}

/// A set's samples with their classes.
#[derive(Clone, Debug)]
pub struct ClassifiedSet {
    /// The classes.
    pub classes: Classes,
    /// The samples, as [`EvalSet::captioned`] gives them.
    pub samples: Vec<Sample>,
    /// The class of each sample.
    pub labels: Vec<usize>,
}

impl ClassifiedSet {
    /// At most `most` samples of a set; nothing where it has no classes.
    pub fn of(set: &dyn EvalSet, most: usize) -> Option<ClassifiedSet> {
        let classes = set.classes()?;
        let samples = set.captioned(most);
        Some(ClassifiedSet {
            labels: set.labels(&samples),
            classes,
            samples,
        })
    }
}

/// The sets that a model is evaluated on.
#[derive(Clone)]
pub struct EvalSuite {
    sets: Vec<Arc<dyn EvalSet>>,
    fitted: usize,
    shown: usize,
    text_questions: Option<TextQuestions>,
}

/// Questions whose facts are given as text, so many of each kind, and the answers that there are: what a language model answers
/// without any image is the most that it could answer with one.
#[derive(Clone, Copy)]
pub struct TextQuestions {
    /// The questions, so many of each kind.
    pub samples: fn(per_kind: usize) -> Vec<Sample>,
    /// The answers of each kind.
    pub closed_answers: fn() -> Vec<ClosedAnswers>,
}

impl EvalSuite {
    /// A suite of `sets`, in the order of reports. Maps and probes are fitted on the set at `fitted`; what is to be looked at,
    /// and where tokens lie, is taken from the set at `shown`, best of things that were not trained on.
    ///
    /// # Errors
    /// [`Error::Setting`] when there is no such set, two sets share a name, or a set has no samples.
    pub fn new(sets: Vec<Arc<dyn EvalSet>>, fitted: usize, shown: usize) -> Result<EvalSuite> {
        if sets.len() <= fitted.max(shown) {
            let want = "a set to fit on and a set to show among them";
            return Err(Error::setting("evaluation sets", want, sets.len()));
        }
        for (index, set) in sets.iter().enumerate() {
            let name = set.name();
            let what = format!("evaluation set {} {}", name.vendor, name.split);
            if sets[..index].iter().any(|other| other.name() == name) {
                return Err(Error::setting(what, "a name of its own", "two of it"));
            }
            if set.captioned(1).is_empty() {
                return Err(Error::setting(what, "at least one sample", "none"));
            }
        }
        Ok(EvalSuite {
            sets,
            fitted,
            shown,
            text_questions: None,
        })
    }

    /// The same suite with `questions` whose facts are given as text.
    pub fn with_text_questions(self, questions: TextQuestions) -> EvalSuite {
        EvalSuite {
            text_questions: Some(questions),
            ..self
        }
    }

    /// The questions whose facts are given as text, where the world has them.
    pub fn text_questions(&self) -> Option<TextQuestions> {
        self.text_questions
    }

    /// All sets, in the order of reports.
    pub fn sets(&self) -> impl Iterator<Item = &dyn EvalSet> {
        self.sets.iter().map(Arc::as_ref)
    }

    /// The set that maps and probes are fitted on.
    pub fn fitted(&self) -> &dyn EvalSet {
        self.sets[self.fitted].as_ref()
    }

    /// The place of [`EvalSuite::fitted`] among the sets.
    pub fn fitted_index(&self) -> usize {
        self.fitted
    }

    /// The set whose images are looked at.
    pub fn shown(&self) -> &dyn EvalSet {
        self.sets[self.shown].as_ref()
    }

    /// The place of [`EvalSuite::shown`] among the sets.
    pub fn shown_index(&self) -> usize {
        self.shown
    }
}
