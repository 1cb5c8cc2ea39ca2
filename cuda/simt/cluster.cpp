// Clusters: blocks that one worker runs at the same time, their barrier, the addresses by which they reach each other, and what
// blocks and threads of the Hopper tier owe when they end. PTX ISA, "barrier.cluster", "mapa".
#include "runtime.h"

namespace simt {

uint32_t cluster_rank(Location) { return running()->block->rank; }

uint32_t map_peer(uint32_t address, uint32_t rank, Location at) {
    const Cluster& cluster = *running()->block->cluster;
    if (rank >= cluster.size) fail(at, "map_peer: block %u is wanted of a cluster of %u", rank, cluster.size);
    if (address >> kMappedShift) fail(at, "map_peer: %#x is a mapped address already", address);
    return address | (rank + 1) << kMappedShift;
}

Block& mapped_block(uint32_t mapped, uint32_t* address, const char* what, Location at) {
    const Cluster& cluster = *running()->block->cluster;
    uint32_t rank = mapped >> kMappedShift;
    if (rank == 0 || rank > cluster.size) fail(at, "%s: %#x is no address that map_peer has made", what, mapped);
    *address = mapped & ((1u << kMappedShift) - 1);
    return *cluster.blocks[rank - 1];
}

void require_running(const Block& block, const char* what, Location at) {
    if (block.live == 0)
        fail(at, "%s: block %u of the cluster has ended, and with it its shared memory (a barrier of the cluster is missing at "
             "its end)", what, block.rank);
}

void note_arrival(Block& block, const char* what, Location at) {
    Fiber& me = *running();
    require_running(block, what, at);
    if constexpr (kChecked)
        if (&block != me.block) block.agents.remote.push_back({me.slot, checker::clock_of(me), at});
}

void cluster_arrive(Location at) {
    meet_warp(0x700, "barrier.cluster.arrive", at);
    Fiber& me = *running();
    Cluster& cluster = *me.block->cluster;
    me.at = at;
    if (me.agents.is_in_cluster_barrier) fail(at, "barrier.cluster.arrive: this thread has arrived and not yet waited");
    me.agents.is_in_cluster_barrier = true;
    me.agents.cluster_phase = cluster.phase;
    uint32_t threads = cluster.size * me.block->threads, live = 0;
    for (uint32_t i = 0; i < cluster.size; ++i) live += cluster.blocks[i]->live;
    if (live < threads)
        fail(at, "barrier.cluster: %u threads of the cluster have already returned, but each owes this barrier", threads - live);
    if (++cluster.arrived < threads) return;
    if constexpr (kChecked) checker::cluster_barrier(cluster);
    cluster.arrived = 0;
    ++cluster.phase;
    for (Fiber* fiber : cluster.waiting) wake(*fiber);
    cluster.waiting.clear();
}

void cluster_wait(Location at) {
    meet_warp(0x701, "barrier.cluster.wait", at);
    Fiber& me = *running();
    Cluster& cluster = *me.block->cluster;
    me.at = at;
    if (!me.agents.is_in_cluster_barrier) fail(at, "barrier.cluster.wait: this thread has not arrived");
    me.agents.is_in_cluster_barrier = false;
    if (me.agents.cluster_phase != cluster.phase) return;
    cluster.waiting.push_back(&me);
    sleep(me, "barrier.cluster.wait", at);
    park();
}

static void check_thread(Fiber& fiber) {
    const ThreadAgents& agents = fiber.agents;
    if (!agents.stores.empty())
        fail(agents.stores[0].at, "this thread returns with %zu stores by tensor maps that no wait covers, the first issued here",
             agents.stores.size());
    if (!agents.owned.empty())
        fail(agents.owned[0].at, "this thread returns with %zu products of its warpgroup that no wait covers, the first issued here",
             agents.owned.size());
    if (agents.is_in_cluster_barrier) fail(fiber.at, "this thread returns between arrival and wait of the cluster's barrier");
    if (fiber.block->cluster->arrived)
        fail(fiber.at, "this thread returns while %u threads of its cluster wait for it in the cluster's barrier",
             fiber.block->cluster->arrived);
}

static void check_block(Fiber& last) {
    Block& block = *last.block;
    for (const TensorCopy& copy : block.cluster->copies)
        if (copy.block == &block)
            fail(copy.at, "block %u of the cluster ends while a copy by a tensor map is on its way to it, issued here", block.rank);
    for (const auto& [address, barrier] : block.agents.barriers)
        if (barrier.bytes != 0)
            fail(last.at, "the block ends while its barrier at byte %d of the shared storage %s %lld bytes",
                 int(address) - int(block.shared_start), barrier.bytes > 0 ? "still wants" : "got more than was expected by",
                 (long long)(barrier.bytes < 0 ? -barrier.bytes : barrier.bytes));
    if constexpr (kChecked) {
        for (const auto& [address, barrier] : block.agents.barriers)
            if (barrier.copied && !checker::is_known_in_block(block, barrier.column, barrier.copied))
                fail(last.at, "the block ends while no thread has waited for a copy that counts at its barrier at byte %d of the "
                     "shared storage", int(address) - int(block.shared_start));
        for (const RemoteArrival& arrival : block.agents.remote)
            if (!checker::is_known_in_block(block, arrival.slot, arrival.clock))
                fail(arrival.at, "nothing orders the end of block %u of the cluster after this arrival in its shared memory (a "
                     "barrier of the cluster is missing at its end)", block.rank);
    }
}

void check_agents_on_exit(Fiber& fiber) {
    check_thread(fiber);
    if (fiber.block->live == 1) check_block(fiber);
}

}  // namespace simt
