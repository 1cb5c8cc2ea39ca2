//! `keel ablate`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;

use super::terminal::Terminal;
use super::{ComputeArgs, DataArgs, WeightsArgs, announce, open_pairs, print_line};
use keel_base::error::{Error, Result};
use keel_report::ablation_table;
use keel_train::{Ablation, AblationOptions, AblationPlan, AblationResults, write_results};

/// Options of `keel ablate`.
#[derive(Debug, Args)]
pub(super) struct AblateArgs {
    /// A built-in plan (strategies, sizes, architectures, data-scales) or the path of a TOML file.
    #[arg(value_name = "PLAN")]
    plan: String,
    #[command(flatten)]
    weights: WeightsArgs,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    /// The plan's short form: under a quarter of an hour on 2 cores for the built-in ones.
    #[arg(long)]
    quick: bool,
    /// The folder of runs and results, runs/ablate-PLAN by default (runs/ablate-PLAN-quick with --quick). An ablation that
    /// was stopped goes on there.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Prints what would be run with what compute, runs nothing.
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(args: &AblateArgs) -> Result<()> {
    let start = Instant::now();
    let compute = args.compute.choose()?;
    let plan = AblationPlan::load(&args.plan, |plan| {
        plan.weights = args.weights.over(std::mem::take(&mut plan.weights));
        if !args.data.specs.is_empty() {
            plan.data.clone_from(&args.data.specs);
        }
    })?;
    let out = args.out.clone().unwrap_or_else(|| {
        let quick = if args.quick { "-quick" } else { "" };
        PathBuf::from("runs").join(format!("ablate-{}{quick}", plan.name))
    });
    announce(&compute)?;
    print_line(format!("plan: {}: {}", plan.name, plan.question))?;
    let options = AblationOptions {
        compute,
        out: out.clone(),
        quick: args.quick,
        observer: Arc::new(Terminal::default()),
    };
    let pairs = open_pairs(&plan.data)?;
    let ablation = Ablation::new(plan, options, pairs)?;
    if args.dry_run {
        return print_units(&ablation);
    }
    print_line(format!("results: {}", out.display()))?;
    let keep = |results: &AblationResults| write_results(&out, results, &ablation_table(results));
    let results = ablation.run(keep).map_err(|problem| match problem {
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
    })?;
    let table = ablation_table(&results);
    write_results(&out, &results, &table)?;
    let seconds = start.elapsed().as_secs();
    print_line(format!(
        "\n{table}\n{} min {} s; results.json and table.md are in {}",
        seconds / 60,
        seconds % 60,
        out.display()
    ))
}

fn print_units(ablation: &Ablation) -> Result<()> {
    for unit in ablation.units() {
        let steps: Vec<String> = unit
            .recipe
            .stages
            .iter()
            .map(|stage| format!("{} {}", stage.name, stage.steps.unwrap_or(0)))
            .collect();
        print_line(format!(
            "{}, seed {}: {:.2} TFLOP before the target stage ({:.2} in refinement); steps: {}",
            unit.arm,
            unit.seed,
            (unit.warm_flops + unit.refinement_flops) / 1e12,
            unit.refinement_flops / 1e12,
            steps.join(", ")
        ))?;
    }
    Ok(())
}
