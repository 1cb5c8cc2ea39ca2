//! What can be known of the kernels without a GPU: registers, shared memory, spills, occupancy and instructions from the
//! images that were built into this program, and from the ops' own costs the least time that a chip needs for an example.
//!
//! [`time`] measures what an executor takes for the same examples.
#![deny(unsafe_code)]

mod budget;
mod chips;
pub mod command;
mod counted;
mod counted_text;
mod examples;
mod measured;
mod ptxas;
mod roofline;
mod text;
mod timing;

pub use keel_build::sass;

pub use budget::{Agreed, Budget};
pub use chips::{CHIPS, Chip, Occupancy};
pub use counted::{
    Conflict, CountedKernel, CountedWork, Limit, Predicted, SPEEDS, Speed, Sums, count,
};
pub use counted_text::{AgreedCounts, CountBudget, counted_markdown, counted_text};
pub use examples::{Direction, Example, Size, examples, record_update, update_shape};
pub use keel_engine::executor::kernel_header::{FIELDS, Header, header, headers};
pub use measured::Measured;
pub use ptxas::{Assembled, Report, read as read_assembler};
pub use roofline::{Bound, Work, works};
pub use timing::{Choice, Outcome, Timed, fill, time};

use keel_engine::executor::kernel_table::{IMAGES, KERNELS};
use keel_engine::executor::simt::Emulator;

/// How often a kernel's machine code holds what reports ask for. Counts are of instructions in the code, not of
/// executions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mix(pub sass::Counts);

impl Mix {
    /// All instructions.
    pub fn all(&self) -> u32 {
        self.0.values().sum()
    }

    /// The sum over the instructions called `name` or `name.<something>`.
    pub fn of(&self, name: &str) -> u32 {
        let is_it = |found: &str| {
            found
                .strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.0
            .iter()
            .filter(|(found, _)| is_it(found))
            .map(|(_, count)| count)
            .sum()
    }

    /// Tensor-core products: `HMMA` of a warp, `HGMMA` of four.
    pub fn tensor(&self) -> u32 {
        self.of("HMMA") + self.of("HGMMA")
    }

    /// Accesses to local memory: spills, or arrays that are indexed at run time.
    pub fn local(&self) -> u32 {
        self.of("LDL") + self.of("STL")
    }

    /// Which of the instructions that a kernel is built around are there.
    pub fn landmarks(&self) -> Vec<&'static str> {
        let landmarks = [
            "HGMMA", "HMMA", "LDSM", "LDGSTS", "LDG.128", "STG.128", "UTMALDG",
        ];
        landmarks
            .into_iter()
            .filter(|name| self.of(name) > 0)
            .collect()
    }
}

/// A kernel's machine code for one architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// What the assembler said.
    pub assembled: Assembled,
    /// Its instructions; absent when there was no disassembler at build time.
    pub mix: Option<Mix>,
}

/// A kernel and everything that is known of it without running it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The kernel.
    pub name: &'static str,
    /// The file it stands in, without `.cu`.
    pub stem: &'static str,
    /// Threads of a block; absent when any number will do.
    pub threads: Option<u32>,
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// The machine code of each architecture, oldest first; empty without nvcc at build time.
    pub codes: Vec<Code>,
}

impl Facts {
    /// The machine code that `chip` runs, if there is one.
    pub fn code_for(&self, chip: &Chip) -> Option<&Code> {
        self.codes
            .iter()
            .find(|code| code.assembled.arch == chip.runs)
    }

    /// The occupancy on `chip`, where threads and machine code are known.
    pub fn occupancy(&self, chip: &Chip) -> Option<Occupancy> {
        let code = self.code_for(chip)?;
        let shared = self.shared_bytes + code.assembled.static_shared_bytes;
        Some(chip.occupancy(self.threads?, code.assembled.registers, shared))
    }
}

/// What the images of this program say, all kernels together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalogue {
    /// Kernels in the order of files, then of their lines.
    pub kernels: Vec<Facts>,
    /// Warnings and remarks of the assembler, each with its file.
    pub remarks: Vec<String>,
    /// Whether nvcc built images.
    pub has_images: bool,
    /// Whether a disassembler counted the instructions of every image.
    pub has_mixes: bool,
}

/// Reads the images that were built into this program.
pub fn catalogue() -> Catalogue {
    let emulator = Emulator::new().ok();
    let lines = emulator.map_or(Vec::new(), |emulator| emulator.kernels());
    let images: Vec<(&str, Report, sass::Census)> = IMAGES
        .iter()
        .map(|image| {
            (
                image.stem,
                ptxas::read(image.ptxas),
                sass::read(image.census),
            )
        })
        .collect();
    // Only the emulator knows threads and shared memory: without it there is nothing to list of any kernel.
    let kernels = KERNELS.iter().filter_map(|entry| {
        let line = lines.iter().find(|line| line.name == entry.name)?;
        let mut codes: Vec<Code> = images
            .iter()
            .filter(|(stem, ..)| *stem == entry.stem)
            .flat_map(|(_, report, census)| {
                let mine = report.kernels.iter().filter(|a| a.kernel == entry.name);
                mine.map(|assembled| {
                    let key = (assembled.arch.clone(), assembled.kernel.clone());
                    Code {
                        mix: census.get(&key).cloned().map(Mix),
                        assembled: assembled.clone(),
                    }
                })
            })
            .collect();
        codes.sort_by(|a, b| a.assembled.arch.cmp(&b.assembled.arch));
        Some(Facts {
            name: entry.name,
            stem: entry.stem,
            threads: line.threads,
            shared_bytes: line.shared_bytes,
            codes,
        })
    });
    let kernels: Vec<Facts> = kernels.collect();
    let remarks = images
        .iter()
        .flat_map(|(stem, report, _)| {
            report
                .remarks
                .iter()
                .map(move |remark| format!("{stem}.cu: {remark}"))
        })
        .collect();
    Catalogue {
        has_images: !IMAGES.is_empty(),
        has_mixes: !IMAGES.is_empty()
            && kernels
                .iter()
                .flat_map(|kernel| &kernel.codes)
                .all(|code| code.mix.is_some()),
        kernels,
        remarks,
    }
}
