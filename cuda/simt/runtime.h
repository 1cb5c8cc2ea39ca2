// The emulator's inner data: fibers, warps, blocks, launches. Kernels never see this header.
//
// One fiber is one CUDA thread. A worker (a host thread) runs one block at a time; inside it exactly one fiber runs, and
// whoever blocks chooses the next (schedule.cpp). Errors are written to the launch and the block is dropped where it
// stands: fibers never unwind, which is sound because device code has no destructors.
#pragma once
#include <signal.h>

#include <atomic>
#include <mutex>
#include <string>
#include <vector>

#include "agents.h"
#include "device.h"

namespace simt {

#ifdef SIMT_CHECKED
constexpr bool kChecked = true;
#else
constexpr bool kChecked = false;
#endif

constexpr uint32_t kLanes = 32;
constexpr uint32_t kMaxThreads = 1024;
constexpr uint32_t kBarriers = 16;
// 32-bit shared addresses are offsets into the arena; it stays within the 18 bits of Hopper's matrix descriptors.
constexpr uint32_t kArenaBytes = 256 * 1024;
constexpr size_t kPageBytes = 4096;

struct Block;
struct Fiber;
struct Launch;
struct Warp;
namespace checker {
struct Shadow;
}

// One asynchronous copy that its thread has not waited for yet.
struct Copy {
    uint32_t to;
    uint32_t bytes, source_bytes;
    const char* from;
    bool landed;
    Location at;
};

// Runs a warp-wide operation once, for all `lanes`, on behalf of the last one to arrive.
using WarpOperation = void (*)(Warp& warp, uint32_t lanes);

struct Fiber : Self {
    void* stack_pointer;  // while another fiber runs
    char* stack_low;
    char* stack_high;
    Block* block;
    Warp* warp;
    uint32_t index;  // in the block
    uint32_t slot;   // in the cluster
    uint32_t lane;
    bool finished;
    // What it last asked the emulator for, and where.
    const char* activity;
    Location at;
    // The instruction of its last access to memory; null outside the checked build, whose hooks note it.
    const void* accessed;
    // Its part in a warp-wide operation.
    void* operand;
    uint32_t mask;
    uint32_t key;
    WarpOperation operation;
    // Asynchronous copies, oldest first, and the end of each committed group in that list.
    std::vector<Copy> copies;
    std::vector<uint32_t> group_ends;
    ThreadAgents agents;
};

struct Warp {
    Block* block;
    uint32_t index;
    uint32_t lanes;    // that exist
    uint32_t ready;    // that can run
    uint32_t arrived;  // that wait in a warp-wide operation
    uint32_t exited;
    uint32_t last_lane;
    uint32_t priority;
    uint32_t registers;  // of a thread, as setmaxnreg leaves them
    uint32_t wanted_registers;
    Fiber* fibers[kLanes];
};

struct Barrier {
    uint32_t expected;  // 0: nobody has come yet
    bool whole_block;
    Location first;
    std::vector<Fiber*> waiting;   // in barrier.sync
    std::vector<Fiber*> arrivals;  // in barrier.arrive: they have gone on
    size_t size() const { return waiting.size() + arrivals.size(); }
};

// Small generator with a state of its own for every block, so that results do not depend on the number of workers.
struct Random {
    uint64_t state;
    uint32_t next() {
        state += 0x9e3779b97f4a7c15ull;
        uint64_t z = (state ^ state >> 30) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ z >> 27) * 0x94d049bb133111ebull;
        return uint32_t(z >> 32);
    }
    uint32_t below(uint32_t bound) { return uint32_t(uint64_t(next()) * bound >> 32); }
};

// Everything one worker needs to run a block; kept and used again for the next.
struct Block {
    Launch* launch = nullptr;
    Cluster* cluster = nullptr;
    uint32_t rank = 0;
    uint3 index{};
    uint32_t threads = 0, warp_count = 0, live = 0;
    uint32_t ready_warps = 0;
    bool failed = false;
    Random random{};
    char* arena = nullptr;
    uint32_t shared_start = 0, shared_bytes = 0;
    char* stacks = nullptr;
    size_t stacks_bytes = 0;
    uint32_t stack_count = 0;
    std::vector<Fiber> fibers;
    Warp warps[kMaxThreads / kLanes];
    Barrier barriers[kBarriers];
    BlockAgents agents;
    checker::Shadow* shadow = nullptr;
};

// A range of global memory the emulator handed out.
struct Allocation {
    const char* start;
    uint64_t bytes;
    const char* map;
    uint64_t map_bytes;
};

// Stands in a message for the source line of `other_code`, which is looked up only when the report is read.
constexpr char kOtherPlace[] = "\x02";

// What went wrong first, in a launch.
struct Report {
    bool present = false;
    std::string text;
    const void* code = nullptr;
    const void* other_code = nullptr;
};

struct Launch {
    const KeelKernel* kernel;
    void** arguments;
    dim3 grid, block;
    uint32_t cluster;
    uint32_t shared_bytes;
    KeelOptions options;
    uint64_t clusters;
    uint64_t stride, offset;  // the order of clusters: (stride * i + offset) % clusters
    std::atomic<uint64_t> next_cluster{0};
    std::atomic<bool> stop{false};
    std::atomic<bool> late{false};
    std::atomic<bool> planted_bug_reached{false};
    std::mutex report_lock;
    Report report;
    std::vector<Allocation> allocations;  // those its pointer arguments point into
    std::vector<KeelExtent> extents;
};

inline Fiber* running() { return static_cast<Fiber*>(current); }

// ---- fiber.cpp
extern "C" void switch_stack(void** save, void* load) __asm__("keel_simt_switch");
// Writes the first frame of a fiber below `top`: switching to the result enters `entry`, which never returns.
void* first_frame(char* top, void (*entry)());
void prepare_stacks(Block& block);
void prepare_arena(Block& block);

// ---- schedule.cpp
// Who runs after a thread of `block`; null when nobody of its cluster can, and no copy is on its way.
Fiber* choose(Block& block, Warp* last);
// Gives the worker to another fiber; returns when this one is chosen again. The caller has cleared its ready bit.
void park();
void sleep(Fiber& fiber, const char* activity, Location at);
void wake(Fiber& fiber);
[[noreturn]] void finish();

// ---- collective.cpp, barrier.cpp
void collect(uint32_t mask, uint32_t key, void* operand, WarpOperation operation, const char* activity, Location at);
// Fails unless all lanes of a warp take part in `what`.
void require_whole_warp(Warp& warp, uint32_t lanes, const char* what);
// Makes the lanes of the running thread's warp meet in an instruction that all of them owe.
void meet_warp(uint32_t key, const char* activity, Location at);
void check_collectives_after_exit(Warp& warp);
void check_barriers_on_exit(Fiber& fiber);

// ---- shared.cpp
void poison_shared(Block& block);
void check_shared_canary(Block& block);
char* shared_range(uint32_t address, uint32_t bytes, uint32_t alignment, const char* what, Location at);
char* shared_range(const Block& block, uint32_t address, uint32_t bytes, uint32_t alignment, const char* what, Location at);

// ---- copy.cpp
void check_copies_on_exit(Fiber& fiber);

// ---- tensor.cpp
void choose_tensor_code();

// ---- memory.cpp
bool find_allocation(const void* pointer, Allocation* found);
// One sentence on an address that a thread had no business with.
std::string describe_address(const void* pointer, const Block& block);
// Empty when the slack behind `allocation` is untouched; repairs it otherwise.
std::string check_slack(const Allocation& allocation);

// ---- report.cpp
[[noreturn]] void fail_at(const void* code, const void* other_code, Location at, const char* format, ...)
    __attribute__((format(printf, 4, 5)));
[[noreturn]] void fail_as(Fiber& fiber, Location at, const char* format, ...) __attribute__((format(printf, 3, 4)));
[[noreturn]] void abandon(Block& block);
std::string finished_report(const Report& report);
// "file:line" of an address in the program text, or the bare address when the debug information is missing.
std::string source_line(const void* code);

// ---- fault.cpp
void install_fault_handlers();
struct FaultStack {
    FaultStack();
    ~FaultStack();
    void* memory;
    stack_t previous;
};
// Ends a launch that runs over its time; also one whose threads never call the emulator.
struct Watch {
    explicit Watch(Launch& launch);
    ~Watch();
    Launch& launch;
};
struct WorkerMark {
    explicit WorkerMark(Launch& launch);
    ~WorkerMark();
    Launch& launch;
};

// ---- checker.cpp: happens-before of shared memory; called only in the checked build
namespace checker {
void begin_cluster(Cluster& cluster);
void barrier(Block& block, const Barrier& barrier);
void warp_join(Warp& warp, uint32_t lanes);
void read(Fiber& fiber, uint32_t offset, uint32_t bytes, const void* code, Location at);
void write(Fiber& fiber, uint32_t offset, uint32_t bytes, const void* code, Location at);
void atomic(Fiber& fiber, uint32_t offset, uint32_t bytes, Location at);
void copy_issued(Fiber& fiber, uint32_t offset, uint32_t bytes, Location at);
void copy_landed(Fiber& fiber, uint32_t offset, uint32_t bytes, Location at);
void global_access(Fiber& fiber, const void* pointer, uint64_t bytes, bool write, const void* code, Location at);

// A clock of its own for something that is no thread; 0 means that it has none yet.
uint32_t add_column(Cluster& cluster);
// What a thread knows goes into `into`; what `from` holds becomes known to a thread.
void release(Fiber& fiber, std::vector<uint32_t>& into);
void acquire(Fiber& fiber, const std::vector<uint32_t>& from);
// Makes a count of a column known to a thread.
void learn(Fiber& fiber, uint32_t column, uint32_t count);
void raise(std::vector<uint32_t>& vector, uint32_t column, uint32_t count);
void proxy_fence(Fiber& fiber);
uint32_t clock_of(Fiber& fiber);
bool is_known_in_block(Block& block, uint32_t slot, uint32_t clock);
void cluster_barrier(Cluster& cluster);
// Eight bytes become a barrier, are used as one, and become memory again.
void barrier_made(Fiber& fiber, uint32_t offset, Location at);
void barrier_used(Fiber& fiber, Block& block, uint32_t offset, const char* what, Location at);
void barrier_removed(Fiber& fiber, uint32_t offset);
// A copy writes shared memory of `block` in the phase that ends with the column's `count`.
void agent_writes(Fiber& fiber, Block& block, uint32_t offset, uint32_t bytes, uint32_t column, uint32_t count, Location at);
// A store reads on behalf of a thread, a product on behalf of a warpgroup, until those know the column's `count`.
void agent_reads(Fiber& fiber, uint32_t offset, uint32_t bytes, uint32_t column, uint32_t count, Location at);
// Begins and ends reads for all threads of the warpgroup whose first thread is `first`.
void begin_group_reads(Fiber& first);
void group_reads(Fiber& first, uint32_t offset, uint32_t bytes, uint32_t column, uint32_t count, Location at);
// An access to a thread's own stack: is it to registers that a product owns?
void stack_access(Fiber& fiber, const char* address, size_t bytes, bool write, const void* code);
}  // namespace checker

}  // namespace simt
