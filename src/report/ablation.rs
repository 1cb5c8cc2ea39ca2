//! The tables of an ablation, as markdown.

use std::collections::BTreeSet;

use keel_base::error::{Error, Result};
use keel_eval::{COMPARED, Compared, Interval, LEVEL, POWER, PairedTest, detectable_effect, power};
use keel_train::{
    AblationPlan, AblationResults, ArmSummary, EqualArms, MetricSummary, PrimaryResult,
    form_and_metric,
};

/// The tables of an ablation: every number by arm with its 95 % interval, then each arm's difference from the one it is
/// tested against.
pub fn ablation_table(results: &AblationResults) -> String {
    let plan = &results.plan;
    let seeds = results.seeds();
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
    if let Some(held_out) = &plan.validate {
        begun += &format!(", validated on {held_out}");
    }
    if let Some(benchmark) = &plan.benchmark {
        begun += &format!(", benchmark {}", benchmark.display());
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
        results.arms.len() * seeds.len(),
    );
    text += &primary(&results.primary);
    for held in &results.equal {
        text += &control(held);
    }
    let arms: Vec<&ArmSummary> = results.arms.iter().collect();
    let first = plan.targets.first().map_or("", |form| form.name.as_str());
    if plan.targets.len() > 1 {
        text += &format!("### Target {first}\n\n");
    }
    text += &tables(&arms, None);
    for form in plan.targets.iter().skip(1) {
        let prefix = format!("{}/", form.name);
        let has = |arm: &&&ArmSummary| arm.metrics.keys().any(|name| name.starts_with(&prefix));
        let arms: Vec<&ArmSummary> = arms.iter().filter(has).copied().collect();
        if !arms.is_empty() {
            text += &format!("\n### Target {}\n\n", form.name);
            text += &tables(&arms, Some(&form.name));
        }
    }
    text
}

/// The tests that the plan is decided by.
fn primary(tests: &[PrimaryResult]) -> String {
    if tests.is_empty() {
        return String::new();
    }
    let mut rows = vec![header(
        "primary test, fixed before the run",
        [
            "number",
            "seeds",
            "difference",
            "p",
            "p, Holm",
            "would have shown from",
        ]
        .map(str::to_owned)
        .into_iter(),
    )];
    for PrimaryResult {
        planned,
        test,
        adjusted_p,
    } in tests
    {
        let (form, metric) = form_and_metric(&planned.metric);
        let compared = &Compared::named(metric).expect("the plan was checked");
        let number = match form {
            Some(form) => format!("{}, {form}", compared.heading),
            None => compared.heading.to_string(),
        };
        let p = |p: Option<f64>| p.map_or("–".to_owned(), |p| format!("{p:.3}"));
        let of_test = |of: &dyn Fn(&PairedTest) -> String| test.as_ref().map_or("–".into(), of);
        let cells = [
            number,
            of_test(&|test| test.difference.count.to_string()),
            of_test(&|test| signed(&test.difference, compared)),
            of_test(&|test| p(test.p)),
            p(*adjusted_p),
            of_test(&|test| effect(test, compared).unwrap_or("–".into())),
        ];
        let name = format!("{} − {}", planned.arm, planned.against);
        rows.push(header(&name, cells.into_iter()));
    }
    markdown(&rows) + "\n"
}

/// What became of an arm that cannot differ from another.
fn control(held: &EqualArms) -> String {
    let EqualArms {
        arm,
        equals,
        seeds,
        numbers,
        differing,
    } = held;
    if differing.is_empty() {
        return format!(
            "Control: {arm} equals {equals} to the bit in all {numbers} numbers of {seeds} seeds.\n\n"
        );
    }
    format!(
        "**The comparison is broken:** {arm} cannot differ from {equals}, and does in {}.\n\n",
        differing.join(", ")
    )
}

/// The tables of one form of the target, with its name where it is not the first: every number, then the differences.
fn tables(arms: &[&ArmSummary], form: Option<&str>) -> String {
    let mut rows = vec![header("", arms.iter().map(|arm| arm.arm.clone()))];
    let flops = arms.iter().map(|arm| format!("{:.2}", arm.flops / 1e12));
    rows.push(header("TFLOP before the target stage", flops));
    let of_target = |arm: &&ArmSummary| {
        let mut forms = arm.target_flops.iter();
        let found = forms.find(|(name, _)| form.is_none_or(|form| form == name));
        found.map_or("–".into(), |(_, flops)| format!("{:.2}", flops / 1e12))
    };
    rows.push(header(
        "TFLOP in the target stage",
        arms.iter().map(of_target),
    ));
    rows.extend(by_metric(arms, form, |metric, compared| {
        value(&metric.interval, compared)
    }));
    let mut text = markdown(&rows);
    let has_test = |arm: &&ArmSummary| arm.metrics.values().any(|metric| metric.test.is_some());
    let tested: Vec<&ArmSummary> = arms.iter().copied().filter(has_test).collect();
    if tested.is_empty() {
        return text;
    }
    text += &format!(
        "\nDifference from the arm it is tested against, seed by seed, with the p of the paired t-test, and the smallest true \
         difference that would have shown at p < {LEVEL} with probability {POWER}:\n\n"
    );
    let heads = tested.iter().map(|arm| {
        let against = arm.against.as_deref().unwrap_or_default();
        format!("{} − {against}", arm.arm)
    });
    let mut rows = vec![header("", heads)];
    rows.extend(by_metric(&tested, form, difference));
    text + &markdown(&rows)
}

/// What a plan can see, before it is run: the smallest difference that shows, for several spreads between seeds and several
/// numbers of seeds, and the power for the smallest difference that matters. With `results`, what they spread by.
///
/// # Errors
/// [`Error::Setting`] when the plan names no tests or no spread.
pub fn power_table(plan: &AblationPlan, quick: bool, results: &AblationResults) -> Result<String> {
    let sd = plan.expected_sd.ok_or_else(|| {
        let want = "the standard deviation of the tested differences between seeds";
        Error::setting("expected_sd", want, "none")
    })?;
    let test = plan.tests.first();
    let test = test.ok_or_else(|| Error::setting("test", "at least one", "none"))?;
    let (_, metric) = form_and_metric(&test.metric);
    let compared = &Compared::named(metric).expect("the plan was checked");
    let shown = |x: f64| number(x, compared) + unit(compared);
    let seeds = if quick {
        plan.quick.seeds.len()
    } else {
        plan.seeds.len()
    };
    let strictest = LEVEL / plan.tests.len() as f64;
    let mut text = format!(
        "{}: {seeds} seeds, {} primary tests of {}. Smallest true difference that shows with probability {POWER}, at p < {LEVEL} and, \
         in brackets, at p < {strictest}, the strictest level of Holm's correction; columns: standard deviation of a difference \
         between seeds, {} expected.\n\n",
        plan.name,
        plan.tests.len(),
        compared.heading,
        shown(sd),
    );
    let spreads = [0.5 * sd, sd, 1.5 * sd, 2.0 * sd];
    let mut rows = vec![header("seeds", spreads.into_iter().map(shown))];
    let wanted = plan.smallest_effect;
    if let Some(effect) = wanted {
        rows[0].push(format!("power for {} at {}", shown(effect), shown(sd)));
    }
    let mut counts = vec![2, 3, 5, 8, 12, 16, 24];
    counts.extend((seeds >= 2 && !counts.contains(&seeds)).then_some(seeds));
    counts.sort_unstable();
    for count in counts {
        let [plain, strict] =
            [LEVEL, strictest].map(|level| detectable_effect(count, level, POWER));
        let cells = spreads.map(|sd| format!("{} ({})", shown(plain * sd), shown(strict * sd)));
        let mark = if count == seeds { " ←" } else { "" };
        let mut row = header(&format!("{count}{mark}"), cells.into_iter());
        if let Some(effect) = wanted {
            row.push(format!("{:.2}", power(effect / sd, count, LEVEL)));
        }
        rows.push(row);
    }
    text += &markdown(&rows);
    for found in &results.primary {
        let Some(test) = found
            .test
            .as_ref()
            .filter(|test| test.difference.count >= 2)
        else {
            continue;
        };
        let (planned, count) = (&found.planned, test.difference.count);
        let spread = spread_of(&test.difference);
        text += &format!(
            "\n{} − {}: the {count} seeds that are there have a standard deviation of {}",
            planned.arm,
            planned.against,
            shown(spread)
        );
    }
    Ok(text)
}

/// The standard deviation between seeds, from the interval.
fn spread_of(interval: &Interval) -> f64 {
    let count = interval.count as f64;
    let quantile = keel_eval::student_quantile(0.975, count - 1.0);
    interval.half_width.unwrap_or(0.0) / quantile * count.sqrt()
}

fn header(first: &str, cells: impl Iterator<Item = String>) -> Vec<String> {
    std::iter::once(first.to_owned()).chain(cells).collect()
}

/// One row for each number that any of `arms` has in the form of the target.
fn by_metric(
    arms: &[&ArmSummary],
    form: Option<&str>,
    cell: impl Fn(&MetricSummary, &Compared) -> String,
) -> Vec<Vec<String>> {
    let prefix = form.map_or(String::new(), |form| format!("{form}/"));
    let measured: BTreeSet<&str> = arms
        .iter()
        .flat_map(|arm| arm.metrics.keys())
        .filter_map(|name| name.strip_prefix(prefix.as_str()))
        .filter(|name| !name.contains('/'))
        .collect();
    let known = COMPARED
        .iter()
        .filter(|known| measured.contains(&*known.name));
    let is_known = |name: &str| COMPARED.iter().any(|known| known.name == name);
    let own = measured.iter().filter(|name| !is_known(name));
    let own = own.filter_map(|name| Compared::named(name));
    known
        .cloned()
        .chain(own)
        .map(|compared| {
            let arrow = if compared.more_is_better {
                '↑'
            } else {
                '↓'
            };
            let name = format!("{prefix}{}", compared.name);
            let cells = arms.iter().map(|arm| {
                let metric = arm.metrics.get(&name);
                metric.map_or("–".into(), |metric| cell(metric, &compared))
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

fn number(x: f64, compared: &Compared) -> String {
    if compared.is_share {
        format!("{:.1}", 100.0 * x)
    } else {
        format!("{x:.3}")
    }
}

fn unit(compared: &Compared) -> &'static str {
    if compared.is_share { " %" } else { "" }
}

fn value(interval: &Interval, compared: &Compared) -> String {
    let (mean, unit) = (number(interval.mean, compared), unit(compared));
    match interval.half_width {
        Some(half) => format!("{mean} ± {}{unit}", number(half, compared)),
        None => format!("{mean}{unit}"),
    }
}

fn signed(difference: &Interval, compared: &Compared) -> String {
    let sign = if difference.mean >= 0.0 { "+" } else { "" };
    format!("{sign}{}", value(difference, compared))
}

/// The smallest difference that would have shown.
fn effect(test: &PairedTest, compared: &Compared) -> Option<String> {
    let detectable = test.detectable?;
    Some(format!(
        "{}{}",
        number(detectable, compared),
        unit(compared)
    ))
}

fn difference(metric: &MetricSummary, compared: &Compared) -> String {
    let Some(test) = &metric.test else {
        return "–".into();
    };
    let p = test.p.map_or(String::new(), |p| format!(" (p {p:.2}"));
    let end = match effect(test, compared) {
        Some(effect) => format!("; ≥ {effect})"),
        None if test.p.is_some() => ")".to_owned(),
        None => String::new(),
    };
    format!("{}{p}{end}", signed(&test.difference, compared))
}
