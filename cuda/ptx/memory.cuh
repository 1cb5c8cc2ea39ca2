// 128-bit global accesses with a cache hint. PTX ISA, "Data Movement and Conversion Instructions: ld, st".
// Addresses are aligned to 16 bytes.
#pragma once
#include "../kernel.cuh"

// Reads what this kernel reads once and nobody writes: past the first-level cache.
DEVICE uint4 load_streaming_16(const void* from CALLER) {
#ifdef SIMT_EMULATOR
    simt::check_global(from, 16, 16, false, caller);
    uint4 value;
    memcpy(&value, from, 16);
    return value;
#else
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from));
    return value;
#endif
}

// Writes what this kernel does not read again.
DEVICE void store_streaming_16(void* to, uint4 value CALLER) {
#ifdef SIMT_EMULATOR
    simt::check_global(to, 16, 16, true, caller);
    memcpy(to, &value, 16);
#else
    asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
                 : "memory");
#endif
}
