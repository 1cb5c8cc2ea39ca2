//! The three products of a linear layer at the shapes of the lead steps, on one thread: processor time, which waiting for a
//! core does not lengthen, and the share of the multiply-adds' peak in the same minute.
//!
//!     cargo run --release -p keel-cpu --example products
//!
//! The peer, at the same shapes: `python bench/peers/products.py`.

use keel_cpu::matmul::{
    Epilogue, Rows, RowsMut, linear, linear_backward_input, linear_backward_input_workspace,
    linear_backward_weight, linear_backward_weight_workspace, linear_workspace,
};
use rustix::time::{ClockId, clock_gettime};

/// Rows, inputs and outputs.
const SHAPES: [[usize; 3]; 7] = [
    [8192, 192, 576],
    [8192, 192, 192],
    [8192, 192, 768],
    [8192, 768, 192],
    [4096, 256, 512],
    [4096, 256, 1536],
    [4096, 768, 256],
];

/// Runs of which the median counts.
const RUNS: usize = 9;

/// Milliseconds that this thread has computed.
fn processor_ms() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 * 1e-6
}

/// The median of the runs after the first.
fn median_ms(mut run: impl FnMut()) -> f64 {
    run();
    let mut times = [0.0; RUNS];
    for time in &mut times {
        let before = processor_ms();
        run();
        *time = processor_ms() - before;
    }
    times.sort_by(f64::total_cmp);
    times[RUNS / 2]
}

/// y, dx, and dW with db.
fn products([m, k, n]: [usize; 3]) -> [f64; 3] {
    let numbers =
        |len: usize| -> Vec<f32> { (0..len).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect() };
    let (x, w, dy) = (numbers(m * k), numbers(n * k), numbers(m * n));
    let (xs, ws, dys) = (
        Rows::new(&x, m, k),
        Rows::new(&w, n, k),
        Rows::new(&dy, m, n),
    );
    let (mut y, mut dx) = (vec![0.0; m * n], vec![0.0; m * k]);
    let (mut dw, mut db) = (vec![0.0; n * k], vec![0.0; n]);
    let mut room = vec![0.0; linear_workspace(k, n)];
    let forward = median_ms(|| {
        linear(
            xs,
            ws,
            RowsMut::new(&mut y, m, n),
            Epilogue::default(),
            &mut room,
        );
    });
    let mut room = vec![0.0; linear_backward_input_workspace(k, n)];
    let input = median_ms(|| {
        linear_backward_input(dys, ws, RowsMut::new(&mut dx, m, k), false, None, &mut room);
    });
    let mut room = vec![0.0; linear_backward_weight_workspace(m, k, n)];
    let weight = median_ms(|| {
        let to = RowsMut::new(&mut dw, n, k);
        linear_backward_weight(dys, xs, to, Some(&mut db), false, &mut room);
    });
    [forward, input, weight]
}

fn main() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    pool.expect("a thread can be had").install(|| {
        let (mut total, mut flop) = ([0.0; 3], 0.0);
        for shape in SHAPES {
            let times = products(shape);
            flop += 2.0 * shape.iter().product::<usize>() as f64;
            println!(
                "{shape:?}: y {:.2} ms, dx {:.2} ms, dW {:.2} ms",
                times[0], times[1], times[2]
            );
            total
                .iter_mut()
                .zip(times)
                .for_each(|(total, time)| *total += time);
        }
        let peak = keel_cpu::measure_peak();
        let share = |ms: f64| 100.0 * flop / (ms / 1e3) / peak;
        for (name, ms) in ["y", "dx", "dW"].into_iter().zip(total) {
            println!(
                "{name}: {ms:.1} ms, {:.0} % of {:.0} GFLOP/s",
                share(ms),
                peak / 1e9
            );
        }
    });
}
