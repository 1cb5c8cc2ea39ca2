//! The least times follow from the ops' costs and the chips' speeds.

use keel::tape::Cost;
use keel::tensor::DType;
use keel_kernel_report::{Bound, CHIPS, Size, Work, catalogue, works};

fn work(flops: f64, bytes: f64, is_product: bool, precision: DType) -> Work {
    Work {
        example: "example",
        shape: String::new(),
        op: "op",
        precision,
        is_product,
        cost: Cost {
            flops,
            bytes_read: bytes / 2.0,
            bytes_written: bytes / 2.0,
        },
        kernels: Vec::new(),
    }
}

#[test]
fn the_slower_of_arithmetic_and_memory_bounds_an_op() {
    let a100 = &CHIPS[0];
    let seconds = |work: Work| work.least_seconds(a100);
    let close = |found: f64, wanted: f64| (found / wanted - 1.0).abs() < 1e-12;
    // One second of products, and of memory.
    let (time, bound) = seconds(work(312e12, 1e9, true, DType::Bf16));
    assert!(close(time, 1.0) && bound == Bound::Tensor);
    let (time, bound) = seconds(work(312e12, 1e9, true, DType::F32));
    assert!(close(time, 6.0) && bound == Bound::Tensor);
    let (time, bound) = seconds(work(1e9, 2039e9, true, DType::Bf16));
    assert!(close(time, 1.0) && bound == Bound::Memory);
    let (time, bound) = seconds(work(19.5e12, 1e9, false, DType::Bf16));
    assert!(close(time, 1.0) && bound == Bound::Arithmetic);
}

#[test]
fn every_example_is_told_with_its_backward_in_both_sizes() {
    for size in [Size::Small, Size::Large] {
        let works = works(size, DType::F32).unwrap();
        for (op, backward) in [
            ("linear", "linear_backward_weight"),
            ("attention", "attention_backward"),
            ("layer_norm", "layer_norm_backward"),
            ("update", "adamw"),
        ] {
            let told = works.iter().any(|w| w.example == op && w.op == backward);
            assert!(told, "{op} lacks {backward} in {size:?}");
        }
        for work in &works {
            let bytes = work.cost.bytes_read + work.cost.bytes_written;
            assert!(bytes > 0.0 && work.cost.flops >= 0.0, "{work:?}");
        }
    }
}

/// What the rooflines call a product must be one on the tensor cores, and nothing else may be.
#[test]
fn kernels_use_tensor_cores_where_the_rooflines_count_on_them() {
    let catalogue = catalogue();
    if !catalogue.has_mixes {
        return;
    }
    for precision in [DType::F32, DType::Bf16] {
        for work in works(Size::Large, precision).unwrap() {
            // A product's activation and sums are launches of their own.
            let uses_tensor_cores = work.kernels.iter().any(|kernel| {
                let facts = catalogue.kernels.iter().find(|facts| facts.name == kernel);
                let facts = facts.unwrap_or_else(|| panic!("{kernel} is launched but unknown"));
                let mut mixes = facts.codes.iter().filter_map(|code| code.mix.as_ref());
                mixes.any(|mix| mix.tensor() > 0)
            });
            let exempt = work.op == "linear_backward_activation" || work.kernels.is_empty();
            assert!(
                exempt || work.is_product == uses_tensor_cores,
                "{} of {} launches {:?}",
                work.op,
                work.example,
                work.kernels
            );
        }
    }
}
