// Barriers in shared memory that count arrivals of threads and bytes of copies. PTX ISA, "Parallel Synchronization and
// Communication Instructions: mbarrier". `barrier` is the shared address of eight bytes, aligned to 8.
//
// A barrier is in a phase until all arrivals that it expects and all bytes that they expect have come; then the next phase begins.
// Phases are told apart by their parity alone: the first has parity 0.
#pragma once
#include "../address.cuh"
#include "tensor_map.cuh"

// Makes the eight bytes a barrier of `count` arrivals a phase.
DEVICE void mbarrier_init(uint32_t barrier, uint32_t count CALLER) {
#ifdef SIMT_EMULATOR
    simt::mbarrier_init(barrier, count, caller);
#else
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
#endif
}

// Makes the eight bytes ordinary memory again.
DEVICE void mbarrier_invalidate(uint32_t barrier CALLER) {
#ifdef SIMT_EMULATOR
    simt::mbarrier_invalidate(barrier, caller);
#else
    asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
#endif
}

// Lets TMA and the other blocks of the cluster see the barriers that this thread has made.
DEVICE void fence_barrier_init(CALLER_ONLY) {
#ifdef SIMT_EMULATOR
    simt::fence_barrier_init(caller);
#else
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// Counts this thread; what it did before is seen by those that wait for the phase.
DEVICE void mbarrier_arrive(uint32_t barrier CALLER) {
#ifdef SIMT_EMULATOR
    simt::mbarrier_arrive(barrier, caller);
#else
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
#endif
}

// As mbarrier_arrive, and the phase ends only when `bytes` more bytes of copies have come.
DEVICE void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes CALLER) {
#ifdef SIMT_EMULATOR
    simt::mbarrier_arrive_expect(barrier, bytes, caller);
#else
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
#endif
}

// Counts this thread at a barrier of another block of the cluster: `mapped` is what map_peer made of its address. It says
// that memory may be reused: those that wait there may ask for copies onto what this thread has read. Its ordinary writes they
// need not see, as mbarrier_wait acquires from its own block alone; those are seen past cluster_arrive and cluster_wait.
DEVICE void mbarrier_arrive_remote(uint32_t mapped CALLER) {
#ifdef SIMT_EMULATOR
    simt::mbarrier_arrive_remote(mapped, caller);
#else
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(mapped) : "memory");
#endif
}

// Waits until the phase of this parity has ended. A fresh barrier lets those pass that wait for parity 1.
DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity CALLER) {
#ifdef SIMT_EMULATOR
    simt::mbarrier_wait(barrier, parity, caller);
#else
    asm volatile(
        "{\n"
        ".reg .pred is_done;\n"
        "AGAIN:\n"
        "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 is_done, [%0], %1;\n"
        "@!is_done bra AGAIN;\n"
        "}" ::"r"(barrier), "r"(parity) : "memory");
#endif
}
