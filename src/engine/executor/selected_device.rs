//! Which executor runs: what the user asked for, against what there is.

use std::str::FromStr;

use super::simt::{Emulator, Options};
use super::{CpuExecutor, CudaExecutor, Executor, SimtExecutor, cuda};
use crate::tape::{CompileTarget, Target, Tier};
use crate::tensor::DType;
use keel_base::error::{Error, Result, with_near_miss};
use keel_cpu::simd::detected;
use keel_cpu::{BF16_PRODUCTS_VARIABLE, Bf16Products, bf16_products, bf16_products_of_environment};

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

    /// The target that programs for it are compiled for, with portable kernels, whether or not this machine has it. [`Device::Auto`]
    /// is what it would come to here. `precision` is the device's own by default.
    pub fn compile_target(self, threads: usize, precision: Option<Precision>) -> CompileTarget {
        let is_cpu = match self {
            Device::Auto => cuda::probe().is_err(),
            Device::Cpu => true,
            Device::Cuda | Device::Simt => false,
        };
        if is_cpu {
            return cpu_target(threads, precision);
        }
        CompileTarget {
            precision: precision.map_or(DType::Bf16, Precision::on_gpu),
            ..Target::Cuda.into()
        }
    }

    /// As [`Device::compile_target`], with the kernels of this machine's GPU where it is meant and has some of its own: all that
    /// planning needs.
    ///
    /// # Errors
    /// [`Error::Setting`] for a tier that there is not.
    pub fn compile_target_here(
        self,
        threads: usize,
        precision: Option<Precision>,
    ) -> Result<CompileTarget> {
        let tier = match self {
            Device::Cpu | Device::Simt => Tier::Portable,
            // A plan is of the chip, whether or not this program holds code for it.
            Device::Auto | Device::Cuda => match cuda::probe_driver() {
                Ok(found) => found.tier,
                Err(problem @ Error::Setting { .. }) => return Err(problem),
                Err(_) => Tier::Portable,
            },
        };
        let portable = self.compile_target(threads, precision);
        Ok(match portable.target {
            Target::Cuda => CompileTarget { tier, ..portable },
            _ => portable,
        })
    }
}

/// What values are stored in, as it can be asked for. The one vocabulary of every command that computes or plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Whichever computes faster.
    Auto,
    /// Single precision.
    F32,
    /// bfloat16 for activations and for the matrices among the parameters.
    Bf16,
}

impl Precision {
    /// All of them.
    pub const ALL: [Precision; 3] = [Precision::Auto, Precision::F32, Precision::Bf16];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Precision::Auto => "auto",
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
    }

    /// What it is, in a few words.
    pub const fn about(self) -> &'static str {
        match self {
            Precision::Auto => {
                "bf16 on a GPU, and on a CPU that multiplies bf16 faster than f32; otherwise f32"
            }
            Precision::F32 => "single precision",
            Precision::Bf16 => {
                "bfloat16; master weights, optimizer state, sums and losses stay f32"
            }
        }
    }

    /// The type on the processor.
    fn on_processor(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::Bf16,
            Precision::Auto => match bf16_products() {
                Bf16Products::Pairs | Bf16Products::Tiles => DType::Bf16,
                Bf16Products::Widened => DType::F32,
            },
        }
    }

    /// The type on a GPU or its emulator.
    fn on_gpu(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::Auto | Precision::Bf16 => DType::Bf16,
        }
    }
}

impl From<DType> for Precision {
    /// # Panics
    /// For integers, in which nothing is computed.
    fn from(dtype: DType) -> Precision {
        match dtype {
            DType::F32 => Precision::F32,
            DType::Bf16 => Precision::Bf16,
            DType::I32 => panic!("a precision is a float type"),
        }
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

/// The processor, in f32 by default: its results are the same bits on every processor that fuses multiply-adds.
fn cpu_target(threads: usize, precision: Option<Precision>) -> CompileTarget {
    CompileTarget {
        precision: precision.map_or(DType::F32, Precision::on_processor),
        ..Target::Cpu { threads }.into()
    }
}

/// Refuses a way of computing products of bf16 that the environment asks for and the processor has not.
///
/// # Errors
/// [`Error::Setting`].
pub fn check_products() -> Result<()> {
    let problem = match bf16_products_of_environment() {
        Ok(_) => return Ok(()),
        Err(problem) => problem,
    };
    let names = Bf16Products::ALL.map(Bf16Products::setting).join(", ");
    let want = format!("auto, or one of {names} that this processor has");
    Err(Error::setting(
        BF16_PRODUCTS_VARIABLE,
        want,
        problem.to_string(),
    ))
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
    /// [`Error::Device`] when the device is not there; [`Error::Setting`] for a tier that there is not; [`check_products`].
    pub fn new(
        device: Device,
        threads: usize,
        precision: Option<Precision>,
    ) -> Result<SelectedDevice> {
        check_products()?;
        let selected = SelectedDevice::of(device, threads.min(usable_cores()), precision)?;
        Ok(SelectedDevice {
            asked: threads,
            ..selected
        })
    }

    fn of(device: Device, threads: usize, precision: Option<Precision>) -> Result<SelectedDevice> {
        match device {
            Device::Auto => match cuda::probe() {
                Ok(found) => Ok(SelectedDevice::gpu(found, threads, precision, "found")),
                Err(problem @ Error::Setting { .. }) => Err(problem),
                Err(problem) => {
                    let why = format!("no GPU: {}", reason(problem));
                    Ok(SelectedDevice::cpu(threads, precision, &why))
                }
            },
            Device::Cpu => Ok(SelectedDevice::cpu(threads, precision, "as asked")),
            Device::Simt => {
                Emulator::new()?;
                Ok(SelectedDevice {
                    compile_target: device.compile_target(threads, precision),
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
        precision: Option<Precision>,
        why: &str,
    ) -> SelectedDevice {
        SelectedDevice {
            compile_target: CompileTarget {
                target: Target::Cuda,
                precision: precision.map_or(DType::Bf16, Precision::on_gpu),
                tier: found.tier,
            },
            runner: Runner::Gpu(found),
            threads,
            asked: threads,
            why: why.to_owned(),
        }
    }

    fn cpu(threads: usize, precision: Option<Precision>, why: &str) -> SelectedDevice {
        let compile_target = cpu_target(threads, precision);
        let why = match precision {
            Some(Precision::Auto) => format!("{why}; {} is faster here", compile_target.precision),
            _ => why.to_owned(),
        };
        SelectedDevice {
            compile_target,
            why,
            ..SelectedDevice::processor(threads)
        }
    }

    /// The same for a rank of this host, which has the GPU with its number.
    ///
    /// # Errors
    /// [`Error::Device`] when there is none of that number.
    pub fn for_rank(self, local_rank: usize) -> Result<SelectedDevice> {
        match self.runner {
            Runner::Gpu(_) => {
                let found = cuda::probe_ordinal(local_rank)?;
                Ok(SelectedDevice {
                    compile_target: CompileTarget {
                        tier: found.tier,
                        ..self.compile_target
                    },
                    runner: Runner::Gpu(found),
                    ..self
                })
            }
            _ => Ok(self),
        }
    }

    /// The target that programs for it are compiled for.
    pub fn compile_target(&self) -> CompileTarget {
        self.compile_target
    }

    /// How products are computed, where that is not said by device and precision.
    fn products(&self) -> Option<Bf16Products> {
        let is_bf16 = self.compile_target.precision == DType::Bf16;
        (is_bf16 && matches!(self.runner, Runner::Processor)).then(bf16_products)
    }

    /// What decides a product's bits besides device and precision, in a few words: the way of a CPU, or the tier of a GPU's kernels.
    pub fn way_of_products(&self) -> String {
        match self.runner {
            Runner::Processor => {
                let products = self.products().unwrap_or(Bf16Products::Widened);
                products.name().to_owned()
            }
            _ => format!("products of the {} tier", self.compile_target.tier),
        }
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
        let products = self.products();
        let products = products.map_or(String::new(), |products| format!(", {}", products.name()));
        let precision = self.compile_target.precision;
        format!("{device}, {precision}{products} ({})", self.why)
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
    /// two roundings where they take one, and `avx512 with vdpbf16ps` and `avx512 with AMX` add the terms of a bf16 product in orders of their own.
    /// A chip with a tier of its own is named with the tier that its programs take, as in `sm_90 with portable kernels`.
    pub fn instructions(&self) -> String {
        let processor = detected().name();
        match &self.runner {
            Runner::Processor => match self.products().and_then(Bf16Products::instructions) {
                Some(added) => format!("{processor} with {added}"),
                None => processor.to_owned(),
            },
            Runner::Emulator => processor.to_owned(),
            Runner::Gpu(found) => {
                let (major, minor) = found.compute_capability;
                let kernels = match Tier::of(found.compute_capability) {
                    Tier::Portable => String::new(),
                    Tier::Hopper => format!(" with {} kernels", self.compile_target.tier),
                };
                format!("sm_{major}{minor}{kernels}, {processor}")
            }
        }
    }

    /// Its executor, with a parameter arena of `elements` elements.
    ///
    /// # Errors
    /// When memory or threads cannot be had.
    pub fn open(&self, elements: usize) -> Result<Box<dyn Executor>> {
        match &self.runner {
            Runner::Processor => {
                let executor = CpuExecutor::new(elements, self.threads)?;
                Ok(Box::new(
                    executor.in_precision(self.compile_target.precision),
                ))
            }
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
