//! Which executor runs: what the user asked for, against what there is.

use std::str::FromStr;

use super::simt::{Emulator, Options};
use super::{CpuExecutor, CudaExecutor, Executor, SimtExecutor, cuda};
use crate::tape::{CompileTarget, Target, Tier};
use crate::tensor::DType;
use keel_base::error::{Error, Result, with_near_miss};
use keel_cpu::simd::detected;

/// What can be asked for. The one vocabulary of every command that computes or plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The fastest there is.
    Auto,
    /// The processor.
    Cpu,
    /// The first GPU that can run the CUDA kernels.
    Cuda,
    /// The CUDA kernels on their emulator: slow, for proof.
    Simt,
}

impl Device {
    /// All of them.
    pub const ALL: [Device; 4] = [Device::Auto, Device::Cpu, Device::Cuda, Device::Simt];
    /// Another word for [`Device::Cuda`]: what people type before they know that there is one kind of GPU here.
    pub const GPU: &'static str = "gpu";

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Device::Auto => "auto",
            Device::Cpu => "cpu",
            Device::Cuda => "cuda",
            Device::Simt => "simt",
        }
    }

    /// What it is, in a few words.
    pub const fn about(self) -> &'static str {
        match self {
            Device::Auto => "the GPU if one can be used, otherwise the CPU",
            Device::Cpu => "the CPU",
            Device::Cuda => "the first NVIDIA GPU that can run the CUDA kernels",
            Device::Simt => "the CUDA kernels on a CPU emulator: slow, for checking them",
        }
    }

    /// The target that programs for it are compiled for, whether or not this machine has it: all that planning needs. [`Device::Auto`] is
    /// what it would come to here. `precision` is the device's own by default.
    ///
    /// # Errors
    /// [`Error::Setting`] when the device does not know the precision.
    pub fn compile_target(self, threads: usize, precision: Option<DType>) -> Result<CompileTarget> {
        let is_cpu = match self {
            Device::Auto => cuda::probe().is_err(),
            Device::Cpu => true,
            Device::Cuda | Device::Simt => false,
        };
        if is_cpu {
            return cpu_target(threads, precision);
        }
        Ok(CompileTarget {
            precision: precision.unwrap_or(DType::Bf16),
            ..Target::Cuda.into()
        })
    }
}

impl FromStr for Device {
    type Err = Error;

    /// The device of that name; `gpu` is [`Device::Cuda`].
    ///
    /// # Errors
    /// [`Error::Setting`] with the names there are.
    fn from_str(name: &str) -> Result<Device> {
        if name == Device::GPU {
            return Ok(Device::Cuda);
        }
        let found = Device::ALL.into_iter().find(|device| device.name() == name);
        found.ok_or_else(|| {
            let names = Device::ALL.map(Device::name);
            let want = format!("one of {}", names.join(", "));
            Error::setting("device", want, with_near_miss(name, &names))
        })
    }
}

/// The processor in the one precision that it knows.
fn cpu_target(threads: usize, precision: Option<DType>) -> Result<CompileTarget> {
    match precision {
        None | Some(DType::F32) => Ok(Target::Cpu { threads }.into()),
        Some(precision) => Err(Error::setting(
            "--precision",
            "f32 on the CPU (bf16 needs --device cuda or simt)",
            precision,
        )),
    }
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
pub struct SelectedDevice {
    compile_target: CompileTarget,
    runner: Runner,
    threads: usize,
    /// How many were asked for.
    asked: usize,
    why: String,
}

/// The cores that this process may use.
pub fn usable_cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

impl SelectedDevice {
    /// Decides by what was asked for and what there is; `precision` is the device's own by default.
    ///
    /// More threads than [`usable_cores`] become as many as those: the others would compute nothing faster, only look for work
    /// in each other's queues. On two cores, 1024 threads took fifty times the processor time of two.
    ///
    /// # Errors
    /// [`Error::Device`] when the device is not there, [`Error::Setting`] when it does not know the precision.
    pub fn new(device: Device, threads: usize, precision: Option<DType>) -> Result<SelectedDevice> {
        let selected = SelectedDevice::of(device, threads.min(usable_cores()), precision)?;
        Ok(SelectedDevice {
            asked: threads,
            ..selected
        })
    }

    fn of(device: Device, threads: usize, precision: Option<DType>) -> Result<SelectedDevice> {
        match device {
            Device::Auto => match cuda::probe() {
                Ok(found) => Ok(SelectedDevice::gpu(found, threads, precision, "found")),
                Err(problem) => {
                    SelectedDevice::cpu(threads, precision, &format!("no GPU: {}", reason(problem)))
                }
            },
            Device::Cpu => SelectedDevice::cpu(threads, precision, "as asked"),
            Device::Simt => {
                Emulator::new()?;
                Ok(SelectedDevice {
                    compile_target: device.compile_target(threads, precision)?,
                    runner: Runner::Emulator,
                    threads,
                    asked: threads,
                    why: "as asked; slow, for proof".to_owned(),
                })
            }
            Device::Cuda => Ok(SelectedDevice::gpu(
                cuda::probe()?,
                threads,
                precision,
                "as asked",
            )),
        }
    }

    /// The processor with exactly `threads` threads in f32.
    pub fn processor(threads: usize) -> SelectedDevice {
        SelectedDevice {
            compile_target: Target::Cpu { threads }.into(),
            runner: Runner::Processor,
            threads,
            asked: threads,
            why: "as asked".to_owned(),
        }
    }

    fn gpu(
        found: cuda::Found,
        threads: usize,
        precision: Option<DType>,
        why: &str,
    ) -> SelectedDevice {
        SelectedDevice {
            compile_target: CompileTarget {
                target: Target::Cuda,
                precision: precision.unwrap_or(DType::Bf16),
                tier: Tier::of(found.compute_capability),
            },
            runner: Runner::Gpu(found),
            threads,
            asked: threads,
            why: why.to_owned(),
        }
    }

    fn cpu(threads: usize, precision: Option<DType>, why: &str) -> Result<SelectedDevice> {
        Ok(SelectedDevice {
            compile_target: cpu_target(threads, precision)?,
            why: why.to_owned(),
            ..SelectedDevice::processor(threads)
        })
    }

    /// The same for a rank of this host, which has the GPU with its number.
    ///
    /// # Errors
    /// [`Error::Device`] when there is none of that number.
    pub fn for_rank(self, local_rank: usize) -> Result<SelectedDevice> {
        match self.runner {
            Runner::Gpu(_) => Ok(SelectedDevice {
                runner: Runner::Gpu(cuda::probe_ordinal(local_rank)?),
                ..self
            }),
            _ => Ok(self),
        }
    }

    /// The target that programs for it are compiled for.
    pub fn compile_target(&self) -> CompileTarget {
        self.compile_target
    }

    /// One line: device, size, precision, and why it was chosen.
    pub fn describe(&self) -> String {
        let plural = if self.threads == 1 { "" } else { "s" };
        let capped = match self.asked > self.threads {
            true => format!(" ({} asked for, one a core at most)", self.asked),
            false => String::new(),
        };
        let device = match &self.runner {
            Runner::Emulator => "simt (the CUDA kernels on the emulator)".to_owned(),
            Runner::Processor => format!("cpu, {} thread{plural}{capped}", self.threads),
            Runner::Gpu(found) => format!("cuda, {found}"),
        };
        format!("{device}, {} ({})", self.compile_target.precision, self.why)
    }

    /// The kind of device that computes, never [`Device::Auto`].
    pub fn device(&self) -> Device {
        match &self.runner {
            Runner::Processor => Device::Cpu,
            Runner::Emulator => Device::Simt,
            Runner::Gpu(_) => Device::Cuda,
        }
    }

    /// The instructions that it computes with: of the processor, which also prepares images, and of the chip where there is one.
    /// Other instructions may give other bits. `avx2`, `avx512` and `neon` give the same; `portable` multiplies and adds in
    /// two roundings where they take one.
    pub fn instructions(&self) -> String {
        let processor = detected().name();
        match &self.runner {
            Runner::Processor | Runner::Emulator => processor.to_owned(),
            Runner::Gpu(found) => {
                let (major, minor) = found.compute_capability;
                format!("sm_{major}{minor}, {processor}")
            }
        }
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
                Ok(Box::new(
                    executor.in_precision(self.compile_target.precision),
                ))
            }
            Runner::Gpu(found) => {
                let executor = CudaExecutor::new(found.clone(), elements)?;
                Ok(Box::new(
                    executor.in_precision(self.compile_target.precision),
                ))
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
