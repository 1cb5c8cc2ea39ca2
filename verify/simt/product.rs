//! The products of cuda/product.cuh in both sizes of tile, on problems that are small enough to emulate and whole numbers
//! that make every sum exact. Op cases see the large tiles only at sizes that no test can afford.

use super::{buffer, emulator, product, transposed, whole};
use crate::harness::Random;
use keel::error::Result;
use keel::executor::simt::{Argument, Buffer, Element, Emulator, Options};

/// Rows, columns and inner length of y = x·Wᵀ.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    m: usize,
    n: usize,
    k: usize,
}

/// Rows of whole 16 bytes, and rows of odd length; several tiles each way, more steps than stages. 144 makes the last step
/// end in the first stage whatever the type, where the result then takes its place.
const SIZES: [Sizes; 2] = [
    Sizes {
        m: 136,
        n: 152,
        k: 144,
    },
    Sizes {
        m: 131,
        n: 133,
        k: 67,
    },
];

/// One storage type and size of tile.
#[derive(Clone, Copy, Debug)]
struct Variant {
    element: Element,
    is_small: bool,
}

impl Variant {
    fn all() -> [Variant; 4] {
        [
            (Element::Bf16, false),
            (Element::Bf16, true),
            (Element::F32, false),
            (Element::F32, true),
        ]
        .map(|(element, is_small)| Variant { element, is_small })
    }

    fn kernel(self, name: &str) -> String {
        let size = if self.is_small { "_small" } else { "" };
        format!("{name}{size}_{}", self.element)
    }

    fn blocks(self, rows: usize, columns: usize) -> u32 {
        let tile = if self.is_small { 64 } else { 128 };
        (rows.div_ceil(tile) * columns.div_ceil(tile)) as u32
    }
}

fn launch(
    emulator: &Emulator,
    kernel: &str,
    grid: [u32; 3],
    arguments: &[Argument<'_>],
    options: &Options<'_>,
) -> Result<()> {
    let kernel = emulator.kernel(kernel)?;
    let block = [kernel.threads.expect("a fixed block"), 1, 1];
    let shared = kernel.shared_bytes;
    emulator.launch(&kernel, grid, block, shared, arguments, options)
}

fn size(size: usize) -> Argument<'static> {
    Argument::I32(size as i32)
}

/// What a buffer of either float type holds.
fn floats(buffer: &Buffer) -> Result<Vec<f32>> {
    Ok(match buffer.element() {
        Element::Bf16 => {
            let bits: Vec<u16> = buffer.read()?;
            bits.iter()
                .map(|bits| f32::from_bits(u32::from(*bits) << 16))
                .collect()
        }
        _ => buffer.read()?,
    })
}

fn sum(left: &[f32], right: &[f64]) -> Vec<f32> {
    left.iter().zip(right).map(|(l, r)| l + *r as f32).collect()
}

/// y = x·Wᵀ + bias + residual with z = x·Wᵀ + bias, the residual in y's place: found and right.
fn forward(
    emulator: &Emulator,
    variant: Variant,
    Sizes { m, n, k }: Sizes,
    options: &Options<'_>,
) -> Result<[(Vec<f32>, Vec<f32>); 2]> {
    let mut random = Random::new(1);
    let (x, w) = (
        whole(&mut random, m, k, 2, false),
        whole(&mut random, n, k, 1, false),
    );
    let (bias, residual) = (
        whole(&mut random, 1, n, 9, false),
        whole(&mut random, m, n, 9, false),
    );
    let mut z_right = product(&x, &transposed(&w, n, k), m, n, k);
    z_right
        .iter_mut()
        .enumerate()
        .for_each(|(i, z)| *z += bias[i % n] as f32);
    let y_right = sum(&z_right, &residual);
    let y = buffer(emulator, variant.element, &residual)?;
    let z = emulator.allocate(variant.element, m * n)?;
    let x = buffer(emulator, variant.element, &x)?;
    let w = buffer(emulator, variant.element, &w)?;
    let bias = buffer(emulator, Element::F32, &bias)?;
    let arguments = [
        Argument::whole(&y),
        Argument::whole(&z),
        Argument::whole(&x),
        Argument::whole(&w),
        Argument::whole(&bias),
        Argument::whole(&y),
        Argument::Null,
        size(m),
        size(n),
        size(k),
        size(0),
    ];
    let grid = [variant.blocks(m, n), 1, 1];
    launch(
        emulator,
        &variant.kernel("linear_forward"),
        grid,
        &arguments,
        options,
    )?;
    Ok([(floats(&y)?, y_right), (floats(&z)?, z_right)])
}

/// dx = dy·W + what is there.
fn input_gradient(
    emulator: &Emulator,
    variant: Variant,
    Sizes { m, n, k }: Sizes,
    options: &Options<'_>,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let mut random = Random::new(2);
    let (dy, w) = (
        whole(&mut random, m, n, 2, false),
        whole(&mut random, n, k, 1, false),
    );
    let before = whole(&mut random, m, k, 9, false);
    let right = sum(&product(&dy, &w, m, k, n), &before);
    let dx = buffer(emulator, variant.element, &before)?;
    let dy = buffer(emulator, variant.element, &dy)?;
    let w = buffer(emulator, variant.element, &w)?;
    let arguments = [
        Argument::whole(&dx),
        Argument::whole(&dy),
        Argument::whole(&w),
        Argument::whole(&dx),
        size(m),
        size(n),
        size(k),
        size(0),
    ];
    let grid = [variant.blocks(m, k), 1, 1];
    launch(
        emulator,
        &variant.kernel("linear_backward_input"),
        grid,
        &arguments,
        options,
    )?;
    Ok((floats(&dx)?, right))
}

/// dW = dyᵀ·x + what is there and db, the sum over rows cut in `splits`.
fn weight_gradient(
    emulator: &Emulator,
    variant: Variant,
    Sizes { m: n, n: k, k: m }: Sizes,
    splits: usize,
    options: &Options<'_>,
) -> Result<[(Vec<f32>, Vec<f32>); 2]> {
    let mut random = Random::new(3);
    let (dy, x) = (
        whole(&mut random, m, n, 2, false),
        whole(&mut random, m, k, 1, false),
    );
    let before = whole(&mut random, n, k, 9, false);
    let dw_right = sum(&product(&transposed(&dy, m, n), &x, n, k, m), &before);
    let db_right = product(&vec![1.0; m], &dy, 1, n, m);
    let dw = buffer(emulator, Element::F32, &before)?;
    let db = emulator.allocate(Element::F32, n)?;
    let dy = buffer(emulator, variant.element, &dy)?;
    let x = buffer(emulator, variant.element, &x)?;
    let steps = m.div_ceil(64 / variant.element.size()).div_ceil(splits);
    let across = variant.blocks(1, k) as usize;
    let parts = emulator.allocate(Element::F32, splits * n * k)?;
    let sums = emulator.allocate(Element::F32, splits * across * n)?;
    let is_split = splits > 1;
    let arguments = [
        Argument::whole(if is_split { &parts } else { &dw }),
        Argument::whole(&sums),
        if is_split {
            Argument::Null
        } else {
            Argument::whole(&dw)
        },
        Argument::whole(&dy),
        Argument::whole(&x),
        size(m),
        size(n),
        size(k),
        size(steps),
    ];
    let grid = [variant.blocks(n, k), 1, splits as u32];
    launch(
        emulator,
        &variant.kernel("linear_backward_weight"),
        grid,
        &arguments,
        options,
    )?;
    let add = |out: &Buffer, part: &Buffer, addend: Argument<'_>, count: usize, parts: usize| {
        let arguments = [
            Argument::whole(out),
            Argument::whole(part),
            addend,
            Argument::I64(count as i64),
            size(parts),
        ];
        let grid = [count.div_ceil(1024) as u32, 1, 1];
        launch(emulator, "linear_sum_f32", grid, &arguments, options)
    };
    if is_split {
        add(&dw, &parts, Argument::whole(&dw), n * k, splits)?;
    }
    add(&db, &sums, Argument::Null, n, splits * across)?;
    Ok([(floats(&dw)?, dw_right), (floats(&db)?, db_right)])
}

#[test]
fn products_of_either_size_of_tile_are_exact_on_whole_numbers() {
    let Some(emulator) = emulator() else { return };
    for variant in Variant::all() {
        for (sizes, options) in SIZES.into_iter().zip(Options::proof(0)) {
            let what = format!("{variant:?} {sizes:?}");
            let mut results = Vec::new();
            results.extend(forward(&emulator, variant, sizes, &options).expect(&what));
            results.push(input_gradient(&emulator, variant, sizes, &options).expect(&what));
            for splits in [1, 3] {
                results.extend(
                    weight_gradient(&emulator, variant, sizes, splits, &options).expect(&what),
                );
            }
            for (i, (found, right)) in results.into_iter().enumerate() {
                assert!(
                    right.iter().all(|x| x.abs() < 256.0),
                    "{what}: bf16 holds the result"
                );
                assert_eq!(found, right, "{what}: result {i}");
            }
        }
    }
}

#[test]
fn products_give_the_same_bits_under_every_schedule() {
    let Some(emulator) = emulator() else { return };
    for variant in Variant::all() {
        for options in Options::proof(7) {
            let results = forward(&emulator, variant, SIZES[1], &options).expect("a clean kernel");
            for (found, right) in results {
                assert_eq!(found, right, "{variant:?} under {options:?}");
            }
        }
    }
}

#[test]
fn bugs_planted_in_the_products_are_caught() {
    let Some(emulator) = emulator() else { return };
    let bugs = [
        "product: no wait for the copies of the step",
        "product: no barrier between the steps",
        "product: no barrier before the result takes the stages' place",
        "product: no barrier before the result is read",
    ];
    for bug in bugs {
        for variant in Variant::all() {
            let caught = Options::proof(0).iter().any(|options| {
                let options = Options {
                    planted_bug: Some(bug),
                    ..*options
                };
                match forward(&emulator, variant, SIZES[0], &options) {
                    Ok(results) => results.iter().any(|(found, right)| found != right),
                    Err(error) => !error.to_string().contains("PLANTED_BUG"),
                }
            });
            assert!(caught, "{bug} in {variant:?}");
        }
    }
}

#[test]
fn a_bug_planted_in_the_bias_gradient_is_caught() {
    let Some(emulator) = emulator() else { return };
    let (m, n) = (70, 40);
    for element in [Element::Bf16, Element::F32] {
        let run = |options: &Options<'_>| -> Result<(Vec<f32>, Vec<f32>)> {
            let dy = whole(&mut Random::new(4), m, n, 2, false);
            let right = product(&vec![1.0; m], &dy, 1, n, m);
            let dy = buffer(&emulator, element, &dy)?;
            let db = emulator.allocate(Element::F32, n)?;
            let arguments = [
                Argument::whole(&db),
                Argument::whole(&dy),
                size(m),
                size(n),
                size(m),
            ];
            let kernel = format!("linear_backward_bias_{element}");
            launch(&emulator, &kernel, [1, 1, 1], &arguments, options)?;
            Ok((floats(&db)?, right))
        };
        let mut caught = false;
        for options in Options::proof(0) {
            let (found, right) = run(&options).expect("a clean kernel");
            assert_eq!(found, right);
            let options = Options {
                planted_bug: Some(
                    "linear_backward_bias: no barrier before the warps' sums are read",
                ),
                ..options
            };
            caught |= match run(&options) {
                Ok((found, right)) => found != right,
                Err(error) => !error.to_string().contains("PLANTED_BUG"),
            };
        }
        assert!(caught, "{element}");
    }
}
