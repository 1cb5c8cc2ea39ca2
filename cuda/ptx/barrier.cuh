// Named block barriers. PTX ISA, "Parallel Synchronization and Communication Instructions: bar, barrier".
#pragma once
#include "../kernel.cuh"

// Waits until `threads` threads of the block (a multiple of 32) have come to barrier `barrier` (1..15; 0 belongs to
// __syncthreads). Orders the memory of those that arrive before those that wait.
DEVICE void barrier_sync(uint32_t barrier, uint32_t threads CALLER) {
#ifdef SIMT_EMULATOR
    simt::barrier_sync(barrier, threads, caller);
#else
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
#endif
}

// Counts this thread at the barrier and goes on.
DEVICE void barrier_arrive(uint32_t barrier, uint32_t threads CALLER) {
#ifdef SIMT_EMULATOR
    simt::barrier_arrive(barrier, threads, caller);
#else
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
#endif
}
