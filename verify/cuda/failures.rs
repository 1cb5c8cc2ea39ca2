//! Launches that cannot be are refused by the GPU's executor as by the emulator's.

use keel::tensor::DType;

use super::{Children, executor, is_child};
use crate::simt::refusals::check_refusals;

#[test]
fn launches_that_do_not_fit_their_kernel_are_refused_before_the_driver_sees_them() {
    if is_child() {
        check_refusals(&executor(0, DType::F32).expect("the driver has a GPU"));
        return;
    }
    let name = "cuda::failures::launches_that_do_not_fit_their_kernel_are_refused_before_the_driver_sees_them";
    let Some(children) = Children::of(name) else {
        return;
    };
    let outcome = children.run("", &[]);
    assert!(!outcome.log.contains("launch"), "{}", outcome.log);
}
