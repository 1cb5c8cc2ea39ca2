//! The tables of an ablation, as markdown.

use keel_eval::{COMPARED, Compared, Interval};
use keel_train::{AblationResults, ArmSummary, MetricSummary};

/// The tables of an ablation: every number by arm with its 95 % interval, then each arm's difference from the one it is
/// tested against.
pub fn ablation_table(results: &AblationResults) -> String {
    let plan = &results.plan;
    let seeds = if results.quick {
        &plan.quick.seeds
    } else {
        &plan.seeds
    };
    let mut text = format!(
        "## {}{}\n\n{}\n\n",
        plan.name,
        if results.quick { ", quick form" } else { "" },
        plan.question
    );
    let mut begun = String::new();
    for (part, folder) in [
        ("towers", &plan.weights.vision),
        ("language models", &plan.weights.language),
    ] {
        if let Some(folder) = folder {
            begun += &format!(", {part} from {}", folder.display());
        }
    }
    if !plan.data.is_empty() {
        begun += &format!(", pairs of {}", plan.data.join(" and "));
    }
    text += &format!(
        "Recipe {}{begun}, seeds {}; {} of {} runs done. Means over seeds with 95 % intervals (Student); the arrow says which way \
         is better.\n\n",
        plan.recipe,
        seeds
            .iter()
            .map(u64::to_string)
            .collect::<Vec<_>>()
            .join(", "),
        results.units.len(),
        plan.arms.len() * seeds.len(),
    );
    let arms: Vec<&ArmSummary> = results.arms.iter().collect();
    let mut rows = vec![header("", arms.iter().map(|arm| arm.arm.clone()))];
    let flops = arms.iter().map(|arm| format!("{:.2}", arm.flops / 1e12));
    rows.push(header("TFLOP before the target stage", flops));
    rows.extend(by_metric(&arms, |metric, compared| {
        value(&metric.interval, compared)
    }));
    text += &markdown(&rows);
    let tested: Vec<&ArmSummary> = arms
        .into_iter()
        .filter(|arm| arm.against.is_some())
        .collect();
    if tested.is_empty() {
        return text;
    }
    text += "\nDifference from the arm it is tested against, seed by seed, with the p of the paired t-test:\n\n";
    let heads = tested.iter().map(|arm| {
        let against = arm.against.as_deref().unwrap_or_default();
        format!("{} − {against}", arm.arm)
    });
    let mut rows = vec![header("", heads)];
    rows.extend(by_metric(&tested, difference));
    text + &markdown(&rows)
}

fn header(first: &str, cells: impl Iterator<Item = String>) -> Vec<String> {
    std::iter::once(first.to_owned()).chain(cells).collect()
}

/// One row for each number that any of `arms` has.
fn by_metric(
    arms: &[&ArmSummary],
    cell: impl Fn(&MetricSummary, &Compared) -> String,
) -> Vec<Vec<String>> {
    COMPARED
        .iter()
        .filter(|compared| {
            arms.iter()
                .any(|arm| arm.metrics.contains_key(compared.name))
        })
        .map(|compared| {
            let arrow = if compared.more_is_better {
                '↑'
            } else {
                '↓'
            };
            let cells = arms.iter().map(|arm| {
                let metric = arm.metrics.get(compared.name);
                metric.map_or("–".into(), |metric| cell(metric, compared))
            });
            header(&format!("{} {arrow}", compared.heading), cells)
        })
        .collect()
}

fn markdown(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        text += &format!("| {} |\n", row.join(" | "));
        if index == 0 {
            text += &format!("|{}\n", "---|".repeat(row.len()));
        }
    }
    text
}

fn value(interval: &Interval, compared: &Compared) -> String {
    let number = |x: f64| {
        if compared.is_share {
            format!("{:.1}", 100.0 * x)
        } else {
            format!("{x:.3}")
        }
    };
    let unit = if compared.is_share { " %" } else { "" };
    match interval.half_width {
        Some(half) => format!("{} ± {}{unit}", number(interval.mean), number(half)),
        None => format!("{}{unit}", number(interval.mean)),
    }
}

fn difference(metric: &MetricSummary, compared: &Compared) -> String {
    let Some(test) = &metric.test else {
        return "–".into();
    };
    let sign = if test.difference.mean >= 0.0 { "+" } else { "" };
    let p = test.p.map_or(String::new(), |p| format!(" (p {p:.2})"));
    format!("{sign}{}{p}", value(&test.difference, compared))
}
