//! `keel eval`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::values::{count, evaluation_images, named};
use super::{ComputeArgs, announce, heading, print_line, print_warnings};
use keel_base::error::{Error, Result};
use keel_engine::executor::SelectedDevice;
use keel_eval::{BenchmarkComparison, Measurements, Metric, Wording, metrics_of};
use keel_report::{benchmark_table, comparison_text, measurement_tables, stage_table};
use keel_train::{AnsweredBenchmark, EvalRun, EvalTower, write_measurements};

/// Options of `keel eval`.
#[derive(Debug, Args)]
pub(super) struct EvalArgs {
    /// A run's folder (its newest checkpoint is evaluated) or one checkpoint; or a Hugging Face folder, whose vision tower is
    /// evaluated alone: neighbours, linear-probe, two-layer-probe, attentive-probe and cka.
    run: PathBuf,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Evaluate the checkpoint at the end of this stage instead of the newest one.
    #[arg(long, value_name = "STAGE", help_heading = heading::EVALUATION)]
    stage: Option<String>,
    /// Evaluate the exponential moving average of the weights that the checkpoint's stage trained, which a stage with ema_decay
    /// keeps.
    #[arg(long, help_heading = heading::EVALUATION)]
    ema: bool,
    /// Metrics to measure in place of the stage table, separated by commas: retrieval, zero-shot, neighbours, linear-probe,
    /// two-layer-probe, attentive-probe, captions, questions, text-questions, distances, space, cka, layers, drift, robustness; or all. The results
    /// are also written to the run's folder evaluations/.
    #[arg(long, value_name = "LIST", help_heading = heading::EVALUATION)]
    metrics: Option<String>,
    /// Run a benchmark file in VLMEvalKit's layout (.tsv) and score it by VLMEvalKit's rules; the answers are written to
    /// evaluations/.
    #[arg(long, value_name = "FILE", conflicts_with = "metrics", help_heading = heading::EVALUATION)]
    bench: Option<PathBuf>,
    /// Prompt style of benchmark questions: plain, or vlmevalkit with its options and instruction [default: plain for a model
    /// with the embedded tokenizer, otherwise vlmevalkit].
    #[arg(long, value_name = "STYLE", value_parser = named(&Wording::ALL, Wording::name), requires = "bench",
        help_heading = heading::EVALUATION)]
    wording: Option<Wording>,
    /// Answer the benchmark with this run too, and compare the two question by question.
    #[arg(long, value_name = "RUN", requires = "bench", help_heading = heading::EVALUATION)]
    against: Option<PathBuf>,
    /// Images per evaluation set, at most.
    #[arg(long, value_name = "N", value_parser = evaluation_images, default_value = "200", help_heading = heading::EVALUATION)]
    images: u64,
    /// Image resolution for a Hugging Face folder, if it differs from the tower's own.
    #[arg(long, value_name = "PIXELS", value_parser = count, conflicts_with_all = ["bench", "stage"],
        help_heading = heading::EVALUATION)]
    image_size: Option<usize>,
    /// Print the numbers as JSON.
    #[arg(long, help_heading = heading::EVALUATION)]
    json: bool,
}

/// Measures a folder's tower; nothing is written there.
fn run_tower(
    args: &EvalArgs,
    metrics: Option<Vec<Metric>>,
    compute: &SelectedDevice,
) -> Result<()> {
    if args.bench.is_some() || args.stage.is_some() {
        return Err(Error::setting(
            if args.bench.is_some() {
                "--bench"
            } else {
                "--stage"
            },
            "a run of Keel; a tower alone answers nothing and has no stages",
            args.run.display(),
        ));
    }
    if args.ema {
        return Err(Error::setting(
            "--ema",
            "a run of Keel, whose stages can keep averages",
            args.run.display(),
        ));
    }
    let is_all = args
        .metrics
        .as_deref()
        .is_none_or(|list| list.trim() == "all");
    let metrics = metrics.unwrap_or(Metric::ALL.to_vec());
    let tower = EvalTower::open(&args.run, args.image_size, compute)?;
    let measured = tower.measure(&metrics, args.images as usize, is_all);
    print_warnings(&tower.take_warnings());
    let measured = measured?;
    if args.json {
        let text = serde_json::to_string_pretty(&measured.measurements);
        return print_line(text.expect("measurements are plain data"));
    }
    announce(compute)?;
    print_line(format!(
        "tower: {}, images of {} pixels\n",
        args.run.display(),
        tower.image_size()
    ))?;
    print_line(measurement_tables(&measured.measurements))
}

pub(super) fn run(args: &EvalArgs) -> Result<()> {
    let metrics = args.metrics.as_deref().map(metrics_of).transpose()?;
    let compute = args.compute.choose()?;
    if EvalTower::is_one(&args.run) {
        return run_tower(args, metrics, &compute);
    }
    if args.image_size.is_some() {
        return Err(Error::setting(
            "--image-size",
            "a Hugging Face folder to measure",
            args.run.display(),
        ));
    }
    let run = match &args.stage {
        Some(stage) => EvalRun::open_stage(&args.run, stage, &compute)?,
        None => EvalRun::open(&args.run, &compute)?,
    };
    let run = match args.ema {
        true => run.with_averages()?,
        false => run,
    };
    let outcome = run_checkpoint(args, metrics, &compute, &run);
    print_warnings(&run.take_warnings());
    outcome
}

/// Answers a benchmark with another run too, and compares the two.
fn compare(
    args: &EvalArgs,
    (run, answered): (&EvalRun, &AnsweredBenchmark),
    against: &Path,
    (bench, wording, compute): (&Path, Wording, &SelectedDevice),
) -> Result<()> {
    let other = EvalRun::open(against, compute)?;
    let second = other.answer_benchmark(bench, wording)?;
    print_warnings(&other.take_warnings());
    let compared = BenchmarkComparison::of(&answered.items, &second.items);
    if args.json {
        let all = serde_json::json!({
            "first": answered.score(),
            "second": second.score(),
            "comparison": compared,
        });
        return print_line(serde_json::to_string_pretty(&all).expect("scores are plain data"));
    }
    announce(compute)?;
    for (run, answered) in [(run, answered), (&other, &second)] {
        print_line(format!("checkpoint: {}\n", run.path().display()))?;
        print_line(benchmark_table(&answered.score()))?;
        print_line(format!("\nanswers in {}\n", answered.kept.display()))?;
    }
    let name = |path: &Path| path.display().to_string();
    print_line(comparison_text(&name(&args.run), &name(against), &compared))
}

/// Measures a run's checkpoint.
fn run_checkpoint(
    args: &EvalArgs,
    metrics: Option<Vec<Metric>>,
    compute: &SelectedDevice,
    run: &EvalRun,
) -> Result<()> {
    let say_where = || -> Result<()> {
        announce(compute)?;
        let averages = if args.ema { ", averages" } else { "" };
        print_line(format!("checkpoint: {}{averages}\n", run.path().display()))
    };
    if let Some(bench) = &args.bench {
        let wording = args.wording.unwrap_or(run.default_wording());
        let answered = run.answer_benchmark(bench, wording)?;
        if let Some(against) = &args.against {
            return compare(args, (run, &answered), against, (bench, wording, compute));
        }
        if args.json {
            let text = serde_json::to_string_pretty(&answered.score());
            return print_line(text.expect("a score is plain data"));
        }
        say_where()?;
        print_line(benchmark_table(&answered.score()))?;
        return print_line(format!("\nanswers in {}", answered.kept.display()));
    }
    let Some(metrics) = metrics else {
        let evaluation = run.evaluate(args.images as usize)?;
        if args.json {
            let text = serde_json::to_string_pretty(&evaluation);
            return print_line(text.expect("an evaluation is plain data"));
        }
        say_where()?;
        return print_line(stage_table(&[evaluation]));
    };
    let is_all = args
        .metrics
        .as_deref()
        .is_some_and(|list| list.trim() == "all");
    if !args.json {
        say_where()?;
    }
    let mut all = Measurements::default();
    let mut path = None;
    // One after the other, so that what was measured is kept when a later one fails.
    // Probes share a table.
    for group in metrics.chunk_by(|a, b| a.is_probe() && b.is_probe()) {
        let measured = run.measure(group, args.images as usize, is_all)?;
        let kept = write_measurements(&run.result_path(), &measured.measurements)?;
        all.update(&measured.measurements);
        if args.json {
            continue;
        }
        for (metric, why) in &measured.left_out {
            print_line(format!("left out {}: {why}\n", metric.name()))?;
        }
        if measured.left_out.len() < group.len() {
            print_line(format!("{}\n", measurement_tables(&measured.measurements)))?;
        }
        path = Some(kept);
    }
    if args.json {
        let text = serde_json::to_string_pretty(&all).expect("measurements are plain data");
        return print_line(text);
    }
    match path {
        Some(path) => print_line(format!("kept in {}", path.display())),
        None => Ok(()),
    }
}
