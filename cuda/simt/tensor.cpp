// ldmatrix, stmatrix and the bf16 tensor product, by the lane maps of the PTX ISA ("Warp Level Matrix Instructions").
// With g = lane / 4 and t = lane % 4, mma.m16n8k16 holds
//   A [16,16]: a0 (g, 2t..)  a1 (g+8, 2t..)  a2 (g, 2t+8..)  a3 (g+8, 2t+8..)      two neighbouring columns a register
//   B [16,8]:  b0 (2t.., g)  b1 (2t+8.., g)                                        two neighbouring rows a register
//   C, D [16,8]: c0 c1 (g, 2t..)  c2 c3 (g+8, 2t..)
// and ldmatrix gives lane (g, t) the elements (g, 2t..) of each 8×8 matrix, or with .trans the elements (2t.., g).
#include "runtime.h"

namespace simt {

struct MatricesOperand {
    uint32_t* registers;
    uint32_t count;
    bool transposed;
    uint32_t row_address;
};

static void run_load_matrices(Warp& warp, uint32_t lanes) {
    require_whole_warp(warp, lanes, "ldmatrix");
    const Block& block = *warp.block;
    auto operand_of = [&](uint32_t lane) -> MatricesOperand& {
        return *static_cast<MatricesOperand*>(warp.fibers[lane]->operand);
    };
    uint32_t count = operand_of(0).count;
    bool transposed = operand_of(0).transposed;
    for (uint32_t matrix = 0; matrix < count; ++matrix) {
        uint16_t elements[8][8];
        for (uint32_t row = 0; row < 8; ++row) {
            uint32_t address = operand_of(8 * matrix + row).row_address;
            memcpy(elements[row], block.arena + address, 16);
        }
        for (uint32_t lane = 0; lane < kLanes; ++lane) {
            uint32_t g = lane / 4, t = lane % 4;
            uint32_t low = transposed ? elements[2 * t][g] : elements[g][2 * t];
            uint32_t high = transposed ? elements[2 * t + 1][g] : elements[g][2 * t + 1];
            operand_of(lane).registers[matrix] = low | high << 16;
        }
    }
}

void load_matrices(uint32_t* registers, uint32_t count, bool transposed, uint32_t row_address, Location at) {
    Fiber& me = *running();
    // Only the first 8·count lanes give addresses.
    if (me.lane < 8 * count) {
        shared_range(row_address, 16, 16, "ldmatrix", at);
        if constexpr (kChecked) checker::read(me, row_address, 16, nullptr, at);
    }
    MatricesOperand operand{registers, count, transposed, row_address};
    collect(~0u, 0x400 + count * 2 + transposed, &operand, run_load_matrices, "ldmatrix", at);
}

static void run_store_matrices(Warp& warp, uint32_t lanes) {
    require_whole_warp(warp, lanes, "stmatrix");
    const Block& block = *warp.block;
    auto operand_of = [&](uint32_t lane) -> MatricesOperand& {
        return *static_cast<MatricesOperand*>(warp.fibers[lane]->operand);
    };
    uint32_t count = operand_of(0).count;
    bool transposed = operand_of(0).transposed;
    for (uint32_t matrix = 0; matrix < count; ++matrix) {
        uint16_t elements[8][8];
        for (uint32_t lane = 0; lane < kLanes; ++lane) {
            uint32_t g = lane / 4, t = lane % 4, both = operand_of(lane).registers[matrix];
            (transposed ? elements[2 * t][g] : elements[g][2 * t]) = uint16_t(both);
            (transposed ? elements[2 * t + 1][g] : elements[g][2 * t + 1]) = uint16_t(both >> 16);
        }
        for (uint32_t row = 0; row < 8; ++row)
            memcpy(block.arena + operand_of(8 * matrix + row).row_address, elements[row], 16);
    }
}

void store_matrices(const uint32_t* registers, uint32_t count, bool transposed, uint32_t row_address, Location at) {
    Fiber& me = *running();
    if (me.lane < 8 * count) {
        shared_range(row_address, 16, 16, "stmatrix", at);
        if constexpr (kChecked) checker::write(me, row_address, 16, nullptr, at);
    }
    MatricesOperand operand{const_cast<uint32_t*>(registers), count, transposed, row_address};
    collect(~0u, 0x440 + count * 2 + transposed, &operand, run_store_matrices, "stmatrix", at);
}

struct ProductOperand {
    float* d;
    const uint32_t* a;
    const uint32_t* b;
    const float* c;
};

struct alignas(32) ProductTiles {
    float a[16][16];
    float b[16][8];
    float c[16][8];
};

// c += a·b. Products of two bf16 are exact in f32, so a fused multiply-add gives the same bits as two instructions.
#define SIMT_PRODUCT_LOOP(tiles) \
    for (int row = 0; row < 16; ++row) { \
        Row sum; \
        memcpy(&sum, tiles.c[row], sizeof(sum)); \
        for (int k = 0; k < 16; ++k) { \
            Row other; \
            memcpy(&other, tiles.b[k], sizeof(other)); \
            sum += tiles.a[row][k] * other; \
        } \
        memcpy(tiles.c[row], &sum, sizeof(sum)); \
    }

typedef float Row __attribute__((vector_size(32)));
static void product_portable(ProductTiles& tiles) { SIMT_PRODUCT_LOOP(tiles) }
#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static void product_avx2(ProductTiles& tiles) { SIMT_PRODUCT_LOOP(tiles) }
#endif

static void (*product)(ProductTiles&) = product_portable;

void choose_tensor_code() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) product = product_avx2;
#endif
}

static float low_half(uint32_t pair) { return from_bits<float>(uint64_t(pair << 16)); }
static float high_half(uint32_t pair) { return from_bits<float>(uint64_t(pair & 0xffff0000u)); }
static void put_pair(float* to, uint32_t pair) {
    float both[2] = {low_half(pair), high_half(pair)};
    memcpy(to, both, sizeof(both));
}

// Every element by its own line: compilers leave a loop over four registers as it is, and work the places out anew.
static void run_product(Warp& warp, uint32_t lanes) {
    require_whole_warp(warp, lanes, "mma.sync");
    ProductTiles tiles;
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
        const ProductOperand& operand = *static_cast<ProductOperand*>(warp.fibers[lane]->operand);
        uint32_t g = lane / 4, t = lane % 4;
        put_pair(&tiles.a[g][2 * t], operand.a[0]);
        put_pair(&tiles.a[g + 8][2 * t], operand.a[1]);
        put_pair(&tiles.a[g][2 * t + 8], operand.a[2]);
        put_pair(&tiles.a[g + 8][2 * t + 8], operand.a[3]);
        tiles.b[2 * t][g] = low_half(operand.b[0]);
        tiles.b[2 * t + 1][g] = high_half(operand.b[0]);
        tiles.b[2 * t + 8][g] = low_half(operand.b[1]);
        tiles.b[2 * t + 9][g] = high_half(operand.b[1]);
        memcpy(&tiles.c[g][2 * t], operand.c, 8);
        memcpy(&tiles.c[g + 8][2 * t], operand.c + 2, 8);
    }
    product(tiles);
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
        const ProductOperand& operand = *static_cast<ProductOperand*>(warp.fibers[lane]->operand);
        uint32_t g = lane / 4, t = lane % 4;
        memcpy(operand.d, &tiles.c[g][2 * t], 8);
        memcpy(operand.d + 2, &tiles.c[g + 8][2 * t], 8);
    }
}

void multiply_bf16_16x8x16(float* d, const uint32_t* a, const uint32_t* b, const float* c, Location at) {
    ProductOperand operand{d, a, b, c};
    collect(~0u, 0x500, &operand, run_product, "mma.sync", at);
}

}  // namespace simt
