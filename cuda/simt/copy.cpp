// cp.async: copies from global to shared memory that complete when the hardware likes. Landing every copy as late as the
// program allows finds a missing wait; landing it at once finds a buffer refilled while it is still read.
// PTX ISA, "Data Movement and Conversion Instructions: cp.async".
#include "runtime.h"

namespace simt {

static void land(Fiber& fiber, Copy& copy) {
    if (copy.landed) return;
    copy.landed = true;
    char* to = fiber.block->arena + copy.to;
    memcpy(to, copy.from, copy.source_bytes);
    memset(to + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
}

static bool chance(Fiber& fiber, uint32_t one_in) { return fiber.block->random.below(one_in) == 0; }

// Random timing may land any copy at any call, waited for or not.
static void land_some(Fiber& fiber) {
    if (fiber.block->launch->options.copies != KEEL_COPIES_RANDOM) return;
    for (Copy& copy : fiber.copies)
        if (chance(fiber, 4)) land(fiber, copy);
}

void copy_async(uint32_t to, const void* from, uint32_t bytes, uint32_t source_bytes, Location at) {
    Fiber& me = *running();
    me.activity = "cp.async";
    me.at = at;
    if (source_bytes > bytes) fail(at, "cp.async: %u source bytes for a copy of %u", source_bytes, bytes);
    shared_range(to, bytes, bytes, "cp.async", at);
    if (uintptr_t(from) % bytes) fail(at, "cp.async: the source %p is not aligned to %u bytes", from, bytes);
    if (source_bytes) check_global(from, source_bytes, 1, false, at);
    me.copies.push_back({to, bytes, source_bytes, static_cast<const char*>(from), false, at});
    if constexpr (kChecked) checker::copy_issued(me, to, bytes, at);
    uint32_t timing = me.block->launch->options.copies;
    if (timing == KEEL_COPIES_EARLY || (timing == KEEL_COPIES_RANDOM && chance(me, 2))) land(me, me.copies.back());
}

void copy_async_commit(Location at) {
    Fiber& me = *running();
    me.at = at;
    me.group_ends.push_back(uint32_t(me.copies.size()));
    land_some(me);
}

static void finish_copies(Fiber& fiber, uint32_t count, Location at) {
    for (uint32_t i = 0; i < count; ++i) {
        land(fiber, fiber.copies[i]);
        if constexpr (kChecked) checker::copy_landed(fiber, fiber.copies[i].to, fiber.copies[i].bytes, at);
    }
    fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + count);
}

void copy_async_wait(uint32_t open_groups, Location at) {
    Fiber& me = *running();
    me.at = at;
    land_some(me);
    if (me.group_ends.size() <= open_groups) return;
    size_t closed = me.group_ends.size() - open_groups;
    uint32_t count = me.group_ends[closed - 1];
    finish_copies(me, count, at);
    me.group_ends.erase(me.group_ends.begin(), me.group_ends.begin() + ptrdiff_t(closed));
    for (uint32_t& end : me.group_ends) end -= count;
}

void copy_async_wait_all(Location at) {
    Fiber& me = *running();
    me.at = at;
    finish_copies(me, uint32_t(me.copies.size()), at);
    me.group_ends.clear();
}

void check_copies_on_exit(Fiber& fiber) {
    if (fiber.copies.empty()) return;
    const Copy& first = fiber.copies.front();
    fail(first.at, "this thread returns with %zu cp.async copies that no wait covers, the first issued here",
         fiber.copies.size());
}

}  // namespace simt
