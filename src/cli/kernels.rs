//! `keel kernels`: the kernels of this program. What their machine code holds and what chips make of it is for those who
//! maintain them: `cargo tool kernels`.

use clap::Args;

use super::print_line;
use keel_base::error::{Error, Result, nearest};
use keel_engine::executor::kernel_header::header;
use keel_engine::executor::kernel_table::{IMAGES, KERNELS, KernelEntry};
use keel_engine::tape::Tier;
use keel_report::table::Table;

/// What each kernel executes at the shapes of large examples, in thousands over all blocks, counted from its PTX
/// (`cargo tool ptx --counts`).
const COUNTS: &str = include_str!("../../cuda/counts.toml");

/// Options of `keel kernels`.
#[derive(Debug, Args)]
pub(super) struct KernelsArgs {
    /// Only kernels with this in their names; a single one is shown in full.
    name: Option<String>,
}

pub(super) fn run(args: &KernelsArgs) -> Result<()> {
    let wanted = args.name.as_deref().unwrap_or("");
    let found: Vec<&KernelEntry> = KERNELS
        .iter()
        .filter(|kernel| kernel.name.contains(wanted))
        .collect();
    match found[..] {
        [] => {
            let near = nearest(wanted, KERNELS.iter().map(|kernel| kernel.name));
            Err(Error::setting(
                "kernel",
                format!(
                    "part of a kernel's name, such as {}",
                    near.unwrap_or_default()
                ),
                wanted,
            ))
        }
        [kernel] => print_line(details(kernel)),
        _ => {
            print_line(table(&found))?;
            let images = if IMAGES.is_empty() {
                "none of it is built for GPUs here: cargo tool nvcc installs NVIDIA's compiler, then build again"
            } else {
                "built for sm_80, sm_90a and, as PTX, for newer chips"
            };
            print_line(format!("\n{} kernels, {images}", found.len()))
        }
    }
}

/// A row a kernel: its file and what it does.
fn table(kernels: &[&KernelEntry]) -> String {
    let mut rows = vec![
        ["kernel", "file", "what it does"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for kernel in kernels {
        let sentence = header(kernel.stem, kernel.name).map_or(String::new(), |h| h.sentence);
        rows.push(vec![
            kernel.name.to_owned(),
            format!("cuda/{}.cu", kernel.stem),
            sentence,
        ]);
    }
    Table { rows }.render_left()
}

/// One kernel: its header, field by field.
fn details(kernel: &KernelEntry) -> String {
    let tier = if kernel.is_of_hopper() {
        Tier::Hopper
    } else {
        Tier::Portable
    };
    let mut text = format!("{} (cuda/{}.cu, {tier} tier)", kernel.name, kernel.stem);
    if let Some(header) = header(kernel.stem, kernel.name) {
        text += &format!("\n\n{}: {}", header.title, header.sentence);
        for (field, value) in &header.fields {
            text += &format!("\n  {field:<9} {value}");
        }
    }
    for (example, counts) in counted(kernel.name) {
        text += &format!("\n  {:<9} {example}: {counts} (thousands)", "counted");
    }
    text
}

/// The examples that `kernel` was counted in, and the counts: `instructions 12.5, tensor 4.1, …`.
fn counted(kernel: &str) -> impl Iterator<Item = (&str, String)> {
    COUNTS.lines().filter_map(move |line| {
        let (key, counts) = line.strip_prefix('"')?.split_once("\" = { ")?;
        let example = key.strip_suffix(kernel)?.strip_suffix(": ")?;
        let counts = counts.trim_end_matches(" }").replace(" = ", " ");
        Some((example, counts))
    })
}
