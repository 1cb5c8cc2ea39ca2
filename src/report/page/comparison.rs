//! The page that puts runs side by side.

use std::collections::{BTreeMap, BTreeSet};

use super::chart::{Chart, Line};
use super::html::{Section, page, table};
use super::record::RunRecord;
use crate::table::Table;
use keel_eval::Evaluation;

/// Runs side by side as one HTML page that needs no other file: where their settings differ, their losses stage by stage,
/// and what each stage was worth in each.
pub fn comparison_page(records: &[RunRecord]) -> String {
    let names = names(records);
    let sections = [
        Section {
            id: "settings",
            title: "Where the settings differ".into(),
            body: settings(records, &names),
        },
        Section {
            id: "losses",
            title: "Losses".into(),
            body: losses(records, &names),
        },
        Section {
            id: "worth",
            title: "What each stage was worth".into(),
            body: worth(records, &names),
        },
    ];
    let title = format!("Keel runs {}", names.join(", "));
    page(
        &title,
        "<p>The same sets of images and questions in every run; one seed each unless the runs are several seeds of one recipe: small differences are noise.</p>",
        &sections,
    )
}

/// The runs' names; paths where two have the same.
fn names(records: &[RunRecord]) -> Vec<String> {
    let names: Vec<String> = records.iter().map(RunRecord::name).collect();
    let distinct: BTreeSet<&String> = names.iter().collect();
    if distinct.len() == names.len() {
        names
    } else {
        records
            .iter()
            .map(|r| r.path.display().to_string())
            .collect()
    }
}

/// Every setting of a recipe by its path; stages by name.
fn flat(record: &RunRecord) -> BTreeMap<String, String> {
    fn walk(path: &str, value: &toml::Value, all: &mut BTreeMap<String, String>) {
        let below = |name: &str| {
            if path.is_empty() {
                name.to_owned()
            } else {
                format!("{path}.{name}")
            }
        };
        match value {
            toml::Value::Table(entries) => {
                for (name, value) in entries {
                    walk(&below(name), value, all);
                }
            }
            toml::Value::Array(items) if items.iter().all(toml::Value::is_table) => {
                for (index, item) in items.iter().enumerate() {
                    let name = item.get("name").and_then(toml::Value::as_str);
                    let name = name.map_or(index.to_string(), str::to_owned);
                    walk(&below(&name), item, all);
                }
            }
            value => {
                all.insert(path.to_owned(), value.to_string());
            }
        }
    }
    let mut all = BTreeMap::new();
    if let Ok(value) = record.recipe.to_toml().parse::<toml::Table>() {
        walk("", &toml::Value::Table(value), &mut all);
    }
    let devices = record.starts.last().and_then(|row| row["device"].as_str());
    all.insert("(device)".into(), devices.unwrap_or("unknown").to_owned());
    all
}

/// Each name once, in the order in which they come first.
fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = BTreeSet::new();
    names.filter(|name| seen.insert(*name)).collect()
}

fn header(first: &str, names: &[String]) -> Vec<String> {
    let mut header = vec![first.to_owned()];
    header.extend(names.iter().cloned());
    header
}

fn settings(records: &[RunRecord], names: &[String]) -> String {
    let all: Vec<BTreeMap<String, String>> = records.iter().map(flat).collect();
    let keys: BTreeSet<&String> = all.iter().flat_map(BTreeMap::keys).collect();
    let mut rows = vec![header("setting", names)];
    for key in keys {
        let values: Vec<Option<&String>> = all.iter().map(|settings| settings.get(key)).collect();
        if values.windows(2).any(|pair| pair[0] != pair[1]) {
            let mut row = vec![key.clone()];
            row.extend(
                values
                    .iter()
                    .map(|v| v.map_or("–".to_owned(), |v| v.to_string())),
            );
            rows.push(row);
        }
    }
    match rows.len() {
        1 => "<p>Nowhere.</p>\n".to_owned(),
        _ => table(
            "Settings that are not the same in all runs",
            &Table { rows },
        ),
    }
}

fn losses(records: &[RunRecord], names: &[String]) -> String {
    let stages = records.iter().flat_map(|record| &record.recipe.stages);
    let stages = distinct(stages.map(|stage| stage.name.as_str()));
    let mut html = String::new();
    for stage in stages {
        for (key, what) in [
            ("loss.next_token", "next token"),
            ("loss.contrastive", "contrastive"),
            ("loss.distillation", "distillation"),
        ] {
            let line = |(record, name): (&RunRecord, &String)| {
                let steps = record.steps.get(stage)?.iter();
                let points = steps.filter_map(|(step, row)| {
                    let value = row.get(key)?.as_f64()?;
                    Some([*step as f64, value])
                });
                Some(Line {
                    name: name.clone(),
                    pieces: vec![points.collect()],
                })
            };
            let chart = Chart {
                title: format!("{stage}, {what}"),
                unit: "nats".into(),
                along: "optimiser step".into(),
                lines: records.iter().zip(names).filter_map(line).collect(),
                bands: Vec::new(),
                places: Vec::new(),
                is_log: false,
            };
            html += &chart.figure();
        }
    }
    if html.is_empty() {
        "<p>No step has been reported yet.</p>\n".to_owned()
    } else {
        format!("<div class=\"charts\">{html}</div>\n")
    }
}

fn worth(records: &[RunRecord], names: &[String]) -> String {
    let evaluations = records.iter().flat_map(|record| &record.evaluations);
    let stages = distinct(evaluations.map(|evaluation| evaluation.stage.as_str()));
    let mut html = String::new();
    for stage in stages {
        let of = |record: &RunRecord| -> BTreeMap<String, f64> {
            let mut all = record.evaluations.iter();
            let found = all.find(|evaluation| evaluation.stage == stage);
            found.map_or(BTreeMap::new(), |e: &Evaluation| {
                let scalars = e.scalars().into_iter();
                scalars
                    .map(|(name, value)| (name.replace("evaluation/", ""), value))
                    .collect()
            })
        };
        let all: Vec<BTreeMap<String, f64>> = records.iter().map(of).collect();
        let metrics: BTreeSet<&String> = all.iter().flat_map(BTreeMap::keys).collect();
        let mut rows = vec![header("metric", names)];
        for metric in metrics {
            let mut row = vec![metric.replace('_', " ")];
            let cell = |values: &BTreeMap<String, f64>| {
                values
                    .get(metric)
                    .map_or("–".to_owned(), |v| format!("{v:.4}"))
            };
            row.extend(all.iter().map(cell));
            rows.push(row);
        }
        html += &table(&format!("After {stage}"), &Table { rows });
    }
    if html.is_empty() {
        "<p>No stage has been evaluated.</p>\n".to_owned()
    } else {
        html
    }
}
