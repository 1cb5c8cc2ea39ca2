// Operations of a whole warp: __syncwarp, shuffles, votes; load_matrices and the tensor product build on `collect`.
// Every lane writes down its operand and parks; the last to arrive does the work for all, in one loop.
#include "runtime.h"

namespace simt {

static void require_agreement(Warp& warp, uint32_t lanes, Fiber& me) {
    for (uint32_t set = lanes; set; set &= set - 1) {
        const Fiber& other = *warp.fibers[__builtin_ctz(set)];
        if (other.mask == me.mask && other.key == me.key && other.operation == me.operation) continue;
        fail_as(me, me.at,
                "the lanes of a warp disagree: lane %u is in %s with mask %08x, but lane %u is in %s with mask %08x at %s:%d",
                me.lane, me.activity, me.mask, other.lane, other.activity, other.mask, other.at.file, other.at.line);
    }
}

static void complete(Warp& warp, uint32_t lanes, Fiber& last) {
    require_agreement(warp, lanes, last);
    last.operation(warp, lanes);
    warp.arrived &= ~lanes;
    warp.ready |= lanes;
    warp.block->ready_warps |= 1u << warp.index;
}

void collect(uint32_t mask, uint32_t key, void* operand, WarpOperation operation, const char* activity, Location at) {
    Fiber& me = *running();
    Warp& warp = *me.warp;
    uint32_t bit = 1u << me.lane;
    me.operand = operand;
    me.mask = mask;
    me.key = key;
    me.operation = operation;
    me.activity = activity;
    me.at = at;
    if (!(mask & bit)) fail(at, "%s: the mask %08x does not name the calling lane %u", activity, mask, me.lane);
    if (mask & ~warp.lanes) fail(at, "%s: the mask %08x names lanes that the block does not have", activity, mask);
    warp.arrived |= bit;
    // Lanes that have returned are not waited for, although the mask may name them: so the programming guide has it.
    uint32_t needed = mask & ~warp.exited;
    if ((warp.arrived & needed) == needed) return complete(warp, needed, me);
    sleep(me, activity, at);
    park();
}

void require_whole_warp(Warp& warp, uint32_t lanes, const char* what) {
    if (lanes == ~0u) return;
    Fiber& first = *warp.fibers[__builtin_ctz(lanes)];
    fail_as(first, first.at, "%s needs all 32 lanes of the warp, but only %08x take part", what, lanes);
}

void meet_warp(uint32_t key, const char* activity, Location at) {
    WarpOperation meet = [](Warp& warp, uint32_t lanes) {
        require_whole_warp(warp, lanes, warp.fibers[__builtin_ctz(lanes)]->activity);
    };
    collect(~0u, key, nullptr, meet, activity, at);
}

// By the priority schedule any lane, the same in a whole launch.
static void run_elect(Warp& warp, uint32_t lanes) {
    require_whole_warp(warp, lanes, "elect.sync");
    const KeelOptions& options = warp.block->launch->options;
    Random random{options.seed};
    uint32_t elected = options.schedule == KEEL_SCHEDULE_PRIORITY ? random.below(kLanes) : 0;
    for (uint32_t lane = 0; lane < kLanes; ++lane)
        *static_cast<bool*>(warp.fibers[lane]->operand) = lane == elected;
}

bool elect_one(uint32_t mask, Location at) {
    bool is_elected = false;
    collect(mask, 0x600, &is_elected, run_elect, "elect.sync", at);
    return is_elected;
}

void check_collectives_after_exit(Warp& warp) {
    for (uint32_t set = warp.arrived; set; set &= set - 1) {
        Fiber& fiber = *warp.fibers[__builtin_ctz(set)];
        uint32_t needed = fiber.mask & ~warp.exited;
        if (!(warp.arrived >> fiber.lane & 1) || (warp.arrived & needed) != needed) continue;
        // The work is done in the name of a lane that waits: faults are then reported where that lane stands.
        Self* exiting = current;
        complete(warp, needed, fiber);
        current = exiting;
    }
}

void warp_sync(uint32_t mask, Location at) {
    WarpOperation join = [](Warp& warp, uint32_t lanes) {
        if constexpr (kChecked) checker::warp_join(warp, lanes);
    };
    collect(mask, 0x100, nullptr, join, "__syncwarp", at);
}

struct ShuffleOperand {
    uint64_t value, result;
    Shuffle kind;
    int argument, width;
};

static int shuffle_source(int lane, const ShuffleOperand& operand) {
    int width = operand.width, base = lane & ~(width - 1), source = lane;
    switch (operand.kind) {
        case Shuffle::Index: return base + (operand.argument & (width - 1));
        case Shuffle::Up: source = lane - operand.argument; return source < base ? lane : source;
        case Shuffle::Down: source = lane + operand.argument; return source >= base + width ? lane : source;
        case Shuffle::Xor: source = lane ^ operand.argument; return source >= base + width ? lane : source;
    }
    return lane;
}

static void run_shuffle(Warp& warp, uint32_t lanes) {
    for (uint32_t set = lanes; set; set &= set - 1) {
        Fiber& fiber = *warp.fibers[__builtin_ctz(set)];
        ShuffleOperand& operand = *static_cast<ShuffleOperand*>(fiber.operand);
        int source = shuffle_source(int(fiber.lane), operand);
        if (!(lanes >> source & 1))
            fail_as(fiber, fiber.at, "shuffle: lane %u reads lane %d, which does not take part (lanes %08x)", fiber.lane,
                    source, lanes);
        operand.result = static_cast<ShuffleOperand*>(warp.fibers[source]->operand)->value;
    }
}

uint64_t shuffle(uint32_t mask, uint64_t value, Shuffle kind, int argument, int width, Location at) {
    if (width < 1 || width > 32 || (width & (width - 1))) fail(at, "shuffle: width %d is not a power of two up to 32", width);
    ShuffleOperand operand{value, 0, kind, argument, width};
    collect(mask, 0x200 + uint32_t(kind), &operand, run_shuffle, "a shuffle", at);
    return operand.result;
}

struct VoteOperand {
    uint32_t value, result;
    Vote kind;
};

static void run_vote(Warp& warp, uint32_t lanes) {
    auto operand_of = [&](uint32_t lane) { return static_cast<VoteOperand*>(warp.fibers[lane]->operand); };
    uint32_t ballot = 0, sum = 0, least = ~0u, most = 0;
    for (uint32_t set = lanes; set; set &= set - 1) {
        uint32_t lane = uint32_t(__builtin_ctz(set)), value = operand_of(lane)->value;
        ballot |= uint32_t(value != 0) << lane;
        sum += value;
        least = value < least ? value : least;
        most = value > most ? value : most;
    }
    for (uint32_t set = lanes; set; set &= set - 1) {
        VoteOperand& operand = *operand_of(uint32_t(__builtin_ctz(set)));
        switch (operand.kind) {
            case Vote::Any: operand.result = ballot != 0; break;
            case Vote::All: operand.result = ballot == lanes; break;
            case Vote::Ballot: operand.result = ballot; break;
            case Vote::Add: operand.result = sum; break;
            case Vote::Min: operand.result = least; break;
            case Vote::Max: operand.result = most; break;
            case Vote::Match:
                operand.result = 0;
                for (uint32_t others = lanes; others; others &= others - 1) {
                    uint32_t lane = uint32_t(__builtin_ctz(others));
                    operand.result |= uint32_t(operand_of(lane)->value == operand.value) << lane;
                }
                break;
        }
    }
}

uint32_t vote(uint32_t mask, uint32_t value, Vote kind, Location at) {
    VoteOperand operand{value, 0, kind};
    collect(mask, 0x300 + uint32_t(kind), &operand, run_vote, "a vote or reduction", at);
    return operand.result;
}

}  // namespace simt
