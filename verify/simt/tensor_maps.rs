//! Tensor maps are held to the driver's rules where they are made, on every machine: each rule with the value that breaks it.

use keel::launch::{KernelEntry, Mapped, Parameter, Swizzle, TensorMap, TensorMapShape};
use keel::tensor::DType;

static KERNEL: KernelEntry = KernelEntry {
    name: "some_kernel",
    stem: "some_file",
    parameters: &[Parameter::TensorMap],
    cluster: 1,
};

/// Rows of 128 bytes in a pitch of 256, boxes of 64 rows.
const SHAPE: TensorMapShape<'static> = TensorMapShape {
    dims: &[64, 300],
    strides: &[256],
    box_dims: &[64, 64],
    swizzle: Swizzle::Span128,
};

fn map(offset: usize, element: DType, shape: TensorMapShape<'_>) -> Result<TensorMap, String> {
    TensorMap::new(&KERNEL, Mapped::Output(1), offset, element, shape)
        .map_err(|problem| problem.to_string())
}

#[test]
fn tensor_maps_that_the_driver_takes_keep_what_they_are_made_of() {
    let map = map(512, DType::Bf16, SHAPE).expect("it keeps every rule");
    assert_eq!((map.of(), map.offset()), (Mapped::Output(1), 512));
    assert_eq!(map.element(), DType::Bf16);
    let shape = map.shape();
    assert_eq!((shape.dims, shape.strides), (SHAPE.dims, SHAPE.strides));
    assert_eq!(
        (shape.box_dims, shape.swizzle),
        (SHAPE.box_dims, SHAPE.swizzle)
    );
    // The last row ends with its elements, not with its pitch.
    assert_eq!(map.bytes(), Some(299 * 256 + 128));
}

/// An offset, an element type and a shape of which one is against a rule, and what the refusal says of both sides.
type Broken = (
    usize,
    DType,
    TensorMapShape<'static>,
    &'static [&'static str],
);

const BROKEN: [Broken; 14] = [
    (8, DType::Bf16, SHAPE, &["multiple of 16 bytes", "byte 8"]),
    (
        0,
        DType::Bf16,
        TensorMapShape {
            dims: &[64; 6],
            strides: &[256; 5],
            box_dims: &[1; 6],
            ..SHAPE
        },
        &["1 to 5 dimensions", "6 are given"],
    ),
    (
        0,
        DType::Bf16,
        TensorMapShape {
            dims: &[],
            strides: &[],
            box_dims: &[],
            ..SHAPE
        },
        &["1 to 5 dimensions", "0 are given"],
    ),
    (
        0,
        DType::Bf16,
        TensorMapShape {
            strides: &[],
            ..SHAPE
        },
        &["2 dimensions need 1 strides", "0 and 2 are given"],
    ),
    (
        0,
        DType::Bf16,
        TensorMapShape {
            box_dims: &[64],
            ..SHAPE
        },
        &["2 extents of the box", "1 and 1 are given"],
    ),
    (
        0,
        DType::Bf16,
        TensorMapShape {
            dims: &[64, 0],
            ..SHAPE
        },
        &["dimension 1", "1 to 4294967296 elements", "0 are given"],
    ),
    (
        0,
        DType::Bf16,
        TensorMapShape {
            dims: &[(1 << 32) + 1, 2],
            ..SHAPE
        },
        &["dimension 0", "4294967297 are given"],
    ),
    (
        0,
        DType::Bf16,
        TensorMapShape {
            strides: &[136],
            ..SHAPE
        },
        &[
            "stride of dimension 1",
            "multiple of 16 bytes",
            "136 is given",
        ],
    ),
    (
        0,
        DType::Bf16,
        TensorMapShape {
            strides: &[1 << 40],
            ..SHAPE
        },
        &["below 1099511627776", "1099511627776 is given"],
    ),
    (
        0,
        DType::Bf16,
        TensorMapShape {
            box_dims: &[64, 257],
            ..SHAPE
        },
        &["1 to 256 elements along dimension 1", "257 are given"],
    ),
    (
        0,
        DType::Bf16,
        TensorMapShape {
            box_dims: &[0, 64],
            ..SHAPE
        },
        &["along dimension 0", "0 are given"],
    ),
    (
        0,
        DType::Bf16,
        TensorMapShape {
            box_dims: &[12, 64],
            ..SHAPE
        },
        &[
            "row of the box is a multiple of 16 bytes",
            "12 elements of bf16 are 24",
        ],
    ),
    (
        0,
        DType::F32,
        SHAPE,
        &["at most the 128 bytes", "64 elements of f32 are 256"],
    ),
    (
        0,
        DType::Bf16,
        TensorMapShape {
            swizzle: Swizzle::Span32,
            ..SHAPE
        },
        &["at most the 32 bytes", "64 elements of bf16 are 128"],
    ),
];

#[test]
fn tensor_maps_against_the_drivers_rules_are_refused_with_both_values() {
    for (offset, element, shape, says) in BROKEN {
        let problem = map(offset, element, shape).expect_err("it breaks a rule");
        for part in [
            "kernel some_kernel, tensor map of output 1",
            says[0],
            says[says.len() - 1],
        ] {
            assert!(problem.contains(part), "{part:?} in {problem}");
        }
        assert!(
            says.iter().all(|part| problem.contains(part)),
            "{says:?} in {problem}"
        );
    }
}

#[test]
fn a_row_without_swizzle_may_be_as_long_as_a_box() {
    let shape = TensorMapShape {
        dims: &[256],
        strides: &[],
        box_dims: &[256],
        swizzle: Swizzle::None,
    };
    assert!(map(0, DType::F32, shape).is_ok());
}

#[test]
fn a_map_beyond_64_bits_of_address_has_no_length() {
    let shape = TensorMapShape {
        dims: &[64, 1 << 32, 1 << 32, 1 << 32, 1 << 32],
        strides: &[(1 << 40) - 16; 4],
        box_dims: &[64, 1, 1, 1, 1],
        swizzle: Swizzle::Span128,
    };
    let map = map(0, DType::Bf16, shape).expect("every rule alone is kept");
    assert_eq!(map.bytes(), None);
}
