//! What a run's stages were worth on held-out samples, from the rows of their validations.

use serde_json::Value;

use super::page::RunRecord;
use super::table::Table;

/// The validations of each stage in one row: before its first step, after its last one, and where its loss was lowest. Nothing
/// for a run without validations.
pub fn validation_table(record: &RunRecord) -> Option<String> {
    let table = summary(record);
    (table.rows.len() > 1).then(|| {
        format!(
            "Held-out samples (R@1: images → captions | captions → images)\n\n{}",
            table.render()
        )
    })
}

/// As [`validation_table`], as a table.
pub(super) fn summary(record: &RunRecord) -> Table {
    let heads = [
        "stage",
        "samples",
        "validations",
        "loss before",
        "after",
        "lowest",
        "at step",
        "R@1 before",
        "after",
        "best checkpoint",
    ];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for stage in &record.recipe.stages {
        let Some(validations) = record.validations.get(&stage.name) else {
            continue;
        };
        let (Some(first), Some(last)) =
            (validations.first_key_value(), validations.last_key_value())
        else {
            continue;
        };
        let loss = |row: &Value| row["loss"].as_f64();
        let losses = validations.iter();
        let losses = losses.filter_map(|(step, row)| Some((*step, loss(row)?)));
        let lowest = losses.min_by(|(_, one), (_, other)| one.total_cmp(other));
        let best = validations.iter().rev();
        let mut best = best.filter(|(_, row)| row["is_best"] == true);
        rows.push(vec![
            stage.name.clone(),
            last.1["samples"].to_string(),
            validations.len().to_string(),
            number(loss(first.1)),
            number(loss(last.1)),
            number(lowest.map(|(_, loss)| loss)),
            lowest.map_or("–".to_owned(), |(step, _)| step.to_string()),
            recall(first.1),
            recall(last.1),
            match (best.next(), stage.validated().and_then(|of| of.best_by)) {
                (Some((step, _)), Some(metric)) => {
                    format!("step {step}, by {}", metric.name())
                }
                _ => "–".to_owned(),
            },
        ]);
    }
    Table { rows }
}

fn number(value: Option<f64>) -> String {
    value.map_or("–".into(), |value| format!("{value:.4}"))
}

/// Recall at 1 in both directions; a dash where it was not measured.
fn recall(row: &Value) -> String {
    let share = |key: &str| row[key].as_f64().map(|share| 100.0 * share);
    match (share("image_to_text_r1"), share("text_to_image_r1")) {
        (Some(forward), Some(backward)) => format!("{forward:.1} | {backward:.1} %"),
        _ => "–".to_owned(),
    }
}
