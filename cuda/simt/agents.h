// What works on its own in the emulator of the Hopper tier: copies by tensor maps, products of warpgroups, barriers that count
// both, and the cluster whose blocks share them. Kernels never see this header.
#pragma once
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "hopper.h"

namespace simt {

struct Block;
struct Fiber;
struct Launch;
namespace checker {
struct Clocks;
}

constexpr uint32_t kClusterBlocks = 8;
constexpr uint32_t kGroupThreads = 128;
// Set in an address that map_peer made, above the block's rank; those of this block's own have zeros there.
constexpr uint32_t kMappedShift = 24;

// A barrier in shared memory. The eight bytes there hold a mark of this state, so that stores to them show.
struct MemoryBarrier {
    uint32_t expected = 0;  // arrivals a phase
    uint32_t pending = 0;   // arrivals this phase still wants
    int64_t bytes = 0;      // of copies this phase still wants; below zero where they came before they were expected
    uint64_t phase = 0;     // phases that have ended
    uint32_t copied = 0;    // the phase that ends with the last copy, counted from 1
    bool is_fenced = false;
    Fiber* maker = nullptr;
    std::vector<Fiber*> waiting;
    uint32_t woken = 0;     // that waited for the last phase and have not run since
    // The checked build's: what those know that arrived, and what those learn that wait; and the barrier's own clock, which
    // counts phases: a copy's bytes may be read by those that know the phase they count in.
    std::vector<uint32_t> gathering, gathered;
    uint32_t column = 0;
};

// A box on its way to one block.
struct TensorCopy {
    TensorMap map;
    int32_t coordinates[kTensorDims];
    Block* block;
    uint32_t to, barrier;
    uint64_t phase;  // that its barrier was in when it was asked for
    Fiber* issuer;
    Location at;
};

// A box that its thread has not waited for yet, on its way from shared memory.
struct TensorStore {
    TensorMap map;
    int32_t coordinates[kTensorDims];
    uint32_t from;
    bool is_done;
    Location at;
};

// Registers that a product of this thread's warpgroup owns until the wait.
struct OwnedRegisters {
    const char* d;
    size_t d_bytes;
    const char* a;  // null where A is in shared memory
    uint32_t group;
    Location at;
};

// What a thread of this tier has under way.
struct ThreadAgents {
    std::vector<TensorStore> stores;
    std::vector<uint32_t> store_ends;  // of each committed group in that list
    uint32_t store_groups = 0;         // committed so far
    uint32_t store_column = 0;
    bool has_fenced_products = false;
    uint32_t product_groups = 0;  // committed so far
    std::vector<OwnedRegisters> owned;
    // The checked build's: words of this thread's stack that were accessed since its last fence.
    std::vector<uintptr_t> touched;
    bool is_in_cluster_barrier = false;
    uint64_t cluster_phase = 0;

    void reset() {
        stores.clear();
        store_ends.clear();
        owned.clear();
        touched.clear();
        store_groups = store_column = product_groups = 0;
        has_fenced_products = is_in_cluster_barrier = false;
        cluster_phase = 0;
    }
};

// A product that its warpgroup has asked for.
struct IssuedProduct {
    WarpgroupProduct shape;
    float* d[kGroupThreads];
    const uint32_t* a[kGroupThreads];
    std::vector<float> saved;  // accumulators as they were; empty where an earlier product still owns them
    bool is_done;
};

struct Warpgroup {
    uint32_t arrived = 0;
    const WarpgroupProduct* operands[kGroupThreads];
    Location at{};
    uint32_t finished = 0;  // products that are over
    std::deque<IssuedProduct> open;
    std::vector<uint32_t> group_ends;  // behind how many products each committed group ends
    uint32_t column = 0;
};

// An arrival from another block, which this one must know of before it ends.
struct RemoteArrival {
    uint32_t slot, clock;
    Location at;
};

// What a block of this tier has.
struct BlockAgents {
    std::map<uint32_t, MemoryBarrier> barriers;
    std::vector<Warpgroup> groups;
    std::vector<RemoteArrival> remote;
    uint32_t free_registers = 0;
    bool has_register_plan = false;
};

// The blocks that one worker runs at the same time: one, where the kernel has no clusters.
struct Cluster {
    Launch* launch = nullptr;
    uint32_t size = 1;
    Block* blocks[kClusterBlocks] = {};
    void* host_stack = nullptr;  // the worker's own stack pointer while fibers run
    uint64_t random = 0;
    std::vector<TensorCopy> copies;
    uint32_t arrived = 0;
    uint64_t phase = 0;
    std::vector<Fiber*> waiting;
    checker::Clocks* clocks = nullptr;
};

// ---- tensor_copy.cpp
// Lets one copy on its way land; false when there is none.
bool land_one(Cluster& cluster);
// By random timing, lets some land.
void land_some(Cluster& cluster);

// ---- mbarrier.cpp
void complete_bytes(Block& block, uint32_t barrier, uint32_t bytes, Fiber& issuer, Location at);
// The barrier at a shared address of `block`; fails with `what` where there is none.
MemoryBarrier& barrier_at(Block& block, uint32_t address, const char* what, Location at);
// One line for each barrier that a thread waits for.
std::string waiting_barriers(const Block& block);

// ---- cluster.cpp
// The block of the running thread's cluster that a mapped address leads to, and the address there.
Block& mapped_block(uint32_t mapped, uint32_t* address, const char* what, Location at);
// Fails where a block has ended that the running thread reaches into.
void require_running(const Block& block, const char* what, Location at);
// As require_running, for an arrival that the block must know of before it ends.
void note_arrival(Block& block, const char* what, Location at);
// What the last thread of a block, and each thread, owe when they end.
void check_agents_on_exit(Fiber& fiber);

}  // namespace simt
