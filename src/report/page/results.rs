//! Curves of training and what each stage was worth.

use super::chart::{Chart, Line};
use super::html::table;
use super::record::RunRecord;
use crate::table::{distances, images, questions};
use keel_eval::{Evaluation, SetEvaluation};

/// Losses, rates, norms and speeds over all steps.
pub(super) fn curves(record: &RunRecord) -> String {
    let line = |name: &str, key: &str, factor: f64| Line {
        name: name.to_owned(),
        pieces: record.pieces(key, factor),
    };
    let chart = |title: &str, unit: &str, is_log: bool, lines: Vec<Line>| {
        let lines = lines.into_iter().filter(|line| !line.pieces.is_empty());
        Chart {
            title: title.to_owned(),
            unit: unit.to_owned(),
            along: "optimiser step".to_owned(),
            lines: lines.collect(),
            bands: record.bands(),
            places: Vec::new(),
            is_log,
        }
        .figure()
    };
    let charts = [
        chart(
            "Losses",
            "nats",
            false,
            vec![
                line("next token", "loss.next_token", 1.0),
                line("contrastive", "loss.contrastive", 1.0),
                line("distillation", "loss.distillation", 1.0),
            ],
        ),
        chart(
            "Learning rate",
            "a step",
            false,
            vec![line("learning rate", "learning_rate", 1.0)],
        ),
        chart(
            "Norm of the gradient before clipping",
            "logarithmic",
            true,
            vec![line("gradient norm", "gradient_norm", 1.0)],
        ),
        chart(
            "Share of the machine's peak",
            "% of its multiply-adds",
            false,
            vec![line("share of peak", "share_of_peak", 100.0)],
        ),
        chart(
            "Images a second",
            "images a second",
            false,
            vec![Line {
                // Stages without images have no such speed.
                pieces: record
                    .pieces("images_per_second", 1.0)
                    .into_iter()
                    .filter(|piece| piece.iter().any(|point| point[1] > 0.0))
                    .collect(),
                name: "images".to_owned(),
            }],
        ),
        chart(
            "Text tokens a second",
            "tokens a second",
            false,
            vec![line("text tokens", "tokens_per_second", 1.0)],
        ),
    ];
    format!("<div class=\"charts\">{}</div>\n", charts.concat())
}

/// One number of every evaluation that has it, over stages.
fn over_stages(
    evaluations: &[Evaluation],
    name: String,
    of: impl Fn(&Evaluation) -> Option<f64>,
) -> Line {
    let all = evaluations.iter().enumerate();
    let points = all.filter_map(|(index, e)| Some([index as f64, of(e)?]));
    Line {
        name,
        pieces: vec![points.collect()],
    }
}

/// Charts of what each stage was worth, and the tables.
pub(super) fn evaluations(all: &[Evaluation]) -> String {
    if all.is_empty() {
        return "<p>No stage has been evaluated.</p>\n".to_owned();
    }
    let places: Vec<String> = all.iter().map(|e| e.stage.clone()).collect();
    let chart = |title: &str, unit: &str, lines: Vec<Line>| {
        Chart {
            title: title.to_owned(),
            unit: unit.to_owned(),
            along: "stage".to_owned(),
            lines: lines
                .into_iter()
                .filter(|l| !l.pieces[0].is_empty())
                .collect(),
            bands: Vec::new(),
            places: places.clone(),
            is_log: false,
        }
        .figure()
    };
    let sets: Vec<(String, String)> = all.first().map_or(Vec::new(), |first| {
        let sets = first.sets.iter();
        sets.map(|set| (set.vendor.clone(), set.split.clone()))
            .collect()
    });
    let of_sets = |of: &dyn Fn(&SetEvaluation) -> Option<f64>| -> Vec<Line> {
        sets.iter()
            .map(|(vendor, split)| {
                over_stages(all, format!("{vendor}, {split} concepts"), |e| {
                    let mut sets = e.sets.iter();
                    of(sets.find(|s| (&s.vendor, &s.split) == (vendor, split))?)
                })
            })
            .collect()
    };
    let recall = of_sets(&|set| Some(100.0 * set.recall.as_ref()?.image_to_text[0]));
    let zero_shot = of_sets(&|set| Some(100.0 * set.zero_shot?));
    let captions = of_sets(&|set| set.caption_loss);
    let vendors: Vec<String> = all.last().map_or(Vec::new(), |e| {
        e.questions.iter().map(|q| q.set()).collect()
    });
    let mut asked = Vec::new();
    for vendor in &vendors {
        let found = |e: &Evaluation| e.questions.iter().find(|q| q.set() == *vendor).cloned();
        asked.push(over_stages(all, vendor.clone(), |e| {
            Some(100.0 * found(e)?.accuracy)
        }));
        asked.push(over_stages(
            all,
            format!("{vendor}, guessed without the image"),
            |e| Some(100.0 * found(e)?.text_only),
        ));
    }
    let near = vec![
        over_stages(all, "nearest text token, unit length".into(), |e| {
            e.nearest_neighbour
        }),
        over_stages(all, "sliced Wasserstein, unit length".into(), |e| {
            e.sliced_wasserstein
        }),
    ];
    let plane = vec![over_stages(all, "nearest in the plane".into(), |e| {
        e.plane_nearest
    })];
    let charts = [
        chart("Captions found by images, R@1", "%", recall),
        chart("Zero-shot classes", "% right", zero_shot),
        chart("Loss of captions", "nats a token", captions),
        chart("Questions answered exactly", "%", asked),
        chart(
            "Distance of visual from text tokens",
            "in the language model's space",
            near,
        ),
        chart(
            "Distance in the plane (SAIL-VL2, Table 7)",
            "plane units",
            plane,
        ),
    ];
    let mut html = format!("<div class=\"charts\">{}</div>\n", charts.concat());
    html += &table(
        "Images: R@1 and R@5 as images → captions | captions → images, chance in brackets",
        &images(all),
    );
    let asked = questions(all);
    if asked.rows.len() > 1 {
        html += &table(
            "Questions answered exactly (in brackets: the blind baseline, which sees no image)",
            &asked,
        );
    }
    let near = distances(all);
    if near.rows.len() > 1 {
        html += &table("Distance of visual from text tokens", &near);
    }
    html
}

/// The most telling numbers of the last evaluation, as tiles; from where they came in brackets.
pub(super) fn tiles(all: &[Evaluation]) -> Vec<(String, String)> {
    let Some(last) = all.last() else {
        return Vec::new();
    };
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    let mut tiles = Vec::new();
    for question in &last.questions {
        tiles.push((
            percent(question.accuracy),
            format!(
                "of questions on {} scenes answered exactly; {} by guessing without the image",
                question.set(),
                percent(question.text_only)
            ),
        ));
    }
    let held_out = last.sets.iter().find(|set| set.split == "held-out");
    if let Some(set) = held_out.or(last.sets.first()) {
        let of = format!("{}, {} concepts", set.vendor, set.split);
        if let Some(share) = set.zero_shot {
            let chance = percent(1.0 / set.classes.max(1) as f64);
            tiles.push((
                percent(share),
                format!("of {of} classed rightly without a probe; chance is {chance}"),
            ));
        }
        if let Some(recall) = &set.recall {
            let chance = 100.0 / set.count.max(1) as f64;
            tiles.push((
                percent(recall.image_to_text[0]),
                format!("of {of} find their caption first; chance is {chance:.1} %"),
            ));
        }
    }
    let nearest: Vec<(&str, f64)> = all
        .iter()
        .filter_map(|e| Some((e.stage.as_str(), e.nearest_neighbour?)))
        .collect();
    if let (Some((first, from)), Some((last, to))) = (nearest.first(), nearest.last())
        && first != last
    {
        tiles.push((
            format!("{to:.3}"),
            format!("from a visual token to the nearest text token after {last}; {from:.3} after {first}"),
        ));
    }
    tiles
}
