//! The processor's steps in f32 and in bf16, step by step in turn, in wall time and in processor time.

use std::time::Instant;

use keel::executor::{Device, Precision, SelectedDevice};

use crate::compare::processor_seconds;
use crate::lead::{Lead, STEPS, load};
use crate::threads;

/// Steps of each precision that are not counted.
const WARM_UP: usize = 2;
/// Steps of each precision that are, one of each in turn.
const BURSTS: usize = 15;

/// One step's seconds.
struct Taken {
    wall: f64,
    /// Of all threads together.
    processor: f64,
}

/// Prints the steps of both precisions beside each other, and how the ratio of neighbours is spread.
pub fn compare() -> Result<(), String> {
    println!(
        "| step | precision | median ms (least–most) | processor ms | f32 ÷ bf16, wall (middle half) | f32 ÷ bf16, processor | plan MiB | activations MiB |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (step, _) in STEPS {
        let chosen = [Precision::F32, Precision::Bf16].map(|precision| {
            SelectedDevice::new(Device::Cpu, threads(), Some(precision)).map_err(|e| e.to_string())
        });
        let [single, half] = chosen;
        let selected = [single?, half?];
        let mut leads = [0, 1].map(|index| load(step, &selected[index]));
        let mut taken: [Vec<Taken>; 2] = Default::default();
        for burst in 0..WARM_UP + BURSTS {
            for (lead, taken) in leads.iter_mut().zip(&mut taken) {
                let one = time(lead);
                if burst >= WARM_UP {
                    taken.push(one);
                }
            }
        }
        // Of neighbours in time, so that what else the machine does meets both alike.
        let ratios = |of: fn(&Taken) -> f64| {
            let pairs = taken[0].iter().zip(&taken[1]);
            sorted(pairs.map(|(single, half)| of(single) / of(half)).collect())
        };
        let (wall, processor) = (ratios(|taken| taken.wall), ratios(|taken| taken.processor));
        for ((lead, selected), taken) in leads.iter().zip(&selected).zip(&taken) {
            let walls = sorted(taken.iter().map(|taken| taken.wall * 1e3).collect());
            let processors = sorted(taken.iter().map(|taken| taken.processor * 1e3).collect());
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            println!(
                "| {step} | {} | {:.0} ({:.0}–{:.0}) | {:.0} | {:.2} ({:.2}–{:.2}) | {:.2} | {:.0} | {:.0} |",
                selected.describe(),
                middle(&walls),
                walls[0],
                walls[BURSTS - 1],
                middle(&processors),
                middle(&wall),
                wall[BURSTS / 4],
                wall[BURSTS - 1 - BURSTS / 4],
                middle(&processor),
                mib(lead.planned_bytes),
                mib(lead.session.program().arena_bytes() as u64),
            );
        }
    }
    Ok(())
}

fn time(lead: &mut Lead) -> Taken {
    let (start, before) = (Instant::now(), processor_seconds());
    lead.run();
    Taken {
        wall: start.elapsed().as_secs_f64(),
        processor: processor_seconds() - before,
    }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

fn middle(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}
