//! The second launcher: the same bits as the first for every kernel of a program, and callers' own cust buffers.

use keel::executor::CudaExecutor;
use keel::executor::cuda::cust::{CustLauncher, compare};
use keel::executor::cuda::probe_driver;
use keel::tensor::DType;

use super::steps::{layout, parameters, program, write};
use super::{Children, images, is_child};
use keel::executor::Executor;

#[test]
fn the_second_launcher_leaves_the_same_bits() {
    if is_child() {
        let layout = layout();
        let found = probe_driver().expect("the driver has a GPU");
        for precision in [DType::F32, DType::Bf16] {
            let executor = CudaExecutor::with_images(found.clone(), layout.elements(), images())
                .expect("the driver has a GPU")
                .in_precision(precision);
            executor
                .write_parameters(0, &parameters(&layout, 0))
                .unwrap();
            let mut launcher =
                CustLauncher::with_images(&found, images()).expect("the driver has a GPU");
            let compared = compare(
                &executor,
                &mut launcher,
                program(&layout, precision),
                |session| {
                    write(session, 0);
                    Ok(())
                },
            );
            match compared {
                Ok(launches) => println!("compared: {launches} in {precision}"),
                Err(problem) => println!("refused: {problem}"),
            }
        }
        return;
    }
    let name = "cuda::cust::the_second_launcher_leaves_the_same_bits";
    let Some(children) = Children::of(name) else {
        return;
    };
    let outcome = children.run("late", &[]);
    for precision in ["f32", "bf16"] {
        let line = outcome
            .said
            .lines()
            .find(|line| line.contains("compared: ") && line.ends_with(&format!("in {precision}")));
        let line = line.unwrap_or_else(|| panic!("{precision}: {}", outcome.said));
        assert!(!line.contains("compared: 0"), "{line}");
    }
    // A launcher that goes wrong is noticed: here the second launch of a kernel writes nothing.
    let outcome = children.run("idle=2", &[]);
    let said = &outcome.said;
    assert!(said.contains("refused: kernel "), "{said}");
    assert!(said.contains("by the first launcher and"), "{said}");
}
