// The tensor product of the portable tier. PTX ISA, "Warp Level Matrix Instructions: mma", shape m16n8k16, .bf16.
// With g = lane / 4 and t = lane % 4 a lane holds
//   a[0] A(g, 2t..2t+1)   a[1] A(g+8, 2t..2t+1)   a[2] A(g, 2t+8..2t+9)   a[3] A(g+8, 2t+8..2t+9)      A [16,16]
//   b[0] B(2t..2t+1, g)   b[1] B(2t+8..2t+9, g)                                                         B [16,8]
//   d[0] d[1] D(g, 2t..2t+1)   d[2] d[3] D(g+8, 2t..2t+1)                                               D [16,8] f32
// with the element of the lower index in the lower half of a register.
#pragma once
#include "../kernel.cuh"

// d += a · b over the whole warp. All 32 lanes take part. Products are exact; sums are f32.
DEVICE void mma_bf16_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1 CALLER) {
#ifdef SIMT_EMULATOR
    const uint32_t b[2] = {b0, b1};
    simt::multiply_bf16_16x8x16(d, a, b, d, caller);
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}
