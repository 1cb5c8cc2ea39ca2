//! The GPU of this machine, where there is one: what the cases run on besides the executors that every machine has.
//!
//! The tests' own driver is no GPU. Cases run on it only where it was asked for by `KEEL_EXPECTED=read:…`, and everything they
//! say then names it.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use keel::executor::kernel_table::{IMAGES, KERNELS, KernelImage};
use keel::executor::resolved::resolve;
use keel::executor::{CudaExecutor, cuda};
use keel::program::Program;

use super::expected::{self, Expected, expected};

/// What the tests' driver calls its device (verify/cuda/driver.cpp).
const STAND_IN: &str = "Emulated GPU";

/// A device and its executor without parameters, which all cases of a process share: loading the images anew for each would
/// take longer than the case.
pub struct Gpu {
    pub executor: CudaExecutor,
    pub found: cuda::Found,
}

impl Gpu {
    /// Whether this is the tests' own driver, which computes on the host.
    pub fn is_stand_in(&self) -> bool {
        self.found.name.starts_with(STAND_IN)
    }

    /// Adds a row that says which kernels of `program` are held to what is right here, beside those of [`super::check`].
    pub fn note(&self, case: &str, program: &Program) {
        expected::row(&serde_json::json!({
            "kind": "case",
            "case": case,
            "device": self.found.name,
            "stand_in": self.is_stand_in(),
            "kernels": kernels_of(program),
        }));
    }

    /// An executor of its own with `elements` parameters.
    pub fn executor(&self, elements: usize) -> CudaExecutor {
        CudaExecutor::with_images(self.found.clone(), elements, images())
            .unwrap_or_else(|problem| panic!("{problem}"))
    }
}

/// The kernels that a program launches.
pub fn kernels_of(program: &Program) -> BTreeSet<&'static str> {
    let steps = resolve(program).unwrap_or_else(|problem| panic!("{problem}"));
    let launches = steps.iter().flat_map(|step| &step.launches);
    launches.map(|launch| launch.kernel.name).collect()
}

/// The GPU, or `None` where cases do not run on one.
pub fn gpu() -> Option<&'static Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    let open = || match open() {
        Ok(gpu) => Some(gpu),
        // Who asked for the GPU alone must not be told that all is well without one.
        Err(reason) if matches!(expected(), Expected::Read(_)) => panic!("{reason}"),
        Err(_) => None,
    };
    GPU.get_or_init(open).as_ref()
}

fn open() -> Result<Gpu, String> {
    let found = cuda::probe_driver().map_err(|problem| problem.to_string())?;
    let is_stand_in = found.name.starts_with(STAND_IN);
    if is_stand_in && !matches!(expected(), Expected::Read(_)) {
        return Err(format!("{found} is no GPU"));
    }
    if !is_stand_in {
        // With code for it, and a driver that is new enough for the code.
        cuda::probe().map_err(|problem| {
            eprintln!("no case runs on the GPU: {problem}");
            problem.to_string()
        })?;
    }
    let executor = CudaExecutor::with_images(found.clone(), 0, images())
        .map_err(|problem| problem.to_string())?;
    Ok(Gpu { executor, found })
}

/// A fatbin's first four bytes, which are all that the tests' driver looks at.
const FATBIN: &[u8] = &0xba55_ed50u32.to_le_bytes();

/// The images of this program, or stand-ins for the tests' driver where it was built without nvcc.
pub fn images() -> &'static [KernelImage] {
    static STAND_INS: OnceLock<Vec<KernelImage>> = OnceLock::new();
    if !IMAGES.is_empty() {
        return IMAGES;
    }
    STAND_INS.get_or_init(|| {
        let mut stems: Vec<&str> = KERNELS.iter().map(|kernel| kernel.stem).collect();
        stems.dedup();
        let image = |stem| KernelImage {
            stem,
            toolkit: 0,
            fatbin: FATBIN,
            ptxas: "",
            census: "",
        };
        stems.into_iter().map(image).collect()
    })
}
