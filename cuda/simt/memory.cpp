// Global memory of the emulator. An allocation ends flush with an unreadable page at 16-byte granularity (the 256 bytes
// of a real driver would hide overruns), is filled with 0xff, and its slack bytes are canaries.
#include <sys/mman.h>

#include <map>

#include "runtime.h"

namespace simt {

// Unreadable bytes on either side: enough that a stray index rarely reaches the next allocation.
constexpr size_t kGuardBytes = 64 * 1024;

static std::mutex lock;
static std::map<uintptr_t, Allocation>& table() {
    static std::map<uintptr_t, Allocation> allocations;
    return allocations;
}

// The allocation whose mapping, guards included, contains `pointer`. The caller holds the lock.
static const Allocation* enclosing(const void* pointer) {
    auto after = table().upper_bound(uintptr_t(pointer));
    if (after == table().begin()) return nullptr;
    const Allocation& allocation = std::prev(after)->second;
    return static_cast<const char*>(pointer) < allocation.map + allocation.map_bytes ? &allocation : nullptr;
}

bool find_allocation(const void* pointer, Allocation* found) {
    std::lock_guard<std::mutex> guard(lock);
    const Allocation* allocation = enclosing(pointer);
    if (!allocation) return false;
    *found = *allocation;
    return true;
}

static std::string describe_global(const char* address) {
    std::lock_guard<std::mutex> guard(lock);
    const Allocation* allocation = enclosing(address);
    if (!allocation) return address < reinterpret_cast<const char*>(4096) ? "a null pointer" : "memory that no allocation holds";
    std::string of = " an allocation of " + std::to_string(allocation->bytes) + " bytes";
    ptrdiff_t offset = address - allocation->start;
    if (offset < 0) return std::to_string(-offset) + " bytes before" + of;
    if (uint64_t(offset) < allocation->bytes) return "byte " + std::to_string(offset) + " of" + of + " that is read-only";
    return std::to_string(uint64_t(offset) - allocation->bytes) + " bytes past" + of;
}

std::string describe_address(const void* pointer, const Block& block) {
    const char* address = static_cast<const char*>(pointer);
    if (address >= block.arena - kGuardBytes && address < block.arena + kArenaBytes + kGuardBytes) {
        ptrdiff_t past = address - (block.arena + block.shared_start + block.shared_bytes);
        if (past >= 0)
            return std::to_string(past) + " bytes past the shared storage of " + std::to_string(block.shared_bytes) + " bytes";
        return "memory before the shared storage of " + std::to_string(block.shared_bytes) + " bytes";
    }
    if (address >= block.stacks && address < block.stacks + block.stacks_bytes)
        return "below the thread's stack: its local variables need more than the emulator's 56 KiB";
    return describe_global(address);
}

std::string check_slack(const Allocation& allocation) {
    char* slack = const_cast<char*>(allocation.start) + allocation.bytes;
    const char* end = allocation.map + allocation.map_bytes - kGuardBytes;
    for (; slack < end; ++slack) {
        if (uint8_t(*slack) == 0xff) continue;
        ptrdiff_t past = slack - (allocation.start + allocation.bytes);
        *slack = char(0xff);
        return "byte " + std::to_string(past) + " past an allocation of " + std::to_string(allocation.bytes) +
               " bytes was written";
    }
    return {};
}

void check_global(const void* pointer, uint32_t bytes, uint32_t alignment, bool write, Location at) {
    Fiber& me = *running();
    const char* address = static_cast<const char*>(pointer);
    if (uintptr_t(address) % alignment) fail(at, "global address %p is not aligned to %u bytes", pointer, alignment);
    if constexpr (kChecked) checker::global_access(me, pointer, bytes, write, nullptr, at);
    for (const Allocation& allocation : me.block->launch->allocations)
        if (address >= allocation.start && address + bytes <= allocation.start + allocation.bytes) return;
    fail(at, "%u bytes at %p are outside the launch's global memory: %s", bytes, pointer,
         describe_address(address + bytes - 1, *me.block).c_str());
}

}  // namespace simt

using namespace simt;

extern "C" void* keel_simt_allocate(size_t bytes) {
    size_t body = (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
    if (body == 0) body = kPageBytes;
    size_t total = body + 2 * kGuardBytes;
    void* map = mmap(nullptr, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return nullptr;
    char* base = static_cast<char*>(map);
    if (mprotect(base + kGuardBytes, body, PROT_READ | PROT_WRITE) != 0) {
        munmap(map, total);
        return nullptr;
    }
    memset(base + kGuardBytes, 0xff, body);
    char* start = base + kGuardBytes + body - (bytes + 15) / 16 * 16;
    std::lock_guard<std::mutex> guard(lock);
    table()[uintptr_t(base)] = {start, bytes, base, total};
    return start;
}

extern "C" void keel_simt_release(void* memory) {
    Allocation allocation;
    if (!find_allocation(memory, &allocation)) return;
    {
        std::lock_guard<std::mutex> guard(lock);
        table().erase(uintptr_t(allocation.map));
    }
    munmap(const_cast<char*>(allocation.map), allocation.map_bytes);
}

extern "C" int keel_simt_protect(void* memory, int writable) {
    Allocation allocation;
    if (!find_allocation(memory, &allocation)) return -1;
    char* body = const_cast<char*>(allocation.map) + kGuardBytes;
    return mprotect(body, allocation.map_bytes - 2 * kGuardBytes, writable ? PROT_READ | PROT_WRITE : PROT_READ);
}
