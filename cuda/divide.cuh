// Division by a number that is the same for the whole kernel: two instructions and a shift instead of twenty.
#pragma once
#include "kernel.cuh"

// n / d for 0 <= n < 2^31 and 1 <= d <= 2^31, exactly: the quotient is (⌊n·magic / 2^32⌋ + n) >> shift with 2^shift >= d.
// Source: Granlund and Montgomery 1994, "Division by invariant integers using multiplication", figure 4.1.
struct Divisor {
    uint32_t value, magic, shift;

    DEVICE_MEMBER int quotient(int n) const { return int((__umulhi(uint32_t(n), magic) + uint32_t(n)) >> shift); }
    DEVICE_MEMBER int remainder(int n) const { return n - quotient(n) * int(value); }
};

DEVICE Divisor divisor(int d) {
    const uint32_t shift = d > 1 ? 32 - uint32_t(__clz(d - 1)) : 0;
    const uint64_t magic = (((uint64_t(1) << shift) - uint64_t(d)) << 32) / uint64_t(d) + 1;
    return {uint32_t(d), uint32_t(magic), shift};
}
