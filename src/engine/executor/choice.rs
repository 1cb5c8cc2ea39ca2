//! Which executor runs: what the user asked for, against what there is.

use super::simt::{Emulator, Options};
use super::{CpuExecutor, CudaExecutor, Executor, SimtExecutor, cuda};
use crate::tape::{Machine, Target, Tier};
use crate::tensor::DType;
use keel_base::error::{Error, Result};

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The fastest there is.
    Auto,
    /// The processor.
    Cpu,
    /// The CUDA kernels on their emulator: slow, for proof.
    Simt,
    /// The first GPU that can run the CUDA kernels.
    Cuda,
}

/// Who runs the programs.
#[derive(Clone, Debug)]
enum Runner {
    Processor,
    Emulator,
    Gpu(cuda::Found),
}

/// A device that is there, with everything that must be known to make an executor.
#[derive(Clone, Debug)]
pub struct Choice {
    machine: Machine,
    runner: Runner,
    threads: usize,
    why: String,
}

impl Choice {
    /// Decides by what was asked for and what there is; `precision` is the device's own by default.
    ///
    /// # Errors
    /// [`Error::Device`] when the device is not there, [`Error::Setting`] when it does not know the precision.
    pub fn new(device: Device, threads: usize, precision: Option<DType>) -> Result<Choice> {
        match device {
            Device::Auto => match cuda::probe() {
                Ok(found) => Ok(Choice::gpu(found, threads, precision, "found")),
                Err(problem) => {
                    Choice::cpu(threads, precision, &format!("no GPU: {}", reason(problem)))
                }
            },
            Device::Cpu => Choice::cpu(threads, precision, "as asked"),
            Device::Simt => {
                Emulator::new()?;
                Ok(Choice {
                    machine: Machine {
                        target: Target::Cuda,
                        precision: precision.unwrap_or(DType::Bf16),
                        tier: Tier::Portable,
                    },
                    runner: Runner::Emulator,
                    threads,
                    why: "as asked; slow, for proof".to_owned(),
                })
            }
            Device::Cuda => Ok(Choice::gpu(cuda::probe()?, threads, precision, "as asked")),
        }
    }

    /// The processor with `threads` threads in f32, as asked.
    pub fn processor(threads: usize) -> Choice {
        Choice {
            machine: Target::Cpu { threads }.into(),
            runner: Runner::Processor,
            threads,
            why: "as asked".to_owned(),
        }
    }

    fn gpu(found: cuda::Found, threads: usize, precision: Option<DType>, why: &str) -> Choice {
        Choice {
            machine: Machine {
                target: Target::Cuda,
                precision: precision.unwrap_or(DType::Bf16),
                tier: Tier::of(found.compute_capability),
            },
            runner: Runner::Gpu(found),
            threads,
            why: why.to_owned(),
        }
    }

    fn cpu(threads: usize, precision: Option<DType>, why: &str) -> Result<Choice> {
        match precision {
            None | Some(DType::F32) => Ok(Choice {
                why: why.to_owned(),
                ..Choice::processor(threads)
            }),
            Some(precision) => Err(Error::setting(
                "--precision",
                "f32 on the processor (bf16 needs --device simt or a GPU)",
                precision,
            )),
        }
    }

    /// What programs for it are made for.
    pub fn machine(&self) -> Machine {
        self.machine
    }

    /// One line: device, size, precision, and why it was chosen.
    pub fn describe(&self) -> String {
        let plural = if self.threads == 1 { "" } else { "s" };
        let device = match &self.runner {
            Runner::Emulator => "simt (the CUDA kernels on the emulator)".to_owned(),
            Runner::Processor => format!("cpu, {} thread{plural}", self.threads),
            Runner::Gpu(found) => format!("cuda, {found}"),
        };
        format!("{device}, {} ({})", self.machine.precision, self.why)
    }

    /// Its executor, with a parameter arena of `elements` elements.
    ///
    /// # Errors
    /// When memory or threads cannot be had.
    pub fn open(&self, elements: usize) -> Result<Box<dyn Executor>> {
        match &self.runner {
            Runner::Processor => Ok(Box::new(CpuExecutor::new(elements, self.threads)?)),
            Runner::Emulator => {
                let options = Options {
                    workers: self.threads as u32,
                    ..Options::default()
                };
                let executor = SimtExecutor::new(elements, options)?;
                Ok(Box::new(executor.in_precision(self.machine.precision)))
            }
            Runner::Gpu(found) => {
                let executor = CudaExecutor::new(found.clone(), elements)?;
                Ok(Box::new(executor.in_precision(self.machine.precision)))
            }
        }
    }
}

/// Why a device is not there, without what to do about it.
fn reason(problem: Error) -> String {
    match problem {
        Error::Device { problem, .. } => problem,
        other => other.to_string(),
    }
}
