//! The GPU path without a GPU: a driver of our own (driver.cpp) in the place of NVIDIA's, which runs the kernels on the
//! emulator. Which library is loaded is settled when a process starts, so every test runs itself again as a child whose
//! LD_LIBRARY_PATH holds the driver it wants.

mod cases;
#[cfg(feature = "cust")]
mod cust;
mod failures;
mod plan;
mod probe;
mod steps;
mod train;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use keel::error::Result;
use keel::executor::kernel_table::BUILD_FOLDER;
use keel::executor::{CudaExecutor, cuda};
use keel::tensor::DType;

use crate::harness::images;

/// Set in children; they do the work, their parent starts them and looks at what they did.
const CHILD: &str = "KEEL_VERIFY_CHILD";

/// A folder of this program's own for libraries, apart from those of other builds.
pub(crate) fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("drivers")
        .join(name);
    std::fs::create_dir_all(&folder).expect("the target folder can be written");
    folder
}

/// Puts a library where the loader finds it under both of its names, and under that of the management library. Atomic, as other tests may look at the same time.
fn install(folder: &Path, make: impl FnOnce(&Path)) {
    let partial = folder.join(format!("partial.{}", std::process::id()));
    make(&partial);
    for name in ["libcuda.so", "libnvidia-ml.so.1", "libcuda.so.1"] {
        let copy = partial.with_extension(format!("{name}.{}", std::process::id()));
        let made = match name {
            // One library under both names, as NVIDIA installs it.
            "libcuda.so" => std::os::unix::fs::symlink("libcuda.so.1", &copy),
            _ => std::fs::copy(&partial, &copy).map(drop),
        };
        made.and_then(|()| std::fs::rename(&copy, folder.join(name)))
            .expect("the target folder can be written");
    }
    std::fs::remove_file(&partial).expect("it was just made");
}

pub(crate) fn compile(arguments: &[&str], to: &Path) {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-O1", "-fPIC", "-shared", "-s", "-pthread"])
        .args(arguments)
        .arg("-o")
        .arg(to)
        .output()
        .expect("the compiler that built the emulator starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{compiler}: {said}");
}

/// The folder of the driver that executes; `None` where this program was built without the emulator.
pub(crate) fn executing_driver() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let made = FOLDER.get_or_init(|| {
        let emulator = Path::new(BUILD_FOLDER).join("libkeel_simt.a");
        let code = std::fs::read(&emulator).ok()?;
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let source = root.join("verify/cuda/driver.cpp");
        let mut hash = blake3::Hasher::new();
        hash.update(&std::fs::read(&source).expect("it is part of the repository"));
        hash.update(&code);
        let folder = folder(&hash.finalize().to_hex()[..16]);
        if !folder.join("libcuda.so.1").exists() {
            let include = format!("-I{}", root.join("cuda").display());
            install(&folder, |to| {
                compile(
                    &[
                        "-fvisibility=hidden",
                        &include,
                        &source.to_string_lossy(),
                        &emulator.to_string_lossy(),
                        "-Wl,--exclude-libs,ALL",
                    ],
                    to,
                );
            });
        }
        Some(folder)
    });
    if made.is_none() {
        eprintln!("not run: this program was built without the kernel emulator");
    }
    made.as_deref()
}

/// Runs the test `name` of this program as a child with the driver in `library` under `settings` (see driver.cpp).
fn child(name: &str, library: &Path, settings: &str, variables: &[(&str, &str)]) -> Output {
    Command::new(std::env::current_exe().expect("this program has a path"))
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .env("LD_LIBRARY_PATH", library)
        .env("KEEL_FAKE_CUDA", settings)
        .envs(variables.iter().copied())
        .output()
        .expect("this program starts")
}

/// Whether this process is such a child.
fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// In a child: the executor of the GPU that its driver has.
fn executor(elements: usize, precision: DType) -> Result<CudaExecutor> {
    let found = cuda::probe_driver()?;
    Ok(CudaExecutor::with_images(found, elements, images())?.in_precision(precision))
}

/// The children of one test: the log that their driver writes, which the next one overwrites.
struct Children {
    name: &'static str,
    driver: &'static Path,
    log: tempfile::NamedTempFile,
}

/// What a child did.
struct Outcome {
    /// Standard output.
    said: String,
    /// Standard error.
    noise: String,
    /// What its driver was asked to do, line by line.
    log: String,
}

impl Children {
    /// `None` where there is no driver to run them with.
    fn of(name: &'static str) -> Option<Children> {
        Some(Children {
            name,
            driver: executing_driver()?,
            log: tempfile::NamedTempFile::new().expect("a file of our own"),
        })
    }

    /// Runs one, which must succeed and leave nothing behind on the device.
    fn run(&self, settings: &str, variables: &[(&str, &str)]) -> Outcome {
        std::fs::write(self.log.path(), "").expect("the file is there");
        let settings = format!("{settings} log={}", self.log.path().display());
        let output = child(self.name, self.driver, settings.trim(), variables);
        let outcome = Outcome {
            said: String::from_utf8_lossy(&output.stdout).into_owned(),
            noise: String::from_utf8_lossy(&output.stderr).into_owned(),
            log: std::fs::read_to_string(self.log.path()).expect("the child wrote it"),
        };
        let Outcome { said, noise, log } = &outcome;
        assert!(output.status.success(), "{settings}:\n{said}{noise}");
        assert!(said.contains("1 passed"), "{settings}:\n{said}{noise}");
        assert!(!log.contains("misuse"), "{settings}:\n{log}");
        let left = "left: 0 device, 0 host, 0 streams, 0 events, 0 graphs, 0 modules";
        assert!(
            log.contains(left) || !log.contains("context"),
            "{settings}:\n{said}{noise}{log}"
        );
        outcome
    }
}
