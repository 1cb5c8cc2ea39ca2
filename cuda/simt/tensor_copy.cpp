// Copies by tensor maps (cp.async.bulk.tensor): one thread asks, and the box comes when TMA likes. A load lands at its
// issue (early), when no thread can go on without it (late), or at any call between, in any order (random); a store reads shared
// memory at its issue or at the wait that covers it. What the checked build holds them to does not depend on when they land.
// PTX ISA, "Data Movement and Conversion Instructions: cp.async.bulk.tensor", "Tensors: Swizzling Modes".
#include "runtime.h"

namespace simt {

static uint32_t box_bytes(const TensorMap& map) {
    uint32_t bytes = map.element_bytes;
    for (uint32_t i = 0; i < map.rank; ++i) bytes *= map.box[i];
    return bytes;
}

// The shared address at which TMA puts what a plain box would have at `address`: the 16-byte pieces within the span
// change places by the number of the 128-byte row.
static uint32_t swizzled(uint32_t address, uint32_t span) {
    uint32_t pieces = span / 16;
    return pieces < 2 ? address : address ^ (address >> 7 & (pieces - 1)) << 4;
}

// Calls visit(first byte of the row in a plain box, row's memory or null where it lies outside the tensor, first byte and bytes of
// the row that lie inside).
template <class Visit>
static void each_row(const TensorMap& map, const int32_t* coordinates, Visit visit) {
    uint32_t rows = 1;
    for (uint32_t i = 1; i < map.rank; ++i) rows *= map.box[i];
    int64_t x = coordinates[0], width = int64_t(map.dims[0]);
    int64_t first = x < 0 ? -x : 0, last = width - x;
    if (last > int64_t(map.box[0])) last = map.box[0];
    uint32_t row_bytes = map.box[0] * map.element_bytes;
    for (uint32_t row = 0; row < rows; ++row) {
        bool is_inside = first < last;
        int64_t offset = x * map.element_bytes;
        uint32_t rest = row;
        for (uint32_t i = 1; i < map.rank; ++i) {
            int64_t at = coordinates[i] + int64_t(rest % map.box[i]);
            rest /= map.box[i];
            is_inside &= at >= 0 && at < int64_t(map.dims[i]);
            offset += at * int64_t(map.strides[i]);
        }
        char* memory = is_inside ? reinterpret_cast<char*>(map.address + uint64_t(offset)) : nullptr;
        visit(row * row_bytes, memory, uint32_t(is_inside ? first : 0) * map.element_bytes,
              uint32_t(is_inside ? last - first : 0) * map.element_bytes);
    }
}

// Moves `bytes` bytes between a row of a box and memory, piece by piece, as the pieces lie in shared memory.
template <class Move>
static void each_piece(const TensorMap& map, uint32_t box, uint32_t from, uint32_t bytes, Move move) {
    while (bytes) {
        uint32_t piece = 16 - from % 16 < bytes ? 16 - from % 16 : bytes;
        move(swizzled(box + from, map.swizzle), from, piece);
        from += piece;
        bytes -= piece;
    }
}

static void load_box(const Block& block, const TensorMap& map, const int32_t* coordinates, uint32_t to) {
    uint32_t row_bytes = map.box[0] * map.element_bytes;
    each_row(map, coordinates, [&](uint32_t start, const char* memory, uint32_t first, uint32_t inside) {
        each_piece(map, to, start, row_bytes, [&](uint32_t address, uint32_t, uint32_t piece) {
            memset(block.arena + address, 0, piece);
        });
        each_piece(map, to, start + first, inside, [&](uint32_t address, uint32_t from, uint32_t piece) {
            memcpy(block.arena + address, memory + (from - start), piece);
        });
    });
}

static void store_box(const Block& block, const TensorStore& store) {
    const TensorMap& map = store.map;
    each_row(map, store.coordinates, [&](uint32_t start, char* memory, uint32_t first, uint32_t inside) {
        each_piece(map, store.from, start + first, inside, [&](uint32_t address, uint32_t from, uint32_t piece) {
            memcpy(memory + (from - start), block.arena + address, piece);
        });
    });
}

static bool chance(Cluster& cluster, uint32_t one_in) {
    Random random{cluster.random};
    bool is_drawn = random.below(one_in) == 0;
    cluster.random = random.state;
    return is_drawn;
}

static void land(Cluster& cluster, size_t index) {
    TensorCopy copy = cluster.copies[index];
    cluster.copies.erase(cluster.copies.begin() + ptrdiff_t(index));
    // Done in the name of who asked for it, so that faults are reported there.
    Self* earlier = current;
    current = copy.issuer;
    Block& block = *copy.block;
    MemoryBarrier& barrier = barrier_at(block, copy.barrier, "a copy by a tensor map", copy.at);
    if (barrier.phase != copy.phase)
        fail_as(*copy.issuer, copy.at, "this copy by a tensor map lands after the phase of its barrier at byte %d of the shared "
                "storage has ended: the bytes that arrivals expected are fewer than its copies bring",
                int(copy.barrier) - int(block.shared_start));
    load_box(block, copy.map, copy.coordinates, copy.to);
    complete_bytes(block, copy.barrier, box_bytes(copy.map), *copy.issuer, copy.at);
    current = earlier;
}

bool land_one(Cluster& cluster) {
    if (cluster.copies.empty()) return false;
    // An odd seed lets the youngest land first: the engine keeps no order.
    bool is_youngest = cluster.launch->options.seed & 1;
    land(cluster, is_youngest ? cluster.copies.size() - 1 : 0);
    return true;
}

void land_some(Cluster& cluster) {
    if (cluster.copies.empty() || cluster.launch->options.copies != KEEL_COPIES_RANDOM) return;
    for (size_t i = cluster.copies.size(); i-- > 0;)
        if (chance(cluster, 4)) land(cluster, i);
}

// What a load and a store are both held to.
static void check_box(const TensorMap& map, uint32_t rank, const int32_t* coordinates, uint32_t address, bool is_store,
                      const char* what, Location at) {
    if (map.mark != kTensorMapMark) fail(at, "%s: the map is none that a launch has passed", what);
    if (map.rank != rank) fail(at, "%s: the map has %u dimensions, but %u coordinates are given", what, map.rank, rank);
    // The permutation goes by address, and the atoms of wgmma's descriptors begin where it does.
    uint32_t alignment = map.swizzle ? 1024 : 128;
    shared_range(address, box_bytes(map), alignment, what, at);
    each_row(map, coordinates, [&](uint32_t, const char* memory, uint32_t first, uint32_t inside) {
        if (memory) check_global(memory + first, inside, 1, is_store, at);
    });
}

static void load_into(Block& block, uint32_t to, const TensorMap& map, uint32_t rank, const int32_t* coordinates,
                      uint32_t address, Location at) {
    Fiber& me = *running();
    Cluster& cluster = *me.block->cluster;
    require_running(block, me.activity, at);
    MemoryBarrier& barrier = barrier_at(block, address, me.activity, at);
    if (!barrier.is_fenced)
        fail(at, "%s: the barrier at byte %d of the shared storage was made without fence_barrier_init, so TMA need not "
             "see it", me.activity, int(address) - int(block.shared_start));
    uint32_t bytes = box_bytes(map);
    barrier.copied = uint32_t(barrier.phase) + 1;
    if constexpr (kChecked) {
        checker::barrier_used(me, block, address, me.activity, at);
        checker::agent_writes(me, block, to, bytes, barrier.column, barrier.copied, at);
    }
    TensorCopy copy{map, {}, &block, to, address, barrier.phase, &me, at};
    memcpy(copy.coordinates, coordinates, rank * sizeof(int32_t));
    cluster.copies.push_back(copy);
    uint32_t timing = me.block->launch->options.copies;
    if (timing == KEEL_COPIES_EARLY || (timing == KEEL_COPIES_RANDOM && chance(cluster, 2)))
        land(cluster, cluster.copies.size() - 1);
}

void tensor_load(uint32_t to, const TensorMap& map, uint32_t rank, const int32_t* coordinates, uint32_t barrier, uint16_t mask,
                 Location at) {
    Fiber& me = *running();
    Cluster& cluster = *me.block->cluster;
    me.activity = "a load by a tensor map";
    me.at = at;
    land_some(cluster);
    check_box(map, rank, coordinates, to, false, me.activity, at);
    if (mask >> cluster.size)
        fail(at, "%s: the mask %04x names blocks that the cluster of %u does not have", me.activity, mask, cluster.size);
    if (mask == 0) return load_into(*me.block, to, map, rank, coordinates, barrier, at);
    for (uint32_t i = 0; i < cluster.size; ++i)
        if (mask >> i & 1) load_into(*cluster.blocks[i], to, map, rank, coordinates, barrier, at);
}

static void finish_store(Fiber& fiber, TensorStore& store) {
    if (store.is_done) return;
    store.is_done = true;
    store_box(*fiber.block, store);
}

void tensor_store(const TensorMap& map, uint32_t rank, const int32_t* coordinates, uint32_t from, Location at) {
    Fiber& me = *running();
    Cluster& cluster = *me.block->cluster;
    ThreadAgents& agents = me.agents;
    me.activity = "a store by a tensor map";
    me.at = at;
    check_box(map, rank, coordinates, from, true, me.activity, at);
    if constexpr (kChecked) {
        if (!agents.store_column) agents.store_column = checker::add_column(cluster);
        checker::agent_reads(me, from, box_bytes(map), agents.store_column, agents.store_groups + 1, at);
    }
    TensorStore store{map, {}, from, false, at};
    memcpy(store.coordinates, coordinates, rank * sizeof(int32_t));
    agents.stores.push_back(store);
    uint32_t timing = me.block->launch->options.copies;
    if (timing == KEEL_COPIES_EARLY || (timing == KEEL_COPIES_RANDOM && chance(cluster, 2)))
        finish_store(me, agents.stores.back());
}

void bulk_commit(Location at) {
    Fiber& me = *running();
    me.at = at;
    ++me.agents.store_groups;
    me.agents.store_ends.push_back(uint32_t(me.agents.stores.size()));
}

// Reads and writes of a store happen together here, so that both kinds of wait finish it.
void bulk_wait(uint32_t open_groups, bool, Location at) {
    Fiber& me = *running();
    ThreadAgents& agents = me.agents;
    me.at = at;
    if (agents.store_ends.size() <= open_groups) return;
    size_t closed = agents.store_ends.size() - open_groups;
    uint32_t count = agents.store_ends[closed - 1];
    for (uint32_t i = 0; i < count; ++i) finish_store(me, agents.stores[i]);
    agents.stores.erase(agents.stores.begin(), agents.stores.begin() + count);
    agents.store_ends.erase(agents.store_ends.begin(), agents.store_ends.begin() + ptrdiff_t(closed));
    for (uint32_t& end : agents.store_ends) end -= count;
    if constexpr (kChecked)
        if (agents.store_column) checker::learn(me, agents.store_column, agents.store_groups - open_groups);
}

void fence_proxy_async(Location at) {
    Fiber& me = *running();
    me.at = at;
    if constexpr (kChecked) checker::proxy_fence(me);
}

}  // namespace simt
