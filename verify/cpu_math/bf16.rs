//! Numbers stored in bf16: rounding on every path, the instruction for pairs against its model, products in both ways.

use half::bf16;
use keel::cpu::matmul::{
    Epilogue, Residual, Rows, RowsMut, Slope, linear, linear_backward_input,
    linear_backward_input_workspace, linear_backward_weight, linear_backward_weight_workspace,
    linear_workspace, widened_rows_workspace,
};
use keel::cpu::simd::{LANES, Level, Simd, Task, dispatch_pairs, has_pairs, limit};
use keel::cpu::vector_math::Activation;
use keel::cpu::{Bf16Products, Stored, round, set_bf16_products, widen};

use super::{ROUNDOFF, bits, draw, on_every_path, with_threads};
use crate::harness::Random;

/// Half a unit in the last place of bf16, relative.
const HALF_UNIT: f64 = 1.0 / 256.0;

/// Rows, inputs and outputs: ones, odd depths, past the borders of tiles and blocks.
const SHAPES: [[usize; 3]; 6] = [
    [1, 1, 1],
    [3, 5, 17],
    [15, 8, 33],
    [130, 64, 48],
    [61, 192, 31],
    [521, 391, 67],
];

fn stored(random: &mut Random, len: usize) -> Vec<bf16> {
    draw(random, len).into_iter().map(bf16::from_f32).collect()
}

fn widened(values: &[bf16]) -> Vec<f32> {
    values.iter().map(|x| x.to_f32()).collect()
}

fn bits_of(values: &[bf16]) -> Vec<u16> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn numbers_are_rounded_to_the_nearest_on_every_path_and_widened_exactly() {
    let mut random = Random::new(41);
    let mut values: Vec<f32> = (0..4099)
        .map(|_| {
            f32::from_bits(random.below(1 << 16) as u32 | (random.below(1 << 16) as u32) << 16)
        })
        .collect();
    // Ties both ways, what rounds up to infinity, subnormal numbers, and a NaN whose upper half is that of infinity.
    let special = [
        0x3f80_8000,
        0x3f81_8000,
        0x7f7f_ffff,
        0x0000_8000,
        0x0000_8001,
        0x8040_0000,
        0x7f80_0001,
        0x7f80_0000,
        0xff80_0000,
        0x8000_0000,
    ];
    values.extend(special.map(f32::from_bits));
    let want: Vec<u16> = values
        .iter()
        .map(|x| bf16::from_f32(*x).to_bits())
        .collect();
    let alone: Vec<u16> = values.iter().map(|x| bf16::rounded(*x).to_bits()).collect();
    assert_eq!(alone, want);
    on_every_path(1, |level| {
        let mut rounded = vec![bf16::ZERO; values.len()];
        round(&values, &mut rounded);
        assert_eq!(bits_of(&rounded), want, "{level:?}");
        let mut back = vec![0.0; values.len()];
        widen(&rounded, &mut back);
        let exact: Vec<u32> = want.iter().map(|x| u32::from(*x) << 16).collect();
        assert_eq!(bits(&back), exact, "{level:?}");
    });
}

/// Adds pairs to sums, sixteen at a time.
struct Dots<'a>([&'a [f32]; 2], &'a mut [f32]);

impl Task for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for at in (0..self.1.len()).step_by(LANES) {
            let [a, b] = self.0.map(|x| keel::cpu::vector_math::load(simd, x, at));
            let sum = keel::cpu::vector_math::load(simd, self.1, at);
            let sum = simd.dot_pairs(a, b, sum);
            keel::cpu::vector_math::store(simd, self.1, at, sum);
        }
    }
}

#[test]
fn the_instruction_for_pairs_computes_what_its_model_says() {
    let mut random = Random::new(42);
    // Cells and sums of any bits but NaN, of which only that it is one is promised.
    let mut cells = |count: usize| -> Vec<f32> {
        let half = |random: &mut Random| {
            let x = random.below(1 << 16) as u32;
            if x & 0x7f80 == 0x7f80 { x & !0x0080 } else { x }
        };
        let cell = |_| f32::from_bits(half(&mut random) | half(&mut random) << 16);
        (0..count).map(cell).collect()
    };
    let (a, b, sums) = (cells(4096), cells(4096), cells(4096));
    let run = |level| {
        with_threads(1, level, || {
            let mut sums = sums.clone();
            let is_instruction = has_pairs();
            dispatch_pairs(Dots([&a, &b], &mut sums));
            (is_instruction, sums)
        })
    };
    let (is_instruction, found) = run(Level::Avx512);
    let (_, model) = run(Level::Avx2);
    if !is_instruction {
        eprintln!("not run: this machine has no instruction for pairs");
    }
    for (index, (found, model)) in found.iter().zip(&model).enumerate() {
        let are_nan = found.is_nan() && model.is_nan();
        assert!(
            are_nan || found.to_bits() == model.to_bits(),
            "{index}: {found:e}, {model:e}"
        );
    }
    // The upper halves come first: the lower ones have to find a sum that has lost what is below its last place.
    let mut sums = [2.0f32.powi(24)];
    let [one, two] = [0x3f80_3f80, 0x3f80_4000].map(f32::from_bits);
    limit(Level::Avx512);
    dispatch_pairs(Dots([&[one], &[two]], &mut sums));
    assert_eq!(sums[0], 2.0f32.powi(24) + 2.0);
}

/// Rounds numbers to terms: side by side in cells, and the second of each pair in a row.
struct Terms<'a>([&'a [f32]; 2], &'a mut [f32], &'a mut [bf16]);

impl Task for Terms<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for at in (0..self.1.len()).step_by(LANES) {
            let [even, odd] = self.0.map(|x| keel::cpu::vector_math::load(simd, x, at));
            keel::cpu::vector_math::store(simd, self.1, at, simd.pair(even, odd));
            keel::cpu::vector_math::store_terms(simd, self.2, at, odd);
        }
    }
}

#[test]
fn the_instruction_for_rounding_to_pairs_computes_what_its_model_says() {
    let mut random = Random::new(44);
    let mut numbers = |count: usize| -> Vec<f32> {
        let half = |random: &mut Random| random.below(1 << 16) as u32;
        // Any bits, NaN and subnormal numbers among them.
        let any = (0..count).map(|_| f32::from_bits(half(&mut random) | half(&mut random) << 16));
        any.collect()
    };
    let (mut even, odd) = (numbers(4096), numbers(4096));
    // The largest subnormal number, which rounding alone would make normal, and ties to either side.
    let special = [
        0x007f_ffff,
        0x807f_ffff,
        0x3f80_8000,
        0x3f81_8000,
        0x7f7f_ffff,
    ];
    for (number, bits) in even.iter_mut().zip(special) {
        *number = f32::from_bits(bits);
    }
    let run = |level| {
        with_threads(1, level, || {
            let (mut cells, mut row) = (vec![0.0; even.len()], vec![bf16::ZERO; even.len()]);
            dispatch_pairs(Terms([&even, &odd], &mut cells, &mut row));
            (bits(&cells), bits_of(&row))
        })
    };
    let (cells, row) = run(Level::Avx512);
    assert_eq!((&cells, &row), (&run(Level::Avx2).0, &run(Level::Avx2).1));
    for (index, (cell, odd)) in cells.iter().zip(&odd).enumerate() {
        let wanted = if odd.is_subnormal() {
            bf16::ZERO.copysign(bf16::from_f32(*odd))
        } else {
            bf16::from_f32(*odd)
        };
        assert_eq!(cell >> 16, u32::from(wanted.to_bits()), "{index}: {odd:e}");
        assert_eq!(row[index], wanted.to_bits(), "{index}: {odd:e}");
    }
    let first: Vec<u32> = cells[..5].iter().map(|cell| cell & 0xffff).collect();
    assert_eq!(first, [0x0000, 0x8000, 0x3f80, 0x3f82, 0x7f80]);
}

/// Everything that the three products make of a shape.
#[derive(PartialEq, Debug)]
struct Made {
    y: Vec<u16>,
    z: Vec<u16>,
    dx: Vec<u16>,
    dw: Vec<u32>,
    db: Vec<u32>,
}

/// The operands of a layer in bf16.
struct Layer {
    shape: [usize; 3],
    x: Vec<bf16>,
    w: Vec<bf16>,
    dy: Vec<bf16>,
    z: Vec<bf16>,
    residual: Vec<bf16>,
    bias: Vec<f32>,
}

impl Layer {
    fn new(shape: [usize; 3]) -> Layer {
        let mut random = Random::new(43);
        let [rows, inputs, outputs] = shape;
        Layer {
            shape,
            x: stored(&mut random, rows * inputs),
            w: stored(&mut random, outputs * inputs),
            dy: stored(&mut random, rows * outputs),
            z: stored(&mut random, rows * inputs),
            residual: stored(&mut random, rows * outputs),
            bias: draw(&mut random, outputs),
        }
    }

    /// The same layer of its first rows alone.
    fn first(&self, rows: usize) -> Layer {
        let [_, inputs, outputs] = self.shape;
        let of = |values: &[bf16], width: usize| values[..rows * width].to_vec();
        Layer {
            shape: [rows, inputs, outputs],
            x: of(&self.x, inputs),
            w: self.w.clone(),
            dy: of(&self.dy, outputs),
            z: of(&self.z, inputs),
            residual: of(&self.residual, outputs),
            bias: self.bias.clone(),
        }
    }

    /// Forward with bias, activation and residual; dx through an activation; dW and db.
    fn run(&self, threads: usize, level: Level, products: Bf16Products) -> Made {
        let [rows, inputs, outputs] = self.shape;
        with_threads(threads, level, || {
            rayon::broadcast(|_| set_bf16_products(products));
            let (x, w) = (
                Rows::new(&self.x, rows, inputs),
                Rows::new(&self.w, outputs, inputs),
            );
            let dy = Rows::new(&self.dy, rows, outputs);
            let mut y = vec![bf16::NAN; rows * outputs];
            let mut z = y.clone();
            let epilogue = Epilogue {
                bias: Some(&self.bias),
                pre_activation: Some(RowsMut::new(&mut z, rows, outputs)),
                activation: Some(Activation::Gelu),
                residual: Residual::From(Rows::new(&self.residual, rows, outputs)),
                ..Epilogue::default()
            };
            let room =
                |packed, depth| vec![f32::NAN; packed + widened_rows_workspace(depth, threads)];
            let mut scratch = room(linear_workspace(inputs, outputs), inputs);
            linear(
                x,
                w,
                RowsMut::new(&mut y, rows, outputs),
                epilogue,
                &mut scratch,
            );
            let mut dx = vec![bf16::ONE; rows * inputs];
            let slope = Slope {
                activation: Activation::GeluTanh,
                pre_activation: Rows::new(&self.z, rows, inputs),
            };
            let mut scratch = room(linear_backward_input_workspace(inputs, outputs), outputs);
            let to = RowsMut::new(&mut dx, rows, inputs);
            linear_backward_input(dy, w, to, false, Some(slope), &mut scratch);
            let (mut dw, mut db) = (vec![f32::NAN; outputs * inputs], vec![f32::NAN; outputs]);
            let size = linear_backward_weight_workspace(rows, inputs, outputs);
            let to = RowsMut::new(&mut dw, outputs, inputs);
            let mut scratch = vec![f32::NAN; size];
            linear_backward_weight(dy, x, to, Some(&mut db), false, &mut scratch);
            Made {
                y: bits_of(&y),
                z: bits_of(&z),
                dx: bits_of(&dx),
                dw: bits(&dw),
                db: bits(&db),
            }
        })
    }
}

#[test]
fn products_in_bf16_have_the_same_bits_for_any_threads_and_widened_ones_on_any_path() {
    for shape in SHAPES {
        let layer = Layer::new(shape);
        for products in Bf16Products::ALL {
            let one = layer.run(1, Level::Avx512, products);
            assert_eq!(
                one,
                layer.run(3, Level::Avx512, products),
                "{shape:?} {products:?}"
            );
            if has_pairs() || products != Bf16Products::Pairs {
                // Of pairs, and of tiles where there is AMX, the model in place of the instruction.
                assert_eq!(
                    one,
                    layer.run(2, Level::Avx2, products),
                    "{shape:?} {products:?}"
                );
            }
        }
    }
}

#[test]
fn few_rows_in_bf16_have_the_bits_that_they_have_among_many() {
    let outputs = 67;
    for inputs in [1, 64, 130, 391] {
        let all = Layer::new([40, inputs, outputs]);
        for products in [Bf16Products::Widened, Bf16Products::Pairs] {
            for level in [Level::Avx512, Level::Avx2] {
                let want = all.run(2, level, products);
                for rows in [1, 2, 3, 4, 5, 14] {
                    let made = all.first(rows).run(2, level, products);
                    let what = format!("{rows} rows of {inputs}, {level:?} {products:?}");
                    assert_eq!(made.y, want.y[..rows * outputs], "{what}");
                    assert_eq!(made.z, want.z[..rows * outputs], "{what}");
                }
            }
        }
    }
}

#[test]
fn widened_products_are_those_of_f32_rounded_once() {
    for shape in SHAPES {
        let layer = Layer::new(shape);
        let [rows, inputs, outputs] = shape;
        let made = layer.run(2, Level::Avx512, Bf16Products::Widened);
        let [x, w, dy] = [&layer.x, &layer.w, &layer.dy].map(|values| widened(values));
        let mut z = vec![0.0; rows * outputs];
        let epilogue = Epilogue {
            bias: Some(&layer.bias),
            ..Epilogue::default()
        };
        let mut scratch = vec![0.0; linear_workspace(inputs, outputs)];
        let (x, w) = (Rows::new(&x, rows, inputs), Rows::new(&w, outputs, inputs));
        linear(
            x,
            w,
            RowsMut::new(&mut z, rows, outputs),
            epilogue,
            &mut scratch,
        );
        let mut rounded = vec![bf16::ZERO; z.len()];
        round(&z, &mut rounded);
        assert_eq!(made.z, bits_of(&rounded), "{shape:?}");
        let mut dw = vec![0.0; outputs * inputs];
        let mut scratch = vec![0.0; linear_backward_weight_workspace(rows, inputs, outputs)];
        let to = RowsMut::new(&mut dw, outputs, inputs);
        linear_backward_weight(
            Rows::new(&dy, rows, outputs),
            x,
            to,
            None,
            false,
            &mut scratch,
        );
        assert_eq!(made.dw, bits(&dw), "{shape:?}");
    }
}

#[test]
fn products_in_pairs_and_in_tiles_are_as_close_to_f64_as_a_chain_of_f32_is() {
    for (shape, products) in SHAPES
        .into_iter()
        .flat_map(|shape| [Bf16Products::Pairs, Bf16Products::Tiles].map(|way| (shape, way)))
    {
        let layer = Layer::new(shape);
        let [rows, inputs, outputs] = shape;
        let made = layer.run(2, Level::Avx512, products);
        let f64s = |values: &[bf16]| -> Vec<f64> { values.iter().map(|x| x.to_f64()).collect() };
        let (x, w, dy) = (f64s(&layer.x), f64s(&layer.w), f64s(&layer.dy));
        // A sum in f64, and how far a chain of as many roundings may be from it: in tiles a term passes through no more, at most
        // sixteen multiply-adds, one addition, and one more for every 32 terms. What either instruction makes zero is far smaller than
        // the smallest normal number of f32 for each term.
        let chain = |terms: &mut dyn Iterator<Item = f64>, count: usize, bias: f64| {
            let (sum, size) = terms.fold((bias, bias.abs()), |(sum, size), term| {
                (sum + term, size + term.abs())
            });
            let zeroed = 2.0 * count as f64 * f64::from(f32::MIN_POSITIVE);
            (sum, (count + 2) as f64 * ROUNDOFF * size + zeroed)
        };
        for row in 0..rows {
            for output in 0..outputs {
                let mut terms = (0..inputs).map(|k| x[row * inputs + k] * w[output * inputs + k]);
                let bias = f64::from(layer.bias[output]);
                let (want, bound) = chain(&mut terms, inputs, bias);
                let got = bf16::from_bits(made.z[row * outputs + output]).to_f64();
                let bound = bound + HALF_UNIT * (want.abs() + bound);
                assert!(
                    (got - want).abs() <= bound,
                    "{shape:?} {products:?} z {row} {output}: {got} {want}"
                );
            }
        }
        for output in 0..outputs {
            for input in 0..inputs {
                let mut terms = (0..rows).map(|r| dy[r * outputs + output] * x[r * inputs + input]);
                let (want, bound) = chain(&mut terms, rows, 0.0);
                let got = f64::from(f32::from_bits(made.dw[output * inputs + input]));
                assert!(
                    (got - want).abs() <= bound,
                    "{shape:?} {products:?} dw {output} {input}: {got} {want}"
                );
            }
        }
    }
}
