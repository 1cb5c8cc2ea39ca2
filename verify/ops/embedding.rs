//! Rows of a table, and image tokens spliced among them.

use keel::ops::{embedding, splice};
use keel::tape::{Add, ParameterLayout, Tape};
use keel::tensor::TensorType;
use proptest::prelude::*;

use crate::harness::{Case, Golden, Random, check, check_golden, out};

/// Ids in −2..rows+2: some outside the table on both sides.
fn random_ids(random: &mut Random, count: usize, rows: usize) -> Vec<i32> {
    random
        .integers(count, rows + 4)
        .iter()
        .map(|id| id - 2)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn embedding_matches_the_reference_with_ids_outside_the_table(
        batch in 1usize..4, tokens in 1usize..30, rows in 1usize..150, width in 1usize..40,
        seed: u64,
    ) {
        let mut random = Random::new(seed);
        let mut ids = random_ids(&mut random, batch * tokens, rows);
        ids[0] = 0;
        let case = Case::new("embedding", |tape, v| {
            Ok(vec![out("y", embedding(tape, v[0], v[1])?)])
        })
        .input("table", [rows, width], random.normals(rows * width, 1.0))
        .integers("ids", [batch, tokens], ids);
        check(&case, seed);
    }

    #[test]
    fn embedding_adds_to_the_gradient_that_its_table_already_has(
        tokens in 1usize..20, rows in 1usize..40, width in 1usize..20, seed: u64,
    ) {
        let mut random = Random::new(seed);
        let ids = random.integers(tokens, rows);
        let more = random.integers(tokens, rows);
        let case = Case::new("tied embedding", move |tape, v| {
            let first = embedding(tape, v[0], v[1])?;
            let second = embedding(tape, v[0], v[2])?;
            // The gradient of the sum is an input of the program: it must not be overwritten.
            let table = tape.record_one(Add, &[v[0], v[3]])?;
            Ok(vec![out("first", first), out("second", second), out("table", table)])
        })
        .input("table", [rows, width], random.normals(rows * width, 1.0))
        .integers("ids", [tokens], ids)
        .integers("more", [tokens], more)
        .constant("other", [rows, width], random.normals(rows * width, 1.0))
        // In bf16 a table is a parameter, whose gradients are all f32; that of a sum would not be.
        .in_f32_only();
        check(&case, seed);
    }

    #[test]
    fn splice_matches_the_reference_with_too_many_and_too_few_places(
        batch in 1usize..4, tokens in 1usize..24, image_tokens in 1usize..9, width in 1usize..30,
        seed: u64,
    ) {
        let mut random = Random::new(seed);
        let mut ids = random.integers(batch * tokens, 3);
        ids[0] = 2;
        let text = random.normals(batch * tokens * width, 1.0);
        let image = random.normals(batch * image_tokens * width, 1.0);
        let case = Case::new("splice", move |tape, v| {
            // Added first, so that the result may take the sum's place.
            let text = tape.record_one(Add, &[v[0], v[0]])?;
            Ok(vec![out("y", splice(tape, text, v[1], v[2], 2)?)])
        })
        .input("text", [batch, tokens, width], text)
        .integers("ids", [batch, tokens], ids)
        .input("image", [batch, image_tokens, width], image)
        .without_wrong_answers();
        check(&case, seed);
    }
}

#[test]
fn an_id_in_many_places_adds_up_over_all_of_them() {
    // Runs of equal ids that begin, end and lie within the 32 sorted places that a warp sums.
    let mut random = Random::new(6);
    let mut ids = vec![3; 150];
    ids.extend([1, 1, 0, -1, 9]);
    ids.extend(vec![4; 64]);
    ids.rotate_left(70);
    let count = ids.len();
    let case = Case::new("an id in many places", |tape, v| {
        Ok(vec![out("y", embedding(tape, v[0], v[1])?)])
    })
    .input("table", [6, 136], random.normals(6 * 136, 1.0))
    .integers("ids", [count], ids);
    check(&case, 6);
}

#[test]
fn splice_adds_to_the_gradient_that_its_image_already_has() {
    let mut random = Random::new(3);
    let ids = vec![9, 1, 9, 9, 2, 9, 1, 2, 3, 9];
    let case = Case::new("spliced twice", |tape, v| {
        let image = tape.record_one(Add, &[v[2], v[2]])?;
        let first = splice(tape, v[0], v[1], image, 9)?;
        let second = splice(tape, first, v[1], image, 1)?;
        let other = tape.record_one(Add, &[image, v[3]])?;
        Ok(vec![out("y", second), out("other", other)])
    })
    .constant("text", [2, 5, 3], random.normals(30, 1.0))
    .integers("ids", [2, 5], ids)
    .input("image", [2, 4, 3], random.normals(24, 1.0))
    .constant("more", [2, 4, 3], random.normals(24, 1.0))
    // Constants are f32 in every precision, and a sum has one type.
    .in_f32_only();
    check(&case, 3);
}

#[test]
fn splice_into_frozen_text_records_no_text_gradient() {
    let mut tape = Tape::new(ParameterLayout::default().into(), |_| false);
    let text = tape.input("text", TensorType::f32([1, 4, 8]));
    let ids = tape.input("ids", TensorType::i32([1, 4]));
    let image = tape.input_with_gradient("image", TensorType::f32([1, 2, 8]));
    let y = splice(&mut tape, text, ids, image, 5).expect("the shapes fit");
    let dy = tape.input("dy", TensorType::f32([1, 4, 8]));
    tape.backward_from(&[(y, dy)])
        .expect("the image owes a gradient");
    let names: Vec<&str> = tape.instructions().iter().map(|i| i.op.name()).collect();
    assert_eq!(names, ["splice", "splice_backward_image"]);
}

#[test]
fn embedding_and_splice_match_pytorch() {
    let cases = Golden::open("op_embedding").cases();
    let [plain, spliced] = &cases[..] else {
        panic!("wanted two cases");
    };
    let tokens = |golden: &Golden| golden.integers("input.token").to_vec();
    let case = Case::new(&plain.name, |tape, v| {
        Ok(vec![out("y", embedding(tape, v[0], v[1])?)])
    })
    .input(
        "table",
        plain.shape("input.table"),
        plain.f32s("input.table"),
    )
    .integers("token", plain.shape("input.token"), tokens(plain));
    check_golden(&case, plain);

    // PyTorch's images [8, 12] lie in a common list: rows 0 and 2 have four each, row 1 none.
    let image_of = |name: &str| {
        let all = spliced.floats(name);
        let one = all.len() / 2;
        [&all[..one], &vec![0.0; one][..], &all[one..]].concat()
    };
    let places = spliced.integers("input.slot").iter();
    let places = places.map(|slot| i32::from(*slot >= 0)).collect();
    let image = image_of("input.images");
    let case = Case::new(&spliced.name, |tape, v| {
        let text = embedding(tape, v[0], v[1])?;
        Ok(vec![out("y", splice(tape, text, v[2], v[3], 1)?)])
    })
    .input(
        "table",
        spliced.shape("input.table"),
        spliced.f32s("input.table"),
    )
    .integers("token", spliced.shape("input.token"), tokens(spliced))
    .integers("place", spliced.shape("input.token"), places)
    .input(
        "image",
        [3, 4, 12],
        image.iter().map(|x| *x as f32).collect(),
    );
    let gradient = image_of("gradient.images");
    check_golden(
        &case,
        &spliced.clone().with("gradient.image", [3, 4, 12], gradient),
    );
}

#[test]
fn embedding_and_splice_refuse_wrong_shapes() {
    let (f32, i32) = (TensorType::f32([2, 5, 8]), TensorType::i32([2, 5]));
    for (table, ids, names) in [
        (TensorType::f32([5]), i32, "table"),
        (TensorType::i32([5, 3]), i32, "table"),
        (TensorType::f32([0, 3]), i32, "table"),
        (TensorType::f32([5, 3]), f32, "ids"),
    ] {
        let mut tape = Tape::new(ParameterLayout::default().into(), |_| false);
        let (table, ids) = (tape.input("table", table), tape.input("ids", ids));
        let problem = embedding(&mut tape, table, ids).expect_err("the shapes do not fit");
        assert!(problem.to_string().contains(names), "{problem}");
    }
    for (text, ids, image, names) in [
        (TensorType::f32([10, 8]), i32, f32, "text"),
        (f32, TensorType::i32([5, 2]), f32, "text"),
        (f32, i32, TensorType::f32([3, 5, 8]), "image"),
        (f32, i32, TensorType::f32([2, 5, 7]), "image"),
        (f32, i32, TensorType::i32([2, 5, 8]), "image"),
    ] {
        let mut tape = Tape::new(ParameterLayout::default().into(), |_| false);
        let values = [
            tape.input("text", text),
            tape.input("ids", ids),
            tape.input("image", image),
        ];
        let problem = splice(&mut tape, values[0], values[1], values[2], 1)
            .expect_err("the shapes do not fit");
        assert!(problem.to_string().contains(names), "{problem}");
    }
}
