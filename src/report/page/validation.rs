//! How the stages did on held-out samples: curves beside those of training, and what the model said of some of the samples.

use serde_json::Value;

use super::chart::{Chart, Line};
use super::html::{details, table};
use super::record::RunRecord;
use crate::table::Table;
use crate::validation::summary;

/// Curves, the table, and answers; nothing for a run without validations.
pub(super) fn validations(record: &RunRecord) -> String {
    let table_of_stages = summary(record);
    if table_of_stages.rows.len() == 1 {
        return String::new();
    }
    let held_out = |name: &str, key: &str, factor: f64| Line {
        name: name.to_owned(),
        pieces: record.validation_pieces(key, factor),
    };
    let chart = |title: &str, unit: &str, lines: Vec<Line>| {
        let lines: Vec<Line> = lines
            .into_iter()
            .filter(|line| !line.pieces.is_empty())
            .collect();
        if lines.is_empty() {
            return String::new();
        }
        Chart {
            title: title.to_owned(),
            unit: unit.to_owned(),
            along: "optimiser step".to_owned(),
            lines,
            bands: record.bands(),
            places: Vec::new(),
            is_log: false,
        }
        .figure()
    };
    let trained = Line {
        name: "training".to_owned(),
        pieces: record.pieces("loss", 1.0),
    };
    let charts = [
        chart(
            "Loss on held-out samples and in training",
            "nats, as each stage weighs its losses",
            vec![held_out("held out", "loss", 1.0), trained],
        ),
        chart(
            "Losses on held-out samples by what is asked",
            "nats",
            vec![
                held_out("next token", "loss.next_token", 1.0),
                held_out("captions", "loss.captions", 1.0),
                held_out("questions", "loss.questions", 1.0),
                held_out("text", "loss.text", 1.0),
                held_out("contrastive", "loss.contrastive", 1.0),
            ],
        ),
        chart(
            "Retrieval among held-out samples",
            "%",
            vec![
                held_out("captions by images, R@1", "image_to_text_r1", 100.0),
                held_out("captions by images, R@5", "image_to_text_r5", 100.0),
                held_out("images by captions, R@1", "text_to_image_r1", 100.0),
                held_out("images by captions, R@5", "text_to_image_r5", 100.0),
            ],
        ),
    ];
    let mut html = format!("<div class=\"charts\">{}</div>\n", charts.concat());
    html += &table(
        "Held-out samples by stage (R@1: images → captions | captions → images)",
        &table_of_stages,
    );
    html + &answers(record)
}

/// What the model said of held-out samples at the end of each stage.
fn answers(record: &RunRecord) -> String {
    let stages = record.recipe.stages.iter().filter_map(|stage| {
        let (step, row) = record.validations.get(&stage.name)?.last_key_value()?;
        let rows = row["generated"].as_array()?;
        let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let heads = [
            "sample",
            "question",
            "answer of the data",
            "answer of the model",
        ];
        let mut all = vec![heads.map(str::to_owned).to_vec()];
        let keys = ["key", "question", "expected", "answer"];
        all.extend(
            rows.iter()
                .map(|row| keys.map(|key| text(row, key)).to_vec()),
        );
        let caption = format!("{}, after {step} steps", stage.name);
        let shown = table(&caption, &Table { rows: all });
        Some(details(&format!("Answers after {}", stage.name), &shown))
    });
    stages.collect()
}
