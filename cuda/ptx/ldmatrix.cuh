// ldmatrix: 8×8 tiles of 16-bit elements from shared memory into the registers a tensor instruction wants.
// PTX ISA, "Warp Level Matrix Instructions: ldmatrix". Lanes 8q..8q+7 give the addresses of the eight rows of matrix q,
// each row 16 bytes, aligned to 16. Lane 4g+t receives elements (g, 2t) and (g, 2t+1) of each matrix, or with
// `_transposed` elements (2t, g) and (2t+1, g). All 32 lanes take part.
#pragma once
#include "address.cuh"

DEVICE void ldmatrix_x4(uint32_t (&registers)[4], uint32_t row_address CALLER) {
#ifdef SIMT_EMULATOR
    simt::load_matrices(registers, 4, false, row_address, caller);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(row_address)
                 : "memory");
#endif
}

DEVICE void ldmatrix_x4_transposed(uint32_t (&registers)[4], uint32_t row_address CALLER) {
#ifdef SIMT_EMULATOR
    simt::load_matrices(registers, 4, true, row_address, caller);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(row_address)
                 : "memory");
#endif
}

DEVICE void ldmatrix_x2(uint32_t (&registers)[2], uint32_t row_address CALLER) {
#ifdef SIMT_EMULATOR
    simt::load_matrices(registers, 2, false, row_address, caller);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(registers[0]), "=r"(registers[1])
                 : "r"(row_address)
                 : "memory");
#endif
}

DEVICE void ldmatrix_x2_transposed(uint32_t (&registers)[2], uint32_t row_address CALLER) {
#ifdef SIMT_EMULATOR
    simt::load_matrices(registers, 2, true, row_address, caller);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(registers[0]), "=r"(registers[1])
                 : "r"(row_address)
                 : "memory");
#endif
}
