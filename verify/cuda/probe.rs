//! Every way in which there is no usable GPU is one sentence, and none is a panic.

use super::{child, compile, executing_driver, folder, install, is_child};
use crate::harness::images;
use keel::executor::kernel_table::KernelImage;
use keel::executor::{CudaExecutor, cuda, kernel_table};
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
            "the toolkit's stub, which has no driver behind it (CUDA_ERROR_STUB_LIBRARY (34)); take the folder of stubs",
        ),
        (
            "fail=cuInit:1:100",
            "sees no device (CUDA_ERROR_NO_DEVICE (100)); see whether CUDA_VISIBLE_DEVICES",
        ),
        (
            "fail=cuInit:1:803",
            "are of different versions (CUDA error 803); restart the machine",
        ),
        (
            "fail=cuInit:1:802",
            "waits for the fabric that joins the GPUs of this machine (CUDA error 802); start the service nvidia-fabricmanager",
        ),
        (
            "fail=cuInit:1:804",
            "for forward compatibility, which this GPU does not allow (CUDA error 804); take the folder",
        ),
        (
            "fail=cuInit:1:4321",
            "the CUDA driver does not start (CUDA error 4321); see what `nvidia-smi` says",
        ),
        (
            "version=11080",
            // By the nvcc that built this program, if one did.
            if kernel_table::IMAGES.is_empty() {
                "the driver knows CUDA 11.8, and the kernels need 12.0; install the NVIDIA driver, 525 or newer"
            } else {
                "the driver knows CUDA 11.8, and the kernels need "
            },
        ),
        (
            "devices=0",
            "the CUDA driver sees no device; see whether CUDA_VISIBLE_DEVICES hides it or its MIG mode is on",
        ),
        (
            "mode=2",
            "nobody may compute on the Emulated GPU 0: its compute mode is Prohibited; allow it with `nvidia-smi -c DEFAULT`",
        ),
        (
            "capability=75",
            "the Emulated GPU 0 has compute capability 7.5, and the kernels need 8.0; use a GPU of the Ampere",
        ),
        (
            "fail=cuDeviceGetAttribute:1:46",
            "cannot say what there is (CUDA error 46); see what `nvidia-smi`",
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

/// What comes of opening the GPU with images that CUDA `toolkit` made.
fn opened(toolkit: i32) -> String {
    let images: Vec<KernelImage> = images()
        .iter()
        .map(|image| KernelImage { toolkit, ..*image })
        .collect();
    let found = cuda::probe_driver().expect("the driver has a GPU");
    match CudaExecutor::with_images(found, 0, images.leak()) {
        Ok(_) => "opens".to_owned(),
        Err(problem) => problem.to_string(),
    }
}

#[test]
fn a_driver_is_as_new_as_the_images_need_and_no_newer() {
    if is_child() {
        for toolkit in [0, 12_000, 12_060, 13_000] {
            println!("made by {toolkit}: {}", opened(toolkit));
        }
        return;
    }
    let name = "cuda::probe::a_driver_is_as_new_as_the_images_need_and_no_newer";
    let Some(driver) = executing_driver() else {
        return;
    };
    let too_old = |knows: &str, need: &str, driver: &str| {
        format!(
            "device cuda: the driver knows CUDA {knows}, and the kernels need {need}; install the NVIDIA driver{driver}, or \
             choose --device cpu"
        )
    };
    let opens = || "opens".to_owned();
    // Machine code runs on any driver of its major version; PTX, which chips after sm_90 get, on none that is older.
    for (settings, want) in [
        (
            "version=12000",
            [
                opens(),
                opens(),
                opens(),
                too_old("12.0", "13.0", ", 580 or newer"),
            ],
        ),
        ("version=13000", [opens(), opens(), opens(), opens()]),
        (
            "version=12020 capability=100",
            [
                opens(),
                opens(),
                too_old("12.2", "12.6", " for CUDA 12.6 or newer"),
                too_old("12.2", "13.0", ", 580 or newer"),
            ],
        ),
    ] {
        let output = child(name, driver, settings, &[]);
        let text = String::from_utf8_lossy(&output.stdout);
        let said: Vec<&str> = text
            .lines()
            .filter_map(|line| Some(line.split_once("made by ")?.1.split_once(": ")?.1))
            .collect();
        assert_eq!(said, want, "{settings}");
    }
}
