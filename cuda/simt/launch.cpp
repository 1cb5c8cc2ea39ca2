// Launches: checks before the first thread runs, blocks handed to the host's cores, checks after the last.
#include <stdio.h>

#include <thread>

#include "runtime.h"

// Written by build.rs: every kernel of cuda/.
extern "C" const KeelKernel* const keel_simt_kernels[];
extern "C" const uint32_t keel_simt_kernels_count;

namespace simt {

static thread_local std::string last_error;
static thread_local bool last_planted_bug_reached;

void note_planted_bug() { running()->block->launch->planted_bug_reached.store(true, std::memory_order_relaxed); }

// ---- Block contexts, kept for the next launch ----

static std::mutex pool_lock;
static std::vector<Block*> pool;

static Block* take_block() {
    {
        std::lock_guard<std::mutex> guard(pool_lock);
        if (!pool.empty()) {
            Block* block = pool.back();
            pool.pop_back();
            return block;
        }
    }
    return new Block;
}

static void give_block(Block* block) {
    std::lock_guard<std::mutex> guard(pool_lock);
    pool.push_back(block);
}

static void fiber_main() {
    Launch& launch = *running()->block->launch;
    launch.kernel->enter(launch.arguments);
    finish();
}

static uint3 position(uint64_t linear, dim3 size) {
    return {uint32_t(linear % size.x), uint32_t(linear / size.x % size.y), uint32_t(linear / size.x / size.y)};
}

static void prepare_warps(Block& block) {
    block.warp_count = (block.threads + kLanes - 1) / kLanes;
    block.ready_warps = block.warp_count == 32 ? ~0u : (1u << block.warp_count) - 1;
    // Odd seeds run the lanes of a warp from the last to the first: code that leans on either order then differs.
    bool downwards = block.launch->options.seed & 1;
    for (uint32_t i = 0; i < block.warp_count; ++i) {
        Warp& warp = block.warps[i];
        uint32_t lanes = block.threads - i * kLanes;
        warp.block = &block;
        warp.index = i;
        warp.lanes = lanes >= kLanes ? ~0u : (1u << lanes) - 1;
        warp.ready = warp.lanes;
        warp.arrived = 0;
        warp.exited = ~warp.lanes;
        warp.last_lane = downwards ? 0 : 31;
        warp.priority = block.random.next();
    }
}

static void prepare_block(Block& block, Launch& launch, uint64_t linear) {
    block.launch = &launch;
    block.index = position(linear, launch.grid);
    block.threads = launch.block.x * launch.block.y * launch.block.z;
    block.live = block.threads;
    block.failed = false;
    // By the block's number and not by the worker that runs it: a schedule is the same for any number of workers.
    block.random.state = launch.options.seed * 0xd1342543de82ef95ull + linear * 0x2545f4914f6cdd1dull;
    if (block.fibers.size() < block.threads) block.fibers.resize(block.threads);
    prepare_stacks(block);
    prepare_arena(block);
    prepare_warps(block);
    for (Barrier& barrier : block.barriers) {
        barrier.expected = 0;
        barrier.waiting.clear();
        barrier.arrivals.clear();
    }
    for (uint32_t i = 0; i < block.threads; ++i) {
        Fiber& fiber = block.fibers[i];
        fiber.thread = position(i, launch.block);
        fiber.block = &block;
        static_cast<Self&>(fiber).block = block.index;
        fiber.block_size = launch.block;
        fiber.grid_size = launch.grid;
        fiber.planted_bug = launch.options.planted_bug;
        fiber.warp = &block.warps[i / kLanes];
        fiber.warp->fibers[i % kLanes] = &fiber;
        fiber.index = i;
        fiber.lane = i % kLanes;
        fiber.finished = false;
        fiber.activity = "its start";
        fiber.accessed = nullptr;
        fiber.at = {nullptr, 0};
        fiber.copies.clear();
        fiber.group_ends.clear();
    }
}

static bool run_block(Block& block, Launch& launch, uint64_t linear) {
    prepare_block(block, launch, linear);
    if (!block.stacks || !block.arena) return false;
    for (uint32_t i = 0; i < block.threads; ++i)
        block.fibers[i].stack_pointer = first_frame(block.fibers[i].stack_high, fiber_main);
    poison_shared(block);
    if constexpr (kChecked) checker::begin_block(block);
    Fiber* first = choose(block, nullptr);
    current = first;
    switch_stack(&block.host_stack, first->stack_pointer);
    return true;
}

// The canary check reports through the block's first fiber, so it runs as one.
static void canary_main() {
    check_shared_canary(*running()->block);
    Block& block = *running()->block;
    current = nullptr;
    void* gone;
    switch_stack(&gone, block.host_stack);
}

static void run_canary_check(Block& block) {
    Fiber& first = block.fibers[0];
    current = &first;
    switch_stack(&block.host_stack, first_frame(first.stack_high, canary_main));
}

static void work(Launch& launch) {
    FaultStack fault_stack;
    WorkerMark mark(launch);
    Block* block = take_block();
    while (!launch.stop.load(std::memory_order_relaxed)) {
        uint64_t i = launch.next_block.fetch_add(1, std::memory_order_relaxed);
        if (i >= launch.blocks) break;
        if (!run_block(*block, launch, (launch.stride * i + launch.offset) % launch.blocks)) {
            std::lock_guard<std::mutex> guard(launch.report_lock);
            launch.report.present = true;
            launch.report.text = "the system has no memory for the emulator's stacks";
            break;
        }
        if (!block->failed) run_canary_check(*block);
    }
    give_block(block);
}

static void run_grid(Launch& launch) {
    Watch watch(launch);
    uint64_t workers = launch.options.workers;
    if (workers == 0) workers = std::thread::hardware_concurrency();
    // A host thread costs about as much as 1000 fibers: small grids run where they are.
    uint64_t threads = launch.blocks * launch.block.x * launch.block.y * launch.block.z;
    uint64_t worthwhile = 1 + threads / 1024;
    if (workers > worthwhile) workers = worthwhile;
    if (workers > launch.blocks) workers = launch.blocks;
    std::vector<std::thread> helpers;
    for (uint64_t i = 1; i < workers; ++i) helpers.emplace_back([&launch] { work(launch); });
    work(launch);
    for (std::thread& helper : helpers) helper.join();
}

static uint64_t common_divisor(uint64_t a, uint64_t b) {
    while (b) {
        uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

// Seed 0 and 1 take blocks in order and backwards; other seeds scatter them.
static void order_blocks(Launch& launch) {
    launch.stride = 1;
    launch.offset = 0;
    uint64_t seed = launch.options.seed;
    if (seed == 0 || launch.blocks < 2) return;
    Random random{seed};
    launch.stride = seed == 1 ? launch.blocks - 1 : 1 + random.next() % launch.blocks;
    // A stride without a common divisor visits every block once, without a list of them.
    while (common_divisor(launch.stride, launch.blocks) != 1) ++launch.stride;
    launch.offset = seed == 1 ? launch.blocks - 1 : random.next() % launch.blocks;
}

static std::string refusal(const Launch& launch) {
    const KeelKernel& kernel = *launch.kernel;
    char text[400] = "";
    uint64_t threads = uint64_t(launch.block.x) * launch.block.y * launch.block.z;
    uint64_t blocks = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
    if (blocks == 0 || launch.grid.x > 0x7fffffffu || launch.grid.y > 65535 || launch.grid.z > 65535) {
        snprintf(text, sizeof(text), "the grid (%u,%u,%u) must have 1..2147483647 × 1..65535 × 1..65535 blocks",
                 launch.grid.x, launch.grid.y, launch.grid.z);
    } else if (threads == 0 || threads > kMaxThreads || launch.block.z > 64) {
        snprintf(text, sizeof(text), "the block (%u,%u,%u) must have 1..1024 threads and at most 64 in z", launch.block.x,
                 launch.block.y, launch.block.z);
    } else if (kernel.threads && threads != kernel.threads) {
        snprintf(text, sizeof(text), "the kernel is written for blocks of %u threads, but the launch has %llu",
                 kernel.threads, (unsigned long long)threads);
    } else if (launch.shared_bytes < kernel.shared_bytes) {
        snprintf(text, sizeof(text), "the kernel's shared storage has %u bytes, but the launch gives %u",
                 kernel.shared_bytes, launch.shared_bytes);
    } else if (launch.shared_bytes > launch.options.shared_limit) {
        snprintf(text, sizeof(text), "%u bytes of shared memory are over the limit of %u", launch.shared_bytes,
                 launch.options.shared_limit);
    }
    return text;
}

// Collects the allocations behind the pointer arguments; refuses a pointer that leads nowhere.
static std::string find_allocations(Launch& launch) {
    for (uint32_t i = 0; i < launch.kernel->parameter_count; ++i) {
        if (launch.kernel->parameters[i].kind != KEEL_PARAMETER_POINTER) continue;
        const void* pointer;
        memcpy(&pointer, launch.arguments[i], sizeof(pointer));
        if (!pointer) continue;
        Allocation allocation;
        if (!find_allocation(pointer, &allocation))
            return "argument " + std::to_string(i) + " points outside the emulator's memory";
        bool known = false;
        for (const Allocation& other : launch.allocations) known |= other.map == allocation.map;
        if (!known) launch.allocations.push_back(allocation);
    }
    return {};
}

static int conclude(Launch& launch) {
    if (!launch.report.present) {
        for (const Allocation& allocation : launch.allocations) {
            std::string damage = check_slack(allocation);
            if (damage.empty()) continue;
            launch.report.present = true;
            launch.report.text = std::string("kernel ") + launch.kernel->name + ": " + damage;
            break;
        }
    }
    last_planted_bug_reached = launch.planted_bug_reached;
    if (!launch.report.present) return 0;
    last_error = finished_report(launch.report);
    return 2;
}

}  // namespace simt

using namespace simt;

extern "C" uint32_t keel_simt_kernel_count(void) { return keel_simt_kernels_count; }
extern "C" const KeelKernel* keel_simt_kernel(uint32_t index) { return keel_simt_kernels[index]; }
extern "C" int keel_simt_is_checked(void) { return kChecked; }
extern "C" const char* keel_simt_last_error(void) { return last_error.c_str(); }
extern "C" int keel_simt_planted_bug_reached(void) { return last_planted_bug_reached; }

extern "C" int keel_simt_launch(const KeelKernel* kernel, const uint32_t grid[3], const uint32_t block[3],
                                uint32_t shared_bytes, void** arguments, const KeelOptions* options,
                                const KeelExtent* extents, uint32_t extent_count) {
    static std::once_flag once;
    std::call_once(once, [] {
        install_fault_handlers();
        choose_tensor_code();
    });
    Launch launch;
    launch.kernel = kernel;
    launch.arguments = arguments;
    launch.grid = {grid[0], grid[1], grid[2]};
    launch.block = {block[0], block[1], block[2]};
    launch.shared_bytes = shared_bytes;
    launch.options = *options;
    if (launch.options.time_limit_ms == 0) launch.options.time_limit_ms = 60 * 1000;
    if (launch.options.shared_limit == 0) launch.options.shared_limit = 227 * 1024;
    launch.blocks = uint64_t(grid[0]) * grid[1] * grid[2];
    launch.extents.assign(extents, extents + extent_count);
    last_planted_bug_reached = false;
    std::string problem = refusal(launch);
    if (problem.empty()) problem = find_allocations(launch);
    if (!problem.empty()) {
        last_error = std::string("kernel ") + kernel->name + ": " + problem;
        return 1;
    }
    order_blocks(launch);
    run_grid(launch);
    return conclude(launch);
}
