// Clusters: blocks that run at the same time and reach each other's shared memory. PTX ISA, "barrier.cluster", "mapa",
// "%cluster_ctarank". No block may end while another may still copy to it or arrive at its barriers.
#pragma once
#include "tensor_map.cuh"

// This block's number in its cluster.
DEVICE uint32_t cluster_rank(CALLER_ONLY) {
#ifdef SIMT_EMULATOR
    return simt::cluster_rank(caller);
#else
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
#endif
}

// The address by which this block reaches what lies at `address` in the shared memory of block `rank`.
DEVICE uint32_t map_peer(uint32_t address, uint32_t rank CALLER) {
#ifdef SIMT_EMULATOR
    return simt::map_peer(address, rank, caller);
#else
    uint32_t mapped;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
    return mapped;
#endif
}

// Counts this thread at the cluster's barrier and goes on; every thread of every block arrives. All lanes of a warp together.
DEVICE void cluster_arrive(CALLER_ONLY) {
#ifdef SIMT_EMULATOR
    simt::cluster_arrive(caller);
#else
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

// Waits until every thread of the cluster has arrived, which this one must have done.
DEVICE void cluster_wait(CALLER_ONLY) {
#ifdef SIMT_EMULATOR
    simt::cluster_wait(caller);
#else
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
