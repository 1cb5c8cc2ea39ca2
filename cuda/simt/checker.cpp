// The checked build's judge of shared memory, by happens-before: every access is compared with the earlier ones to the
// same bytes, and two that no barrier orders are a race, whether or not this run made them collide.
//
// Each thread has a clock and knows, for every other thread, the clock up to which that one's accesses come before its
// own next step (a vector clock). __syncthreads makes all know all: that is one number for the block (`epoch`), not a
// vector for each thread. Named barriers and __syncwarp merge vectors. Shuffles, votes, ldmatrix and mma order nothing.
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
    uint8_t reader_count;
    Reader readers[kReaders];
};

struct Shadow {
    uint32_t generation = 0;
    uint32_t threads = 0;
    uint32_t epoch = 0;
    std::vector<uint32_t> known;  // [thread][other thread]
    std::vector<Location> calls;
    Cell* cells = nullptr;

    uint32_t* row(uint32_t thread) { return &known[size_t(thread) * threads]; }
    uint32_t clock(uint32_t thread) { return row(thread)[thread]; }
    bool knows(uint32_t thread, uint32_t other, uint32_t clock) {
        return thread == other || clock <= epoch || clock <= row(thread)[other];
    }
};

static const char anchor = 0;

void begin_block(Block& block) {
    if (!block.shadow) {
        block.shadow = new Shadow;
        // Zero pages from the system: only cells that are touched take memory.
        block.shadow->cells = static_cast<Cell*>(calloc(kArenaBytes / kCellBytes, sizeof(Cell)));
    }
    Shadow& shadow = *block.shadow;
    ++shadow.generation;
    shadow.calls.clear();
    constexpr uint32_t kRenew = 1u << 31;
    if (shadow.threads != block.threads || shadow.epoch > kRenew) {
        shadow.threads = block.threads;
        shadow.known.assign(size_t(block.threads) * block.threads, 0);
        shadow.epoch = 0;
    }
    for (uint32_t i = 0; i < shadow.threads; ++i) shadow.epoch = std::max(shadow.epoch, shadow.clock(i));
    for (uint32_t i = 0; i < shadow.threads; ++i) shadow.row(i)[i] = shadow.epoch + 1;
}

static void meet_whole_block(Shadow& shadow) {
    for (uint32_t i = 0; i < shadow.threads; ++i) shadow.epoch = std::max(shadow.epoch, shadow.clock(i));
    for (uint32_t i = 0; i < shadow.threads; ++i) shadow.row(i)[i] = shadow.epoch + 1;
}

// What `releasing` did becomes known to `acquiring`.
static void meet(Shadow& shadow, const std::vector<uint32_t>& releasing, const std::vector<uint32_t>& acquiring) {
    std::vector<uint32_t> merged(shadow.threads, 0);
    for (uint32_t thread : releasing) {
        const uint32_t* row = shadow.row(thread);
        for (uint32_t i = 0; i < shadow.threads; ++i) merged[i] = std::max(merged[i], row[i]);
    }
    for (uint32_t thread : acquiring) {
        uint32_t* row = shadow.row(thread);
        for (uint32_t i = 0; i < shadow.threads; ++i) row[i] = std::max(row[i], merged[i]);
    }
    for (uint32_t thread : releasing) ++shadow.row(thread)[thread];
}

void barrier(Block& block, const Barrier& barrier) {
    if (barrier.whole_block) return meet_whole_block(*block.shadow);
    std::vector<uint32_t> all, waiting;
    for (const Fiber* fiber : barrier.arrivals) all.push_back(fiber->index);
    for (const Fiber* fiber : barrier.waiting) {
        all.push_back(fiber->index);
        waiting.push_back(fiber->index);
    }
    meet(*block.shadow, all, waiting);
}

void warp_join(Warp& warp, uint32_t lanes) {
    std::vector<uint32_t> members;
    for (uint32_t set = lanes; set; set &= set - 1) members.push_back(warp.fibers[__builtin_ctz(set)]->index);
    meet(*warp.block->shadow, members, members);
}

static Site site_of(Shadow& shadow, const void* code, Location at) {
    if (code) return {int32_t(static_cast<const char*>(code) - &anchor), false};
    for (size_t i = 0; i < shadow.calls.size(); ++i)
        if (shadow.calls[i].line == at.line && shadow.calls[i].file == at.file) return {int32_t(i), true};
    shadow.calls.push_back(at);
    return {int32_t(shadow.calls.size() - 1), true};
}

// One access under examination.
struct Access {
    Fiber& fiber;
    Shadow& shadow;
    const char* what;
    uint32_t offset;
    uint32_t bytes;
    const void* code;
    Location at;
    Site site;

    Access(Fiber& fiber, const char* what, uint32_t offset, uint32_t bytes, const void* code, Location at)
        : fiber(fiber), shadow(*fiber.block->shadow), what(what), offset(offset), bytes(bytes), code(code), at(at),
          site(site_of(shadow, code, at)) {
        const Block& block = *fiber.block;
        if (offset < block.shared_start || offset + bytes > block.shared_start + block.shared_bytes)
            fail_at(code, nullptr, at, "%s of %u bytes at byte %d lies outside the shared storage of %u bytes", what, bytes,
                    place(), block.shared_bytes);
    }

    int place() const { return int(offset) - int(fiber.block->shared_start); }

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

    [[noreturn]] void fail_with(const char* text, Site other, uint32_t thread) const {
        const void* other_code = nullptr;
        std::string place_of_other = kOtherPlace;
        if (other.is_call) {
            const Location& call = shadow.calls[size_t(other.value)];
            place_of_other = std::string(call.file) + ":" + std::to_string(call.line);
        } else {
            other_code = &anchor + other.value;
        }
        fail_at(code, other_code, at, "%s of %u bytes at byte %d of the shared storage %s thread %u at %s", what, bytes,
                place(), text, thread, place_of_other.c_str());
    }

    void require_landed(const Cell& cell) const {
        if (cell.pending)
            fail_with("meets an asynchronous copy that has not been waited for, by", cell.write_site, cell.writer);
    }

    void require_after_write(const Cell& cell, uint8_t covered) const {
        if (cell.writer == kNobody || !(cell.write_bytes & covered)) return;
        if (!shadow.knows(fiber.index, cell.writer, cell.write_clock))
            fail_with("is a race: nothing orders it after the write by", cell.write_site, cell.writer);
    }

    void require_after_reads(const Cell& cell) const {
        for (uint32_t i = 0; i < cell.reader_count; ++i) {
            const Reader& reader = cell.readers[i];
            if (!shadow.knows(fiber.index, reader.thread, reader.clock))
                fail_with("is a race: nothing orders it after the read by", reader.site, reader.thread);
        }
    }

    void require_initialised(const Cell& cell, uint8_t covered) const {
        if ((cell.initialised & covered) != covered)
            fail_at(code, nullptr, at, "%s of %u bytes at byte %d of the shared storage, which are uninitialised", what,
                    bytes, place());
    }

    void note_read(Cell& cell) const {
        Reader me{shadow.clock(fiber.index), site, uint16_t(fiber.index)};
        for (uint32_t i = 0; i < cell.reader_count; ++i) {
            Reader& reader = cell.readers[i];
            // A reader that this thread knows of says nothing more than this thread does.
            if (shadow.knows(fiber.index, reader.thread, reader.clock)) {
                reader = me;
                return;
            }
        }
        if (cell.reader_count < kReaders) {
            cell.readers[cell.reader_count++] = me;
        } else {
            cell.readers[fiber.index % kReaders] = me;
        }
    }

    void note_write(Cell& cell, uint8_t covered, bool atomic) const {
        cell.writer = uint16_t(fiber.index);
        cell.write_clock = shadow.clock(fiber.index);
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
        access.note_read(cell);
    });
}

void write(Fiber& fiber, uint32_t offset, uint32_t bytes, const void* code, Location at) {
    Access access(fiber, "write", offset, bytes, code, at);
    access.each_cell([&](Cell& cell, uint8_t covered) {
        access.require_landed(cell);
        access.require_after_write(cell, covered);
        access.require_after_reads(cell);
        access.note_write(cell, covered, false);
    });
}

void atomic(Fiber& fiber, uint32_t offset, uint32_t bytes, Location at) {
    Access access(fiber, "atomic", offset, bytes, nullptr, at);
    access.each_cell([&](Cell& cell, uint8_t covered) {
        access.require_landed(cell);
        access.require_initialised(cell, covered);
        if (!cell.atomic) access.require_after_write(cell, covered);
        access.require_after_reads(cell);
        access.note_write(cell, covered, true);
    });
}

void copy_issued(Fiber& fiber, uint32_t offset, uint32_t bytes, Location at) {
    Access access(fiber, "cp.async write", offset, bytes, nullptr, at);
    access.each_cell([&](Cell& cell, uint8_t covered) {
        access.require_landed(cell);
        access.require_after_write(cell, covered);
        access.require_after_reads(cell);
        access.note_write(cell, covered, false);
        cell.pending = true;
    });
}

void copy_landed(Fiber& fiber, uint32_t offset, uint32_t bytes, Location at) {
    Access access(fiber, "cp.async write", offset, bytes, nullptr, at);
    access.each_cell([&](Cell& cell, uint8_t covered) {
        Site issued = cell.write_site;
        cell.pending = false;
        access.note_write(cell, covered, false);
        cell.write_site = issued;
    });
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
