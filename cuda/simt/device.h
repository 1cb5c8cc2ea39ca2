// The emulator as a kernel sees it: CUDA's keywords, built-in variables and intrinsics for the host C++ compiler.
// It includes nothing heavy, because every kernel pays for it; the machinery behind it is in runtime.h.
// Every call that can block or fail takes the caller's source line, so that reports name the kernel's line.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "abi.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

struct uint3 { uint32_t x, y, z; };
struct dim3 { uint32_t x, y, z; };
struct alignas(8) uint2 { uint32_t x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace simt {

// A place in a kernel's source.
struct Location {
    const char* file;
    int line;
    static constexpr Location here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
};

// What a thread knows about itself.
struct Self {
    uint3 thread, block;
    dim3 block_size, grid_size;
    uint32_t planted_bug;
};
// The running thread; null outside kernels. One fiber never moves to another host thread, so a compiler may cache it.
extern __thread Self* current __attribute__((tls_model("initial-exec")));

[[noreturn]] void fail(Location at, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Block barriers (`count` 0: every thread of the block) and the warp's own.
void barrier_sync(uint32_t barrier, uint32_t count, Location at);
void barrier_arrive(uint32_t barrier, uint32_t count, Location at);
void warp_sync(uint32_t mask, Location at);

enum class Shuffle : uint32_t { Index, Up, Down, Xor };
uint64_t shuffle(uint32_t mask, uint64_t value, Shuffle kind, int argument, int width, Location at);
enum class Vote : uint32_t { Any, All, Ballot, Match, Add, Min, Max };
uint32_t vote(uint32_t mask, uint32_t value, Vote kind, Location at);

// The block's shared storage; fails when the launch gave fewer than `bytes`.
void* shared_storage(size_t bytes, Location at);
uint32_t address_in_shared(const void* pointer, Location at);

void copy_async(uint32_t to, const void* from, uint32_t bytes, uint32_t source_bytes, Location at);
void copy_async_commit(Location at);
void copy_async_wait(uint32_t open_groups, Location at);
void copy_async_wait_all(Location at);

void load_matrices(uint32_t* registers, uint32_t count, bool transposed, uint32_t row_address, Location at);
void multiply_bf16_16x8x16(float* d, const uint32_t* a, const uint32_t* b, const float* c, Location at);

// Fails unless `bytes` at `pointer` are global memory of this launch, aligned to `alignment`.
void check_global(const void* pointer, uint32_t bytes, uint32_t alignment, bool write, Location at);

// Ordinary vector accesses: the host would do a misaligned one, the GPU does not.
inline void require_aligned(const void* pointer, uint32_t alignment, Location at) {
    if (uintptr_t(pointer) % alignment) fail(at, "address %p is not aligned to %u bytes", pointer, alignment);
}

uint32_t atomic_add(uint32_t* target, uint32_t value, Location at);
float atomic_add(float* target, float value, Location at);
uint32_t atomic_max(uint32_t* target, uint32_t value, Location at);
uint32_t atomic_exchange(uint32_t* target, uint32_t value, Location at);
void fence();

// FNV-1a, the code by which a planted bug is switched on.
constexpr uint32_t planted_bug_code(const char* name) {
    uint32_t hash = 2166136261u;
    for (; *name; ++name) hash = (hash ^ uint8_t(*name)) * 16777619u;
    return hash;
}
void note_planted_bug();
inline bool is_planted(uint32_t code) {
    if (__builtin_expect(current->planted_bug != code, 1)) return false;
    note_planted_bug();
    return true;
}

template <class T>
inline uint64_t to_bits(T value) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most eight bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    return bits;
}
template <class T>
inline T from_bits(uint64_t bits) {
    T value;
    memcpy(&value, &bits, sizeof(T));
    return value;
}

inline float reciprocal_square_root(float x) { return 1.0f / sqrtf(x); }

// ---- Kernel descriptions, derived from the entry point's own signature ----

template <class T> struct ElementOf { static constexpr uint8_t value = KEEL_ELEMENT_NONE; };
template <> struct ElementOf<float> { static constexpr uint8_t value = KEEL_ELEMENT_F32; };
template <> struct ElementOf<int32_t> { static constexpr uint8_t value = KEEL_ELEMENT_I32; };
template <> struct ElementOf<uint32_t> { static constexpr uint8_t value = KEEL_ELEMENT_U32; };
template <> struct ElementOf<uint8_t> { static constexpr uint8_t value = KEEL_ELEMENT_U8; };
template <> struct ElementOf<uint64_t> { static constexpr uint8_t value = KEEL_ELEMENT_U64; };

template <class T> struct ParameterOf {
    static constexpr KeelParameter value{KEEL_PARAMETER_STRUCT, KEEL_ELEMENT_NONE, 0, uint8_t(sizeof(T))};
};
template <class T> struct ParameterOf<T*> {
    static constexpr KeelParameter value{KEEL_PARAMETER_POINTER, ElementOf<T>::value, 0, 8};
};
template <class T> struct ParameterOf<const T*> {
    static constexpr KeelParameter value{KEEL_PARAMETER_POINTER, ElementOf<T>::value, 1, 8};
};
#define SIMT_SCALAR_PARAMETER(Type, Kind) \
    template <> struct ParameterOf<Type> { \
        static constexpr KeelParameter value{Kind, KEEL_ELEMENT_NONE, 0, uint8_t(sizeof(Type))}; \
    }
SIMT_SCALAR_PARAMETER(int32_t, KEEL_PARAMETER_SIGNED);
SIMT_SCALAR_PARAMETER(int64_t, KEEL_PARAMETER_SIGNED);
SIMT_SCALAR_PARAMETER(uint32_t, KEEL_PARAMETER_UNSIGNED);
SIMT_SCALAR_PARAMETER(uint64_t, KEEL_PARAMETER_UNSIGNED);
SIMT_SCALAR_PARAMETER(float, KEEL_PARAMETER_FLOAT);
#undef SIMT_SCALAR_PARAMETER

template <size_t... I> struct Indices {};
template <size_t N, size_t... I> struct IndicesTo : IndicesTo<N - 1, N - 1, I...> {};
template <size_t... I> struct IndicesTo<0, I...> { using Type = Indices<I...>; };

template <class... A, size_t... I>
inline void call(void (*entry)(A...), void** arguments, Indices<I...>) {
    entry(*static_cast<A*>(arguments[I])...);
}
template <class... A>
inline void call(void (*entry)(A...), void** arguments) {
    call(entry, arguments, typename IndicesTo<sizeof...(A)>::Type{});
}

template <class Entry> struct SignatureOf;
template <class... A> struct SignatureOf<void (*)(A...)> {
    static constexpr uint32_t count = sizeof...(A);
    static constexpr KeelParameter parameters[sizeof...(A) + 1] = {ParameterOf<A>::value..., {}};
};

struct NoSharedStorage {};
template <class Storage = NoSharedStorage> struct SharedStorageOf {
    static constexpr uint32_t bytes = sizeof(Storage);
    static constexpr uint32_t alignment = alignof(Storage) < 16 ? 16 : alignof(Storage);
};
template <> struct SharedStorageOf<NoSharedStorage> {
    static constexpr uint32_t bytes = 0;
    static constexpr uint32_t alignment = 16;
};

}  // namespace simt

#define threadIdx (::simt::current->thread)
#define blockIdx (::simt::current->block)
#define blockDim (::simt::current->block_size)
#define gridDim (::simt::current->grid_size)

#define SIMT_CALLER ::simt::Location caller = ::simt::Location::here()

inline void __syncthreads(SIMT_CALLER) { simt::barrier_sync(0, 0, caller); }
inline void __syncwarp(uint32_t mask = ~0u, SIMT_CALLER) { simt::warp_sync(mask, caller); }
template <class T>
inline T __shfl_sync(uint32_t mask, T value, int lane, int width = 32, SIMT_CALLER) {
    return simt::from_bits<T>(simt::shuffle(mask, simt::to_bits(value), simt::Shuffle::Index, lane, width, caller));
}
template <class T>
inline T __shfl_up_sync(uint32_t mask, T value, int delta, int width = 32, SIMT_CALLER) {
    return simt::from_bits<T>(simt::shuffle(mask, simt::to_bits(value), simt::Shuffle::Up, delta, width, caller));
}
template <class T>
inline T __shfl_down_sync(uint32_t mask, T value, int delta, int width = 32, SIMT_CALLER) {
    return simt::from_bits<T>(simt::shuffle(mask, simt::to_bits(value), simt::Shuffle::Down, delta, width, caller));
}
template <class T>
inline T __shfl_xor_sync(uint32_t mask, T value, int lanes, int width = 32, SIMT_CALLER) {
    return simt::from_bits<T>(simt::shuffle(mask, simt::to_bits(value), simt::Shuffle::Xor, lanes, width, caller));
}
inline int __any_sync(uint32_t mask, int predicate, SIMT_CALLER) {
    return int(simt::vote(mask, predicate != 0, simt::Vote::Any, caller));
}
inline int __all_sync(uint32_t mask, int predicate, SIMT_CALLER) {
    return int(simt::vote(mask, predicate != 0, simt::Vote::All, caller));
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate, SIMT_CALLER) {
    return simt::vote(mask, predicate != 0, simt::Vote::Ballot, caller);
}
inline uint32_t __match_any_sync(uint32_t mask, uint32_t value, SIMT_CALLER) {
    return simt::vote(mask, value, simt::Vote::Match, caller);
}
inline uint32_t __reduce_add_sync(uint32_t mask, uint32_t value, SIMT_CALLER) {
    return simt::vote(mask, value, simt::Vote::Add, caller);
}
inline uint32_t __reduce_min_sync(uint32_t mask, uint32_t value, SIMT_CALLER) {
    return simt::vote(mask, value, simt::Vote::Min, caller);
}
inline uint32_t __reduce_max_sync(uint32_t mask, uint32_t value, SIMT_CALLER) {
    return simt::vote(mask, value, simt::Vote::Max, caller);
}

// Integer atomics only by design of the product; the float one exists so that the zoo can show what is wrong with it.
inline uint32_t atomicAdd(uint32_t* target, uint32_t value, SIMT_CALLER) {
    return simt::atomic_add(target, value, caller);
}
inline int atomicAdd(int* target, int value, SIMT_CALLER) {
    return int(simt::atomic_add(reinterpret_cast<uint32_t*>(target), uint32_t(value), caller));
}
inline float atomicAdd(float* target, float value, SIMT_CALLER) { return simt::atomic_add(target, value, caller); }
inline uint32_t atomicMax(uint32_t* target, uint32_t value, SIMT_CALLER) {
    return simt::atomic_max(target, value, caller);
}
inline uint32_t atomicExch(uint32_t* target, uint32_t value, SIMT_CALLER) {
    return simt::atomic_exchange(target, value, caller);
}
inline void __threadfence() { simt::fence(); }
inline void __threadfence_block() { simt::fence(); }

inline uint32_t __float_as_uint(float value) { return uint32_t(simt::to_bits(value)); }
inline float __uint_as_float(uint32_t bits) { return simt::from_bits<float>(bits); }
inline double __longlong_as_double(int64_t bits) { return simt::from_bits<double>(uint64_t(bits)); }
// sin and cos of π·x.
inline void sincospif(float x, float* sine, float* cosine) {
    const double angle = 3.14159265358979323846 * double(x);
    *sine = float(sin(angle));
    *cosine = float(cos(angle));
}
inline int __popc(uint32_t value) { return __builtin_popcount(value); }
inline int __clz(int value) { return value ? __builtin_clz(uint32_t(value)) : 32; }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
template <class T>
inline T __ldg(const T* pointer) { return *pointer; }
template <class T>
inline T min(T a, T b) { return b < a ? b : a; }
template <class T>
inline T max(T a, T b) { return a < b ? b : a; }
// A macro, because some C libraries declare a function of this name.
#define rsqrtf ::simt::reciprocal_square_root
