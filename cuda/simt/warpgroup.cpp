// Products of a warpgroup (wgmma) and the registers of its threads. 128 threads meet at each product; it reads its operands at its
// issue (early) or at the wait that covers it (late), and until then its accumulators hold NaN.
// PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions: wgmma", "Matrix Descriptor Format", "setmaxnreg".
#include <algorithm>
#include <memory>

#include "runtime.h"

namespace simt {

constexpr uint32_t kRows = 64, kInner = 16, kMostColumns = 256;
// Registers of a block's threads on a multiprocessor, and what a thread gets at most.
constexpr uint32_t kRegisterFile = 65536, kMostRegisters = 256, kLeastRegisters = 24;

static Warpgroup& group_of(Fiber& fiber, const char* what, Location at) {
    Block& block = *fiber.block;
    uint32_t number = fiber.index / kGroupThreads;
    if ((number + 1) * kGroupThreads > block.threads)
        fail(at, "%s: a warpgroup is four warps, the first a multiple of four, but the block of %u threads ends before that",
             what, block.threads);
    if (block.agents.groups.size() <= number) block.agents.groups.resize(number + 1);
    Warpgroup& group = block.agents.groups[number];
    if constexpr (kChecked)
        if (!group.column) group.column = checker::add_column(*block.cluster);
    return group;
}

static Fiber& member(Fiber& fiber, uint32_t index) {
    return fiber.block->fibers[fiber.index / kGroupThreads * kGroupThreads + index];
}

// ---- Operands in shared memory ----

// A tile as its descriptor tells it: 128-byte swizzle, atoms of eight rows of 128 bytes.
struct Tile {
    uint32_t start, leading, stride;
    bool is_transposed;
    // Of the 16 bytes with the eight elements (mn, k..) or, transposed, (mn.., k).
    uint32_t address(uint32_t mn, uint32_t k) const {
        uint32_t plain = is_transposed ? start + mn / 64 * leading + k / 8 * stride + k % 8 * 128 + mn % 64 * 2
                                       : start + mn / 8 * stride + mn % 8 * 128 + k * 2;
        return plain ^ (plain >> 7 & 7) << 4;
    }
};

static Tile read_descriptor(uint64_t descriptor, bool is_transposed, uint32_t extent, const char* operand, Location at) {
    auto field = [&](int bit) { return uint32_t(descriptor >> bit & 0x3fff) << 4; };
    Tile tile{field(0), field(16), field(32), is_transposed};
    uint32_t swizzle = uint32_t(descriptor >> 62), base = uint32_t(descriptor >> 49 & 7);
    if (swizzle != 1)
        fail(at, "wgmma: the descriptor of %s has swizzle %u, but only 1, of 128 bytes, is used here", operand, swizzle);
    if (base != 0) fail(at, "wgmma: the descriptor of %s has base offset %u; atoms aligned to 1024 bytes have 0", operand, base);
    if (tile.stride != 1024)
        fail(at, "wgmma: the descriptor of %s has %u bytes from one atom of eight rows to the next, but with rows of 128 bytes "
             "they are 1024", operand, tile.stride);
    if (is_transposed && extent > 64 && (tile.leading < 1024 || tile.leading % 1024))
        fail(at, "wgmma: the descriptor of %s has %u bytes from one box of 64 to the next, which is not a multiple of an atom's "
             "1024", operand, tile.leading);
    // A start inside an atom may only step along its first row: by k where that runs along rows.
    uint32_t within = tile.start % 1024;
    if (is_transposed ? within != 0 : within % 32 != 0 || within >= 128)
        fail(at, "wgmma: the descriptor of %s starts %u bytes into an atom, which is no step of 16 along k", operand, within);
    return tile;
}

// Calls visit(address) for each 16 bytes of a tile of `extent` rows along mn.
template <class Visit>
static void each_piece(const Tile& tile, uint32_t extent, Visit visit) {
    if (tile.is_transposed) {
        for (uint32_t k = 0; k < kInner; ++k)
            for (uint32_t mn = 0; mn < extent; mn += 8) visit(tile.address(mn, k));
    } else {
        for (uint32_t mn = 0; mn < extent; ++mn)
            for (uint32_t k = 0; k < kInner; k += 8) visit(tile.address(mn, k));
    }
}

static float bf16_value(const char* arena, const Tile& tile, uint32_t mn, uint32_t k) {
    uint32_t piece = tile.is_transposed ? tile.address(mn / 8 * 8, k) + mn % 8 * 2 : tile.address(mn, k / 8 * 8) + k % 8 * 2;
    uint16_t bits;
    memcpy(&bits, arena + piece, 2);
    return from_bits<float>(uint64_t(bits) << 16);
}

// ---- The product ----

struct alignas(32) Operands {
    float a[kRows][kInner];
    float b[kMostColumns / 8][kInner][8];
    float c[kRows][kMostColumns];
};

typedef float Row __attribute__((vector_size(32)));

// As in tensor.cpp: k upwards, each step a fused multiply-add.
#define SIMT_GROUP_LOOP(operands, columns) \
    for (uint32_t block = 0; block < columns / 8; ++block) \
        for (uint32_t row = 0; row < kRows; ++row) { \
            Row sum; \
            memcpy(&sum, &operands.c[row][8 * block], sizeof(sum)); \
            for (uint32_t k = 0; k < kInner; ++k) { \
                Row other; \
                memcpy(&other, operands.b[block][k], sizeof(other)); \
                sum += operands.a[row][k] * other; \
            } \
            memcpy(&operands.c[row][8 * block], &sum, sizeof(sum)); \
        }

static void multiply_portable(Operands& operands, uint32_t columns) { SIMT_GROUP_LOOP(operands, columns) }
#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static void multiply_avx2(Operands& operands, uint32_t columns) {
    SIMT_GROUP_LOOP(operands, columns)
}
#endif

static void multiply(Operands& operands, uint32_t columns) {
#if defined(__x86_64__)
    static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_avx2) return multiply_avx2(operands, columns);
#endif
    multiply_portable(operands, columns);
}

// Where register `i` of a thread's accumulators stands: warp w of the group has rows 16·w.., in them the layout of mma.
static uint32_t row_of(uint32_t thread, uint32_t i) { return thread / 32 * 16 + thread % 32 / 4 + i % 4 / 2 * 8; }
static uint32_t column_of(uint32_t thread, uint32_t i) { return i / 4 * 8 + thread % 4 * 2 + i % 2; }

static void read_fragments(Operands& operands, const IssuedProduct& product) {
    for (uint32_t thread = 0; thread < kGroupThreads; ++thread) {
        uint32_t row = thread / 32 * 16 + thread % 32 / 4, k = thread % 4 * 2;
        for (uint32_t i = 0; i < 4; ++i) {
            uint32_t pair = product.a[thread][i];
            float* to = &operands.a[row + i % 2 * 8][k + i / 2 * 8];
            to[0] = from_bits<float>(uint64_t(pair << 16));
            to[1] = from_bits<float>(uint64_t(pair & 0xffff0000u));
        }
    }
}

static void execute(const Block& block, IssuedProduct& product) {
    if (product.is_done) return;
    product.is_done = true;
    const WarpgroupProduct& shape = product.shape;
    // Too large for a fiber's stack, and for what a library that is loaded late may have of each thread's own memory.
    const std::unique_ptr<Operands> held(new Operands);
    Operands& operands = *held;
    Location nowhere{nullptr, 0};
    if (shape.a_registers) {
        read_fragments(operands, product);
    } else {
        Tile a = read_descriptor(shape.a, shape.is_a_transposed, kRows, "A", nowhere);
        for (uint32_t row = 0; row < kRows; ++row)
            for (uint32_t k = 0; k < kInner; ++k) operands.a[row][k] = bf16_value(block.arena, a, row, k);
    }
    Tile b = read_descriptor(shape.b, shape.is_b_transposed, shape.columns, "B", nowhere);
    for (uint32_t column = 0; column < shape.columns; ++column)
        for (uint32_t k = 0; k < kInner; ++k) operands.b[column / 8][k][column % 8] = bf16_value(block.arena, b, column, k);
    uint32_t registers = shape.columns / 2;
    for (uint32_t thread = 0; thread < kGroupThreads; ++thread) {
        const float* from = product.saved.empty() ? product.d[thread] : &product.saved[thread * registers];
        for (uint32_t i = 0; i < registers; ++i)
            operands.c[row_of(thread, i)][column_of(thread, i)] = shape.accumulates ? from[i] : 0.0f;
    }
    multiply(operands, shape.columns);
    for (uint32_t thread = 0; thread < kGroupThreads; ++thread)
        for (uint32_t i = 0; i < registers; ++i)
            product.d[thread][i] = operands.c[row_of(thread, i)][column_of(thread, i)];
}

// ---- Issue, groups, waits ----

static void check_agreement(Fiber& me, const Warpgroup& group, Location at) {
    const WarpgroupProduct& mine = *group.operands[me.index % kGroupThreads];
    for (uint32_t i = 0; i < kGroupThreads; ++i) {
        const WarpgroupProduct& other = *group.operands[i];
        const Fiber& fiber = member(me, i);
        if (other.a == mine.a && other.b == mine.b && other.columns == mine.columns &&
            other.accumulates == mine.accumulates && other.is_a_transposed == mine.is_a_transposed &&
            other.is_b_transposed == mine.is_b_transposed && !other.a_registers == !mine.a_registers && fiber.at.line == at.line) {
            if (fiber.agents.product_groups == me.agents.product_groups) continue;
            fail(at, "wgmma: thread %u of the warpgroup has committed %u groups, but thread %u has committed %u", me.index,
                 me.agents.product_groups, fiber.index, fiber.agents.product_groups);
        }
        fail(at, "wgmma: the threads of a warpgroup disagree: thread %u multiplies other operands than thread %u", me.index,
             fiber.index);
    }
}

static void issue(Fiber& last, Warpgroup& group, Location at) {
    Block& block = *last.block;
    check_agreement(last, group, at);
    IssuedProduct product{*group.operands[0], {}, {}, {}, false};
    const WarpgroupProduct& shape = product.shape;
    Fiber& first = member(last, 0);
    uint32_t number = last.agents.product_groups + 1;
    if constexpr (kChecked) checker::begin_group_reads(first);
    auto check = [&](const Tile& tile, uint32_t extent) {
        each_piece(tile, extent, [&](uint32_t address) {
            shared_range(address, 16, 16, "wgmma", at);
            if constexpr (kChecked) checker::group_reads(first, address, 16, group.column, number, at);
        });
    };
    if (!shape.a_registers) check(read_descriptor(shape.a, shape.is_a_transposed, kRows, "A", at), kRows);
    check(read_descriptor(shape.b, shape.is_b_transposed, shape.columns, "B", at), shape.columns);

    uint32_t registers = shape.columns / 2;
    bool is_chained = false;
    for (const IssuedProduct& earlier : group.open) is_chained |= !earlier.is_done && earlier.d[0] == group.operands[0]->d;
    for (uint32_t i = 0; i < kGroupThreads; ++i) {
        const WarpgroupProduct& operand = *group.operands[i];
        product.d[i] = operand.d;
        product.a[i] = operand.a_registers;
        member(last, i).agents.owned.push_back({reinterpret_cast<const char*>(operand.d), registers * sizeof(float),
                                                reinterpret_cast<const char*>(operand.a_registers), number, at});
    }
    if (!is_chained) {
        for (uint32_t i = 0; i < kGroupThreads; ++i) {
            product.saved.insert(product.saved.end(), product.d[i], product.d[i] + registers);
            memset(product.d[i], 0xff, registers * sizeof(float));
        }
    }
    group.open.push_back(std::move(product));
    uint32_t timing = block.launch->options.copies;
    // In order: a product reads what the one before it has left in the same accumulators.
    if (timing == KEEL_COPIES_EARLY || (timing == KEEL_COPIES_RANDOM && block.random.below(2) == 0))
        for (IssuedProduct& earlier : group.open) execute(block, earlier);
    for (uint32_t i = 0; i < kGroupThreads; ++i)
        if (&member(last, i) != &last) wake(member(last, i));
}

void warpgroup_fence(Location at) {
    meet_warp(0x800, "wgmma.fence", at);
    running()->agents.has_fenced_products = true;
    running()->agents.touched.clear();
}

static void check_registers(Fiber& me, const WarpgroupProduct& product, Location at) {
    ThreadAgents& agents = me.agents;
    if (!agents.has_fenced_products) fail(at, "wgmma: no wgmma_fence stands before the first product");
    std::sort(agents.touched.begin(), agents.touched.end());
    auto is_touched = [&](const void* start, size_t bytes) {
        auto found = std::lower_bound(agents.touched.begin(), agents.touched.end(), uintptr_t(start) & ~uintptr_t(3));
        return found != agents.touched.end() && *found < uintptr_t(start) + bytes;
    };
    if (is_touched(product.d, product.columns / 2 * sizeof(float)))
        fail(at, "wgmma: the accumulators were accessed after the last wgmma_fence");
    if (product.a_registers && is_touched(product.a_registers, 4 * sizeof(uint32_t)))
        fail(at, "wgmma: the fragment of A was accessed after the last wgmma_fence");
    for (const OwnedRegisters& owned : agents.owned)
        if (owned.d == reinterpret_cast<const char*>(product.d) && owned.d_bytes != product.columns / 2 * sizeof(float))
            fail(at, "wgmma: its accumulators belong to a product of another shape that no wait covers");
}

void warpgroup_multiply(const WarpgroupProduct& product, Location at) {
    Fiber& me = *running();
    me.activity = "wgmma";
    me.at = at;
    Warpgroup& group = group_of(me, "wgmma", at);
    check_registers(me, product, at);
    group.operands[me.index % kGroupThreads] = &product;
    if (++group.arrived == kGroupThreads) {
        group.arrived = 0;
        return issue(me, group, at);
    }
    sleep(me, "wgmma, which wants all four warps of its warpgroup", at);
    park();
}

void warpgroup_commit(Location at) {
    meet_warp(0x801, "wgmma.commit_group", at);
    Fiber& me = *running();
    Warpgroup& group = group_of(me, "wgmma.commit_group", at);
    // Closed by the first that comes; at the next product all must have come.
    if (++me.agents.product_groups > group.group_ends.size()) group.group_ends.push_back(group.finished + uint32_t(group.open.size()));
}

void warpgroup_wait(uint32_t open_groups, Location at) {
    meet_warp(0x802, "wgmma.wait_group", at);
    Fiber& me = *running();
    ThreadAgents& agents = me.agents;
    Warpgroup& group = group_of(me, "wgmma.wait_group", at);
    if (agents.product_groups <= open_groups) return;
    uint32_t finished = agents.product_groups - open_groups;
    uint32_t count = group.group_ends[finished - 1];
    // The first thread that waits finishes them for all.
    for (; group.finished < count; ++group.finished) {
        execute(*me.block, group.open.front());
        group.open.pop_front();
    }
    agents.owned.erase(std::remove_if(agents.owned.begin(), agents.owned.end(),
                                      [&](const OwnedRegisters& owned) { return owned.group <= finished; }),
                       agents.owned.end());
    if constexpr (kChecked) checker::learn(me, group.column, finished);
}

// ---- Registers ----

static void grant(Block& block) {
    for (uint32_t i = 0; i < block.warp_count; ++i) {
        Warp& warp = block.warps[i];
        if (warp.wanted_registers <= warp.registers) continue;
        uint32_t more = (warp.wanted_registers - warp.registers) * kLanes;
        if (more > block.agents.free_registers) continue;
        block.agents.free_registers -= more;
        warp.registers = warp.wanted_registers;
        for (Fiber* fiber : warp.fibers)
            if (!(warp.ready >> fiber->lane & 1) && !(warp.arrived >> fiber->lane & 1)) wake(*fiber);
    }
}

struct RegisterOperand {
    uint32_t count;
    bool increases;
};

static void run_set_registers(Warp& warp, uint32_t lanes) {
    Fiber& first = *warp.fibers[__builtin_ctz(lanes)];
    require_whole_warp(warp, lanes, "setmaxnreg");
    const RegisterOperand& operand = *static_cast<RegisterOperand*>(first.operand);
    Block& block = *warp.block;
    uint32_t count = operand.count;
    if (count % 8 || count < kLeastRegisters || count > kMostRegisters)
        fail_as(first, first.at, "setmaxnreg: %u registers are wanted, but they are a multiple of 8 from %u to %u", count,
                kLeastRegisters, kMostRegisters);
    if (!block.agents.has_register_plan) {
        block.agents.has_register_plan = true;
        uint32_t each = kRegisterFile / block.threads / 8 * 8;
        if (each > kMostRegisters) each = kMostRegisters;
        block.agents.free_registers = kRegisterFile - each * block.warp_count * kLanes;
        for (uint32_t i = 0; i < block.warp_count; ++i) block.warps[i].registers = block.warps[i].wanted_registers = each;
    }
    if (operand.increases ? count < warp.registers : count > warp.registers)
        fail_as(first, first.at, "setmaxnreg: the threads of the warp have %u registers, so %u is no %s", warp.registers, count,
                operand.increases ? "increase" : "decrease");
    warp.wanted_registers = count;
    if (!operand.increases) {
        block.agents.free_registers += (warp.registers - count) * kLanes;
        warp.registers = count;
    }
    grant(block);
}

void set_registers(uint32_t count, bool increases, Location at) {
    RegisterOperand operand{count, increases};
    collect(~0u, 0x900 + increases, &operand, run_set_registers, "setmaxnreg", at);
    Fiber& me = *running();
    if (me.warp->registers == count) return;
    sleep(me, "setmaxnreg: the block's 65536 registers do not hold what its warps ask for", at);
    park();
}

}  // namespace simt
