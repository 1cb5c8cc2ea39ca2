//! The building blocks of every product, cuda/fragment.cuh, by themselves: whole numbers small enough that every sum is
//! exact, so that results are compared bit by bit.

use super::{buffer, emulator, product, transposed, whole};
use crate::harness::Random;
use keel::error::Result;
use keel::executor::simt::{Argument, Element, Emulator, Options};

/// Sizes and the largest whole numbers of a problem.
#[derive(Clone, Copy, Debug)]
struct Problem {
    m: usize,
    n: usize,
    k: usize,
    a: usize,
    b: usize,
}

/// Runs one problem and returns D and E next to what they should be.
fn run(
    emulator: &Emulator,
    element: Element,
    problem: Problem,
    turned: i32,
    options: &Options<'_>,
) -> Result<[(Vec<f32>, Vec<f32>); 2]> {
    let Problem { m, n, k, .. } = problem;
    let mut random = Random::new(turned as u64 + (m * n * k) as u64);
    let a = whole(&mut random, m, k, problem.a, false);
    let b = whole(&mut random, k, n, problem.b, false);
    let c = whole(&mut random, n, n, 1, true);
    let d_right = product(&a, &b, m, n, k);
    let d_wide: Vec<f64> = d_right.iter().map(|x| f64::from(*x)).collect();
    let e_right = product(&d_wide, &c, m, n, n);
    // As stored: a [m,k] unless turned, b and c with their second index first unless turned.
    let a = if turned & 1 != 0 {
        transposed(&a, m, k)
    } else {
        a
    };
    let b = if turned & 2 != 0 {
        b
    } else {
        transposed(&b, k, n)
    };
    let c = if turned & 4 != 0 {
        c
    } else {
        transposed(&c, n, n)
    };
    let kernel = emulator.kernel(match element {
        Element::Bf16 => "zoo_clean_fragments_bf16",
        _ => "zoo_clean_fragments_f32",
    })?;
    let inputs = [&a, &b, &c].map(|values| buffer(emulator, element, values));
    let [a, b, c] = inputs;
    let (a, b, c) = (a?, b?, c?);
    let d = emulator.allocate(Element::F32, m * n)?;
    let e = emulator.allocate(Element::F32, m * n)?;
    let arguments = [
        Argument::whole(&d),
        Argument::whole(&e),
        Argument::whole(&a),
        Argument::whole(&b),
        Argument::whole(&c),
        Argument::I32(m as i32),
        Argument::I32(n as i32),
        Argument::I32(k as i32),
        Argument::I32(turned),
    ];
    let block = [kernel.threads.expect("a fixed block"), 1, 1];
    let shared = kernel.shared_bytes;
    emulator.launch(&kernel, [1, 1, 1], block, shared, &arguments, options)?;
    Ok([(d.read()?, d_right), (e.read()?, e_right)])
}

/// Rows of 16-byte, 4-byte and odd pitch; numbers that need one, two and three parts, on either side.
fn problems(element: Element) -> Vec<Problem> {
    let sizes = [
        (32, 16, 48),
        (24, 8, 40),
        (30, 10, 34),
        (31, 15, 47),
        (1, 1, 1),
        (17, 9, 5),
    ];
    let limits: &[(usize, usize)] = match element {
        Element::Bf16 => &[(2, 2)],
        _ => &[(2, 2), (1 << 14, 3), (3, 1 << 14), (1 << 9, 1 << 7)],
    };
    let mut problems = Vec::new();
    for (m, n, k) in sizes {
        for &(a, b) in limits {
            problems.push(Problem { m, n, k, a, b });
        }
    }
    if element == Element::F32 {
        // All 24 bits of one factor, and of the product.
        problems.push(Problem {
            m: 32,
            n: 16,
            k: 1,
            a: (1 << 22) - 1,
            b: 1,
        });
        problems.push(Problem {
            m: 32,
            n: 16,
            k: 1,
            a: 1,
            b: (1 << 22) - 1,
        });
        problems.push(Problem {
            m: 32,
            n: 16,
            k: 1,
            a: (1 << 11) - 1,
            b: (1 << 11) - 1,
        });
    }
    problems
}

#[test]
fn fragments_give_exact_products_of_whole_numbers_whichever_way_round() {
    let Some(emulator) = emulator() else { return };
    for element in [Element::F32, Element::Bf16] {
        for problem in problems(element) {
            for turned in 0..8 {
                let proof = Options::proof(turned as u64);
                let options = &proof[turned as usize % proof.len()];
                let results = run(&emulator, element, problem, turned, options)
                    .unwrap_or_else(|error| panic!("{element} {problem:?} {turned}: {error}"));
                for (found, right) in results {
                    assert_eq!(found, right, "{element} {problem:?} turned {turned}");
                }
            }
        }
    }
}

#[test]
fn bugs_planted_in_the_tile_loads_are_caught() {
    let Some(emulator) = emulator() else { return };
    let problem = Problem {
        m: 31,
        n: 16,
        k: 48,
        a: 2,
        b: 2,
    };
    for bug in [
        "fragment: no wait for the tiles",
        "fragment: no barrier before the tiles are read",
    ] {
        for element in [Element::F32, Element::Bf16] {
            let caught = Options::proof(0).iter().any(|options| {
                let options = Options {
                    planted_bug: Some(bug),
                    ..*options
                };
                match run(&emulator, element, problem, 0, &options) {
                    Ok(results) => results.iter().any(|(found, right)| found != right),
                    Err(error) => !error.to_string().contains("PLANTED_BUG"),
                }
            });
            assert!(caught, "{bug} ({element})");
        }
    }
}
