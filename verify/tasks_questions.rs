//! Every answer is true of its image, and guessing without the image is weak.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use keel::data::augment::Augmentation;
use keel::data::blind_baseline::{QuestionAnswer, blind_baseline};
use keel::data::sample::Sample;
use keel::emoji::colours::{Colour, Palette};
use keel::emoji::embedded::Vendor;
use keel::emoji::emoji_set::{EmojiSet, Pool, Split};
use keel::emoji::eval_sets::training_questions;
use keel::emoji::question_kind::QuestionKind;
use keel::emoji::questions::{ask, ask_further};
use keel::emoji::scenes::{Scene, Side};
use keel::random::{Purpose, Stream};

pub(crate) fn scene(sample: &Sample) -> &Scene {
    let scene = Scene::of(&sample.view);
    scene.unwrap_or_else(|| panic!("{} has no scene", sample.key))
}

fn asked(emoji: &Arc<EmojiSet>, pool: &Pool, kind: QuestionKind, number: u64) -> Sample {
    let mut text = Stream::new(21, Purpose::Text, kind as u64, number);
    let mut look = Stream::new(21, Purpose::Augment, kind as u64, number);
    let primary = *text.pick(&pool.all);
    ask(
        emoji,
        pool,
        primary,
        kind,
        &Augmentation::TRAINING,
        &mut text,
        &mut look,
    )
}

/// The object of a scene that words refer to: "this", a place, a name, or a colour that only one thing has.
fn referred(emoji: &EmojiSet, scene: &Scene, words: &str) -> usize {
    let concept = |i: usize| emoji.concept(scene.objects[i].concept);
    let all = 0..scene.objects.len();
    if words == "this" {
        assert_eq!(scene.objects.len(), 1);
        return 0;
    }
    let words = words.strip_prefix("the ").unwrap_or(words);
    let near = |word: &str, axis: usize, i: usize| {
        let at = scene.objects[i].placement.centre[axis];
        match word {
            "left" | "top" => at < 0.4,
            "right" | "bottom" => at > 0.6,
            _ => (0.4..=0.6).contains(&at),
        }
    };
    let places = words.strip_prefix("thing ").unwrap_or(words);
    if let Some(place) = places
        .strip_prefix("at the ")
        .or_else(|| places.strip_prefix("on the "))
        .or_else(|| places.strip_prefix("in the "))
    {
        let fits = |i: &usize| {
            place.split(' ').all(|word| match word {
                "left" | "right" => near(word, 0, *i),
                "top" | "bottom" => near(word, 1, *i),
                _ => near(word, 0, *i) && near(word, 1, *i),
            })
        };
        let found: Vec<usize> = all.filter(fits).collect();
        assert_eq!(found.len(), 1, "{words:?} is not one place of {scene:?}");
        return found[0];
    }
    if let Some(colour) = words.strip_suffix(" thing")
        && let Some(colour) = Colour::ALL.into_iter().find(|c| c.word() == colour)
    {
        let share = |i: usize| concept(i).palette(scene.vendor).share(colour);
        let most = all
            .clone()
            .max_by(|&x, &y| share(x).total_cmp(&share(y)))
            .unwrap();
        assert!(share(most) >= 0.6);
        assert!(
            all.filter(|&i| i != most).all(|i| share(i) < 0.1),
            "{words:?} is not unique"
        );
        return most;
    }
    let found: Vec<usize> = all.filter(|&i| concept(i).name == words).collect();
    assert_eq!(found.len(), 1, "{words:?} is not one thing of {scene:?}");
    found[0]
}

fn side_of(emoji: &EmojiSet, scene: &Scene, what: &str, of: &str) -> Side {
    let (what, of) = (referred(emoji, scene, what), referred(emoji, scene, of));
    Side::between(&scene.objects[what], &scene.objects[of]).expect("the side is clear")
}

/// Answers a question by reading its words and looking at the scene, independently of how it was made.
fn answer(emoji: &EmojiSet, scene: &Scene, question: &str) -> String {
    let concept = |i: usize| emoji.concept(scene.objects[i].concept);
    let question = question.strip_suffix('?').unwrap();
    let category = |i: usize| emoji.categories()[concept(i).category].clone();
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    if question == "how many things are there" {
        return scene.objects.len().to_string();
    }
    if let Some(kind) = question.strip_prefix("how many of kind ") {
        return (0..scene.objects.len())
            .filter(|&i| category(i) == kind)
            .count()
            .to_string();
    }
    if let Some(name) = question.strip_prefix("how many pictures of ") {
        return (0..scene.objects.len())
            .filter(|&i| concept(i).name == name)
            .count()
            .to_string();
    }
    if question == "what colour is the background" {
        return Colour::of(scene.background).word().to_owned();
    }
    if let Some(thing) = question.strip_prefix("what colour is ") {
        let palette = concept(referred(emoji, scene, thing)).palette(scene.vendor);
        return palette.single().unwrap().word().to_owned();
    }
    if let Some(place) = question.strip_prefix("what kind of thing is ") {
        return category(referred(emoji, scene, place));
    }
    if question == "which country's flag is there" {
        let countries: Vec<&String> = (0..scene.objects.len())
            .filter_map(|i| concept(i).country.as_ref())
            .collect();
        assert_eq!(countries.len(), 1, "only one flag can be meant");
        return countries[0].clone();
    }
    if let Some(phrase) = question.strip_prefix("can you see ") {
        return yes_no((0..scene.objects.len()).any(|i| concept(i).phrase == phrase));
    }
    if let Some(rest) = question.strip_prefix("where is ") {
        let (what, of) = rest.split_once(" from the ").unwrap();
        return side_of(emoji, scene, what, &format!("the {of}"))
            .word()
            .to_owned();
    }
    for side in Side::ALL {
        let relation = format!(" {} the ", side.relation());
        if let Some(rest) = question.strip_prefix("is ")
            && let Some((what, of)) = rest.split_once(&relation)
        {
            return yes_no(side_of(emoji, scene, what, &format!("the {of}")) == side);
        }
        if let Some(of) = question.strip_prefix(&format!("what is {} ", side.relation())) {
            let of = referred(emoji, scene, of);
            let there: Vec<usize> = (0..scene.objects.len())
                .filter(|&i| i != of)
                .filter(|&i| Side::between(&scene.objects[i], &scene.objects[of]) == Some(side))
                .collect();
            assert_eq!(there.len(), 1, "one thing must be there");
            return concept(there[0]).name.clone();
        }
    }
    if let Some(rest) = question.strip_prefix("is ") {
        let (thing, colour) = rest.rsplit_once(' ').unwrap();
        let colour = Colour::ALL
            .into_iter()
            .find(|c| c.word() == colour)
            .unwrap();
        let share = concept(referred(emoji, scene, thing))
            .palette(scene.vendor)
            .share(colour);
        assert!(!(0.1..0.6).contains(&share), "neither yes nor no: {share}");
        return yes_no(share >= 0.6);
    }
    let place = question.strip_prefix("what is ").unwrap();
    concept(referred(emoji, scene, place)).name.clone()
}

#[test]
fn every_answer_is_true_of_its_scene() {
    let emoji = EmojiSet::embedded();
    for vendor in Vendor::ALL {
        for split in [Split::Train, Split::HeldOut] {
            let pool = emoji.pool(vendor, split);
            for kind in QuestionKind::SCENES {
                for number in 0..150 {
                    let sample = asked(&emoji, &pool, kind, number);
                    let truth = answer(&emoji, scene(&sample), &sample.question);
                    assert_eq!(sample.answer, truth, "{sample:?}");
                }
            }
        }
    }
}

#[test]
fn further_questions_are_new_and_true_and_the_same_every_time() {
    let emoji = EmojiSet::embedded();
    for vendor in Vendor::ALL {
        let pool = emoji.pool(vendor, Split::Train);
        let mut beginnings: BTreeMap<String, usize> = BTreeMap::new();
        let mut asked_in_all = 0;
        for kind in QuestionKind::SCENES {
            for number in 0..60 {
                let sample = asked(&emoji, &pool, kind, number);
                let further = || {
                    let mut text = Stream::new(4, Purpose::Text, kind as u64, number);
                    let mut look = Stream::new(4, Purpose::Augment, kind as u64, number);
                    ask_further(&emoji, &pool, &sample, 6, &mut text, &mut look)
                };
                let turns = further();
                assert_eq!(turns, further(), "the same streams give the same questions");
                assert!(turns.len() <= 6);
                let mut seen = vec![sample.question.clone()];
                for turn in &turns {
                    assert!(!seen.contains(&turn.question), "{turn:?} comes twice");
                    let truth = answer(&emoji, scene(&sample), &turn.question);
                    assert_eq!(turn.answer, truth, "{turn:?} of {sample:?}");
                    seen.push(turn.question.clone());
                    let words: Vec<&str> = turn.question.split(' ').take(2).collect();
                    *beginnings.entry(words.join(" ")).or_default() += 1;
                }
                asked_in_all += turns.len();
            }
        }
        let scenes = 60 * QuestionKind::SCENES.len();
        assert!(
            asked_in_all > 4 * scenes,
            "{asked_in_all} in {scenes} scenes"
        );
        for words in [
            "what is",
            "what colour",
            "what kind",
            "how many",
            "can you",
            "where is",
        ] {
            assert!(beginnings.contains_key(words), "{words}: {beginnings:?}");
        }
    }
}

#[test]
fn colours_in_answers_are_those_of_the_drawn_pixels() {
    let emoji = EmojiSet::embedded();
    let pool = emoji.pool(Vendor::Noto, Split::Train);
    // Near the sources' own resolution, so that neighbouring colours do not blend.
    let (side, mut checked) = (160, 0);
    for number in 0..120 {
        let sample = asked(&emoji, &pool, QuestionKind::Colour, number);
        let scene = scene(&sample);
        let thing = sample
            .question
            .strip_prefix("what colour is ")
            .unwrap()
            .trim_end_matches('?');
        let object = &scene.objects[referred(&emoji, scene, thing)];
        // Pixels that look the same on black and on white belong to the thing alone.
        let [on_black, on_white] = [[0; 3], [255; 3]].map(|background| {
            let mut out = vec![0.0; 3 * side * side];
            let changed = Scene {
                background,
                ..scene.clone()
            };
            changed.render(&emoji, side, &mut out);
            out
        });
        let covered = emoji
            .concept(object.concept)
            .sprite(scene.vendor)
            .covered(&object.placement);
        let [left, top, right, bottom] = covered.map(|edge| (edge * side as f32).round() as usize);
        let pixels: Vec<[u8; 4]> = (top..bottom)
            .flat_map(|y| (left..right).map(move |x| y * side + x))
            .filter_map(|at| {
                let value = |out: &[f32], c: usize| (out[c * side * side + at] + 1.0) * 127.5;
                let pure = (0..3).all(|c| (value(&on_black, c) - value(&on_white, c)).abs() < 8.0);
                let byte = |c| value(&on_black, c).round() as u8;
                pure.then(|| [byte(0), byte(1), byte(2), 255])
            })
            .collect();
        if pixels.len() < 20 {
            continue;
        }
        checked += 1;
        let drawn = Palette::measure(pixels.into_iter().map(|pixel| (pixel, 1)));
        let most = drawn.dominant(0.0, 1)[0];
        assert_eq!(most.word(), sample.answer, "{sample:?}");
    }
    assert!(checked > 100, "{checked}");
}

#[test]
fn yes_and_no_are_equally_likely_whatever_the_words() {
    let emoji = EmojiSet::embedded();
    let pool = emoji.pool(Vendor::Noto, Split::Train);
    for kind in [
        QuestionKind::IsThere,
        QuestionKind::IsSide,
        QuestionKind::IsColour,
    ] {
        let n = 4000;
        let samples: Vec<Sample> = (0..n)
            .map(|number| asked(&emoji, &pool, kind, number))
            .collect();
        let yes = samples
            .iter()
            .filter(|sample| sample.answer == "yes")
            .count();
        // Five standard deviations of a binomial with p = 1/2.
        let bound = 5.0 * (n as f64 / 4.0).sqrt();
        assert!(
            (yes as f64 - n as f64 / 2.0).abs() < bound,
            "{}: {yes} of {n}",
            kind.name()
        );
        // The same within every relation and every colour, the only words that come often.
        let mut by_word: BTreeMap<&str, [f64; 2]> = BTreeMap::new();
        for sample in &samples {
            let words = sample.question.trim_end_matches('?');
            let side = Side::ALL
                .into_iter()
                .find(|s| words.contains(&format!(" {} the", s.relation())));
            let word = match kind {
                QuestionKind::IsSide => side.map(Side::word).unwrap_or_default(),
                QuestionKind::IsColour => words.rsplit(' ').next().unwrap_or_default(),
                _ => "",
            };
            by_word.entry(word).or_default()[usize::from(sample.answer == "yes")] += 1.0;
        }
        for (word, [no, yes]) in by_word {
            let bound = 5.0 * ((no + yes) / 4.0).sqrt();
            // Colours of which a "no" can be asked less often lean to "yes" a little.
            let slack = if kind == QuestionKind::IsColour {
                0.06 * (no + yes)
            } else {
                0.0
            };
            assert!(
                (yes - no).abs() / 2.0 < bound + slack,
                "{} {word}: {yes} yes, {no} no",
                kind.name()
            );
        }
    }
}

#[test]
fn counts_sides_colours_and_categories_are_balanced() {
    let emoji = EmojiSet::embedded();
    let pool = emoji.pool(Vendor::Noto, Split::Train);
    for (kind, answers) in [
        (QuestionKind::Count, 4),
        (QuestionKind::CountOf, 4),
        (QuestionKind::Side, 4),
        (QuestionKind::Colour, pool.colours.len()),
        (QuestionKind::Category, pool.categories.len()),
    ] {
        let n = 3000;
        let mut counts: HashMap<String, usize> = HashMap::new();
        for number in 0..n {
            *counts
                .entry(asked(&emoji, &pool, kind, number).answer)
                .or_default() += 1;
        }
        assert_eq!(counts.len(), answers, "{}: {counts:?}", kind.name());
        let p = 1.0 / answers as f64;
        let bound = 5.0 * (n as f64 * p * (1.0 - p)).sqrt();
        for (answer, &count) in &counts {
            let off = (count as f64 - n as f64 * p).abs();
            assert!(off < bound, "{} {answer}: {count} of {n}", kind.name());
        }
    }
}

#[test]
fn guessing_from_the_text_alone_is_weak() {
    let emoji = EmojiSet::embedded();
    let train = training_questions(&emoji, 1500, 5);
    let test = training_questions(&emoji, 400, 6);
    let scores = blind_baseline(&train, &test);
    for (kind, most) in [
        (QuestionKind::What, 0.05),
        (QuestionKind::Count, 0.35),
        (QuestionKind::CountOf, 0.35),
        (QuestionKind::Colour, 0.25),
        (QuestionKind::Background, 0.25),
        (QuestionKind::Category, 0.25),
        (QuestionKind::Side, 0.35),
        (QuestionKind::Neighbour, 0.05),
        (QuestionKind::Country, 0.05),
        (QuestionKind::IsThere, 0.6),
        (QuestionKind::IsSide, 0.6),
        (QuestionKind::IsColour, 0.62),
        (QuestionKind::Keys, 0.2),
        (QuestionKind::Time, 0.15),
        (QuestionKind::Code, 0.05),
    ] {
        let score = share(&scores, kind);
        assert!(score < most, "{}: {score:.3}", kind.name());
    }
}

/// The blind baseline's share of one kind.
fn share(scores: &[(Cow<'static, str>, f64)], kind: QuestionKind) -> f64 {
    let found = scores.iter().find(|(name, _)| name == kind.name());
    found.expect("a question of the kind").1
}

#[test]
fn the_blind_baseline_takes_the_better_of_kind_and_question() {
    let make = |kind: QuestionKind, question: &str, answer: &str| QuestionAnswer {
        kind: kind.into(),
        question: question.into(),
        answer: answer.into(),
    };
    let (colour, count) = (QuestionKind::Colour, QuestionKind::Count);
    let train = [
        make(colour, "the apple?", "red"),
        make(colour, "the apple?", "red"),
        make(colour, "the apple?", "green"),
        make(colour, "the sky?", "blue"),
        make(count, "how many?", "2"),
        make(count, "how many?", "1"),
    ];
    let test = [
        make(colour, "the apple?", "red"),
        make(colour, "the sky?", "blue"),
        make(colour, "the sea?", "red"),
        make(colour, "the apple?", "green"),
        make(count, "how many?", "1"),
        make(count, "how many?", "2"),
        make(count, "how many?", "1"),
        make(count, "how many?", "3"),
    ];
    let scores = blind_baseline(&train, &test);
    // By kind "red" hits 2 of 4; by question red, blue, red (new question), red hit 3 of 4.
    assert_eq!(share(&scores, colour), 0.75);
    // A tie between 1 and 2 goes to the answer that sorts first.
    assert_eq!(share(&scores, count), 0.5);
    assert_eq!(scores.len(), 2);
    let unseen = blind_baseline(&[], &test);
    assert_eq!(share(&unseen, colour), 0.0);
}
