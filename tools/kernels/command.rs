//! The command line of the report: `cargo tool kernels` and `tools/gpu-run.sh` call it.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Parser;

use super::text::{kernel_json, kernel_markdown, kernel_text, outcome_json, outcome_text};
use super::{
    Budget, Catalogue, Choice, CountBudget, Measured, Size, catalogue, count, counted_markdown,
    counted_text, time, works,
};
use keel_base::error::{Error, Result, nearest, with_near_miss};
use keel_engine::executor::{Device, SelectedDevice};
use keel_engine::tensor::DType;

/// What is known of the CUDA kernels without running them, and what their ops take on a device.
#[derive(Debug, Parser)]
#[command(name = "kernel-report")]
struct Options {
    /// Only kernels with this in their names, and the examples that launch them; a single one is shown in full.
    name: Option<String>,
    /// Run the examples on the device and print the time of each op, one line of JSON each with --json.
    #[arg(long, conflicts_with_all = ["markdown", "budget"])]
    time: bool,
    /// Run only the examples of this op, such as linear or update.
    #[arg(long, value_name = "OP", requires = "time")]
    example: Option<String>,
    /// The device to run the examples on: auto, cpu, cuda or simt.
    #[arg(long, value_parser = Device::from_str, default_value = "auto")]
    device: Device,
    /// Storage precision of the examples: f32 or bf16 [default: bf16, and with --time that of the device].
    #[arg(long, value_parser = precision)]
    precision: Option<DType>,
    /// Runs of each example, from 1 up.
    #[arg(long, default_value_t = 20, value_name = "N", requires = "time", value_parser = clap::value_parser!(u64).range(1..))]
    repeats: u64,
    /// The shapes of the examples: tiny (as small as shows that they run), small (this repository's recipes) or large
    /// (ViT-L/14 and a language model of 1.5 billion parameters).
    #[arg(long, value_parser = size, default_value = "large")]
    shapes: Size,
    /// Print JSON.
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Print the page docs/reference/kernels.md.
    #[arg(long)]
    markdown: bool,
    /// Fail if a kernel takes more than this file allows, spills, or uses local memory.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "json", "markdown"])]
    budget: Option<PathBuf>,
    /// Rewrite the budget file, or with --counts the file of counts and the page docs/reference/counts.md: what the kernels
    /// take now.
    #[arg(long)]
    write: bool,
    /// Count what the kernels execute at the shapes of the examples, print it with predicted times, and fail if it is more
    /// than this file allows.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "json", "markdown", "budget", "time"])]
    counts: Option<PathBuf>,
}

fn precision(text: &str) -> Result<DType> {
    let known = [DType::F32, DType::Bf16];
    let found = known.into_iter().find(|dtype| dtype.name() == text);
    found.ok_or_else(|| Error::setting("--precision", "f32 or bf16", text))
}

fn size(text: &str) -> Result<Size> {
    let found = Size::ALL.into_iter().find(|size| size.name() == text);
    found.ok_or_else(|| {
        let names = Size::ALL.map(Size::name);
        let want = format!("one of {}", names.join(", "));
        Error::setting("--shapes", want, with_near_miss(text, &names))
    })
}

/// Reads the command line `arguments`, the program's name first, and prints what it asks for to `out`.
///
/// # Errors
/// [`Error::Setting`] for a command line that cannot be understood or a name that no kernel has; [`Error::Content`] when the
/// kernels break their budget; whatever a device reports.
pub fn run(
    arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    out: &mut dyn Write,
) -> Result<()> {
    let mut print = |text: String| {
        writeln!(out, "{text}").map_err(|problem| Error::io("standard output", "write", problem))
    };
    let options = match Options::try_parse_from(arguments) {
        Ok(options) => options,
        // Help was asked for: no mistake.
        Err(problem) if !problem.use_stderr() => return print(problem.to_string()),
        Err(problem) => {
            let want = "what kernel-report --help lists";
            return Err(Error::setting("command line", want, problem.to_string()));
        }
    };
    let mut catalogue = catalogue();
    if let Some(path) = &options.budget {
        return hold_to_budget(&catalogue, path, options.write, &mut print);
    }
    if let Some(path) = &options.counts {
        return hold_to_counts(&options, path, &mut print);
    }
    if options.write {
        let want = "a file to write, given by --budget or --counts";
        return Err(Error::setting("--write", want, "none"));
    }
    if options.time {
        return time_examples(&options, &mut print);
    }
    let mut works = works(options.shapes, options.precision.unwrap_or(DType::Bf16))?;
    if let Some(name) = &options.name {
        let known: Vec<&str> = catalogue.kernels.iter().map(|facts| facts.name).collect();
        if !known.iter().any(|kernel| kernel.contains(name.as_str())) {
            let near = nearest(name, known.iter().copied()).unwrap_or_default();
            let want = format!("part of a kernel's name, such as {near}");
            return Err(Error::setting("kernel", want, name));
        }
        let has_name = |kernel: &str| kernel.contains(name.as_str());
        catalogue.kernels.retain(|facts| has_name(facts.name));
        works.retain(|work| work.kernels.iter().any(|kernel| has_name(kernel)));
    }
    if options.json {
        print(kernel_json(&catalogue, &works).to_string())
    } else if options.markdown {
        print(kernel_markdown(&catalogue, &works).trim_end().to_owned())
    } else {
        print(kernel_text(&catalogue, &works, options.shapes))?;
        match missing(&catalogue) {
            Some(sentence) => print(format!("\n{sentence}")),
            None => Ok(()),
        }
    }
}

/// Runs the examples and prints a line for each op.
fn time_examples(options: &Options, print: &mut dyn FnMut(String) -> Result<()>) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let selected = SelectedDevice::new(options.device, threads, options.precision.map(Into::into))?;
    let device = selected.describe();
    if !options.json {
        print(format!("device: {device}"))?;
    }
    let choice = Choice {
        size: options.shapes,
        example: options.example.as_deref(),
        name: options.name.as_deref().unwrap_or(""),
    };
    let repeats = options.repeats as usize;
    time(&selected, choice, repeats, &mut |outcome| {
        if options.json {
            print(outcome_json(&outcome, &device).to_string())
        } else {
            print(outcome_text(&outcome, &device))
        }
    })
}

/// What the build left out, and how to get it.
fn missing(catalogue: &Catalogue) -> Option<&'static str> {
    if !catalogue.has_images {
        Some(
            "registers, spills, occupancy and instructions are not known: this program was built without nvcc; run cargo \
             tool nvcc and build again",
        )
    } else if !catalogue.has_mixes {
        Some(
            "instructions are not counted: this program was built without cuobjdump; run cargo tool nvcc and build again",
        )
    } else {
        None
    }
}

/// Counts what the kernels execute and compares it with what was agreed, or writes this anew.
fn hold_to_counts(
    options: &Options,
    path: &Path,
    print: &mut dyn FnMut(String) -> Result<()>,
) -> Result<()> {
    let all = count(options.shapes, options.precision.unwrap_or(DType::Bf16))?;
    let measured = Measured::read_all(Path::new("bench/results"))?;
    print(counted_text(&all, &measured))?;
    if options.write {
        let page = Path::new("docs/reference/counts.md");
        for (path, text) in [
            (path, CountBudget::of(&all).write()),
            (page, counted_markdown(&all, &measured)),
        ] {
            std::fs::write(path, text).map_err(|e| Error::io(path, "write", e))?;
        }
        return print(format!("{}: the counts as they are", path.display()));
    }
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
    let problems = CountBudget::read(&path.display().to_string(), &text)?.problems(&all);
    for problem in &problems {
        print(problem.clone())?;
    }
    if problems.is_empty() {
        let kernels: usize = all.iter().map(|counted| counted.kernels.len()).sum();
        return print(format!(
            "{kernels} kernels of {} ops keep to {}",
            all.len(),
            path.display()
        ));
    }
    Err(Error::content(
        path.display(),
        format!("the kernels execute more in {} places", problems.len()),
        "mend the kernel, or agree to the new counts with cargo tool ptx --counts --write",
    ))
}

/// Compares the images with the agreed numbers, or writes these anew.
fn hold_to_budget(
    catalogue: &Catalogue,
    path: &Path,
    write: bool,
    print: &mut dyn FnMut(String) -> Result<()>,
) -> Result<()> {
    if !catalogue.has_images || !catalogue.has_mixes {
        return Err(Error::Device {
            device: "cuda".into(),
            problem: "this program was built without nvcc or without cuobjdump, so nothing can be held to the budget".into(),
            remedy: "run cargo tool nvcc and build again".into(),
        });
    }
    let count = catalogue.kernels.len();
    if write {
        let text = Budget::of(catalogue).write();
        std::fs::write(path, text).map_err(|e| Error::io(path, "write", e))?;
        return print(format!("{}: {count} kernels as they are", path.display()));
    }
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
    let budget = Budget::read(&path.display().to_string(), &text)?;
    let problems = budget.problems(catalogue);
    for problem in &problems {
        print(problem.to_string())?;
    }
    if problems.is_empty() {
        print(format!(
            "{count} kernels keep to {}: no spill, no local memory, no warning",
            path.display()
        ))
    } else {
        Err(Error::content(
            path.display(),
            format!("the kernels break it in {} places", problems.len()),
            "mend the kernel, or agree to the new numbers with cargo tool kernels --write",
        ))
    }
}
