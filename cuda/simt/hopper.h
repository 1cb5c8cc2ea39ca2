// The emulator as kernels of the Hopper tier see it, beside device.h. Apart from that header because images for GPUs are named
// by the text of all they include: what only this tier needs must not rebuild the others.
#pragma once
#include "device.h"

#define __cluster_dims__(...)

// KeelParameterKind of a tensor map, beside those of abi.h.
constexpr uint8_t KEEL_PARAMETER_MAP = 5;

// As keel_simt_launch, with clusters of so many blocks in x, which are 1 there.
extern "C" int keel_simt_launch_clusters(const KeelKernel* kernel, uint32_t cluster, const uint32_t grid[3],
                                         const uint32_t block[3], uint32_t shared_bytes, void** arguments,
                                         const KeelOptions* options, const KeelExtent* extents, uint32_t extent_count);

namespace simt {

constexpr uint32_t kTensorMapMark = 0x70616d74;
constexpr uint32_t kTensorDims = 5;

// A tensor map as the emulator and the driver of the tests encode it; on a GPU its 128 bytes are the driver's own affair.
// src/engine/executor/simt/signature.rs writes the same fields.
struct TensorMap {
    uint32_t mark;
    uint8_t rank;
    uint8_t element_bytes;
    uint8_t swizzle;  // bytes it permutes within: 0, 32, 64 or 128
    uint8_t unused;
    uint64_t address;
    uint64_t dims[kTensorDims];     // elements, the innermost first
    uint64_t strides[kTensorDims];  // bytes; that of the innermost is its element's
    uint32_t box[kTensorDims];      // elements
    uint32_t unused_too[3];
};
static_assert(sizeof(TensorMap) == 128, "a tensor map has 128 bytes");

template <> struct ParameterOf<TensorMap> {
    static constexpr KeelParameter value{KEEL_PARAMETER_MAP, KEEL_ELEMENT_NONE, 0, sizeof(TensorMap)};
};

// Barriers in shared memory, of eight bytes each.
void mbarrier_init(uint32_t barrier, uint32_t count, Location at);
void mbarrier_invalidate(uint32_t barrier, Location at);
void fence_barrier_init(Location at);
void mbarrier_arrive(uint32_t barrier, Location at);
void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes, Location at);
void mbarrier_arrive_remote(uint32_t mapped, Location at);
void mbarrier_wait(uint32_t barrier, uint32_t parity, Location at);

// Copies by tensor maps. `mask` 0: into this block alone.
void tensor_load(uint32_t to, const TensorMap& map, uint32_t rank, const int32_t* coordinates, uint32_t barrier,
                 uint16_t mask, Location at);
void tensor_store(const TensorMap& map, uint32_t rank, const int32_t* coordinates, uint32_t from, Location at);
void bulk_commit(Location at);
void bulk_wait(uint32_t open_groups, bool reads_only, Location at);
void fence_proxy_async(Location at);

// Products of a warpgroup. `a_registers` null: A is described by `a`, too.
struct WarpgroupProduct {
    float* d;
    const uint32_t* a_registers;
    uint64_t a, b;
    uint32_t columns;
    bool is_a_transposed, is_b_transposed, accumulates;
};
void warpgroup_fence(Location at);
void warpgroup_multiply(const WarpgroupProduct& product, Location at);
void warpgroup_commit(Location at);
void warpgroup_wait(uint32_t open_groups, Location at);
void set_registers(uint32_t count, bool increases, Location at);

// Clusters.
uint32_t cluster_rank(Location at);
uint32_t map_peer(uint32_t address, uint32_t rank, Location at);
void cluster_arrive(Location at);
void cluster_wait(Location at);

bool elect_one(uint32_t mask, Location at);
void store_matrices(const uint32_t* registers, uint32_t count, bool transposed, uint32_t row_address, Location at);

}  // namespace simt

using TensorMap = simt::TensorMap;
