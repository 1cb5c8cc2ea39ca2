//! The emulator itself: it reports every planted mistake, leaves clean kernels alone, and refuses impossible launches.

mod attention;
mod contrastive_loss;
pub mod coverage;
mod fragment;
mod hopper;
mod launches;
mod linear_sm90;
mod planted;
mod product;
pub mod refusals;
mod table;
mod tensor_maps;
mod zoo;

use crate::harness::Random;
use keel::error::Result;
use keel::executor::simt::{Buffer, Element, Emulator};

/// The emulator, or `None` where this program was built without a C++ compiler; the caller then has nothing to prove.
fn emulator() -> Option<Emulator> {
    Emulator::new()
        .inspect_err(|reason| eprintln!("not run: {reason}"))
        .ok()
}

/// Rows × columns whole numbers within ±limit; `band` leaves only those near the diagonal.
fn whole(random: &mut Random, rows: usize, columns: usize, limit: usize, band: bool) -> Vec<f64> {
    (0..rows * columns)
        .map(|i| {
            let value = random.below(2 * limit + 1) as f64 - limit as f64;
            let far = (i / columns).abs_diff(i % columns) > 1;
            if band && far { 0.0 } else { value }
        })
        .collect()
}

/// [rows, columns] → [columns, rows].
fn transposed(values: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    (0..rows * columns)
        .map(|i| values[i % rows * columns + i / rows])
        .collect()
}

/// left [m,k] · right [k,n].
fn product(left: &[f64], right: &[f64], m: usize, n: usize, k: usize) -> Vec<f32> {
    let element = |i: usize| {
        (0..k)
            .map(|j| left[i / n * k + j] * right[j * n + i % n])
            .sum::<f64>()
    };
    (0..m * n).map(|i| element(i) as f32).collect()
}

/// Memory that holds `values`, which bf16 must hold exactly.
fn buffer(emulator: &Emulator, element: Element, values: &[f64]) -> Result<Buffer> {
    let mut buffer = emulator.allocate(element, values.len())?;
    let floats = values.iter().map(|x| *x as f32);
    match element {
        Element::Bf16 => {
            let bits: Vec<u16> = floats.map(|x| (x.to_bits() >> 16) as u16).collect();
            buffer.write(&bits)?;
        }
        _ => buffer.write(&floats.collect::<Vec<f32>>())?,
    }
    Ok(buffer)
}
