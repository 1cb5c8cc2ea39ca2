//! Every way in which there is no usable GPU is one sentence, and none is a panic.

use super::{child, compile, executing_driver, folder, install, is_child};
use keel::executor::{cuda, kernel_table};
use std::path::Path;

const NAME: &str = "cuda::probe::the_probe_names_the_gpu_it_finds";

/// What the probe of a child says with the driver in `library`, on its one line.
fn said(library: &Path, settings: &str) -> String {
    let output = child(NAME, library, settings, &[]);
    let (text, noise) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{text}{noise}");
    assert!(!noise.contains("panicked"), "{noise}");
    text.lines()
        .find_map(|line| line.split_once("probe: "))
        .unwrap_or_else(|| panic!("the child said nothing: {text}{noise}"))
        .1
        .to_owned()
}

#[test]
fn the_probe_names_the_gpu_it_finds() {
    if is_child() {
        match cuda::probe() {
            Ok(found) => println!("probe: {found}"),
            Err(problem) => println!("probe: {problem}"),
        }
        return;
    }
    let Some(driver) = executing_driver() else {
        return;
    };
    let text = said(driver, "");
    let gpu = "Emulated GPU 0, 1 GiB, sm_90, driver for CUDA 13.0";
    if kernel_table::IMAGES.is_empty() {
        assert!(
            text.contains(gpu) && text.contains("without nvcc"),
            "{text}"
        )
    } else {
        assert_eq!(text, gpu)
    }
}

#[test]
fn a_driver_that_will_not_do_is_one_sentence() {
    let Some(driver) = executing_driver() else {
        return;
    };
    let cases = [
        (
            "fail=cuInit:1:34",
            "the toolkit's stub, which has no driver behind it (CUDA_ERROR_STUB_LIBRARY, 34); take the folder of stubs",
        ),
        (
            "fail=cuInit:1:100",
            "sees no device (CUDA_ERROR_NO_DEVICE, 100); see whether CUDA_VISIBLE_DEVICES",
        ),
        (
            "fail=cuInit:1:803",
            "are of different versions (code 803); restart the machine",
        ),
        (
            "fail=cuInit:1:4321",
            "the CUDA driver does not start (code 4321); see what `nvidia-smi` says",
        ),
        (
            "version=12040",
            "the driver knows CUDA 12.4, and the kernels need 13.0; install the NVIDIA driver, 580",
        ),
        (
            "devices=0",
            "the CUDA driver sees no device; see whether CUDA_VISIBLE_DEVICES",
        ),
        (
            "capability=75",
            "the Emulated GPU 0 has compute capability 7.5, and the kernels need 8.0; use a GPU of the Ampere",
        ),
        (
            "fail=cuDeviceGetAttribute:1:46",
            "cannot say what there is (code 46); see what `nvidia-smi`",
        ),
    ];
    for (settings, want) in cases {
        let text = said(driver, settings);
        assert!(text.starts_with("device cuda: "), "{settings}: {text}");
        assert!(text.contains(want), "{settings}: {text}");
    }
}

#[test]
fn a_library_that_is_no_driver_is_one_sentence() {
    if executing_driver().is_none() {
        return;
    }
    let garbage = folder("garbage");
    install(&garbage, |to| {
        std::fs::write(to, "no library at all").unwrap()
    });
    let text = said(&garbage, "");
    assert!(
        text.contains(
            "no CUDA driver library (libcuda.so.1) can be loaded; install the NVIDIA driver"
        ),
        "{text}"
    );

    let cases = [
        (
            "empty",
            "int unrelated() { return 0; }",
            "lacks the function cuInit; install the NVIDIA driver",
        ),
        (
            "partial",
            "extern \"C\" int cuInit(unsigned) { return 0; }\n\
             extern \"C\" int cuDriverGetVersion(int* version) { *version = 13000; return 0; }",
            "lacks the function cuCtxSetCurrent; install the NVIDIA driver",
        ),
    ];
    for (name, code, want) in cases {
        let folder = folder(name);
        let source = folder.join("library.cpp");
        std::fs::write(&source, code).unwrap();
        install(&folder, |to| compile(&[&source.to_string_lossy()], to));
        let text = said(&folder, "");
        assert!(text.contains(want), "{text}");
    }
}
