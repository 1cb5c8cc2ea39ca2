//! `keel profile`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::values::{count, size};
use super::{ComputeArgs, RecipeArgs, announce, heading, print_line, print_warnings};
use keel_base::error::{Error, Result, with_near_miss};
use keel_report::{profile_drawing, profile_table, profile_trace};
use keel_train::{Profile, Recipe, folder_inside, recipe_in, write_durably};

/// Options of `keel profile`.
#[derive(Debug, Args)]
pub(super) struct ProfileArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Take the recipe of this run's folder; its report then shows the profile.
    #[arg(long, value_name = "RUN", conflicts_with = "recipe", help_heading = heading::RUN)]
    run: Option<PathBuf>,
    /// The stage to profile [default: the last].
    #[arg(long, value_name = "NAME", help_heading = heading::RUN)]
    stage: Option<String>,
    /// Steps to time; each op counts with its median.
    #[arg(long, value_name = "N", default_value = "10", value_parser = count, help_heading = heading::RUN)]
    steps: usize,
    /// Write the step as a trace for chrome://tracing and ui.perfetto.dev.
    #[arg(long, value_name = "FILE", help_heading = heading::RUN)]
    trace: Option<PathBuf>,
    /// Draw the step as a flame graph: modules above their ops, as wide as their time.
    #[arg(long, value_name = "FILE", help_heading = heading::RUN)]
    svg: Option<PathBuf>,
    /// Upper limit on the activations of a step, for example 512M, met by recomputing some of them in the backward pass.
    #[arg(long, value_name = "BYTES", value_parser = size, help_heading = heading::MEMORY)]
    memory_budget: Option<u64>,
}

pub(super) fn run(args: &ProfileArgs) -> Result<()> {
    let compute = args.compute.choose()?;
    let recipe = match &args.run {
        Some(run) => recipe_in(run, &args.recipe.sets)?,
        None => Recipe::load(&args.recipe.recipe, &args.recipe.sets)?,
    };
    let names: Vec<&str> = recipe.stages.iter().map(|s| s.name.as_str()).collect();
    let index = match &args.stage {
        None => names.len().saturating_sub(1),
        Some(name) => names.iter().position(|n| n == name).ok_or_else(|| {
            let want = format!("one of {}", names.join(", "));
            Error::setting("--stage", want, with_near_miss(name, &names))
        })?,
    };
    announce(&compute)?;
    let runs = args.steps;
    let profile = Profile::measure(&recipe, index, &compute, runs, args.memory_budget)?;
    print_warnings(&profile.warnings);
    let (table, drawing) = (profile_table(&profile), profile_drawing(&profile));
    print_line(&table)?;
    let write = |path: &Path, text: &str| -> Result<()> {
        write_durably(path, text.as_bytes())?;
        print_line(format!("written: {}", path.display()))
    };
    if let Some(run) = &args.run {
        let folder = folder_inside(run, "profile")?;
        let label = format!("{}-{}", index + 1, profile.stage);
        write(&folder.join(format!("{label}.svg")), &drawing)?;
        write(&folder.join(format!("{label}.txt")), &table)?;
        super::report::write_report(run)?;
    }
    if let Some(path) = &args.svg {
        write(path, &drawing)?;
    }
    if let Some(path) = &args.trace {
        write(path, &profile_trace(&profile))?;
    }
    Ok(())
}
