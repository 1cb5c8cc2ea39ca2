//! One instruction over the lanes of a warp.

use super::agents::{Agents, TensorArgument};
use super::arithmetic::{self as calc, Approximation};
use super::code::{Code, Instruction, NONE, WIDE};
use super::copies::{Asked, CopyTiming};
use super::counts::Counts;
use super::form::{Compared, Op, Relation, Shuffle, Space};
use super::matrix::{self, Lanes};
use super::memory::Global;
use super::shared::Shared;
use super::warp::{ALL, Warp};

/// What an instruction works on beside its warp.
pub struct Environment<'a, 'm> {
    pub code: &'a Code,
    pub global: &'a mut Global<'m>,
    pub shared: &'a mut Shared,
    pub agents: &'a mut Agents,
    pub maps: &'a [TensorArgument],
    pub backwards: bool,
    pub timing: CopyTiming,
    pub approximation: Approximation,
    pub multiplies: bool,
    pub counts: Option<&'a mut Counts>,
}

/// Where the lanes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Next,
    /// These lanes to this instruction, the others on.
    Branch(u32, u32),
    /// To the block's barrier of this number, for so many threads (0: all).
    Barrier(u32, u32),
    /// Counted at that barrier, and on.
    Arrival(u32, u32),
    Return(u32),
    /// Not before other lanes of the warp are here too.
    Wait,
    /// Not before something else in the block has happened.
    Stall,
    /// A product of the warpgroup, for which its warps meet.
    GroupProduct,
    /// The warpgroup's products since the last commit become a group.
    GroupCommit,
    /// Until so many of the warpgroup's groups are open.
    GroupWait(usize),
}

/// Registers of 32 lanes from those of others, lane by lane.
macro_rules! lanes {
    ($f:expr, $($operand:expr),*) => {{
        let f = $f;
        let mut result = [Default::default(); 32];
        for lane in 0..32 {
            result[lane] = f($($operand[lane]),*);
        }
        result
    }};
}

fn f32_of(bits: u32) -> f32 {
    f32::from_bits(bits)
}

fn f64_of(bits: u64) -> f64 {
    f64::from_bits(bits)
}

impl Warp {
    pub(super) fn word(&self, register: u16) -> &Lanes {
        &self.words[usize::from(register)]
    }

    pub(super) fn double(&self, register: u16) -> &[u64; 32] {
        &self.doubles[usize::from(register)]
    }

    pub(super) fn predicate(&self, register: u16) -> u32 {
        self.predicates[usize::from(register)]
    }

    /// Executes the instruction numbered `index` for `lanes`, which all stand there.
    pub fn execute(
        &mut self,
        index: u32,
        lanes: u32,
        env: &mut Environment<'_, '_>,
    ) -> Result<Flow, String> {
        let i = &env.code.instructions[index as usize];
        let active = match i.guard {
            NONE => lanes,
            guard if i.is_negated => lanes & !self.predicate(guard),
            guard => lanes & self.predicate(guard),
        };
        if let Some(counts) = &mut env.counts {
            counts.executed[index as usize] += 1;
        }
        match i.op {
            Op::Branch => return Ok(Flow::Branch(i.value as u32, active)),
            Op::Return => return Ok(Flow::Return(active)),
            // Nobody takes part.
            _ if active == 0 => return Ok(Flow::Next),
            Op::GroupMultiply { .. }
            | Op::GroupCommit
            | Op::GroupWait
            | Op::SetRegisters
            | Op::Elect
            | Op::StoreMatrix { .. }
            | Op::Barrier
            | Op::BarrierArrival
            | Op::WarpBarrier
            | Op::MultiplyMatrices
            | Op::LoadMatrix { .. }
            | Op::Shuffle(_)
            | Op::Ballot
            | Op::ReduceMinU32
            | Op::ReduceMaxU32
            | Op::ReduceMinS32
            | Op::ReduceMaxS32 => return self.together(index, i, active, env),
            Op::Load {
                space,
                bytes,
                count,
            } => {
                self.load(index, i, active, (space, bytes, count), env)?;
            }
            Op::Store {
                space,
                bytes,
                count,
            } => {
                self.store(index, i, active, (space, bytes, count), env)?;
            }
            Op::CopyAsync => self.copy(index, i, active, env)?,
            Op::CopyCommit => {
                for lane in each(active) {
                    self.copies[lane].commit();
                }
            }
            Op::CopyWait => {
                for lane in each(active) {
                    let open = i.value as usize;
                    self.copies[lane].wait(open, env.timing, env.global, env.shared)?;
                }
            }
            Op::CopyWaitAll => {
                for lane in each(active) {
                    self.copies[lane].commit();
                    self.copies[lane].wait(0, env.timing, env.global, env.shared)?;
                }
            }
            Op::BarrierInit
            | Op::BarrierInvalidate
            | Op::BarrierCount
            | Op::BarrierTest
            | Op::TensorLoad
            | Op::TensorStore
            | Op::BulkCommit
            | Op::BulkWait => return self.agent(i, active, env),
            Op::Fence => {}
            Op::Trap => return Err("the kernel stops itself".to_owned()),
            Op::Compare(relation, compared) => self.compare(i, active, relation, compared),
            Op::AndP => self.set_predicate(i.to, self.predicate(i.a) & self.predicate(i.b), active),
            Op::OrP => self.set_predicate(i.to, self.predicate(i.a) | self.predicate(i.b), active),
            Op::XorP => self.set_predicate(i.to, self.predicate(i.a) ^ self.predicate(i.b), active),
            Op::NotP => self.set_predicate(i.to, !self.predicate(i.a), active),
            Op::MoveP => self.set_predicate(i.to, self.predicate(i.a), active),
            Op::Unpack16 => {
                let whole = *self.word(i.a);
                self.set_word(i.to, lanes!(|x: u32| x & 0xffff, whole), active);
                self.set_word(i.b, lanes!(|x: u32| x >> 16, whole), active);
            }
            Op::Unpack32 => {
                let whole = *self.double(i.a);
                self.set_word(i.to, lanes!(|x: u64| x as u32, whole), active);
                self.set_word(i.b, lanes!(|x: u64| (x >> 32) as u32, whole), active);
            }
            op => {
                if let Some(result) = self.to_word(op, i, env.approximation)? {
                    self.set_word(i.to, result, active);
                } else if let Some(result) = self.to_double(op, i)? {
                    self.set_double(i.to, result, active);
                } else {
                    return Err("the machine has no execution for this instruction".to_owned());
                }
            }
        }
        Ok(Flow::Next)
    }

    /// Instructions with a result of 32 bits.
    fn to_word(
        &self,
        op: Op,
        i: &Instruction,
        approximation: Approximation,
    ) -> Result<Option<Lanes>, String> {
        macro_rules! one {
            ($f:expr) => {
                lanes!($f, self.word(i.a))
            };
        }
        macro_rules! two {
            ($f:expr) => {
                lanes!($f, self.word(i.a), self.word(i.b))
            };
        }
        macro_rules! floats {
            (|$x:ident| $e:expr) => {
                one!(|$x: u32| {
                    let $x = f32_of($x);
                    f32::to_bits($e)
                })
            };
            (|$x:ident, $y:ident| $e:expr) => {
                two!(|$x: u32, $y: u32| {
                    let ($x, $y) = (f32_of($x), f32_of($y));
                    f32::to_bits($e)
                })
            };
            (|$x:ident, $y:ident, $z:ident| $e:expr) => {
                lanes!(
                    |$x: u32, $y: u32, $z: u32| {
                        let ($x, $y, $z) = (f32_of($x), f32_of($y), f32_of($z));
                        f32::to_bits($e)
                    },
                    self.word(i.a),
                    self.word(i.b),
                    self.word(i.c)
                )
            };
        }
        Ok(Some(match op {
            Op::Move32 | Op::Move16 => *self.word(i.a),
            Op::ToU16 => one!(|x: u32| x & 0xffff),
            Op::Add32 => two!(u32::wrapping_add),
            Op::Sub32 => two!(u32::wrapping_sub),
            Op::Mul32 => two!(u32::wrapping_mul),
            Op::Mad32 => lanes!(
                |x: u32, y: u32, z: u32| x.wrapping_mul(y).wrapping_add(z),
                self.word(i.a),
                self.word(i.b),
                self.word(i.c)
            ),
            Op::MulHiS32 => {
                two!(|x: u32, y: u32| ((i64::from(x as i32) * i64::from(y as i32)) >> 32) as u32)
            }
            Op::MulHiU32 => two!(|x: u32, y: u32| ((u64::from(x) * u64::from(y)) >> 32) as u32),
            // Dividing by zero is not defined; lanes that take no part may.
            Op::DivS32 => {
                two!(|x: u32, y: u32| (x as i32).checked_div(y as i32).unwrap_or(-1) as u32)
            }
            Op::DivU32 => two!(|x: u32, y: u32| x.checked_div(y).unwrap_or(u32::MAX)),
            Op::RemS32 => {
                two!(|x: u32, y: u32| (x as i32).checked_rem(y as i32).unwrap_or(0) as u32)
            }
            Op::RemU32 => two!(|x: u32, y: u32| x.checked_rem(y).unwrap_or(x)),
            Op::MinS32 => two!(|x: u32, y: u32| (x as i32).min(y as i32) as u32),
            Op::MaxS32 => two!(|x: u32, y: u32| (x as i32).max(y as i32) as u32),
            Op::MinU32 => two!(|x: u32, y: u32| x.min(y)),
            Op::MaxU32 => two!(|x: u32, y: u32| x.max(y)),
            Op::And32 | Op::And16 => two!(|x: u32, y: u32| x & y),
            Op::Or32 | Op::Or16 => two!(|x: u32, y: u32| x | y),
            Op::Xor32 => two!(|x: u32, y: u32| x ^ y),
            Op::Not32 => one!(|x: u32| !x),
            Op::Neg32 => one!(u32::wrapping_neg),
            Op::Abs32 => one!(|x: u32| (x as i32).wrapping_abs() as u32),
            Op::Shl32 => two!(calc::shift_left),
            Op::ShrS32 => two!(|x: u32, y: u32| ((x as i32) >> y.min(31)) as u32),
            Op::ShrU32 => two!(|x: u32, y: u32| x.checked_shr(y).unwrap_or(0)),
            Op::Popc32 => one!(|x: u32| x.count_ones()),
            Op::Clz32 => one!(|x: u32| x.leading_zeros()),
            Op::Brev32 => one!(|x: u32| x.reverse_bits()),
            Op::BfindShift32 => one!(calc::leading),
            Op::Select32 | Op::Select16 => {
                let chosen = self.predicate(i.c);
                let (a, b) = (self.word(i.a), self.word(i.b));
                std::array::from_fn(|l| if chosen >> l & 1 != 0 { a[l] } else { b[l] })
            }
            Op::Pack16 => two!(|x: u32, y: u32| x & 0xffff | y << 16),
            Op::U64ToU32 | Op::Narrow => lanes!(|x: u64| x as u32, self.double(i.a)),
            Op::AddF32 => floats!(|x, y| x + y),
            Op::AddZeroF32 => floats!(|x, y| calc::add_towards_zero(x, y)),
            Op::SubF32 => floats!(|x, y| x - y),
            Op::MulF32 => floats!(|x, y| x * y),
            Op::FmaF32 => floats!(|x, y, z| x.mul_add(y, z)),
            Op::FmaDownF32 => floats!(|x, y, z| calc::fused_down(x, y, z)),
            Op::DivF32 => floats!(|x, y| x / y),
            Op::SqrtF32 => floats!(|x| x.sqrt()),
            Op::RcpF32 => floats!(|x| 1.0 / x),
            Op::RcpApproximateF32 => floats!(|x| calc::reciprocal_approximate(x, approximation)),
            Op::Exp2ApproximateF32 => floats!(|x| calc::exp2_approximate(x, approximation)),
            Op::AbsF32 => one!(|x: u32| x & 0x7fff_ffff),
            Op::NegF32 => one!(|x: u32| x ^ 0x8000_0000),
            Op::MinF32 => floats!(|x, y| calc::min_f32(x, y)),
            Op::MaxF32 => floats!(|x, y| calc::max_f32(x, y)),
            Op::CopySignF32 => two!(|x: u32, y: u32| x & 0x8000_0000 | y & 0x7fff_ffff),
            Op::F64ToF32 => lanes!(|x: u64| (f64_of(x) as f32).to_bits(), self.double(i.a)),
            Op::F32ToBf16 => one!(calc::to_bf16),
            Op::F32PairToBf16 => {
                two!(|high: u32, low: u32| calc::to_bf16(high) << 16 | calc::to_bf16(low))
            }
            Op::S32ToF32 => one!(|x: u32| (x as i32 as f32).to_bits()),
            Op::U32ToF32 => one!(|x: u32| (x as f32).to_bits()),
            Op::F32Nearest => floats!(|x| x.round_ties_even()),
            Op::F32Truncated => floats!(|x| x.trunc()),
            Op::F32ToS32 => one!(|x: u32| f32_of(x) as i32 as u32),
            Op::F32NearestToS32 => one!(|x: u32| f32_of(x).round_ties_even() as i32 as u32),
            Op::Saturate => floats!(|x| calc::saturate(x)),
            _ => return Ok(None),
        }))
    }

    /// Instructions with a result of 64 bits.
    fn to_double(&self, op: Op, i: &Instruction) -> Result<Option<[u64; 32]>, String> {
        macro_rules! one {
            ($f:expr) => {
                lanes!($f, self.double(i.a))
            };
        }
        macro_rules! two {
            ($f:expr) => {
                lanes!($f, self.double(i.a), self.double(i.b))
            };
        }
        macro_rules! words {
            ($f:expr) => {
                lanes!($f, self.word(i.a), self.word(i.b))
            };
        }
        macro_rules! shift {
            ($f:expr) => {
                lanes!($f, self.double(i.a), self.word(i.b))
            };
        }
        macro_rules! floats {
            (|$x:ident| $e:expr) => {
                one!(|$x: u64| {
                    let $x = f64_of($x);
                    f64::to_bits($e)
                })
            };
            (|$x:ident, $y:ident| $e:expr) => {
                two!(|$x: u64, $y: u64| {
                    let ($x, $y) = (f64_of($x), f64_of($y));
                    f64::to_bits($e)
                })
            };
        }
        let wide_signed = |x: u32, y: u32| (i64::from(x as i32) * i64::from(y as i32)) as u64;
        let wide_unsigned = |x: u32, y: u32| u64::from(x) * u64::from(y);
        Ok(Some(match op {
            Op::Move64 => *self.double(i.a),
            Op::Add64 => two!(u64::wrapping_add),
            Op::Sub64 => two!(u64::wrapping_sub),
            Op::Mul64 => two!(u64::wrapping_mul),
            Op::Mad64 => lanes!(
                |x: u64, y: u64, z: u64| x.wrapping_mul(y).wrapping_add(z),
                self.double(i.a),
                self.double(i.b),
                self.double(i.c)
            ),
            Op::MulHiU64 => two!(|x: u64, y: u64| ((u128::from(x) * u128::from(y)) >> 64) as u64),
            Op::MulWideS32 => words!(wide_signed),
            Op::MulWideU32 => words!(wide_unsigned),
            Op::MadWideS32 => lanes!(
                |x: u32, y: u32, z: u64| wide_signed(x, y).wrapping_add(z),
                self.word(i.a),
                self.word(i.b),
                self.double(i.c)
            ),
            Op::MadWideU32 => lanes!(
                |x: u32, y: u32, z: u64| wide_unsigned(x, y).wrapping_add(z),
                self.word(i.a),
                self.word(i.b),
                self.double(i.c)
            ),
            Op::DivS64 => {
                two!(|x: u64, y: u64| (x as i64).checked_div(y as i64).unwrap_or(-1) as u64)
            }
            Op::DivU64 => two!(|x: u64, y: u64| x.checked_div(y).unwrap_or(u64::MAX)),
            Op::RemS64 => {
                two!(|x: u64, y: u64| (x as i64).checked_rem(y as i64).unwrap_or(0) as u64)
            }
            Op::RemU64 => two!(|x: u64, y: u64| x.checked_rem(y).unwrap_or(x)),
            Op::MinS64 => two!(|x: u64, y: u64| (x as i64).min(y as i64) as u64),
            Op::MaxS64 => two!(|x: u64, y: u64| (x as i64).max(y as i64) as u64),
            Op::MinU64 => two!(|x: u64, y: u64| x.min(y)),
            Op::MaxU64 => two!(|x: u64, y: u64| x.max(y)),
            Op::And64 => two!(|x: u64, y: u64| x & y),
            Op::Or64 => two!(|x: u64, y: u64| x | y),
            Op::Xor64 => two!(|x: u64, y: u64| x ^ y),
            Op::Not64 => one!(|x: u64| !x),
            Op::Neg64 => one!(u64::wrapping_neg),
            Op::Shl64 => shift!(calc::shift_left_64),
            Op::ShrS64 => shift!(|x: u64, y: u32| ((x as i64) >> y.min(63)) as u64),
            Op::ShrU64 => shift!(|x: u64, y: u32| x.checked_shr(y).unwrap_or(0)),
            Op::Select64 => {
                let chosen = self.predicate(i.c);
                let (a, b) = (self.double(i.a), self.double(i.b));
                std::array::from_fn(|l| if chosen >> l & 1 != 0 { a[l] } else { b[l] })
            }
            Op::Pack32 => words!(|x: u32, y: u32| u64::from(x) | u64::from(y) << 32),
            Op::U32ToU64 => lanes!(|x: u32| u64::from(x), self.word(i.a)),
            Op::S32ToS64 => lanes!(|x: u32| i64::from(x as i32) as u64, self.word(i.a)),
            Op::F32ToU64 => lanes!(|x: u32| f32_of(x) as u64, self.word(i.a)),
            Op::F32ToF64 => lanes!(|x: u32| f64::from(f32_of(x)).to_bits(), self.word(i.a)),
            Op::S32ToF64 => lanes!(|x: u32| f64::from(x as i32).to_bits(), self.word(i.a)),
            Op::S64ToF64 => one!(|x: u64| (x as i64 as f64).to_bits()),
            Op::AddF64 => floats!(|x, y| x + y),
            Op::SubF64 => floats!(|x, y| x - y),
            Op::MulF64 => floats!(|x, y| x * y),
            Op::FmaF64 => lanes!(
                |x: u64, y: u64, z: u64| f64_of(x).mul_add(f64_of(y), f64_of(z)).to_bits(),
                self.double(i.a),
                self.double(i.b),
                self.double(i.c)
            ),
            Op::DivF64 => floats!(|x, y| x / y),
            Op::SqrtF64 => floats!(|x| x.sqrt()),
            Op::AbsF64 => floats!(|x| x.abs()),
            Op::NegF64 => floats!(|x| -x),
            Op::MinF64 => floats!(|x, y| calc::min_f64(x, y)),
            Op::MaxF64 => floats!(|x, y| calc::max_f64(x, y)),
            Op::F64Nearest => floats!(|x| x.round_ties_even()),
            _ => return Ok(None),
        }))
    }

    fn compare(&mut self, i: &Instruction, active: u32, relation: Relation, compared: Compared) {
        macro_rules! mask {
            ($bank:ident, $convert:expr) => {{
                let (a, b) = (self.$bank(i.a), self.$bank(i.b));
                let convert = $convert;
                let mut mask = 0;
                for lane in 0..32 {
                    let is_true = calc::compare(relation, convert(a[lane]), convert(b[lane]));
                    mask |= u32::from(is_true) << lane;
                }
                mask
            }};
        }
        let mask = match compared {
            Compared::S16 => mask!(word, |x: u32| x as u16 as i16),
            Compared::U16 => mask!(word, |x: u32| x as u16),
            Compared::S32 => mask!(word, |x: u32| x as i32),
            Compared::U32 => mask!(word, |x: u32| x),
            Compared::S64 => mask!(double, |x: u64| x as i64),
            Compared::U64 => mask!(double, |x: u64| x),
            Compared::F32 => mask!(word, f32_of),
            Compared::F64 => mask!(double, f64_of),
        };
        self.set_predicate(i.to, mask, active);
    }

    /// Instructions for which lanes meet.
    fn together(
        &mut self,
        index: u32,
        i: &Instruction,
        active: u32,
        env: &mut Environment<'_, '_>,
    ) -> Result<Flow, String> {
        let wanted = match i.op {
            Op::MultiplyMatrices
            | Op::LoadMatrix { .. }
            | Op::StoreMatrix { .. }
            | Op::GroupMultiply { .. }
            | Op::GroupCommit
            | Op::GroupWait
            | Op::SetRegisters => ALL,
            Op::Barrier | Op::BarrierArrival => self.live(),
            Op::WarpBarrier => self.mask(i.a, active),
            Op::Shuffle(_) => self.mask(i.d, active),
            _ => self.mask(i.b, active),
        } & self.lanes;
        if active & wanted != active {
            return Err(format!(
                "lanes {active:#010x} meet under the mask {wanted:#010x}, which lacks some of them"
            ));
        }
        if active != wanted {
            return Ok(Flow::Wait);
        }
        match i.op {
            Op::Barrier | Op::BarrierArrival => {
                let all = |lanes: &Lanes| lanes[active.trailing_zeros() as usize];
                let threads = if i.b == NONE { 0 } else { all(self.word(i.b)) };
                let barrier = all(self.word(i.a));
                return Ok(match i.op {
                    Op::Barrier => Flow::Barrier(barrier, threads),
                    _ => Flow::Arrival(barrier, threads),
                });
            }
            Op::WarpBarrier => {}
            Op::GroupMultiply { .. } => return Ok(Flow::GroupProduct),
            Op::GroupCommit => return Ok(Flow::GroupCommit),
            Op::GroupWait => return Ok(Flow::GroupWait(i.value as usize)),
            Op::SetRegisters => {
                if !(24..=256).contains(&i.value) || i.value % 8 != 0 {
                    return Err(format!("a thread cannot have {} registers", i.value));
                }
            }
            Op::Elect => {
                // Any lane may be it, the same in a whole launch.
                let elected = if env.backwards { 1 << 31 } else { 1 };
                self.set_predicate(i.to, elected, active);
            }
            Op::StoreMatrix { is_transposed } => {
                self.store_matrices(index, i, is_transposed, env)?;
            }
            Op::MultiplyMatrices => {
                if self.lanes != ALL {
                    return Err("a matrix instruction takes a whole warp".to_owned());
                }
                if !env.multiplies {
                    return Ok(Flow::Next);
                }
                let list = env.code.list(i, 14);
                let take = |at: usize| *self.word(list[at]);
                let a = [take(4), take(5), take(6), take(7)];
                let c = [take(10), take(11), take(12), take(13)];
                let d = matrix::multiply(&a, &[take(8), take(9)], &c);
                for (register, values) in list.iter().zip(d) {
                    self.set_word(*register, values, active);
                }
            }
            Op::LoadMatrix {
                count,
                is_transposed,
            } => {
                if self.lanes != ALL {
                    return Err("a matrix instruction takes a whole warp".to_owned());
                }
                self.load_matrices(index, i, usize::from(count), is_transposed, env)?;
            }
            Op::Shuffle(kind) => self.shuffle(i, kind, active)?,
            Op::Ballot => {
                let votes = self.predicate(i.a) & active;
                self.set_word(i.to, [votes; 32], active);
            }
            op => {
                let values = each(active).map(|lane| self.word(i.a)[lane]);
                let result = match op {
                    Op::ReduceMinU32 => values.min(),
                    Op::ReduceMaxU32 => values.max(),
                    Op::ReduceMinS32 => values.map(|x| x as i32).min().map(|x| x as u32),
                    _ => values.map(|x| x as i32).max().map(|x| x as u32),
                };
                self.set_word(i.to, [result.expect("some lane takes part"); 32], active);
            }
        }
        Ok(Flow::Next)
    }

    /// The lanes that an instruction's mask names.
    fn mask(&self, register: u16, active: u32) -> u32 {
        self.word(register)[active.trailing_zeros() as usize]
    }

    fn shuffle(&mut self, i: &Instruction, kind: Shuffle, active: u32) -> Result<(), String> {
        let (value, by, clamp) = (self.word(i.a), self.word(i.b), self.word(i.c));
        let (mut result, mut in_range) = ([0; 32], 0u32);
        for lane in each(active) {
            let (own, by, clamp) = (lane as u32, by[lane] & 31, clamp[lane]);
            let segment = clamp >> 8 & 31;
            let last = own & segment | clamp & 31 & !segment;
            let (from, is_in_range) = match kind {
                Shuffle::Butterfly => (own ^ by, own ^ by <= last),
                Shuffle::Index => {
                    let from = own & segment | by & !segment;
                    (from, from <= last)
                }
                Shuffle::Up => (own.wrapping_sub(by), own as i32 - by as i32 >= last as i32),
                Shuffle::Down => (own + by, own + by <= last),
            };
            let from = if is_in_range { from } else { own };
            if active >> from & 1 == 0 {
                return Err(format!(
                    "lane {own} takes a value of lane {from}, which takes no part"
                ));
            }
            result[lane] = value[from as usize];
            in_range |= u32::from(is_in_range) << lane;
        }
        self.set_word(i.to, result, active);
        if i.value as u16 != NONE {
            self.set_predicate(i.value as u16, in_range, active);
        }
        Ok(())
    }

    fn load_matrices(
        &mut self,
        index: u32,
        i: &Instruction,
        count: usize,
        is_transposed: bool,
        env: &mut Environment<'_, '_>,
    ) -> Result<(), String> {
        let list = env.code.list(i, count);
        let mut addresses = [0; 32];
        for (lane, address) in addresses.iter_mut().enumerate() {
            *address = self.word(i.a)[lane].wrapping_add(i.value as u32);
        }
        for (matrix, register) in list.iter().enumerate() {
            let mut rows = [[0; 16]; 8];
            for (row, bytes) in rows.iter_mut().enumerate() {
                env.shared
                    .read(addresses[8 * matrix + row], bytes)
                    .map_err(|problem| format!("row {row} of matrix {matrix}: {problem}"))?;
            }
            if let Some(counts) = &mut env.counts {
                counts.shared(index, &addresses, 0xff << (8 * matrix), 16);
            }
            self.set_word(*register, matrix::spread(&rows, is_transposed), ALL);
        }
        Ok(())
    }

    fn load(
        &mut self,
        index: u32,
        i: &Instruction,
        active: u32,
        (space, bytes, count): (Space, u8, u8),
        env: &mut Environment<'_, '_>,
    ) -> Result<(), String> {
        let (bytes, count) = (usize::from(bytes), usize::from(count));
        let width = bytes * count;
        let mut data = [[0u8; 16]; 32];
        match space {
            Space::Shared => {
                let addresses = self.shared_addresses(i);
                for lane in each(active) {
                    env.shared
                        .read(addresses[lane], &mut data[lane][..width])
                        .map_err(|problem| self.of_lane(lane, problem))?;
                }
                if let Some(counts) = &mut env.counts {
                    counts.shared(index, &addresses, active, width as u32);
                }
            }
            Space::Global => {
                let addresses = self.global_addresses(i.a, i.value);
                for lane in each(active) {
                    env.global
                        .read(addresses[lane], width, &mut data[lane][..width])
                        .map_err(|problem| self.of_lane(lane, problem))?;
                }
                if let Some(counts) = &mut env.counts {
                    counts.global(index, &addresses, active, width as u32);
                }
            }
        }
        for (part, register) in env.code.list(i, count).iter().enumerate() {
            let value = |lane: usize| {
                let mut whole = [0; 8];
                whole[..bytes].copy_from_slice(&data[lane][part * bytes..][..bytes]);
                u64::from_le_bytes(whole)
            };
            match bytes {
                8 => self.set_double(*register, std::array::from_fn(value), active),
                _ if register & WIDE != 0 => {
                    self.set_double(register & !WIDE, std::array::from_fn(value), active);
                }
                _ => self.set_word(*register, std::array::from_fn(|l| value(l) as u32), active),
            }
        }
        Ok(())
    }

    fn store(
        &mut self,
        index: u32,
        i: &Instruction,
        active: u32,
        (space, bytes, count): (Space, u8, u8),
        env: &mut Environment<'_, '_>,
    ) -> Result<(), String> {
        let (bytes, count) = (usize::from(bytes), usize::from(count));
        let width = bytes * count;
        let mut data = [[0u8; 16]; 32];
        for (part, register) in env.code.list(i, count).iter().enumerate() {
            for lane in each(active) {
                let value = match bytes {
                    8 => self.double(*register)[lane],
                    _ if register & WIDE != 0 => self.double(register & !WIDE)[lane],
                    _ => u64::from(self.word(*register)[lane]),
                };
                data[lane][part * bytes..][..bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
            }
        }
        match space {
            Space::Shared => {
                let addresses = self.shared_addresses(i);
                for lane in each(active) {
                    env.shared
                        .write(addresses[lane], &data[lane][..width])
                        .map_err(|problem| self.of_lane(lane, problem))?;
                }
                if let Some(counts) = &mut env.counts {
                    counts.shared(index, &addresses, active, width as u32);
                }
            }
            Space::Global => {
                let addresses = self.global_addresses(i.a, i.value);
                for lane in each(active) {
                    env.global
                        .write(addresses[lane], &data[lane][..width])
                        .map_err(|problem| self.of_lane(lane, problem))?;
                }
                if let Some(counts) = &mut env.counts {
                    counts.global(index, &addresses, active, width as u32);
                }
            }
        }
        Ok(())
    }

    fn copy(
        &mut self,
        index: u32,
        i: &Instruction,
        active: u32,
        env: &mut Environment<'_, '_>,
    ) -> Result<(), String> {
        let to = self.shared_addresses(i);
        let from = self.global_addresses(i.b, i.source_offset);
        let bytes = usize::from(i.d);
        let mut reading = 0;
        for lane in each(active) {
            let source_bytes = match i.c {
                NONE => bytes as u32,
                register => self.word(register)[lane],
            };
            reading |= u32::from(source_bytes > 0) << lane;
            let asked = Asked {
                from: from[lane],
                to: to[lane],
                bytes,
                source_bytes,
            };
            let issued = self.copies[lane].issue(&asked, env.timing, env.global, env.shared);
            issued.map_err(|problem| self.of_lane(lane, problem))?;
        }
        if let Some(counts) = &mut env.counts {
            counts.shared(index, &to, active, bytes as u32);
            counts.global(index, &from, reading, bytes as u32);
        }
        Ok(())
    }

    pub(super) fn shared_addresses(&self, i: &Instruction) -> Lanes {
        let offset = i.value as u32;
        lanes!(|base: u32| base.wrapping_add(offset), self.word(i.a))
    }

    fn global_addresses(&self, base: u16, offset: i64) -> [u64; 32] {
        let offset = offset as u64;
        lanes!(|base: u64| base.wrapping_add(offset), self.double(base))
    }

    pub(super) fn of_lane(&self, lane: usize, problem: String) -> String {
        format!("thread {}: {problem}", self.first as usize + lane)
    }
}

/// The lanes of a mask, lowest first.
pub(super) fn each(mut lanes: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = lanes.trailing_zeros();
        lanes &= lanes.wrapping_sub(1);
        (lane < 32).then_some(lane as usize)
    })
}
