//! Evaluation stands on a trait: a list of a user's own samples is measured as the embedded concepts are, and what it does
//! not have is left out or refused by name.

use std::sync::Arc;

use keel::data::blind_baseline::QuestionAnswer;
use keel::data::chat::ChatTokenizer;
use keel::data::eval_set::{Classes, EvalSet, EvalSuite, SetName};
use keel::data::image::Image;
use keel::data::image_view::ImageView;
use keel::data::pixels::Pixels;
use keel::data::sample::{Sample, View};
use keel::data::task::Task;
use keel::eval::{
    EvalContext, Evaluation, EvaluationSettings, Evaluator, MeasureSettings, Measurements,
    Measurer, Metric, QualitativeSamples,
};
use keel::executor::{CpuExecutor, Executor, SelectedDevice};
use keel::model::{declare, initialise};
use keel::train::Recipe;

/// Names and colours of three things; what is asked of each is its colour.
const THINGS: [(&str, [u8; 4]); 3] = [
    ("a brick", [200, 40, 30, 255]),
    ("a leaf", [30, 160, 50, 255]),
    ("a pond", [40, 70, 200, 255]),
];

/// Three images in memory, with or without classes and questions.
struct Own {
    split: &'static str,
    has_classes: bool,
    questions: Vec<QuestionAnswer>,
}

impl Own {
    fn bare(split: &'static str) -> Own {
        Own {
            split,
            has_classes: false,
            questions: Vec::new(),
        }
    }

    fn full(split: &'static str) -> Own {
        let question = |answer: &str| QuestionAnswer {
            kind: "colour".into(),
            question: "what colour?".into(),
            answer: answer.into(),
        };
        Own {
            split,
            has_classes: true,
            questions: vec![question("green"), question("green"), question("red")],
        }
    }
}

fn sample(index: usize) -> Sample {
    let (name, colour) = THINGS[index];
    let image = Image::filled(40, 30, colour);
    Sample {
        key: format!("own {index}"),
        task: Task::SAMPLES,
        question_kind: None,
        view: View::Image(ImageView::whole(Arc::new(image))),
        context: String::new(),
        question: String::new(),
        answer: name.into(),
        further: Vec::new(),
        unsupervised: Vec::new(),
        system: None,
        caption: name.into(),
    }
}

impl EvalSet for Own {
    fn name(&self) -> SetName {
        SetName {
            vendor: "own".into(),
            split: self.split.into(),
        }
    }

    fn captioned(&self, most: usize) -> Vec<Sample> {
        (0..THINGS.len().min(most)).map(sample).collect()
    }

    fn classes(&self) -> Option<Classes> {
        self.has_classes.then(|| Classes {
            names: vec!["made".into(), "grown".into()],
            templates: 1,
            prompts: vec!["something made".into(), "something grown".into()],
        })
    }

    fn labels(&self, samples: &[Sample]) -> Vec<usize> {
        let is_made = |sample: &Sample| usize::from(sample.caption != "a brick");
        samples.iter().map(is_made).collect()
    }

    fn questions(&self, per_kind: usize, fits: &dyn Fn(&Sample) -> bool) -> Option<Vec<Sample>> {
        let asked = |(index, answer): (usize, &str)| Sample {
            question_kind: Some("colour".into()),
            question: "what colour?".into(),
            answer: answer.into(),
            ..sample(index)
        };
        let all = ["red", "green", "blue"].into_iter().enumerate().map(asked);
        self.has_classes
            .then(|| all.filter(fits).take(per_kind).collect())
    }

    fn blind_questions(&self) -> &[QuestionAnswer] {
        &self.questions
    }
}

fn suite(make: fn(&'static str) -> Own) -> EvalSuite {
    let sets = ["train", "held-out"].map(|split| -> Arc<dyn EvalSet> { Arc::new(make(split)) });
    EvalSuite::new(sets.into(), 0, 1).expect("sets of samples")
}

const COLOURS: EvaluationSettings = EvaluationSettings {
    images: 10,
    questions_per_kind: 3,
    answers: true,
    tokens: 48,
    caption_tokens: 24,
};

/// The tiny model, untrained, on one processor.
fn with_model<T>(work: impl FnOnce(EvalContext<'_>) -> T) -> T {
    let recipe = Recipe::load("tiny", &[]).expect("a built-in recipe");
    let layout = declare(&recipe.model, recipe.contrastive_loss).expect("a model");
    let executor = CpuExecutor::new(layout.elements(), 2).expect("threads can be had");
    executor
        .write_parameters(0, &initialise(&layout, 3))
        .expect("parameters fit");
    work(EvalContext {
        config: &recipe.model,
        layout: &layout,
        executor: &executor,
        tokenizer: ChatTokenizer::embedded(),
        pixels: Pixels::default(),
        head: None,
    })
}

fn evaluated(suite: &EvalSuite) -> (Evaluation, QualitativeSamples) {
    with_model(|context| {
        let evaluator = Evaluator::new(context, suite);
        evaluator.show("own", &COLOURS).expect("it is measured")
    })
}

#[test]
fn a_users_own_samples_are_evaluated_as_any_set_is() {
    let (evaluation, qualitative) = evaluated(&suite(Own::full));
    let names = evaluation.sets.iter().map(|s| (&*s.vendor, &*s.split));
    let names: Vec<(&str, &str)> = names.collect();
    assert_eq!(names, [("own", "train"), ("own", "held-out")]);
    for set in &evaluation.sets {
        assert_eq!((set.count, set.classes), (3, 2));
        let recall = set.recall.expect("captions are there");
        assert_eq!(recall.image_to_text[1], 1.0, "of three, all are in five");
        assert!(set.zero_shot.is_some() && set.caption_loss.is_some());
    }
    assert_eq!(evaluation.questions.len(), 2, "both sets have questions");
    for asked in &evaluation.questions {
        assert_eq!(asked.count, 3);
        // The commonest training answer, green, is right once.
        assert_eq!(asked.text_only, 1.0 / 3.0);
        assert_eq!(asked.by_kind["colour"].1, 1.0 / 3.0);
    }
    assert!(evaluation.nearest_neighbour.is_some());
    let found = qualitative.retrieval.expect("the second set is looked at");
    assert_eq!((&*found.set.split, found.images), ("held-out", 3));
    assert_eq!((found.best.len(), qualitative.attention.len()), (3, 3));
    let captions = found.best.iter().map(|example| &*example.caption);
    let mut captions: Vec<&str> = captions.collect();
    captions.sort_unstable();
    assert_eq!(captions, THINGS.map(|(name, _)| name));
}

#[test]
fn what_a_set_does_not_have_is_not_measured_on_it() {
    let (evaluation, qualitative) = evaluated(&suite(Own::bare));
    for set in &evaluation.sets {
        assert!(set.recall.is_some() && set.caption_loss.is_some());
        assert_eq!((set.zero_shot, set.classes), (None, 0));
    }
    assert!(evaluation.questions.is_empty());
    let found = qualitative.retrieval.expect("captions are there");
    assert!(found.confusions.is_empty() && found.best.len() == 3);
}

#[test]
fn every_metric_takes_a_users_own_samples_or_says_what_they_lack() {
    let settings = MeasureSettings {
        images: COLOURS.images,
        questions_per_kind: COLOURS.questions_per_kind,
        tokens: COLOURS.tokens,
        caption_tokens: COLOURS.caption_tokens,
        is_connected: true,
    };
    let measured = |suite: &EvalSuite, metric: Metric, all: &mut Measurements| {
        with_model(|context| {
            let compute = SelectedDevice::processor(2);
            Measurer::new(context, &compute, suite, settings).measure(metric, all)
        })
    };
    let mut all = Measurements::default();
    let full = suite(Own::full);
    for metric in [
        Metric::Retrieval,
        Metric::ZeroShot,
        Metric::LinearProbe,
        Metric::Captions,
        Metric::Questions,
        Metric::Robustness,
    ] {
        measured(&full, metric, &mut all).expect("the sets have all of it");
    }
    assert_eq!(all.retrieval.len(), 2);
    assert_eq!(
        all.retrieval[0].captions, 3,
        "a caption is its own and only wording"
    );
    // By the text tower and by the language model.
    assert_eq!(all.zero_shot.len(), 4);
    let probe = &all.probes[..];
    assert_eq!((probe.len(), &*probe[0].set.split), (1, "held-out"));
    // The same images as were fitted on.
    assert_eq!(probe[0].accuracy, 1.0);
    assert_eq!(all.captions.len(), 2);
    let kinds = all.questions.iter().map(|measure| &*measure.kind);
    assert_eq!(
        kinds.collect::<Vec<_>>(),
        ["colour", "all", "colour", "all"]
    );

    let bare = suite(Own::bare);
    for (metric, part) in [
        (Metric::ZeroShot, "sets with classes"),
        (Metric::Neighbours, "metric neighbours: "),
        (Metric::Robustness, "own train, which has none"),
    ] {
        let problem = measured(&bare, metric, &mut all).expect_err("there are no classes");
        let problem = problem.to_string();
        assert!(problem.contains(part), "{problem}");
    }
}

#[test]
fn a_suite_without_the_sets_it_needs_is_refused() {
    struct Empty;
    impl EvalSet for Empty {
        fn name(&self) -> SetName {
            SetName::default()
        }
        fn captioned(&self, _: usize) -> Vec<Sample> {
            Vec::new()
        }
    }
    let own = || -> Arc<dyn EvalSet> { Arc::new(Own::bare("train")) };
    for (sets, part) in [
        (vec![own()], "a set to fit on and a set to show"),
        (vec![own(), own()], "evaluation set own train"),
        (vec![own(), Arc::new(Empty)], "at least one sample"),
    ] {
        let problem = EvalSuite::new(sets, 0, 1).err().expect("refused");
        assert!(problem.to_string().contains(part), "{problem}");
    }
}
