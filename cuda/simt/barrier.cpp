// Block barriers. Stricter than the hardware on purpose: threads must meet at the same source line of __syncthreads, and
// a thread that leaves while others wait for the whole block is an error, not a smaller barrier.
#include "runtime.h"

namespace simt {

static void complete(Block& block, Barrier& barrier) {
    if constexpr (kChecked) checker::barrier(block, barrier);
    for (Fiber* fiber : barrier.waiting) wake(*fiber);
    barrier.waiting.clear();
    barrier.arrivals.clear();
    barrier.expected = 0;
}

static void enter(uint32_t id, uint32_t count, bool waits, Location at) {
    Fiber& me = *running();
    Block& block = *me.block;
    if (id >= kBarriers) fail(at, "barrier %u: a block has barriers 0..%u", id, kBarriers - 1);
    if (count % kLanes || count > block.threads)
        fail(at, "barrier %u: the thread count %u must be a multiple of 32 and at most the block's %u", id, count,
             block.threads);
    Barrier& barrier = block.barriers[id];
    bool whole_block = count == 0;
    if (barrier.expected == 0) {
        barrier.expected = whole_block ? block.threads : count;
        barrier.whole_block = whole_block;
        barrier.first = at;
    } else if (barrier.whole_block != whole_block || (!whole_block && barrier.expected != count)) {
        fail(at, "barrier %u: this thread names %u threads, but those waiting at %s:%d name %u", id,
             whole_block ? block.threads : count, barrier.first.file, barrier.first.line, barrier.expected);
    } else if (whole_block && (barrier.first.line != at.line || strcmp(barrier.first.file, at.file) != 0)) {
        fail(at, "__syncthreads in divergent code: %zu threads of the block wait at %s:%d", barrier.size(),
             barrier.first.file, barrier.first.line);
    }
    if (whole_block && block.live < block.threads)
        fail(at, "__syncthreads: %u threads of the block have already returned, but each owes this barrier",
             block.threads - block.live);
    (waits ? barrier.waiting : barrier.arrivals).push_back(&me);
    if (barrier.size() == barrier.expected) {
        me.at = at;
        return complete(block, barrier);
    }
    if (!waits) return;
    sleep(me, "a barrier", at);
    park();
}

void barrier_sync(uint32_t barrier, uint32_t count, Location at) { enter(barrier, count, true, at); }
void barrier_arrive(uint32_t barrier, uint32_t count, Location at) { enter(barrier, count, false, at); }

void check_barriers_on_exit(Fiber& fiber) {
    for (const Barrier& barrier : fiber.block->barriers) {
        if (barrier.expected && barrier.whole_block)
            fail(fiber.at, "this thread returns while %zu threads of its block wait for it in __syncthreads at %s:%d",
                 barrier.size(), barrier.first.file, barrier.first.line);
    }
}

}  // namespace simt
