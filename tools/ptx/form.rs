//! The forms of instructions that the machine executes: every opcode as nvcc writes it, what it does, and which registers it
//! takes. A form that is not here is refused by name.

/// Which registers a value lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bank {
    /// 32 bits; those of 16 lie in the lower half, the upper half zero.
    Word,
    /// 64 bits.
    Double,
    /// One bit.
    Predicate,
}

/// How two values are compared. Those with a `u` behind the relation are true for NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// `eq`.
    Equal,
    /// `ne`.
    NotEqual,
    /// `lt`.
    Less,
    /// `le`.
    LessEqual,
    /// `gt`.
    Greater,
    /// `ge`.
    GreaterEqual,
    /// `equ`.
    EqualOrNan,
    /// `neu`.
    NotEqualOrNan,
    /// `ltu`.
    LessOrNan,
    /// `leu`.
    LessEqualOrNan,
    /// `gtu`.
    GreaterOrNan,
    /// `geu`.
    GreaterEqualOrNan,
    /// `nan`.
    IsNan,
    /// `num`.
    IsNumber,
}

/// What a comparison takes its operands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// 16 bits, signed.
    S16,
    /// 16 bits, unsigned.
    U16,
    /// 32 bits, signed; `b32` too, where only equality is asked.
    S32,
    /// 32 bits, unsigned.
    U32,
    /// 64 bits, signed.
    S64,
    /// 64 bits, unsigned.
    U64,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
}

/// The memory that a load or store goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// What a launch's pointers lead to.
    Global,
    /// The block's own.
    Shared,
}

/// What lanes of a warp exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shuffle {
    /// From the lane whose number differs in these bits.
    Butterfly,
    /// From a named lane.
    Index,
    /// From so many lanes below.
    Up,
    /// From so many lanes above.
    Down,
}

/// What one instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Named after the PTX instruction; the ISA defines each.
pub enum Op {
    Add32,
    Sub32,
    Mul32,
    Mad32,
    MulHiS32,
    MulHiU32,
    DivS32,
    DivU32,
    RemS32,
    RemU32,
    MinS32,
    MaxS32,
    MinU32,
    MaxU32,
    And32,
    Or32,
    Xor32,
    Not32,
    Neg32,
    Abs32,
    Shl32,
    ShrS32,
    ShrU32,
    Popc32,
    Clz32,
    Brev32,
    BfindShift32,
    Select32,
    Move32,
    And16,
    Or16,
    Move16,
    Select16,
    Add64,
    Sub64,
    Mul64,
    Mad64,
    MulHiU64,
    MulWideS32,
    MulWideU32,
    MadWideS32,
    MadWideU32,
    DivS64,
    DivU64,
    RemS64,
    RemU64,
    MinS64,
    MaxS64,
    MinU64,
    MaxU64,
    And64,
    Or64,
    Xor64,
    Not64,
    Neg64,
    Shl64,
    ShrS64,
    ShrU64,
    Select64,
    Move64,
    AddF32,
    AddZeroF32,
    SubF32,
    MulF32,
    FmaF32,
    FmaDownF32,
    DivF32,
    SqrtF32,
    RcpF32,
    RcpApproximateF32,
    Exp2ApproximateF32,
    AbsF32,
    NegF32,
    MinF32,
    MaxF32,
    CopySignF32,
    AddF64,
    SubF64,
    MulF64,
    FmaF64,
    DivF64,
    SqrtF64,
    AbsF64,
    NegF64,
    MinF64,
    MaxF64,
    AndP,
    OrP,
    XorP,
    NotP,
    MoveP,
    Compare(Relation, Compared),
    F32ToF64,
    F64ToF32,
    F32ToBf16,
    F32PairToBf16,
    S32ToF32,
    U32ToF32,
    S32ToF64,
    S64ToF64,
    F32Nearest,
    F64Nearest,
    F32Truncated,
    F32ToS32,
    F32NearestToS32,
    F32ToU64,
    S32ToS64,
    ToU16,
    U64ToU32,
    U32ToU64,
    Saturate,
    Pack16,
    Unpack16,
    Pack32,
    Unpack32,
    Load {
        space: Space,
        bytes: u8,
        count: u8,
    },
    Store {
        space: Space,
        bytes: u8,
        count: u8,
    },
    CopyAsync,
    CopyCommit,
    CopyWait,
    CopyWaitAll,
    LoadMatrix {
        count: u8,
        is_transposed: bool,
    },
    MultiplyMatrices,
    Shuffle(Shuffle),
    ReduceMinU32,
    ReduceMaxU32,
    ReduceMinS32,
    ReduceMaxS32,
    Ballot,
    Barrier,
    /// A thread is counted at a barrier and goes on.
    BarrierArrival,
    WarpBarrier,
    Branch,
    Return,
    /// The lower half of a register of 64 bits, where an instruction may be given the whole.
    Narrow,
    BarrierInit,
    BarrierInvalidate,
    /// `mbarrier.arrive`, with or without bytes that are expected.
    BarrierCount,
    /// `mbarrier.try_wait.parity`.
    BarrierTest,
    TensorLoad,
    TensorStore,
    BulkCommit,
    BulkWait,
    /// A fence that orders what the machine does in order anyway.
    Fence,
    GroupMultiply {
        columns: u16,
    },
    GroupCommit,
    GroupWait,
    SetRegisters,
    Elect,
    /// The kernel stops itself.
    Trap,
    StoreMatrix {
        is_transposed: bool,
    },
    /// No instruction.
    Nothing,
}

/// Opcodes whose operands are registers alone, with where the result and the operands live: `w` 32 bits, `h` 16 bits, `d`
/// 64 bits, `p` a predicate.
const FORMS: &[(&str, Op, &str)] = {
    use Op::*;
    &[
        ("add.s32", Add32, "w=ww"),
        ("add.u32", Add32, "w=ww"),
        ("sub.s32", Sub32, "w=ww"),
        ("sub.u32", Sub32, "w=ww"),
        ("mul.lo.s32", Mul32, "w=ww"),
        ("mul.lo.u32", Mul32, "w=ww"),
        ("mad.lo.s32", Mad32, "w=www"),
        ("mad.lo.u32", Mad32, "w=www"),
        ("mul.hi.s32", MulHiS32, "w=ww"),
        ("mul.hi.u32", MulHiU32, "w=ww"),
        ("div.s32", DivS32, "w=ww"),
        ("div.u32", DivU32, "w=ww"),
        ("rem.s32", RemS32, "w=ww"),
        ("rem.u32", RemU32, "w=ww"),
        ("min.s32", MinS32, "w=ww"),
        ("max.s32", MaxS32, "w=ww"),
        ("min.u32", MinU32, "w=ww"),
        ("max.u32", MaxU32, "w=ww"),
        ("and.b32", And32, "w=ww"),
        ("or.b32", Or32, "w=ww"),
        ("xor.b32", Xor32, "w=ww"),
        ("not.b32", Not32, "w=w"),
        ("neg.s32", Neg32, "w=w"),
        ("abs.s32", Abs32, "w=w"),
        ("shl.b32", Shl32, "w=ww"),
        ("shr.s32", ShrS32, "w=ww"),
        ("shr.u32", ShrU32, "w=ww"),
        ("shr.b32", ShrU32, "w=ww"),
        ("popc.b32", Popc32, "w=w"),
        ("clz.b32", Clz32, "w=w"),
        ("brev.b32", Brev32, "w=w"),
        ("bfind.shiftamt.u32", BfindShift32, "w=w"),
        ("selp.b32", Select32, "w=wwp"),
        ("selp.u32", Select32, "w=wwp"),
        ("selp.s32", Select32, "w=wwp"),
        ("selp.f32", Select32, "w=wwp"),
        ("mov.u32", Move32, "w=w"),
        ("mov.s32", Move32, "w=w"),
        ("mov.f32", Move32, "w=w"),
        ("and.b16", And16, "h=hh"),
        ("or.b16", Or16, "h=hh"),
        ("mov.u16", Move16, "h=h"),
        ("mov.b16", Move16, "h=h"),
        ("selp.b16", Select16, "h=hhp"),
        ("selp.u16", Select16, "h=hhp"),
        ("selp.s16", Select16, "h=hhp"),
        ("add.s64", Add64, "d=dd"),
        ("add.u64", Add64, "d=dd"),
        ("sub.s64", Sub64, "d=dd"),
        ("mul.lo.s64", Mul64, "d=dd"),
        ("mul.lo.u64", Mul64, "d=dd"),
        ("mad.lo.s64", Mad64, "d=ddd"),
        ("mul.hi.u64", MulHiU64, "d=dd"),
        ("mul.wide.s32", MulWideS32, "d=ww"),
        ("mul.wide.u32", MulWideU32, "d=ww"),
        ("mad.wide.s32", MadWideS32, "d=wwd"),
        ("mad.wide.u32", MadWideU32, "d=wwd"),
        ("div.s64", DivS64, "d=dd"),
        ("div.u64", DivU64, "d=dd"),
        ("rem.s64", RemS64, "d=dd"),
        ("rem.u64", RemU64, "d=dd"),
        ("min.s64", MinS64, "d=dd"),
        ("max.s64", MaxS64, "d=dd"),
        ("min.u64", MinU64, "d=dd"),
        ("max.u64", MaxU64, "d=dd"),
        ("and.b64", And64, "d=dd"),
        ("or.b64", Or64, "d=dd"),
        ("xor.b64", Xor64, "d=dd"),
        ("not.b64", Not64, "d=d"),
        ("neg.s64", Neg64, "d=d"),
        ("shl.b64", Shl64, "d=dw"),
        ("shr.s64", ShrS64, "d=dw"),
        ("shr.u64", ShrU64, "d=dw"),
        ("shr.b64", ShrU64, "d=dw"),
        ("selp.b64", Select64, "d=ddp"),
        ("selp.f64", Select64, "d=ddp"),
        ("selp.s64", Select64, "d=ddp"),
        ("selp.u64", Select64, "d=ddp"),
        ("mov.u64", Move64, "d=d"),
        ("mov.s64", Move64, "d=d"),
        ("mov.f64", Move64, "d=d"),
        ("cvta.to.global.u64", Move64, "d=d"),
        ("add.f32", AddF32, "w=ww"),
        ("add.rn.f32", AddF32, "w=ww"),
        ("add.rz.f32", AddZeroF32, "w=ww"),
        ("sub.f32", SubF32, "w=ww"),
        ("sub.rn.f32", SubF32, "w=ww"),
        ("mul.f32", MulF32, "w=ww"),
        ("mul.rn.f32", MulF32, "w=ww"),
        ("fma.rn.f32", FmaF32, "w=www"),
        ("fma.rm.f32", FmaDownF32, "w=www"),
        ("div.rn.f32", DivF32, "w=ww"),
        ("sqrt.rn.f32", SqrtF32, "w=w"),
        ("rcp.rn.f32", RcpF32, "w=w"),
        ("rcp.approx.ftz.f32", RcpApproximateF32, "w=w"),
        ("ex2.approx.ftz.f32", Exp2ApproximateF32, "w=w"),
        ("abs.f32", AbsF32, "w=w"),
        ("neg.f32", NegF32, "w=w"),
        ("min.f32", MinF32, "w=ww"),
        ("max.f32", MaxF32, "w=ww"),
        ("copysign.f32", CopySignF32, "w=ww"),
        ("add.f64", AddF64, "d=dd"),
        ("add.rn.f64", AddF64, "d=dd"),
        ("sub.f64", SubF64, "d=dd"),
        ("mul.f64", MulF64, "d=dd"),
        ("mul.rn.f64", MulF64, "d=dd"),
        ("fma.rn.f64", FmaF64, "d=ddd"),
        ("div.rn.f64", DivF64, "d=dd"),
        ("sqrt.rn.f64", SqrtF64, "d=d"),
        ("abs.f64", AbsF64, "d=d"),
        ("neg.f64", NegF64, "d=d"),
        ("min.f64", MinF64, "d=dd"),
        ("max.f64", MaxF64, "d=dd"),
        ("and.pred", AndP, "p=pp"),
        ("or.pred", OrP, "p=pp"),
        ("xor.pred", XorP, "p=pp"),
        ("not.pred", NotP, "p=p"),
        ("mov.pred", MoveP, "p=p"),
        ("cvt.f64.f32", F32ToF64, "d=w"),
        ("cvt.rn.f32.f64", F64ToF32, "w=d"),
        ("cvt.rn.bf16.f32", F32ToBf16, "h=w"),
        ("cvt.rn.bf16x2.f32", F32PairToBf16, "w=ww"),
        ("cvt.rn.f32.s32", S32ToF32, "w=w"),
        ("cvt.rn.f32.u32", U32ToF32, "w=w"),
        ("cvt.rn.f64.s32", S32ToF64, "d=w"),
        ("cvt.rn.f64.s64", S64ToF64, "d=d"),
        ("cvt.rni.f32.f32", F32Nearest, "w=w"),
        ("cvt.rni.f64.f64", F64Nearest, "d=d"),
        ("cvt.rzi.f32.f32", F32Truncated, "w=w"),
        ("cvt.rzi.s32.f32", F32ToS32, "w=w"),
        ("cvt.rni.s32.f32", F32NearestToS32, "w=w"),
        ("cvt.rzi.u64.f32", F32ToU64, "d=w"),
        ("cvt.s64.s32", S32ToS64, "d=w"),
        ("cvt.u16.u32", ToU16, "h=w"),
        ("cvt.u32.u16", Move32, "w=h"),
        ("cvt.u32.u64", U64ToU32, "w=d"),
        ("cvt.u64.u32", U32ToU64, "d=w"),
        ("cvt.sat.f32.f32", Saturate, "w=w"),
        ("redux.sync.min.u32", ReduceMinU32, "w=ww"),
        ("redux.sync.max.u32", ReduceMaxU32, "w=ww"),
        ("redux.sync.min.s32", ReduceMinS32, "w=ww"),
        ("redux.sync.max.s32", ReduceMaxS32, "w=ww"),
        ("vote.sync.ballot.b32", Ballot, "w=pw"),
        ("bar.warp.sync", WarpBarrier, "=w"),
        ("cp.async.wait_all", CopyWaitAll, "="),
        ("cvta.param.u64", Move64, "d=d"),
        ("fence.mbarrier_init.release.cluster", Fence, "="),
        ("fence.proxy.async.shared::cta", Fence, "="),
        ("wgmma.fence.sync.aligned", Fence, "="),
        ("wgmma.commit_group.sync.aligned", GroupCommit, "="),
        ("cp.async.bulk.commit_group", BulkCommit, "="),
        ("trap", Trap, "="),
        ("ret", Return, "="),
    ]
};

/// Opcodes whose operands have a shape of their own; how they are read is the decoder's affair.
const SHAPED: &[(&str, Op)] = &[
    ("bra", Op::Branch),
    ("bra.uni", Op::Branch),
    ("bar.sync", Op::Barrier),
    ("bar.arrive", Op::BarrierArrival),
    ("cp.async.ca.shared.global", Op::CopyAsync),
    ("cp.async.cg.shared.global", Op::CopyAsync),
    ("cp.async.commit_group", Op::CopyCommit),
    ("cp.async.wait_group", Op::CopyWait),
    ("shfl.sync.bfly.b32", Op::Shuffle(Shuffle::Butterfly)),
    ("shfl.sync.idx.b32", Op::Shuffle(Shuffle::Index)),
    ("shfl.sync.up.b32", Op::Shuffle(Shuffle::Up)),
    ("shfl.sync.down.b32", Op::Shuffle(Shuffle::Down)),
    (
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
        Op::MultiplyMatrices,
    ),
    ("ldmatrix.sync.aligned.m8n8.x2.shared.b16", matrix(2, false)),
    ("ldmatrix.sync.aligned.m8n8.x4.shared.b16", matrix(4, false)),
    (
        "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16",
        matrix(2, true),
    ),
    (
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16",
        matrix(4, true),
    ),
];

/// Instructions of sm_90a.
const HOPPER: &[(&str, Op)] = &[
    ("mbarrier.init.shared::cta.b64", Op::BarrierInit),
    ("mbarrier.inval.shared::cta.b64", Op::BarrierInvalidate),
    (
        "mbarrier.arrive.release.cta.shared::cta.b64",
        Op::BarrierCount,
    ),
    (
        "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64",
        Op::BarrierCount,
    ),
    (
        "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64",
        Op::BarrierTest,
    ),
    (
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes",
        Op::TensorLoad,
    ),
    (
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes",
        Op::TensorLoad,
    ),
    (
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes",
        Op::TensorLoad,
    ),
    (
        "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group",
        Op::TensorStore,
    ),
    ("cp.async.bulk.wait_group", Op::BulkWait),
    ("cp.async.bulk.wait_group.read", Op::BulkWait),
    ("wgmma.wait_group.sync.aligned", Op::GroupWait),
    (
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16",
        Op::GroupMultiply { columns: 8 },
    ),
    (
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16",
        Op::GroupMultiply { columns: 64 },
    ),
    (
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16",
        Op::GroupMultiply { columns: 128 },
    ),
    (
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16",
        Op::GroupMultiply { columns: 256 },
    ),
    ("setmaxnreg.inc.sync.aligned.u32", Op::SetRegisters),
    ("setmaxnreg.dec.sync.aligned.u32", Op::SetRegisters),
    ("elect.sync", Op::Elect),
    (
        "stmatrix.sync.aligned.m8n8.x4.shared.b16",
        Op::StoreMatrix {
            is_transposed: false,
        },
    ),
    (
        "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16",
        Op::StoreMatrix {
            is_transposed: true,
        },
    ),
];

const fn matrix(count: u8, is_transposed: bool) -> Op {
    Op::LoadMatrix {
        count,
        is_transposed,
    }
}

/// What an opcode does and, where its operands are plain registers, where they live; `None` for a form that the machine does
/// not execute.
pub fn find(opcode: &str) -> Option<(Op, Option<&'static str>)> {
    if let Some((_, op, places)) = FORMS.iter().find(|(name, ..)| *name == opcode) {
        return Some((*op, Some(places)));
    }
    let mut shaped = SHAPED.iter().chain(HOPPER);
    if let Some((_, op)) = shaped.find(|(name, _)| *name == opcode) {
        return Some((*op, None));
    }
    comparison(opcode)
        .map(|(op, places)| (op, Some(places)))
        .or_else(|| Some((access(opcode)?, None)))
}

/// `setp.<relation>.<type>`.
fn comparison(opcode: &str) -> Option<(Op, &'static str)> {
    use Relation::*;
    let (relation, ty) = opcode.strip_prefix("setp.")?.split_once('.')?;
    let (compared, places) = match ty {
        "s16" | "b16" => (Compared::S16, "p=hh"),
        "u16" => (Compared::U16, "p=hh"),
        "s32" | "b32" => (Compared::S32, "p=ww"),
        "u32" => (Compared::U32, "p=ww"),
        "s64" | "b64" => (Compared::S64, "p=dd"),
        "u64" => (Compared::U64, "p=dd"),
        "f32" => (Compared::F32, "p=ww"),
        "f64" => (Compared::F64, "p=dd"),
        _ => return None,
    };
    let relation = match relation {
        "eq" => Equal,
        "ne" => NotEqual,
        "lt" => Less,
        "le" => LessEqual,
        "gt" => Greater,
        "ge" => GreaterEqual,
        "equ" => EqualOrNan,
        "neu" => NotEqualOrNan,
        "ltu" => LessOrNan,
        "leu" => LessEqualOrNan,
        "gtu" => GreaterOrNan,
        "geu" => GreaterEqualOrNan,
        "nan" => IsNan,
        "num" => IsNumber,
        _ => return None,
    };
    let is_float = matches!(compared, Compared::F32 | Compared::F64);
    let asks_for_nan = !matches!(
        relation,
        Equal | NotEqual | Less | LessEqual | Greater | GreaterEqual
    );
    (is_float || !asks_for_nan).then_some((Op::Compare(relation, compared), places))
}

/// `ld.<space>[.nc|.cs|.L1::no_allocate][.v2|.v4].<type>` and `st`.
fn access(opcode: &str) -> Option<Op> {
    let mut words = opcode.split('.');
    let is_load = match words.next()? {
        "ld" => true,
        "st" => false,
        _ => return None,
    };
    let space = match words.next()? {
        "global" => Space::Global,
        "shared" => Space::Shared,
        _ => return None,
    };
    let (mut count, mut bytes) = (1, 0);
    for word in words {
        match word {
            // A read-only load and a streaming access read and write the same bytes as others.
            "nc" | "cs" | "L1::no_allocate" if space == Space::Global && bytes == 0 => {}
            "v2" if bytes == 0 => count = 2,
            "v4" if bytes == 0 => count = 4,
            "u8" | "b8" if bytes == 0 => bytes = 1,
            "u16" | "b16" if bytes == 0 => bytes = 2,
            "u32" | "s32" | "b32" | "f32" if bytes == 0 => bytes = 4,
            "u64" | "s64" | "b64" | "f64" if bytes == 0 => bytes = 8,
            _ => return None,
        }
    }
    if bytes == 0 || count * bytes > 16 {
        return None;
    }
    Some(if is_load {
        Op::Load {
            space,
            bytes,
            count,
        }
    } else {
        Op::Store {
            space,
            bytes,
            count,
        }
    })
}

/// What part of a multiprocessor an instruction occupies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Moves between registers, which an assembler mostly renames away.
    Move,
    /// Arithmetic of f32, and conversions to bf16.
    Float,
    /// Arithmetic of f64.
    Double,
    /// Integers, predicates and comparisons.
    Integer,
    /// Exponentials, reciprocals, roots and divisions: the special function unit.
    Special,
    /// Products on the tensor cores.
    Tensor,
    /// Accesses to shared memory.
    Shared,
    /// Accesses to global memory.
    Global,
    /// Asynchronous copies.
    Copy,
    /// Exchanges within a warp.
    Exchange,
    /// Barriers and waits.
    Barrier,
    /// Branches and returns.
    Branch,
}

impl Op {
    /// The part of a multiprocessor that it occupies.
    pub fn class(self) -> Class {
        use Op::*;
        match self {
            Move32 | Move16 | Move64 | MoveP | Narrow | Nothing | Pack16 | Unpack16 | Pack32
            | Unpack32 => Class::Move,
            AddF32 | AddZeroF32 | SubF32 | MulF32 | FmaF32 | FmaDownF32 | AbsF32 | NegF32
            | MinF32 | MaxF32 | CopySignF32 | F32ToBf16 | F32PairToBf16 | Saturate => Class::Float,
            DivF32 | SqrtF32 | RcpF32 | RcpApproximateF32 | Exp2ApproximateF32 | S32ToF32
            | U32ToF32 | F32Nearest | F32Truncated | F32ToS32 | F32NearestToS32 => Class::Special,
            AddF64 | SubF64 | MulF64 | FmaF64 | DivF64 | SqrtF64 | AbsF64 | NegF64 | MinF64
            | MaxF64 | F32ToF64 | F64ToF32 | S32ToF64 | S64ToF64 | F64Nearest | F32ToU64 => {
                Class::Double
            }
            MultiplyMatrices | GroupMultiply { .. } => Class::Tensor,
            LoadMatrix { .. } | StoreMatrix { .. } => Class::Shared,
            Load { space, .. } | Store { space, .. } => match space {
                Space::Shared => Class::Shared,
                Space::Global => Class::Global,
            },
            CopyAsync | TensorLoad | TensorStore => Class::Copy,
            BarrierInit | BarrierInvalidate | BarrierCount | BarrierTest | BulkCommit
            | BulkWait | Fence | GroupCommit | GroupWait | SetRegisters => Class::Barrier,
            CopyCommit | CopyWait | CopyWaitAll | Barrier | BarrierArrival | WarpBarrier => {
                Class::Barrier
            }
            Shuffle(_) | Ballot | Elect | ReduceMinU32 | ReduceMaxU32 | ReduceMinS32
            | ReduceMaxS32 => Class::Exchange,
            Branch | Return | Trap => Class::Branch,
            _ => Class::Integer,
        }
    }
}
