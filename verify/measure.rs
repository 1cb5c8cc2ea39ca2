//! `keel eval --metrics` on a small run, and the probes that are trained.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use keel::eval::{
    Labelled, Measurements, Metric, ProbeForm, ProbeSettings, TrainedProbe, accuracy,
};
use keel::executor::SelectedDevice;

use crate::command::{Answer, built_in_recipe, keel, tiny_run};
use crate::harness::Random;

/// A run of every stage of the tiny recipe, made once.
fn run() -> &'static Path {
    static RUN: OnceLock<PathBuf> = OnceLock::new();
    RUN.get_or_init(|| tiny_run(&["--no-evaluation"]).0)
}

fn eval(more: &[&str]) -> Answer {
    let run = run().to_str().unwrap();
    keel(
        run.as_ref(),
        &[&["eval", run, "--images", "10"], more].concat(),
    )
}

fn measured(more: &[&str]) -> Measurements {
    let answer = eval(&[&["--json"], more].concat()).fine();
    serde_json::from_str(&answer.stdout).unwrap()
}

#[test]
fn every_metric_is_measured_kept_and_the_same_on_any_number_of_threads() {
    let all = measured(&["--metrics", "all", "--threads", "2"]);
    assert_eq!(all.stage, "target");
    assert_eq!(
        (all.retrieval.len(), all.zero_shot.len(), all.captions.len()),
        (4, 8, 4)
    );
    assert_eq!(all.probes.len(), 4 * 3);
    let names: Vec<&str> = all
        .spaces
        .iter()
        .map(|space| space.space.as_str())
        .collect();
    assert_eq!(names, ["contrastive", "align"]);
    assert_eq!(all.distances.len(), 3);
    for measure in &all.retrieval {
        assert!(
            measure.captions > 3 * measure.images,
            "several captions an image"
        );
        assert!(measure.image_to_text.median_rank >= 1.0);
    }
    for measure in &all.captions {
        assert!((measure.perplexity.ln() - measure.loss).abs() < 1e-9);
        // Untrained: about as good as guessing among 512 tokens.
        assert!((5.0..7.5).contains(&measure.loss), "{measure:?}");
    }
    let total = all
        .questions
        .iter()
        .find(|measure| measure.kind == "all")
        .unwrap();
    assert!(total.count > 20 && total.normalised >= total.exact);
    let cka = all.cka.as_ref().unwrap();
    assert_eq!((cka.layers.len(), cka.stages.len()), (2, 5));
    assert!(
        cka.layers
            .iter()
            .enumerate()
            .all(|(i, row)| (row[i] - 1.0).abs() < 1e-9)
    );
    assert!((cka.layers[0][1] - cka.layers[1][0]).abs() < 1e-9 && cka.layers[0][1] < 1.0);
    // After world-knowledge the tower is frozen, in warm-up too; in fine-grained it moves.
    let likeness = |stage: &str| &cka.stages.iter().find(|(name, _)| name == stage).unwrap().1;
    assert!(
        likeness("world-knowledge")
            .iter()
            .all(|x| (x - 1.0).abs() < 1e-9)
    );
    assert!(likeness("warm-start-vision").iter().all(|x| *x < 1.0));

    assert_eq!(all.robustness.len(), 7);
    for measure in &all.robustness {
        assert_eq!(measure.recall_1.len(), 6, "none and five severities");
        assert_eq!(measure.linear_probe[0], all.robustness[0].linear_probe[0]);
    }

    let drift = |stage: &str, module: &str| {
        let stage = all.drift.iter().find(|drift| drift.stage == stage).unwrap();
        let of = |drifts: &[keel::eval::WeightDrift]| {
            drifts
                .iter()
                .find(|drift| drift.group == module)
                .unwrap()
                .distance
        };
        (of(&stage.from_before), of(&stage.from_first))
    };
    assert_eq!(drift("warm-up", "vision"), (0.0, 0.0));
    assert!(drift("warm-up", "connector").0 > 0.0);
    assert!(drift("fine-grained", "vision.blocks.1").0 > 0.0);
    assert_eq!(drift("target", "vision").0, 0.0);
    assert!(drift("target", "vision").1 > drift("fine-grained", "vision").1 / 2.0);

    let path = run().join("evaluations/6-target.json");
    let kept: Measurements = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(kept, all);
    // The file keeps the numbers of metrics that a later, shorter list leaves out, and the same ones come out again.
    let list = "zero-shot,two-layer-probe,captions,distances";
    let again = measured(&["--metrics", list, "--threads", "1"]);
    assert_eq!(
        (&again.captions, &again.distances),
        (&all.captions, &all.distances)
    );
    assert!(again.cka.is_none() && again.questions.is_empty());
    let kept: Measurements = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(kept, all);
}

#[test]
fn every_block_of_the_tower_is_probed_and_held_against_text() {
    let answer = eval(&[
        "--metrics",
        "layers,linear-probe",
        "--stage",
        "fine-grained",
        "--json",
    ]);
    let measured: Measurements = serde_json::from_str(&answer.fine().stdout).unwrap();
    let blocks: Vec<usize> = measured.layers.iter().map(|layer| layer.block).collect();
    assert_eq!(blocks, [0, 1]);
    for layer in &measured.layers {
        // The sets that the probe of the output is tested on, in their order.
        let sets: Vec<_> = layer.linear_probe.iter().map(|(set, _)| set).collect();
        let of_output: Vec<_> = measured.probes.iter().map(|probe| &probe.set).collect();
        assert_eq!(sets, of_output);
        let mut shares = layer.linear_probe.iter().map(|(_, share)| *share);
        assert!(shares.all(|share| (0.0..=1.0).contains(&share)));
        assert!(layer.plane_nearest.unwrap() > 0.0);
    }
    // A tower that has met no language model has no text to be near.
    let answer = eval(&[
        "--metrics",
        "layers",
        "--stage",
        "warm-start-vision",
        "--json",
    ]);
    let alone: Measurements = serde_json::from_str(&answer.fine().stdout).unwrap();
    assert_eq!(alone.layers.len(), 2);
    assert!(
        alone
            .layers
            .iter()
            .all(|layer| layer.plane_nearest.is_none())
    );
}

#[test]
fn a_stage_is_chosen_by_name_and_gives_what_it_can() {
    let answer = eval(&["--metrics", "zero-shot,drift", "--stage", "warm-up"]).fine();
    for part in [
        "3-warm-up.safetensors",
        "Zero-shot classes",
        "vision.blocks.0",
        "kept in",
    ] {
        assert!(answer.stdout.contains(part), "{part} in {answer:#?}");
    }
    // The language model has not seen an image there yet.
    let answer = eval(&["--metrics", "all", "--stage", "warm-start-vision"]).fine();
    for name in ["captions", "questions", "distances"] {
        let line = format!("left out {name}: metric {name}: expected a checkpoint whose connector");
        assert!(answer.stdout.contains(&line), "{answer:#?}");
    }
    assert!(answer.stdout.contains("attentive-probe"));
}

#[test]
fn both_contrastive_spaces_are_measured_where_nothing_is_projected() {
    let (run, _) = tiny_run(&["--no-evaluation", "--set", "model.align=embeddings"]);
    let args = [
        "eval",
        ".",
        "--metrics",
        "space",
        "--images",
        "10",
        "--json",
    ];
    let answer = keel(&run, &args).fine();
    let measured: Measurements = serde_json::from_str(&answer.stdout).unwrap();
    let spaces = measured.spaces.iter();
    let names: Vec<&str> = spaces.map(|space| space.space.as_str()).collect();
    assert_eq!(names, ["contrastive", "align"]);
    for space in &measured.spaces {
        let is_distance =
            (0.0..=2.0).contains(&space.gap) && (0.0..=2.0).contains(&space.alignment);
        assert!(is_distance, "features of unit length: {space:?}");
    }
}

#[test]
fn a_metric_that_cannot_be_given_is_refused_in_a_sentence() {
    let of = |stage, metrics| eval(&["--metrics", metrics, "--stage", stage]);
    of("warm-start-vision", "questions")
        .refused(&["metric questions", "connector has been trained"]);
    of("warm-start-language", "retrieval").refused(&["trained on text alone"]);
    of("warm-up", "retreival").refused(&["--metrics", "did you mean retrieval?"]);
    of("warm-upp", "retrieval").refused(&["--stage", "did you mean warm-up?"]);
    // Without a run around it, a checkpoint has nothing to compare with.
    let folder = tempfile::tempdir().unwrap();
    let from = run().join("checkpoints/3-warm-up.safetensors");
    fs::copy(from, folder.path().join("alone.safetensors")).unwrap();
    let args = ["eval", "alone.safetensors", "--metrics"];
    let alone = |metric| keel(folder.path(), &[&args[..], &[metric]].concat());
    alone("drift").refused(&["metric drift", "at least two stages"]);
    alone("space").fine();
    assert!(folder.path().join("evaluations/alone.json").exists());
}

#[test]
fn every_metric_has_a_name_that_is_understood_and_documented() {
    let help = keel(Path::new("."), &["eval", "--help"]).fine().stdout;
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for metric in Metric::ALL {
        assert!(help.contains(metric.name()), "{}", metric.name());
        assert_eq!(keel::eval::metrics_of(metric.name()).unwrap(), [metric]);
    }
}

const TOKENS: usize = 6;
const WIDTH: usize = 16;
const CLASSES: usize = 4;

/// Samples of noise tokens. One token, anywhere, is long and points to its class; the others cancel its direction, so that
/// the mean of the tokens says nothing.
fn hidden_token(count: usize, seed: u64) -> (Vec<f32>, Vec<usize>) {
    let mut random = Random::new(seed);
    let mut features = Vec::new();
    let mut labels = Vec::new();
    for _ in 0..count {
        let label = random.below(CLASSES);
        let at = random.below(TOKENS);
        for token in 0..TOKENS {
            let mut row = random.normals(WIDTH, 0.1);
            if token == at {
                row[label] += 3.0;
                row[CLASSES] += 3.0;
            } else {
                row[label] -= 3.0 / (TOKENS - 1) as f32
            }
            features.extend(row);
        }
        labels.push(label);
    }
    (features, labels)
}

fn fit(form: ProbeForm, tokens: usize, features: &[f32], labels: &[usize]) -> TrainedProbe {
    let settings = ProbeSettings::new(form);
    let train = Labelled { features, labels };
    let sizes = (tokens, WIDTH, CLASSES);
    TrainedProbe::fit(settings, &SelectedDevice::processor(2), train, sizes).unwrap()
}

#[test]
fn the_attentive_probe_finds_what_no_mean_shows() {
    let (features, labels) = hidden_token(800, 1);
    let (test, wanted) = hidden_token(200, 2);
    let attentive = fit(
        ProbeForm::Attentive { heads: 2 },
        TOKENS,
        &features,
        &labels,
    );
    let found = attentive.classify(&test).unwrap();
    assert!(
        accuracy(&found, &wanted) > 0.95,
        "{}",
        accuracy(&found, &wanted)
    );
    let means = |features: &[f32]| -> Vec<f32> {
        let mean = |sample: &[f32], c: usize| {
            sample.iter().skip(c).step_by(WIDTH).sum::<f32>() / TOKENS as f32
        };
        let samples = features.chunks(TOKENS * WIDTH);
        samples
            .flat_map(|sample| (0..WIDTH).map(move |c| mean(sample, c)))
            .collect()
    };
    let two = fit(
        ProbeForm::TwoLayer { hidden: 32 },
        1,
        &means(&features),
        &labels,
    );
    let found = two.classify(&means(&test)).unwrap();
    // Four classes by guessing, give or take four deviations of 200 draws.
    let share = accuracy(&found, &wanted);
    assert!(
        (share - 0.25).abs() < 4.0 * (0.25f64 * 0.75 / 200.0).sqrt(),
        "{share}"
    );
}

#[test]
fn the_two_layer_probe_separates_what_no_line_does() {
    // Opposite corners of a square belong together.
    let corners = |count: usize, seed: u64| {
        let mut random = Random::new(seed);
        let mut features = Vec::new();
        let mut labels = Vec::new();
        for _ in 0..count {
            let (x, y) = (random.below(2), random.below(2));
            // All but two channels are silent.
            let mut row = vec![0.0; WIDTH];
            let noise = random.normals(2, 0.2);
            row[0] = noise[0] + 2.0 * x as f32 - 1.0;
            row[1] = noise[1] + 2.0 * y as f32 - 1.0;
            features.extend(row);
            labels.push(x ^ y);
        }
        (features, labels)
    };
    let (features, labels) = corners(800, 3);
    let (test, wanted) = corners(200, 4);
    let settings = ProbeSettings {
        epochs: 20,
        ..ProbeSettings::new(ProbeForm::TwoLayer { hidden: 32 })
    };
    let train = Labelled {
        features: &features,
        labels: &labels,
    };
    let sizes = (1, WIDTH, CLASSES);
    let probe = TrainedProbe::fit(settings, &SelectedDevice::processor(2), train, sizes).unwrap();
    assert_eq!(probe.losses.len(), 20);
    assert!(
        probe.losses[19] < 0.3 * probe.losses[0],
        "{:?}",
        probe.losses
    );
    assert!(accuracy(&probe.classify(&test).unwrap(), &wanted) > 0.95);
    let linear = keel::eval::LinearProbe::fit(&features, WIDTH, &labels, 2, 0.03);
    assert!(accuracy(&linear.classify(&test), &wanted) < 0.7);
    // The same seed, the same probe, on any number of threads.
    let again = TrainedProbe::fit(settings, &SelectedDevice::processor(1), train, sizes).unwrap();
    assert_eq!(again.losses, probe.losses);
}

#[test]
fn a_tower_alone_is_worth_what_it_is_worth_in_its_run() {
    let folder = tempfile::tempdir().unwrap();
    // What is measured of a run is kept in it, and other tests read what they kept there.
    let newest = keel::train::newest_checkpoint(run()).unwrap().unwrap();
    let run = folder.path().join("alone.safetensors");
    fs::copy(newest, &run).unwrap();
    let run = run.display().to_string();
    keel(folder.path(), &["export", &run, "--out", "refined"]).fine();
    let metrics = ["--metrics", "neighbours,linear-probe,attentive-probe,cka"];
    let measured = |path: &str| -> Measurements {
        let args = ["eval", path, "--images", "10", "--device", "cpu", "--json"];
        let answer = keel(folder.path(), &[&args[..], &metrics].concat()).fine();
        serde_json::from_str(&answer.stdout).unwrap_or_else(|e| panic!("{e}: {answer:#?}"))
    };
    let (alone, within) = (measured("refined"), measured(&run));
    assert!(alone.probes.len() > 3, "{:?}", alone.probes);
    assert_eq!(alone.probes, within.probes);
    let layers = |all: &Measurements| all.cka.as_ref().map(|cka| cka.layers.clone());
    assert_eq!(layers(&alone), layers(&within));

    // Without a list, all that a tower alone can give; what it cannot is refused by name.
    let args = [
        "eval",
        "refined",
        "--images",
        "4",
        "--image-size",
        "48",
        "--metrics",
    ];
    let eval = |more: &[&str]| keel(folder.path(), &[&args[..], more].concat());
    let answer = eval(&["all"]).fine();
    assert!(answer.stdout.contains("tower: refined"), "{answer:#?}");
    eval(&["questions"]).refused(&["metric questions", "neighbours, linear-probe"]);
    let bench = ["eval", "refined", "--bench", "small.tsv"];
    keel(folder.path(), &bench).refused(&["--bench: expected a run of Keel"]);
    let sized = ["eval", &run, "--image-size", "48"];
    keel(folder.path(), &sized).refused(&["--image-size: expected a Hugging Face folder"]);
}

/// Asked after a warm start on text, which no other metric can be.
#[test]
fn a_language_model_is_asked_about_facts_as_text_before_any_stage_sees_images() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text.toml");
    fs::write(&file, built_in_recipe("panels", &["warm-start-language"])).unwrap();
    let (file, run) = (file.to_str().unwrap(), folder.path().join("run"));
    let run = run.to_str().unwrap();
    let trained = [
        "train",
        "--recipe",
        file,
        "--out",
        run,
        "--max-steps",
        "2",
        "--set",
        "model.language.depth=1",
    ];
    keel(folder.path(), &trained).fine();
    let asked = ["eval", run, "--metrics", "text-questions", "--json"];
    let answer = keel(folder.path(), &asked).fine();
    let all: Measurements = serde_json::from_str(&answer.stdout).unwrap();
    assert_eq!(all.text_questions.len(), 8, "kinds of questions");
    for measure in &all.text_questions {
        assert_eq!(measure.count, 128);
        // After two steps it cannot read: nothing is near the 95 % that count as answerable.
        assert!(measure.share < 0.95, "{measure:?}");
    }
    let tables = keel(folder.path(), &asked[..4]).fine().stdout;
    assert!(
        tables.contains("Questions, answered from the facts as text"),
        "{tables}"
    );
    let both = ["eval", run, "--metrics", "text-questions,retrieval"];
    keel(folder.path(), &both).refused(&["seen images", "warm-start-language"]);
    eval(&["--metrics", "text-questions"]).refused(&["metric text-questions", "a run on panels"]);
}
