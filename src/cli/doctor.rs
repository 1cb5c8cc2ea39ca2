//! `keel doctor`.

use clap::Args;

use super::print_line;
use keel_base::error::{Error, Result};
use keel_base::units::bytes;
use keel_cpu::simd::{Level, detected};
use keel_engine::executor::kernel_table::IMAGES;
use keel_engine::executor::simt::Emulator;
use keel_engine::executor::{Device, SelectedDevice, cuda, usable_cores};
use keel_stores::HAS_NETWORK;
use keel_train::free_bytes;

/// Options of `keel doctor`.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {}

/// One thing looked for.
struct Finding {
    what: &'static str,
    found: String,
    /// What it would give, and how to have it, where it is missing.
    advice: Option<String>,
}

pub(super) fn run(_: &DoctorArgs) -> Result<()> {
    let findings = [
        processor(),
        cores(),
        memory(),
        driver(),
        images(),
        emulator(),
        stores(),
        disk()?,
        chosen()?,
    ];
    for finding in &findings {
        print_line(format!("{:<12} {}", finding.what, finding.found))?;
        if let Some(advice) = &finding.advice {
            print_line(format!("{:<12} -> {advice}", ""))?;
        }
    }
    Ok(())
}

fn processor() -> Finding {
    let (found, advice) = match detected() {
        Level::Avx512 => ("AVX-512: the widest path is used", None),
        Level::Avx2 => (
            "AVX2 and FMA: the middle path is used",
            Some(
                "a processor with AVX-512 F, BW, DQ and VL computes twice as many numbers an instruction",
            ),
        ),
        Level::Neon => ("NEON: the widest path that is written for it is used", None),
        Level::Portable => (
            "neither AVX2 nor AVX-512: the portable path is used",
            Some("an x86-64 processor with AVX2 and FMA computes several times as fast"),
        ),
    };
    Finding {
        what: "processor",
        found: found.to_owned(),
        advice: advice.map(str::to_owned),
    }
}

fn cores() -> Finding {
    let cores = usable_cores();
    Finding {
        what: "cores",
        found: format!("{cores} usable by this process"),
        advice: (cores == 1)
            .then(|| "more would share the products of matrices and ready the data".to_owned()),
    }
}

/// Total and available memory in bytes, as Linux reports them.
fn meminfo(text: &str) -> Option<(u64, u64)> {
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with(name))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib * 1024)
    };
    Some((field("MemTotal:")?, field("MemAvailable:")?))
}

fn memory() -> Finding {
    let known = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| meminfo(&text));
    let (found, advice) = match known {
        Some((total, available)) => (
            format!("{} available of {}", bytes(available), bytes(total)),
            None,
        ),
        None => (
            "unknown: /proc/meminfo cannot be read".to_owned(),
            Some("compare what keel plan prints with the machine's memory yourself".to_owned()),
        ),
    };
    Finding {
        what: "memory",
        found,
        advice,
    }
}

fn driver() -> Finding {
    let (found, advice) = match cuda::probe_driver() {
        Ok(gpu) => (gpu.to_string(), None),
        Err(Error::Device {
            problem, remedy, ..
        }) => (
            format!("none: {problem}"),
            Some(format!(
                "a GPU runs --device cuda, in bf16 on tensor cores: {remedy}"
            )),
        ),
        Err(other) => (format!("none: {other}"), None),
    };
    Finding {
        what: "GPU",
        found,
        advice,
    }
}

fn images() -> Finding {
    let (found, advice) = match IMAGES.len() {
        0 => (
            "none in this program: it was built without nvcc".to_owned(),
            Some(
                "they let this program run on a GPU: cargo tool nvcc, then build again".to_owned(),
            ),
        ),
        count => (
            format!("{count} files of kernels compiled by nvcc are in this program"),
            None,
        ),
    };
    Finding {
        what: "GPU kernels",
        found,
        advice,
    }
}

fn emulator() -> Finding {
    let (found, advice) = match Emulator::new() {
        Ok(_) => (
            "the CUDA kernels for the emulator are in this program".to_owned(),
            None,
        ),
        Err(problem) => (
            "none in this program".to_owned(),
            Some(format!(
                "it proves the CUDA kernels without a GPU: {problem}"
            )),
        ),
    };
    Finding {
        what: "emulator",
        found,
        advice,
    }
}

fn stores() -> Finding {
    let (found, advice) = if HAS_NETWORK {
        ("s3://, gs://, az://, http:// and https:// are read", None)
    } else {
        (
            "none in this program: it was built without the feature stores",
            Some("they give data that are not on this machine: build with --features stores"),
        )
    };
    Finding {
        what: "data stores",
        found: found.to_owned(),
        advice: advice.map(str::to_owned),
    }
}

fn disk() -> Result<Finding> {
    let place = std::env::current_dir()
        .map_err(|problem| Error::io(".", "find the current folder", problem))?;
    Ok(Finding {
        what: "disk",
        found: format!("{} free in {}", bytes(free_bytes(&place)?), place.display()),
        advice: None,
    })
}

/// What --device auto comes to.
fn chosen() -> Result<Finding> {
    Ok(Finding {
        what: "device auto",
        found: SelectedDevice::new(Device::Auto, usable_cores(), None)?.describe(),
        advice: None,
    })
}
