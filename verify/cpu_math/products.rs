//! Matrix products: values against f64, strides, epilogues, and the same bits for any threads and path.

use std::fmt::Arguments;

use keel::cpu::matmul::{
    Epilogue, Extent, READ_BEYOND, Residual, Rows, RowsMut, Slope, Stairs, linear,
    linear_backward_input, linear_backward_input_workspace, linear_backward_weight,
    linear_backward_weight_workspace, linear_workspace, product, product_within, product_workspace,
};
use keel::cpu::reduce::{column_dots, column_sums, sum_over_rows_workspace};
use keel::cpu::simd::Level;
use keel::cpu::vector_math::Activation;

use super::functions::{activation_truth, slope_truth};
use super::{ROUNDOFF, bits, draw, on_every_path, same_bits_as_widest, with_threads};
use crate::harness::Random;

/// (M, N, K): ones, primes, one past every tile border, the sizes of a small model.
const SHAPES: &[(usize, usize, usize)] = &[
    (1, 1, 1),
    (3, 17, 5),
    (14, 32, 8),
    (15, 33, 7),
    (17, 16, 31),
    (113, 48, 64),
    (127, 31, 192),
    (61, 64, 1024),
    (1031, 67, 19),
    (521, 205, 391),
    // Three blocks of dW: of an odd number, one is halved.
    (40, 400, 17),
];

/// A matrix inside a wider tensor, with what lies around it to see that nothing else is written.
struct Packed {
    data: Vec<f32>,
    offset: usize,
    stride: usize,
}

impl Packed {
    fn new(random: &mut Random, rows: usize, width: usize, padding: usize) -> Packed {
        let stride = width + padding;
        Packed {
            data: draw(random, rows * stride + padding),
            offset: padding,
            stride,
        }
    }

    fn rows(&self, rows: usize, width: usize) -> Rows<'_> {
        Rows::strided(&self.data[self.offset..], rows, width, self.stride)
    }

    fn rows_mut(&mut self, rows: usize, width: usize) -> RowsMut<'_> {
        RowsMut::strided(&mut self.data[self.offset..], rows, width, self.stride)
    }

    fn at(&self, row: usize, column: usize) -> f64 {
        f64::from(self.data[self.offset + row * self.stride + column])
    }

    /// Every row of the matrix, `width` long, in f64.
    fn in_rows(&self, rows: usize, width: usize) -> Vec<Vec<f64>> {
        let row = |row| (0..width).map(|column| self.at(row, column)).collect();
        (0..rows).map(row).collect()
    }

    /// Every one of its `width` columns, `rows` long, in f64.
    fn in_columns(&self, rows: usize, width: usize) -> Vec<Vec<f64>> {
        let column = |column| (0..rows).map(|row| self.at(row, column)).collect();
        (0..width).map(column).collect()
    }

    /// Panics where an element outside the matrix differs from `before`.
    fn assert_only_inside(&self, before: &Packed, width: usize) {
        for (index, (now, was)) in self.data.iter().zip(&before.data).enumerate() {
            let inside = index >= self.offset && (index - self.offset) % self.stride < width;
            assert!(
                inside || now.to_bits() == was.to_bits(),
                "element {index} was written"
            );
        }
    }

    fn copy(&self) -> Packed {
        Packed {
            data: self.data.clone(),
            ..*self
        }
    }
}

/// Every row of a small output; of a large one the last and a random tenth.
fn sampled(random: &mut Random, rows: usize, columns: usize) -> Vec<usize> {
    let keep = |row: &usize| rows * columns < 4096 || row + 1 == rows || random.below(10) == 0;
    (0..rows).filter(keep).collect()
}

/// Σ aₖ bₖ in f64 and the bound on an f32 chain of `slack` further roundings: γ Σ |aₖ bₖ|. The tests are
/// not optimised, so it takes its operands as they lie.
fn chain(left: &[f64], right: &[f64], slack: usize) -> (f64, f64) {
    let depth = left.len();
    assert_eq!(depth, right.len());
    let (mut sum, mut size, mut k) = (0.0, 0.0, 0);
    while k < depth {
        let term = left[k] * right[k];
        sum += term;
        size += term.abs();
        k += 1;
    }
    (sum, (2 * depth + slack) as f64 * ROUNDOFF * size)
}

fn assert_close(got: f64, want: f64, bound: f64, what: Arguments<'_>) {
    let error = (got - want).abs();
    assert!(
        error <= bound,
        "{what}: {got} instead of {want}, {error} off, {bound} allowed"
    );
}

#[test]
fn linear_forward_matches_f64_with_every_epilogue() {
    on_every_path(2, |level| {
        for (case, &(m, n, k)) in SHAPES.iter().enumerate() {
            let seed = 100 + case as u64;
            let random = &mut Random::new(seed);
            let activations = [
                None,
                Some(Activation::Gelu),
                Some(Activation::GeluTanh),
                Some(Activation::QuickGelu),
                Some(Activation::Silu),
            ];
            for variant in 0..8 {
                let has = |bit: usize| variant >> bit & 1 == 1;
                let activation = activations[(variant + case) % 5];
                let x = Packed::new(random, m, k, variant % 3);
                let w = Packed::new(random, n, k, variant % 2);
                let mut y = Packed::new(random, m, n, variant % 4);
                let mut z = Packed::new(random, m, n, 1);
                let residual = Packed::new(random, m, n, 2);
                let (bias, scale) = (draw(random, n), draw(random, n));
                let (y_before, z_before) = (y.copy(), z.copy());
                let epilogue = Epilogue {
                    bias: has(0).then_some(&bias[..]),
                    pre_activation: has(1).then(|| z.rows_mut(m, n)),
                    activation,
                    scale: has(2).then_some(&scale[..]),
                    residual: match variant % 3 {
                        0 => Residual::None,
                        1 => Residual::From(residual.rows(m, n)),
                        _ => Residual::InPlace,
                    },
                };
                let mut workspace = vec![f32::NAN; linear_workspace(k, n)];
                linear(
                    x.rows(m, k),
                    w.rows(n, k),
                    y.rows_mut(m, n),
                    epilogue,
                    &mut workspace,
                );
                y.assert_only_inside(&y_before, n);
                z.assert_only_inside(&z_before, n);
                let (x, w) = (x.in_rows(m, k), w.in_rows(n, k));
                for i in sampled(random, m, n) {
                    for j in 0..n {
                        let what =
                            format_args!("{level:?} seed {seed} {variant} [{m},{n},{k}] {i},{j}");
                        let (mut want, mut bound) = chain(&x[i], &w[j], 4);
                        if has(0) {
                            want += f64::from(bias[j]);
                            bound += 2.0 * ROUNDOFF * want.abs();
                        }
                        if has(1) {
                            assert_close(z.at(i, j), want, bound + ROUNDOFF * want.abs(), what);
                        }
                        if let Some(activation) = activation {
                            // |f′| ≤ 1.13 for all of them; the functions themselves are within 4 ulp.
                            want = activation_truth(activation, want);
                            bound = 1.2 * bound + 8.0 * ROUNDOFF * want.abs();
                        }
                        if has(2) {
                            want *= f64::from(scale[j]);
                            bound = bound * f64::from(scale[j]).abs() + ROUNDOFF * want.abs();
                        }
                        let added = match variant % 3 {
                            0 => 0.0,
                            1 => residual.at(i, j),
                            _ => y_before.at(i, j),
                        };
                        want += added;
                        bound += ROUNDOFF * (want.abs() + added.abs()) + 1e-37;
                        assert_close(y.at(i, j), want, bound, what);
                    }
                }
            }
        }
    });
}

#[test]
fn linear_backward_input_matches_f64() {
    on_every_path(2, |level| {
        for (case, &(m, n, k)) in SHAPES.iter().enumerate() {
            let seed = 200 + case as u64;
            let random = &mut Random::new(seed);
            for variant in 0..6 {
                let accumulate = variant % 2 == 1;
                let activation = match variant {
                    0 | 1 => None,
                    2 => Some(Activation::Gelu),
                    3 => Some(Activation::GeluTanh),
                    4 => Some(Activation::QuickGelu),
                    _ => Some(Activation::Silu),
                };
                let dy = Packed::new(random, m, n, variant % 3);
                let w = Packed::new(random, n, k, variant % 2);
                let mut dx = Packed::new(random, m, k, variant % 4);
                let z = Packed::new(random, m, k, 3);
                let before = dx.copy();
                let slope = activation.map(|activation| Slope {
                    activation,
                    pre_activation: z.rows(m, k),
                });
                let mut workspace = vec![f32::NAN; linear_backward_input_workspace(k, n)];
                linear_backward_input(
                    dy.rows(m, n),
                    w.rows(n, k),
                    dx.rows_mut(m, k),
                    accumulate,
                    slope,
                    &mut workspace,
                );
                dx.assert_only_inside(&before, k);
                let (dy, w) = (dy.in_rows(m, n), w.in_columns(n, k));
                for i in sampled(random, m, k) {
                    for j in 0..k {
                        let (mut want, mut bound) = chain(&dy[i], &w[j], 2);
                        if let Some(activation) = activation {
                            let slope = slope_truth(activation, z.at(i, j));
                            bound = bound * slope.abs() + 12.0 * ROUNDOFF * want.abs();
                            want *= slope;
                        }
                        if accumulate {
                            want += before.at(i, j);
                            bound += ROUNDOFF * (want.abs() + before.at(i, j).abs());
                        }
                        let what =
                            format_args!("{level:?} seed {seed} {variant} [{m},{n},{k}] {i},{j}");
                        assert_close(dx.at(i, j), want, bound + ROUNDOFF * want.abs(), what);
                    }
                }
            }
        }
    });
}

#[test]
fn linear_backward_weight_matches_f64() {
    on_every_path(2, |level| {
        for (case, &(m, n, k)) in SHAPES.iter().enumerate() {
            let seed = 300 + case as u64;
            let random = &mut Random::new(seed);
            for variant in 0..4 {
                let (accumulate, wants_bias) = (variant % 2 == 1, variant >= 2);
                let dy = Packed::new(random, m, n, variant);
                let x = Packed::new(random, m, k, variant % 3);
                let mut dw = Packed::new(random, n, k, variant % 2);
                let mut db = draw(random, n);
                let (before, db_before) = (dw.copy(), db.clone());
                let mut workspace = vec![f32::NAN; linear_backward_weight_workspace(m, k, n)];
                linear_backward_weight(
                    dy.rows(m, n),
                    x.rows(m, k),
                    dw.rows_mut(n, k),
                    wants_bias.then_some(&mut db[..]),
                    accumulate,
                    &mut workspace,
                );
                dw.assert_only_inside(&before, k);
                let what = format!("{level:?} seed {seed} {variant} [{m},{n},{k}]");
                let (dy, x, ones) = (dy.in_columns(m, n), x.in_columns(m, k), vec![1.0; m]);
                for i in sampled(random, n, k) {
                    let start = if accumulate {
                        f64::from(db_before[i])
                    } else {
                        0.0
                    };
                    let (want, bound) = chain(&dy[i], &ones, 20);
                    let (want, bound) = if wants_bias {
                        (want + start, bound + 2.0 * ROUNDOFF * (want + start).abs())
                    } else {
                        (f64::from(db_before[i]), 0.0)
                    };
                    assert_close(f64::from(db[i]), want, bound, format_args!("db {what} {i}"));
                    for j in 0..k {
                        let start = if accumulate { before.at(i, j) } else { 0.0 };
                        let (want, bound) = chain(&dy[i], &x[j], 20);
                        let bound = bound + 2.0 * ROUNDOFF * (want + start).abs();
                        assert_close(
                            dw.at(i, j),
                            want + start,
                            bound,
                            format_args!("{what} {i},{j}"),
                        );
                    }
                }
            }
        }
    });
}

#[test]
fn product_matches_f64_in_every_orientation() {
    on_every_path(1, |level| {
        for (case, &(m, n, k)) in SHAPES.iter().take(9).enumerate() {
            let seed = 400 + case as u64;
            let random = &mut Random::new(seed);
            for variant in 0..8 {
                let (a_transposed, b_transposed) = (variant & 1 == 1, variant & 2 == 2);
                let (alpha, beta) = if variant & 4 == 4 {
                    (0.125, -0.5)
                } else {
                    (1.0, 0.0)
                };
                let a_shape = if a_transposed { (k, m) } else { (m, k) };
                let b_shape = if b_transposed { (n, k) } else { (k, n) };
                let a = Packed::new(random, a_shape.0, a_shape.1, variant);
                let b = Packed::new(random, b_shape.0, b_shape.1, variant % 3);
                let mut c = Packed::new(random, m, n, variant % 4);
                let before = c.copy();
                let mut workspace = vec![f32::NAN; product_workspace(k, n)];
                let (a_rows, b_rows) = (a.rows(a_shape.0, a_shape.1), b.rows(b_shape.0, b_shape.1));
                product(
                    alpha,
                    if a_transposed {
                        a_rows.transposed()
                    } else {
                        a_rows.into()
                    },
                    if b_transposed {
                        b_rows.transposed()
                    } else {
                        b_rows.into()
                    },
                    beta,
                    c.rows_mut(m, n),
                    &mut workspace,
                );
                c.assert_only_inside(&before, n);
                let a = if a_transposed {
                    a.in_columns(k, m)
                } else {
                    a.in_rows(m, k)
                };
                let b = if b_transposed {
                    b.in_rows(n, k)
                } else {
                    b.in_columns(k, n)
                };
                for i in sampled(random, m, n) {
                    for j in 0..n {
                        let (sum, bound) = chain(&a[i], &b[j], 4);
                        let start = f64::from(beta) * before.at(i, j);
                        let want = f64::from(alpha) * sum + start;
                        let bound = bound + 2.0 * ROUNDOFF * (want.abs() + start.abs());
                        let what =
                            format_args!("{level:?} seed {seed} {variant} [{m},{n},{k}] {i},{j}");
                        assert_close(c.at(i, j), want, bound, what);
                    }
                }
            }
        }
    });
}

/// The stored rows of A within stairs: zero from their end on as far as a product may read, and beyond it not a number.
fn within(stairs: Stairs, mut data: Vec<f32>, width: usize) -> Vec<f32> {
    for (row, values) in data.chunks_exact_mut(width).enumerate() {
        let end = stairs.end(row, width);
        let zeros = (end + READ_BEYOND).min(width);
        values[end..zeros].fill(0.0);
        values[zeros..].fill(f32::NAN);
    }
    data
}

#[test]
fn few_rows_have_the_bits_that_they_have_among_many() {
    let (many, outputs) = (40, 67);
    let mut random = Random::new(71);
    for inputs in [1, 63, 64, 65, 391] {
        let (x, w) = (
            draw(&mut random, many * inputs),
            draw(&mut random, outputs * inputs),
        );
        let before = draw(&mut random, many * outputs);
        let w = Rows::new(&w, outputs, inputs);
        // A linear layer, and a product of one task that adds to what is there.
        let made = |rows: usize, level: Level| {
            with_threads(2, level, || {
                let x = Rows::new(&x[..rows * inputs], rows, inputs);
                let mut y = vec![f32::NAN; rows * outputs];
                let to = RowsMut::new(&mut y, rows, outputs);
                let mut scratch = vec![f32::NAN; linear_workspace(inputs, outputs)];
                linear(x, w, to, Epilogue::default(), &mut scratch);
                let mut sum = before[..rows * outputs].to_vec();
                let to = RowsMut::new(&mut sum, rows, outputs);
                let mut scratch = vec![f32::NAN; product_workspace(inputs, outputs)];
                product(0.7, x, w.transposed(), 0.3, to, &mut scratch);
                [bits(&y), bits(&sum)]
            })
        };
        let want = made(many, Level::Avx512);
        for rows in [1, 2, 3, 4, 5, 14] {
            for level in [Level::Avx512, Level::Avx2] {
                let what = format!("{rows} rows of {inputs}, {level:?}");
                for (made, want) in made(rows, level).iter().zip(&want) {
                    assert_eq!(made[..], want[..rows * outputs], "{what}");
                }
            }
        }
    }
}

#[test]
fn a_product_within_stairs_has_the_bits_of_the_whole_one() {
    on_every_path(1, |level| {
        for (case, &(m, n, k)) in [(64, 64, 48), (33, 130, 17), (77, 40, 40), (1, 5, 3)]
            .iter()
            .enumerate()
        {
            for (floor, shift) in [(0, 1), (16, 1), (0, -20), (3, 70), (200, 0)] {
                let seed = 700 + case as u64;
                let random = &mut Random::new(seed);
                let stairs = Stairs { floor, shift };
                let what = format!("{level:?} seed {seed} [{m},{n},{k}] {stairs:?}");
                let run = |extent, a: &[f32], b: &[f32]| {
                    let mut c = vec![0.5; m * n];
                    let mut workspace = vec![f32::NAN; product_workspace(k, n)];
                    let (a, b) = match extent {
                        Extent::LeftTransposed(_) => (Rows::new(a, k, m).transposed(), b),
                        _ => (Rows::new(a, m, k).into(), b),
                    };
                    let (b, to) = (Rows::new(b, k, n), RowsMut::new(&mut c, m, n));
                    product_within(extent, 0.25, a, b, 1.0, to, &mut workspace);
                    bits(&c)
                };
                let (a, b) = (draw(random, m * k), draw(random, k * n));
                let (part, whole) = (
                    run(Extent::Result(stairs), &a, &b),
                    run(Extent::Whole, &a, &b),
                );
                for row in 0..m {
                    let columns = row * n..row * n + stairs.end(row, n);
                    assert!(part[columns.clone()] == whole[columns], "{what} row {row}");
                }
                // What is beyond the stairs takes no part, so that it may hold anything.
                let stored = within(stairs, a.clone(), k);
                let zeroed: Vec<f32> = stored
                    .iter()
                    .map(|x| if x.is_nan() { 0.0 } else { *x })
                    .collect();
                let (part, whole) = (
                    run(Extent::Left(stairs), &stored, &b),
                    run(Extent::Whole, &zeroed, &b),
                );
                assert!(part == whole, "{what}, A");
                let stored = within(stairs, a, m);
                let mut zeroed = vec![0.0; m * k];
                for (index, x) in stored.iter().enumerate().filter(|(_, x)| !x.is_nan()) {
                    zeroed[index % m * k + index / m] = *x;
                }
                let (part, whole) = (
                    run(Extent::LeftTransposed(stairs), &stored, &b),
                    run(Extent::Whole, &zeroed, &b),
                );
                assert!(part == whole, "{what}, transposed A");
            }
        }
    });
}

/// Everything threaded, once: outputs of a layer's three products and of the column sums.
fn all_products(m: usize, n: usize, k: usize, seed: u64) -> Vec<u32> {
    let random = &mut Random::new(seed);
    let (x, w, bias) = (draw(random, m * k), draw(random, n * k), draw(random, n));
    let (mut y, mut z, mut dx) = (vec![0.0; m * n], vec![0.0; m * n], vec![0.0; m * k]);
    let (mut dw, mut db) = (draw(random, n * k), draw(random, n));
    let mut workspace = vec![0.0; linear_workspace(k, n)];
    let epilogue = Epilogue {
        bias: Some(&bias),
        pre_activation: Some(RowsMut::new(&mut z, m, n)),
        activation: Some(Activation::Gelu),
        ..Epilogue::default()
    };
    let (xs, ws) = (Rows::new(&x, m, k), Rows::new(&w, n, k));
    linear(xs, ws, RowsMut::new(&mut y, m, n), epilogue, &mut workspace);
    let mut workspace = vec![0.0; linear_backward_input_workspace(k, n)];
    let dy = Rows::new(&y, m, n);
    let slope = Slope {
        activation: Activation::Gelu,
        pre_activation: xs,
    };
    let to = RowsMut::new(&mut dx, m, k);
    linear_backward_input(dy, ws, to, false, Some(slope), &mut workspace);
    let mut workspace = vec![0.0; linear_backward_weight_workspace(m, k, n)];
    let to = RowsMut::new(&mut dw, n, k);
    linear_backward_weight(dy, xs, to, Some(&mut db), true, &mut workspace);
    let mut workspace = vec![0.0; sum_over_rows_workspace(m, n, n)];
    let (mut sums, mut dots) = (vec![0.0; n], vec![0.0; n]);
    column_sums(dy, &mut sums, false, &mut workspace);
    column_dots(dy, Rows::new(&z, m, n), &mut dots, false, &mut workspace);
    [y, z, dx, dw, db, sums, dots]
        .iter()
        .flat_map(|values| bits(values))
        .collect()
}

#[test]
fn products_are_the_same_bits_for_any_threads_and_path() {
    for (case, &(m, n, k)) in SHAPES.iter().enumerate() {
        let seed = 500 + case as u64;
        let one = with_threads(1, Level::Avx512, || all_products(m, n, k, seed));
        for threads in [2, 3, 8] {
            let many = with_threads(threads, Level::Avx512, || all_products(m, n, k, seed));
            assert!(many == one, "{threads} threads, [{m},{n},{k}], seed {seed}");
        }
        on_every_path(2, |level| {
            if same_bits_as_widest(level) {
                let same = all_products(m, n, k, seed);
                assert!(same == one, "{level:?}, [{m},{n},{k}], seed {seed}");
            }
        });
    }
}

#[test]
fn column_sums_match_f64() {
    on_every_path(2, |level| {
        for (rows, width) in [(1, 1), (3, 17), (129, 33), (4099, 51)] {
            let random = &mut Random::new(600 + rows as u64);
            let (x, y) = (
                Packed::new(random, rows, width, 1),
                Packed::new(random, rows, width, 2),
            );
            let start = draw(random, width);
            let mut workspace = vec![f32::NAN; sum_over_rows_workspace(rows, width, width)];
            for accumulate in [false, true] {
                let (mut sums, mut dots) = (start.clone(), start.clone());
                let (xs, ys) = (x.rows(rows, width), y.rows(rows, width));
                column_sums(xs, &mut sums, accumulate, &mut workspace);
                column_dots(xs, ys, &mut dots, accumulate, &mut workspace);
                let [x, y] = [&x, &y].map(|packed| packed.in_columns(rows, width));
                let ones = vec![1.0; rows];
                for j in 0..width {
                    let from = if accumulate { f64::from(start[j]) } else { 0.0 };
                    for (got, factors) in [(sums[j], &ones), (dots[j], &y[j])] {
                        let (want, bound) = chain(&x[j], factors, 20);
                        let want = want + from;
                        let bound = bound + 2.0 * ROUNDOFF * (want.abs() + from.abs());
                        assert_close(
                            f64::from(got),
                            want,
                            bound,
                            format_args!("{level:?} {rows} {j}"),
                        );
                    }
                }
            }
        }
    });
}
