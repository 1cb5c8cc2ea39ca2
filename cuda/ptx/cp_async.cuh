// Asynchronous copies from global to shared memory, sm_80 and up.
// PTX ISA, "Data Movement and Conversion Instructions: cp.async, cp.async.commit_group, cp.async.wait_group".
// A copy may be read by its thread after the wait that covers it, and by others after a barrier behind that wait.
#pragma once
#include "address.cuh"

// 16 bytes past the first-level cache. `source_bytes` (0..16) are read, the rest of the destination becomes zero; both
// addresses are aligned to 16.
DEVICE void cp_async_16(uint32_t to, const void* from, uint32_t source_bytes = 16 CALLER) {
#ifdef SIMT_EMULATOR
    simt::copy_async(to, from, 16, source_bytes, caller);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(source_bytes) : "memory");
#endif
}

// 8 bytes, addresses aligned to 8.
DEVICE void cp_async_8(uint32_t to, const void* from, uint32_t source_bytes = 8 CALLER) {
#ifdef SIMT_EMULATOR
    simt::copy_async(to, from, 8, source_bytes, caller);
#else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(source_bytes) : "memory");
#endif
}

// 4 bytes, addresses aligned to 4.
DEVICE void cp_async_4(uint32_t to, const void* from, uint32_t source_bytes = 4 CALLER) {
#ifdef SIMT_EMULATOR
    simt::copy_async(to, from, 4, source_bytes, caller);
#else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(source_bytes) : "memory");
#endif
}

// Closes the group of this thread's copies issued since the last commit; a group may be empty.
DEVICE void cp_async_commit(CALLER_ONLY) {
#ifdef SIMT_EMULATOR
    simt::copy_async_commit(caller);
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the `kOpenGroups` youngest groups of this thread are unfinished.
template <int kOpenGroups>
DEVICE void cp_async_wait(CALLER_ONLY) {
#ifdef SIMT_EMULATOR
    simt::copy_async_wait(kOpenGroups, caller);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(kOpenGroups) : "memory");
#endif
}

// Waits for every copy of this thread, committed or not.
DEVICE void cp_async_wait_all(CALLER_ONLY) {
#ifdef SIMT_EMULATOR
    simt::copy_async_wait_all(caller);
#else
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
