//! Rotary positions on packed rows.

use keel::executor::{Executor, ReferenceExecutor};
use keel::ops::{Heads, Positions, rope};
use keel::program::{CompileOptions, Program};
use keel::tape::{Add, ParameterLayout, Tape, Target};
use keel::tensor::TensorType;
use proptest::prelude::*;

use super::attention::pack;
use crate::harness::{Case, Golden, Random, check, check_golden, last_launches, out};

const DIMS: [usize; 4] = [8, 24, 32, 40];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn rope_matches_the_reference(
        batch in 1usize..4, height in 1usize..5, columns in 1usize..5, query in 1usize..3,
        dim in 0usize..4, form in 0usize..5, before in 0usize..3, seed: u64,
    ) {
        let heads = Heads { query: 2 * query, key_value: query, dim: DIMS[dim] };
        let before = if form == 4 { before } else { 0 };
        let (tokens, width) = (before + height * columns, heads.packed_width());
        let mut random = Random::new(seed);
        let name = format!("rope {form} B {batch} T {height} × {columns} {heads:?}");
        let case = Case::new(name, move |tape, v| {
            let positions = match form {
                0 => Positions::Sequential,
                1 => Positions::Grid { height, width: columns },
                4 => Positions::CentredGrid { before, height, width: columns },
                _ => Positions::Given(v[1]),
            };
            // Added first, so that the result may take the sum's place.
            let qkv = tape.record_one(Add, &[v[0], v[0]])?;
            Ok(vec![out("y", rope(tape, qkv, heads, 1e4, positions)?)])
        })
        .input("qkv", [batch, tokens, width], random.normals(batch * tokens * width, 1.0));
        let case = match form {
            2 => {
                // Far from the start: angles of thousands of turns keep their digits.
                let positions = random.integers(batch * tokens, 100_000);
                case.integers("positions", [batch, tokens], positions)
            }
            3 => {
                let positions = random.integers(batch * tokens * 2, 60);
                case.integers("positions", [batch, tokens, 2], positions)
            }
            _ => case,
        };
        check(&case, seed);
    }
}

#[test]
fn rope_on_a_grid_is_rope_at_its_rows_and_columns() {
    let heads = Heads {
        query: 1,
        key_value: 1,
        dim: 16,
    };
    let mut random = Random::new(1);
    let positions = (0..6).flat_map(|token| [token / 3, token % 3]).collect();
    let case = Case::new(
        "rope on a grid minus rope at given places",
        move |tape, v| {
            let grid = Positions::Grid {
                height: 2,
                width: 3,
            };
            let first = rope(tape, v[0], heads, 100.0, grid)?;
            let second = rope(tape, v[1], heads, 100.0, Positions::Given(v[2]))?;
            Ok(vec![out("y", tape.record_one(Add, &[first, second])?)])
        },
    );
    let qkv = random.normals(6 * 48, 1.0);
    let negated = qkv.iter().map(|x| -x).collect();
    let case = case
        .constant("qkv", [1, 6, 48], qkv)
        .constant("negated", [1, 6, 48], negated)
        .integers("positions", [1, 6, 2], positions)
        .without_wrong_answers();
    check(&case, 1);
}

/// A grid of odd sides has its middle at the origin, which does not turn; neither do the tokens before it.
#[test]
fn rope_on_a_centred_grid_leaves_its_middle_and_what_stands_before_it() {
    let heads = Heads {
        query: 1,
        key_value: 1,
        dim: 16,
    };
    let grid = Positions::CentredGrid {
        before: 2,
        height: 3,
        width: 1,
    };
    let mut tape = Tape::new(ParameterLayout::default().into(), |_| false);
    let qkv = tape.input("qkv", TensorType::f32([1, 5, 48]));
    let y = rope(&mut tape, qkv, heads, 100.0, grid).unwrap();
    tape.output(y, "y");
    let program = Program::compile(tape, &CompileOptions::new(Target::Reference)).unwrap();
    let mut session = ReferenceExecutor::new(0).load(program.into()).unwrap();
    let ones = vec![1.0; 5 * 48];
    session.write_f64("qkv", &ones).unwrap();
    session.run().unwrap();
    let y = session.read_f64("y").unwrap();
    let row = |token: usize| &y[token * 48..][..48];
    for token in [0, 1, 3] {
        assert_eq!(row(token), &ones[..48], "token {token}");
    }
    // The upper third is centred on −2/3: the first pair of the rows' axis turns by −4π/3.
    let (sine, cosine) = (-4.0 * std::f64::consts::PI / 3.0).sin_cos();
    assert!((row(2)[0] - (cosine - sine)).abs() < 1e-12);
    assert!((row(4)[0] - (cosine + sine)).abs() < 1e-12);
    assert!((row(2)[4] - 1.0).abs() < 1e-12, "one column is the middle");
}

#[test]
fn rope_matches_pytorch() {
    for golden in Golden::open("op_rope").cases() {
        let &[batch, tokens, count, dim] = golden.shape("input.x").dims() else {
            panic!("{}: wanted [B, T, H, D]", golden.name);
        };
        let heads = Heads {
            query: count,
            key_value: count,
            dim,
        };
        let theta = golden.config["theta"].as_f64().expect("a number") as f32;
        // Queries and keys are PyTorch's x; values are copied, and so is their gradient.
        let packed = |turned: &str, copied: &str| {
            let turned = golden.floats(turned);
            pack(batch * tokens, [turned, turned, golden.floats(copied)])
        };
        let shape = [batch, tokens, heads.packed_width()];
        let qkv = packed("input.x", "input.x");
        let case = Case::new(&golden.name, move |tape, v| {
            let y = rope(tape, v[0], heads, theta, Positions::Given(v[1]))?;
            Ok(vec![out("y", y)])
        })
        .input("qkv", shape, qkv.iter().map(|x| *x as f32).collect())
        .integers(
            "positions",
            golden.shape("input.positions"),
            golden.integers("input.positions").to_vec(),
        );
        let expected = golden
            .clone()
            .with("cotangent.y", shape, packed("cotangent.y", "cotangent.y"))
            .with("value.y", shape, packed("value.y", "input.x"))
            .with("gradient.qkv", shape, packed("gradient.x", "cotangent.y"));
        check_golden(&case, &expected);
    }
}

#[test]
fn rope_refuses_wrong_shapes() {
    let heads = Heads {
        query: 2,
        key_value: 1,
        dim: 8,
    };
    let mut tape = Tape::new(ParameterLayout::default().into(), |_| false);
    let qkv = tape.input("qkv", TensorType::f32([2, 6, 32]));
    let narrow = tape.input("narrow", TensorType::f32([2, 6, 31]));
    let good = tape.input("good", TensorType::i32([2, 6]));
    let three = tape.input("three", TensorType::i32([2, 6, 3]));
    let grid = Positions::Grid {
        height: 2,
        width: 4,
    };
    let centred = Positions::CentredGrid {
        before: 1,
        height: 2,
        width: 3,
    };
    for (qkv, theta, positions, names) in [
        (qkv, 1e4, centred, "grid"),
        (narrow, 1e4, Positions::Sequential, "qkv"),
        (qkv, 0.0, Positions::Sequential, "theta"),
        (qkv, f32::NAN, Positions::Sequential, "theta"),
        (qkv, 1e4, grid, "grid"),
        (qkv, 1e4, Positions::Given(three), "positions"),
        (qkv, 1e4, Positions::Given(qkv), "positions"),
    ] {
        let problem = rope(&mut tape, qkv, heads, theta, positions)
            .expect_err("the shapes do not fit")
            .to_string();
        assert!(problem.contains(names), "{problem}");
    }
    assert!(rope(&mut tape, qkv, heads, 1e4, Positions::Given(good)).is_ok());
}

#[test]
fn rope_refuses_heads_that_no_kernel_holds() {
    let heads = Heads {
        query: 1,
        key_value: 1,
        dim: 264,
    };
    let mut tape = Tape::new(ParameterLayout::default().into(), |_| false);
    let qkv = tape.input("qkv", TensorType::f32([2, 6, 3 * 264]));
    rope(&mut tape, qkv, heads, 1e4, Positions::Sequential).expect("the processor turns any head");
    let problem = last_launches(&tape).unwrap_err().to_string();
    assert!(
        problem.contains("at most 256 columns, but 264"),
        "{problem}"
    );
}
