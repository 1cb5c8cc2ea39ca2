// Atomic operations on shared and global memory, and fences. None of them orders other accesses between the threads of a
// block; the checker therefore only lets atomics meet atomics.
#include "runtime.h"

namespace simt {

static void check_target(const void* target, Location at) {
    Fiber& me = *running();
    const Block& block = *me.block;
    ptrdiff_t offset = static_cast<const char*>(target) - block.arena;
    if (offset >= 0 && offset < ptrdiff_t(kArenaBytes)) {
        shared_range(uint32_t(offset), 4, 4, "an atomic", at);
        if constexpr (kChecked) checker::atomic(me, uint32_t(offset), 4, at);
    } else {
        check_global(target, 4, 4, true, at);
    }
}

uint32_t atomic_add(uint32_t* target, uint32_t value, Location at) {
    check_target(target, at);
    return __atomic_fetch_add(target, value, __ATOMIC_RELAXED);
}

float atomic_add(float* target, float value, Location at) {
    check_target(target, at);
    uint32_t* bits = reinterpret_cast<uint32_t*>(target);
    uint32_t seen = __atomic_load_n(bits, __ATOMIC_RELAXED);
    for (;;) {
        uint32_t sum = uint32_t(to_bits(from_bits<float>(seen) + value));
        if (__atomic_compare_exchange_n(bits, &seen, sum, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            return from_bits<float>(seen);
    }
}

uint32_t atomic_max(uint32_t* target, uint32_t value, Location at) {
    check_target(target, at);
    uint32_t seen = __atomic_load_n(target, __ATOMIC_RELAXED);
    while (seen < value &&
           !__atomic_compare_exchange_n(target, &seen, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return seen;
}

uint32_t atomic_exchange(uint32_t* target, uint32_t value, Location at) {
    check_target(target, at);
    return __atomic_exchange_n(target, value, __ATOMIC_RELAXED);
}

void fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

}  // namespace simt
