//! The repository keeps its own rules: every op has its cases and its kernels, every kernel its header, files stay readable,
//! recipes say where they come from. What documentation claims is for verify/documents.rs; that every kernel is launched,
//! for verify/simt/coverage.rs.

use std::fs;
use std::path::{Path, PathBuf};

use keel::executor::kernel_table::KERNELS;
use keel_kernel_report::{FIELDS, header};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `folder` whose names end in `ending`.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder is part of the checkout") {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// What the ops share: no op of its own.
const SHARED: [&str; 8] = [
    "mod",
    "parameter_groups",
    "rows",
    "shapes",
    "sharded_gradients",
    "sharded_masters",
    "sharded_update",
    "special",
];

/// Ops without kernels of their own: an executor hands those of the first to the engine of its rank, and products of tokens are
/// launches of the kernels of linear layers.
const WITHOUT_KERNELS: [&str; 2] = ["collective", "gram"];

/// Ops that only make sense inside another op's case.
const PROVEN_ELSEWHERE: [(&str, &str); 2] = [("grad_norm", "adamw"), ("splice", "embedding")];

#[test]
fn every_op_has_a_file_of_cases() {
    let cases = root().join("verify/ops");
    for entry in fs::read_dir(root().join("src/engine/ops")).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        if SHARED.contains(&stem.as_str()) {
            continue;
        }
        let proven = PROVEN_ELSEWHERE
            .iter()
            .find(|(op, _)| *op == stem)
            .map_or(&*stem, |(_, by)| by);
        assert!(
            cases.join(format!("{proven}.rs")).exists() || cases.join(proven).is_dir(),
            "src/engine/ops/{stem} has no verify/ops/{proven}.rs"
        );
    }
}

#[test]
fn every_op_has_a_file_of_kernels() {
    for entry in fs::read_dir(root().join("src/engine/ops")).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        if SHARED.contains(&stem.as_str()) || WITHOUT_KERNELS.contains(&stem.as_str()) {
            continue;
        }
        let source = root().join(format!("cuda/{stem}.cu"));
        let text = fs::read_to_string(&source).unwrap_or_default();
        assert!(
            text.contains("KERNEL("),
            "src/engine/ops/{stem} has no kernel in {}",
            source.display()
        );
    }
}

#[test]
fn every_kernel_has_a_header_with_every_field() {
    let mut problems = Vec::new();
    for kernel in KERNELS {
        let Some(header) = header(kernel.stem, kernel.name) else {
            problems.push(format!("{} has no header", kernel.name));
            continue;
        };
        for field in FIELDS {
            if header.field(field).is_none_or(str::is_empty) {
                problems.push(format!("{} says nothing of {field}", kernel.name));
            }
        }
    }
    assert!(problems.is_empty(), "in cuda/: {}", problems.join("; "));
}

#[test]
fn no_source_file_hides_a_concept_behind_its_length() {
    let mut long = Vec::new();
    for folder in ["src", "verify", "tools", "build", "bench"] {
        for path in files(&root().join(folder), ".rs") {
            let lines = fs::read_to_string(&path).unwrap().lines().count();
            if lines > 800 {
                long.push(format!("{} ({lines} lines)", path.display()));
            }
        }
    }
    assert!(
        long.is_empty(),
        "split these by concept: {}",
        long.join(", ")
    );
}

#[test]
fn no_check_is_switched_off_and_no_work_is_left_open() {
    // Assembled, so that this file does not hold what it looks for.
    let marks = [["#[ig", "nore"], ["to", "do!("], ["unimpl", "emented!("]].map(|m| m.concat());
    for folder in ["src", "verify", "tools", "build", "bench"] {
        for path in files(&root().join(folder), ".rs") {
            let text = fs::read_to_string(&path).unwrap();
            for mark in &marks {
                assert!(!text.contains(mark), "{} holds {mark}", path.display());
            }
        }
    }
}

#[test]
fn every_recipe_opens_with_source_expected_time_and_name() {
    for path in files(&root().join("recipes"), ".toml") {
        let text = fs::read_to_string(&path).unwrap();
        for mark in ["# Source: ", "# Expected time: ", "\nname = "] {
            assert!(text.contains(mark), "{} lacks {mark:?}", path.display());
        }
    }
}

/// Where unsafe code may stand.
const UNSAFE: [&str; 5] = [
    "src/engine/executor",
    "src/ranks/nccl",
    "src/cpu",
    "src/base/mapped_file.rs",
    "src/cli/memory.rs",
];

#[test]
fn unsafe_code_stands_only_where_contributing_says() {
    let page = fs::read_to_string(root().join("CONTRIBUTING.md")).unwrap();
    for place in UNSAFE {
        assert!(page.contains(&format!("`{place}`")), "{place} is not named");
    }
    for path in files(&root().join("src"), ".rs") {
        let text = fs::read_to_string(&path).unwrap();
        let allowed = UNSAFE
            .iter()
            .any(|place| path.starts_with(root().join(place)));
        assert!(
            allowed || !text.contains("allow(unsafe_code)"),
            "{} allows unsafe code",
            path.display()
        );
    }
}

#[test]
fn time_is_read_through_one_seam() {
    // Tests drive it there. Executors and the measuring of peaks only time arithmetic, and no run waits for what they say.
    for folder in [
        "src/base",
        "src/data",
        "src/eval",
        "src/report",
        "src/train",
        "src/cli",
    ] {
        for path in files(&root().join(folder), ".rs") {
            let text = fs::read_to_string(&path).unwrap();
            let reads = text.contains("Instant::now") || text.contains("SystemTime::now");
            assert!(
                !reads || path.ends_with("src/base/clock.rs"),
                "{} asks the machine for the time: use keel_base::clock::Clock",
                path.display()
            );
        }
    }
}
