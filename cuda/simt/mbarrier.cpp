// Barriers in shared memory (mbarrier): phases of arrivals and of bytes that copies bring. Their eight bytes hold a mark of their
// state, so that a barrier that was never made, or that an ordinary store has hit, is told from one.
// PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier".
#include "runtime.h"

namespace simt {

// The largest counts of the eight bytes.
constexpr uint32_t kMostArrivals = (1u << 20) - 1;
constexpr int64_t kMostBytes = (1 << 20) - 1;

static int place_of(const Block& block, uint32_t address) { return int(address) - int(block.shared_start); }

static uint64_t mark_of(const MemoryBarrier& barrier) {
    uint64_t mark = barrier.phase * 0x9e3779b97f4a7c15ull ^ uint64_t(barrier.bytes) * 0xbf58476d1ce4e5b9ull;
    return mark ^ (uint64_t(barrier.expected) << 32 | barrier.pending) ^ 0x6261727269657221ull;
}

static void write_mark(Block& block, uint32_t address, const MemoryBarrier& barrier) {
    uint64_t mark = mark_of(barrier);
    memcpy(block.arena + address, &mark, sizeof(mark));
}

MemoryBarrier& barrier_at(Block& block, uint32_t address, const char* what, Location at) {
    char* bytes = shared_range(block, address, 8, 8, what, at);
    auto found = block.agents.barriers.find(address);
    if (found == block.agents.barriers.end())
        fail(at, "%s: byte %d of the shared storage is not a barrier: no mbarrier_init has made it one", what,
             place_of(block, address));
    uint64_t mark = mark_of(found->second);
    if (memcmp(bytes, &mark, sizeof(mark)) != 0)
        fail(at, "%s: the barrier at byte %d of the shared storage was overwritten", what, place_of(block, address));
    return found->second;
}

void mbarrier_init(uint32_t address, uint32_t count, Location at) {
    Fiber& me = *running();
    Block& block = *me.block;
    me.activity = "mbarrier_init";
    me.at = at;
    shared_range(address, 8, 8, "mbarrier_init", at);
    if (count == 0 || count > kMostArrivals)
        fail(at, "mbarrier_init: %u arrivals a phase are wanted, but a barrier counts 1..%u", count, kMostArrivals);
    if (block.agents.barriers.count(address))
        fail(at, "mbarrier_init: byte %d of the shared storage is a barrier already (mbarrier_invalidate frees it)",
             place_of(block, address));
    if constexpr (kChecked) checker::barrier_made(me, address, at);
    MemoryBarrier& barrier = block.agents.barriers[address];
    barrier.expected = barrier.pending = count;
    barrier.maker = &me;
    if constexpr (kChecked) barrier.column = checker::add_column(*block.cluster);
    write_mark(block, address, barrier);
}

void mbarrier_invalidate(uint32_t address, Location at) {
    Fiber& me = *running();
    me.at = at;
    MemoryBarrier& barrier = barrier_at(*me.block, address, "mbarrier_invalidate", at);
    if constexpr (kChecked) checker::barrier_used(me, *me.block, address, "mbarrier_invalidate", at);
    if (!barrier.waiting.empty())
        fail(at, "mbarrier_invalidate: %zu threads wait at the barrier at byte %d of the shared storage",
             barrier.waiting.size(), place_of(*me.block, address));
    me.block->agents.barriers.erase(address);
    if constexpr (kChecked) checker::barrier_removed(me, address);
    memset(me.block->arena + address, 0xff, 8);
}

void fence_barrier_init(Location at) {
    Fiber& me = *running();
    me.at = at;
    for (auto& [address, barrier] : me.block->agents.barriers) barrier.is_fenced |= barrier.maker == &me;
}

// Ends the phase where everything that it wants has come.
static void settle(Block& block, uint32_t address, MemoryBarrier& barrier, Location at) {
    if (barrier.pending == 0 && barrier.bytes == 0) {
        if (barrier.woken)
            fail(at, "the barrier at byte %d of the shared storage ends a phase before %u threads that waited for the last one "
                 "have gone on: by parity they cannot tell the two", place_of(block, address), barrier.woken);
        ++barrier.phase;
        barrier.pending = barrier.expected;
        if constexpr (kChecked) {
            checker::raise(barrier.gathering, barrier.column, uint32_t(barrier.phase));
            barrier.gathered = std::move(barrier.gathering);
            barrier.gathering.clear();
        }
        for (Fiber* fiber : barrier.waiting) wake(*fiber);
        barrier.woken = uint32_t(barrier.waiting.size());
        barrier.waiting.clear();
    }
    write_mark(block, address, barrier);
}

static void count_arrival(Fiber& me, Block& block, uint32_t address, int64_t bytes, const char* what, Location at) {
    MemoryBarrier& barrier = barrier_at(block, address, what, at);
    if constexpr (kChecked) checker::barrier_used(me, block, address, what, at);
    if (barrier.pending == 0)
        fail(at, "%s: the barrier at byte %d of the shared storage expects %u arrivals a phase, and all have come; it still wants "
             "%lld bytes", what, place_of(block, address), barrier.expected, (long long)barrier.bytes);
    barrier.bytes += bytes;
    if (barrier.bytes > kMostBytes)
        fail(at, "%s: the barrier at byte %d of the shared storage is to expect %lld bytes, but it counts at most %lld", what,
             place_of(block, address), (long long)barrier.bytes, (long long)kMostBytes);
    --barrier.pending;
    if constexpr (kChecked) checker::release(me, barrier.gathering);
    settle(block, address, barrier, at);
}

static void arrive(uint32_t address, int64_t bytes, const char* what, Location at) {
    Fiber& me = *running();
    me.activity = what;
    me.at = at;
    land_some(*me.block->cluster);
    count_arrival(me, *me.block, address, bytes, what, at);
}

void mbarrier_arrive(uint32_t address, Location at) { arrive(address, 0, "mbarrier_arrive", at); }

void mbarrier_arrive_expect(uint32_t address, uint32_t bytes, Location at) {
    arrive(address, bytes, "mbarrier_arrive_expect", at);
}

void mbarrier_arrive_remote(uint32_t mapped, Location at) {
    Fiber& me = *running();
    me.activity = "mbarrier_arrive_remote";
    me.at = at;
    uint32_t address;
    Block& block = mapped_block(mapped, &address, me.activity, at);
    note_arrival(block, me.activity, at);
    MemoryBarrier& barrier = barrier_at(block, address, me.activity, at);
    if (!barrier.is_fenced)
        fail(at, "mbarrier_arrive_remote: the barrier at byte %d of block %u's shared storage was made without "
             "fence_barrier_init, so no other block need see it", place_of(block, address), block.rank);
    count_arrival(me, block, address, 0, me.activity, at);
}

void complete_bytes(Block& block, uint32_t address, uint32_t bytes, Fiber& issuer, Location at) {
    MemoryBarrier& barrier = barrier_at(block, address, "a copy by a tensor map", at);
    barrier.bytes -= bytes;
    if (barrier.bytes < -kMostBytes)
        fail_as(issuer, at, "copies bring %lld bytes more to the barrier at byte %d of the shared storage than its phase expects",
                -(long long)barrier.bytes, place_of(block, address));
    settle(block, address, barrier, at);
}

void mbarrier_wait(uint32_t address, uint32_t parity, Location at) {
    Fiber& me = *running();
    Block& block = *me.block;
    me.activity = "mbarrier_wait";
    me.at = at;
    land_some(*block.cluster);
    if (parity > 1) fail(at, "mbarrier_wait: a parity is 0 or 1, not %u", parity);
    MemoryBarrier& barrier = barrier_at(block, address, "mbarrier_wait", at);
    if constexpr (kChecked) checker::barrier_used(me, block, address, "mbarrier_wait", at);
    if ((barrier.phase & 1) == parity) {
        barrier.waiting.push_back(&me);
        sleep(me, "mbarrier_wait", at);
        park();
        --barrier.woken;
    }
    if constexpr (kChecked) checker::acquire(me, barrier.gathered);
}

std::string waiting_barriers(const Block& block) {
    std::string text;
    for (const auto& [address, barrier] : block.agents.barriers) {
        if (barrier.waiting.empty()) continue;
        text += "\n    the barrier at byte " + std::to_string(place_of(block, address)) + " is in phase " +
                std::to_string(barrier.phase) + ", wants " + std::to_string(barrier.pending) + " of " +
                std::to_string(barrier.expected) + " arrivals and " + std::to_string(barrier.bytes) + " bytes";
    }
    return text;
}

}  // namespace simt
