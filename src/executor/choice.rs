//! Which executor runs: what the user asked for, against what there is.

use super::simt::{Emulator, Options};
use super::{CpuExecutor, Executor, SimtExecutor};
use crate::error::{Error, Result};
use crate::tape::{Machine, Target};
use crate::tensor::DType;

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The fastest there is.
    Auto,
    /// The processor.
    Cpu,
    /// The CUDA kernels on their emulator: slow, for proof.
    Simt,
}

/// A device that is there, with everything that must be known to make an executor.
#[derive(Clone, Debug)]
pub struct Choice {
    machine: Machine,
    is_emulated: bool,
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
            Device::Auto => Choice::cpu(
                threads,
                precision,
                "this build has no executor for a GPU yet",
            ),
            Device::Cpu => Choice::cpu(threads, precision, "as asked"),
            Device::Simt => {
                Emulator::new()?;
                Ok(Choice {
                    machine: Machine {
                        target: Target::Cuda,
                        precision: precision.unwrap_or(DType::Bf16),
                    },
                    is_emulated: true,
                    threads,
                    why: "as asked; slow, for proof".to_owned(),
                })
            }
        }
    }

    /// The processor with `threads` threads in f32, as asked.
    pub fn processor(threads: usize) -> Choice {
        Choice {
            machine: Target::Cpu { threads }.into(),
            is_emulated: false,
            threads,
            why: "as asked".to_owned(),
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
        let device = match self.is_emulated {
            true => "simt (the CUDA kernels on the emulator)".to_owned(),
            false => format!("cpu, {} thread{plural}", self.threads),
        };
        format!("{device}, {} ({})", self.machine.precision, self.why)
    }

    /// Its executor, with a parameter arena of `elements` elements.
    ///
    /// # Errors
    /// When memory or threads cannot be had.
    pub fn open(&self, elements: usize) -> Result<Box<dyn Executor>> {
        if self.is_emulated {
            let options = Options {
                workers: self.threads as u32,
                ..Options::default()
            };
            let executor = SimtExecutor::new(elements, options)?;
            return Ok(Box::new(executor.in_precision(self.machine.precision)));
        }
        Ok(Box::new(CpuExecutor::new(elements, self.threads)?))
    }
}
