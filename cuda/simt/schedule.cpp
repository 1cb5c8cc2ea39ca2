// Who runs next. Two schedules find what a fair one hides: running one warp as far ahead as it can go, and random
// priorities that starve one warp for a while. A uniformly random choice keeps the warps in rough step and found nothing.
#include "runtime.h"

namespace simt {

// The member of `set` after `last`, going round upwards or downwards.
static uint32_t follow(uint32_t set, uint32_t last, bool downwards) {
    if (downwards) {
        uint32_t below = last == 0 ? 0 : set & (~0u >> (32 - last));
        return 31 - uint32_t(__builtin_clz(below ? below : set));
    }
    uint32_t above = last >= 31 ? 0 : set & ~0u << (last + 1);
    return uint32_t(__builtin_ctz(above ? above : set));
}

static Warp& highest_priority(Block& block, Warp* last, uint32_t draw) {
    // One wait in 256.
    if (last && draw >> 24 == 0) last->priority = block.random.next();
    Warp* best = nullptr;
    for (uint32_t set = block.ready_warps; set; set &= set - 1) {
        Warp& warp = block.warps[__builtin_ctz(set)];
        if (!best || warp.priority > best->priority) best = &warp;
    }
    return *best;
}

static Fiber* choose_in(Block& block, Warp* last) {
    const KeelOptions& options = block.launch->options;
    if (options.schedule == KEEL_SCHEDULE_PRIORITY) {
        // One draw for both, and the lane that follows a drawn place, likelier after a gap than an even draw would have it: this
        // is asked at every wait of every thread.
        const uint32_t draw = block.random.next();
        Warp& warp = highest_priority(block, last, draw);
        return warp.fibers[follow(warp.ready, draw % kLanes, false)];
    }
    bool downwards = options.seed & 1;
    Warp* warp = last;
    if (!warp || !warp->ready) {
        uint32_t from = last ? last->index : downwards ? 0 : 31;
        warp = &block.warps[follow(block.ready_warps, from, downwards)];
    }
    warp->last_lane = follow(warp->ready, warp->last_lane, downwards);
    return warp->fibers[warp->last_lane];
}

// A block of the cluster with a thread that can run: this one until it blocks, or by the priority schedule another now and then.
static Block* choose_block(Block& block) {
    Cluster& cluster = *block.cluster;
    const KeelOptions& options = block.launch->options;
    uint32_t from = block.rank;
    if (block.ready_warps && (options.schedule != KEEL_SCHEDULE_PRIORITY || block.random.below(8) != 0)) return &block;
    for (uint32_t i = 1; i <= cluster.size; ++i) {
        uint32_t step = options.seed & 1 ? cluster.size - i : i;
        Block& other = *cluster.blocks[(from + step) % cluster.size];
        if (other.ready_warps) return &other;
    }
    return nullptr;
}

Fiber* choose(Block& block, Warp* last) {
    do {
        // Most kernels have no clusters, and this is asked at every wait of every thread.
        if (block.cluster->size == 1) {
            if (block.ready_warps) return choose_in(block, last);
        } else if (Block* chosen = choose_block(block)) {
            return choose_in(*chosen, chosen == &block ? last : nullptr);
        }
        // The latest that a copy may land is when nobody can go on without it.
    } while (land_one(*block.cluster));
    return nullptr;
}

static std::string where(Location at) {
    return at.file ? std::string(at.file) + ":" + std::to_string(at.line) : std::string("its first line");
}

// Says for every run of threads in the same place what they wait for.
static std::string waiting_threads(const Block& block) {
    std::string text;
    constexpr int kMaxLines = 12;
    int lines = 0;
    for (uint32_t i = 0; i < block.threads;) {
        const Fiber& first = block.fibers[i];
        uint32_t end = i + 1;
        auto alike = [&](const Fiber& other) {
            return other.finished == first.finished && (first.finished || (other.activity == first.activity &&
                                                                           other.at.line == first.at.line));
        };
        while (end < block.threads && alike(block.fibers[end])) ++end;
        if (++lines > kMaxLines) return text + "\n    ...";
        text += "\n    threads " + std::to_string(i) + ".." + std::to_string(end - 1) + ": ";
        text += first.finished ? std::string("finished") : "wait in " + std::string(first.activity) + " at " + where(first.at);
        i = end;
    }
    for (uint32_t id = 0; id < kBarriers; ++id) {
        const Barrier& barrier = block.barriers[id];
        if (barrier.expected)
            text += "\n    barrier " + std::to_string(id) + " has " + std::to_string(barrier.size()) + " of " +
                    std::to_string(barrier.expected) + " threads";
    }
    return text + waiting_barriers(block);
}

static std::string deadlock_report(const Block& block) {
    const Cluster& cluster = *block.cluster;
    std::string text = "deadlock: no thread of the block can run";
    if (cluster.size == 1) return text + waiting_threads(block);
    for (uint32_t rank = 0; rank < cluster.size; ++rank)
        text += "\n    block " + std::to_string(rank) + " of the cluster:" + waiting_threads(*cluster.blocks[rank]);
    return text;
}

static void run(Fiber& from, Fiber& to) {
    if (&from == &to) return;
    current = &to;
    switch_stack(&from.stack_pointer, to.stack_pointer);
}

void park() {
    Fiber& me = *running();
    Block& block = *me.block;
    if (block.launch->late.load(std::memory_order_relaxed)) {
        fail(me.at, "the launch ran over its time limit of %u ms; this thread waits in %s",
             block.launch->options.time_limit_ms, me.activity);
    }
    if (block.launch->stop.load(std::memory_order_relaxed)) abandon(block);
    Fiber* next = choose(block, me.warp);
    if (!next) fail(me.at, "%s", deadlock_report(block).c_str());
    run(me, *next);
}

void sleep(Fiber& fiber, const char* activity, Location at) {
    fiber.activity = activity;
    fiber.at = at;
    Warp& warp = *fiber.warp;
    warp.ready &= ~(1u << fiber.lane);
    if (!warp.ready) fiber.block->ready_warps &= ~(1u << warp.index);
}

void wake(Fiber& fiber) {
    fiber.warp->ready |= 1u << fiber.lane;
    fiber.block->ready_warps |= 1u << fiber.warp->index;
}

void finish() {
    Fiber& me = *running();
    Block& block = *me.block;
    check_copies_on_exit(me);
    check_barriers_on_exit(me);
    check_agents_on_exit(me);
    me.finished = true;
    --block.live;
    sleep(me, "nothing", me.at);
    me.warp->exited |= 1u << me.lane;
    check_collectives_after_exit(*me.warp);
    void* gone;
    const Cluster& cluster = *block.cluster;
    bool is_over = true;
    for (uint32_t rank = 0; rank < cluster.size; ++rank) is_over &= cluster.blocks[rank]->live == 0;
    if (is_over) {
        current = nullptr;
        switch_stack(&gone, cluster.host_stack);
    }
    if (block.launch->stop.load(std::memory_order_relaxed)) abandon(block);
    Fiber* next = choose(block, me.warp);
    if (!next) fail(me.at, "%s", deadlock_report(block).c_str());
    current = next;
    switch_stack(&gone, next->stack_pointer);
    __builtin_unreachable();
}

}  // namespace simt
