//! How products of bf16 numbers are computed, and which way is fastest here.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::fmt;
use std::sync::OnceLock;
use std::time::Instant;

use super::simd::{LANES, Simd, Task, dispatch_pairs, has_pairs};
use super::tile_unit::{Amx, NoAmx, SIDE, TileUnit, Tiles, amx};

/// How the products of linear layers, of attention and over the vocabulary are computed where they are stored in bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bf16Products {
    /// Widened to f32 on the way into fused multiply-adds: on every machine, with the same bits wherever those of f32 are.
    Widened,
    /// In pairs, by the instruction `vdpbf16ps` or its model ([`Simd::dot_pairs`]).
    Pairs,
    /// In tiles of pairs, by Intel's AMX or its model ([`super::tile_unit`]).
    Tiles,
}

impl Bf16Products {
    /// All of them.
    pub const ALL: [Bf16Products; 3] = [
        Bf16Products::Widened,
        Bf16Products::Pairs,
        Bf16Products::Tiles,
    ];

    /// The words for it.
    pub const fn name(self) -> &'static str {
        match self {
            Bf16Products::Widened => "products in f32",
            Bf16Products::Pairs => "products by vdpbf16ps",
            Bf16Products::Tiles => "products by AMX",
        }
    }

    /// The value of [`VARIABLE`] that asks for it.
    pub const fn setting(self) -> &'static str {
        match self {
            Bf16Products::Widened => "f32",
            Bf16Products::Pairs => "vdpbf16ps",
            Bf16Products::Tiles => "amx",
        }
    }

    /// The instructions that it adds to those of f32, where there are some. Other instructions give other bits.
    pub const fn instructions(self) -> Option<&'static str> {
        match self {
            Bf16Products::Widened => None,
            Bf16Products::Pairs => Some("vdpbf16ps"),
            Bf16Products::Tiles => Some("AMX"),
        }
    }
}

thread_local! {
    static CHOSEN: Cell<Option<Bf16Products>> = const { Cell::new(None) };
}

/// How this thread begins products: as was asked of it, as [`VARIABLE`] says, and otherwise the fastest way of this machine, which
/// is measured once.
pub fn bf16_products() -> Bf16Products {
    CHOSEN.get().unwrap_or_else(usual)
}

/// From now on this thread begins products this way, whether or not it is the fastest one. For tests and measurements.
pub fn set_bf16_products(products: Bf16Products) {
    CHOSEN.set(Some(products));
}

/// The environment variable that chooses among the ways of this machine: `auto`, or one's [`Bf16Products::setting`].
pub const VARIABLE: &str = "KEEL_BF16_PRODUCTS";

/// Why what [`VARIABLE`] asks for cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is no way of computing products.
    Unknown(String),
    /// This machine has no `vdpbf16ps`.
    NoPairs,
    /// There is no AMX to be used.
    NoTiles(NoAmx),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Unknown(text) => write!(f, "{text}"),
            Refused::NoPairs => write!(f, "vdpbf16ps, and this processor has no AVX512-BF16"),
            Refused::NoTiles(why) => write!(f, "amx, and {why}"),
        }
    }
}

/// What a value of [`VARIABLE`] asks for; nothing for `auto` and an empty one.
///
/// # Errors
/// [`Refused`] for what is no way of computing products, or not one of this machine.
pub fn bf16_products_asked(text: &str) -> Result<Option<Bf16Products>, Refused> {
    if text.is_empty() || text == "auto" {
        return Ok(None);
    }
    let mut all = Bf16Products::ALL.into_iter();
    match all.find(|way| way.setting() == text) {
        None => Err(Refused::Unknown(text.to_owned())),
        Some(Bf16Products::Pairs) if !has_pairs() => Err(Refused::NoPairs),
        Some(Bf16Products::Tiles) => {
            Amx::find().map_err(Refused::NoTiles)?;
            Ok(Some(Bf16Products::Tiles))
        }
        Some(way) => Ok(Some(way)),
    }
}

/// What [`VARIABLE`] asks for in this process, which is looked at once.
///
/// # Errors
/// As [`bf16_products_asked`]. Until someone says so, products are begun as if it were not set.
pub fn bf16_products_of_environment() -> Result<Option<Bf16Products>, Refused> {
    static ASKED: OnceLock<Result<Option<Bf16Products>, Refused>> = OnceLock::new();
    let asked = ASKED.get_or_init(|| {
        let text = std::env::var_os(VARIABLE).unwrap_or_default();
        bf16_products_asked(&text.to_string_lossy())
    });
    asked.clone()
}

/// The way of a thread that nothing was asked of.
fn usual() -> Bf16Products {
    static USUAL: OnceLock<Bf16Products> = OnceLock::new();
    *USUAL.get_or_init(|| match bf16_products_of_environment() {
        Ok(Some(way)) => way,
        Ok(None) | Err(_) => fastest(),
    })
}

/// Independent sums in flight.
const SUMS: usize = 16;
/// Rounds of one burst: a few microseconds, so that most bursts are not interrupted.
const ROUNDS: usize = 1024;
/// Rounds of four products of tiles in one burst: sixteen cycles each at best, so that it is about as long.
const TILE_ROUNDS: usize = 128;
/// Bursts of each kind, in turn.
const BURSTS: usize = 31;

/// The fastest way of this machine. An AVX-512 unit for bf16 is twice as fast as one for f32 on AMD's Zen 4 and 5 and half as
/// fast on Intel's Sapphire Rapids, which has AMX beside it: what a machine has says nothing, so it is measured, in registers
/// alone. Ratios are far from 1 on either side, so that the answer is the same every time.
fn fastest() -> Bf16Products {
    let mut best = (Bf16Products::Widened, 1.0);
    let pairs = has_pairs().then_some((Bf16Products::Pairs, Burst::Pairs));
    let tiles = amx().map(|amx| (Bf16Products::Tiles, Burst::Tiles(amx)));
    for (way, burst) in pairs.into_iter().chain(tiles) {
        let ratio = median_ratio(burst);
        if ratio > best.1 {
            best = (way, ratio);
        }
    }
    best.0
}

/// How many times as many terms a way takes in a second as fused multiply-adds.
fn median_ratio(way: Burst) -> f64 {
    let rate = |burst: Burst| {
        let start = Instant::now();
        std::hint::black_box(dispatch_pairs(burst));
        burst.terms() / start.elapsed().as_secs_f64()
    };
    // In turn, so that whatever disturbs the machine meets both alike.
    let mut ratios: Vec<f64> = (0..BURSTS)
        .map(|_| rate(way) / rate(Burst::MultiplyAdds))
        .collect();
    ratios.sort_by(f64::total_cmp);
    ratios[BURSTS / 2]
}

#[derive(Clone, Copy)]
enum Burst {
    MultiplyAdds,
    Pairs,
    Tiles(Amx),
}

impl Burst {
    /// Products that are summed.
    fn terms(self) -> f64 {
        let terms = match self {
            Burst::MultiplyAdds => SUMS * ROUNDS * LANES,
            Burst::Pairs => SUMS * ROUNDS * 2 * LANES,
            Burst::Tiles(_) => TILE_ROUNDS * TILE_TERMS,
        };
        terms as f64
    }
}

impl Task for Burst {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        if let Burst::Tiles(amx) = self {
            return multiply_tiles(simd, amx, TILE_ROUNDS);
        }
        // As two bf16 numbers it is 0.5 and 0; as one of f32, 0.5.
        let factor = simd.splat(std::hint::black_box(0.5));
        let mut sums = [simd.splat(1.0); SUMS];
        if matches!(self, Burst::Pairs) {
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = simd.dot_pairs(factor, factor, *sum);
                }
            }
        } else {
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = simd.mul_add(factor, factor, *sum);
                }
            }
        }
        let total = sums.into_iter().reduce(|a, b| simd.add(a, b));
        simd.sum(total.expect("there are sums")) / LANES as f32
    }
}

/// Products that one round of [`multiply_tiles`] sums.
pub(super) const TILE_TERMS: usize = 4 * 2 * SIDE * SIDE * SIDE;

/// Rounds of four products of full tiles in registers, as in the products of a matrix; one of the sums.
#[inline(always)]
pub(super) fn multiply_tiles<S: Simd, T: Tiles>(simd: S, tiles: T, rounds: usize) -> f32 {
    let factor = [std::hint::black_box(0.5f32); SIDE * SIDE];
    let (mut unit, mut sums) = (tiles.take(), [0.0f32; SIDE * SIDE]);
    // SAFETY: the arrays hold sixteen rows of sixteen cells.
    unsafe {
        unit.load::<4>(factor.as_ptr(), SIDE);
        unit.load::<5>(factor.as_ptr(), SIDE);
        unit.load::<6>(factor.as_ptr(), SIDE);
        unit.load::<7>(factor.as_ptr(), SIDE);
    }
    for _ in 0..rounds {
        unit.multiply::<S, 0, 4, 6>(simd);
        unit.multiply::<S, 1, 4, 7>(simd);
        unit.multiply::<S, 2, 5, 6>(simd);
        unit.multiply::<S, 3, 5, 7>(simd);
    }
    // SAFETY: as above.
    unsafe { unit.store::<0>(sums.as_mut_ptr(), SIDE) };
    sums[0]
}
