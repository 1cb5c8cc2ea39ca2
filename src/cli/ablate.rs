//! `keel ablate`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::run_data::RunData;
use super::terminal::Terminal;
use super::values::{Validate, named, validate};
use super::{ComputeArgs, DataArgs, Failure, WeightsArgs, announce, heading, print_line};
use keel_base::clock::Clock;
use keel_base::error::{Error, Result};
use keel_base::units::{duration, flops};
use keel_eval::Wording;
use keel_report::{ablation_table, power_table};
use keel_train::{Ablation, AblationOptions, AblationPlan, AblationResults, write_results};

/// Options of `keel ablate`.
#[derive(Debug, Args)]
pub(super) struct AblateArgs {
    /// A built-in plan (strategies, sizes, architectures, data-scales, panels) or the path of a TOML file.
    #[arg(value_name = "PLAN")]
    plan: String,
    #[command(flatten)]
    weights: WeightsArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Compare arms by held-out samples, in place of the embedded sets: a share of --data, split off by the samples' keys (2%), or data
    /// of their own. What the target stage is validated on at its end.
    #[arg(long, value_name = "SHARE|SPEC", value_parser = validate, help_heading = heading::DATA)]
    validate: Option<Validate>,
    /// Compare arms by a benchmark in VLMEvalKit's layout (.tsv) too, or instead, answered after every target stage.
    #[arg(long, value_name = "FILE", help_heading = heading::EVALUATION)]
    bench: Option<PathBuf>,
    /// Prompt style of benchmark questions: plain, or vlmevalkit with its options and instruction [default: as keel eval].
    #[arg(long, value_name = "STYLE", value_parser = named(&Wording::ALL, Wording::name), help_heading = heading::EVALUATION)]
    wording: Option<Wording>,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Run the plan's short form: under a quarter of an hour on 2 cores for the built-in ones.
    #[arg(long, help_heading = heading::RUN)]
    quick: bool,
    /// Folder of the runs and results, new, empty or of this ablation, which then continues [default: runs/ablate-PLAN, or
    /// runs/ablate-PLAN-quick with --quick].
    #[arg(long, value_name = "DIR", help_heading = heading::RUN)]
    out: Option<PathBuf>,
    /// Run units again whose results are of other data or weights, or were computed on another device; otherwise they are
    /// refused.
    #[arg(long, help_heading = heading::EXPERT)]
    accept_changes: bool,
    /// Print which differences the plan's seeds can show, run nothing.
    #[arg(long, conflicts_with = "dry_run", help_heading = heading::RUN)]
    power: bool,
    /// Print what would be run and its compute, run nothing.
    #[arg(long, help_heading = heading::RUN)]
    dry_run: bool,
}

pub(super) fn run(args: &AblateArgs) -> Result<(), Failure> {
    let under_way = Clock::default().start();
    let compute = args.compute.choose()?;
    let plan = AblationPlan::load(&args.plan, |plan| {
        plan.weights = args.weights.over(std::mem::take(&mut plan.weights));
        if !args.data.specs.is_empty() {
            plan.data.clone_from(&args.data.specs);
        }
        if let Some(given) = &args.validate {
            plan.validate = Some(given.to_string());
        }
        plan.benchmark = args.bench.clone().or(plan.benchmark.take());
        plan.wording = args.wording.or(plan.wording);
    })?;
    let out = args.out.clone().unwrap_or_else(|| {
        let quick = if args.quick { "-quick" } else { "" };
        PathBuf::from("runs").join(format!("ablate-{}{quick}", plan.name))
    });
    announce(&compute)?;
    print_line(format!("plan: {}: {}", plan.name, plan.question))?;
    for note in plan.weight_notes()? {
        print_line(note)?;
    }
    let options = AblationOptions {
        compute,
        out: out.clone(),
        quick: args.quick,
        accept_changes: args.accept_changes,
        observer: Arc::new(Terminal::default()),
    };
    let held_out = match &plan.validate {
        Some(text) => Some(validate(text).map_err(|problem| {
            Error::setting(format!("plan {}: validate", plan.name), problem.want, text)
        })?),
        None => None,
    };
    let bad = args.data.max_bad_samples;
    let RunData { pairs, held_out } = RunData::open(&plan.data, bad, held_out.as_ref())?;
    let ablation = Ablation::new(plan, options, pairs, held_out)?;
    if args.power {
        let table = power_table(ablation.plan(), args.quick, &ablation.results()?)?;
        print_line(table)?;
        return Ok(());
    }
    if args.dry_run {
        return Ok(print_units(&ablation)?);
    }
    print_line(format!("results: {}", out.display()))?;
    let keep = |results: &AblationResults| write_results(&out, results, &ablation_table(results));
    let results = ablation.run(keep).map_err(|problem| {
        Failure::while_running(match problem {
            // What is there stays; the reader should know how to go on.
            Error::Stopped {
                what,
                problem,
                remedy,
            } => Error::stopped(
                what,
                problem,
                format!("{remedy}; the results so far are in {}", out.display()),
            ),
            other => other,
        })
    })?;
    let table = ablation_table(&results);
    write_results(&out, &results, &table)?;
    let seconds = under_way.elapsed().as_secs();
    print_line(format!(
        "\n{table}\n{}; results.json and table.md are in {}",
        duration(seconds),
        out.display()
    ))?;
    refuse_broken_controls(&results)
}

/// An arm that cannot differ from another and does shows that the arms were not compared as they should have been.
fn refuse_broken_controls(results: &AblationResults) -> Result<(), Failure> {
    let broken = results.equal.iter().find(|held| !held.differing.is_empty());
    let Some(held) = broken else {
        return Ok(());
    };
    Err(Failure::while_running(Error::stopped(
        format!("the control {}", held.arm),
        format!(
            "it differs from {}, which has the same towers, in {}",
            held.equals,
            held.differing.join(", ")
        ),
        "do not read the other differences before the cause is known",
    )))
}

fn print_units(ablation: &Ablation) -> Result<()> {
    for unit in ablation.units() {
        let steps: Vec<String> = unit
            .recipe
            .stages
            .iter()
            .map(|stage| format!("{} {}", stage.name, stage.steps.unwrap_or(0)))
            .collect();
        let named = unit.targets.iter().filter(|form| !form.name.is_empty());
        let forms = named.map(|form| {
            let steps = form.stage.steps.unwrap_or(0);
            format!("; target {}: {} × {steps} steps", form.name, form.draws)
        });
        let forms: Vec<String> = forms.collect();
        print_line(format!(
            "{}, seed {}: {} before the target stage ({} in refinement); steps: {}{}",
            unit.arm,
            unit.seed,
            flops(unit.warm_flops + unit.refinement_flops),
            flops(unit.refinement_flops),
            steps.join(", "),
            forms.concat()
        ))?;
    }
    Ok(())
}
