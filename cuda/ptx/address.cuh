// Shared-memory addresses. PTX ISA, "Data Movement and Conversion Instructions: cvta".
#pragma once
#include "../kernel.cuh"

// The 32-bit address within the shared window that cp.async and ldmatrix take.
DEVICE uint32_t shared_address(const void* pointer CALLER) {
#ifdef SIMT_EMULATOR
    return simt::address_in_shared(pointer, caller);
#else
    return uint32_t(__cvta_generic_to_shared(pointer));
#endif
}
