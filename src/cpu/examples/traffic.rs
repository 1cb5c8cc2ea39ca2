//! What it is worth that ops which follow one another over the same rows run while those are in cache.
//!
//!     cargo run --release -p keel-cpu --example traffic
//!
//! The two products of an MLP forward, the two input gradients of it backward, and a pass over rows (as a norm makes one) with the
//! product behind it: each computed over all rows before the next begins, and over 896 rows at a time, in turn. Both forms make the
//! same calls and pack the same weights; only their order differs, so that their ratio is the cache's. Processor time, medians of
//! neighbouring runs, with the middle half in brackets, for the shapes of the steps in docs/benchmarks.md.

use half::bf16;
use keel_cpu::matmul::{
    Epilogue, Factor, Residual, Rows, RowsMut, Slope, linear, linear_backward_input,
    linear_workspace, widened_rows_workspace,
};
use keel_cpu::vector_math::Activation;
use keel_cpu::{round, widen};
use rustix::time::{ClockId, clock_gettime};

/// Rows, width and hidden width: towers of the contrastive step and of ViT-S/16, the language model of stage III.
const SHAPES: [[usize; 3]; 3] = [[8192, 192, 768], [3136, 384, 1536], [4096, 256, 1024]];
/// Rows of a part: the tasks of all threads hold them in their second-level caches.
const PART: usize = 896;
/// Runs of each form.
const RUNS: usize = 15;
const THREADS: usize = 2;

/// Processor time of all threads, in ms.
fn processor_ms() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

fn numbers<T: Factor>(len: usize) -> Vec<T> {
    (0..len)
        .map(|i| T::rounded((i % 251) as f32 / 251.0 - 0.5))
        .collect()
}

/// An MLP of `width` numbers a row with `hidden` ones inside, and everything that a step keeps of it.
struct Mlp<T> {
    shape: [usize; 3],
    input: Vec<T>,
    normed: Vec<T>,
    first: Vec<T>,
    second: Vec<T>,
    pre_activation: Vec<T>,
    inside: Vec<T>,
    output: Vec<T>,
    scratch: Vec<f32>,
}

/// First row and rows.
type Part = (usize, usize);

/// Two ops that follow one another over the same rows.
type Two<T> = [fn(&mut Mlp<T>, Part); 2];

impl<T: Factor> Mlp<T> {
    fn new(shape: [usize; 3]) -> Self {
        let [rows, width, hidden] = shape;
        let room = linear_workspace(hidden, hidden) + widened_rows_workspace(hidden, THREADS);
        Self {
            shape,
            input: numbers(rows * width),
            normed: numbers(rows * width),
            first: numbers(hidden * width),
            second: numbers(width * hidden),
            pre_activation: numbers(rows * hidden),
            inside: numbers(rows * hidden),
            output: numbers(rows * width),
            scratch: vec![0.0; room],
        }
    }

    fn expand(&mut self, (first, count): Part) {
        let [_, width, hidden] = self.shape;
        let z = &mut self.pre_activation[first * hidden..];
        let epilogue = Epilogue {
            pre_activation: Some(RowsMut::new(z, count, hidden)),
            activation: Some(Activation::Gelu),
            ..Epilogue::default()
        };
        let x = Rows::new(&self.input[first * width..], count, width);
        let y = RowsMut::new(&mut self.inside[first * hidden..], count, hidden);
        let w = Rows::new(&self.first, hidden, width);
        linear(x, w, y, epilogue, &mut self.scratch);
    }

    fn contract(&mut self, (first, count): Part) {
        let [_, width, hidden] = self.shape;
        let epilogue = Epilogue {
            residual: Residual::InPlace,
            ..Epilogue::default()
        };
        let x = Rows::new(&self.inside[first * hidden..], count, hidden);
        let y = RowsMut::new(&mut self.output[first * width..], count, width);
        let w = Rows::new(&self.second, width, hidden);
        linear(x, w, y, epilogue, &mut self.scratch);
    }

    fn gradient_inside(&mut self, (first, count): Part) {
        let [_, width, hidden] = self.shape;
        let slope = Slope {
            activation: Activation::Gelu,
            pre_activation: Rows::new(&self.pre_activation[first * hidden..], count, hidden),
        };
        let dy = Rows::new(&self.input[first * width..], count, width);
        let dx = RowsMut::new(&mut self.inside[first * hidden..], count, hidden);
        let w = Rows::new(&self.second, width, hidden);
        linear_backward_input(dy, w, dx, false, Some(slope), &mut self.scratch);
    }

    fn gradient_of_input(&mut self, (first, count): Part) {
        let [_, width, hidden] = self.shape;
        let dy = Rows::new(&self.inside[first * hidden..], count, hidden);
        let dx = RowsMut::new(&mut self.output[first * width..], count, width);
        let w = Rows::new(&self.first, hidden, width);
        linear_backward_input(dy, w, dx, false, None, &mut self.scratch);
    }

    fn center(&mut self, (first, count): Part) {
        let width = self.shape[1];
        let mut row = vec![0.0; width];
        let from = self.input[first * width..][..count * width].chunks(width);
        let to = self.normed[first * width..].chunks_mut(width);
        for (from, to) in from.zip(to) {
            widen(from, &mut row);
            let mean = row.iter().sum::<f32>() / width as f32;
            row.iter_mut().for_each(|x| *x -= mean);
            round(&row, to);
        }
    }

    fn project(&mut self, (first, count): Part) {
        let [_, width, hidden] = self.shape;
        let x = Rows::new(&self.normed[first * width..], count, width);
        let y = RowsMut::new(&mut self.inside[first * hidden..], count, hidden);
        let w = Rows::new(&self.first, hidden, width);
        linear(x, w, y, Epilogue::default(), &mut self.scratch);
    }

    /// Processor time of two ops, each over all parts before the other, and part by part.
    fn apart_and_together(&mut self, ops: Two<T>) -> [f64; 2] {
        let rows = self.shape[0];
        let parts = || (0..rows).step_by(PART).map(|at| (at, PART.min(rows - at)));
        let before = processor_ms();
        for op in ops {
            parts().for_each(|part| op(self, part));
        }
        let between = processor_ms();
        for part in parts() {
            ops.iter().for_each(|op| op(self, part));
        }
        [between - before, processor_ms() - between]
    }
}

fn report<T: Factor>(kind: &str, shape: [usize; 3]) {
    let mut mlp = Mlp::<T>::new(shape);
    let pairs: [(&str, Two<T>); 3] = [
        ("MLP forward", [Mlp::expand, Mlp::contract]),
        (
            "MLP backward",
            [Mlp::gradient_inside, Mlp::gradient_of_input],
        ),
        ("pass and product", [Mlp::center, Mlp::project]),
    ];
    for (name, ops) in pairs {
        let mut times: Vec<[f64; 2]> = (0..RUNS).map(|_| mlp.apart_and_together(ops)).collect();
        let mut ratios: Vec<f64> = times
            .iter()
            .map(|[apart, together]| apart / together)
            .collect();
        ratios.sort_by(f64::total_cmp);
        times.sort_by(|a, b| a[0].total_cmp(&b[0]));
        println!(
            "{shape:?} {kind}, {name}: {:.2} ms apart, {:.3} times as long as together ({:.3}–{:.3})",
            times[RUNS / 2][0],
            ratios[RUNS / 2],
            ratios[RUNS / 4],
            ratios[RUNS - 1 - RUNS / 4],
        );
    }
}

fn main() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(THREADS).build();
    pool.expect("threads can be had").install(|| {
        for shape in SHAPES {
            report::<f32>("f32", shape);
            report::<bf16>("bf16", shape);
        }
    });
}
