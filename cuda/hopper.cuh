// What kernels of the Hopper tier (files `*_sm90.cu`) have besides kernel.cuh: shared storage whose swizzled tiles begin where TMA
// wants them, and entry points of clusters.
//
//     extern "C" __global__ void __cluster_dims__(2, 1, 1) name(…) { … }      blocks run in clusters of two
//
// The launching side reads the size of clusters from that word; a grid it does not divide is refused.
#pragma once
#include "kernel.cuh"
#include "ptx/hopper/tensor_map.cuh"

#ifndef SIMT_EMULATOR
// In headers of this tier alone, because the alignment holds for every kernel of a file. A base that is not so aligned would give
// other swizzles than the descriptors say, so the kernel stops.
extern __shared__ __align__(1024) unsigned char keel_swizzled_storage[];
#undef SHARED_STORAGE
#define SHARED_STORAGE(Storage, name) \
    Storage& name = *reinterpret_cast<Storage*>(keel_swizzled_storage); \
    if (uint32_t(__cvta_generic_to_shared(keel_swizzled_storage)) % 1024) __trap()
#endif
