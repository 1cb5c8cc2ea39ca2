// Approximate functions of the special function unit. The emulator computes them exactly rounded, so tolerances must
// come from the error stated here, never from what the emulator shows.
#pragma once
#include "../kernel.cuh"

constexpr float kLog2E = 1.4426950408889634f;  // log2 e

// 1/x with an error of at most one unit in the last place; 0 for an infinite x.
// PTX ISA, "Floating Point Instructions: rcp.approx.ftz.f32".
DEVICE float reciprocal_approximate(float x) {
#ifdef SIMT_EMULATOR
    return 1.0f / x;
#else
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#endif
}

// 2^x with a relative error of at most 2^-22; 2^-inf = 0. PTX ISA, "Floating Point Instructions: ex2.approx.ftz.f32".
DEVICE float exp2_approximate(float x) {
#ifdef SIMT_EMULATOR
    return exp2f(x);
#else
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#endif
}
