// Copies of boxes by tensor maps, between global and shared memory. PTX ISA, "Data Movement and Conversion Instructions:
// cp.async.bulk.tensor". One thread asks for a whole box. The shared address is aligned to 128 bytes, where the map permutes
// to 1024. Coordinates count elements, the innermost first; what lies outside the tensor reads as zero and is not written.
#pragma once
#include "mbarrier.cuh"

// A box into this block's shared memory; its bytes count at `barrier`, those outside the tensor too.
DEVICE void tensor_load_2d(uint32_t to, const TensorMap& map, int x, int y, uint32_t barrier CALLER) {
#ifdef SIMT_EMULATOR
    const int32_t at[2] = {x, y};
    simt::tensor_load(to, map, 2, at, barrier, 0, caller);
#else
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
        "l"(&map), "r"(x), "r"(y), "r"(barrier)
        : "memory");
#endif
}

DEVICE void tensor_load_3d(uint32_t to, const TensorMap& map, int x, int y, int z, uint32_t barrier CALLER) {
#ifdef SIMT_EMULATOR
    const int32_t at[3] = {x, y, z};
    simt::tensor_load(to, map, 3, at, barrier, 0, caller);
#else
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(
            to),
        "l"(&map), "r"(x), "r"(y), "r"(z), "r"(barrier)
        : "memory");
#endif
}

DEVICE void tensor_load_4d(uint32_t to, const TensorMap& map, int x, int y, int z, int w, uint32_t barrier CALLER) {
#ifdef SIMT_EMULATOR
    const int32_t at[4] = {x, y, z, w};
    simt::tensor_load(to, map, 4, at, barrier, 0, caller);
#else
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];" ::
            "r"(to),
        "l"(&map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier)
        : "memory");
#endif
}

// The box into the shared memory of every block of the cluster whose rank is a bit of `blocks`, at the same place in each;
// the bytes count at the barrier at the same place in each.
DEVICE void tensor_load_2d_multicast(uint32_t to, const TensorMap& map, int x, int y, uint32_t barrier, uint16_t blocks CALLER) {
#ifdef SIMT_EMULATOR
    const int32_t at[2] = {x, y};
    simt::tensor_load(to, map, 2, at, barrier, blocks, caller);
#else
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
        "[%1, {%2, %3}], [%4], %5;" ::"r"(to),
        "l"(&map), "r"(x), "r"(y), "r"(barrier), "h"(blocks)
        : "memory");
#endif
}

// A box from this block's shared memory to the tensor. It belongs to the group that this thread's next bulk_commit closes.
DEVICE void tensor_store_2d(const TensorMap& map, int x, int y, uint32_t from CALLER) {
#ifdef SIMT_EMULATOR
    const int32_t at[2] = {x, y};
    simt::tensor_store(map, 2, at, from, caller);
#else
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map), "r"(x),
                 "r"(y), "r"(from)
                 : "memory");
#endif
}

// Closes the group of this thread's stores since the last one; a group may be empty.
DEVICE void bulk_commit(CALLER_ONLY) {
#ifdef SIMT_EMULATOR
    simt::bulk_commit(caller);
#else
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}

// Waits until at most the `kOpenGroups` youngest groups of this thread are unfinished: written.
template <int kOpenGroups>
DEVICE void bulk_wait(CALLER_ONLY) {
#ifdef SIMT_EMULATOR
    simt::bulk_wait(kOpenGroups, false, caller);
#else
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kOpenGroups) : "memory");
#endif
}

// Waits until at most the `kOpenGroups` youngest groups of this thread still read shared memory, which may then be written again.
template <int kOpenGroups>
DEVICE void bulk_wait_read(CALLER_ONLY) {
#ifdef SIMT_EMULATOR
    simt::bulk_wait(kOpenGroups, true, caller);
#else
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kOpenGroups) : "memory");
#endif
}

// Lets copies and products of a warpgroup see what this thread has stored in shared memory. Each thread that stored needs it,
// before the barrier behind which the copy or product is asked for. PTX ISA, "fence.proxy.async".
DEVICE void fence_proxy_async(CALLER_ONLY) {
#ifdef SIMT_EMULATOR
    simt::fence_proxy_async(caller);
#else
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
