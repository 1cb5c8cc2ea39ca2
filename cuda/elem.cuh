// Elements: the bf16 storage type, conversions, and 16-byte accesses that hand a kernel f32 values whatever the storage.
#pragma once
#include "ptx/convert.cuh"

// bfloat16 as it lies in memory. Arithmetic is done in f32.
struct bf16 {
    uint16_t bits;
};

#ifdef SIMT_EMULATOR
namespace simt {
template <> struct ElementOf<bf16> { static constexpr uint8_t value = KEEL_ELEMENT_BF16; };
}
#endif

DEVICE float to_float(float value) { return value; }
DEVICE float to_float(bf16 value) { return __uint_as_float(uint32_t(value.bits) << 16); }

template <class T> struct FromFloat;
template <> struct FromFloat<float> {
    static DEVICE_MEMBER float convert(float value) { return value; }
};
template <> struct FromFloat<bf16> {
    static DEVICE_MEMBER bf16 convert(float value) { return bf16{bf16_bits(value)}; }
};
// Rounds to nearest, ties to even.
template <class T>
DEVICE T from_float(float value) {
    return FromFloat<T>::convert(value);
}

// The two bf16 of a 32-bit register, lower half first.
DEVICE float low_to_float(uint32_t pair) { return __uint_as_float(pair << 16); }
DEVICE float high_to_float(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// How many elements 16 bytes hold.
template <class T> constexpr int kVector = 16 / int(sizeof(T));

// One 128-bit access; `pointer` is aligned to 16 bytes.
DEVICE uint4 load_16_bytes(const void* from CALLER) {
#ifdef SIMT_EMULATOR
    simt::require_aligned(from, 16, caller);
#endif
    return *static_cast<const uint4*>(from);
}
DEVICE void store_16_bytes(void* to, uint4 value CALLER) {
#ifdef SIMT_EMULATOR
    simt::require_aligned(to, 16, caller);
#endif
    *static_cast<uint4*>(to) = value;
}

// One 64-bit access; the address is aligned to 8 bytes.
DEVICE uint2 load_8_bytes(const void* from CALLER) {
#ifdef SIMT_EMULATOR
    simt::require_aligned(from, 8, caller);
#endif
    return *static_cast<const uint2*>(from);
}
DEVICE void store_8_bytes(void* to, uint2 value CALLER) {
#ifdef SIMT_EMULATOR
    simt::require_aligned(to, 8, caller);
#endif
    *static_cast<uint2*>(to) = value;
}

DEVICE void unpack(float (&values)[4], uint4 raw, const float*) {
    values[0] = __uint_as_float(raw.x);
    values[1] = __uint_as_float(raw.y);
    values[2] = __uint_as_float(raw.z);
    values[3] = __uint_as_float(raw.w);
}
DEVICE void unpack(float (&values)[8], uint4 raw, const bf16*) {
    values[0] = low_to_float(raw.x);
    values[1] = high_to_float(raw.x);
    values[2] = low_to_float(raw.y);
    values[3] = high_to_float(raw.y);
    values[4] = low_to_float(raw.z);
    values[5] = high_to_float(raw.z);
    values[6] = low_to_float(raw.w);
    values[7] = high_to_float(raw.w);
}
DEVICE uint4 pack(const float (&values)[4], const float*) {
    return make_uint4(__float_as_uint(values[0]), __float_as_uint(values[1]), __float_as_uint(values[2]),
                      __float_as_uint(values[3]));
}
DEVICE uint4 pack(const float (&values)[8], const bf16*) {
    return make_uint4(bf16_pair_bits(values[0], values[1]), bf16_pair_bits(values[2], values[3]),
                      bf16_pair_bits(values[4], values[5]), bf16_pair_bits(values[6], values[7]));
}

// Columns [column, column + kVector) of a row of `columns` elements; those past the end read as zero. `vectors` says that
// rows are aligned to 16 bytes and hold whole vectors.
template <class T>
DEVICE void load_columns(float (&values)[kVector<T>], const T* row, int column, int columns, bool vectors CALLER) {
    if (vectors && column < columns) {
        unpack(values, load_16_bytes(row + column FOR_CALLER), row);
        return;
    }
    UNROLL
    for (int i = 0; i < kVector<T>; ++i) values[i] = column + i < columns ? to_float(row[column + i]) : 0.0f;
}

// Writes the same columns, and nothing past the end.
template <class T>
DEVICE void store_columns(T* row, const float (&values)[kVector<T>], int column, int columns, bool vectors CALLER) {
    if (vectors && column < columns) {
        store_16_bytes(row + column, pack(values, row) FOR_CALLER);
        return;
    }
    UNROLL
    for (int i = 0; i < kVector<T>; ++i)
        if (column + i < columns) row[column + i] = from_float<T>(values[i]);
}

// Columns [column, column + kCount) of a row of f32 beside rows of another type, kCount a multiple of 4 and `column` of
// kCount; those past the end read as zero. `vectors` as above.
template <int kCount>
DEVICE void load_floats(float (&values)[kCount], const float* row, int column, int columns, bool vectors CALLER) {
    if (vectors && column < columns) {
        UNROLL
        for (int i = 0; i < kCount; i += 4) {
            float part[4];
            unpack(part, load_16_bytes(row + column + i FOR_CALLER), row);
            UNROLL
            for (int k = 0; k < 4; ++k) values[i + k] = part[k];
        }
        return;
    }
    UNROLL
    for (int i = 0; i < kCount; ++i) values[i] = column + i < columns ? row[column + i] : 0.0f;
}

// Writes the same columns, and nothing past the end.
template <int kCount>
DEVICE void store_floats(float* row, const float (&values)[kCount], int column, int columns, bool vectors CALLER) {
    if (vectors && column < columns) {
        UNROLL
        for (int i = 0; i < kCount; i += 4) {
            const float part[4] = {values[i], values[i + 1], values[i + 2], values[i + 3]};
            store_16_bytes(row + column + i, pack(part, row) FOR_CALLER);
        }
        return;
    }
    UNROLL
    for (int i = 0; i < kCount; ++i)
        if (column + i < columns) row[column + i] = values[i];
}

// 4 or 8 elements in one access, 16 or 8 bytes, aligned to their size.
DEVICE void load_elements(float (&values)[4], const float* from CALLER) {
    unpack(values, load_16_bytes(from FOR_CALLER), from);
}
DEVICE void load_elements(float (&values)[8], const bf16* from CALLER) {
    unpack(values, load_16_bytes(from FOR_CALLER), from);
}
DEVICE void load_elements(float (&values)[4], const bf16* from CALLER) {
    const uint2 raw = load_8_bytes(from FOR_CALLER);
    values[0] = low_to_float(raw.x);
    values[1] = high_to_float(raw.x);
    values[2] = low_to_float(raw.y);
    values[3] = high_to_float(raw.y);
}
DEVICE void store_elements(float* to, const float (&values)[4] CALLER) {
    store_16_bytes(to, pack(values, to) FOR_CALLER);
}
DEVICE void store_elements(bf16* to, const float (&values)[8] CALLER) {
    store_16_bytes(to, pack(values, to) FOR_CALLER);
}
DEVICE void store_elements(bf16* to, const float (&values)[4] CALLER) {
    store_8_bytes(to, make_uint2(bf16_pair_bits(values[0], values[1]), bf16_pair_bits(values[2], values[3])) FOR_CALLER);
}
