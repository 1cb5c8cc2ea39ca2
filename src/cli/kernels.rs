//! `keel kernels`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{ComputeArgs, announce, at_least_one, print_line};
use crate::error::{Error, Result, nearest};
use crate::kernels::{Budget, Catalogue, Size, catalogue, time, works};
use crate::report::{kernel_json, kernel_markdown, kernel_text, outcome_json, outcome_text};
use crate::tensor::DType;

/// Options of `keel kernels`.
#[derive(Debug, Args)]
pub(super) struct KernelsArgs {
    /// Only kernels with this in their names, and the examples that launch them; one kernel is told in full.
    name: Option<String>,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Runs the examples on the device and prints what each op takes, a line of JSON each with --json.
    #[arg(long, conflicts_with_all = ["markdown", "budget"])]
    time: bool,
    /// How often an example is run.
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = at_least_one, requires = "time")]
    repeats: u64,
    /// Shapes of the examples: no size at all, of this repository's recipes, or of ViT-L/14 and a 1.5 B language model.
    #[arg(long, value_enum, default_value = "large")]
    shapes: Shapes,
    /// Prints JSON.
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Prints the page docs/kernels.md.
    #[arg(long)]
    markdown: bool,
    /// Fails when a kernel takes more than this file allows, spills, or uses local memory.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "json", "markdown"])]
    budget: Option<PathBuf>,
    /// Writes the budget anew instead: what the kernels take now.
    #[arg(long, requires = "budget")]
    write: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shapes {
    Tiny,
    Small,
    Large,
}

pub(super) fn run(args: &KernelsArgs) -> Result<()> {
    let mut catalogue = catalogue();
    if catalogue.kernels.is_empty() {
        return Err(Error::Device {
            device: "cuda".into(),
            problem: "this program was built without a C++ compiler, so it knows no kernels".into(),
            remedy: "install g++ or clang++ and build again".into(),
        });
    }
    if let Some(path) = &args.budget {
        return hold_to_budget(&catalogue, path, args.write);
    }
    let precision = args.compute.precision.map_or(DType::Bf16, DType::from);
    let size = match args.shapes {
        Shapes::Tiny => Size::Tiny,
        Shapes::Small => Size::Small,
        Shapes::Large => Size::Large,
    };
    if args.time {
        return time_examples(args, size);
    }
    let mut works = works(size, precision)?;
    if let Some(name) = &args.name {
        let known: Vec<&str> = catalogue.kernels.iter().map(|facts| facts.name).collect();
        if !known.iter().any(|kernel| kernel.contains(name.as_str())) {
            let near = nearest(name, known.iter().copied());
            return Err(Error::setting(
                "kernel",
                format!(
                    "part of a kernel's name, such as {}",
                    near.unwrap_or_default()
                ),
                name,
            ));
        }
        catalogue
            .kernels
            .retain(|facts| facts.name.contains(name.as_str()));
        works.retain(|work| {
            work.kernels
                .iter()
                .any(|kernel| kernel.contains(name.as_str()))
        });
    }
    match (args.json, args.markdown) {
        (true, _) => print_line(kernel_json(&catalogue, &works)),
        (_, true) => print_line(kernel_markdown(&catalogue, &works).trim_end()),
        _ => {
            print_line(kernel_text(&catalogue, &works, size))?;
            say_what_is_missing(&catalogue)
        }
    }
}

/// Runs the examples and prints a line for each op.
fn time_examples(args: &KernelsArgs, size: Size) -> Result<()> {
    let choice = args.compute.choose()?;
    let device = choice.describe();
    if !args.json {
        announce(&choice)?;
    }
    let name = args.name.as_deref().unwrap_or("");
    time(
        &choice,
        size,
        name,
        args.repeats as usize,
        &mut |outcome| match args.json {
            true => print_line(outcome_json(&outcome, &device)),
            false => print_line(outcome_text(&outcome, &device)),
        },
    )
}

/// A line for what the build left out, and how to get it.
fn say_what_is_missing(catalogue: &Catalogue) -> Result<()> {
    match (catalogue.has_images, catalogue.has_mixes) {
        (false, _) => print_line(
            "\nregisters, spills, occupancy and instructions are not known: this program was built without nvcc; run cargo \
             tool nvcc and build again",
        ),
        (true, false) => print_line(
            "\ninstructions are not counted: this program was built without cuobjdump; run cargo tool nvcc and build again",
        ),
        (true, true) => Ok(()),
    }
}

/// Compares the images with the agreed numbers, or writes these anew.
fn hold_to_budget(catalogue: &Catalogue, path: &PathBuf, write: bool) -> Result<()> {
    if !catalogue.has_images || !catalogue.has_mixes {
        return Err(Error::Device {
            device: "cuda".into(),
            problem: "this program was built without nvcc or without cuobjdump, so nothing can be held to the budget".into(),
            remedy: "run cargo tool nvcc and build again".into(),
        });
    }
    if write {
        let text = Budget::of(catalogue).write();
        std::fs::write(path, text).map_err(|e| Error::io(path, "write", e))?;
        return print_line(format!(
            "{}: {} kernels as they are",
            path.display(),
            catalogue.kernels.len()
        ));
    }
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
    let budget = Budget::read(&path.display().to_string(), &text)?;
    let problems = budget.problems(catalogue);
    for problem in &problems {
        print_line(problem)?;
    }
    match problems.len() {
        0 => print_line(format!(
            "{} kernels keep to {}: no spill, no local memory, no warning",
            catalogue.kernels.len(),
            path.display()
        )),
        count => Err(Error::content(
            path.display(),
            format!("the kernels break it in {count} places"),
            "mend the kernel, or agree to the new numbers with cargo tool kernels --write",
        )),
    }
}
