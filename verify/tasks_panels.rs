//! The panels world: what is said of an image is what its pixels show, nothing held out is trained on, and answers are read off
//! by their first tokens.

use std::collections::HashSet;
use std::sync::Arc;

use keel::data::assemble::fits;
use keel::data::augment::Augmentation;
use keel::data::batch::IGNORED;
use keel::data::batches::batch_of;
use keel::data::chat::ChatTokenizer;
use keel::data::eval_set::EvalSet;
use keel::data::frame::Drawing;
use keel::data::image_view::ImageCache;
use keel::data::pixels::Pixels;
use keel::data::sample::{Sample, View};
use keel::data::source::{Draw, SampleSettings, TaskSource};
use keel::eval::{Answerer, ClosedSets, EvalContext, answer_closed};
use keel::executor::{CpuExecutor, Executor};
use keel::model::{declare, initialise};
use keel::panels::eval_sets::{PanelsEvalSet, closed_answers, text_questions};
use keel::panels::held_out::held_out_digit;
use keel::panels::image::{Look, PALETTE, PanelsImage, Style};
use keel::panels::question_kind::QuestionKind;
use keel::panels::scene::{PANELS, Panel, Scene, Split};
use keel::panels::sources::task_sources;
use keel::panels::tasks;
use keel::panels::words::{COLOURS, COLUMNS, COUNTS, DIGITS, ROWS, SHAPES};
use keel::random::{Purpose, Stream};
use keel::train::Recipe;

use crate::tasks_mixture::{SAMPLES, SHAPE};

/// Pixels along an image's and a panel's side.
const SIDE: usize = 64;
const PANEL: usize = SIDE / 2;

/// Pixels along the side of a digit's dot at this size.
const DOT: usize = 3;

/// The digits as they should look, written apart from the code that draws them.
const FONT: [&str; 10] = [
    "### #.# #.# #.# ###",
    ".#. ##. .#. .#. ###",
    "### ..# ### #.. ###",
    "### ..# ### ..# ###",
    "#.# #.# ### ..# ..#",
    "### #.. ### ..# ###",
    "### #.. ### #.# ###",
    "### ..# .#. .#. .#.",
    "### #.# ### #.# ###",
    "### #.# ### ..# ###",
];

/// The colour [r, g, b] of each pixel of a panel, 0..255.
type Pixel = [f32; 3];

fn drawn(image: &PanelsImage) -> Vec<f32> {
    let mut planes = vec![0.0; 3 * SIDE * SIDE];
    image.draw(SIDE, &mut planes);
    planes
}

fn panel_of(planes: &[f32], place: usize) -> Vec<Pixel> {
    let (left, top) = (place % 2 * PANEL, place / 2 * PANEL);
    let at = |x: usize, y: usize| {
        let of = |channel: usize| planes[(channel * SIDE + top + y) * SIDE + left + x];
        [0, 1, 2].map(|channel| (of(channel) + 1.0) * 127.5)
    };
    (0..PANEL * PANEL)
        .map(|pixel| at(pixel % PANEL, pixel / PANEL))
        .collect()
}

fn distance(a: Pixel, b: Pixel) -> f32 {
    (0..3)
        .map(|channel| (a[channel] - b[channel]).powi(2))
        .sum()
}

fn nearest(pixel: Pixel, among: &[Pixel]) -> usize {
    let order =
        |a: &usize, b: &usize| distance(pixel, among[*a]).total_cmp(&distance(pixel, among[*b]));
    (0..among.len()).min_by(order).unwrap()
}

/// The digit whose dots are best ink and whose other places are best colour, anywhere in the panel.
fn read_digit(pixels: &[Pixel], ink: Pixel, colour: Pixel) -> usize {
    // How much nearer to ink than to colour a dot's mean is, by its corner.
    let across = PANEL - DOT + 1;
    let dot = |x: usize, y: usize| {
        let mut mean = [0.0; 3];
        for pixel in (0..DOT * DOT).map(|at| pixels[(y + at / DOT) * PANEL + x + at % DOT]) {
            for channel in 0..3 {
                mean[channel] += pixel[channel] / (DOT * DOT) as f32;
            }
        }
        [distance(mean, ink), distance(mean, colour)]
    };
    let dots: Vec<[f32; 2]> = (0..across * across)
        .map(|at| dot(at % across, at / across))
        .collect();
    let fonts = FONT.map(|rows| rows.split(' ').map(str::as_bytes).collect::<Vec<_>>());
    let mut best = (f32::INFINITY, 0);
    for y in 0..PANEL - 5 * DOT {
        for x in 0..PANEL - 3 * DOT {
            for (digit, font) in fonts.iter().enumerate() {
                let mut error = 0.0;
                for (row, dots_of) in font.iter().enumerate() {
                    for (column, dot) in dots_of.iter().enumerate() {
                        let [to_ink, to_colour] = dots[(y + DOT * row) * across + x + DOT * column];
                        error += if *dot == b'#' { to_ink } else { to_colour };
                    }
                }
                if error < best.0 {
                    best = (error, digit);
                }
            }
        }
    }
    best.1
}

/// Which pixels have a shape's colour.
fn mask(pixels: &[Pixel], colour: Pixel, others: [Pixel; 2]) -> Vec<bool> {
    let is_colour = |pixel: &Pixel| nearest(*pixel, &[colour, others[0], others[1]]) == 0;
    pixels.iter().map(is_colour).collect()
}

/// Pixels in which two masks differ, at the best of all shifts of up to three pixels.
fn difference(mask: &[bool], other: &[bool]) -> usize {
    let shifts = (-3isize..=3).flat_map(|y| (-3isize..=3).map(move |x| [x, y]));
    let differing = shifts.map(|[dx, dy]| {
        let at = |x: usize, y: usize| {
            let (x, y) = (x.checked_add_signed(dx), y.checked_add_signed(dy));
            let inside = x.zip(y).filter(|(x, y)| *x < PANEL && *y < PANEL);
            inside.is_some_and(|(x, y)| other[y * PANEL + x])
        };
        let pixels = (0..PANEL * PANEL).filter(|p| mask[*p] != at(p % PANEL, p / PANEL));
        pixels.count()
    });
    differing.min().unwrap()
}

/// One panel's mask of each shape with each digit, drawn plainly.
fn reference_masks() -> Vec<Vec<Vec<bool>>> {
    let mask_of = |shape: usize, digit: usize| {
        let panels = [0, 1, 2, 3].map(|at| Panel {
            shape: (shape + at) % SHAPES.len(),
            colour: 4,
            digit,
        });
        let look = Look::draw(Style::Light, 0.0, &mut Stream::of_seed(1));
        let planes = drawn(&PanelsImage {
            scene: Scene { panels },
            look,
        });
        let others = [look.background, Style::Light.ink()].map(|colour| colour.map(f32::from));
        mask(&panel_of(&planes, 0), PALETTE[4].map(f32::from), others)
    };
    (0..SHAPES.len())
        .map(|shape| {
            (0..DIGITS.len())
                .map(|digit| mask_of(shape, digit))
                .collect()
        })
        .collect()
}

/// What the pixels of an image show, panel by panel.
fn read(image: &PanelsImage, masks: &[Vec<Vec<bool>>]) -> [Panel; PANELS] {
    let planes = drawn(image);
    let [background, ink] =
        [image.look.background, image.look.style.ink()].map(|colour| colour.map(f32::from));
    let palette = PALETTE.map(|colour| colour.map(f32::from));
    [0, 1, 2, 3].map(|place| {
        let pixels = panel_of(&planes, place);
        let mut among = palette.to_vec();
        among.extend([background, ink]);
        let mut votes = [0; 10];
        for pixel in &pixels {
            votes[nearest(*pixel, &among)] += 1;
        }
        let colour = (0..palette.len())
            .max_by_key(|colour| votes[*colour])
            .unwrap();
        let digit = read_digit(&pixels, ink, palette[colour]);
        let mask = mask(&pixels, palette[colour], [background, ink]);
        let shape = (0..SHAPES.len()).min_by_key(|shape| difference(&mask, &masks[*shape][digit]));
        Panel {
            shape: shape.unwrap(),
            colour,
            digit,
        }
    })
}

#[test]
fn what_is_drawn_in_either_style_is_what_the_scene_says() {
    let masks = reference_masks();
    for (at, one) in masks.iter().enumerate() {
        for other in &masks[..at] {
            let apart = difference(&one[8], &other[8]);
            assert!(apart > 60, "{}: {apart} pixels", SHAPES[at]);
        }
    }
    for style in [Style::Light, Style::Dark] {
        let mut stream = Stream::of_seed(11);
        for number in 0..12 {
            let split = [Split::Train, Split::HeldOut][number % 2];
            let scene = Scene::draw(&mut stream, split);
            let look = Look::draw(style, 1.0, &mut stream);
            let image = PanelsImage { scene, look };
            assert_eq!(read(&image, &masks), scene.panels, "{style:?} {image:?}");
        }
    }
}

/// The panels that a text says, each with its place.
fn panels_said(text: &str) -> Vec<(usize, Panel)> {
    let words = |panel: &str| -> Vec<String> {
        panel
            .split_whitespace()
            .map(|word| format!(" {word}"))
            .collect()
    };
    let index = |among: &[&str], word: &str| {
        let found = among.iter().position(|known| *known == word);
        found.unwrap_or_else(|| panic!("{word} in {text}"))
    };
    text.split(',')
        .map(|panel| {
            let [row, column, colour, shape, digit] = &words(panel)[..] else {
                panic!("{panel} in {text}");
            };
            let place = 2 * index(&ROWS, row) + index(&COLUMNS, column);
            let panel = Panel {
                shape: index(&SHAPES, shape),
                colour: index(&COLOURS, colour),
                digit: index(&DIGITS, digit.trim()),
            };
            (place, panel)
        })
        .collect()
}

/// The answer to a question, worked out of its words and the facts.
fn answer(question: &str, scene: &Scene) -> String {
    let question = question.trim_end_matches('?');
    let words: Vec<String> = question.split(' ').map(|word| format!(" {word}")).collect();
    let known = |among: &[&str]| {
        words
            .iter()
            .find_map(|word| among.iter().position(|w| w == word))
    };
    let shape = known(&SHAPES).map(|shape| {
        scene
            .place_of(shape)
            .expect("only what is there is asked about")
    });
    if question.starts_with("how many") {
        let colour = known(&COLOURS).unwrap();
        let panels = scene.panels.iter().filter(|panel| panel.colour == colour);
        return panels.count().to_string();
    }
    if question.ends_with("top or bottom") {
        return ROWS[shape.unwrap() / 2].to_owned();
    }
    if question.ends_with("left or right") {
        return COLUMNS[shape.unwrap() % 2].to_owned();
    }
    let place = shape.unwrap_or_else(|| 2 * known(&ROWS).unwrap() + known(&COLUMNS).unwrap());
    let panel = scene.panels[place];
    match question {
        _ if question.starts_with("what colour") => COLOURS[panel.colour].to_owned(),
        _ if question.starts_with("what is") => SHAPES[panel.shape].to_owned(),
        _ if question.starts_with("read") => DIGITS[panel.digit].to_owned(),
        other => panic!("{other}"),
    }
}

fn sample(source: &dyn TaskSource, item: usize, seed: u64) -> Sample {
    let stream = |purpose| Stream::new(seed, purpose, 0, item as u64);
    source
        .sample(
            item,
            &mut Draw {
                form: 0,
                text: &mut stream(Purpose::Text),
                look: &mut stream(Purpose::Augment),
                fits: &|_| true,
                kept: &Arc::new(ImageCache::new(0)),
            },
        )
        .unwrap()
}

#[test]
fn every_training_text_is_true_of_its_image_and_tells_nothing_held_out() {
    let settings = SampleSettings {
        turns: 4,
        ..SAMPLES
    };
    let mut kinds = HashSet::new();
    for source in task_sources(3, &settings) {
        for item in 0..300 {
            let sample = sample(source.as_ref(), item, 3);
            let scene = match PanelsImage::of(&sample.view) {
                Some(image) => {
                    assert_eq!(image.look.style, Style::Light);
                    image.scene
                }
                None => Scene::of_training(3, item as u64),
            };
            assert_eq!(sample.view.is_some(), sample.task.has_images);
            assert_eq!(
                scene,
                Scene::of_training(3, item as u64),
                "all tasks tell of the same scenes"
            );
            for panel in scene.panels {
                assert_ne!(panel.digit, held_out_digit(panel.shape, panel.colour));
            }
            let mut texts = vec![sample.context.clone()];
            if sample.question.is_empty() {
                texts.push(sample.answer.clone());
            }
            texts.push(sample.caption.clone());
            for text in texts.iter().filter(|text| text.contains(',')) {
                let said = panels_said(text);
                let places: HashSet<usize> = said.iter().map(|(place, _)| *place).collect();
                assert_eq!(places.len(), PANELS, "{text}");
                for (place, panel) in said {
                    assert_eq!(scene.panels[place], panel, "{text}");
                }
            }
            if sample.task == tasks::PANELS_SHORT {
                let mut shapes = scene.panels.map(|panel| panel.shape);
                shapes.sort_unstable();
                let words = shapes.map(|shape| SHAPES[shape]);
                assert_eq!(sample.caption, words.concat());
                assert_eq!(sample.answer, sample.caption);
            }
            kinds.extend(sample.question_kind.clone());
            let further = sample.further.iter();
            let asked = further.map(|turn| (&turn.question, &turn.answer));
            let mut asked: Vec<_> = asked.collect();
            if !sample.question.is_empty() {
                asked.push((&sample.question, &sample.answer));
            }
            for (question, given) in asked {
                assert_eq!(*given, answer(question, &scene), "{question} {scene:?}");
            }
        }
    }
    assert_eq!(kinds.len(), QuestionKind::ALL.len());
}

#[test]
fn a_tenth_of_all_combinations_is_held_out_and_evaluated_apart() {
    let mut digits = [0; 10];
    for shape in 0..SHAPES.len() {
        for colour in 0..COLOURS.len() {
            digits[held_out_digit(shape, colour)] += 1;
        }
    }
    assert!(
        digits.iter().all(|count| (9..=10).contains(count)),
        "{digits:?}"
    );
    for style in [Style::Light, Style::Dark] {
        for split in [Split::Train, Split::HeldOut] {
            let set = PanelsEvalSet { style, split };
            let captioned = set.captioned(40);
            let captions: HashSet<&str> = captioned.iter().map(|s| s.caption.as_str()).collect();
            assert_eq!(captions.len(), 40);
            let fits = |sample: &Sample| fits(sample, &SHAPE, ChatTokenizer::embedded());
            let questions = set.questions(10, &fits).unwrap();
            assert_eq!(questions.len(), 10 * QuestionKind::ALL.len());
            for sample in captioned.iter().chain(&questions) {
                let image = PanelsImage::of(&sample.view).unwrap();
                assert_eq!(image.look.style, style);
                for panel in image.scene.panels {
                    let is_held_out = panel.digit == held_out_digit(panel.shape, panel.colour);
                    assert_eq!(is_held_out, split == Split::HeldOut);
                }
            }
            for sample in &questions {
                let scene = PanelsImage::of(&sample.view).unwrap().scene;
                assert_eq!(sample.answer, answer(&sample.question, &scene));
            }
            // A set of fewer is the beginning of one of more.
            let again = set.captioned(7);
            let keys =
                |samples: &[Sample]| samples.iter().map(|s| s.key.clone()).collect::<Vec<_>>();
            assert_eq!(keys(&again), keys(&captioned[..7]));
            let regions = set.regions(&again).unwrap();
            assert_eq!(regions.facts[2].labels.len(), 7 * PANELS);
            let last = PanelsImage::of(&again[6].view).unwrap().scene.panels[3];
            assert_eq!(regions.facts[2].labels[6 * PANELS + 3], last.digit);
        }
    }
    // All short captions that there are, and no more.
    let set = PanelsEvalSet {
        style: Style::Light,
        split: Split::Train,
    };
    let all = set.captioned(usize::MAX).len();
    assert!((480..=495).contains(&all), "{all}");
}

#[test]
fn equal_seeds_give_equal_pixels_and_others_other_ones() {
    let settings = SampleSettings {
        turns: 2,
        ..SAMPLES
    };
    let pixels = |seed: u64, augmentation: f32| {
        let settings = SampleSettings {
            augmentation: Augmentation::of_strength(augmentation),
            ..settings
        };
        let sources = task_sources(seed, &settings);
        let sample = sample(sources[1].as_ref(), 5, seed);
        let mut planes = vec![0.0; 3 * SIDE * SIDE];
        let View::Drawn(drawing) = &sample.view else {
            panic!("an image");
        };
        drawing.draw(SIDE, &mut planes);
        planes
    };
    assert_eq!(pixels(4, 1.0), pixels(4, 1.0));
    assert_ne!(pixels(4, 1.0), pixels(5, 1.0));
    // Without augmentation the background is one plain colour.
    let plain = pixels(4, 0.0);
    assert_eq!(plain[0], plain[SIDE - 1]);
    assert_ne!(plain, pixels(4, 1.0));
    // A smaller share of the scenes is part of a larger one, and any share has some.
    let share = |share: f64| {
        let settings = SampleSettings { share, ..settings };
        task_sources(4, &settings)[0].len()
    };
    assert!(share(1e-9) == 1 && share(0.1) < share(1.0));
}

#[test]
fn no_question_of_a_conversation_gives_the_answer_to_another() {
    let settings = SampleSettings {
        turns: 6,
        ..SAMPLES
    };
    let sources = task_sources(9, &settings);
    for item in 0..200 {
        let sample = sample(sources[2].as_ref(), item, 9);
        let scene = PanelsImage::of(&sample.view).unwrap().scene;
        // What each question is about: the place and whether its shape, colour or digit; every colour where it counts.
        let mut facts: Vec<(usize, &str)> = Vec::new();
        let further = sample.further.iter().map(|turn| turn.question.as_str());
        for question in std::iter::once(sample.question.as_str()).chain(further) {
            let about = match question {
                _ if question.starts_with("how many") || question.contains("colour") => "colour",
                _ if question.starts_with("read") => "digit",
                _ => "shape",
            };
            if question.starts_with("how many") {
                facts.extend((0..PANELS).map(|place| (place, about)));
                continue;
            }
            let of_shape = (0..SHAPES.len())
                .find(|shape| question.contains(SHAPES[*shape].trim()) && SHAPES[*shape] != " v");
            let of_v = question
                .split([' ', '?'])
                .any(|word| word == "v")
                .then_some(SHAPES.len() - 1);
            let place = match of_v.or(of_shape) {
                Some(shape) => scene.place_of(shape).unwrap(),
                None => {
                    let row = usize::from(question.contains("bottom"));
                    2 * row + usize::from(question.contains("right"))
                }
            };
            facts.push((place, about));
        }
        let distinct: HashSet<_> = facts.iter().collect();
        assert_eq!(distinct.len(), facts.len(), "{sample:?}");
    }
}

#[test]
fn every_answer_is_one_token_unlike_the_others_of_its_kind() {
    let tokenizer = ChatTokenizer::embedded();
    for kind in QuestionKind::ALL {
        let ids: Vec<Vec<i32>> = kind
            .answers()
            .iter()
            .map(|word| tokenizer.encode(word))
            .collect();
        assert!(ids.iter().all(|ids| ids.len() == 1), "{kind:?}: {ids:?}");
        let distinct: HashSet<&Vec<i32>> = ids.iter().collect();
        assert_eq!(distinct.len(), kind.answers().len());
    }
    assert_eq!(COUNTS.len(), PANELS + 1);
    // The token of an answer is the one that the facts say.
    for sample in text_questions(20) {
        let answer = tokenizer.encode(&sample.answer);
        if sample.question_kind.as_deref() != Some("count") {
            assert!(
                tokenizer.encode(&sample.context).contains(&answer[0]),
                "{sample:?}"
            );
        }
        let sequence = tokenizer.sequence(&sample.conversation(0));
        assert_eq!(sequence.supervised.len(), 1, "answers alone are learnt");
        assert_eq!(sequence.ids[sequence.supervised[0].start], answer[0]);
    }
}

/// One pass over the question scores what the loss of the whole sequence says of the answer, for images and for texts.
#[test]
fn closed_answers_are_those_of_a_pass_over_whole_sequences() {
    let recipe = Recipe::load("tiny", &[]).unwrap();
    let layout = declare(&recipe.model, recipe.contrastive_loss).unwrap();
    let mut values = initialise(&layout, 5);
    for value in &mut values {
        *value *= 3.0;
    }
    let executor = CpuExecutor::new(layout.elements(), 2).unwrap();
    executor.write_parameters(0, &values).unwrap();
    let context = EvalContext {
        config: &recipe.model,
        layout: &layout,
        executor: &executor,
        tokenizer: ChatTokenizer::embedded(),
        pixels: Pixels::default(),
        head: None,
    };
    let set = PanelsEvalSet {
        style: Style::Light,
        split: Split::Train,
    };
    let sets = ClosedSets::new(context, &closed_answers());
    let samples = set.questions(9, &|_| true).unwrap();
    let answers = answer_closed(context, &sets, &samples).unwrap();
    assert!(answers.iter().any(|answer| answer.is_right));
    let shape = context.batch_shape(64, 40, 48);
    let mut answerer = Answerer::new(context, shape).unwrap();
    let (mut batch, count) = batch_of(&samples, 0, &shape, context.tokenizer).unwrap();
    assert_eq!(count, 64);
    // Only the answers' own tokens, not the end after them.
    for target in &mut batch.targets {
        if *target == context.tokenizer.end() {
            *target = IGNORED;
        }
    }
    let (exact, loss) = answerer.check(&batch).unwrap();
    let mean = answers[..count]
        .iter()
        .map(|answer| answer.loss)
        .sum::<f64>()
        / count as f64;
    assert!((mean - loss).abs() < 1e-4 * loss, "{mean} {loss}");
    for (answer, exact) in answers.iter().zip(&exact) {
        // The likeliest of all tokens is the likeliest of its closed set.
        assert!(answer.is_right || !exact);
    }
    // The order of the questions changes nothing, and texts are answered without an image.
    let mut turned = samples.clone();
    turned.reverse();
    let mut again = answer_closed(context, &sets, &turned).unwrap();
    again.reverse();
    assert_eq!(again, answers);
    let texts = text_questions(3);
    let answers = answer_closed(context, &sets, &texts).unwrap();
    assert!(answers.len() == texts.len() && answers.iter().all(|answer| answer.loss > 0.0));
}
