//! The tables of everything that was measured of a checkpoint.

use super::table::Table;
use keel_data::eval_set::SetName;
use keel_eval::{Measurements, Ranking, WeightDrift};

fn set(name: &SetName) -> String {
    format!("{}, {} concepts", name.vendor, name.split)
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn row(cells: impl IntoIterator<Item = String>) -> Vec<String> {
    cells.into_iter().collect()
}

fn header(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// Every table that `measurements` have numbers for, under headings.
pub fn measurement_tables(measurements: &Measurements) -> String {
    let parts = [
        retrieval(measurements),
        zero_shot(measurements),
        probes(measurements),
        captions(measurements),
        questions(measurements),
        text_questions(measurements),
        distances(measurements),
        spaces(measurements),
        cka(measurements),
        layers(measurements),
        drift(measurements),
        robustness(measurements),
    ];
    let shown = parts
        .into_iter()
        .filter(|(_, table)| table.rows.len() > 1)
        .map(|(title, table)| format!("{title}\n\n{}", table.render()));
    shown.collect::<Vec<_>>().join("\n\n")
}

fn retrieval(measurements: &Measurements) -> (String, Table) {
    let mut rows = vec![header(&[
        "set",
        "direction",
        "R@1",
        "R@5",
        "R@10",
        "median rank",
        "mean rank",
    ])];
    for measure in &measurements.retrieval {
        let both: [(&str, &Ranking); 2] = [
            ("image → captions", &measure.image_to_text),
            ("caption → image", &measure.text_to_image),
        ];
        for (direction, ranking) in both {
            let mut cells = vec![set(&measure.set), direction.to_owned()];
            cells.extend(ranking.recall.map(percent));
            cells.push(format!("{:.1}", ranking.median_rank));
            cells.push(format!("{:.1}", ranking.mean_rank));
            rows.push(cells);
        }
    }
    let sizes = measurements
        .retrieval
        .first()
        .map_or(String::new(), |first| {
            format!(" ({} images, {} captions)", first.images, first.captions)
        });
    (
        format!("Retrieval with several captions an image{sizes}"),
        Table { rows },
    )
}

fn zero_shot(measurements: &Measurements) -> (String, Table) {
    let mut rows = vec![header(&["set", "prompts read by", "top-1", "top-5"])];
    rows.extend(measurements.zero_shot.iter().map(|measure| {
        row([
            set(&measure.set),
            format!("the {}", measure.text),
            percent(measure.top_1),
            percent(measure.top_5),
        ])
    }));
    let sizes = measurements
        .zero_shot
        .first()
        .map_or(String::new(), |first| {
            format!(" ({} images, {} classes)", first.images, first.classes)
        });
    (format!("Zero-shot classes{sizes}"), Table { rows })
}

fn probes(measurements: &Measurements) -> (String, Table) {
    let mut sets: Vec<&SetName> = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    for probe in &measurements.probes {
        if !sets.contains(&&probe.set) {
            sets.push(&probe.set);
        }
        if !names.contains(&probe.probe.as_str()) {
            names.push(&probe.probe);
        }
    }
    let heads = sets.iter().map(|name| set(name));
    let mut rows = vec![row(std::iter::once("probe".to_owned()).chain(heads))];
    for name in names {
        let cells = sets.iter().map(|set| {
            let found = measurements
                .probes
                .iter()
                .find(|probe| probe.probe == name && &&probe.set == set);
            found.map_or("–".into(), |probe| percent(probe.accuracy))
        });
        rows.push(row(std::iter::once(name.to_owned()).chain(cells)));
    }
    let title = "Classes by probes fitted on noto, train concepts".to_owned();
    (title, Table { rows })
}

fn captions(measurements: &Measurements) -> (String, Table) {
    let mut rows = vec![header(&["set", "tokens", "nats a token", "perplexity"])];
    rows.extend(measurements.captions.iter().map(|measure| {
        row([
            set(&measure.set),
            measure.tokens.to_string(),
            format!("{:.3}", measure.loss),
            format!("{:.2}", measure.perplexity),
        ])
    }));
    ("Captions".to_owned(), Table { rows })
}

fn questions(measurements: &Measurements) -> (String, Table) {
    let mut rows = vec![header(&[
        "style",
        "question",
        "count",
        "exact",
        "normalised",
        "without an image",
    ])];
    rows.extend(measurements.questions.iter().map(|measure| {
        row([
            measure.set.vendor.clone(),
            measure.kind.replace('_', " "),
            measure.count.to_string(),
            percent(measure.exact),
            percent(measure.normalised),
            percent(measure.text_only),
        ])
    }));
    (
        "Questions, answered by greedy generation".to_owned(),
        Table { rows },
    )
}

fn text_questions(measurements: &Measurements) -> (String, Table) {
    let mut rows = vec![header(&["question", "count", "right"])];
    rows.extend(measurements.text_questions.iter().map(|measure| {
        row([
            measure.kind.replace('_', " "),
            measure.count.to_string(),
            percent(measure.share),
        ])
    }));
    (
        "Questions, answered from the facts as text".to_owned(),
        Table { rows },
    )
}

fn distances(measurements: &Measurements) -> (String, Table) {
    let mut rows = vec![header(&[
        "space",
        "nearest",
        "mean",
        "Wasserstein-1",
        "sliced Wasserstein-2",
        "Sinkhorn",
    ])];
    rows.extend(measurements.distances.iter().map(|measure| {
        let numbers = [
            measure.nearest,
            measure.mean,
            measure.exact,
            measure.sliced,
            measure.sinkhorn,
        ];
        let numbers = numbers.map(|number| format!("{number:.4}"));
        row(std::iter::once(measure.space.clone()).chain(numbers))
    }));
    let sizes = measurements
        .distances
        .first()
        .map_or(String::new(), |first| {
            format!(" ({} visual, {} text)", first.visual, first.text)
        });
    (
        format!("Distances of visual from text tokens{sizes}"),
        Table { rows },
    )
}

fn spaces(measurements: &Measurements) -> (String, Table) {
    let mut rows = vec![header(&[
        "space",
        "pairs",
        "gap",
        "alignment",
        "uniformity of images",
        "of captions",
    ])];
    rows.extend(measurements.spaces.iter().map(|measure| {
        row([
            measure.space.clone(),
            measure.pairs.to_string(),
            format!("{:.3}", measure.gap),
            format!("{:.3}", measure.alignment),
            format!("{:.3}", measure.image_uniformity),
            format!("{:.3}", measure.text_uniformity),
        ])
    }));
    ("Contrastive spaces".to_owned(), Table { rows })
}

fn cka(measurements: &Measurements) -> (String, Table) {
    let mut rows = Vec::new();
    if let Some(cka) = &measurements.cka {
        let layers = (0..cka.layers.len()).map(|layer| format!("block {layer}"));
        rows.push(row(std::iter::once("against".to_owned()).chain(layers)));
        let numbers = |all: &[f64]| -> Vec<String> {
            all.iter().map(|number| format!("{number:.3}")).collect()
        };
        for (layer, likeness) in cka.layers.iter().enumerate() {
            let first = std::iter::once(format!("block {layer}"));
            rows.push(row(first.chain(numbers(likeness))));
        }
        for (stage, likeness) in &cka.stages {
            let first = std::iter::once(format!("the same block after {stage}"));
            rows.push(row(first.chain(numbers(likeness))));
        }
    }
    (
        "Likeness of mean tokens (linear CKA)".to_owned(),
        Table { rows },
    )
}

fn layers(measurements: &Measurements) -> (String, Table) {
    let mut rows = Vec::new();
    if let Some(first) = measurements.layers.first() {
        let sets = first.linear_probe.iter().map(|(name, _)| set(name));
        let mut heads = row(std::iter::once("block".to_owned()).chain(sets));
        if first.plane_nearest.is_some() {
            heads.push("distance from text in the plane".to_owned());
        }
        rows.push(heads);
    }
    for measure in &measurements.layers {
        let shares = measure.linear_probe.iter();
        let shares = shares.map(|(_, share)| percent(*share));
        let mut cells = row(std::iter::once(measure.block.to_string()).chain(shares));
        cells.extend(measure.plane_nearest.map(|near| format!("{near:.4}")));
        rows.push(cells);
    }
    let title = "Each block of the tower: classes by a linear probe, and distance from text";
    (title.to_owned(), Table { rows })
}

fn robustness(measurements: &Measurements) -> (String, Table) {
    let mut rows = Vec::new();
    if let Some(first) = measurements.robustness.first() {
        let mut heads = header(&["corruption", "number"]);
        heads.extend((0..first.recall_1.len()).map(|severity| match severity {
            0 => "none".to_owned(),
            severity => format!("severity {severity}"),
        }));
        rows.push(heads);
    }
    for measure in &measurements.robustness {
        for (name, curve) in [
            ("R@1", &measure.recall_1),
            ("zero-shot", &measure.zero_shot),
            ("linear probe", &measure.linear_probe),
        ] {
            let mut cells = vec![measure.corruption.clone(), name.to_owned()];
            cells.extend(curve.iter().map(|share| percent(*share)));
            rows.push(cells);
        }
    }
    (
        "Corrupted images (noto, train concepts)".to_owned(),
        Table { rows },
    )
}

fn drift(measurements: &Measurements) -> (String, Table) {
    let mut rows = Vec::new();
    if let Some(first) = measurements.drift.first() {
        let stages = measurements.drift.iter().map(|drift| drift.stage.clone());
        rows.push(row(std::iter::once("module".to_owned()).chain(stages)));
        let cell = |drift: Option<&WeightDrift>| {
            drift.map_or("–".into(), |drift| {
                if drift.relative.is_finite() {
                    percent(drift.relative)
                } else {
                    format!("{:.3} from 0", drift.distance)
                }
            })
        };
        for group in &first.from_before {
            let cells = measurements.drift.iter().map(|stage| {
                cell(
                    stage
                        .from_before
                        .iter()
                        .find(|drift| drift.group == group.group),
                )
            });
            rows.push(row(std::iter::once(group.group.clone()).chain(cells)));
        }
    }
    let title =
        "How far parameters moved in each stage, relative to their norm before it".to_owned();
    (title, Table { rows })
}
