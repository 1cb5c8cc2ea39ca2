//! The table of kernels, which the build script reads from the sources, says what the C++ compiler says.

use keel::executor::kernel_table::KERNELS;
use keel::launch::kernels::{self, constants};
use keel::launch::{Family, KernelEntry};
use keel::tensor::DType;

use super::emulator;

#[test]
fn the_table_has_the_compilers_kernels_with_their_parameters() {
    let Some(emulator) = emulator() else { return };
    let mut compiled = emulator.kernels();
    compiled.retain(|kernel| !kernel.name.starts_with("zoo_"));
    assert_eq!(compiled.len(), KERNELS.len());
    for entry in KERNELS {
        let kernel = compiled
            .iter()
            .find(|kernel| kernel.name == entry.name)
            .unwrap_or_else(|| panic!("{entry} is in no object file"));
        assert_eq!(kernel.parameters, entry.parameters, "{entry}");
    }
}

#[test]
fn constants_families_and_sizes_name_their_kernels() {
    assert_eq!(kernels::ADAMW_F32.name, "adamw_f32");
    let of = |family: Family, dtype| family.of(dtype).map(|kernel| kernel.name);
    assert_eq!(of(kernels::COPY, DType::I32).unwrap(), "copy_i32");
    assert_eq!(
        of(kernels::LINEAR_FORWARD_SIZES.small, DType::Bf16).unwrap(),
        "linear_forward_small_bf16"
    );
    assert_eq!(
        of(kernels::LAYER_NORM_FORWARD_WIDTHS.wide, DType::F32).unwrap(),
        "layer_norm_forward_wide_f32"
    );
    assert_eq!(
        of(kernels::LAYER_NORM_FORWARD_WIDTHS.middle, DType::F32).unwrap(),
        "layer_norm_forward_middle_f32"
    );
    let dims: Vec<usize> = kernels::ATTENTION_FORWARD
        .iter()
        .map(|(dim, _)| *dim)
        .collect();
    assert_eq!(dims, [32, 64, 96, 128]);
    for sizes in [
        kernels::ATTENTION_BACKWARD_QUERY,
        kernels::ATTENTION_BACKWARD_KEY_VALUE,
    ] {
        assert!(sizes.iter().map(|(dim, _)| dim).eq(&dims), "{sizes:?}");
    }
}

#[test]
fn a_family_refuses_a_type_it_has_no_kernel_for() {
    let problem = kernels::ADD.of(DType::I32).unwrap_err().to_string();
    for part in ["kernel add", "f32 and bf16", "i32"] {
        assert!(problem.contains(part), "{part:?} in {problem}");
    }
}

/// Threads by the constants that the ops size their grids with.
#[test]
fn blocks_have_the_threads_that_ops_count_with() {
    let Some(emulator) = emulator() else { return };
    let lanes = constants::kernel::WARP_LANES;
    let cases: [(&KernelEntry, usize); 13] = [
        (kernels::ADAMW_F32, constants::adamw::ADAMW_THREADS),
        (kernels::ADD_F32, constants::basic::BASIC_THREADS),
        (kernels::CAST_F32_TO_BF16, constants::cast::CAST_THREADS),
        (
            kernels::SPLICE_FORWARD_F32,
            constants::splice::SPLICE_WARPS * lanes,
        ),
        (
            kernels::EMBEDDING_BACKWARD_ORDER_I32,
            constants::embedding::ORDER_THREADS,
        ),
        (
            kernels::EMBEDDING_BACKWARD_HEADS_F32,
            constants::embedding::SUM_WARPS * lanes,
        ),
        (
            kernels::POSITION_FORWARD_F32,
            constants::moves::MOVE_THREADS,
        ),
        (kernels::QK_NORM_FORWARD_F32, constants::qk_norm::QK_THREADS),
        (
            kernels::LINEAR_SUM_F32,
            constants::linear::ELEMENTWISE_THREADS,
        ),
        (
            kernels::CONTRASTIVE_LOSS_FINISH_F32,
            constants::scores::REDUCE_THREADS,
        ),
        (
            kernels::LINEAR_CROSS_ENTROPY_ROWS_F32,
            constants::scores::REDUCE_WARPS * lanes,
        ),
        (
            kernels::PATCH_EMBED_BACKWARD_IMAGE_REST_F32,
            constants::patch_embed::PATCH_THREADS,
        ),
        (
            kernels::ATTENTION_BACKWARD_DELTA_F32,
            constants::attention_backward::ELEMENT_THREADS,
        ),
    ];
    for (entry, threads) in cases {
        let kernel = emulator.kernel(entry.name).expect("it is in the table");
        assert_eq!(kernel.threads, Some(threads as u32), "{entry}");
    }
}
