//! The table of a benchmark's score.

use super::table::Table;
use keel_eval::{BenchmarkScore, Score};

/// Accuracy over all, by kind of answer and by category.
pub fn benchmark_table(score: &BenchmarkScore) -> String {
    let mut rows = vec![
        [
            "questions",
            "count",
            "right",
            "accuracy",
            "by guessing",
            "too long",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    let mut add = |name: &str, score: &Score| {
        let percent = |part: f64| format!("{:.1} %", 100.0 * part / score.count.max(1) as f64);
        rows.push(vec![
            name.to_owned(),
            score.count.to_string(),
            score.right.to_string(),
            percent(score.right as f64),
            percent(score.chance),
            score.too_long.to_string(),
        ]);
    };
    add("all", &score.all);
    for (kind, score) in &score.by_kind {
        add(kind, score);
    }
    for (category, score) in &score.by_category {
        add(&format!("category {category}"), score);
    }
    Table { rows }.render()
}
