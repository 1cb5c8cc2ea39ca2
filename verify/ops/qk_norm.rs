//! RMSNorm of query and key heads.

use keel::ops::{Heads, qk_norm};
use keel::tape::{Add, ParameterLayout, Tape};
use keel::tensor::TensorType;
use proptest::prelude::*;

use super::attention::pack;
use crate::harness::{Case, Golden, Random, check, check_golden, last_launches, out};

const DIMS: [usize; 4] = [8, 24, 32, 40];

fn case(name: String, shape: [usize; 3], heads: Heads, qkv: Vec<f32>, random: &mut Random) -> Case {
    let mut weight = || -> Vec<f32> {
        let spread = random.normals(heads.dim, 0.3);
        spread.iter().map(|w| 1.0 + w).collect()
    };
    Case::new(name, move |tape, v| {
        // Added first, so that the result may take the sum's place.
        let qkv = tape.record_one(Add, &[v[0], v[0]])?;
        Ok(vec![out("y", qk_norm(tape, qkv, v[1], v[2], heads, 1e-6)?)])
    })
    .input("qkv", shape, qkv)
    .input("query_weight", [heads.dim], weight())
    .input("key_weight", [heads.dim], weight())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn qk_norm_matches_the_reference(
        batch in 1usize..4, tokens in 1usize..12, key_value in 1usize..3, dim in 0usize..4,
        scale in -1i32..3, seed: u64,
    ) {
        let heads = Heads { query: 2 * key_value, key_value, dim: DIMS[dim] };
        let shape = [batch, tokens, heads.packed_width()];
        let mut random = Random::new(seed);
        let qkv = random.normals(shape.iter().product(), 10f64.powi(scale));
        let name = format!("qk_norm {shape:?} {heads:?}");
        check(&case(name, shape, heads, qkv, &mut random), seed);
    }
}

#[test]
fn qk_norm_adds_partial_sums_of_many_rows() {
    let heads = Heads {
        query: 1,
        key_value: 1,
        dim: 8,
    };
    let shape = [2, 700, 24];
    let mut random = Random::new(1);
    let qkv = random.normals(shape.iter().product(), 1.0);
    check(
        &case(
            "qk_norm of 1400 rows".into(),
            shape,
            heads,
            qkv,
            &mut random,
        ),
        1,
    );
}

#[test]
fn qk_norm_of_heads_as_wide_as_a_warp_matches_the_reference() {
    for dim in [64, 128] {
        let heads = Heads {
            query: 2,
            key_value: 1,
            dim,
        };
        let shape = [2, 9, heads.packed_width()];
        let mut random = Random::new(dim as u64);
        let qkv = random.normals(shape.iter().product(), 1.0);
        let case = case(format!("D {dim}"), shape, heads, qkv, &mut random);
        check(&case, dim as u64);
    }
}

#[test]
fn qk_norm_with_frozen_weights_owes_only_the_rows() {
    let heads = Heads {
        query: 1,
        key_value: 1,
        dim: 8,
    };
    let mut random = Random::new(2);
    let mut qkv = random.normals(5 * 24, 1.0);
    qkv[..24].fill(1e4);
    let case = Case::new("qk_norm with frozen weights", move |tape, v| {
        Ok(vec![out(
            "y",
            qk_norm(tape, v[0], v[1], v[2], heads, 1e-6)?,
        )])
    })
    .input("qkv", [1, 5, 24], qkv)
    .constant("query_weight", [8], random.normals(8, 1.0))
    .constant("key_weight", [8], random.normals(8, 1.0));
    check(&case, 2);
}

#[test]
fn qk_norm_matches_pytorch() {
    for golden in Golden::open("op_qk_norm").cases() {
        let is_query = golden.name.ends_with("query");
        let &[batch, tokens, count, dim] = golden.shape("input.x").dims() else {
            panic!("{}: wanted [B, T, H, D]", golden.name);
        };
        let heads = Heads {
            query: count,
            key_value: count,
            dim,
        };
        // PyTorch's x stands where the queries or the keys do; the rest is zeros, whose gradient is not asked for.
        let zeros = vec![0.0; golden.floats("input.x").len()];
        let packed = |name: &str| {
            let x = golden.floats(name);
            let (query, key) = if is_query {
                (x, &zeros[..])
            } else {
                (&zeros[..], x)
            };
            pack(batch * tokens, [query, key, &zeros])
        };
        let shape = [batch, tokens, heads.packed_width()];
        let qkv = packed("input.x").iter().map(|x| *x as f32).collect();
        let weight = golden.f32s("input.weight");
        let case = Case::new(&golden.name, move |tape, v| {
            let y = if is_query {
                qk_norm(tape, v[0], v[1], v[2], heads, 1e-6)?
            } else {
                qk_norm(tape, v[0], v[2], v[1], heads, 1e-6)?
            };
            Ok(vec![out("y", y)])
        })
        .input("qkv", shape, qkv)
        .input("weight", [dim], weight)
        .constant("other_weight", [dim], vec![1.0; dim]);
        let expected = golden
            .clone()
            .with("cotangent.y", shape, packed("cotangent.y"))
            .with("value.y", shape, packed("value.y"))
            .with("gradient.qkv", shape, packed("gradient.x"));
        check_golden(&case, &expected);
    }
}

#[test]
fn qk_norm_refuses_wrong_shapes() {
    let heads = Heads {
        query: 2,
        key_value: 1,
        dim: 8,
    };
    let mut tape = Tape::new(ParameterLayout::default().into(), |_| false);
    let qkv = tape.input("qkv", TensorType::f32([2, 6, 32]));
    let narrow = tape.input("narrow", TensorType::f32([2, 6, 31]));
    let weight = tape.input("weight", TensorType::f32([8]));
    let long = tape.input("long", TensorType::f32([16]));
    for (qkv, query, key, epsilon, names) in [
        (narrow, weight, weight, 1e-6, "qkv"),
        (qkv, long, weight, 1e-6, "query_weight"),
        (qkv, weight, long, 1e-6, "key_weight"),
        (qkv, weight, weight, 0.0, "epsilon"),
    ] {
        let problem = qk_norm(&mut tape, qkv, query, key, heads, epsilon)
            .expect_err("the shapes do not fit")
            .to_string();
        assert!(problem.contains(names), "{problem}");
    }
}

#[test]
fn qk_norm_refuses_heads_that_no_kernel_holds() {
    let heads = Heads {
        query: 1,
        key_value: 1,
        dim: 264,
    };
    let mut tape = Tape::new(ParameterLayout::default().into(), |_| false);
    let qkv = tape.input("qkv", TensorType::f32([2, 6, 3 * 264]));
    let weight = tape.input("weight", TensorType::f32([264]));
    qk_norm(&mut tape, qkv, weight, weight, heads, 1e-6).expect("the processor holds any head");
    let problem = last_launches(&tape).unwrap_err().to_string();
    assert!(
        problem.contains("at most 512 bytes, but 264 columns of f32"),
        "{problem}"
    );
}
