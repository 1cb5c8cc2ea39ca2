//! Arithmetic of the PTX ISA that Rust's numbers do not have as it stands.

use super::form::Relation;

/// What an approximate instruction gives for the nearest value it could.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approximation {
    /// The nearest value.
    Nearest,
    /// The nearest value, moved by up to the error that the ISA allows, by the seed.
    Moved(u32),
}

impl Approximation {
    /// `value`, which an instruction of relative error up to `2^-bits` gives for `input`.
    fn of(self, value: f32, input: u32, bits: i32) -> f32 {
        match self {
            Approximation::Nearest => value,
            Approximation::Moved(seed) => {
                // A function gives the same result for the same input, and so does this.
                let mixed = (input ^ seed).wrapping_mul(0x9e37_79b1);
                let share = f64::from(mixed >> 8) / f64::from(1u32 << 23) - 1.0;
                let moved = f64::from(value) * (1.0 + share * f64::from(bits).exp2().recip());
                moved as f32
            }
        }
    }
}

/// `ex2.approx.ftz.f32`: 2^x with a relative error of up to 2^-22; results below the normal numbers are zero.
pub fn exp2_approximate(x: f32, approximation: Approximation) -> f32 {
    flush(approximation.of(flush(x).exp2(), x.to_bits(), 22))
}

/// `rcp.approx.ftz.f32`: 1/x with an error of up to one unit in the last place.
pub fn reciprocal_approximate(x: f32, approximation: Approximation) -> f32 {
    flush(approximation.of(flush(x).recip(), x.to_bits(), 23))
}

fn flush(x: f32) -> f32 {
    if x.is_subnormal() {
        0f32.copysign(x)
    } else {
        x
    }
}

/// The sum in f64 and what it lacks, exactly (Knuth 1969).
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let part = sum - a;
    (sum, (a - (sum - part)) + (b - part))
}

/// How an f32 lies to the exact value `sum + rest`.
fn order(value: f32, sum: f64, rest: f64) -> std::cmp::Ordering {
    let value = f64::from(value);
    if value == sum {
        0.0f64.total_cmp(&(rest + 0.0))
    } else {
        value.total_cmp(&sum)
    }
}

/// The largest f32 that is not above `sum + rest`.
fn round_down(sum: f64, rest: f64) -> f32 {
    let near = sum as f32;
    if !near.is_finite() {
        return near;
    }
    if order(near, sum, rest).is_gt() {
        near.next_down()
    } else {
        near
    }
}

/// `fma.rm.f32`.
pub fn fused_down(a: f32, b: f32, c: f32) -> f32 {
    let (sum, rest) = two_sum(f64::from(a) * f64::from(b), f64::from(c));
    round_down(sum, rest)
}

/// `add.rz.f32`.
pub fn add_towards_zero(a: f32, b: f32) -> f32 {
    let (sum, rest) = two_sum(f64::from(a), f64::from(b));
    if sum < 0.0 {
        -round_down(-sum, -rest)
    } else {
        round_down(sum, rest)
    }
}

/// `min.f32` and `min.f64`, `max` likewise: the number where one is NaN, and -0 below +0.
macro_rules! extreme {
    ($name:ident, $ty:ty, $pick:ident) => {
        pub fn $name(a: $ty, b: $ty) -> $ty {
            if a.is_nan() {
                b
            } else if b.is_nan() || a.total_cmp(&b).$pick() {
                a
            } else {
                b
            }
        }
    };
}
extreme!(min_f32, f32, is_le);
extreme!(max_f32, f32, is_ge);
extreme!(min_f64, f64, is_le);
extreme!(max_f64, f64, is_ge);

/// `cvt.rn.bf16.f32`: to nearest, ties to even; NaN is 0x7fff.
pub fn to_bf16(bits: u32) -> u32 {
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        return 0x7fff;
    }
    // The largest finite numbers carry into infinity, as they must.
    (bits + 0x7fff + (bits >> 16 & 1)) >> 16
}

/// `cvt.sat.f32.f32`: within 0 and 1; NaN is 0.
pub fn saturate(x: f32) -> f32 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

/// `shl`, `shr`: amounts beyond the register shift everything out.
pub fn shift_left(a: u32, by: u32) -> u32 {
    a.checked_shl(by).unwrap_or(0)
}

/// `shl.b64`.
pub fn shift_left_64(a: u64, by: u32) -> u64 {
    a.checked_shl(by).unwrap_or(0)
}

/// `bfind.shiftamt.u32`: how far the highest one is from the top.
pub fn leading(a: u32) -> u32 {
    if a == 0 { u32::MAX } else { a.leading_zeros() }
}

/// What a relation says of integers.
pub fn compare<T: PartialOrd>(relation: Relation, a: T, b: T) -> bool {
    use Relation::*;
    // For NaN every order is false, and it does not equal itself.
    #[allow(clippy::eq_op)]
    let is_nan = a != a || b != b;
    match relation {
        Equal => a == b,
        NotEqual => !is_nan && a != b,
        Less => a < b,
        LessEqual => a <= b,
        Greater => a > b,
        GreaterEqual => a >= b,
        EqualOrNan => is_nan || a == b,
        NotEqualOrNan => is_nan || a != b,
        LessOrNan => is_nan || a < b,
        LessEqualOrNan => is_nan || a <= b,
        GreaterOrNan => is_nan || a > b,
        GreaterEqualOrNan => is_nan || a >= b,
        IsNan => is_nan,
        IsNumber => !is_nan,
    }
}
