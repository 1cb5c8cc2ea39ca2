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

static void take_blocks(Cluster& cluster) {
    std::lock_guard<std::mutex> guard(pool_lock);
    for (uint32_t rank = 0; rank < cluster.size; ++rank) {
        if (pool.empty()) pool.push_back(new Block);
        cluster.blocks[rank] = pool.back();
        pool.pop_back();
    }
}

static void give_blocks(Cluster& cluster) {
    std::lock_guard<std::mutex> guard(pool_lock);
    // The last taken lies on top again, so that the same block is used again and again.
    for (uint32_t rank = cluster.size; rank-- > 0;) pool.push_back(cluster.blocks[rank]);
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
        warp.registers = warp.wanted_registers = 0;
    }
}

static void prepare_block(Block& block, Cluster& cluster, uint32_t rank, uint64_t linear) {
    Launch& launch = *cluster.launch;
    block.launch = &launch;
    block.cluster = &cluster;
    block.rank = rank;
    block.agents.barriers.clear();
    block.agents.groups.clear();
    block.agents.remote.clear();
    block.agents.has_register_plan = false;
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
        fiber.slot = rank * block.threads + i;
        fiber.lane = i % kLanes;
        fiber.finished = false;
        fiber.activity = "its start";
        fiber.accessed = nullptr;
        fiber.at = {nullptr, 0};
        fiber.copies.clear();
        fiber.group_ends.clear();
        fiber.agents.reset();
    }
}

static bool run_cluster(Cluster& cluster, uint64_t number) {
    cluster.random = cluster.launch->options.seed * 0xd1342543de82ef95ull + number;
    cluster.copies.clear();
    cluster.waiting.clear();
    cluster.arrived = 0;
    cluster.phase = 0;
    for (uint32_t rank = 0; rank < cluster.size; ++rank) {
        Block& block = *cluster.blocks[rank];
        prepare_block(block, cluster, rank, number * cluster.size + rank);
        if (!block.stacks || !block.arena) return false;
        for (uint32_t i = 0; i < block.threads; ++i)
            block.fibers[i].stack_pointer = first_frame(block.fibers[i].stack_high, fiber_main);
        poison_shared(block);
    }
    if constexpr (kChecked) checker::begin_cluster(cluster);
    Fiber* first = choose(*cluster.blocks[0], nullptr);
    current = first;
    switch_stack(&cluster.host_stack, first->stack_pointer);
    return true;
}

// The canary check reports through the block's first fiber, so it runs as one.
static void canary_main() {
    check_shared_canary(*running()->block);
    Block& block = *running()->block;
    current = nullptr;
    void* gone;
    switch_stack(&gone, block.cluster->host_stack);
}

static void run_canary_check(Block& block) {
    Fiber& first = block.fibers[0];
    current = &first;
    switch_stack(&block.cluster->host_stack, first_frame(first.stack_high, canary_main));
}

static void work(Launch& launch) {
    FaultStack fault_stack;
    WorkerMark mark(launch);
    Cluster& cluster = *new Cluster;
    cluster.launch = &launch;
    cluster.size = launch.cluster;
    take_blocks(cluster);
    while (!launch.stop.load(std::memory_order_relaxed)) {
        uint64_t i = launch.next_cluster.fetch_add(1, std::memory_order_relaxed);
        if (i >= launch.clusters) break;
        if (!run_cluster(cluster, (launch.stride * i + launch.offset) % launch.clusters)) {
            std::lock_guard<std::mutex> guard(launch.report_lock);
            launch.report.present = true;
            launch.report.text = "the system has no memory for the emulator's stacks";
            break;
        }
        for (uint32_t rank = 0; rank < cluster.size && !launch.stop.load(std::memory_order_relaxed); ++rank)
            run_canary_check(*cluster.blocks[rank]);
    }
    give_blocks(cluster);
    delete &cluster;
}

static void run_grid(Launch& launch) {
    Watch watch(launch);
    uint64_t workers = launch.options.workers;
    if (workers == 0) workers = std::thread::hardware_concurrency();
    // A host thread costs about as much as 1000 fibers: small grids run where they are.
    uint64_t threads = launch.clusters * launch.cluster * launch.block.x * launch.block.y * launch.block.z;
    uint64_t worthwhile = 1 + threads / 1024;
    if (workers > worthwhile) workers = worthwhile;
    if (workers > launch.clusters) workers = launch.clusters;
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

// Seed 0 and 1 take clusters in order and backwards; other seeds scatter them.
static void order_clusters(Launch& launch) {
    launch.stride = 1;
    launch.offset = 0;
    uint64_t seed = launch.options.seed;
    if (seed == 0 || launch.clusters < 2) return;
    Random random{seed};
    launch.stride = seed == 1 ? launch.clusters - 1 : 1 + random.next() % launch.clusters;
    // A stride without a common divisor visits every block once, without a list of them.
    while (common_divisor(launch.stride, launch.clusters) != 1) ++launch.stride;
    launch.offset = seed == 1 ? launch.clusters - 1 : random.next() % launch.clusters;
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
    } else if (launch.cluster == 0 || launch.cluster > kClusterBlocks || launch.grid.x % launch.cluster) {
        snprintf(text, sizeof(text), "a grid of %u blocks in x does not divide into clusters of %u, which have 1..%u",
                 launch.grid.x, launch.cluster, kClusterBlocks);
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
        uint8_t kind = launch.kernel->parameters[i].kind;
        if (kind != KEEL_PARAMETER_POINTER && kind != KEEL_PARAMETER_MAP) continue;
        const void* pointer;
        if (kind == KEEL_PARAMETER_MAP) {
            TensorMap map;
            memcpy(&map, launch.arguments[i], sizeof(map));
            if (map.mark != kTensorMapMark) return "argument " + std::to_string(i) + " is no tensor map";
            pointer = reinterpret_cast<const void*>(map.address);
        } else {
            memcpy(&pointer, launch.arguments[i], sizeof(pointer));
        }
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
    return keel_simt_launch_clusters(kernel, 1, grid, block, shared_bytes, arguments, options, extents, extent_count);
}

extern "C" int keel_simt_launch_clusters(const KeelKernel* kernel, uint32_t cluster, const uint32_t grid[3],
                                         const uint32_t block[3], uint32_t shared_bytes, void** arguments,
                                         const KeelOptions* options, const KeelExtent* extents, uint32_t extent_count) {
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
    launch.cluster = cluster;
    launch.shared_bytes = shared_bytes;
    launch.options = *options;
    if (launch.options.time_limit_ms == 0) launch.options.time_limit_ms = 60 * 1000;
    if (launch.options.shared_limit == 0) launch.options.shared_limit = 227 * 1024;
    launch.extents.assign(extents, extents + extent_count);
    last_planted_bug_reached = false;
    std::string problem = refusal(launch);
    if (problem.empty()) problem = find_allocations(launch);
    if (!problem.empty()) {
        last_error = std::string("kernel ") + kernel->name + ": " + problem;
        return 1;
    }
    launch.clusters = uint64_t(grid[0]) * grid[1] * grid[2] / cluster;
    order_clusters(launch);
    run_grid(launch);
    return conclude(launch);
}
