//! The metrics against scikit-learn, POT, SciPy and CLIP_benchmark's definitions (tools/metric_goldens.py), and by
//! what must hold of them.

use keel::eval::{
    LinearProbe, Neighbours, Principal, Sinkhorn, accuracy, alignment, answers_match,
    class_features, classify_among, clustered_interval, clustered_test, detectable_effect,
    exact_wasserstein, holm, interval, linear_cka, mean_distance, modality_gap,
    nearest_neighbour_distance, normalise_answer, paired_test, power, rank_positives, recall,
    sinkhorn_divergence, sliced_wasserstein, sliced_wasserstein_along, student_quantile,
    uniformity, weight_drift,
};
use keel::random::Stream;
use keel::tape::{Init, ParameterLayout, ParameterSpec};
use serde_json::Value;

use crate::harness::Golden;

fn golden() -> Golden {
    Golden::open("metrics")
}

fn labels(golden: &Golden, name: &str) -> Vec<usize> {
    let integers = golden.integers(name).iter();
    integers.map(|label| *label as usize).collect()
}

/// Features are f32 and sums are f64 in both: what differs is the order of sums.
#[track_caller]
fn same(got: f64, want: &Value) {
    let want = want.as_f64().expect("a number");
    let room = 1e-9 * want.abs().max(1.0);
    assert!((got - want).abs() <= room, "{got} instead of {want}");
}

#[track_caller]
fn all_same(got: &[f64], want: &[f64], room: f64) {
    assert_eq!(got.len(), want.len());
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= room, "{index}: {got}, not {want}");
    }
}

#[test]
fn retrieval_with_several_positives_is_that_of_clip_benchmark() {
    let golden = golden();
    let (images, texts) = (golden.f32s("input.images"), golden.f32s("input.texts"));
    let to_text: Vec<Vec<usize>> = (0..24).map(|i| (3 * i..3 * i + 3).collect()).collect();
    let to_image: Vec<Vec<usize>> = (0..72).map(|i| vec![i / 3]).collect();
    for (name, ranking) in [
        (
            "image_to_text",
            rank_positives(&images, &texts, 12, &to_text),
        ),
        (
            "text_to_image",
            rank_positives(&texts, &images, 12, &to_image),
        ),
    ] {
        let want = &golden.config[name];
        for (k, got) in ranking.recall.iter().enumerate() {
            same(*got, &want["recall"][k]);
        }
        same(ranking.median_rank, &want["median_rank"]);
        same(ranking.mean_rank, &want["mean_rank"]);
    }
}

#[test]
fn ties_go_to_the_smaller_index_and_queries_without_positives_do_not_count() {
    let (queries, candidates) = ([1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0, 0.0, 1.0]);
    let ranking = rank_positives(&queries, &candidates, 2, &[vec![1, 2], vec![]]);
    assert_eq!(ranking.recall, [0.0, 1.0, 1.0]);
    assert_eq!((ranking.median_rank, ranking.mean_rank), (2.0, 2.0));
    // With one positive each it is the paired recall.
    let rows = [0.6, 0.8, 1.0, 0.0, 0.0, 1.0];
    let paired = recall(&rows, &rows, 2);
    let own: Vec<Vec<usize>> = (0..3).map(|i| vec![i]).collect();
    let ranking = rank_positives(&rows, &rows, 2, &own);
    assert_eq!(paired.image_to_text, ranking.recall);
    assert_eq!(paired.median_rank, ranking.median_rank);
}

#[test]
fn zero_shot_classes_of_several_prompts_are_those_of_open_clip() {
    let golden = golden();
    let classes = class_features(&golden.f32s("input.prompts"), 16, 4);
    let (test, tested) = (golden.f32s("input.test"), labels(&golden, "input.tested"));
    for (index, most) in [1, 5].into_iter().enumerate() {
        let got = classify_among(&test, &classes, 16, &tested, most);
        same(got, &golden.config["zero_shot"][index]);
    }
}

#[test]
fn neighbours_vote_as_in_scikit_learn() {
    let golden = golden();
    let train = golden.f32s("input.train");
    let train = (&train[..], &labels(&golden, "input.labels")[..]);
    let ten = Neighbours {
        count: 10,
        ..Neighbours::default()
    };
    let predicted = ten.classify(train, &golden.f32s("input.test"), 16, 9);
    assert_eq!(predicted, labels(&golden, "input.neighbours_predict"));
    let one = Neighbours { count: 1, ..ten };
    assert_eq!(one.classify(train, train.0, 16, 9), train.1);
    assert_eq!(accuracy(&[1, 2, 3, 4], &[1, 2, 0, 0]), 0.5);
}

#[test]
fn the_linear_probe_is_scikit_learns_ridge() {
    let golden = golden();
    let labels = labels(&golden, "input.labels");
    let probe = LinearProbe::fit(&golden.f32s("input.train"), 16, &labels, 9, 0.05);
    let test = golden.f32s("input.test");
    all_same(&probe.scores(&test), golden.floats("value.ridge"), 1e-9);
    let best = |row: &[f64]| (0..9).max_by(|i, j| row[*i].total_cmp(&row[*j])).unwrap();
    let want: Vec<usize> = golden.floats("value.ridge").chunks(9).map(best).collect();
    assert_eq!(probe.classify(&test), want);
}

#[test]
fn distances_between_clouds_are_those_of_pot_and_scipy() {
    let golden = golden();
    let [a, b, c] = ["a", "b", "c"].map(|name| golden.f32s(&format!("input.{name}")));
    let want = &golden.config;
    same(nearest_neighbour_distance(&a, &c, 10), &want["nearest"]);
    same(mean_distance(&a, &c, 10), &want["mean_distance"]);
    same(exact_wasserstein(&a, &b, 10), &want["exact"]);
    let directions = golden.floats("value.directions").chunks(10);
    let directions: Vec<Vec<f64>> = directions.map(<[f64]>::to_vec).collect();
    same(
        sliced_wasserstein_along(&a, &b, 10, &directions),
        &want["sliced"],
    );
    same(
        sliced_wasserstein_along(&a, &c, 10, &directions),
        &want["sliced_unequal"],
    );
    for epsilon in [8.0, 2.0] {
        let settings = Sinkhorn {
            epsilon,
            most_rounds: 20_000,
            tolerance: 1e-11,
        };
        let got = sinkhorn_divergence(&a, &c, 10, &settings);
        let want = want[&format!("sinkhorn_{epsilon:.1}")].as_f64().unwrap();
        // Both stop a little before the plan is exact.
        assert!((got - want).abs() < 1e-7 * want, "{got} instead of {want}");
    }
}

#[test]
fn distances_of_a_cloud_from_itself_are_zero_and_grow_with_a_shift() {
    let golden = golden();
    let a = golden.f32s("input.a");
    let settings = Sinkhorn {
        epsilon: 0.5,
        most_rounds: 1000,
        tolerance: 1e-9,
    };
    assert_eq!(exact_wasserstein(&a, &a, 10), 0.0);
    assert_eq!(sinkhorn_divergence(&a, &a, 10, &settings), 0.0);
    assert_eq!(sliced_wasserstein(&a, &a, 10, 0), 0.0);
    assert_eq!(nearest_neighbour_distance(&a, &a, 10), 0.0);
    // Every point moves by (10, 0, …): that is the plan's cost, whatever the smoothing.
    let moved: Vec<f32> = (0..a.len())
        .map(|i| if i % 10 == 0 { a[i] + 10.0 } else { a[i] })
        .collect();
    let exact = exact_wasserstein(&a, &moved, 10);
    assert!((exact - 10.0).abs() < 1e-6, "{exact}");
    // The rounds end a little before the plan is exact.
    let smooth = sinkhorn_divergence(&a, &moved, 10, &settings);
    assert!((smooth - 100.0).abs() < 0.01, "{smooth}");
}

#[test]
fn the_plane_of_largest_variance_is_scikit_learns() {
    let golden = golden();
    let plane = Principal::fit(&golden.f32s("input.b"), 10, 2);
    let projected = plane.project(&golden.f32s("input.a"));
    let projected: Vec<f64> = projected.into_iter().map(f64::from).collect();
    // Coordinates are rounded to f32.
    all_same(&projected, golden.floats("value.plane"), 1e-6);
    for (got, want) in plane
        .variances
        .iter()
        .zip(golden.config["variances"].as_array().unwrap())
    {
        same(*got, want);
    }
}

#[test]
fn gap_alignment_uniformity_and_cka_follow_their_papers() {
    let golden = golden();
    let (images, texts) = (
        golden.f32s("input.unit_images"),
        golden.f32s("input.unit_texts"),
    );
    same(modality_gap(&images, &texts, 8), &golden.config["gap"]);
    same(alignment(&images, &texts, 8), &golden.config["alignment"]);
    same(uniformity(&images, 8), &golden.config["uniformity"]);
    let (x, y) = (golden.f32s("input.x"), golden.f32s("input.y"));
    same(linear_cka(&x, 7, &y, 11), &golden.config["cka"]);
    // A rotation by a quarter turn, a scale and a shift change nothing.
    let turned: Vec<f32> = y
        .chunks(11)
        .flat_map(|row| {
            let mut row: Vec<f32> = row.iter().map(|x| 3.0 * x).collect();
            (row[0], row[1]) = (-row[1], row[0]);
            row.into_iter().map(|x| x + 2.0).collect::<Vec<_>>()
        })
        .collect();
    let got = linear_cka(&turned, 11, &y, 11);
    assert!((got - 1.0).abs() < 1e-6, "{got}");
    assert_eq!(linear_cka(&[1.0; 60], 2, &y, 11), 0.0);
}

#[test]
fn answers_are_compared_as_the_independent_rules_say() {
    let golden = golden();
    for (answer, want) in golden.config["answers"].as_object().unwrap() {
        assert_eq!(normalise_answer(answer), want.as_str().unwrap(), "{answer}");
    }
    assert!(answers_match("The Owl.", "owl") && !answers_match("owl", "eagle owl"));
}

/// Power is what it says: how often the test finds an effect that is there.
#[test]
fn power_is_how_often_simulated_experiments_find_an_effect() {
    const RUNS: usize = 4000;
    let mut stream = Stream::of_seed(2);
    for (effect, count) in [(0.0, 5), (1.0, 4), (0.9, 12)] {
        let found = (0..RUNS).filter(|_| {
            let differences: Vec<f64> = (0..count).map(|_| effect + stream.normal()).collect();
            let test = paired_test(&differences, &vec![0.0; count]);
            test.p.is_some_and(|p| p < 0.05)
        });
        let (found, wanted) = (
            found.count() as f64 / RUNS as f64,
            power(effect, count, 0.05),
        );
        // Four standard errors of a share of the runs.
        let budget = 4.0 * (wanted * (1.0 - wanted) / RUNS as f64).sqrt();
        assert!(
            (found - wanted).abs() < budget,
            "{count} seeds, {effect}: {found}, {wanted}"
        );
    }
    assert!(
        (power(0.0, 7, 0.05) - 0.05).abs() < 1e-6,
        "without an effect, the level"
    );
    for count in [2, 3, 8, 24] {
        for level in [0.05, 0.025] {
            let effect = detectable_effect(count, level, 0.8);
            assert!((power(effect, count, level) - 0.8).abs() < 1e-6);
        }
    }
    // In a test it is in the units of the differences, from their spread.
    let test = paired_test(&[1.0, 2.0, 3.0], &[0.0; 3]);
    let wanted = detectable_effect(3, 0.05, 0.8);
    assert!(
        (test.detectable.unwrap() - wanted).abs() < 1e-9,
        "a deviation of 1"
    );
    assert_eq!(paired_test(&[1.0, 2.0], &[0.0, 1.0]).detectable, None);
}

#[test]
fn holm_multiplies_each_p_by_the_tests_that_are_left() {
    let same = |p: &[Option<f64>], want: &[Option<f64>]| {
        for (found, want) in holm(p).iter().zip(want) {
            match (found, want) {
                (Some(found), Some(want)) => assert!((found - want).abs() < 1e-12),
                other => assert_eq!(other, (&None, &None)),
            }
        }
    };
    // By hand: 0.01 · 4, 0.02 · 3, then 0.03 · 2 = 0.06 and 0.04 · 1, which is not below the one before it.
    let p = [0.04, 0.01, 0.03, 0.02].map(Some);
    same(&p, &[0.06, 0.04, 0.06, 0.06].map(Some));
    same(&[Some(0.7), Some(0.6)], &[Some(1.0), Some(1.0)]);
    same(&[None, Some(0.02)], &[None, Some(0.04)]);
}

#[test]
fn intervals_and_the_paired_test_are_scipys() {
    let golden = golden();
    let (a, b) = (
        golden.floats("input.seeds_a"),
        golden.floats("input.seeds_b"),
    );
    let test = paired_test(a, b);
    let want = &golden.config["paired"];
    same(test.difference.mean, &want["mean"]);
    same(test.difference.half_width.unwrap(), &want["half_width"]);
    same(test.p.unwrap(), &want["p"]);
    for (freedom, want) in golden.config["quantiles"].as_object().unwrap() {
        same(student_quantile(0.975, freedom.parse().unwrap()), want);
    }
    assert_eq!(interval(&[0.5]).half_width, None);
    assert_eq!(paired_test(&[1.0, 2.0], &[0.0, 1.0]).p, None);
    // Equal but for rounding.
    assert_eq!(paired_test(&[0.287, 0.272], &[0.302, 0.287]).p, None);
}

#[test]
fn drift_is_told_by_module_and_block() {
    let spec = |name: &str| ParameterSpec {
        name: name.to_owned(),
        shape: [2].into(),
        init: Init::Constant(0.0),
        decays: false,
    };
    let names = [
        "vision.blocks.0.norm1.weight",
        "vision.blocks.1.norm1.weight",
        "language.x",
    ];
    let layout = ParameterLayout::new(&names.map(spec));
    let mut before = vec![0.0f32; layout.elements()];
    let place = |name: &str| layout.get(name).unwrap().offset;
    before[place(names[0])] = 3.0;
    before[place(names[1])] = 4.0;
    let mut after = before.clone();
    after[place(names[0])] = 3.0 + 2.0;
    after[place(names[1]) + 1] = 1.5;
    let drift = weight_drift(&layout, &before, &after);
    let told: Vec<(&str, f64, f64)> = drift
        .iter()
        .map(|drift| (drift.group.as_str(), drift.distance, drift.relative))
        .collect();
    assert_eq!(
        told,
        [
            ("vision", 2.5, 0.5),
            ("vision.blocks.0", 2.0, 2.0 / 3.0),
            ("vision.blocks.1", 1.5, 1.5 / 4.0),
            ("language", 0.0, 0.0),
        ]
    );
}

#[test]
fn intervals_take_the_values_of_one_name_as_one_draw() {
    let values = [0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0];
    let names: Vec<String> = (0..8).map(|index| index.to_string()).collect();
    let alone = names.iter().map(String::as_str).zip(values);
    let (plain, named) = (interval(&values), clustered_interval(alone));
    assert_eq!((plain.count, plain.mean), (named.count, named.mean));
    let close = |a: Option<f64>, b: Option<f64>| (a.unwrap() - b.unwrap()).abs() < 1e-12;
    assert!(close(plain.half_width, named.half_width));
    // Every value twice under one name says no more than once: the same interval, and not one by √2 narrower.
    let twice = names.iter().map(String::as_str).zip(values);
    let twice = twice.flat_map(|pair| [pair, pair]);
    let twice = clustered_interval(twice);
    assert_eq!(twice.count, 16);
    assert!(close(plain.half_width, twice.half_width));
    // By hand: three pictures with sums of deviations −1, 0.5 and 0.5 from a mean of 1/2, of 6 answers.
    let by_hand = [
        ("a", 0.0),
        ("a", 0.0),
        ("b", 1.0),
        ("b", 0.5),
        ("c", 1.0),
        ("c", 0.5),
    ];
    let error = (3.0f64 / 2.0 * (1.0 + 0.25 + 0.25)).sqrt() / 6.0;
    let wanted = student_quantile(0.975, 2.0) * error;
    assert!(close(
        clustered_interval(by_hand.into_iter()).half_width,
        Some(wanted)
    ));
    let test = clustered_test(by_hand.into_iter());
    assert!(test.p.unwrap() > 0.05 && close(test.difference.half_width, Some(wanted)));
    assert_eq!(
        clustered_interval([("a", 1.0), ("a", 0.0)].into_iter()).half_width,
        None
    );
    assert_eq!(clustered_test([("a", 0.0), ("b", 0.0)].into_iter()).p, None);
}
