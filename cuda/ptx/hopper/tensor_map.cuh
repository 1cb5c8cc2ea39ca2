// The tensor map, a kernel's parameter. PTX ISA, "Tensors: Tensor-map".
// An entry point takes it as `const __grid_constant__ TensorMap map` and hands on its address: a copy in local memory is not
// where TMA, the Tensor Memory Accelerator, looks for it.
#pragma once
#include "../../kernel.cuh"

#ifdef SIMT_EMULATOR
#include "../../simt/hopper.h"
#else
struct alignas(64) TensorMap {
    unsigned char bytes[128];
};
#endif
