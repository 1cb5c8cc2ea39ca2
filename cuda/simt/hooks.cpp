// The callbacks that `-fsanitize=thread` and `-fsanitize=alignment,bounds,shift,integer-divide-by-zero` put into kernel
// code. The compiler's own runtimes are not linked: these answers take every load and store to the checker instead.
// Names and layouts are those of GCC and LLVM.
#include "runtime.h"

namespace simt {

// Under the priority schedule a thread may lose the worker at any shared access, not only where it waits.
static void maybe_preempt(Fiber& fiber) {
    Block& block = *fiber.block;
    constexpr uint32_t kPreemptEvery = 64;
    if (block.launch->options.schedule != KEEL_SCHEDULE_PRIORITY || block.random.below(kPreemptEvery) != 0) return;
    fiber.warp->priority = block.random.next();
    park();
}

static inline void access(const void* pointer, size_t bytes, bool write, const void* return_address) {
    if (!current) return;
    Fiber& fiber = *running();
    const Block& block = *fiber.block;
    const char* address = static_cast<const char*>(pointer);
    const void* code = static_cast<const char*>(return_address) - 1;
    fiber.accessed = code;
    if (size_t(address - block.arena) < kArenaBytes) {
        uint32_t offset = uint32_t(address - block.arena);
        if (write) {
            checker::write(fiber, offset, uint32_t(bytes), code, fiber.at);
        } else {
            checker::read(fiber, offset, uint32_t(bytes), code, fiber.at);
        }
        return maybe_preempt(fiber);
    }
    if (size_t(address - block.stacks) < block.stacks_bytes) return checker::stack_access(fiber, address, bytes, write, code);
    checker::global_access(fiber, pointer, bytes, write, code, fiber.at);
}

}  // namespace simt

#define SIMT_HERE __builtin_return_address(0)
#define SIMT_HOOKS(bytes) \
    void __tsan_read##bytes(void* p) { simt::access(p, bytes, false, SIMT_HERE); } \
    void __tsan_write##bytes(void* p) { simt::access(p, bytes, true, SIMT_HERE); } \
    void __tsan_unaligned_read##bytes(void* p) { simt::access(p, bytes, false, SIMT_HERE); } \
    void __tsan_unaligned_write##bytes(void* p) { simt::access(p, bytes, true, SIMT_HERE); } \
    void __tsan_read_write##bytes(void* p) { \
        simt::access(p, bytes, false, SIMT_HERE); \
        simt::access(p, bytes, true, SIMT_HERE); \
    }

extern "C" {

SIMT_HOOKS(1)
SIMT_HOOKS(2)
SIMT_HOOKS(4)
SIMT_HOOKS(8)
SIMT_HOOKS(16)

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_read_range(void* p, unsigned long bytes) { simt::access(p, bytes, false, SIMT_HERE); }
void __tsan_write_range(void* p, unsigned long bytes) { simt::access(p, bytes, true, SIMT_HERE); }
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
    simt::access(from, bytes, false, SIMT_HERE);
    simt::access(to, bytes, true, SIMT_HERE);
    return memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
    simt::access(from, bytes, false, SIMT_HERE);
    simt::access(to, bytes, true, SIMT_HERE);
    return memmove(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
    simt::access(to, bytes, true, SIMT_HERE);
    return memset(to, value, bytes);
}

struct UndefinedPlace {
    const char* file;
    uint32_t line, column;
};
struct UndefinedType {
    uint16_t kind, information;
    char name[1];
};
struct MisalignedAccess {
    UndefinedPlace place;
    UndefinedType* type;
    unsigned char log_alignment, kind;
};
struct IndexOutside {
    UndefinedPlace place;
    UndefinedType *array, *index;
};
struct WrongShift {
    UndefinedPlace place;
    UndefinedType *left, *right;
};
struct WrongDivision {
    UndefinedPlace place;
    UndefinedType* type;
};

// GCC leaves the full path here, whatever the prefix map says; reports name files from the repository's root.
static simt::Location at(const UndefinedPlace& place) {
    const char* file = place.file;
    for (const char* next = file; (next = strstr(next, "/cuda/")) != nullptr;) file = ++next;
    return {file, int(place.line)};
}

void __ubsan_handle_type_mismatch_v1(MisalignedAccess* access, uintptr_t address) {
    if (simt::current)
        simt::fail(at(access->place), "address %#lx is not aligned to %u bytes, as type %s needs",
                   (unsigned long)address, 1u << access->log_alignment, access->type->name);
}
void __ubsan_handle_out_of_bounds(IndexOutside* access, uintptr_t index) {
    if (simt::current)
        simt::fail(at(access->place), "index %ld is outside the array %s", long(index), access->array->name);
}
void __ubsan_handle_shift_out_of_bounds(WrongShift* shift, uintptr_t, uintptr_t distance) {
    if (simt::current)
        simt::fail(at(shift->place), "a shift by %ld is too far for %s", long(distance), shift->left->name);
}
void __ubsan_handle_divrem_overflow(WrongDivision* division, uintptr_t, uintptr_t) {
    if (simt::current) simt::fail(at(division->place), "an integer was divided by zero, or a quotient does not fit");
}

}  // extern "C"
