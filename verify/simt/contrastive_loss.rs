//! Bugs planted in the forward kernels of the contrastive losses, which merge what the warps of a block found.

use super::{buffer, emulator, whole};
use crate::harness::Random;
use keel::error::Result;
use keel::executor::simt::{Argument, Element, Emulator, Options};

/// Pairs and width: two tiles each way, the last of them ragged.
const N: usize = 131;
const E: usize = 24;

/// Log-sums of rows and of columns by tile, and the diagonal.
fn info_nce(emulator: &Emulator, element: Element, options: &Options<'_>) -> Result<Vec<f32>> {
    let mut random = Random::new(1);
    let u = buffer(emulator, element, &whole(&mut random, N, E, 2, false))?;
    let v = buffer(emulator, element, &whole(&mut random, N, E, 2, false))?;
    let scale = buffer(emulator, Element::F32, &[0.0])?;
    let rows = emulator.allocate(Element::F32, 4 * N)?;
    let columns = emulator.allocate(Element::F32, 4 * N)?;
    let own = emulator.allocate(Element::F32, N)?;
    let [n, e] = [N, E].map(|size| Argument::I32(size as i32));
    let arguments = [
        Argument::whole(&rows),
        Argument::whole(&columns),
        Argument::whole(&own),
        Argument::whole(&u),
        Argument::whole(&v),
        Argument::whole(&scale),
        // Neither a number of pairs nor identities.
        Argument::Null,
        Argument::Null,
        Argument::Null,
        n,
        n,
        e,
        Argument::I32(0),
        n,
    ];
    let kernel = emulator.kernel(&format!("contrastive_loss_info_nce_forward_{element}"))?;
    let block = [kernel.threads.expect("a fixed block"), 1, 1];
    let shared = kernel.shared_bytes;
    emulator.launch(&kernel, [4, 1, 1], block, shared, &arguments, options)?;
    let found: [Vec<f32>; 3] = [rows.read()?, columns.read()?, own.read()?];
    Ok(found.concat())
}

/// The sum of the losses of each tile.
fn sigmoid(emulator: &Emulator, element: Element, options: &Options<'_>) -> Result<Vec<f32>> {
    let mut random = Random::new(2);
    let u = buffer(emulator, element, &whole(&mut random, N, E, 2, false))?;
    let v = buffer(emulator, element, &whole(&mut random, N, E, 2, false))?;
    let scale = buffer(emulator, Element::F32, &[0.0])?;
    let bias = buffer(emulator, Element::F32, &[-1.0])?;
    let part = emulator.allocate(Element::F32, 4)?;
    let [n, e] = [N, E].map(|size| Argument::I32(size as i32));
    let arguments = [
        Argument::whole(&part),
        Argument::whole(&u),
        Argument::whole(&v),
        Argument::whole(&scale),
        Argument::whole(&bias),
        // Neither a number of pairs nor identities.
        Argument::Null,
        Argument::Null,
        Argument::Null,
        n,
        n,
        e,
        Argument::I32(0),
        n,
        Argument::I32(1),
    ];
    let kernel = emulator.kernel(&format!("contrastive_loss_sigmoid_forward_{element}"))?;
    let block = [kernel.threads.expect("a fixed block"), 1, 1];
    let shared = kernel.shared_bytes;
    emulator.launch(&kernel, [4, 1, 1], block, shared, &arguments, options)?;
    part.read()
}

type Run = fn(&Emulator, Element, &Options<'_>) -> Result<Vec<f32>>;

#[test]
fn bugs_planted_in_the_contrastive_losses_are_caught() {
    let Some(emulator) = emulator() else { return };
    let bugs: [(&str, Run); 4] = [
        (
            "info_nce_forward: no barrier before the warps' log-sums are merged",
            info_nce,
        ),
        ("product: no wait for the copies of the step", info_nce),
        (
            "block_sum: no barrier before the partial sums are read",
            sigmoid,
        ),
        ("product: no wait for the copies of the step", sigmoid),
    ];
    for (bug, run) in bugs {
        for element in [Element::F32, Element::Bf16] {
            let clean = run(&emulator, element, &Options::default()).expect("a clean kernel");
            let caught = Options::proof(0).iter().any(|options| {
                let options = Options {
                    planted_bug: Some(bug),
                    ..*options
                };
                match run(&emulator, element, &options) {
                    Ok(found) => found != clean,
                    Err(error) => !error.to_string().contains("PLANTED_BUG"),
                }
            });
            assert!(caught, "{bug} ({element})");
        }
    }
}
