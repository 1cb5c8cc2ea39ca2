//! Intel's AMX: the instructions, and whether this process may use them.
//!
//! The processor says what it has, and the kernel whether it saves the registers; but a process has to ask for them once, because
//! they make its threads' state 8 KiB larger. Assembly, because the compiler has no stable functions for these instructions. It never
//! keeps anything in their registers itself, so what one block leaves there the next one finds.

use std::fmt;
use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use super::TileUnit;
use super::Tiles;

/// Proof that this process may use AMX with bf16. It comes from [`Amx::find`] alone.
#[derive(Clone, Copy, Debug)]
pub struct Amx(());

/// Why there is no AMX to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAmx {
    /// The processor, or the system that runs on it, has none.
    Absent,
    /// Its tiles have other sizes.
    OtherTiles,
    /// The kernel denies its registers, with this error number.
    Denied(i32),
}

impl fmt::Display for NoAmx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoAmx::Absent => write!(f, "this processor has no AMX for bf16"),
            NoAmx::OtherTiles => write!(f, "this processor's AMX has tiles of another size"),
            NoAmx::Denied(error) => write!(f, "the kernel denies AMX (error {error})"),
        }
    }
}

/// Palette 1 of the tiles as CPUID describes it (leaf 1DH): bytes of all tiles, of one, and of a row; tiles, and rows of one.
pub const PALETTE: [u32; 5] = [8192, 1024, 64, 8, 16];

/// What processor and kernel say of AMX before it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Whether the processor has the instructions for tiles and for their products of bf16.
    pub has_instructions: bool,
    /// Whether the kernel saves their registers.
    pub has_state: bool,
    /// What [`PALETTE`] describes.
    pub palette: [u32; 5],
}

/// Whether AMX can be used where these are the facts, and the kernel answers like this when it is asked for the registers: with
/// nothing, or with an error number. It is asked only where the facts allow it.
///
/// # Errors
/// [`NoAmx`].
pub fn admit(facts: Facts, ask: impl FnOnce() -> Result<(), i32>) -> Result<(), NoAmx> {
    if !(facts.has_instructions && facts.has_state) {
        return Err(NoAmx::Absent);
    }
    if facts.palette != PALETTE {
        return Err(NoAmx::OtherTiles);
    }
    ask().map_err(NoAmx::Denied)
}

impl Amx {
    /// AMX, if this process may use it. The kernel is asked the first time, for the whole process and whatever threads it will have.
    ///
    /// # Errors
    /// [`NoAmx`].
    pub fn find() -> Result<Amx, NoAmx> {
        static FOUND: OnceLock<Result<(), NoAmx>> = OnceLock::new();
        FOUND
            .get_or_init(|| admit(Facts::of_this_machine(), Amx::ask_kernel))
            .map(|()| Amx(()))
    }

    /// Asks the kernel for the registers.
    ///
    /// # Errors
    /// The kernel's error number, or that of a missing call where there is no such kernel.
    pub fn ask_kernel() -> Result<(), i32> {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        {
            /// `ARCH_REQ_XCOMP_PERM` of Linux 5.16.
            const REQUEST: libc::c_long = 0x1023;
            /// The component of a thread's state that holds tiles: `XFEATURE_XTILEDATA`.
            const TILES: libc::c_long = 18;
            // SAFETY: the call takes numbers and reads or writes none of our memory. That threads' states become larger is
            // the kernel's to bear; it refuses where a thread's stack for signals is too small for it.
            let answer = unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILES) };
            if answer == 0 {
                return Ok(());
            }
            let error = std::io::Error::last_os_error();
            Err(error.raw_os_error().unwrap_or(libc::ENOSYS))
        }
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        {
            /// ENOSYS of most systems.
            const MISSING: i32 = 38;
            Err(MISSING)
        }
    }
}

impl Facts {
    /// Of this machine.
    pub fn of_this_machine() -> Facts {
        #[cfg(target_arch = "x86_64")]
        {
            of_x86()
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            Facts {
                has_instructions: false,
                has_state: false,
                palette: [0; 5],
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn of_x86() -> Facts {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

    /// AMX-BF16 and AMX-TILE in EDX of leaf 7.
    const INSTRUCTIONS: u32 = 1 << 22 | 1 << 24;
    /// Configuration and data of tiles in XCR0.
    const STATE: u64 = 1 << 17 | 1 << 18;
    let highest = __cpuid(0).eax;
    let has_instructions =
        highest >= 0x1d && __cpuid_count(7, 0).edx & INSTRUCTIONS == INSTRUCTIONS;
    if !has_instructions {
        return Facts {
            has_instructions,
            has_state: false,
            palette: [0; 5],
        };
    }
    // SAFETY: a processor with AMX has XGETBV, and where detection of AVX-512 says so, the kernel has switched it on.
    let state = is_x86_feature_detected!("avx512f").then(|| unsafe { _xgetbv(0) });
    let palette = __cpuid_count(0x1d, 1);
    let (low, high) = (|x: u32| x & 0xffff, |x: u32| x >> 16);
    Facts {
        has_instructions,
        has_state: state.is_some_and(|state| state & STATE == STATE),
        palette: [
            low(palette.eax),
            high(palette.eax),
            low(palette.ebx),
            high(palette.ebx),
            low(palette.ecx),
        ],
    }
}

/// Where there is no AMX, none is found, and none is taken: its model stands for it.
#[cfg(not(target_arch = "x86_64"))]
impl Tiles for Amx {
    type Unit = <super::Model as Tiles>::Unit;

    fn take(self) -> Self::Unit {
        super::Model.take()
    }
}

#[cfg(target_arch = "x86_64")]
pub use of_amx::encodings;

#[cfg(target_arch = "x86_64")]
mod of_amx {
    use std::arch::asm;

    use super::super::Taken;
    use super::{Amx, TileUnit, Tiles};
    use crate::simd::Simd;

    /// What `ldtilecfg` reads: the palette, and for each register the bytes of a row and the rows.
    #[repr(C, align(64))]
    struct Configuration {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    /// Eight full registers, whatever is multiplied: what is smaller is filled up with zeros, which is cheaper than to configure anew.
    static FULL: Configuration = Configuration {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
        rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
    };

    /// The instructions; memory and the bytes from row to row are in registers with these names.
    macro_rules! instruction {
        (configure $memory:literal) => {
            concat!("ldtilecfg [", $memory, "]")
        };
        (release) => {
            "tilerelease"
        };
        (zero) => {
            "tilezero tmm{tile}"
        };
        (load $memory:literal $stride:literal) => {
            concat!("tileloadd tmm{tile}, [", $memory, " + ", $stride, "*1]")
        };
        (store $memory:literal $stride:literal) => {
            concat!("tilestored [", $memory, " + ", $stride, "*1], tmm{tile}")
        };
        (multiply) => {
            "tdpbf16ps tmm{sum}, tmm{left}, tmm{right}"
        };
    }

    /// An instruction that writes the register `$tile` and says so: the name of a register that is written must be spelled out.
    macro_rules! writing {
        ($tile:ident, $($block:tt)*) => {
            match $tile {
                0 => asm!($($block)*, out("tmm0") _, options(nostack, preserves_flags)),
                1 => asm!($($block)*, out("tmm1") _, options(nostack, preserves_flags)),
                2 => asm!($($block)*, out("tmm2") _, options(nostack, preserves_flags)),
                3 => asm!($($block)*, out("tmm3") _, options(nostack, preserves_flags)),
                4 => asm!($($block)*, out("tmm4") _, options(nostack, preserves_flags)),
                5 => asm!($($block)*, out("tmm5") _, options(nostack, preserves_flags)),
                6 => asm!($($block)*, out("tmm6") _, options(nostack, preserves_flags)),
                7 => asm!($($block)*, out("tmm7") _, options(nostack, preserves_flags)),
                tile => unreachable!("register {tile} of eight"),
            }
        };
    }

    /// This thread's registers. They are given back when it is dropped: a thread that holds them costs more to switch.
    pub struct AmxUnit {
        _taken: Taken,
    }

    impl Tiles for Amx {
        type Unit = AmxUnit;

        #[inline(always)]
        fn take(self) -> AmxUnit {
            let taken = Taken::new();
            // SAFETY: `Amx` proves that the process may use the instruction, the configuration is one of palette 1, and no unit of
            // this thread lives whose registers it would clear.
            unsafe {
                asm!(
                    instruction!(configure "{memory}"),
                    memory = in(reg) &raw const FULL,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack, preserves_flags),
                );
            }
            AmxUnit { _taken: taken }
        }
    }

    impl Drop for AmxUnit {
        #[inline(always)]
        fn drop(&mut self) {
            // SAFETY: as for `take`, which made this unit: the thread's only one, until this has run.
            unsafe { asm!(instruction!(release), options(nostack, preserves_flags)) };
        }
    }

    impl TileUnit for AmxUnit {
        #[inline(always)]
        fn zero<const TILE: usize>(&mut self) {
            // SAFETY: the unit proves that its registers are this thread's, and its alone.
            unsafe { writing!(TILE, instruction!(zero), tile = const TILE) }
        }

        #[inline(always)]
        unsafe fn load<const TILE: usize>(&mut self, from: *const f32, stride: usize) {
            // SAFETY: as above; the caller vouches for sixteen rows of 64 bytes.
            unsafe {
                writing!(
                    TILE, instruction!(load "{memory}" "{stride}"), tile = const TILE, memory = in(reg) from,
                    stride = in(reg) size_of::<f32>() * stride
                );
            }
        }

        #[inline(always)]
        unsafe fn store<const TILE: usize>(&self, to: *mut f32, stride: usize) {
            // SAFETY: as above.
            unsafe {
                asm!(
                    instruction!(store "{memory}" "{stride}"),
                    tile = const TILE,
                    memory = in(reg) to,
                    stride = in(reg) size_of::<f32>() * stride,
                    options(nostack, preserves_flags),
                );
            }
        }

        #[inline(always)]
        fn multiply<S: Simd, const SUM: usize, const LEFT: usize, const RIGHT: usize>(
            &mut self,
            _: S,
        ) {
            // SAFETY: as above; registers only.
            unsafe {
                writing!(
                    SUM, instruction!(multiply), sum = const SUM, left = const LEFT, right = const RIGHT
                );
            }
        }
    }

    /// The bytes of an instruction whose memory is at `rax` with rows `rcx` bytes apart, which is jumped over.
    macro_rules! bytes_of {
        ($($block:tt)*) => {{
            let (start, end): (*const u8, *const u8);
            // SAFETY: addresses are taken, and nothing between them is executed; the code of a program is readable.
            unsafe {
                asm!(
                    "lea {start}, [rip + 22f]",
                    "lea {end}, [rip + 33f]",
                    "jmp 33f",
                    "22:",
                    $($block)*,
                    start = out(reg) start,
                    end = out(reg) end,
                    options(nostack, preserves_flags),
                );
                std::slice::from_raw_parts(start, end.offset_from_unsigned(start)).to_vec()
            }
        }};
    }

    /// The instructions as they are assembled, each with its operands in words, for those who hold them to the manual: registers
    /// 3, 4 and 6, memory at `rax` with rows `rcx` bytes apart.
    pub fn encodings() -> [(&'static str, Vec<u8>); 6] {
        [
            (
                "ldtilecfg [rax]",
                bytes_of!(instruction!(configure "rax"), "33:"),
            ),
            ("tilerelease", bytes_of!(instruction!(release), "33:")),
            (
                "tilezero tmm3",
                bytes_of!(instruction!(zero), "33:", tile = const 3),
            ),
            (
                "tileloadd tmm3, [rax + rcx*1]",
                bytes_of!(
                    instruction!(load "rax" "rcx"), "33:", tile = const 3
                ),
            ),
            (
                "tilestored [rax + rcx*1], tmm3",
                bytes_of!(
                    instruction!(store "rax" "rcx"), "33:", tile = const 3
                ),
            ),
            (
                "tdpbf16ps tmm3, tmm4, tmm6",
                bytes_of!(
                    instruction!(multiply), "33:", sum = const 3, left = const 4, right = const 6
                ),
            ),
        ]
    }
}
