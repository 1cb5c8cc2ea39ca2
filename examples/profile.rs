use keel::executor::*;
use keel::model::*;
use keel::tape::*;
use keel::train::*;
use std::collections::BTreeMap;
use std::sync::Arc;
fn main() {
    let name = std::env::args()
        .nth(1)
        .unwrap_or("warm-start-vision".into());
    let recipe = Recipe::load("emoji", &[]).unwrap();
    let stage = recipe.stage(&name).unwrap();
    let layout = declare(&recipe.model, recipe.contrastive_form.into()).unwrap();
    let ex = CpuExecutor::new(layout.elements(), 2).unwrap();
    ex.write_parameters(0, &initialise(&layout, 1));
    let shape = step_shape(stage, None);
    let program = Arc::new(
        compile_step(
            &recipe,
            stage,
            &layout,
            &shape,
            Target::Cpu { threads: 2 },
            None,
        )
        .unwrap(),
    );
    let mut s = ex.load(program.clone()).unwrap();
    for n in program.input_names().map(str::to_owned).collect::<Vec<_>>() {
        let ty = program.ty(program.input(&n).unwrap());
        if ty.dtype == keel::tensor::DType::I32 {
            s.write_i32(
                &n,
                &(0..ty.numel())
                    .map(|i| (i * 7 % 30 + 6) as i32)
                    .collect::<Vec<_>>(),
            )
            .unwrap();
        } else {
            s.write_f32(
                &n,
                &(0..ty.numel())
                    .map(|i| ((i * 37 % 101) as f32) / 101.0)
                    .collect::<Vec<_>>(),
            )
            .unwrap();
        }
    }
    s.write_f32(
        "hyper",
        &[0.0, 0.9, 0.99, 1e-8, 0.0, 1.0, 0.1, 0.1, 0.1, 0.01],
    )
    .unwrap();
    for _ in 0..2 {
        s.run().unwrap();
    }
    let mut best = f64::MAX;
    for _ in 0..6 {
        let t = std::time::Instant::now();
        s.run().unwrap();
        best = best.min(t.elapsed().as_secs_f64());
    }
    let mut t = vec![0.0; program.steps().len()];
    let mut m = vec![f64::MAX; t.len()];
    for _ in 0..6 {
        t.fill(0.0);
        s.run_timed(&mut t).unwrap();
        for (a, b) in m.iter_mut().zip(&t) {
            *a = a.min(*b);
        }
    }
    let mut by: BTreeMap<&str, (f64, f64, f64, usize)> = BTreeMap::new();
    for (st, secs) in program.steps().iter().zip(&m) {
        let c = program.step_cost(st);
        let e = by.entry(st.instruction.op.name()).or_default();
        e.0 += secs;
        e.1 += c.flops;
        e.2 += c.bytes_read + c.bytes_written;
        e.3 += 1;
    }
    let mut v: Vec<_> = by.into_iter().collect();
    v.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
    let sum: f64 = m.iter().sum();
    println!(
        "{name}: best {:.1} ms, sum of mins {:.1} ms, {:.1} GFLOP, {:.0} GFLOP/s, peak {:.0}",
        best * 1e3,
        sum * 1e3,
        program.cost().flops / 1e9,
        program.cost().flops / best / 1e9,
        ex.peak_flops() / 1e9
    );
    for (n, (s, f, b, k)) in v.into_iter().take(16) {
        println!(
            "{:8.2} ms {:5.1} %  {:6.1} GFLOP/s {:6.1} GB/s  x{k} {n}",
            s * 1e3,
            100.0 * s / sum,
            f / s / 1e9,
            b / s / 1e9
        );
    }
}
