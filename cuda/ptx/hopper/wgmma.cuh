// Products of a warpgroup: 128 threads whose first warp's number is a multiple of four, all together. PTX ISA, "Asynchronous
// Warpgroup Level Matrix Instructions: wgmma". d [64, N] f32 += A [64, 16] · B [16, N], bf16.
//
// B, and A where it is no fragment, lie in shared memory and are told by a descriptor; fragments of A and d are as in
// ../mma.cuh, with rows 16·w.. in warp w of the group, and d's columns 8·i.. in d[4·i] to d[4·i + 3].
//
// A product works on its own from its issue to the wait that covers it. Until then d may be neither read nor written, the fragment
// of A not written, and what the descriptors tell not overwritten: these arrays outlive the wait.
#pragma once
#include "tensor_map.cuh"

// The descriptor of a tile in shared memory that a tensor map with Swizzle::Span128 wrote, from `address` on: atoms of 8 rows of
// 128 bytes, aligned to 1024. PTX ISA, "Matrix Descriptor Format".
//
// A tile [mn][64 k] is K-major: rows of k, atoms of 8 rows of mn follow each other; the next 16 k are 32 bytes further on in
// `address`. A tile [k][64 mn] is MN-major (transposed): rows of mn, atoms of 8 rows of k follow each other, `box_bytes` from one
// box of 64 mn to the next; the next 16 k are 2048 bytes further on.
DEVICE uint64_t tile_descriptor(uint32_t address, uint32_t box_bytes = 16) {
    const uint64_t kAtomBytes = 1024, kSwizzle128 = 1;
    return uint64_t(address >> 4 & 0x3fff) | uint64_t(box_bytes >> 4) << 16 | (kAtomBytes >> 4) << 32 | kSwizzle128 << 62;
}

// Orders this warpgroup's earlier accesses to accumulators and fragments before its next products. Needed before the first
// product, and before one whose registers were accessed since.
DEVICE void wgmma_fence(CALLER_ONLY) {
#ifdef SIMT_EMULATOR
    simt::warpgroup_fence(caller);
#else
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// Behind a wait: keeps a compiler from moving accesses to the accumulators before it, which it may where it sees no more than
// registers.
template <int kRegisters>
DEVICE void settle_accumulators(float (&d)[kRegisters]) {
#ifdef SIMT_EMULATOR
    static_cast<void>(d);
#else
    UNROLL
    for (int i = 0; i < kRegisters; ++i) asm volatile("" : "+f"(d[i])::"memory");
#endif
}

// Closes the group of the products since the last one.
DEVICE void wgmma_commit(CALLER_ONLY) {
#ifdef SIMT_EMULATOR
    simt::warpgroup_commit(caller);
#else
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Waits until at most the `kOpenGroups` youngest groups are unfinished.
template <int kOpenGroups>
DEVICE void wgmma_wait(CALLER_ONLY) {
#ifdef SIMT_EMULATOR
    simt::warpgroup_wait(kOpenGroups, caller);
#else
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kOpenGroups) : "memory");
#endif
}

// The registers a thread of this warpgroup may use from here on: a multiple of 8 from 24 to 256, no more than before.
template <int kRegisters>
DEVICE void decrease_registers(CALLER_ONLY) {
#ifdef SIMT_EMULATOR
    simt::set_registers(kRegisters, false, caller);
#else
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

// As decrease_registers, but no fewer than before; waits until others have given up enough.
template <int kRegisters>
DEVICE void increase_registers(CALLER_ONLY) {
#ifdef SIMT_EMULATOR
    simt::set_registers(kRegisters, true, caller);
#else
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

#ifdef SIMT_EMULATOR
// A by descriptor. `accumulates` false: d = A · B.
template <int N, bool kTransposedA, bool kTransposedB>
DEVICE void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulates CALLER) {
    simt::warpgroup_multiply({d, nullptr, a, b, N, kTransposedA, kTransposedB, accumulates}, caller);
}
// A from registers.
template <int N, bool kTransposedB>
DEVICE void wgmma_fragment(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulates CALLER) {
    simt::warpgroup_multiply({d, a, 0, b, N, false, kTransposedB, accumulates}, caller);
}
#else
// Lists of registers, sixteen a step: inline assembly names every one.
#define WGMMA_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_D16(i) WGMMA_D4(i), WGMMA_D4(i + 4), WGMMA_D4(i + 8), WGMMA_D4(i + 12)
#define WGMMA_D32(i) WGMMA_D16(i), WGMMA_D16(i + 16)
#define WGMMA_D64(i) WGMMA_D32(i), WGMMA_D32(i + 32)
#define WGMMA_D128(i) WGMMA_D64(i), WGMMA_D64(i + 64)

#define WGMMA_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_NAMES_32 WGMMA_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_NAMES_48 WGMMA_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_NAMES_64 WGMMA_NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_NAMES_80 WGMMA_NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define WGMMA_NAMES_96 WGMMA_NAMES_80 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_NAMES_112 WGMMA_NAMES_96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define WGMMA_NAMES_128 WGMMA_NAMES_112 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA_NAMES_4 "%0, %1, %2, %3"

// One shape: `registers` accumulators a thread, and the numbers of the operands behind them in the lists.
#define WGMMA_SHAPE(columns, registers, n0, n1, n2, n3, n4, n5, n6, D) \
    template <bool kTransposedA, bool kTransposedB> \
    DEVICE void wgmma_shape(float (&d)[registers], uint64_t a, uint64_t b, bool accumulates) { \
        asm volatile( \
            "{\n" \
            ".reg .pred accumulates;\n" \
            "setp.ne.b32 accumulates, " n2 ", 0;\n" \
            "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.bf16.bf16 {" WGMMA_NAMES_##registers "}, " n0 ", " n1 \
            ", accumulates, 1, 1, " n3 ", " n4 ";\n" \
            "}" \
            : D(0) \
            : "l"(a), "l"(b), "r"(int(accumulates)), "n"(int(kTransposedA)), "n"(int(kTransposedB))); \
    } \
    template <bool kTransposedB> \
    DEVICE void wgmma_fragment_shape(float (&d)[registers], const uint32_t (&a)[4], uint64_t b, bool accumulates) { \
        asm volatile( \
            "{\n" \
            ".reg .pred accumulates;\n" \
            "setp.ne.b32 accumulates, " n5 ", 0;\n" \
            "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.bf16.bf16 {" WGMMA_NAMES_##registers "}, {" n0 ", " n1 \
            ", " n2 ", " n3 "}, " n4 ", accumulates, 1, 1, " n6 ";\n" \
            "}" \
            : D(0) \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulates)), "n"(int(kTransposedB))); \
    }

WGMMA_SHAPE(8, 4, "%4", "%5", "%6", "%7", "%8", "%9", "%10", WGMMA_D4)
WGMMA_SHAPE(64, 32, "%32", "%33", "%34", "%35", "%36", "%37", "%38", WGMMA_D32)
WGMMA_SHAPE(128, 64, "%64", "%65", "%66", "%67", "%68", "%69", "%70", WGMMA_D64)
WGMMA_SHAPE(256, 128, "%128", "%129", "%130", "%131", "%132", "%133", "%134", WGMMA_D128)
#undef WGMMA_SHAPE

// A by descriptor. `accumulates` false: d = A · B.
template <int N, bool kTransposedA, bool kTransposedB>
DEVICE void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulates) {
    wgmma_shape<kTransposedA, kTransposedB>(d, a, b, accumulates);
}
// A from registers.
template <int N, bool kTransposedB>
DEVICE void wgmma_fragment(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulates) {
    wgmma_fragment_shape<kTransposedB>(d, a, b, accumulates);
}
#endif
