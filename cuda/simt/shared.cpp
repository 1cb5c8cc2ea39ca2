// The block's shared memory: one window at the end of the arena, flush with an unreadable page, filled with 0xff before
// each block (NaN in every float format), with a canary below it.
#include "runtime.h"

namespace simt {

constexpr uint32_t kCanaryBytes = 1024;

void poison_shared(Block& block) {
    uint32_t alignment = block.launch->kernel->shared_alignment;
    if (alignment < 16) alignment = 16;
    block.shared_bytes = block.launch->shared_bytes;
    block.shared_start = (kArenaBytes - block.shared_bytes) & ~(alignment - 1);
    uint32_t from = block.shared_start < kCanaryBytes ? 0 : block.shared_start - kCanaryBytes;
    memset(block.arena + from, 0xff, kArenaBytes - from);
}

static bool is_poison(const char* bytes, uint32_t count) {
    for (uint32_t i = 0; i < count; ++i)
        if (uint8_t(bytes[i]) != 0xff) return false;
    return true;
}

void check_shared_canary(Block& block) {
    uint32_t end = block.shared_start + block.shared_bytes;
    uint32_t from = block.shared_start < kCanaryBytes ? 0 : block.shared_start - kCanaryBytes;
    bool below = is_poison(block.arena + from, block.shared_start - from);
    bool above = is_poison(block.arena + end, kArenaBytes - end);
    if (below && above) return;
    memset(block.arena, 0xff, kArenaBytes);
    current = &block.fibers[0];
    fail_as(block.fibers[0], Location{nullptr, 0}, "bytes %s the block's %u bytes of shared memory were written",
            below ? "behind" : "before", block.shared_bytes);
}

void* shared_storage(size_t bytes, Location at) {
    const Block& block = *running()->block;
    if (bytes > block.shared_bytes)
        fail(at, "the kernel's shared storage has %zu bytes, but the launch gave %u", bytes, block.shared_bytes);
    return block.arena + block.shared_start;
}

uint32_t address_in_shared(const void* pointer, Location at) {
    const Block& block = *running()->block;
    ptrdiff_t offset = static_cast<const char*>(pointer) - block.arena;
    if (offset < 0 || offset > ptrdiff_t(kArenaBytes))
        fail(at, "a shared address was taken of %p, which is not in this block's shared memory", pointer);
    return uint32_t(offset);
}

char* shared_range(uint32_t address, uint32_t bytes, uint32_t alignment, const char* what, Location at) {
    return shared_range(*running()->block, address, bytes, alignment, what, at);
}

char* shared_range(const Block& block, uint32_t address, uint32_t bytes, uint32_t alignment, const char* what, Location at) {
    int64_t offset = int64_t(address) - block.shared_start;
    if (address % alignment)
        fail(at, "%s: byte %lld of the shared storage is not aligned to %u bytes", what, (long long)offset, alignment);
    if (offset < 0 || offset + bytes > block.shared_bytes)
        fail(at, "%s: bytes %lld..%lld are outside the shared storage of %u bytes", what, (long long)offset,
             (long long)(offset + bytes), block.shared_bytes);
    return block.arena + address;
}

}  // namespace simt
