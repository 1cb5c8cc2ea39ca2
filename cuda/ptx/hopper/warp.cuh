// What a warp does together: the choice of one lane, and the mirror of ldmatrix. PTX ISA, "elect.sync", "stmatrix".
#pragma once
#include "tensor_map.cuh"

// True in one lane of the warp, always the same. All 32 lanes take part.
DEVICE bool elect_one(CALLER_ONLY) {
#ifdef SIMT_EMULATOR
    return simt::elect_one(kAllLanes, caller);
#else
    uint32_t is_elected;
    asm volatile(
        "{\n"
        ".reg .pred is_elected;\n"
        "elect.sync _|is_elected, 0xffffffff;\n"
        "selp.u32 %0, 1, 0, is_elected;\n"
        "}"
        : "=r"(is_elected));
    return is_elected != 0;
#endif
}

// Four 8×8 tiles of 16-bit elements to shared memory. Lanes 8q..8q+7 give the addresses of the eight rows of matrix q, each row
// 16 bytes, aligned to 16. Lane 4g+t gives elements (g, 2t) and (g, 2t+1) of each matrix. All 32 lanes take part.
DEVICE void stmatrix_x4(uint32_t row_address, const uint32_t (&registers)[4] CALLER) {
#ifdef SIMT_EMULATOR
    simt::store_matrices(registers, 4, false, row_address, caller);
#else
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row_address), "r"(registers[0]),
                 "r"(registers[1]), "r"(registers[2]), "r"(registers[3])
                 : "memory");
#endif
}

// As stmatrix_x4, but lane 4g+t gives elements (2t, g) and (2t+1, g).
DEVICE void stmatrix_x4_transposed(uint32_t row_address, const uint32_t (&registers)[4] CALLER) {
#ifdef SIMT_EMULATOR
    simt::store_matrices(registers, 4, true, row_address, caller);
#else
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row_address),
                 "r"(registers[0]), "r"(registers[1]), "r"(registers[2]), "r"(registers[3])
                 : "memory");
#endif
}
