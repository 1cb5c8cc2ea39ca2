//! Launches that cannot be: each is refused before a thread runs, with both values.

use super::emulator;
use keel::executor::simt::{Argument, Element, Options};

#[test]
fn impossible_sizes_are_refused_with_both_values() {
    let Some(emulator) = emulator() else { return };
    let kernel = emulator
        .kernel("zoo_clean_copy")
        .expect("the zoo has this kernel");
    let floats = emulator
        .allocate(Element::F32, 128)
        .expect("512 bytes are there");
    let good = [
        Argument::whole(&floats),
        Argument::whole(&floats),
        Argument::I32(0),
    ];
    let sizes: [([u32; 3], [u32; 3], u32, &str); 5] = [
        ([0, 1, 1], [128, 1, 1], 512, "the grid (0,1,1)"),
        ([1, 70_000, 1], [128, 1, 1], 512, "the grid (1,70000,1)"),
        (
            [1, 1, 1],
            [64, 1, 1],
            512,
            "blocks of 128 threads, but the launch has 64",
        ),
        (
            [1, 1, 1],
            [128, 1, 1],
            256,
            "has 512 bytes, but the launch gives 256",
        ),
        (
            [1, 1, 1],
            [128, 1, 1],
            400_000,
            "400000 bytes of shared memory are over the limit",
        ),
    ];
    for (grid, block, shared_bytes, says) in sizes {
        let error = emulator
            .launch(
                &kernel,
                grid,
                block,
                shared_bytes,
                &good,
                &Options::default(),
            )
            .expect_err("the launch is impossible");
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn arguments_that_are_not_the_kernels_are_refused_with_both_values() {
    let Some(emulator) = emulator() else { return };
    let kernel = emulator
        .kernel("zoo_clean_copy")
        .expect("the zoo has this kernel");
    let floats = emulator
        .allocate(Element::F32, 128)
        .expect("512 bytes are there");
    let integers = emulator
        .allocate(Element::I32, 128)
        .expect("512 bytes are there");
    let good = [
        Argument::whole(&floats),
        Argument::whole(&floats),
        Argument::I32(0),
    ];
    let part = Argument::Slice {
        buffer: &floats,
        element: Element::F32,
        offset: 256,
        bytes: 512,
    };
    let lists: [(&[Argument<'_>], &str); 5] = [
        (&good[..2], "takes 3 arguments, but the launch passes 2"),
        (
            &[good[0], Argument::whole(&integers), good[2]],
            "takes const f32*, but the launch passes i32[128]",
        ),
        (
            &[good[0], good[2], good[1]],
            "argument 1: the entry point takes const f32*, but the launch passes 0i32",
        ),
        (
            &[good[0], good[1], Argument::F32(1.0)],
            "takes i32, but the launch passes 1f32",
        ),
        (
            &[good[0], part, good[2]],
            "do not lie in a buffer of 512 bytes",
        ),
    ];
    for (arguments, says) in lists {
        let error = emulator
            .launch(
                &kernel,
                [1, 1, 1],
                [128, 1, 1],
                512,
                arguments,
                &Options::default(),
            )
            .expect_err("the arguments are wrong");
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn a_kernel_that_no_source_has_is_refused_by_name() {
    let Some(emulator) = emulator() else { return };
    let error = emulator
        .kernel("zoo_unknown")
        .err()
        .expect("there is no such kernel");
    assert!(error.to_string().contains("zoo_unknown"), "{error}");
}

#[test]
fn results_do_not_depend_on_the_number_of_workers() {
    let Some(emulator) = emulator() else { return };
    let kernel = emulator
        .kernel("zoo_clean_votes")
        .expect("the zoo has this kernel");
    let input: Vec<f32> = (0..128).map(|i| i as f32).collect();
    let mut results = Vec::new();
    for workers in [1, 2, 5] {
        let mut from = emulator
            .allocate(Element::F32, 128)
            .expect("512 bytes are there");
        let to = emulator
            .allocate(Element::F32, 128)
            .expect("512 bytes are there");
        from.write(&input).expect("the buffer has this length");
        let arguments = [
            Argument::whole(&to),
            Argument::whole(&from),
            Argument::I32(0),
        ];
        let options = Options {
            workers,
            seed: 9,
            ..Options::default()
        };
        emulator
            .launch(&kernel, [64, 1, 1], [128, 1, 1], 0, &arguments, &options)
            .expect("the kernel is clean");
        results.push(to.read::<f32>().expect("whole floats"));
    }
    assert!(results.iter().all(|result| result == &results[0]));
}

#[test]
fn an_unknown_planted_bug_is_refused() {
    let Some(emulator) = emulator() else { return };
    let kernel = emulator
        .kernel("zoo_clean_copy")
        .expect("the zoo has this kernel");
    let buffer = emulator
        .allocate(Element::F32, 128)
        .expect("512 bytes are there");
    let other = emulator
        .allocate(Element::F32, 128)
        .expect("512 bytes are there");
    let options = Options {
        planted_bug: Some("no such bug"),
        ..Options::default()
    };
    let arguments = [
        Argument::whole(&buffer),
        Argument::whole(&other),
        Argument::I32(0),
    ];
    let error = emulator
        .launch(&kernel, [1, 1, 1], [128, 1, 1], 512, &arguments, &options)
        .expect_err("no thread can come past it");
    assert!(error.to_string().contains("no such bug"), "{error}");
}
