//! Units for tiles of bf16 numbers: the model against the manual's words, the instructions against the manual's encodings and, where
//! there is AMX, against the model; who is refused.

use std::cell::Cell;

use keel::cpu::simd::{Level, Simd, Task, dispatch_pairs, limit};
use keel::cpu::tile_unit::{
    Amx, CELLS, Facts, Model, NoAmx, PALETTE, SIDE, TileUnit, Tiles, admit, amx, multiply_add,
};
use keel::cpu::{Bf16Products, Refused, bf16_products_asked};

use super::{bits, on_every_path};
use crate::harness::Random;

/// x, or zero of its sign where it is subnormal.
fn normal(x: f32) -> f32 {
    if x.is_subnormal() {
        0.0f32.copysign(x)
    } else {
        x
    }
}

/// `tdpbf16ps` as Intel's manual writes it down, for full registers: number by number.
fn by_the_manual(sums: &mut [f32; CELLS], left: &[f32; CELLS], right: &[f32; CELLS]) {
    let term = |matrix: &[f32; CELLS], row: usize, index: usize| {
        let cell = matrix[row * SIDE + index / 2].to_bits();
        let half = if index.is_multiple_of(2) {
            cell << 16
        } else {
            cell & 0xffff_0000
        };
        normal(f32::from_bits(half))
    };
    for m in 0..SIDE {
        let mut temporary = [0.0f32; 2 * SIDE];
        for k in 0..SIDE {
            for n in 0..SIDE {
                for half in 0..2 {
                    let product = (term(left, m, 2 * k + half), term(right, k, 2 * n + half));
                    let sum = &mut temporary[2 * n + half];
                    *sum = normal(product.0.mul_add(product.1, *sum));
                }
            }
        }
        for n in 0..SIDE {
            let both = normal(temporary[2 * n] + temporary[2 * n + 1]);
            let sum = &mut sums[m * SIDE + n];
            *sum = normal(normal(*sum) + both);
        }
    }
}

/// Cells of terms of any size, subnormal ones and zeros among them; no infinity and no NaN, of which only that it is one is promised.
fn cells(random: &mut Random, largest: usize) -> [f32; CELLS] {
    let mut half = || {
        let exponent = random.below(largest) as u32;
        (random.below(2) as u32 * 0x8000) | (exponent << 7) | random.below(128) as u32
    };
    std::array::from_fn(|_| f32::from_bits(half() | half() << 16))
}

/// Operands of a product of full registers: of all sizes, of sizes whose products are near the smallest numbers, of ordinary ones.
fn operands(random: &mut Random) -> Vec<[[f32; CELLS]; 3]> {
    let mut drawn = Vec::new();
    for largest in [250, 66, 130] {
        for _ in 0..4 {
            drawn.push([0; 3].map(|_| cells(random, largest)));
        }
    }
    drawn
}

/// Bits of numbers, with one pattern for every NaN: infinities arise, and differ.
fn comparable(values: &[f32]) -> Vec<u32> {
    let values: Vec<f32> = values
        .iter()
        .map(|x| if x.is_nan() { f32::NAN } else { *x })
        .collect();
    bits(&values)
}

#[test]
fn the_model_of_a_tile_unit_computes_what_the_manual_says_on_every_path() {
    let drawn = operands(&mut Random::new(45));
    on_every_path(1, |level| {
        for [sums, left, right] in &drawn {
            let (mut found, mut wanted) = (*sums, *sums);
            multiply_add(&mut found, left, right);
            by_the_manual(&mut wanted, left, right);
            // Where multiply-add is not fused, a product below the smallest number is rounded twice.
            if super::same_bits_as_widest(level) {
                assert_eq!(comparable(&found), comparable(&wanted), "{level:?}");
            }
        }
    });
}

#[test]
fn lower_and_upper_terms_are_summed_apart() {
    // A sum of lower terms that loses what is below its last place, and one of upper terms that does not.
    let cell = |low: u32, high: u32| f32::from_bits(low | high << 16);
    let (one, large) = (0x3f80, 0x4b80);
    let mut left = [0.0; CELLS];
    (left[0], left[1], left[2]) = (cell(large, one), cell(one, one), cell(one, 0));
    let mut right = [0.0; CELLS];
    for row in 0..3 {
        right[row * SIDE] = cell(one, one);
    }
    let mut sums = [0.0; CELLS];
    multiply_add(&mut sums, &left, &right);
    // 2²⁴ + 1 + 1 is 2²⁴ in one chain; the two of the upper terms come together.
    assert_eq!(sums[0], 2.0f32.powi(24) + 2.0);
}

/// One product of full registers on a unit, in the registers 1, 5 and 7.
struct Once<'a, T>(T, &'a mut [f32; CELLS], &'a [f32; CELLS], &'a [f32; CELLS]);

impl<T: Tiles> Task for Once<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut unit = self.0.take();
        // SAFETY: the arrays hold sixteen rows of sixteen cells.
        unsafe {
            unit.load::<1>(self.1.as_ptr(), SIDE);
            unit.load::<5>(self.2.as_ptr(), SIDE);
            unit.load::<7>(self.3.as_ptr(), SIDE);
            unit.multiply::<S, 1, 5, 7>(simd);
            unit.store::<1>(self.1.as_mut_ptr(), SIDE);
        }
    }
}

#[test]
fn a_unit_computes_what_its_model_says() {
    limit(Level::Avx512);
    for [sums, left, right] in operands(&mut Random::new(46)) {
        let (mut wanted, mut found) = (sums, sums);
        multiply_add(&mut wanted, &left, &right);
        dispatch_pairs(Once(Model, &mut found, &left, &right));
        assert_eq!(comparable(&found), comparable(&wanted));
        let Some(amx) = amx() else {
            eprintln!("not run on AMX: {}", Amx::find().unwrap_err());
            return;
        };
        let mut found = sums;
        dispatch_pairs(Once(amx, &mut found, &left, &right));
        assert_eq!(comparable(&found), comparable(&wanted));
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn instructions_for_tiles_are_encoded_as_in_the_manual() {
    // Three bytes of VEX: C4; R, X, B inverted and the map 0F38; W, the second source inverted, L and the mandatory prefix. Then
    // the opcode, ModRM, and SIB for `[rax + rcx*1]`. Register 3 is in ModRM.reg, 4 in ModRM.rm, 6 in VEX.vvvv.
    let vex = |source: u8, prefix: u8| [0xc4, 0xe2, (!source & 15) << 3 | prefix];
    let (none, f3, f2) = (0, 2, 3);
    let registers = |reg: u8, rm: u8| 0b11 << 6 | reg << 3 | rm;
    let indexed = |reg: u8| [reg << 3 | 0b100, 0b00_001_000];
    let wanted: [(&str, Vec<u8>); 6] = [
        ("ldtilecfg [rax]", [&vex(0, none)[..], &[0x49, 0]].concat()),
        ("tilerelease", [&vex(0, none)[..], &[0x49, 0xc0]].concat()),
        (
            "tilezero tmm3",
            [&vex(0, f2)[..], &[0x49, registers(3, 0)]].concat(),
        ),
        (
            "tileloadd tmm3, [rax + rcx*1]",
            [&vex(0, f2)[..], &[0x4b], &indexed(3)].concat(),
        ),
        (
            "tilestored [rax + rcx*1], tmm3",
            [&vex(0, f3)[..], &[0x4b], &indexed(3)].concat(),
        ),
        (
            "tdpbf16ps tmm3, tmm4, tmm6",
            [&vex(6, f3)[..], &[0x5c, registers(3, 4)]].concat(),
        ),
    ];
    assert_eq!(keel::cpu::tile_unit::encodings(), wanted);
}

#[test]
fn amx_is_used_where_processor_and_kernel_allow_it_and_nowhere_else() {
    let all = Facts {
        has_instructions: true,
        has_state: true,
        palette: PALETTE,
    };
    let asked = Cell::new(0);
    let answer = |answer: Result<(), i32>| {
        let asked = &asked;
        move || {
            asked.set(asked.get() + 1);
            answer
        }
    };
    assert_eq!(admit(all, answer(Ok(()))), Ok(()));
    // EPERM of a process that may not.
    assert_eq!(admit(all, answer(Err(1))), Err(NoAmx::Denied(1)));
    assert_eq!(asked.get(), 2);
    let others = [
        (
            Facts {
                has_instructions: false,
                ..all
            },
            NoAmx::Absent,
        ),
        (
            Facts {
                has_state: false,
                ..all
            },
            NoAmx::Absent,
        ),
        (
            Facts {
                palette: [8192, 1024, 32, 8, 32],
                ..all
            },
            NoAmx::OtherTiles,
        ),
    ];
    for (facts, why) in others {
        assert_eq!(admit(facts, answer(Ok(()))), Err(why));
    }
    assert_eq!(
        asked.get(),
        2,
        "the kernel is asked for what is not there to be had"
    );
}

#[test]
fn a_machine_without_amx_is_denied_it_by_the_kernel_too() {
    match Amx::find() {
        Ok(_) => assert_eq!(Amx::ask_kernel(), Ok(()), "it may be asked again"),
        Err(NoAmx::Denied(_)) => assert!(Amx::ask_kernel().is_err()),
        Err(_) if Facts::of_this_machine().has_instructions => {}
        Err(_) => {
            assert!(Amx::ask_kernel().is_err());
            limit(Level::Avx512);
            assert!(amx().is_none());
        }
    }
    limit(Level::Portable);
    assert!(amx().is_none(), "a narrower path has no unit");
    limit(Level::Avx512);
}

#[test]
fn ways_of_computing_products_can_be_asked_for_where_the_machine_has_them() {
    assert_eq!(bf16_products_asked(""), Ok(None));
    assert_eq!(bf16_products_asked("auto"), Ok(None));
    assert_eq!(bf16_products_asked("f32"), Ok(Some(Bf16Products::Widened)));
    let unknown = Refused::Unknown("AMX".to_owned());
    assert_eq!(bf16_products_asked("AMX"), Err(unknown));
    let found = bf16_products_asked("amx");
    match Amx::find() {
        Ok(_) => assert_eq!(found, Ok(Some(Bf16Products::Tiles))),
        Err(why) => {
            assert_eq!(found, Err(Refused::NoTiles(why)));
            let said = found.unwrap_err().to_string();
            assert!(said.starts_with("amx, and "), "{said}");
        }
    }
    limit(Level::Avx2);
    assert_eq!(bf16_products_asked("vdpbf16ps"), Err(Refused::NoPairs));
    limit(Level::Avx512);
}
