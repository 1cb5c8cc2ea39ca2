//! The bits of the processor's arithmetic, in one number for each instruction path: a proof for machines that are not at hand.
//!
//!     cargo run -p keel-cpu --example digest
//!
//! Prints the number of every path that this processor has, and fails where a path that fuses multiply-add has another than
//! [`BITS`]. Products in all orientations with ragged sizes, every epilogue and slope, elementary functions over their
//! ranges and beyond, reductions and softmax go into it.

use std::process::ExitCode;

use keel_cpu::matmul::{
    Epilogue, Residual, Rows, RowsMut, Slope, linear, linear_backward_input,
    linear_backward_input_workspace, linear_backward_weight, linear_backward_weight_workspace,
    linear_workspace, product, product_workspace,
};
use keel_cpu::reduce::{column_dots, sum_over_rows_workspace};
use keel_cpu::simd::{LANES, Level, Simd, Task, detected, dispatch, limit};
use keel_cpu::vector_math::{self, Activation};

/// What every path must have, unless it rounds multiply-adds twice.
const BITS: u64 = 0xc0dd_8433_bb28_86ca;

/// FNV-1a over bit patterns.
struct Digest(u64);

impl Digest {
    fn add(&mut self, values: &[f32]) {
        for x in values {
            // Which of the many NaNs arises depends on the processor, and no result on it.
            let bits = if x.is_nan() {
                f32::NAN.to_bits()
            } else {
                x.to_bits()
            };
            self.0 = (self.0 ^ u64::from(bits)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// Numbers in −1..1 that are the same everywhere.
fn draw(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..len).map(next).collect()
}

fn products(digest: &mut Digest, [m, n, k]: [usize; 3]) {
    let activations = [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::QuickGelu,
        Activation::Silu,
    ];
    let (x, w, bias, scale) = (draw(m * k, 1), draw(n * k, 2), draw(n, 3), draw(n, 4));
    let (xs, ws) = (Rows::new(&x, m, k), Rows::new(&w, n, k));
    for activation in activations {
        let (mut y, mut z) = (draw(m * n, 5), vec![0.0; m * n]);
        let epilogue = Epilogue {
            bias: Some(&bias),
            pre_activation: Some(RowsMut::new(&mut z, m, n)),
            activation: Some(activation),
            scale: Some(&scale),
            residual: Residual::InPlace,
        };
        let mut workspace = vec![0.0; linear_workspace(k, n)];
        linear(xs, ws, RowsMut::new(&mut y, m, n), epilogue, &mut workspace);
        let mut dx = draw(m * k, 6);
        let mut workspace = vec![0.0; linear_backward_input_workspace(k, n)];
        let slope = Slope {
            activation,
            pre_activation: xs,
        };
        let (dy, to) = (Rows::new(&y, m, n), RowsMut::new(&mut dx, m, k));
        linear_backward_input(dy, ws, to, true, Some(slope), &mut workspace);
        let (mut dw, mut db) = (draw(n * k, 7), draw(n, 8));
        let mut workspace = vec![0.0; linear_backward_weight_workspace(m, k, n)];
        let to = RowsMut::new(&mut dw, n, k);
        linear_backward_weight(dy, xs, to, Some(&mut db), true, &mut workspace);
        let (mut dots, mut workspace) = (vec![0.0; n], vec![0.0; sum_over_rows_workspace(m, n, n)]);
        column_dots(dy, Rows::new(&z, m, n), &mut dots, false, &mut workspace);
        let mut c = draw(n * n, 9);
        let mut workspace = vec![0.0; product_workspace(m, n)];
        let to = RowsMut::new(&mut c, n, n);
        product(
            0.3,
            dy.transposed(),
            Rows::new(&z, m, n),
            0.7,
            to,
            &mut workspace,
        );
        [&y, &z, &dx, &dw, &db, &dots, &c]
            .into_iter()
            .for_each(|values| digest.add(values));
    }
}

/// What no primitive above calls by itself.
struct Instructions<'a>(&'a [f32], &'a mut Vec<f32>);

impl Task for Instructions<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (index, x) in self.0.chunks_exact(LANES).enumerate() {
            let mut lanes = [0.0; LANES];
            let v = vector_math::load(simd, x, 0);
            let w = vector_math::load(simd, &x[..index % LANES], 0);
            let (mantissa, exponent) = simd.split(simd.abs(v));
            let results = [
                simd.div(v, w),
                simd.sqrt(v),
                simd.round(v),
                simd.max(v, w),
                simd.min(v, w),
                simd.copy_sign(v, w),
                simd.neg_mul_add(v, w, v),
                simd.scale(v, simd.round(w)),
                simd.select(simd.equal(v, w), v, w),
                mantissa,
                exponent,
            ];
            for result in results {
                vector_math::store(simd, &mut lanes, 0, result);
                self.1.extend(lanes);
            }
            self.1.extend([simd.sum(v), simd.largest(v)]);
        }
    }
}

fn functions(digest: &mut Digest) {
    let edges = [
        0.0,
        -0.0,
        1e-40,
        -1e-40,
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
    ];
    for factor in [1.0, 12.0, 100.0] {
        let mut x: Vec<f32> = draw(1000, 10).iter().map(|x| x * factor).collect();
        x.extend(edges);
        let mut y = vec![0.0; x.len()];
        let mut z = y.clone();
        for function in [
            vector_math::exp,
            vector_math::log,
            vector_math::tanh,
            vector_math::sigmoid,
        ] {
            function(&x, &mut y);
            digest.add(&y);
        }
        vector_math::sine_cosine(&x[..1000], &mut y[..1000], &mut z[..1000]);
        [&y, &z].into_iter().for_each(|values| digest.add(values));
        let mut lanes = Vec::new();
        dispatch(Instructions(&x[..992], &mut lanes));
        digest.add(&lanes);
    }
}

fn main() -> ExitCode {
    let mut is_right = true;
    for &level in Level::COMPILED.iter().filter(|level| **level <= detected()) {
        limit(level);
        let mut digest = Digest(0xcbf2_9ce4_8422_2325);
        for shape in [
            [1, 1, 1],
            [15, 33, 7],
            [61, 64, 16],
            [77, 48, 130],
            [1031, 67, 19],
        ] {
            products(&mut digest, shape);
        }
        functions(&mut digest);
        let fuses =
            level != Level::Portable || cfg!(any(target_arch = "aarch64", target_feature = "fma"));
        let verdict = match (fuses, digest.0 == BITS) {
            (true, true) => "as everywhere",
            (true, false) => "other bits than everywhere",
            (false, _) => "multiply-adds are rounded twice",
        };
        is_right &= !fuses || digest.0 == BITS;
        println!("{:<8} {:016x}  {verdict}", level.name(), digest.0);
    }
    match is_right {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
