// The products of linear.cu on Hopper's own instructions: one warpgroup brings tiles by tensor maps into a ring of stages, two
// multiply them by wgmma. src/engine/ops/linear/hopper.rs says when they are chosen.
#include "activation.cuh"
#include "hopper.cuh"
#include "ptx/barrier.cuh"
#include "ptx/hopper/tensor_copy.cuh"
#include "ptx/hopper/warp.cuh"
#include "ptx/hopper/wgmma.cuh"
#include "ptx/ldmatrix.cuh"

HOST_CONSTANT int kHopperRows = 128;
HOST_CONSTANT int kHopperColumns = 256;
HOST_CONSTANT int kHopperInner = 64;
// Rows and columns of what a warpgroup stores at once: 128 bytes a row, the span of a swizzle.
HOST_CONSTANT int kHopperPiece = 64;

constexpr int kConsumers = 2;
constexpr int kStages = 4;
constexpr int kBuffers = 2;
constexpr int kGroupSize = 128;
constexpr int kHopperThreads = (1 + kConsumers) * kGroupSize;
constexpr int kRowBytes = 2 * kHopperInner;
constexpr int kRowsBytes = kHopperRows * kRowBytes;
constexpr int kColumnsBytes = kHopperColumns * kRowBytes;
constexpr int kPieceBytes = kHopperPiece * kRowBytes;
constexpr int kAccumulators = kHopperColumns / 2;
// Of a block's 65536 registers: 128 · 40 + 256 · 232 = 64512.
constexpr int kProducerRegisters = 40;
constexpr int kConsumerRegisters = 232;

struct HopperLinearStorage {
    alignas(1024) unsigned char x[kStages][kRowsBytes];
    alignas(1024) unsigned char weight[kStages][kColumnsBytes];
    alignas(1024) unsigned char piece[kConsumers][kBuffers][kPieceBytes];
    alignas(8) uint64_t full[kStages], empty[kStages], beside[kConsumers];
};

// A place in the ring, and the parity of the phase that its barriers are in there.
struct RingPlace {
    int stage;
    uint32_t parity;
    DEVICE_MEMBER void advance() {
        if (++stage < kStages) return;
        stage = 0;
        parity ^= 1;
    }
};

// The tiles of a result, in groups of eight rows of tiles: blocks that run at the same time share columns and rows in the
// second-level cache.
struct HopperTiles {
    int down, across;
    DEVICE_MEMBER HopperTiles(int m, int n)
        : down((m + kHopperRows - 1) / kHopperRows), across((n + kHopperColumns - 1) / kHopperColumns) {}
    DEVICE_MEMBER int count() const { return down * across; }
    // The first row and column of a tile.
    DEVICE_MEMBER void place(int tile, int& row, int& column) const {
        constexpr int kGroup = 8;
        const int first = tile / (kGroup * across) * kGroup, within = tile % (kGroup * across);
        const int height = min(kGroup, down - first);
        row = (first + within % height) * kHopperRows;
        column = within / height * kHopperColumns;
    }
};

// One thread brings the tiles of both operands for every tile of the result that is this block's. The left one is [m, inner]; the
// right one is [n, inner], or transposed [inner, n], of which boxes of 64 columns lie side by side.
template <bool kTransposed>
DEVICE void bring_tiles(HopperLinearStorage& storage, const TensorMap& x, const TensorMap& weight, int m, int n, int steps) {
    const HopperTiles tiles(m, n);
    RingPlace place{0, 0};
    for (int tile = int(blockIdx.x); tile < tiles.count(); tile += int(gridDim.x)) {
        int row, column;
        tiles.place(tile, row, column);
        ROLLED
        for (int step = 0; step < steps; ++step, place.advance()) {
            const uint32_t full = shared_address(&storage.full[place.stage]);
            if (!PLANTED_BUG("product_hopper: a stage is filled before it is free"))
                mbarrier_wait(shared_address(&storage.empty[place.stage]), place.parity ^ 1);
            mbarrier_arrive_expect(full, kRowsBytes + kColumnsBytes);
            tensor_load_2d(shared_address(storage.x[place.stage]), x, step * kHopperInner, row, full);
            const uint32_t right = shared_address(storage.weight[place.stage]);
            if constexpr (kTransposed) {
                UNROLL
                for (int box = 0; box < kHopperColumns / kHopperPiece; ++box)
                    tensor_load_2d(right + uint32_t(box * kPieceBytes), weight, column + box * kHopperPiece, step * kHopperInner,
                                   full);
            } else {
                tensor_load_2d(right, weight, step * kHopperInner, column, full);
            }
        }
    }
}

// d [64, 256] of one consumer: the products of a tile. A stage is given back when the products that read it are done, which is
// known once those of the next have been asked for.
template <bool kTransposed>
DEVICE void multiply_tiles(float (&d)[kAccumulators], HopperLinearStorage& storage, RingPlace& place, int steps, int consumer) {
    const bool releases = threadIdx.x % kGroupSize == 0;
    int previous = 0;
    ROLLED
    for (int step = 0; step < steps; ++step, place.advance()) {
        if (!PLANTED_BUG("product_hopper: a stage is read before it is full"))
            mbarrier_wait(shared_address(&storage.full[place.stage]), place.parity);
        const uint32_t x = shared_address(storage.x[place.stage]) + uint32_t(consumer * kPieceBytes);
        const uint32_t weight = shared_address(storage.weight[place.stage]);
        wgmma_fence();
        UNROLL
        for (int part = 0; part < kHopperInner / 16; ++part) {
            const uint64_t right = kTransposed ? tile_descriptor(weight + 16 * kRowBytes * part, kPieceBytes)
                                               : tile_descriptor(weight + 32 * part);
            wgmma<kHopperColumns, false, kTransposed>(d, tile_descriptor(x + 32 * part), right, step + part > 0);
        }
        wgmma_commit();
        if (PLANTED_BUG("product_hopper: a stage is given back while it is read")) {
            if (releases) mbarrier_arrive(shared_address(&storage.empty[place.stage]));
            wgmma_wait<1>();
        } else {
            wgmma_wait<1>();
            if (step > 0 && releases) mbarrier_arrive(shared_address(&storage.empty[previous]));
        }
        previous = place.stage;
    }
    wgmma_wait<0>();
    settle_accumulators(d);
    if (!PLANTED_BUG("product_hopper: a stage is given back while it is read") && releases)
        mbarrier_arrive(shared_address(&storage.empty[previous]));
}

// The pieces of 64 × 64 that one consumer stores, through two buffers in turn. All threads of the warpgroup call everything.
struct PieceBuffers {
    HopperLinearStorage& storage;
    int consumer, thread, turn;

    DEVICE_MEMBER uint32_t address() const { return shared_address(storage.piece[consumer][turn]); }
    // The address of the 16 bytes that this lane gives of tile columns 16·pair.. for ldmatrix and stmatrix: matrices are rows 0..7
    // and 8..15 of the warp's 16, of eight columns, then of the next eight.
    DEVICE_MEMBER uint32_t row_address(int pair) const {
        const int lane = thread % kWarpLanes, matrix = lane / 8;
        const int row = thread / kWarpLanes * 16 + matrix % 2 * 8 + lane % 8, column = 2 * pair + matrix / 2;
        return address() + uint32_t(row * kRowBytes + (column ^ row % 8) * 16);
    }
    DEVICE_MEMBER void meet() const { barrier_sync(1 + consumer, kGroupSize); }
    // Waits until the buffer of this turn has been read.
    DEVICE_MEMBER void begin() const {
        if (!PLANTED_BUG("product_hopper: a buffer is written while it is stored") && thread == 0) bulk_wait_read<1>();
        meet();  // the buffer is free for all
    }
    DEVICE_MEMBER void write(const float (&values)[32]) const {
        UNROLL
        for (int pair = 0; pair < 4; ++pair) {
            uint32_t registers[4];
            UNROLL
            for (int i = 0; i < 4; ++i)
                registers[i] = bf16_pair_bits(values[8 * pair + 2 * i], values[8 * pair + 2 * i + 1]);
            stmatrix_x4(row_address(pair), registers);
        }
    }
    // Hands the buffer to TMA, and turns to the other.
    DEVICE_MEMBER void store(const TensorMap& map, int row, int column) {
        if (!PLANTED_BUG("product_hopper: no fence before a piece is stored")) fence_proxy_async();
        if (!PLANTED_BUG("product_hopper: a piece is stored before it is written")) meet();  // written and fenced
        if (thread == 0) {
            tensor_store_2d(map, column, row, address());
            bulk_commit();
        }
        turn ^= 1;
    }
};

// Brings a piece of a tensor like the result into the buffer of this turn, and hands each value with its own to `combine`. `parity`
// is that of the consumer's barrier for it.
template <class Combine>
DEVICE void combine_piece(float (&values)[32], const PieceBuffers& buffers, const TensorMap& map, int row, int column,
                          uint32_t& parity, const Combine& combine) {
    const uint32_t barrier = shared_address(&buffers.storage.beside[buffers.consumer]);
    if (buffers.thread == 0) {
        mbarrier_arrive_expect(barrier, kPieceBytes);
        tensor_load_2d(buffers.address(), map, column, row, barrier);
    }
    if (!PLANTED_BUG("product_hopper: the tensor beside is read before it is there")) mbarrier_wait(barrier, parity);
    parity ^= 1;
    UNROLL
    for (int pair = 0; pair < 4; ++pair) {
        uint32_t registers[4];
        ldmatrix_x4(registers, buffers.row_address(pair));
        UNROLL
        for (int i = 0; i < 4; ++i) {
            float& low = values[8 * pair + 2 * i];
            float& high = values[8 * pair + 2 * i + 1];
            low = combine(low, low_to_float(registers[i]));
            high = combine(high, high_to_float(registers[i]));
        }
    }
}

// What a finished tile of the forward product becomes.
struct HopperEpilogue {
    const TensorMap &y, &z, &residual;
    const float *bias, *scale;
    int n, activation;
    bool has_z, has_residual;
    DEVICE_MEMBER void finish(float (&values)[32], PieceBuffers& buffers, int row, int column, uint32_t& parity) const;
};

// ... and of the input's gradient.
struct HopperGradient {
    const TensorMap &dx, &other;
    int n, activation;
    bool has_other;
    DEVICE_MEMBER void finish(float (&values)[32], PieceBuffers& buffers, int row, int column, uint32_t& parity) const;
};

// Two neighbouring elements of a vector over columns. They are zero past its end, where no result is stored.
DEVICE void load_pair(float (&pair)[2], const float* from, int column, int n) {
    pair[0] = column < n ? __ldg(from + column) : 0.0f;
    pair[1] = column + 1 < n ? __ldg(from + column + 1) : 0.0f;
}

// One piece of a consumer's rows: bias, z, activation, scale, residual, y.
DEVICE_MEMBER void HopperEpilogue::finish(float (&values)[32], PieceBuffers& buffers, int row, int column,
                                          uint32_t& parity) const {
    const int first = column + buffers.thread % 4 * 2;
    if (bias) {
        UNROLL
        for (int group = 0; group < 8; ++group) {
            float shift[2];
            load_pair(shift, bias, first + 8 * group, n);
            UNROLL
            for (int i = 0; i < 4; ++i) values[4 * group + i] += shift[i % 2];
        }
    }
    if (has_z) {
        buffers.begin();
        buffers.write(values);
        buffers.store(z, row, column);
    }
    if (activation != kNoActivation) {
        UNROLL
        for (int i = 0; i < 32; ++i) values[i] = activate<bf16>(activation, values[i]);
    }
    if (scale) {
        UNROLL
        for (int group = 0; group < 8; ++group) {
            float factor[2];
            load_pair(factor, scale, first + 8 * group, n);
            UNROLL
            for (int i = 0; i < 4; ++i) values[4 * group + i] *= factor[i % 2];
        }
    }
    buffers.begin();
    if (has_residual)
        combine_piece(values, buffers, residual, row, column, parity, [](float value, float before) { return value + before; });
    buffers.write(values);
    buffers.store(y, row, column);
}

// dx, ⊙ f′(other) or + other.
DEVICE_MEMBER void HopperGradient::finish(float (&values)[32], PieceBuffers& buffers, int row, int column,
                                          uint32_t& parity) const {
    buffers.begin();
    if (has_other)
        combine_piece(values, buffers, other, row, column, parity, [&](float value, float beside) {
            if (activation != kNoActivation) return value * activation_derivative<bf16>(activation, beside);
            return value + beside;
        });
    buffers.write(values);
    buffers.store(dx, row, column);
}

// What a consumer does: its 64 rows of each of the block's tiles.
template <bool kTransposed, class Epilogue>
DEVICE void multiply_and_finish(HopperLinearStorage& storage, const Epilogue& epilogue, int m, int steps, int consumer) {
    const HopperTiles tiles(m, epilogue.n);
    RingPlace place{0, 0};
    PieceBuffers buffers{storage, consumer, int(threadIdx.x) % kGroupSize, 0};
    uint32_t parity = 0;
    float d[kAccumulators];
    ROLLED
    for (int tile = int(blockIdx.x); tile < tiles.count(); tile += int(gridDim.x)) {
        int row, column;
        tiles.place(tile, row, column);
        row += consumer * kHopperPiece;
        multiply_tiles<kTransposed>(d, storage, place, steps, consumer);
        UNROLL
        for (int piece = 0; piece < kHopperColumns / kHopperPiece; ++piece) {
            const int start = column + piece * kHopperPiece;
            if (start >= epilogue.n || row >= m) continue;
            float values[32];
            UNROLL
            for (int i = 0; i < 32; ++i) values[i] = d[32 * piece + i];
            epilogue.finish(values, buffers, row, start, parity);
        }
    }
    if (buffers.thread == 0) bulk_wait<0>();
}

// Makes the barriers and gives each warpgroup its part.
template <bool kTransposed, class Epilogue>
DEVICE void hopper_product(const TensorMap& left, const TensorMap& right, const Epilogue& epilogue, int m, int inner) {
    SHARED_STORAGE(HopperLinearStorage, storage);
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            mbarrier_init(shared_address(&storage.full[stage]), 1);
            mbarrier_init(shared_address(&storage.empty[stage]), kConsumers);
        }
        for (int consumer = 0; consumer < kConsumers; ++consumer) mbarrier_init(shared_address(&storage.beside[consumer]), 1);
        if (!PLANTED_BUG("product_hopper: no fence after the barriers are made")) fence_barrier_init();
    }
    __syncthreads();  // the barriers are made
    const int group = int(threadIdx.x) / kGroupSize, steps = (inner + kHopperInner - 1) / kHopperInner;
    if (group == 0) {
        decrease_registers<kProducerRegisters>();
        if (threadIdx.x == 0) bring_tiles<kTransposed>(storage, left, right, m, epilogue.n, steps);
    } else {
        increase_registers<kConsumerRegisters>();
        multiply_and_finish<kTransposed>(storage, epilogue, m, steps, group - 1);
    }
}

// linear_forward_hopper: y = scale · f(x·Wᵀ + bias) + residual, and z = x·Wᵀ + bias where backward wants it.
// Math     : z(r,n) = Σ over k of x(r,k)·W(n,k) + bias(n)     y = scale(n) · f(z) + residual
// Tensors  : by tensor maps, bf16: x [M,K] boxes 128 × 64 | weight [N,K] boxes 256 × 64 | y, z, residual [M,N] boxes 64 × 64;
//            pitches and starts multiples of 16 bytes | bias, scale f32 [N] or null. The maps of z and residual
//            are used only where the flags say so; elsewhere any map will do. residual may be y itself: each piece is read by the
//            block that then writes it
// Grid     : one block for each of 132 multiprocessors, which take tiles of 128 × 256 in turn      Block: 384 threads = 3 warpgroups
// Smem     : 4 stages of 48 KB, 4 pieces of 8 KB, barriers: 225 KB, padded to 1 KB      Registers: 40 a producer, 232 a consumer
// Work     : 2·M·N·K flop; reads (M·K + N·K)·2, writes M·N·2 B, twice with z     bound: tensor cores from M, N, K of about 500 on
// Accuracy : f32 accumulators, f(z) by approximate instructions (activation.cuh), rounded once, at the end
// Ragged   : any M; N and K multiples of 8, of which copies past the end read zeros and write nothing
// Order    : deterministic, one accumulator an element, k ascending
// Source   : Hendrycks and Gimpel 2016, section 2; the scale: Touvron et al. 2021, eq. 4
extern "C" __global__ void __launch_bounds__(kHopperThreads, 1) linear_forward_hopper_bf16(
    const __grid_constant__ TensorMap y, const __grid_constant__ TensorMap z, const __grid_constant__ TensorMap x,
    const __grid_constant__ TensorMap weight, const __grid_constant__ TensorMap residual, const float* bias, const float* scale,
    int m, int n, int k, int activation, int has_z, int has_residual) {
    const HopperEpilogue epilogue{y, z, residual, bias, scale, n, activation, has_z != 0, has_residual != 0};
    hopper_product<false>(x, weight, epilogue, m, k);
}
KERNEL(linear_forward_hopper_bf16, kHopperThreads, HopperLinearStorage)

// linear_backward_input_hopper: dx = dy·W, then ⊙ f′(z) or + a gradient that is there already.
// Math     : dx(r,k) = Σ over n of dy(r,n)·W(n,k)     with an activation · f′(other(r,k)), else + other(r,k)
// Tensors  : by tensor maps, bf16: dy [M,N] boxes 128 × 64 | weight [N,K] boxes 64 × 64, four side by side | dx, other [M,K] boxes
//            64 × 64; pitches and starts multiples of 16 bytes. The map of other is used only where the flag says so; elsewhere
//            any map will do. other may be dx itself where it is added
// Grid     : as linear_forward_hopper      Block: as linear_forward_hopper
// Smem     : as linear_forward_hopper      Registers: 40 a producer, 232 a consumer
// Work     : 2·M·N·K flop; reads (M·N + N·K)·2 and other, writes M·K·2 B     bound: tensor cores
// Accuracy : f32 accumulators; f′ in f32 of the stored z by approximate instructions, rounded once, at the end
// Ragged   : any M; N and K multiples of 8, of which copies past the end read zeros and write nothing
// Order    : deterministic, one accumulator an element, n ascending
// Source   : -
extern "C" __global__ void __launch_bounds__(kHopperThreads, 1) linear_backward_input_hopper_bf16(
    const __grid_constant__ TensorMap dx, const __grid_constant__ TensorMap dy, const __grid_constant__ TensorMap weight,
    const __grid_constant__ TensorMap other, int m, int n, int k, int activation, int has_other) {
    const HopperGradient epilogue{dx, other, k, activation, has_other != 0};
    hopper_product<true>(dy, weight, epilogue, m, n);
}
KERNEL(linear_backward_input_hopper_bf16, kHopperThreads, HopperLinearStorage)

// ---- The weight's gradient: both operands lie with the summed rows outside, and the sum is split ----

constexpr int kOnesBytes = 8 * kRowBytes;

struct HopperWeightStorage {
    alignas(1024) unsigned char dy[kStages][kRowsBytes];
    alignas(1024) unsigned char x[kStages][kColumnsBytes];
    alignas(1024) unsigned char ones[kOnesBytes];
    alignas(8) uint64_t full[kStages], empty[kStages];
};

// What a block does in turn: a tile of dW and the rows that one split of its sum takes, in steps of 64.
struct HopperUnits {
    HopperTiles tiles;
    int steps, all_steps;
    DEVICE_MEMBER HopperUnits(int m, int n, int k, int steps)
        : tiles(n, k), steps(steps), all_steps((m + kHopperInner - 1) / kHopperInner) {}
    DEVICE_MEMBER int splits() const { return (all_steps + steps - 1) / steps; }
    DEVICE_MEMBER int count() const { return tiles.count() * splits(); }
    DEVICE_MEMBER int split(int unit) const { return unit / tiles.count(); }
    DEVICE_MEMBER void place(int unit, int& row, int& column) const { tiles.place(unit % tiles.count(), row, column); }
    // Steps of a unit; the last split may have fewer.
    DEVICE_MEMBER int steps_of(int unit) const { return min(steps, all_steps - split(unit) * steps); }
};

// One thread brings two boxes of dy and four of x, 64 rows each.
DEVICE void bring_rows(HopperWeightStorage& storage, const TensorMap& dy, const TensorMap& x, const HopperUnits& units) {
    RingPlace place{0, 0};
    for (int unit = int(blockIdx.x); unit < units.count(); unit += int(gridDim.x)) {
        int row, column;
        units.place(unit, row, column);
        const int steps = units.steps_of(unit), first = units.split(unit) * units.steps;
        ROLLED
        for (int step = 0; step < steps; ++step, place.advance()) {
            const uint32_t full = shared_address(&storage.full[place.stage]);
            if (!PLANTED_BUG("weight_hopper: a stage is filled before it is free"))
                mbarrier_wait(shared_address(&storage.empty[place.stage]), place.parity ^ 1);
            mbarrier_arrive_expect(full, kRowsBytes + kColumnsBytes);
            const int at = (first + step) * kHopperInner;
            const uint32_t left = shared_address(storage.dy[place.stage]), right = shared_address(storage.x[place.stage]);
            UNROLL
            for (int box = 0; box < kHopperRows / kHopperPiece; ++box)
                tensor_load_2d(left + uint32_t(box * kPieceBytes), dy, row + box * kHopperPiece, at, full);
            UNROLL
            for (int box = 0; box < kHopperColumns / kHopperPiece; ++box)
                tensor_load_2d(right + uint32_t(box * kPieceBytes), x, column + box * kHopperPiece, at, full);
        }
    }
}

// d [64, 256] of one consumer, and with `kSums` the sums of its 64 columns of dy, which are products with ones.
template <bool kSums>
DEVICE void multiply_rows(float (&d)[kAccumulators], float (&sums)[4], HopperWeightStorage& storage, RingPlace& place, int steps,
                          int consumer) {
    const bool releases = threadIdx.x % kGroupSize == 0;
    const uint64_t ones = tile_descriptor(shared_address(storage.ones));
    int previous = 0;
    ROLLED
    for (int step = 0; step < steps; ++step, place.advance()) {
        if (!PLANTED_BUG("weight_hopper: a stage is read before it is full"))
            mbarrier_wait(shared_address(&storage.full[place.stage]), place.parity);
        const uint32_t left = shared_address(storage.dy[place.stage]) + uint32_t(consumer * kPieceBytes);
        const uint32_t right = shared_address(storage.x[place.stage]);
        wgmma_fence();
        UNROLL
        for (int part = 0; part < kHopperInner / 16; ++part) {
            const uint64_t a = tile_descriptor(left + 16 * kRowBytes * part, kPieceBytes);
            wgmma<kHopperColumns, true, true>(d, a, tile_descriptor(right + 16 * kRowBytes * part, kPieceBytes), step + part > 0);
            if constexpr (kSums) wgmma<8, true, false>(sums, a, ones, step + part > 0);
        }
        wgmma_commit();
        wgmma_wait<1>();
        if (step > 0 && releases) mbarrier_arrive(shared_address(&storage.empty[previous]));
        previous = place.stage;
    }
    wgmma_wait<0>();
    settle_accumulators(d);
    if constexpr (kSums) settle_accumulators(sums);
    if (releases) mbarrier_arrive(shared_address(&storage.empty[previous]));
}

// What a consumer does: 64 rows of dW of each of the block's units, from registers to memory; four lanes fill 32 bytes.
DEVICE void multiply_and_add(HopperWeightStorage& storage, float* dw, float* part_sums, const float* addend,
                             const HopperUnits& units, int n, int k, int consumer) {
    RingPlace place{0, 0};
    const int thread = int(threadIdx.x) % kGroupSize, lane = thread % kWarpLanes;
    float d[kAccumulators], sums[4];
    ROLLED
    for (int unit = int(blockIdx.x); unit < units.count(); unit += int(gridDim.x)) {
        int row, column;
        units.place(unit, row, column);
        const int split = units.split(unit), first = row + consumer * kHopperPiece + thread / kWarpLanes * 16 + lane / 4;
        const bool has_sums = part_sums && column == 0;
        if (has_sums) {
            multiply_rows<true>(d, sums, storage, place, units.steps_of(unit), consumer);
            UNROLL
            for (int half = 0; half < 2; ++half)
                if (lane % 4 == 0 && first + 8 * half < n) part_sums[int64_t(split) * n + first + 8 * half] = sums[2 * half];
        } else {
            multiply_rows<false>(d, sums, storage, place, units.steps_of(unit), consumer);
        }
        UNROLL
        for (int group = 0; group < kHopperColumns / 8; ++group) {
            const int at = column + 8 * group + lane % 4 * 2;
            UNROLL
            for (int half = 0; half < 2; ++half) {
                const int out = first + 8 * half;
                if (out >= n || at >= k) continue;
                float2 pair = make_float2(d[4 * group + 2 * half], d[4 * group + 2 * half + 1]);
                const int64_t offset = int64_t(out) * k + at;
                if (addend) {
                    pair.x += addend[offset];
                    pair.y += addend[offset + 1];
                }
                *reinterpret_cast<float2*>(dw + int64_t(split) * n * k + offset) = pair;
            }
        }
    }
}

// linear_backward_weight_hopper: dW = dyᵀ·x (+ addend), and parts of db = Σ over rows of dy.
// Math     : dW(n,k) = Σ over r of dy(r,n)·x(r,k)     db(n) = Σ over r of dy(r,n)
// Tensors  : by tensor maps, bf16: dy [M,N], x [M,K], boxes 64 × 64; pitches and starts multiples of 16 bytes | addend f32 [N,K] or
//            null, dw itself too | dw f32 [splits,N,K] | sums f32 [splits,N] or null
// Grid     : at most one block for each of 132 multiprocessors, which take a tile of 128 × 256 and one split in turn
//            Block: 384 threads = 3 warpgroups
// Smem     : 4 stages of 48 KB, 1 KB of ones, barriers: 194 KB, padded to 1 KB      Registers: 40 a producer, 232 a consumer
// Work     : 2·M·N·K flop, 3 % of a tile more with sums; reads (M·N + M·K)·2, writes N·K·4 B a split     bound: tensor cores
// Accuracy : f32 accumulators over M / splits rows; split parts are summed in f32
// Ragged   : any M; N and K multiples of 8
// Order    : deterministic: rows ascending within a split, splits in order (linear_sum_f32)
// Source   : -
extern "C" __global__ void __launch_bounds__(kHopperThreads, 1) linear_backward_weight_hopper_bf16(
    float* dw, float* sums, const float* addend, const __grid_constant__ TensorMap dy, const __grid_constant__ TensorMap x, int m,
    int n, int k, int steps) {
    SHARED_STORAGE(HopperWeightStorage, storage);
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            mbarrier_init(shared_address(&storage.full[stage]), 1);
            mbarrier_init(shared_address(&storage.empty[stage]), kConsumers);
        }
        fence_barrier_init();
    }
    constexpr uint32_t kTwoOnes = 0x3f803f80;
    for (int i = int(threadIdx.x); i < kOnesBytes / 4; i += kHopperThreads)
        *reinterpret_cast<uint32_t*>(storage.ones + 4 * i) = kTwoOnes;
    if (!PLANTED_BUG("weight_hopper: no fence after the ones are written")) fence_proxy_async();
    __syncthreads();  // the barriers are made, the ones are written and fenced
    const HopperUnits units(m, n, k, steps);
    const int group = int(threadIdx.x) / kGroupSize;
    if (group == 0) {
        decrease_registers<kProducerRegisters>();
        if (threadIdx.x == 0) bring_rows(storage, dy, x, units);
    } else {
        increase_registers<kConsumerRegisters>();
        multiply_and_add(storage, dw, sums, addend, units, n, k, group - 1);
    }
}
KERNEL(linear_backward_weight_hopper_bf16, kHopperThreads, HopperWeightStorage)
