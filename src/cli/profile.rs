//! `keel profile`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{
    ComputeArgs, RecipeArgs, announce, at_least_one, parse_bytes, print_line, print_warnings,
};
use keel_base::error::{Error, Result, with_near_miss};
use keel_report::{profile_drawing, profile_table, profile_trace};
use keel_train::{Profile, Recipe, recipe_of, write_durably};

/// Options of `keel profile`.
#[derive(Debug, Args)]
pub(super) struct ProfileArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    /// The folder of a run whose recipe is taken; its report shows the drawing.
    #[arg(long, value_name = "RUN", conflicts_with = "recipe")]
    run: Option<PathBuf>,
    /// One stage; the last by default.
    #[arg(long, value_name = "NAME")]
    stage: Option<String>,
    /// Steps that are timed; each op counts with its median.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = at_least_one)]
    steps: u64,
    /// The most memory for a step's activations, for example 512M; met by computing some of them twice.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    memory_budget: Option<u64>,
    /// Writes the step for chrome://tracing and ui.perfetto.dev.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Draws the step: parts of the model over their ops, as wide as their time.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

pub(super) fn run(args: &ProfileArgs) -> Result<()> {
    let compute = args.compute.choose()?;
    let recipe = match &args.run {
        Some(run) => {
            let path = recipe_of(run, "--run")?;
            Recipe::load(&path.to_string_lossy(), &args.recipe.sets)?
        }
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
    let runs = args.steps as usize;
    let profile = Profile::measure(&recipe, index, &compute, runs, args.memory_budget)?;
    print_warnings(&profile.warnings);
    let (table, drawing) = (profile_table(&profile), profile_drawing(&profile));
    print_line(&table)?;
    let write = |path: &Path, text: &str| -> Result<()> {
        write_durably(path, text.as_bytes())?;
        print_line(format!("written: {}", path.display()))
    };
    if let Some(run) = &args.run {
        let folder = run.join("profile");
        std::fs::create_dir_all(&folder)
            .map_err(|problem| Error::io(&folder, "create the folder", problem))?;
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
