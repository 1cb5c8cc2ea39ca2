//! Attention over packed rows and over separate ones.

use keel::executor::{CpuExecutor, Executor};
use keel::ops::{Heads, Mask, attention, cross_attention, next_attention, select_token};
use keel::program::{CompileOptions, Program};
use keel::tape::{ParameterLayout, Tape};
use keel::tensor::{DType, TensorType};
use proptest::prelude::*;

use crate::harness::{Case, Golden, Random, aux, check, check_golden, out};

/// Query heads, key heads: alone, grouped, and all keys shared.
const GROUPS: [(usize, usize); 4] = [(1, 1), (2, 1), (4, 2), (3, 3)];

/// Head dims: whole vectors, less than one, and ragged tails.
const DIMS: [usize; 5] = [32, 8, 24, 40, 72];

/// Segment numbers [B, T]: a few runs, the last of some rows padding.
fn random_segments(random: &mut Random, batch: usize, tokens: usize) -> Vec<i32> {
    let mut segments = Vec::new();
    for _ in 0..batch {
        let mut segment = random.below(3) as i32;
        for token in 0..tokens {
            if token > 0 && random.below(4) == 0 {
                segment += 1;
            }
            let is_padding = segment > 2 && random.below(2) == 0;
            segments.push(if is_padding { -1 } else { segment });
        }
    }
    segments
}

struct Sizes {
    batch: usize,
    tokens: usize,
    heads: Heads,
    mask: Mask,
    has_segments: bool,
}

fn attention_case(sizes: Sizes, scale: f64, random: &mut Random) -> Case {
    let Sizes {
        batch,
        tokens,
        heads,
        mask,
        has_segments,
    } = sizes;
    let width = heads.packed_width();
    let name = format!("attention {heads:?} {mask:?} B {batch} T {tokens} segments {has_segments}");
    let case = Case::new(name, move |tape, v| {
        let y = attention(tape, v[0], heads, mask, v.get(1).copied())?;
        Ok(vec![out("y", y)])
    })
    .input(
        "qkv",
        [batch, tokens, width],
        random.normals(batch * tokens * width, scale),
    );
    if has_segments {
        case.integers(
            "segments",
            [batch, tokens],
            random_segments(random, batch, tokens),
        )
    } else {
        case
    }
}

fn heads((query, key_value): (usize, usize), dim: usize) -> Heads {
    Heads {
        query,
        key_value,
        dim,
    }
}

fn cross_attention_case(
    batch: usize,
    [queries, tokens]: [usize; 2],
    heads: Heads,
    is_shared: bool,
    seed: u64,
) -> Case {
    let width = heads.query_width();
    let mut random = Random::new(seed);
    let name = format!("cross_attention {heads:?} B {batch} Tq {queries} T {tokens}");
    let case = Case::new(name, move |tape, v| {
        Ok(vec![out("y", cross_attention(tape, v[0], v[1], heads)?)])
    });
    let rows = if is_shared { queries } else { batch * queries };
    let query = random.normals(rows * width, 1.0);
    let case = if is_shared {
        case.input("query", [queries, width], query)
    } else {
        case.input("query", [batch, queries, width], query)
    };
    let key_value = random.normals(batch * tokens * 2 * width, 1.0);
    case.input("key_value", [batch, tokens, 2 * width], key_value)
}

/// What a token at each of `places` sees of `tokens` rows.
fn seen_up_to(places: &[usize], tokens: usize) -> Vec<i32> {
    let row = |place: &usize| {
        let place = *place;
        (0..tokens).map(move |at| if at <= place { 0 } else { -1 })
    };
    places.iter().flat_map(row).collect()
}

fn next_attention_case(places: &[usize], tokens: usize, heads: Heads, seed: u64) -> Case {
    let (width, batch) = (heads.packed_width(), places.len());
    let mut random = Random::new(seed);
    Case::new(
        format!("next_attention {heads:?} at {places:?} of {tokens}"),
        move |tape, v| {
            let y = next_attention(tape, v[0], v[1], heads, v[2])?;
            Ok(vec![aux("y", y)])
        },
    )
    .input("qkv", [batch, 1, width], random.normals(batch * width, 1.0))
    .input(
        "cache",
        [batch, tokens, width],
        random.normals(batch * tokens * width, 1.0),
    )
    .integers("seen", [batch, tokens], seen_up_to(places, tokens))
}

#[test]
fn next_attention_matches_the_reference_at_every_place_of_a_cache() {
    for (seed, places, tokens, group, dim) in [
        (1, &[0, 4, 8][..], 9, 0, 8),
        (2, &[5, 6], 11, 1, 40),
        (3, &[130, 127, 128], 150, 2, 24),
        (4, &[70], 71, 3, 72),
    ] {
        let heads = heads(GROUPS[group], dim);
        check(&next_attention_case(places, tokens, heads, seed), seed);
    }
}

#[test]
fn next_attention_gives_the_bits_of_the_row_of_the_whole() {
    let heads = heads((4, 2), 24);
    let (tokens, width) = (150, heads.packed_width());
    let places = [0usize, 15, 127, 128, 149];
    let rows = TensorType::f32([places.len(), tokens, width]);
    let mut random = Random::new(9);
    let cache = random.normals(places.len() * tokens * width, 1.0);
    let one_of = |row: usize, place: usize| &cache[(row * tokens + place) * width..][..width];
    let own = places.iter().enumerate();
    let own: Vec<f32> = own
        .flat_map(|(row, place)| one_of(row, *place).to_vec())
        .collect();
    let index: Vec<i32> = places.iter().map(|place| *place as i32).collect();
    let cpu = CpuExecutor::new(0, 2).unwrap();
    let mut tape = Tape::new(ParameterLayout::default().into(), |_| false);
    let all = tape.input("cache", rows);
    let qkv = tape.input("qkv", TensorType::f32([places.len(), 1, width]));
    let seen = tape.input("seen", TensorType::i32([places.len(), tokens]));
    let at = tape.input("index", TensorType::i32([places.len()]));
    let whole = attention(&mut tape, all, heads, Mask::Causal, None).unwrap();
    let whole = select_token(&mut tape, whole, at).unwrap();
    tape.output(whole, "whole");
    let next = next_attention(&mut tape, qkv, all, heads, seen).unwrap();
    tape.output(next, "next");
    let options = CompileOptions::new(cpu.compile_target());
    let program = Program::compile(tape, &options).unwrap();
    let mut session = cpu.load(program.into()).unwrap();
    session.write_f32("cache", &cache).unwrap();
    session.write_f32("qkv", &own).unwrap();
    session
        .write_i32("seen", &seen_up_to(&places, tokens))
        .unwrap();
    session.write_i32("index", &index).unwrap();
    session.run().unwrap();
    let bits = |name: &str| -> Vec<u32> {
        let values = session.read_f32(name).unwrap();
        values.into_iter().map(f32::to_bits).collect()
    };
    assert_eq!(bits("next"), bits("whole"));
}

// A single key gets all the weight, so that the true gradient of its query is zero and only rounding is left to compare:
// at least two tokens here, one token in the golden of that name.
proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn attention_matches_the_reference_on_ragged_shapes_masks_and_segments(
        batch in 1usize..4, tokens in 2usize..19, group in 0usize..4, dim in 0usize..5,
        mask in 0usize..3, prefix in 0usize..20, has_segments: bool, seed: u64,
    ) {
        let mask = [Mask::Full, Mask::Causal, Mask::Prefix(prefix)][mask];
        let heads = heads(GROUPS[group], DIMS[dim]);
        let mut random = Random::new(seed);
        let sizes = Sizes { batch, tokens, heads, mask, has_segments };
        check(&attention_case(sizes, 1.0, &mut random), seed);
    }

    #[test]
    fn cross_attention_matches_the_reference_with_own_and_shared_queries(
        batch in 1usize..4, queries in 1usize..4, tokens in 2usize..23, count in 1usize..4,
        dim in 0usize..5, is_shared: bool, seed: u64,
    ) {
        let heads = heads((count, count), DIMS[dim]);
        let case = cross_attention_case(batch, [queries, tokens], heads, is_shared, seed);
        check(&case, seed);
    }
}

#[test]
fn attention_matches_the_reference_across_blocks_of_queries_and_keys() {
    for (seed, tokens, mask, has_segments) in [
        (1, 145, Mask::Full, false),
        (2, 150, Mask::Causal, false),
        (3, 139, Mask::Prefix(70), true),
        (4, 270, Mask::Causal, true),
    ] {
        let sizes = Sizes {
            batch: 1,
            tokens,
            heads: heads((2, 1), 8),
            mask,
            has_segments,
        };
        check(&attention_case(sizes, 1.0, &mut Random::new(seed)), seed);
    }
}

#[test]
fn attention_matches_the_reference_for_every_padded_head_dim_and_mask() {
    let masks = [Mask::Full, Mask::Causal, Mask::Prefix(37)];
    for (index, dim) in [32, 40, 64, 72, 96, 104, 128].into_iter().enumerate() {
        let sizes = Sizes {
            batch: 1,
            tokens: 70 - index,
            heads: heads([(1, 1), (2, 1)][index % 2], dim),
            mask: masks[index % 3],
            has_segments: index % 4 == 3,
        };
        let seed = 20 + index as u64;
        check(&attention_case(sizes, 1.0, &mut Random::new(seed)), seed);
    }
}

#[test]
fn cross_attention_matches_the_reference_across_blocks_of_queries_and_keys() {
    for (seed, counts, dim, is_shared) in [
        (31, [3, 150], 40, true),
        (32, [70, 33], 24, true),
        (33, [131, 20], 16, false),
    ] {
        let case = cross_attention_case(2, counts, heads((2, 2), dim), is_shared, seed);
        check(&case, seed);
    }
}

#[test]
fn attention_holds_scores_in_the_hundreds() {
    let sizes = Sizes {
        batch: 1,
        tokens: 9,
        heads: heads((1, 1), 32),
        mask: Mask::Full,
        has_segments: false,
    };
    // In bf16 a rounding of scores this large is as good as another distribution: no budget could tell right from wrong.
    let case = attention_case(sizes, 8.0, &mut Random::new(5)).in_f32_only();
    check(&case, 5);
}

#[test]
fn attention_of_equal_rows_is_their_value() {
    let heads = heads((1, 1), 8);
    let row: Vec<f32> = (0..24).map(|i| 1e4 + i as f32).collect();
    let case = Case::new("attention of equal rows", move |tape, v| {
        Ok(vec![out(
            "y",
            attention(tape, v[0], heads, Mask::Full, None)?,
        )])
    })
    .constant("qkv", [1, 5, 24], row.repeat(5))
    .without_wrong_answers();
    check(&case, 6);
}

#[test]
fn attention_yields_zeros_for_padding() {
    let heads = heads((2, 1), 8);
    let mut random = Random::new(7);
    let case = Case::new("attention of padding alone", move |tape, v| {
        let y = attention(tape, v[0], heads, Mask::Causal, Some(v[1]))?;
        Ok(vec![out("y", y)])
    })
    .input("qkv", [1, 6, 32], random.normals(6 * 32, 1.0))
    .integers("segments", [1, 6], vec![-1; 6])
    .without_wrong_answers();
    check(&case, 7);
}

#[test]
fn attention_refuses_wrong_shapes() {
    let refuses = |heads: Heads, qkv: TensorType, segments: Option<TensorType>, names: &str| {
        let mut tape = Tape::new(ParameterLayout::default().into(), |_| false);
        let qkv = tape.input("qkv", qkv);
        let segments = segments.map(|ty| tape.input("segments", ty));
        let problem = attention(&mut tape, qkv, heads, Mask::Full, segments)
            .expect_err("the shapes do not fit")
            .to_string();
        assert!(problem.contains(names), "{problem}");
    };
    let good = heads((4, 2), 16);
    let qkv = TensorType::f32([2, 5, 128]);
    refuses(heads((4, 3), 16), qkv, None, "heads");
    refuses(heads((4, 0), 16), qkv, None, "heads");
    refuses(heads((4, 2), 12), qkv, None, "heads");
    refuses(good, TensorType::f32([2, 5, 127]), None, "qkv");
    refuses(good, TensorType::f32([10, 128]), None, "qkv");
    refuses(good, TensorType::f32([2, 0, 128]), None, "qkv");
    refuses(good, TensorType::i32([2, 5, 128]), None, "qkv");
    refuses(good, qkv, Some(TensorType::i32([2, 4])), "segments");
    refuses(good, qkv, Some(TensorType::f32([2, 5])), "segments");
}

#[test]
fn cross_attention_refuses_wrong_shapes() {
    let refuses = |heads: Heads, query: TensorType, key_value: TensorType, names: &str| {
        let mut tape = Tape::new(ParameterLayout::default().into(), |_| false);
        let query = tape.input("query", query);
        let key_value = tape.input("key_value", key_value);
        let problem = cross_attention(&mut tape, query, key_value, heads)
            .expect_err("the shapes do not fit")
            .to_string();
        assert!(problem.contains(names), "{problem}");
    };
    let good = heads((2, 2), 16);
    let (query, key_value) = (TensorType::f32([3, 1, 32]), TensorType::f32([3, 5, 64]));
    refuses(heads((2, 1), 16), query, key_value, "heads");
    refuses(good, TensorType::f32([2, 1, 32]), key_value, "query");
    refuses(good, TensorType::f32([3, 1, 31]), key_value, "query");
    refuses(good, TensorType::f32([0, 32]), key_value, "query");
    refuses(good, query, TensorType::f32([3, 5, 63]), "key_value");
}

/// Rows [N, a + b + c] of the rows of three tensors [N, a], [N, b] and [N, c].
pub fn pack(rows: usize, parts: [&[f64]; 3]) -> Vec<f64> {
    let mut packed = Vec::new();
    for row in 0..rows {
        for part in parts {
            let width = part.len() / rows;
            packed.extend(&part[row * width..(row + 1) * width]);
        }
    }
    packed
}

/// The case of one batch row of a golden: goldens have a prefix of its own for each.
fn golden_case(golden: &Golden, batch: usize) -> (Case, Golden) {
    let (&[_, tokens, query, dim], &[_, _, key_value, _]) = (
        golden.shape("input.query").dims(),
        golden.shape("input.key").dims(),
    ) else {
        panic!("{}: wanted [B, T, H, D]", golden.name);
    };
    let heads = heads((query, key_value), dim);
    let part = |name: &str| {
        let all = golden.floats(name);
        let one = all.len() / golden.shape("input.query").dims()[0];
        &all[batch * one..(batch + 1) * one]
    };
    let packed = |kind: &str| {
        pack(
            tokens,
            ["query", "key", "value"].map(|name| part(&format!("{kind}.{name}"))),
        )
    };
    let mask = match golden.config["mask"].as_str() {
        Some("full") => Mask::Full,
        Some("causal") => Mask::Causal,
        _ => Mask::Prefix(golden.integers("input.prefix")[batch] as usize),
    };
    let (width, qkv) = (heads.packed_width(), packed("input"));
    let inputs = qkv.iter().map(|x| *x as f32).collect();
    let name = format!("{} row {batch}", golden.name);
    let mut case = Case::new(name, move |tape, v| {
        let y = attention(tape, v[0], heads, mask, v.get(1).copied())?;
        Ok(vec![out("out", y)])
    })
    .input("qkv", [1, tokens, width], inputs);
    if golden.has("input.segments") {
        let segments = &golden.integers("input.segments")[batch * tokens..][..tokens];
        case = case.integers("segments", [1, tokens], segments.to_vec());
    }
    let output = [1, tokens, heads.query_width()];
    let golden = golden
        .clone()
        .with("gradient.qkv", [1, tokens, width], packed("gradient"))
        .with("value.out", output, part("value.out").to_vec())
        .with("cotangent.out", output, part("cotangent.out").to_vec());
    (case, golden)
}

#[test]
fn attention_matches_pytorch() {
    for golden in Golden::open("op_attention").cases() {
        for batch in 0..golden.shape("input.query").dims()[0] {
            let (case, golden) = golden_case(&golden, batch);
            check_golden(&case, &golden);
        }
    }
}

#[test]
fn next_attention_refuses_wrong_shapes() {
    let refuses = |heads: Heads, types: [TensorType; 3], names: &str| {
        let mut tape = Tape::new(ParameterLayout::default().into(), |_| false);
        let [qkv, cache, seen] = ["qkv", "cache", "seen"];
        let qkv = tape.input(qkv, types[0]);
        let cache = tape.input(cache, types[1]);
        let seen = tape.input(seen, types[2]);
        let problem = next_attention(&mut tape, qkv, cache, heads, seen)
            .expect_err("the shapes do not fit")
            .to_string();
        assert!(problem.contains(names), "{problem}");
    };
    let good = heads((4, 2), 16);
    let qkv = TensorType::f32([2, 1, 128]);
    let cache = TensorType::f32([2, 5, 128]);
    let seen = TensorType::i32([2, 5]);
    refuses(heads((4, 3), 16), [qkv, cache, seen], "heads");
    refuses(good, [TensorType::f32([2, 2, 128]), cache, seen], "qkv");
    refuses(
        good,
        [TensorType::new(DType::Bf16, [2, 1, 128]), cache, seen],
        "qkv",
    );
    refuses(good, [qkv, TensorType::f32([2, 5, 64]), seen], "cache");
    refuses(good, [qkv, cache, TensorType::i32([2, 4])], "segments");
}
