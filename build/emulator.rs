//! The emulator library: cuda/simt, every kernel of cuda/ and the zoo of faulty kernels, for the host. With the feature
//! `simt-checked` the kernels carry the compiler's race-detection hooks, which cuda/simt/hooks.cpp answers.

use super::cache::{Cache, key};
use super::source::{self, Source};
use super::{files, stem};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One file to compile, and where its object lies.
struct Unit {
    source: PathBuf,
    is_kernel: bool,
    object: PathBuf,
}

/// Builds the library and tells cargo to link it; `read` is what `sources` hold. Without a C++ compiler it says so.
pub fn build(root: &Path, out: &Path, cache: &Cache, sources: &[PathBuf], read: &[Source]) {
    let checked = std::env::var_os("CARGO_FEATURE_SIMT_CHECKED").is_some();
    if !supported() {
        return;
    }
    let runtime = compiler(root, checked, false);
    let kernels = compiler(root, checked, true);
    let Some(version) = version(&runtime) else {
        println!(
            "cargo:warning=no C++ compiler was found, so the kernel emulator (--device simt) is left out; install g++ \
             or clang++, or name one in CXX"
        );
        return;
    };
    let zoo = files(&root.join("cuda/simt/zoo"), "cu");
    let runtime_sources = files(&root.join("cuda/simt"), "cpp");
    let unit = |source: &PathBuf, is_kernel: bool| {
        let settings = [
            version.clone(),
            format!(
                "{:?}",
                if is_kernel { &kernels } else { &runtime }.to_command()
            ),
        ];
        let key = key(source, &settings);
        Unit {
            source: source.clone(),
            is_kernel,
            object: cache.path(&key, "o"),
        }
    };
    let units: Vec<Unit> = runtime_sources
        .iter()
        .filter(|path| checked || !matches!(stem(path).as_str(), "checker" | "hooks"))
        .map(|path| unit(path, false))
        .chain(sources.iter().chain(&zoo).map(|path| unit(path, true)))
        .collect();
    compile_missing(root, out, cache, &units, checked);

    let cuda = root.join("cuda");
    let faulty: Vec<Source> = zoo.iter().map(|path| source::read(&cuda, path)).collect();
    let names: Vec<&str> = read
        .iter()
        .chain(&faulty)
        .flat_map(|source| &source.kernels)
        .map(|kernel| kernel.name.as_str())
        .collect();
    let mut seen = HashSet::new();
    if let Some(twice) = names.iter().find(|name| !seen.insert(**name)) {
        panic!("two kernels of cuda/ are called {twice}; give one another name");
    }
    let table = write_table(out, &names);
    base(root)
        .file(table)
        .objects(units.iter().map(|unit| &unit.object))
        .compile("keel_simt");
    println!("cargo:rustc-cfg=keel_simt");
}

/// The fiber switch is written for two architectures, the fault handling for Linux.
fn supported() -> bool {
    let target = |name: &str| super::variable(&format!("CARGO_CFG_TARGET_{name}"));
    target("OS") == "linux" && matches!(target("ARCH").as_str(), "x86_64" | "aarch64")
}

fn base(root: &Path) -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        // Lines are all that reports need; the rest of the debug information would cost a third of the compile.
        .debug(true)
        .flag("-g1")
        .include(root.join("cuda"))
        // Reports and debug information name files from the repository's root; the last option that fits counts.
        .flag(format!("-ffile-prefix-map={}=.", root.display()))
        .flag(format!("-ffile-prefix-map={}/=", root.display()))
        .flag("-fno-exceptions")
        .flag("-fno-rtti");
    build
}

fn builder(root: &Path, checked: bool, is_kernel: bool) -> cc::Build {
    let mut build = base(root);
    if checked {
        build.define("SIMT_CHECKED", None);
    }
    if !is_kernel {
        build.opt_level(2);
        return build;
    }
    // Without checks most of the emulator's time is not spent in the kernels themselves: more optimisation would cost a
    // clean build more than it saves the tests. No contraction: the same bits on every host. No strict aliasing: kernels
    // reinterpret memory, as nvcc allows. A frame is probed page by page, so one that does not fit its stack meets the
    // page below it, and never skips over that page into another thread's stack.
    build
        .opt_level(if checked { 2 } else { 1 })
        .define("SIMT_EMULATOR", None)
        .flag("-ffp-contract=off")
        .flag("-fno-strict-aliasing")
        .flag_if_supported("-fstack-clash-protection")
        .flag("-x")
        .flag("c++");
    if checked {
        build.flag("-fsanitize=thread,alignment,bounds,shift,integer-divide-by-zero");
    }
    build
}

fn compiler(root: &Path, checked: bool, is_kernel: bool) -> cc::Tool {
    builder(root, checked, is_kernel).get_compiler()
}

fn version(tool: &cc::Tool) -> Option<String> {
    let output = Command::new(tool.path()).arg("--version").output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Compiles what the cache lacks, in parallel.
fn compile_missing(root: &Path, out: &Path, cache: &Cache, units: &[Unit], checked: bool) {
    for is_kernel in [false, true] {
        let missing: Vec<&Unit> = units
            .iter()
            .filter(|unit| unit.is_kernel == is_kernel)
            .filter(|unit| !unit.object.exists())
            .collect();
        if missing.is_empty() {
            continue;
        }
        let objects = builder(root, checked, is_kernel)
            .out_dir(out.join("objects"))
            .files(missing.iter().map(|unit| &unit.source))
            .compile_intermediates();
        for (unit, object) in missing.iter().zip(&objects) {
            cache.store(object, &unit.object);
        }
    }
}

/// The list of kernels the runtime searches: plain references, so that the linker keeps every one.
fn write_table(out: &Path, names: &[&str]) -> PathBuf {
    let mut text = String::from("#include \"simt/abi.h\"\nextern \"C\" {\n");
    for name in names {
        text += &format!("extern const KeelKernel keel_kernel_{name};\n");
    }
    text += "extern const KeelKernel* const keel_simt_kernels[];\nextern const uint32_t keel_simt_kernels_count;\n";
    text += "const KeelKernel* const keel_simt_kernels[] = {\n";
    for name in names {
        text += &format!("    &keel_kernel_{name},\n");
    }
    text += &format!(
        "    nullptr}};\nconst uint32_t keel_simt_kernels_count = {};\n}}\n",
        names.len()
    );
    let path = out.join("kernel_table.cpp");
    super::write(&path, &text);
    path
}
