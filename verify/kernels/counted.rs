//! What the kernels are counted to execute: the arithmetic of their sizes, and the file that counts are held to.

use keel::tensor::DType;
use keel_kernel_report::{
    CountBudget, CountedWork, Limit, Measured, SPEEDS, Size, count, counted_markdown,
};

/// The tiny examples; none where there is no PTX.
fn tiny() -> Option<Vec<CountedWork>> {
    count(Size::Tiny, DType::Bf16)
        .inspect_err(|reason| eprintln!("not run: {reason}"))
        .ok()
}

#[test]
fn counted_tensor_products_are_those_of_the_tiles() {
    let Some(all) = tiny() else { return };
    let mut products = 0;
    for counted in &all {
        for kernel in &counted.kernels {
            let sums = &kernel.sums;
            assert!(sums.instructions > 0.0, "{}", kernel.name);
            assert!(sums.wavefronts >= sums.ideal_wavefronts, "{}", kernel.name);
            assert!(sums.sectors >= sums.ideal_sectors, "{}", kernel.name);
            if kernel.name == "linear_forward_small_bf16" && counted.work.example == "linear" {
                // Tiles of 64 × 64 in steps of 32: 8 products of 16 × 8 a fragment row, twice for 32 along k.
                let [rows, columns, inner] = if counted.work.shape.starts_with("[10,64]") {
                    [10usize, 192, 64]
                } else {
                    [12, 80, 48]
                };
                let tiles = rows.div_ceil(64) * columns.div_ceil(64);
                let want = tiles * inner.div_ceil(32) * (4 * 8 * 2);
                assert_eq!(sums.tensor, want as f64, "{}", counted.work.shape);
                products += 1;
            }
        }
    }
    assert_eq!(products, 2);
}

#[test]
fn a_kernel_that_meets_banks_twice_as_often_breaks_the_counts() {
    let Some(mut all) = tiny() else { return };
    let text = CountBudget::of(&all).write();
    let agreed = CountBudget::read("counts.toml", &text).expect("what was written is read");
    assert_eq!(agreed, CountBudget::of(&all));
    assert_eq!(agreed.problems(&all), Vec::<String>::new());
    let meets = |counted: &&mut CountedWork| counted.kernels[0].sums.wavefronts > 1e3;
    let counted = all
        .iter_mut()
        .find(meets)
        .expect("products use shared memory");
    counted.kernels[0].sums.wavefronts *= 2.0;
    let name = counted.kernels[0].name.clone();
    let problems = agreed.problems(&all);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains(&name) && problems[0].contains("thousand wavefronts were agreed"));
    let missing = CountBudget::default().problems(&all);
    assert!(
        missing[0].contains("cargo tool ptx --counts --write adds it"),
        "{}",
        missing[0]
    );
    all.clear();
    assert!(agreed.problems(&all)[0].contains("no example launches it"));
    let problem = CountBudget::read("counts.toml", "x = { tensors = 1 }").unwrap_err();
    assert!(
        problem
            .to_string()
            .contains("cargo tool ptx --counts --write"),
        "{problem}"
    );
}

#[test]
fn predictions_follow_the_part_that_takes_longest() {
    let Some(all) = tiny() else { return };
    let mut counted = all
        .into_iter()
        .find(|counted| counted.work.op == "linear")
        .expect("an example is a linear layer");
    for speed in &SPEEDS {
        let before = speed.predict(&counted);
        assert!(before.least <= before.seconds, "{}", speed.name);
    }
    counted.kernels[0].sums.wavefronts = 1e12;
    let h100 = SPEEDS
        .iter()
        .find(|speed| speed.name == "H100")
        .expect("it is there");
    let bound = h100.predict(&counted);
    assert_eq!(bound.limit, Limit::Shared);
    let alone = 1e12 / (f64::from(h100.multiprocessors) * h100.clock);
    assert!(bound.seconds >= alone && bound.least < alone);
}

#[test]
fn what_a_gpu_took_stands_beside_what_was_predicted() {
    let Some(all) = tiny() else { return };
    let folder = tempfile::tempdir().unwrap();
    let nothing = Measured::read_all(&folder.path().join("none")).unwrap();
    assert!(counted_markdown(&all, &nothing).contains("Nothing here was measured"));
    let counted = &all[0];
    let h200 = SPEEDS.iter().find(|speed| speed.name == "H200").unwrap();
    let predicted = h200.predict(counted).seconds;
    let row = serde_json::json!({
        "kind": "op",
        "example": counted.work.example,
        "shape": counted.work.shape,
        "op": counted.work.op,
        "precision": "bf16",
        "median_ms": 2e3 * predicted,
    });
    let file = |tiny: u8| {
        format!(
            "{{\"kind\":\"machine\",\"device\":\"NVIDIA H200\",\"tiny\":{tiny}}}\n{{\"kind\":\"part\",\"name\":\"probe\"}}\n{row}\n"
        )
    };
    let path = folder.path().join("nvidia-h200.jsonl");
    std::fs::write(&path, file(0)).unwrap();
    let measured = Measured::read_all(folder.path()).unwrap();
    let page = counted_markdown(&all, &measured);
    assert!(page.contains("NVIDIA H200, measured µs"), "{page}");
    assert_eq!(page.matches("(2.00×)").count(), 1, "{page}");
    // Times of tiny shapes say nothing of the large ones.
    std::fs::write(&path, file(1)).unwrap();
    assert_eq!(Measured::read_all(folder.path()).unwrap(), nothing);
    std::fs::write(&path, "half a line").unwrap();
    let problem = Measured::read_all(folder.path()).unwrap_err().to_string();
    assert!(
        problem.contains("nvidia-h200.jsonl") && problem.contains("line 1"),
        "{problem}"
    );
}
