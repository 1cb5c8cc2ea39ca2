//! Is there a GPU that can run our kernels? Every way in which there is not becomes one sentence.

use std::ffi::{CStr, c_char, c_int};
use std::fmt;

use cudarc::driver::sys::CUdevice_attribute as Attribute;

use super::super::kernel_table::{self, KernelImage};
use super::driver::{
    Driver, NO_DEVICE, SEE_DEVICES, cannot_tell, machine_code_needs, too_old, version,
};
use crate::tape::Tier;
use keel_base::error::{Error, Result};

/// Ampere: asynchronous copies, and matrix instructions that take bf16.
const LEAST_CAPABILITY: (i32, i32) = (8, 0);

/// A GPU that can run our kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its number among the visible devices.
    pub ordinal: i32,
    /// What its maker calls it.
    pub name: String,
    /// Major and minor number.
    pub compute_capability: (i32, i32),
    /// The kernels that programs take there: the chip's own tier, or the portable one where `KEEL_CUDA_TIER=portable` asks.
    pub tier: Tier,
    /// The CUDA version of the driver, for example 13000.
    pub driver: i32,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Streaming multiprocessors.
    pub multiprocessors: i32,
    /// The highest clock in kHz; 0 where the driver does not tell.
    pub clock_khz: i32,
    /// Bytes of shared memory a block may ask for.
    pub shared_limit: u32,
    /// Where it sits on the bus, which is how NVIDIA's management library knows it; empty where the driver does not tell.
    pub bus_id: String,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.compute_capability;
        write!(
            f,
            "{}, {:.0} GiB, sm_{major}{minor}, driver for CUDA {}",
            self.name,
            self.memory_bytes as f64 / f64::from(1 << 30),
            version(self.driver)
        )
    }
}

/// Looks for a driver and the first visible GPU that can run our kernels, and for code for it in this program. It starts
/// nothing that needs ending.
///
/// # Errors
/// As [`probe_driver`], and [`Error::Device`] when this program was built without nvcc, or with one that is too new for the
/// driver.
pub fn probe() -> Result<Found> {
    let found = probe_driver()?;
    if kernel_table::IMAGES.is_empty() {
        return Err(unusable(
            format!(
                "there is a GPU ({found}), but this program was built without nvcc and holds no code for it"
            ),
            "install one with `cargo tool nvcc` and build again, or choose --device cpu",
        ));
    }
    expect_driver(&found, kernel_table::IMAGES)?;
    Ok(found)
}

/// As [`probe`], whether or not this program holds code for a GPU.
///
/// # Errors
/// [`Error::Device`]: no library, one without the functions, the toolkit's stub, a driver that fails to start or is too
/// old, no device, no device of compute capability 8.0 that may be used.
pub fn probe_driver() -> Result<Found> {
    let (driver, version) = Driver::start()?;
    first_device(driver, version)
}

/// Refuses a driver that cannot run the images.
///
/// # Errors
/// [`Error::Device`] with both versions.
pub(super) fn expect_driver(found: &Found, images: &[KernelImage]) -> Result<()> {
    // Other chips get PTX, which must be known to the driver that compiles it.
    let has_machine_code = matches!(found.compute_capability, (8, _) | (9, 0));
    let needed = if has_machine_code {
        machine_code_needs(images)
    } else {
        images.iter().map(|image| image.toolkit).max().unwrap_or(0)
    };
    if found.driver < needed {
        return Err(too_old(found.driver, needed));
    }
    Ok(())
}

pub(super) fn unusable(problem: impl ToString, remedy: impl ToString) -> Error {
    Error::Device {
        device: "cuda".to_owned(),
        problem: problem.to_string(),
        remedy: remedy.to_string(),
    }
}

/// As [`probe_driver`], of the device with a number of its own: a rank's GPU among those of its host.
///
/// # Errors
/// As [`probe_driver`]; [`Error::Device`] when there are fewer.
pub fn probe_ordinal(ordinal: usize) -> Result<Found> {
    let (driver, version) = Driver::start()?;
    let count = count(driver)?;
    match i32::try_from(ordinal) {
        Ok(ordinal) if ordinal < count => usable(driver, version, ordinal),
        _ => Err(unusable(
            format!("rank {ordinal} of this host has no GPU: there are {count}"),
            "start one rank for each GPU of a host, or show more of them by CUDA_VISIBLE_DEVICES",
        )),
    }
}

fn count(driver: &Driver) -> Result<i32> {
    let mut count = 0;
    // SAFETY: the pointer is to a live integer.
    unsafe { driver.device_get_count(&mut count) }.map_err(cannot_tell)?;
    Ok(count)
}

fn first_device(driver: &Driver, version: i32) -> Result<Found> {
    let mut refused = None;
    for ordinal in 0..count(driver)? {
        match usable(driver, version, ordinal) {
            Err(problem) => refused.get_or_insert(problem),
            found => return found,
        };
    }
    Err(refused.unwrap_or_else(|| unusable(NO_DEVICE, SEE_DEVICES)))
}

/// One device, where the kernels run on it.
fn usable(driver: &Driver, version: i32, ordinal: i32) -> Result<Found> {
    let (found, is_prohibited) = device(driver, version, ordinal)?;
    if found.compute_capability < LEAST_CAPABILITY {
        let ((major, minor), (want_major, want_minor)) =
            (found.compute_capability, LEAST_CAPABILITY);
        return Err(unusable(
            format!(
                "the {} has compute capability {major}.{minor}, and the kernels need {want_major}.{want_minor}",
                found.name
            ),
            "use a GPU of the Ampere generation or newer, or choose --device cpu",
        ));
    }
    if is_prohibited {
        return Err(unusable(
            format!(
                "nobody may compute on the {}: its compute mode is Prohibited",
                found.name
            ),
            "allow it with `nvidia-smi -c DEFAULT` as administrator, or choose --device cpu",
        ));
    }
    Ok(found)
}

/// One device, and whether its compute mode prohibits contexts.
fn device(driver: &Driver, version: i32, ordinal: i32) -> Result<(Found, bool)> {
    let mut device = 0;
    let mut name = [0; 128];
    let mut bus_id = [0; 32];
    let mut memory_bytes = 0;
    // SAFETY: every pointer is to a live value; the texts' lengths are given, one less so that they end in zero.
    let has_bus_id = unsafe {
        driver
            .device_get(&mut device, ordinal)
            .map_err(cannot_tell)?;
        let length = name.len() as c_int - 1;
        driver
            .device_get_name(name.as_mut_ptr(), length, device)
            .map_err(cannot_tell)?;
        driver
            .device_total_mem(&mut memory_bytes, device)
            .map_err(cannot_tell)?;
        let length = bus_id.len() as c_int - 1;
        driver
            .device_get_pci_bus_id(bus_id.as_mut_ptr(), length, device)
            .is_ok()
    };
    let attribute = |which: Attribute| {
        let mut value = 0;
        // SAFETY: the pointer is to a live integer, and the device was just found.
        unsafe { driver.device_get_attribute(&mut value, which as c_int, device) }.map(|()| value)
    };
    let required = |which| attribute(which).map_err(cannot_tell);
    let [name, bus_id] = [&name[..], &bus_id[..]].map(|text: &[c_char]| {
        let text = CStr::from_bytes_until_nul(bytemuck::cast_slice(text));
        let text =
            text.expect("the last byte is a zero that the driver was not allowed to overwrite");
        text.to_string_lossy().into_owned()
    });
    let compute_capability = (
        required(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        required(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    let found = Found {
        ordinal,
        name,
        compute_capability,
        tier: tier(compute_capability)?,
        driver: version,
        memory_bytes: memory_bytes as u64,
        multiprocessors: required(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        // Deprecated, and missing under some hypervisors: without it only the share of peak is not known.
        clock_khz: attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE).unwrap_or(0),
        shared_limit: required(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?
            as u32,
        bus_id: if has_bus_id { bus_id } else { String::new() },
    };
    let mode = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_MODE).unwrap_or(0);
    Ok((found, mode == PROHIBITED))
}

/// The tier of a chip's programs, by `KEEL_CUDA_TIER`.
///
/// # Errors
/// [`Error::Setting`] where that variable has another value than `auto` or `portable`.
fn tier(compute_capability: (i32, i32)) -> Result<Tier> {
    let asked = std::env::var("KEEL_CUDA_TIER").unwrap_or_default();
    match asked.as_str() {
        "" | "auto" => Ok(Tier::of(compute_capability)),
        "portable" => Ok(Tier::Portable),
        other => Err(Error::setting("KEEL_CUDA_TIER", "auto or portable", other)),
    }
}

/// CU_COMPUTEMODE_PROHIBITED.
const PROHIBITED: c_int = 2;
