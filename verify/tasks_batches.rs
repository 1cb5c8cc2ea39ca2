//! Batches: the layout and its masks, and making them ahead.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use keel::data::assemble::{assemble, fits};
use keel::data::batch::{Batch, BatchShape, IGNORED, TokenWeighting};
use keel::data::chat::{ChatTokenizer, Turn};
use keel::data::eval_set::EvalSet;
use keel::data::pixels::Pixels;
use keel::data::prefetch::Prefetcher;
use keel::data::sample::{Sample, View};
use keel::data::tokenizer::{ASSISTANT, BEGIN, END, IMAGE, PAD, USER};
use keel::emoji::embedded::Vendor;
use keel::emoji::emoji_set::{EmojiSet, Split};
use keel::emoji::eval_sets::EmojiEvalSet;
use keel::emoji::question_kind::QuestionKind;
use keel::emoji::tasks;
use keel::error::{Error, Result};

use crate::tasks_mixture::{SHAPE, TEXT_ONLY_SHAPE, all_tasks, fingerprint, mixture};

#[test]
fn prefetched_batches_are_the_same_for_any_number_of_threads() {
    let mixture = Arc::new(mixture(&all_tasks(), SHAPE));
    let want: Vec<Vec<u8>> = (3..9)
        .map(|step| fingerprint(&mixture.batch(step).unwrap()))
        .collect();
    for (threads, depth) in [(1, 1), (1, 4), (3, 2), (4, 8)] {
        let made = mixture.clone();
        let mut queue = Prefetcher::new(Arc::new(move |step| made.batch(step)), 3, threads, depth);
        for (offset, want) in want.iter().enumerate() {
            let (step, batch) = queue.next_batch().unwrap();
            assert_eq!(step, 3 + offset as u64);
            assert_eq!(&fingerprint(&batch), want, "{threads} threads, step {step}");
        }
    }
}

#[test]
fn prefetching_is_bounded_carries_errors_and_panics_and_ends() {
    let small = mixture(
        &[(tasks::FACTS, 1.0)],
        BatchShape {
            batch: 1,
            ..TEXT_ONLY_SHAPE
        },
    );
    let template = small.batch(0).unwrap();
    let started = Arc::new(AtomicUsize::new(0));
    let counter = started.clone();
    let source = move |step: u64| -> Result<Batch> {
        counter.fetch_add(1, Ordering::SeqCst);
        match step {
            2 => Err(Error::stopped("data of step 2", "made to fail", "nothing")),
            4 => panic!("a worker in trouble"),
            _ => Ok(template.clone()),
        }
    };
    let mut queue = Prefetcher::new(Arc::new(source), 0, 2, 3);
    let mut outcomes = Vec::new();
    for taken in 0..6 {
        assert!(
            started.load(Ordering::SeqCst) <= taken + 3,
            "never more than 3 ahead"
        );
        outcomes.push(queue.next_batch().map(|(step, _)| step));
    }
    let texts: Vec<String> = outcomes
        .into_iter()
        .map(|outcome| outcome.map_or_else(|error| error.to_string(), |step| step.to_string()))
        .collect();
    assert_eq!(
        (texts[1].as_str(), texts[3].as_str(), texts[5].as_str()),
        ("1", "3", "5")
    );
    assert!(texts[2].contains("made to fail"), "{}", texts[2]);
    assert!(texts[4].contains("a worker in trouble"), "{}", texts[4]);
    drop(queue);
    let after = started.load(Ordering::SeqCst);
    assert!(after <= 9, "{after}: the workers have ended");
}

fn sample(view: View, context: &str, question: &str, answer: &str, caption: &str) -> Sample {
    Sample {
        key: "golden".into(),
        task: tasks::VQA,
        question_kind: Some(QuestionKind::What.into()),
        view,
        context: context.into(),
        question: question.into(),
        answer: answer.into(),
        further: Vec::new(),
        unsupervised: Vec::new(),
        system: None,
        caption: caption.into(),
    }
}

fn some_view() -> View {
    let set = EmojiEvalSet::new(&EmojiSet::embedded(), Vendor::Noto, Split::Train);
    set.captioned(1).remove(0).view
}

#[test]
fn labels_cover_exactly_the_answer_and_its_end() {
    let tokenizer = ChatTokenizer::embedded();
    let shape = BatchShape {
        tiling: keel::data::tiles::Tiling::NONE,
        pack: 1,
        batch: 3,
        image_size: 8,
        image_tokens: 2,
        tokens: 24,
        caption_tokens: 10,
        image_id: ChatTokenizer::embedded().image(),
        pixels: Pixels::default(),
    };
    let rows = [
        sample(some_view(), "unused", "what?", "yes no", "red"),
        sample(View::None, "red", "what?", "yes", ""),
        sample(View::None, "red yes", "", "", ""),
    ];
    let ids = |text: &str| tokenizer.encode(text);
    let [begin, end, image, user, assistant, pad] =
        [BEGIN, END, IMAGE, USER, ASSISTANT, PAD].map(i32::from);
    let join = |parts: &[&[i32]]| parts.concat();
    let wanted: [(Vec<i32>, usize); 3] = [
        (
            join(&[
                &[begin, image, image, user],
                &ids("what?"),
                &[assistant],
                &ids("yes no"),
                &[end],
            ]),
            3 + 1 + ids("what?").len() + 1,
        ),
        (
            join(&[
                &[begin],
                &ids("red"),
                &[user],
                &ids("what?"),
                &[assistant],
                &ids("yes"),
                &[end],
            ]),
            1,
        ),
        (join(&[&[begin], &ids("red yes"), &[end]]), 1),
    ];
    for weighting in [
        TokenWeighting::Token,
        TokenWeighting::Sample,
        TokenWeighting::Square,
    ] {
        let batch = assemble(&rows, &shape, weighting, tokenizer).unwrap();
        for (row, (sequence, from)) in wanted.iter().enumerate() {
            let part = row * 24..(row + 1) * 24;
            let mut tokens = sequence.clone();
            tokens.resize(24, pad);
            assert_eq!(batch.tokens[part.clone()], tokens, "row {row}");
            let supervised = sequence.len() - from;
            let weight = match weighting {
                TokenWeighting::Token => 1.0,
                TokenWeighting::Sample => 1.0 / supervised as f32,
                TokenWeighting::Square => 1.0 / (supervised as f32).sqrt(),
            };
            for position in 0..24 {
                let next = position + 1;
                let (target, share) = if next >= *from && next < sequence.len() {
                    (sequence[next], weight)
                } else {
                    (IGNORED, 0.0)
                };
                assert_eq!(
                    batch.targets[row * 24 + position],
                    target,
                    "row {row}, {position}"
                );
                assert_eq!(
                    batch.weights[row * 24 + position],
                    share,
                    "row {row}, {position}"
                );
            }
        }
        let red = join(&[&[begin], &ids("red"), &[end]]);
        assert_eq!(batch.caption_tokens[..red.len()], red);
        assert_eq!(batch.caption_end, [red.len() as i32 - 1, 1, 1]);
        let total: f32 = batch.caption_weights[..10].iter().sum();
        assert!((total - 1.0).abs() < 1e-6);
        assert!(
            batch.caption_weights[red.len()..]
                .iter()
                .all(|&weight| weight == 0.0)
        );
        let image = 3 * 8 * 8;
        assert!(batch.images[..image].iter().any(|&value| value != 0.0));
        assert!(
            batch.images[image..].iter().all(|&value| value == 0.0),
            "text-only rows are zero"
        );
        assert_eq!(
            batch.samples[2].answer, "red yes",
            "plain text is its own answer"
        );
    }
}

#[test]
fn every_answer_of_several_turns_is_supervised_and_no_question_is() {
    let tokenizer = ChatTokenizer::embedded();
    let tokens = 48;
    let shape = BatchShape {
        tiling: keel::data::tiles::Tiling::NONE,
        pack: 1,
        batch: 1,
        image_size: 8,
        image_tokens: 2,
        tokens,
        caption_tokens: 10,
        image_id: ChatTokenizer::embedded().image(),
        pixels: Pixels::default(),
    };
    let turn = |question: &str, answer: &str| Turn {
        question: question.into(),
        answer: answer.into(),
    };
    let mut several = sample(some_view(), "", "what?", "yes no", "red");
    several.further = vec![turn("how many?", "2"), turn("red?", "no")];
    let ids = |text: &str| tokenizer.encode(text);
    // Each id of the sequence with the number of its answer's ids, end included, where it belongs to one.
    let mut wanted: Vec<(i32, Option<usize>)> = Vec::new();
    let [begin, end, image, user, assistant, pad] =
        [BEGIN, END, IMAGE, USER, ASSISTANT, PAD].map(i32::from);
    wanted.extend([begin, image, image].map(|id| (id, None)));
    for (question, answer) in [("what?", "yes no"), ("how many?", "2"), ("red?", "no")] {
        wanted.push((user, None));
        wanted.extend(ids(question).into_iter().map(|id| (id, None)));
        wanted.push((assistant, None));
        let mut answer = ids(answer);
        answer.push(end);
        let count = answer.len();
        wanted.extend(answer.into_iter().map(|id| (id, Some(count))));
    }
    assert!(wanted.len() <= tokens, "the test's sequence fits");
    wanted.resize(tokens + 1, (pad, None));
    for weighting in [
        TokenWeighting::Token,
        TokenWeighting::Sample,
        TokenWeighting::Square,
    ] {
        let rows = [several.clone()];
        let batch = assemble(&rows, &shape, weighting, tokenizer).unwrap();
        for position in 0..tokens {
            assert_eq!(batch.tokens[position], wanted[position].0, "{position}");
            let (next, answer) = wanted[position + 1];
            let (target, weight) = match answer {
                Some(count) => (next, weighting.weight(count)),
                None => (IGNORED, 0.0),
            };
            assert_eq!(batch.targets[position], target, "{position}");
            assert_eq!(batch.weights[position], weight, "{position}");
        }
        assert_eq!(batch.samples[0].further, several.further);
    }
    let one_turn = sample(some_view(), "", "what?", "yes no", "red");
    let first = |sample: Sample| tokenizer.sequence(&sample.conversation(2));
    let (one, several) = (first(one_turn), first(several));
    assert_eq!(
        one.ids,
        several.ids[..one.ids.len()],
        "the first turn is as it is alone"
    );
    assert_eq!(one.supervised[..], several.supervised[..1]);
}

#[test]
fn a_sample_that_does_not_fit_is_refused_and_never_cut() {
    let shape = BatchShape {
        tiling: keel::data::tiles::Tiling::NONE,
        pack: 1,
        batch: 1,
        image_size: 8,
        image_tokens: 2,
        tokens: 12,
        caption_tokens: 4,
        image_id: ChatTokenizer::embedded().image(),
        pixels: Pixels::default(),
    };
    let tokenizer = ChatTokenizer::embedded();
    let long = sample(some_view(), "", "what?", &"zq".repeat(20), "");
    assert!(!fits(&long, &shape, tokenizer));
    let error = assemble(&[long], &shape, TokenWeighting::Token, tokenizer).unwrap_err();
    assert!(error.to_string().contains("tokens, 12 fit"), "{error}");
}

#[test]
fn a_long_caption_is_cut_for_the_contrastive_side_alone_as_clip_cuts_it() {
    let shape = |caption_tokens| BatchShape {
        tiling: keel::data::tiles::Tiling::NONE,
        pack: 1,
        batch: 1,
        image_size: 8,
        image_tokens: 2,
        tokens: 12,
        caption_tokens,
        image_id: ChatTokenizer::embedded().image(),
        pixels: Pixels::default(),
    };
    let tokenizer = ChatTokenizer::embedded();
    let long = sample(some_view(), "", "", "a", &"zq".repeat(20));
    assert!(fits(&long, &shape(4), tokenizer));
    let batch = |tokens| {
        let samples = std::slice::from_ref(&long);
        assemble(samples, &shape(tokens), TokenWeighting::Token, tokenizer).unwrap()
    };
    let (cut, whole) = (batch(4), batch(64));
    let caption = tokenizer.caption(&long.caption);
    assert!(caption.len() > 4);
    let end = caption[caption.len() - 1];
    assert_eq!(cut.caption_tokens, [&caption[..3], &[end]].concat());
    assert_eq!(
        (cut.caption_end, &cut.caption_weights),
        (vec![3], &vec![0.25; 4])
    );
    assert_eq!(whole.caption_tokens[..caption.len()], caption);
    // What is learnt by next-token loss does not know of it.
    assert_eq!(
        (cut.tokens, cut.targets, cut.weights),
        (whole.tokens, whole.targets, whole.weights)
    );
}
