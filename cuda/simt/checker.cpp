// The checked build's judge of shared memory, by happens-before: every access is compared with the earlier ones to the
// same bytes, and two that no barrier orders are a race, whether or not this run made them collide.
//
// Each thread has a clock and knows, for every other thread of its cluster, the clock up to which that one's accesses come before
// its own next step (a vector clock). __syncthreads makes all know all: where the block is alone that is one number (`epoch`),
// not a vector for each thread. Named barriers, __syncwarp, barriers in shared memory and that of a cluster merge vectors.
// Shuffles, votes, ldmatrix and mma order nothing.
//
// What works on its own has columns in those vectors: a barrier in shared memory counts its phases, and a copy's bytes may be read
// by those that know the phase they count in; a thread's stores and a warpgroup's products count their groups, and what they
// read may be written by those that know of the wait. What ordinary stores wrote is seen by copies and products only behind
// fence_proxy_async of the thread that stored.
//
// Limits: shared memory only; at most four unordered readers of a place are remembered; bytes are watched in pairs.
#include <stdlib.h>

#include <algorithm>

#include "runtime.h"

namespace simt {
namespace checker {

constexpr uint32_t kCellBytes = 2;
constexpr uint32_t kReaders = 4;
constexpr uint16_t kNobody = 0xffff;

// Where an access stands in the program: an offset from `anchor` for instrumented code, or an index into the sites the
// emulator's own calls reported.
struct Site {
    int32_t value;
    bool is_call;
};

struct Reader {
    uint32_t clock;
    Site site;
    uint16_t thread;
};

struct Cell {
    uint32_t generation;
    uint32_t write_clock;
    Site write_site;
    uint16_t writer;
    uint8_t write_bytes;  // which of the pair the last write covered
    uint8_t initialised;  // which of the pair were ever written
    bool pending;         // an asynchronous copy is on its way here
    bool atomic;          // the last write was one
    bool barrier;         // part of a barrier
    uint8_t reader_count;
    Reader readers[kReaders];
};

// Who knows what, in the cluster that a worker runs.
struct Clocks {
    uint32_t threads = 0;
    uint32_t slots = 0;    // threads, and columns in use behind them
    uint32_t width = 0;    // of a row
    uint32_t epoch = 0;
    std::vector<uint32_t> known;                 // [thread][thread or column]
    std::vector<std::vector<uint32_t>> fences;   // [thread]: clocks of its fence_proxy_async
    std::vector<uint32_t> least;                 // what all threads of a warpgroup know

    uint32_t* row(uint32_t thread) { return &known[size_t(thread) * width]; }
    uint32_t clock(uint32_t thread) { return row(thread)[thread]; }
    void begin(uint32_t count);
    void widen();
    void merge(uint32_t thread, std::vector<uint32_t>& into) {
        if (into.size() < slots) into.resize(slots, 0);
        const uint32_t* from = row(thread);
        for (uint32_t i = 0; i < slots; ++i) into[i] = std::max(into[i], from[i]);
    }
    void take(uint32_t thread, const std::vector<uint32_t>& from) {
        uint32_t* to = row(thread);
        for (size_t i = 0; i < from.size(); ++i) to[i] = std::max(to[i], from[i]);
    }
};

struct Shadow {
    uint32_t generation = 0;
    std::vector<Location> calls;
    Cell* cells = nullptr;
    Clocks clocks;  // of the cluster whose first block this is
};

static const char anchor = 0;

static Clocks& clocks_of(const Fiber& fiber) { return *fiber.block->cluster->clocks; }

void Clocks::begin(uint32_t count) {
    constexpr uint32_t kRenew = 1u << 31;
    bool has_columns = slots != threads;
    for (std::vector<uint32_t>& list : fences) list.clear();
    if (threads != count || has_columns || epoch > kRenew) {
        threads = slots = width = count;
        known.assign(size_t(count) * count, 0);
        fences.assign(count, {});
        epoch = 0;
    }
    for (uint32_t i = 0; i < threads; ++i) epoch = std::max(epoch, clock(i));
    for (uint32_t i = 0; i < threads; ++i) row(i)[i] = epoch + 1;
}

void Clocks::widen() {
    uint32_t wider = width + 64;
    std::vector<uint32_t> copy(size_t(threads) * wider, 0);
    for (uint32_t i = 0; i < threads; ++i) std::copy(row(i), row(i) + width, &copy[size_t(i) * wider]);
    known = std::move(copy);
    width = wider;
}

void begin_cluster(Cluster& cluster) {
    for (uint32_t rank = 0; rank < cluster.size; ++rank) {
        Block& block = *cluster.blocks[rank];
        if (!block.shadow) {
            block.shadow = new Shadow;
            // Zero pages from the system: only cells that are touched take memory.
            block.shadow->cells = static_cast<Cell*>(calloc(kArenaBytes / kCellBytes, sizeof(Cell)));
        }
        ++block.shadow->generation;
        block.shadow->calls.clear();
    }
    cluster.clocks = &cluster.blocks[0]->shadow->clocks;
    cluster.clocks->begin(cluster.size * cluster.blocks[0]->threads);
}

static void meet_alone(Clocks& clocks) {
    for (uint32_t i = 0; i < clocks.threads; ++i) clocks.epoch = std::max(clocks.epoch, clocks.clock(i));
    for (uint32_t i = 0; i < clocks.threads; ++i) clocks.row(i)[i] = clocks.epoch + 1;
    for (uint32_t column = clocks.threads; column < clocks.slots; ++column) {
        uint32_t most = 0;
        for (uint32_t i = 0; i < clocks.threads; ++i) most = std::max(most, clocks.row(i)[column]);
        for (uint32_t i = 0; i < clocks.threads; ++i) clocks.row(i)[column] = most;
    }
}

// What `releasing` did becomes known to `acquiring`.
static void meet(Clocks& clocks, const std::vector<uint32_t>& releasing, const std::vector<uint32_t>& acquiring) {
    std::vector<uint32_t> merged;
    for (uint32_t thread : releasing) clocks.merge(thread, merged);
    for (uint32_t thread : acquiring) clocks.take(thread, merged);
    for (uint32_t thread : releasing) ++clocks.row(thread)[thread];
}

void barrier(Block& block, const Barrier& barrier) {
    Clocks& clocks = *block.cluster->clocks;
    if (barrier.whole_block && block.cluster->size == 1) return meet_alone(clocks);
    std::vector<uint32_t> all, waiting;
    for (const Fiber* fiber : barrier.arrivals) all.push_back(fiber->slot);
    for (const Fiber* fiber : barrier.waiting) {
        all.push_back(fiber->slot);
        waiting.push_back(fiber->slot);
    }
    meet(clocks, all, waiting);
}

void cluster_barrier(Cluster& cluster) {
    std::vector<uint32_t> all(cluster.clocks->threads);
    for (uint32_t i = 0; i < all.size(); ++i) all[i] = i;
    meet(*cluster.clocks, all, all);
}

void warp_join(Warp& warp, uint32_t lanes) {
    std::vector<uint32_t> members;
    for (uint32_t set = lanes; set; set &= set - 1) members.push_back(warp.fibers[__builtin_ctz(set)]->slot);
    meet(*warp.block->cluster->clocks, members, members);
}

// ---- Columns ----

uint32_t add_column(Cluster& cluster) {
    Clocks& clocks = *cluster.clocks;
    if (clocks.slots == clocks.width) clocks.widen();
    return clocks.slots++;
}

void release(Fiber& fiber, std::vector<uint32_t>& into) {
    Clocks& clocks = clocks_of(fiber);
    clocks.merge(fiber.slot, into);
    ++clocks.row(fiber.slot)[fiber.slot];
}

void acquire(Fiber& fiber, const std::vector<uint32_t>& from) { clocks_of(fiber).take(fiber.slot, from); }

void learn(Fiber& fiber, uint32_t column, uint32_t count) {
    uint32_t& known = clocks_of(fiber).row(fiber.slot)[column];
    known = std::max(known, count);
}

void raise(std::vector<uint32_t>& vector, uint32_t column, uint32_t count) {
    if (vector.size() <= column) vector.resize(column + 1, 0);
    vector[column] = std::max(vector[column], count);
}

void proxy_fence(Fiber& fiber) {
    Clocks& clocks = clocks_of(fiber);
    uint32_t& clock = clocks.row(fiber.slot)[fiber.slot];
    clocks.fences[fiber.slot].push_back(clock++);
}

uint32_t clock_of(Fiber& fiber) { return clocks_of(fiber).clock(fiber.slot); }

// What an access may rely on: a thread's own knowledge, or what all threads of a warpgroup know.
struct View {
    const uint32_t* row;
    uint32_t self;  // whose own accesses are in order; kNobody for a warpgroup
};

static bool knows(const Clocks& clocks, View view, uint32_t other, uint32_t clock) {
    if (other == view.self) return true;
    return (other < clocks.threads && clock <= clocks.epoch) || clock <= view.row[other];
}

bool is_known_in_block(Block& block, uint32_t slot, uint32_t clock) {
    Clocks& clocks = *block.cluster->clocks;
    for (uint32_t i = 0; i < block.threads; ++i) {
        uint32_t self = block.fibers[i].slot;
        if (knows(clocks, {clocks.row(self), self}, slot, clock)) return true;
    }
    return false;
}

// Whether a fence of the thread that wrote stands between that and the view.
static bool is_fenced(const Clocks& clocks, View view, uint32_t writer, uint32_t clock) {
    const std::vector<uint32_t>& fences = clocks.fences[writer];
    auto fence = std::lower_bound(fences.begin(), fences.end(), clock);
    return fence != fences.end() && knows(clocks, view, writer, *fence);
}

static Site site_of(Shadow& shadow, const void* code, Location at) {
    if (code) return {int32_t(static_cast<const char*>(code) - &anchor), false};
    for (size_t i = 0; i < shadow.calls.size(); ++i)
        if (shadow.calls[i].line == at.line && shadow.calls[i].file == at.file) return {int32_t(i), true};
    shadow.calls.push_back(at);
    return {int32_t(shadow.calls.size() - 1), true};
}

// One access under examination, to the shared memory of `block`.
struct Access {
    const Block& block;
    Shadow& shadow;
    Clocks& clocks;
    View view;
    uint32_t slot;  // who is written down for it
    const char* what;
    uint32_t offset;
    uint32_t bytes;
    const void* code;
    Location at;
    Site site;

    Access(Fiber& fiber, const char* what, uint32_t offset, uint32_t bytes, const void* code, Location at)
        : Access(*fiber.block, {clocks_of(fiber).row(fiber.slot), fiber.slot}, fiber.slot, what, offset, bytes, code, at) {}

    Access(const Block& block, View view, uint32_t slot, const char* what, uint32_t offset, uint32_t bytes, const void* code,
           Location at)
        : block(block), shadow(*block.shadow), clocks(*block.cluster->clocks), view(view), slot(slot), what(what),
          offset(offset), bytes(bytes), code(code), at(at), site(site_of(shadow, code, at)) {
        if (offset < block.shared_start || offset + bytes > block.shared_start + block.shared_bytes)
            fail_at(code, nullptr, at, "%s of %u bytes at byte %d lies outside the shared storage of %u bytes", what, bytes,
                    place(), block.shared_bytes);
    }

    int place() const { return int(offset) - int(block.shared_start); }

    bool is_known(uint32_t other, uint32_t clock) const { return knows(clocks, view, other, clock); }

    Cell& cell(uint32_t index) const {
        Cell& cell = shadow.cells[index];
        if (cell.generation != shadow.generation) {
            cell = Cell{};
            cell.generation = shadow.generation;
            cell.writer = kNobody;
        }
        return cell;
    }

    uint8_t bytes_in(uint32_t index) const {
        uint8_t covered = 0;
        for (uint32_t i = 0; i < kCellBytes; ++i) {
            uint32_t byte = index * kCellBytes + i;
            if (byte >= offset && byte < offset + bytes) covered |= uint8_t(1u << i);
        }
        return covered;
    }

    [[noreturn]] void fail_with(const char* text, Site other, uint32_t by) const {
        const void* other_code = nullptr;
        std::string place_of_other = kOtherPlace;
        if (other.is_call) {
            const Location& call = shadow.calls[size_t(other.value)];
            place_of_other = std::string(call.file) + ":" + std::to_string(call.line);
        } else {
            other_code = &anchor + other.value;
        }
        std::string who = "what was asked for";
        if (by < clocks.threads) {
            who = "thread " + std::to_string(by % block.threads);
            if (clocks.threads > block.threads) who += " of block " + std::to_string(by / block.threads);
        }
        fail_at(code, other_code, at, "%s of %u bytes at byte %d of the shared storage %s %s at %s", what, bytes, place(), text,
                who.c_str(), place_of_other.c_str());
    }

    void require_no_barrier(const Cell& cell) const {
        if (cell.barrier) fail_with("meets a barrier, made by", cell.write_site, cell.writer);
    }

    void require_landed(const Cell& cell) const {
        require_no_barrier(cell);
        if (cell.pending)
            fail_with("meets an asynchronous copy that has not been waited for, by", cell.write_site, cell.writer);
    }

    void require_after_write(const Cell& cell, uint8_t covered) const {
        if (cell.writer == kNobody || !(cell.write_bytes & covered) || is_known(cell.writer, cell.write_clock)) return;
        if (cell.writer >= clocks.threads)
            fail_with("meets a copy by a tensor map that has not been waited for,", cell.write_site, cell.writer);
        fail_with("is a race: nothing orders it after the write by", cell.write_site, cell.writer);
    }

    // For what works on its own: an ordinary store came before it only behind its thread's fence.
    void require_fenced(const Cell& cell, uint8_t covered) const {
        if (cell.writer >= clocks.threads || !(cell.write_bytes & covered)) return;
        if (!is_fenced(clocks, view, cell.writer, cell.write_clock))
            fail_with("need not see the store, because no fence_proxy_async of its thread stands between, by", cell.write_site,
                      cell.writer);
    }

    void require_after_reads(const Cell& cell) const {
        for (uint32_t i = 0; i < cell.reader_count; ++i) {
            const Reader& reader = cell.readers[i];
            if (is_known(reader.thread, reader.clock)) continue;
            if (reader.thread >= clocks.threads)
                fail_with("meets a copy or product that still reads there and has not been waited for,", reader.site, reader.thread);
            fail_with("is a race: nothing orders it after the read by", reader.site, reader.thread);
        }
    }

    void require_initialised(const Cell& cell, uint8_t covered) const {
        if ((cell.initialised & covered) != covered)
            fail_at(code, nullptr, at, "%s of %u bytes at byte %d of the shared storage, which are uninitialised", what,
                    bytes, place());
    }

    void note_read(Cell& cell, uint32_t clock) const {
        Reader me{clock, site, uint16_t(slot)};
        for (uint32_t i = 0; i < cell.reader_count; ++i) {
            Reader& reader = cell.readers[i];
            // A reader that this one knows of says nothing more than this one does; nor does a column's lower count.
            if (reader.thread == slot || is_known(reader.thread, reader.clock)) {
                reader = me;
                return;
            }
        }
        if (cell.reader_count < kReaders) {
            cell.readers[cell.reader_count++] = me;
        } else {
            cell.readers[slot % kReaders] = me;
        }
    }

    void note_write(Cell& cell, uint8_t covered, bool atomic, uint32_t clock) const {
        cell.writer = uint16_t(slot);
        cell.write_clock = clock;
        cell.write_site = site;
        cell.write_bytes = covered;
        cell.initialised |= covered;
        cell.atomic = atomic;
        cell.reader_count = 0;
    }

    template <class Visit>
    void each_cell(Visit visit) const {
        for (uint32_t i = offset / kCellBytes; i * kCellBytes < offset + bytes; ++i) visit(cell(i), bytes_in(i));
    }
};

void read(Fiber& fiber, uint32_t offset, uint32_t bytes, const void* code, Location at) {
    Access access(fiber, "read", offset, bytes, code, at);
    access.each_cell([&](Cell& cell, uint8_t covered) {
        access.require_landed(cell);
        access.require_initialised(cell, covered);
        access.require_after_write(cell, covered);
        access.note_read(cell, clock_of(fiber));
    });
}

void write(Fiber& fiber, uint32_t offset, uint32_t bytes, const void* code, Location at) {
    Access access(fiber, "write", offset, bytes, code, at);
    access.each_cell([&](Cell& cell, uint8_t covered) {
        access.require_landed(cell);
        access.require_after_write(cell, covered);
        access.require_after_reads(cell);
        access.note_write(cell, covered, false, clock_of(fiber));
    });
}

void atomic(Fiber& fiber, uint32_t offset, uint32_t bytes, Location at) {
    Access access(fiber, "atomic", offset, bytes, nullptr, at);
    access.each_cell([&](Cell& cell, uint8_t covered) {
        access.require_landed(cell);
        access.require_initialised(cell, covered);
        if (!cell.atomic) access.require_after_write(cell, covered);
        access.require_after_reads(cell);
        access.note_write(cell, covered, true, clock_of(fiber));
    });
}

void copy_issued(Fiber& fiber, uint32_t offset, uint32_t bytes, Location at) {
    Access access(fiber, "cp.async write", offset, bytes, nullptr, at);
    access.each_cell([&](Cell& cell, uint8_t covered) {
        access.require_landed(cell);
        access.require_after_write(cell, covered);
        access.require_after_reads(cell);
        access.note_write(cell, covered, false, clock_of(fiber));
        cell.pending = true;
    });
}

void copy_landed(Fiber& fiber, uint32_t offset, uint32_t bytes, Location at) {
    Access access(fiber, "cp.async write", offset, bytes, nullptr, at);
    access.each_cell([&](Cell& cell, uint8_t covered) {
        Site issued = cell.write_site;
        cell.pending = false;
        access.note_write(cell, covered, false, clock_of(fiber));
        cell.write_site = issued;
    });
}

// ---- Barriers in shared memory, and what works on its own ----

void barrier_made(Fiber& fiber, uint32_t offset, Location at) {
    write(fiber, offset, 8, nullptr, at);
    Access access(fiber, "mbarrier_init", offset, 8, nullptr, at);
    access.each_cell([&](Cell& cell, uint8_t) { cell.barrier = true; });
}

void barrier_used(Fiber& fiber, Block& block, uint32_t offset, const char* what, Location at) {
    Access access(block, {clocks_of(fiber).row(fiber.slot), fiber.slot}, fiber.slot, what, offset, 8, nullptr, at);
    access.each_cell([&](Cell& cell, uint8_t covered) { access.require_after_write(cell, covered); });
}

void barrier_removed(Fiber& fiber, uint32_t offset) {
    Access access(fiber, "mbarrier_invalidate", offset, 8, nullptr, {nullptr, 0});
    access.each_cell([&](Cell& cell, uint8_t) {
        cell.barrier = false;
        cell.initialised = 0;
    });
}

void agent_writes(Fiber& fiber, Block& block, uint32_t offset, uint32_t bytes, uint32_t column, uint32_t count, Location at) {
    Access access(block, {clocks_of(fiber).row(fiber.slot), fiber.slot}, column, "a load by a tensor map", offset, bytes, nullptr, at);
    access.each_cell([&](Cell& cell, uint8_t covered) {
        access.require_landed(cell);
        access.require_after_write(cell, covered);
        access.require_fenced(cell, covered);
        access.require_after_reads(cell);
        access.note_write(cell, covered, false, count);
    });
}

static void agent_access(const Access& access, uint32_t count) {
    access.each_cell([&](Cell& cell, uint8_t covered) {
        access.require_landed(cell);
        access.require_initialised(cell, covered);
        access.require_after_write(cell, covered);
        access.require_fenced(cell, covered);
        access.note_read(cell, count);
    });
}

void agent_reads(Fiber& fiber, uint32_t offset, uint32_t bytes, uint32_t column, uint32_t count, Location at) {
    View view{clocks_of(fiber).row(fiber.slot), fiber.slot};
    agent_access(Access(*fiber.block, view, column, "a store by a tensor map", offset, bytes, nullptr, at), count);
}

void begin_group_reads(Fiber& first) {
    Clocks& clocks = clocks_of(first);
    clocks.least.assign(clocks.row(first.slot), clocks.row(first.slot) + clocks.slots);
    for (uint32_t thread = 1; thread < kGroupThreads; ++thread) {
        const uint32_t* row = clocks.row(first.slot + thread);
        for (uint32_t i = 0; i < clocks.slots; ++i) clocks.least[i] = std::min(clocks.least[i], row[i]);
    }
}

void group_reads(Fiber& first, uint32_t offset, uint32_t bytes, uint32_t column, uint32_t count, Location at) {
    View view{clocks_of(first).least.data(), kNobody};
    agent_access(Access(*first.block, view, column, "wgmma's read", offset, bytes, nullptr, at), count);
}

void stack_access(Fiber& fiber, const char* address, size_t bytes, bool write, const void* code) {
    ThreadAgents& agents = fiber.agents;
    for (const OwnedRegisters& owned : agents.owned) {
        if (address < owned.d + owned.d_bytes && address + bytes > owned.d)
            fail_at(code, nullptr, fiber.at, "%s of accumulators of the product at %s:%d, which no wgmma_wait covers yet",
                    write ? "write" : "read", owned.at.file, owned.at.line);
        if (write && owned.a && address < owned.a + 16 && address + bytes > owned.a)
            fail_at(code, nullptr, fiber.at, "write of the fragment of A of the product at %s:%d, which no wgmma_wait covers yet",
                    owned.at.file, owned.at.line);
    }
    if (!agents.has_fenced_products) return;
    for (uintptr_t word = uintptr_t(address) & ~uintptr_t(3); word < uintptr_t(address) + bytes; word += 4)
        agents.touched.push_back(word);
    constexpr size_t kMany = 1 << 14;
    if (agents.touched.size() < kMany) return;
    std::sort(agents.touched.begin(), agents.touched.end());
    agents.touched.erase(std::unique(agents.touched.begin(), agents.touched.end()), agents.touched.end());
}

// ---- Global memory: every access must lie in an argument, and in one that is not const when it writes ----

void global_access(Fiber& fiber, const void* pointer, uint64_t bytes, bool write, const void* code, Location at) {
    const Launch& launch = *fiber.block->launch;
    const char* start = static_cast<const char*>(pointer);
    const char* what = write ? "write" : "read";
    for (const KeelExtent& extent : launch.extents) {
        const char* first = static_cast<const char*>(extent.start);
        if (start >= first && start + bytes <= first + extent.bytes && (extent.writable || !write)) return;
    }
    for (const Allocation& allocation : launch.allocations) {
        if (start < allocation.map || start >= allocation.map + allocation.map_bytes) continue;
        for (const KeelExtent& extent : launch.extents) {
            const char* first = static_cast<const char*>(extent.start);
            if (write && !extent.writable && start >= first && start < first + extent.bytes)
                fail_at(code, nullptr, at, "write of %llu bytes into argument %u, which the kernel declares as read-only",
                        (unsigned long long)bytes, extent.argument);
            ptrdiff_t past = start + bytes - (first + extent.bytes);
            if (past > 0 && start < first + extent.bytes + 4096 && start >= first)
                fail_at(code, nullptr, at, "%s of %llu bytes ends %td bytes past argument %u of %llu bytes", what,
                        (unsigned long long)bytes, past, extent.argument, (unsigned long long)extent.bytes);
        }
        ptrdiff_t past = start + bytes - (allocation.start + allocation.bytes);
        if (past > 0)
            fail_at(code, nullptr, at, "%s of %llu bytes ends %td bytes past an allocation of %llu bytes", what,
                    (unsigned long long)bytes, past, (unsigned long long)allocation.bytes);
        if (!launch.extents.empty())
            fail_at(code, nullptr, at, "%s of %llu bytes at byte %td of an allocation of %llu bytes lies in no argument",
                    what, (unsigned long long)bytes, start - allocation.start, (unsigned long long)allocation.bytes);
        return;
    }
}

}  // namespace checker
}  // namespace simt
