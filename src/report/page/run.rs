//! The page of one run.

use std::fmt::Write as _;

use super::html::{Section, data_address, details, page, table};
use super::layers::layers;
use super::qualitative::{attention, clouds, finds};
use super::record::RunRecord;
use super::results::{curves, evaluations, tiles};
use super::validation::validations;
use crate::measurement_tables;
use crate::refinement::refinement_lines;
use crate::table::Table;
use keel_base::units::{bytes, flops, grouped};
use keel_engine::program::escape;

/// Everything about a run as one HTML page that needs no other file.
pub fn run_page(record: &RunRecord) -> String {
    let mut sections = Vec::new();
    let mut add = |id: &'static str, title: &str, body: String| {
        if !body.is_empty() {
            sections.push(Section {
                id,
                title: title.to_owned(),
                body,
            });
        }
    };
    add("summary", "In short", summary(record));
    add("training", "Training", training(record));
    add("held-out", "On held-out samples", validations(record));
    add(
        "worth",
        "What each stage was worth",
        evaluations(&record.evaluations),
    );
    let found = record.qualitative.last().map_or(String::new(), |last| {
        let html = finds(last);
        if html.is_empty() {
            html
        } else {
            format!("<p>After {}.</p>\n{html}", escape(&last.stage))
        }
    });
    add("examples", "Images and their captions", found);
    add(
        "attention",
        "Where it looks",
        attention(&record.qualitative),
    );
    add(
        "tokens",
        "Visual tokens on their way to text",
        clouds(&record.qualitative),
    );
    add("layers", "Where in the tower it pays", layers(record));
    add("memory", "Memory", memory(record));
    add("profile", "Where a step's time goes", profiles(record));
    add("measured", "Measured later", measured(record));
    add("warnings", "Warnings and skipped data", warnings(record));
    add("again", "How to do it again", again(record));
    let name = format!("Keel run {}", record.name());
    page(&name, &lead(record), &sections)
}

fn lead(record: &RunRecord) -> String {
    let last = record.starts.last();
    let text = |key: &str| {
        let value = last.and_then(|row| row[key].as_str());
        value.unwrap_or("unknown").to_owned()
    };
    format!(
        "<p>Recipe <b>{}</b>, seed {}, on {}{}, by Keel {}.</p>",
        escape(&record.recipe.name),
        record.recipe.seed,
        escape(&text("device")),
        last.and_then(instructions)
            .map_or(String::new(), |path| format!(", {}", escape(path))),
        escape(&text("version"))
    )
}

/// The instruction path that a process computed with.
fn instructions(start: &serde_json::Value) -> Option<&str> {
    start["inputs"]["instructions"].as_str()
}

/// Whether every stage was trained to its end.
fn is_whole(record: &RunRecord) -> bool {
    record.recipe.stages.iter().all(|stage| {
        let done = record.last_step(&stage.name).map(|(step, _)| step);
        let ended = record.ended_early(&stage.name);
        done.is_some() && (record.planned(&stage.name) == done || ended == done)
    })
}

fn summary(record: &RunRecord) -> String {
    let mut html = String::new();
    if !is_whole(record) {
        html += "<p><b>The run has not come to its end.</b> What follows is what there is so far; <code>keel train --resume</code> goes on.</p>\n";
    }
    let tiles = tiles(&record.evaluations);
    if let Some(last) = record.evaluations.last()
        && !tiles.is_empty()
    {
        let _ = writeln!(html, "<p>After stage <b>{}</b>:</p>", escape(&last.stage));
        html += "<ul class=\"tiles\">";
        for (number, words) in tiles {
            let _ = write!(
                html,
                "<li><b>{}</b><span>{}</span></li>",
                escape(&number),
                escape(&words)
            );
        }
        html += "</ul>\n";
    }
    for line in refinement_lines(&record.recipe, &record.evaluations) {
        let _ = writeln!(html, "<p>{}.</p>", escape(&line));
    }
    let mut rows = vec![
        [
            "stage",
            "trains",
            "parameters",
            "steps done",
            "batch",
            "work a step",
            "last loss",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for stage in &record.recipe.stages {
        let row = record.stages.get(&stage.name);
        let number = |key: &str| row.and_then(|row| row[key].as_f64());
        let last = record.last_step(&stage.name);
        let done = last.map_or(0, |(step, _)| step);
        let loss = last.and_then(|(_, row)| row["loss"].as_f64());
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
        rows.push(vec![
            stage.name.clone(),
            stage.trained_parts(),
            or_dash(number("parameters_trained").map(|count| grouped(count as u64))),
            match record.planned(&stage.name) {
                Some(steps) => format!("{done} of {steps}"),
                None => "not begun".to_owned(),
            },
            stage.batch_size.to_string(),
            or_dash(number("flops").map(flops)),
            or_dash(loss.map(|loss| format!("{loss:.4}"))),
        ]);
    }
    html + &table("Stages", &Table { rows })
}

fn training(record: &RunRecord) -> String {
    if record.steps.is_empty() {
        "<p>No step has been reported yet.</p>\n".to_owned()
    } else {
        curves(record)
    }
}

fn memory(record: &RunRecord) -> String {
    let mut rows = vec![
        [
            "stage",
            "parameters",
            "gradients",
            "moments",
            "activations",
            "÷ lower bound",
            "total",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    let validates = record
        .stages
        .values()
        .any(|row| row.get("validation_bytes").is_some());
    if validates {
        rows[0].push("validation beside it".to_owned());
    }
    for stage in &record.recipe.stages {
        let Some(row) = record.stages.get(&stage.name) else {
            continue;
        };
        let number = |key: &str| row[key].as_u64().unwrap_or(0);
        let parts = [
            "parameter_bytes",
            "gradient_bytes",
            "moment_bytes",
            "activation_bytes",
        ]
        .map(number);
        let bound = number("lower_bound_bytes").max(1) as f64;
        let mut cells = vec![stage.name.clone()];
        cells.extend(parts.map(bytes));
        cells.push(format!("{:.3}", parts[3] as f64 / bound));
        cells.push(bytes(parts.iter().sum()));
        if validates {
            cells.push(bytes(number("validation_bytes")));
        }
        rows.push(cells);
    }
    if rows.len() == 1 {
        return String::new();
    }
    let mut html = table(
        "Bytes by stage, planned before the first step",
        &Table { rows },
    );
    for (index, (stage, svg)) in record.memory.iter().enumerate() {
        let name = escape(stage);
        let drawing = format!(
            "<div class=\"scroll\"><img class=\"memory\" alt=\"The memory of one step of {name}: address upwards, time to the right\" src=\"{}\"></div>\n",
            data_address("image/svg+xml", svg)
        );
        html += &if index + 1 == record.memory.len() {
            drawing
        } else {
            details(&format!("Memory of {stage}"), &drawing)
        };
    }
    html
}

fn profiles(record: &RunRecord) -> String {
    let parts = record.profiles.iter().map(|(stage, svg, tables)| {
        format!(
            "<h3>{0}</h3>\n<div class=\"scroll\"><img class=\"memory\" alt=\"One step of {0}, part by part and op by op\" src=\"{1}\"></div>\n{2}",
            escape(stage),
            data_address("image/svg+xml", svg),
            details("Tables", &format!("<pre tabindex=\"0\">{}</pre>\n", escape(tables.trim())))
        )
    });
    parts.collect()
}

fn measured(record: &RunRecord) -> String {
    let parts = record.measurements.iter().map(|(checkpoint, measured)| {
        let tables = measurement_tables(measured);
        let body = format!("<pre tabindex=\"0\">{}</pre>\n", escape(&tables));
        details(&format!("Checkpoint {checkpoint}"), &body)
    });
    parts.collect()
}

fn warnings(record: &RunRecord) -> String {
    let mut lines: Vec<String> = record.warnings.clone();
    if record.unreadable > 0 {
        lines.push(format!(
            "{} rows of metrics.jsonl could not be read and are left out here.",
            record.unreadable
        ));
    }
    let mut before = None;
    for start in &record.starts {
        let path = instructions(start);
        if let Some(place) = start["resumed_at"].as_str() {
            let other = path.zip(before).filter(|(path, before)| path != before);
            let other = other.map_or(String::new(), |(path, before)| {
                format!(", on the instruction path {path} after {before}")
            });
            lines.push(format!("Continued at {place}{other}."));
        }
        before = path;
    }
    if lines.is_empty() {
        return "<p>None: no step was left out, no sample skipped, no checkpoint passed over.</p>\n"
            .to_owned();
    }
    let items = lines
        .iter()
        .map(|line| format!("<li>{}</li>", escape(line)));
    format!(
        "<ul class=\"warnings\">{}</ul>\n",
        items.collect::<String>()
    )
}

fn again(record: &RunRecord) -> String {
    let uses_data = record
        .recipe
        .stages
        .iter()
        .any(|stage| stage.data.contains_key("samples"));
    let data = if uses_data { " --data …" } else { "" };
    format!(
        "<p>The same version of Keel, device and settings give the same bits:</p>\n<pre tabindex=\"0\">keel train --recipe {}/recipe.toml{data} --out again</pre>\n{}",
        escape(&record.path.display().to_string()),
        details(
            "recipe.toml, every default written out",
            &format!(
                "<pre tabindex=\"0\">{}</pre>\n",
                escape(&record.recipe.to_toml())
            )
        )
    )
}
