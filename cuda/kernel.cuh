// The dialect every kernel of this project is written in: one source, two compilers. nvcc builds it for the GPU; the
// host C++ compiler builds it (with SIMT_EMULATOR defined) against cuda/simt, where every test can run it.
//
// A kernel file includes this header (and others of cuda/), never a CUDA header. It holds templates of DEVICE functions
// and short `extern "C" __global__` entry points, each followed by one KERNEL line, which build.rs lists:
//
//     KERNEL(name, threads)             a kernel of `threads` threads a block, without shared memory (0: any number)
//     KERNEL(name, threads, Storage)    ... with one `Storage` in dynamic shared memory
//
// Shared memory is that one struct: its sizeof is what a launch must ask for, and the emulator poisons and bounds it.
// HOST_CONSTANT int kName = value; is a constexpr that the engine reads as well: build/source.rs hands it on to
// src/engine/launch.rs, so that tile sizes and block sizes are stated once. Its value is made of integers and such
// constants.
// No static __shared__ arrays, no inline PTX outside cuda/ptx, no <<<>>>, no printf, no texture.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef SIMT_EMULATOR
#include "simt/device.h"

#define DEVICE static inline
#define DEVICE_MEMBER inline
#define UNROLL
#define ROLLED
// The trailing parameter by which a wrapper learns its caller's line, and how it hands that on.
#define CALLER , ::simt::Location caller = ::simt::Location::here()
#define CALLER_ONLY ::simt::Location caller = ::simt::Location::here()
#define FOR_CALLER , caller

#define SHARED_STORAGE(Storage, name) \
    Storage& name = *static_cast<Storage*>( \
        ::simt::shared_storage(sizeof(Storage), ::simt::Location{__FILE__, __LINE__}))

#define KERNEL(name, threads, ...) \
    extern "C" { \
    extern const KeelKernel keel_kernel_##name; \
    } \
    const KeelKernel keel_kernel_##name{ \
        #name, \
        ::simt::SignatureOf<decltype(&name)>::parameters, \
        ::simt::SignatureOf<decltype(&name)>::count, \
        threads, \
        ::simt::SharedStorageOf<__VA_ARGS__>::bytes, \
        ::simt::SharedStorageOf<__VA_ARGS__>::alignment, \
        [](void** arguments) { ::simt::call(&name, arguments); }};

// True when a test asks for this bug. Each one is a mistake the emulator must report; under nvcc it is never there.
#define PLANTED_BUG(name) \
    ([] { \
        constexpr uint32_t code = ::simt::planted_bug_code(name); \
        return ::simt::is_planted(code); \
    }())

#else

#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
#define CALLER
#define CALLER_ONLY
#define FOR_CALLER

extern __shared__ __align__(16) unsigned char keel_shared_storage[];
#define SHARED_STORAGE(Storage, name) Storage& name = *reinterpret_cast<Storage*>(keel_shared_storage)

struct NoSharedStorage {};
template <class Storage = NoSharedStorage> struct SharedBytes { static constexpr uint32_t value = sizeof(Storage); };
template <> struct SharedBytes<NoSharedStorage> { static constexpr uint32_t value = 0; };
template <class Entry> struct ParameterCount;
template <class... A> struct ParameterCount<void (*)(A...)> { static constexpr uint32_t value = sizeof...(A); };
// What only the compiler knows of a kernel, in the image, where the CUDA executor finds it: the threads of a block and the
// bytes of shared storage. The number of parameters tells an image that was made of another source than the table.
#define KERNEL(name, threads, ...) \
    extern "C" __constant__ uint32_t keel_block_##name[3] = { \
        threads, SharedBytes<__VA_ARGS__>::value, ParameterCount<decltype(&name)>::value};

#define PLANTED_BUG(name) false
#endif

// Some are read by the engine alone.
#define HOST_CONSTANT [[maybe_unused]] constexpr

HOST_CONSTANT int kWarpLanes = 32;

// Multiprocessors for which work is cut: how often a sum is split, and how many blocks take rows in turn. They are those of
// an H100, and they stay so on chips with fewer or more: a sum's order, and so its bits, follow from its shape alone.
HOST_CONSTANT int kMultiprocessors = 132;

constexpr uint32_t kAllLanes = 0xffffffffu;
