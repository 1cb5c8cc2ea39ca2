//! The evaluation sets of the panels world: the same images and questions in every run, on any machine, of scenes that no
//! training draws.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use super::image::{Look, PanelsImage, Style};
use super::question_kind::QuestionKind;
use super::questions::ask;
use super::scene::{PANELS, Panel, Scene, Split};
use super::sources::said;
use super::tasks;
use super::texts::{dense_caption, facts, short_caption};
use super::words::{COLOURS, DIGITS, SHAPES};
use keel_base::random::{Purpose, Stream};
use keel_data::blind_baseline::QuestionAnswer;
use keel_data::chat::Turn;
use keel_data::eval_set::{
    ClosedAnswers, EvalSet, EvalSuite, RegionFact, Regions, SetName, TextQuestions,
};
use keel_data::sample::Sample;
use keel_data::task::Task;

/// Seed of all evaluation sets; with [`Purpose::Evaluation`] it reaches no stream of training.
const EVALUATION_SEED: u64 = 0x7061_6e65;

/// Different short captions: four shapes out of twelve.
const CAPTIONS: usize = 495;

/// Images that are drawn for each caption that is wanted, at most. Those of the last captions are rare.
const DRAWS: usize = 32;

/// Training questions of each kind that blind baselines are fitted on.
const BLIND_QUESTIONS: usize = 2000;

/// The four sets: each style with combinations that are trained on and with those that never are. Maps and probes are fitted on
/// what is trained on; new combinations are looked at.
pub fn eval_suite() -> EvalSuite {
    let sets = [
        (Style::Light, Split::Train),
        (Style::Light, Split::HeldOut),
        (Style::Dark, Split::Train),
        (Style::Dark, Split::HeldOut),
    ];
    let sets =
        sets.map(|(style, split)| -> Arc<dyn EvalSet> { Arc::new(PanelsEvalSet { style, split }) });
    EvalSuite::new(sets.into(), 0, 1)
        .expect("the sets are part of the program and tested with it")
        .with_text_questions(TextQuestions {
            samples: text_questions,
            closed_answers,
        })
}

/// Questions about facts that are given as text, `per_kind` of each kind: what a language model answers without any image is
/// the most that it could answer with one.
pub fn text_questions(per_kind: usize) -> Vec<Sample> {
    let asker = Asker {
        draws: 3,
        purpose: Purpose::Evaluation,
        split: Split::Train,
    };
    asker
        .questions(per_kind)
        .map(|(kind, scene, turn, mut stream)| {
            let mut order: [usize; PANELS] = std::array::from_fn(|at| at);
            stream.shuffle(&mut order);
            Sample {
                context: facts(&scene, order),
                // The prompt is all that comes before the answer, as where an image stands.
                unsupervised: vec![Sample::ANSWERS_ALONE],
                ..asked(tasks::PANELS_FACTS, kind, &scene, turn)
            }
        })
        .collect()
}

/// The answers of each kind of question.
pub fn closed_answers() -> Vec<ClosedAnswers> {
    let kinds = QuestionKind::ALL.into_iter();
    kinds
        .map(|kind| ClosedAnswers {
            kind: kind.into(),
            answers: kind
                .answers()
                .iter()
                .map(|word| (*word).to_owned())
                .collect(),
        })
        .collect()
}

/// Images of one style, of scenes of one split. See the module's documentation.
pub struct PanelsEvalSet {
    /// How they are drawn.
    pub style: Style,
    /// What they show.
    pub split: Split,
}

impl PanelsEvalSet {
    fn shown(&self, sample: Sample, scene: Scene, stream: &mut Stream) -> Sample {
        Sample {
            view: Look::draw(self.style, 1.0, stream).view(scene),
            ..sample
        }
    }
}

impl EvalSet for PanelsEvalSet {
    fn name(&self) -> SetName {
        SetName {
            vendor: self.style.name().to_owned(),
            split: self.split.name().to_owned(),
        }
    }

    /// Images with short captions, of which there are 495.
    fn captioned(&self, most: usize) -> Vec<Sample> {
        let mut samples = Vec::new();
        let mut known = HashSet::new();
        for number in 0..(DRAWS * most.min(CAPTIONS)) as u64 {
            if samples.len() == most {
                break;
            }
            let mut stream = Stream::new(EVALUATION_SEED, Purpose::Evaluation, 1, number);
            let scene = Scene::draw(&mut stream, self.split);
            let caption = short_caption(&scene);
            if known.insert(caption.clone()) {
                let sample = Sample {
                    answer: caption.clone(),
                    caption,
                    ..said(tasks::PANELS_SHORT, &scene)
                };
                samples.push(self.shown(sample, scene, &mut stream));
            }
        }
        samples
    }

    /// Of every kind, each about an image of its own.
    fn questions(&self, per_kind: usize, fits: &dyn Fn(&Sample) -> bool) -> Option<Vec<Sample>> {
        let asker = Asker {
            draws: 2,
            purpose: Purpose::Evaluation,
            split: self.split,
        };
        let all = asker.questions(per_kind);
        let samples = all.map(|(kind, scene, turn, mut stream)| {
            let sample = Sample {
                caption: dense_caption(&scene),
                ..asked(tasks::PANELS_QUESTIONS, kind, &scene, turn)
            };
            self.shown(sample, scene, &mut stream)
        });
        Some(samples.filter(fits).collect())
    }

    /// Questions about scenes of training, whatever the set: made once a process.
    fn blind_questions(&self) -> &[QuestionAnswer] {
        static QUESTIONS: OnceLock<Vec<QuestionAnswer>> = OnceLock::new();
        QUESTIONS.get_or_init(|| {
            let asker = Asker {
                draws: 2,
                purpose: Purpose::Text,
                split: Split::Train,
            };
            let asked = asker.questions(BLIND_QUESTIONS);
            asked
                .map(|(kind, _, turn, _)| QuestionAnswer {
                    kind: kind.into(),
                    question: turn.question,
                    answer: turn.answer,
                })
                .collect()
        })
    }

    fn closed_answers(&self) -> Vec<ClosedAnswers> {
        closed_answers()
    }

    /// The shape, colour and digit of every panel.
    fn regions(&self, samples: &[Sample]) -> Option<Regions> {
        let panels: Vec<Panel> = samples
            .iter()
            .flat_map(|sample| {
                let image = PanelsImage::of(&sample.view);
                image
                    .expect("a set is asked about its own samples")
                    .scene
                    .panels
            })
            .collect();
        let fact = |fact: &'static str, classes: usize, of: fn(&Panel) -> usize| RegionFact {
            fact: fact.into(),
            classes,
            labels: panels.iter().map(of).collect(),
        };
        Some(Regions {
            across: 2,
            facts: vec![
                fact("shape", SHAPES.len(), |panel| panel.shape),
                fact("colour", COLOURS.len(), |panel| panel.colour),
                fact("digit", DIGITS.len(), |panel| panel.digit),
            ],
        })
    }
}

/// Draws questions, always the same ones.
struct Asker {
    /// Tells its draws from those of others.
    draws: u64,
    purpose: Purpose,
    split: Split,
}

impl Asker {
    /// `per_kind` questions of each kind, each about a scene of its own, with a stream for what else is drawn of it.
    fn questions(
        &self,
        per_kind: usize,
    ) -> impl Iterator<Item = (QuestionKind, Scene, Turn, Stream)> + '_ {
        let kinds = QuestionKind::ALL.into_iter().enumerate();
        let numbered =
            kinds.flat_map(move |(at, kind)| (0..per_kind as u64).map(move |n| (at, kind, n)));
        numbered.map(|(at, kind, number)| {
            // By kind and number: a set of more questions begins with those of a smaller one.
            let address = ((at as u64) << 48) | number;
            let mut stream = Stream::new(EVALUATION_SEED, self.purpose, self.draws, address);
            let scene = Scene::draw(&mut stream, self.split);
            let turn = ask(&scene, kind, &mut stream);
            (kind, scene, turn, stream)
        })
    }
}

fn asked(task: Task, kind: QuestionKind, scene: &Scene, turn: Turn) -> Sample {
    Sample {
        question_kind: Some(kind.into()),
        question: turn.question,
        answer: turn.answer,
        ..said(task, scene)
    }
}
