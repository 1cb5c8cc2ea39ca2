//! The table of a benchmark's score, and two models' answers side by side.

use super::table::Table;
use keel_eval::{BenchmarkComparison, BenchmarkScore, Score};

/// Accuracy over all, by kind of answer and by category.
pub fn benchmark_table(score: &BenchmarkScore) -> String {
    let mut rows = vec![
        [
            "questions",
            "count",
            "right",
            "accuracy",
            "95 %",
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
            score
                .half_width
                .map_or("–".to_owned(), |half| format!("± {:.1}", 100.0 * half)),
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

/// Two models' answers to the same questions in two sentences, the first called `first` and the other `second`.
pub fn comparison_text(first: &str, second: &str, compared: &BenchmarkComparison) -> String {
    let difference = compared.test.difference;
    let half = difference.half_width;
    let interval = half.map_or(String::new(), |half| format!(" ± {:.1}", 100.0 * half));
    let p = compared.test.p.map_or(String::new(), |p| match p < 0.001 {
        true => ", p < 0.001".to_owned(),
        false => format!(", p = {p:.3}"),
    });
    format!(
        "{first} less {second}: {:+.1}{interval} points{p}, by a paired test with the questions about one image as one draw.\n\
         Right in {first} alone: {}; in {second} alone: {}.",
        100.0 * difference.mean,
        compared.only_first,
        compared.only_second
    )
}
