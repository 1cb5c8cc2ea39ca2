//! The patch embedding and its gradients.

use std::sync::Arc;

use keel::ops::patch_embed;
use keel::tape::{ParameterLayout, Tape};
use keel::tensor::TensorType;
use proptest::prelude::*;

use crate::harness::{Case, Golden, Random, check, check_exact_on_gpu, check_golden, out};

/// A case over images [B, 3, h, w] with `images_owe` a gradient.
fn case(
    (batch, height, width, patch, channels): (usize, usize, usize, usize, usize),
    has_bias: bool,
    has_position: bool,
    images_owe: bool,
    random: &mut Random,
) -> Case {
    let pixels = 3 * patch * patch;
    let tokens = (height / patch) * (width / patch);
    let count = batch * 3 * height * width;
    let case = Case::new("patch_embed", move |tape, v| {
        let bias = has_bias.then(|| v[2]);
        let position = has_position.then(|| v[2 + usize::from(has_bias)]);
        Ok(vec![out(
            "y",
            patch_embed(tape, v[0], v[1], bias, position, patch)?,
        )])
    })
    // Pixels are f32 and rounded where they are multiplied.
    .rounds_operands();
    let images = random.normals(count, 1.0);
    let shape = [batch, 3, height, width];
    let mut case = if images_owe {
        case.input("images", shape, images).stays_f32("images")
    } else {
        case.constant("images", shape, images)
    };
    let scale = (pixels as f64).powf(-0.5);
    case = case.input(
        "weight",
        [channels, pixels],
        random.normals(channels * pixels, scale),
    );
    if has_bias {
        case = case.input("bias", [channels], random.normals(channels, 1.0));
    }
    if has_position {
        let position = random.normals(tokens * channels, 1.0);
        case = case.input("position", [tokens, channels], position);
    }
    case
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn patch_embed_matches_the_reference(
        batch in 1usize..4, rows in 1usize..6, columns in 1usize..6, patch in 1usize..5,
        below in 0usize..4, right in 0usize..4, channels in 1usize..40,
        has_bias: bool, has_position: bool, images_owe: bool, seed: u64,
    ) {
        let (below, right) = (below % patch, right % patch);
        let sizes = (batch, rows * patch + below, columns * patch + right, patch, channels);
        let mut random = Random::new(seed);
        check(&case(sizes, has_bias, has_position, images_owe, &mut random), seed);
    }
}

#[test]
fn patch_embed_of_more_patches_than_a_task_takes_matches_the_reference() {
    let mut random = Random::new(51);
    check(&case((3, 22, 14, 2, 9), true, true, true, &mut random), 51);
}

#[test]
fn patch_embed_of_the_usual_patches_matches_the_reference() {
    for patch in [8, 14, 16, 32] {
        let mut random = Random::new(52);
        let sizes = (2, patch + 3, 2 * patch + 1, patch, 5);
        check(&case(sizes, true, true, false, &mut random), 52);
    }
}

#[test]
fn patches_by_large_tiles_of_whole_numbers_are_exact_on_a_gpu() {
    // 42 × 42 patches: of 12 numbers by 1370 channels, and of 1200 numbers by 8 channels.
    for (patch, channels) in [(2, 1370), (20, 8)] {
        let mut random = Random::new(31);
        let (side, pixels) = (42 * patch, 3 * patch * patch);
        let case = Case::new(
            format!("patches of {patch} by {channels}"),
            move |tape, v| {
                let y = patch_embed(tape, v[0], v[1], Some(v[2]), None, patch)?;
                Ok(vec![out("y", y)])
            },
        )
        .input("images", [1, 3, side, side], random.whole(3 * side * side))
        .stays_f32("images")
        .input(
            "weight",
            [channels, pixels],
            random.whole(channels * pixels),
        )
        .input("bias", [channels], random.whole(channels));
        check_exact_on_gpu(&case, 31);
    }
}

#[test]
fn patch_embed_agrees_with_pytorch() {
    for golden in Golden::open("op_patch_embed").cases() {
        let patch = golden.config["patch"].as_u64().expect("a number") as usize;
        let has_bias = golden.has("input.bias");
        let has_position = golden.has("input.position");
        let mut case = Case::new(golden.name.clone(), move |tape, v| {
            let bias = has_bias.then(|| v[2]);
            let position = has_position.then(|| v[2 + usize::from(has_bias)]);
            Ok(vec![out(
                "y",
                patch_embed(tape, v[0], v[1], bias, position, patch)?,
            )])
        });
        for name in ["image", "weight", "bias", "position"] {
            let key = format!("input.{name}");
            if golden.has(&key) {
                case = case.input(name, golden.shape(&key), golden.f32s(&key));
            }
        }
        check_golden(&case, &golden);
    }
}

#[test]
fn patch_embed_refuses_shapes_that_do_not_fit() {
    let mut tape = Tape::new(Arc::new(ParameterLayout::default()), |_| false);
    let images = tape.input("images", TensorType::f32([2, 3, 9, 8]));
    let weight = tape.input("weight", TensorType::f32([5, 48]));
    let bias = tape.input("bias", TensorType::f32([6]));
    let position = tape.input("position", TensorType::f32([6, 5]));
    let mut said = |patch, bias, position| {
        let result = patch_embed(&mut tape, images, weight, bias, position, patch);
        result.unwrap_err().to_string()
    };
    assert!(said(9, None, None).contains("patch_embed: images must be [B, 3, h, w]"));
    assert!(said(0, None, None).contains("images"));
    assert!(said(3, None, None).contains("weight must be f32 [5, 27]"));
    assert!(said(4, Some(bias), None).contains("bias must be f32 [5]"));
    assert!(said(4, None, Some(position)).contains("position must be f32 [4, 5]"));
}
