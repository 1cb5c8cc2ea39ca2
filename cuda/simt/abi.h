// The emulator's C interface, as Rust sees it (src/engine/executor/simt/ffi.rs mirrors every declaration).
// Arguments are passed exactly as cuLaunchKernel takes them: one pointer to each value, in order.
#pragma once
#include <stddef.h>
#include <stdint.h>

extern "C" {

// What one parameter of a kernel is.
enum KeelParameterKind : uint8_t {
    KEEL_PARAMETER_POINTER = 0,
    KEEL_PARAMETER_SIGNED = 1,
    KEEL_PARAMETER_UNSIGNED = 2,
    KEEL_PARAMETER_FLOAT = 3,
    KEEL_PARAMETER_STRUCT = 4,
};

// The element a pointer parameter points to.
enum KeelElement : uint8_t {
    KEEL_ELEMENT_NONE = 0,
    KEEL_ELEMENT_F32 = 1,
    KEEL_ELEMENT_BF16 = 2,
    KEEL_ELEMENT_I32 = 3,
    KEEL_ELEMENT_U32 = 4,
    KEEL_ELEMENT_U8 = 5,
    KEEL_ELEMENT_U64 = 6,
};

struct KeelParameter {
    uint8_t kind;      // KeelParameterKind
    uint8_t element;   // KeelElement, for pointers
    uint8_t is_const;  // 1 when the kernel only reads through the pointer
    uint8_t bytes;     // of the argument itself: 8 for a pointer
};

struct KeelKernel {
    const char* name;
    const KeelParameter* parameters;
    uint32_t parameter_count;
    uint32_t threads;           // threads of a block; 0: any number
    uint32_t shared_bytes;      // sizeof of the shared storage
    uint32_t shared_alignment;  // alignof of the shared storage
    void (*enter)(void** arguments);
};

// Bytes a launch may touch. Only the checked build looks at them; without any, whole allocations are allowed.
struct KeelExtent {
    const void* start;
    uint64_t bytes;
    uint32_t writable;
    uint32_t argument;  // which argument it belongs to, for the report
};

enum KeelSchedule : uint32_t {
    KEEL_SCHEDULE_RUN_AHEAD = 0,  // one warp until it blocks; an odd seed walks warps and lanes downwards
    KEEL_SCHEDULE_PRIORITY = 1,   // random warp priorities, redrawn now and then; random lanes
};

enum KeelCopyTiming : uint32_t {
    KEEL_COPIES_EARLY = 0,   // asynchronous copies land when they are issued
    KEEL_COPIES_LATE = 1,    // ... at the wait that covers them
    KEEL_COPIES_RANDOM = 2,  // ... at either, by the seed
};

struct KeelOptions {
    uint32_t schedule;       // KeelSchedule
    uint32_t copies;         // KeelCopyTiming
    uint64_t seed;
    uint32_t workers;        // host threads over the blocks; 0: all cores
    uint32_t time_limit_ms;  // 0: one minute
    uint32_t shared_limit;   // bytes of shared memory a block may have; 0: 227 KiB
    uint32_t planted_bug;    // planted_bug_code(name) of the bug to switch on; 0: none
};

uint32_t keel_simt_kernel_count(void);
const KeelKernel* keel_simt_kernel(uint32_t index);
// 1 when this is the checked build.
int keel_simt_is_checked(void);

// Runs a kernel over the whole grid. 0: done. 1: refused before any thread ran. 2: a fault in the kernel.
// The report is keel_simt_last_error(), which belongs to the calling thread until its next call.
int keel_simt_launch(const KeelKernel* kernel, const uint32_t grid[3], const uint32_t block[3], uint32_t shared_bytes,
                     void** arguments, const KeelOptions* options, const KeelExtent* extents, uint32_t extent_count);
const char* keel_simt_last_error(void);
// Whether the last launch of this thread reached the planted bug it was asked for.
int keel_simt_planted_bug_reached(void);

// Memory with unreadable pages on both sides, filled with 0xff; null when the system has no more.
void* keel_simt_allocate(size_t bytes);
void keel_simt_release(void* memory);
// Makes an allocation read-only or writable again; 0 when done.
int keel_simt_protect(void* memory, int writable);

}  // extern "C"
