//! The GPU path without a GPU: a driver of our own (driver.cpp) in the place of NVIDIA's, which runs the kernels on the
//! emulator. Which library is loaded is settled when a process starts, so every test runs itself again as a child whose
//! LD_LIBRARY_PATH holds the driver it wants.

mod probe;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// Set in children; they do the work, their parent starts them and looks at what they did.
const CHILD: &str = "KEEL_VERIFY_CHILD";

/// A folder of this program's own for libraries, apart from those of other builds.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("drivers")
        .join(name);
    std::fs::create_dir_all(&folder).expect("the target folder can be written");
    folder
}

/// Puts a library where the loader finds it under both of its names. Atomic, as other tests may look at the same time.
fn install(folder: &Path, make: impl FnOnce(&Path)) {
    let partial = folder.join(format!("partial.{}", std::process::id()));
    make(&partial);
    for name in ["libcuda.so", "libcuda.so.1"] {
        let copy = partial.with_extension(format!("{name}.{}", std::process::id()));
        std::fs::copy(&partial, &copy)
            .and_then(|_| std::fs::rename(&copy, folder.join(name)))
            .expect("the target folder can be written");
    }
    std::fs::remove_file(&partial).expect("it was just made");
}

fn compile(arguments: &[&str], to: &Path) {
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
fn executing_driver() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let made = FOLDER.get_or_init(|| {
        let emulator = Path::new(env!("OUT_DIR")).join("libkeel_simt.a");
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
