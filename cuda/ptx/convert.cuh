// Conversions between f32 and bf16. PTX ISA, "Data Movement and Conversion Instructions: cvt", rounding .rn.
#pragma once
#include "../kernel.cuh"

// Round to nearest, ties to even; every NaN becomes 0x7fff, as the instruction gives it.
DEVICE uint16_t bf16_bits(float value) {
#ifdef SIMT_EMULATOR
    uint32_t bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
#else
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#endif
}

// Two at once: `low` in the lower half.
DEVICE uint32_t bf16_pair_bits(float low, float high) {
#ifdef SIMT_EMULATOR
    return uint32_t(bf16_bits(low)) | uint32_t(bf16_bits(high)) << 16;
#else
    uint32_t bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
#endif
}
