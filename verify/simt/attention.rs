//! Bugs planted in cuda/attention.cu and cuda/attention_backward.cu at the places where warps wait for each other.

use super::{buffer, emulator};
use crate::harness::Random;
use keel::error::Result;
use keel::executor::simt::{Argument, Buffer, Element, Emulator, Options};

/// One head of D 32 over enough tokens that every loop goes round, the last tile cut short.
const TOKENS: usize = 130;
const DIM: usize = 32;
const WIDTH: usize = 3 * DIM;

/// A kernel of attention, and whether it writes rows like the output's or like those of query, key and value.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pass {
    Forward,
    Query,
    KeyValue,
}

/// Numbers that bf16 holds exactly.
fn numbers(emulator: &Emulator, element: Element, count: usize, seed: u64) -> Result<Buffer> {
    let mut random = Random::new(seed);
    let values: Vec<f64> = (0..count)
        .map(|_| (random.below(33) as f64 - 16.0) / 8.0)
        .collect();
    buffer(emulator, element, &values)
}

/// The bytes that `pass` writes. Backward gets statistics of its own making: the arithmetic is the same.
fn run(
    emulator: &Emulator,
    element: Element,
    pass: Pass,
    options: &Options<'_>,
) -> Result<Vec<u8>> {
    let bytes = match element {
        Element::Bf16 => 2,
        _ => 4,
    };
    let qkv = numbers(emulator, element, TOKENS * WIDTH, 1)?;
    let d_output = numbers(emulator, element, TOKENS * DIM, 2)?;
    let log_sum_exp = buffer(emulator, Element::F32, &[5.0; TOKENS])?;
    let delta = numbers(emulator, Element::F32, TOKENS, 3)?;
    let written = emulator.allocate(
        element,
        TOKENS * if pass == Pass::Forward { DIM } else { WIDTH },
    )?;
    let part = |buffer, index: usize| Argument::Slice {
        buffer,
        element,
        offset: index * DIM * bytes,
        bytes: (TOKENS * WIDTH - index * DIM) * bytes,
    };
    let name = match pass {
        Pass::Forward => "attention_forward_d32",
        Pass::Query => "attention_backward_query_d32",
        Pass::KeyValue => "attention_backward_key_value_d32",
    };
    let (dtype, rows) = match (element, pass) {
        (Element::Bf16, Pass::Forward) => ("bf16", 128),
        (Element::Bf16, _) => ("bf16", 64),
        _ => ("f32", 64),
    };
    let kernel = emulator.kernel(&format!("{name}_{dtype}"))?;
    let mut arguments = match pass {
        Pass::Forward => vec![Argument::whole(&written), Argument::Null],
        Pass::Query => vec![part(&written, 0), Argument::Null],
        Pass::KeyValue => vec![part(&written, 1), part(&written, 2)],
    };
    arguments.extend([0, 1, 2].map(|index| part(&qkv, index)));
    if pass != Pass::Forward {
        arguments.extend([&d_output, &log_sum_exp, &delta].map(Argument::whole));
    }
    arguments.extend([Argument::F32((DIM as f32).powf(-0.5)), Argument::Null]);
    let tokens = TOKENS as i32;
    // Batch, heads, group, dim, queries, keys, the keys that all see.
    let sizes = [1, 1, 1, DIM as i32, tokens, tokens, 0];
    arguments.extend(sizes.map(Argument::I32));
    let pitches = [WIDTH, TOKENS * WIDTH, WIDTH, TOKENS * WIDTH];
    arguments.extend(pitches.map(|pitch| Argument::I64(pitch as i64)));
    let block = [kernel.threads.expect("a fixed block"), 1, 1];
    let grid = [TOKENS.div_ceil(rows) as u32, 1, 1];
    emulator.launch(
        &kernel,
        grid,
        block,
        kernel.shared_bytes,
        &arguments,
        options,
    )?;
    written.read()
}

#[test]
fn bugs_planted_in_attention_are_caught() {
    let Some(emulator) = emulator() else { return };
    for (pass, bug) in [
        (Pass::Forward, "attention: no wait for the keys"),
        (
            Pass::Forward,
            "attention: no barrier between the keys and the values",
        ),
        (
            Pass::Forward,
            "attention: no warp barrier before the rows are stored",
        ),
        (
            Pass::Query,
            "attention: keys are refilled while others read them",
        ),
        (Pass::KeyValue, "attention: no wait for the queries"),
        (
            Pass::KeyValue,
            "attention: no barrier before the queries are read",
        ),
    ] {
        for element in [Element::F32, Element::Bf16] {
            let right = run(&emulator, element, pass, &Options::default())
                .unwrap_or_else(|problem| panic!("{pass:?} {element}: {problem}"));
            let caught = Options::proof(0).iter().any(|options| {
                let options = Options {
                    planted_bug: Some(bug),
                    ..*options
                };
                match run(&emulator, element, pass, &options) {
                    Ok(found) => found != right,
                    Err(problem) => !problem.to_string().contains("PLANTED_BUG"),
                }
            });
            assert!(caught, "{bug} ({element})");
        }
    }
}
