// The patch embedding: y = patches · Wᵀ + bias + position and its gradients. Patches never lie in memory as rows: the
// product's loads gather the pixels, which stay f32 as far as shared memory in every precision (Dosovitskiy et al. 2021).
#include "divide.cuh"
#include "weight_gradient.cuh"

// Where the pixels of images f32 [B, colours, height, width] lie, as a matrix [B·T, colours·P·P]: row r is patch r of all
// images in row-major order, column p the pixel (colour, line, place) of the patch. What is left over at the right and at
// the bottom belongs to no patch.
struct Patches {
    const float* images;
    int rows, pixels;
    int64_t image_size, colour_size;  // elements of an image, of one colour of it
    int width, patch;
    Divisor by_tokens, by_across, by_area, by_patch;
    int access;  // bytes of pixels that lie together and aligned wherever they begin: 16, 8 or 4

    DEVICE_MEMBER int64_t row_offset(int row) const {
        const int sample = by_tokens.quotient(row), token = row - sample * int(by_tokens.value);
        const int down = by_across.quotient(token), across = token - down * int(by_across.value);
        return sample * image_size + (int64_t(down) * width + across) * patch;
    }
    DEVICE_MEMBER int64_t pixel_offset(int pixel) const {
        const int colour = by_area.quotient(pixel), rest = pixel - colour * int(by_area.value);
        const int line = by_patch.quotient(rest);
        return colour * colour_size + int64_t(line) * width + (rest - line * patch);
    }
};

DEVICE Patches patches(const float* images, int batch, int colours, int height, int width, int patch) {
    const int down = height / patch, across = width / patch;
    const int64_t colour_size = int64_t(height) * width;
    const uint32_t together = uint32_t(patch) | uint32_t(width) | uint32_t(uintptr_t(images) / sizeof(float));
    const int access = together % 4 == 0 ? 16 : together % 2 == 0 ? 8 : 4;
    return {images,
            batch * down * across,
            colours * patch * patch,
            colours * colour_size,
            colour_size,
            width,
            patch,
            divisor(down * across),
            divisor(across),
            divisor(patch * patch),
            divisor(patch),
            access};
}

template <int kBytes, int kThreads, class SharedTile>
DEVICE void gather_pieces(SharedTile& tile, const Patches& from, int first_row, int first_pixel, int thread) {
    constexpr int kElements = kBytes / int(sizeof(float)), kAcross = SharedTile::kColumns / kElements;
    constexpr int kDown = kThreads / kAcross;
    static_assert(kThreads % kAcross == 0, "a thread stays in its column of pieces");
    const int column = thread % kAcross * kElements, pixel = first_pixel + column;
    const float* source = from.images + (pixel < from.pixels ? from.pixel_offset(pixel) : 0);
    ROLLED
    for (int row = thread / kAcross; row < SharedTile::kRows; row += kDown) {
        const bool inside = pixel < from.pixels && first_row + row < from.rows;
        const int64_t offset = inside ? from.row_offset(first_row + row) : 0;
        copy_piece<kBytes>(tile.at(row, column), source + offset, inside ? kBytes : 0);
    }
}

// Starts to copy the patches from first_row on, pixels from first_pixel on, into a tile, as load_tile_async does.
template <int kThreads, class SharedTile>
DEVICE void gather(SharedTile& tile, const Patches& from, int first_row, int first_pixel, int thread) {
    if (from.access == 16) {
        gather_pieces<16, kThreads>(tile, from, first_row, first_pixel, thread);
    } else if (from.access == 8) {
        gather_pieces<8, kThreads>(tile, from, first_row, first_pixel, thread);
    } else {
        gather_pieces<4, kThreads>(tile, from, first_row, first_pixel, thread);
    }
}

// Operand(patch, k = pixel).
struct PatchesByRow {
    using Element = float;
    static constexpr bool kAcross = false;
    Patches from;
    template <int kThreads, class SharedTile>
    DEVICE_MEMBER void load(SharedTile& tile, int first, int k, int thread) const {
        gather<kThreads>(tile, from, first, k, thread);
    }
};
// Operand(pixel, k = patch).
struct PatchesByPixel {
    using Element = float;
    static constexpr bool kAcross = true;
    Patches from;
    template <int kThreads, class SharedTile>
    DEVICE_MEMBER void load(SharedTile& tile, int first, int k, int thread) const {
        gather<kThreads>(tile, from, k, first, thread);
    }
};

// As ProductShapes, with fewer stages of bf16: pixels are twice as heavy.
template <class T> struct PatchShapes : ProductShapes<T> {};
template <> struct PatchShapes<bf16> {
    using Large = ProductShape<bf16, 128, 128, 32, 2, 2, 3, 2>;
    using Small = ProductShape<bf16, 64, 64, 32, 2, 2, 3, 3>;
};

// patch_embed_forward: the embedding of every patch.
// Math     : y(r,c) = Σ over pixels p of patch(r,p)·W(c,p) + bias(c) + position(r mod T, c)
// Tensors  : images f32 [B,Ci,h,w] | weight elem [C,Ci·P·P] | bias f32 [C] or null | position elem [T,C] or null |
//            y elem [B,T,C]
// Grid     : tiles of y      Block: bf16 128 threads; f32 256, small 128
// Smem     : the stages of product.cuh: bf16 84 KB, f32 72 KB; small bf16 42 KB, f32 48 KB
// Work     : 2·B·T·C·Ci·P·P flop; reads images·4 + weight·e, writes y·e     bound: tensor cores; with P % 4 != 0 the
//            gather's addresses take about as many issue slots as the products
// Accuracy : f32 accumulators, rounded once; bf16 rounds pixels to bf16
// Ragged   : any sizes; pixels are copied by 16, 8 or 4 bytes as P and w allow
// Order    : deterministic
// Source   : Dosovitskiy et al. 2021, eq. 1
template <class Shape, class T = typename Shape::T>
DEVICE void patch_embed_forward(T* y, const float* images, const T* weight, const float* bias, const T* position, int batch,
                                int colours, int height, int width, int patch, int c) {
    using Storage = ProductStorage<Shape, PatchesByRow, RowsOperand<T>>;
    SHARED_STORAGE(Storage, storage);
    constexpr int kWidth = kVector<T>;
    const Patches from = patches(images, batch, colours, height, width, patch);
    const bool vectors = has_vectors(y, c) && has_vectors(position, c);
    product<kWidth, Shape>(
        storage, PatchesByRow{from}, RowsOperand<T>{matrix(weight, c, from.pixels)}, product_place<Shape>(from.rows, c),
        from.rows, c, 0, (from.pixels + Shape::kTileK - 1) / Shape::kTileK, NothingBesides{},
        [&](int row, int column, float (&values)[kWidth]) {
            if (bias) {
                UNROLL
                for (int i = 0; i < kWidth; ++i)
                    if (column + i < c) values[i] += bias[column + i];
            }
            if (position) {
                float here[kWidth];
                load_columns(here, position + int64_t(from.by_tokens.remainder(row)) * c, column, c, vectors);
                UNROLL
                for (int i = 0; i < kWidth; ++i) values[i] += here[i];
            }
            store_columns(y + int64_t(row) * c, values, column, c, vectors);
        });
}

// patch_embed_backward: the weight's gradient, and parts of the bias's.
// Math     : dW(c,p) = addend(c,p) + Σ over r of dy(r,c)·patch(r,p)     db(c) = Σ over r of dy(r,c)
// Tensors  : dy elem [B·T,C] | images f32 [B,Ci,h,w] | addend f32 [C,Ci·P·P] or null, dw itself too |
//            dw f32 [splits,C,Ci·P·P] | sums f32 [splits · tiles across, C] or null
// Grid     : (tiles of dW, 1, splits)      Block: as patch_embed_forward
// Smem     : the stages of product.cuh: bf16 75 KB, f32 68 KB; small bf16 39 KB, f32 34 KB
// Work     : 2·B·T·C·Ci·P·P flop; reads dy·e + images·4, writes dW·4 a split     bound: tensor cores, as patch_embed_forward
// Accuracy : f32 accumulators over B·T / splits rows; bf16 rounds pixels to bf16
// Ragged   : any sizes
// Order    : deterministic: rows ascending within a split, splits in order (linear_sum_f32)
// Source   : -
template <class Shape, class T = typename Shape::T>
DEVICE void patch_embed_backward(float* dw, float* sums, const float* addend, const T* dy, const float* images, int batch,
                                 int colours, int height, int width, int patch, int c, int steps) {
    using Storage = ProductStorage<Shape, ColumnsOperand<T>, PatchesByPixel>;
    SHARED_STORAGE(Storage, storage);
    const Patches from = patches(images, batch, colours, height, width, patch);
    weight_gradient<Shape>(storage, dw, sums, addend, dy, PatchesByPixel{from}, from.rows, c, from.pixels, steps);
}

// patch_embed_backward_image: each patch's dy · W, put where its pixels came from.
// Math     : dimages(pixel p of patch r) = addend(same) + Σ over c of dy(r,c)·W(c,p)
// Tensors  : dy elem [B·T,C] | weight elem [C,Ci·P·P] | addend f32 [B,Ci,h,w] or null, dimages itself too |
//            dimages f32 [B,Ci,h,w]
// Grid     : tiles of [B·T,Ci·P·P]      Block: as patch_embed_forward
// Smem     : the stages of product.cuh: bf16 68 KB, f32 68 KB; small bf16 26 KB, f32 41 KB
// Work     : 2·B·T·C·Ci·P·P flop; reads dy·e + W·e, writes images·4     bound: tensor cores
// Accuracy : f32 accumulators
// Ragged   : any sizes; pixels of no patch are patch_embed_backward_image_rest's
// Order    : deterministic, each pixel by one thread
// Source   : -
template <class Shape, class T = typename Shape::T>
DEVICE void patch_embed_backward_image(float* dimages, const T* dy, const T* weight, const float* addend, int batch, int colours,
                                       int height, int width, int patch, int c) {
    using Storage = ProductStorage<Shape, RowsOperand<T>, ColumnsOperand<T>>;
    SHARED_STORAGE(Storage, storage);
    const Patches to = patches(dimages, batch, colours, height, width, patch);
    product<4, Shape>(
        storage, RowsOperand<T>{matrix(dy, to.rows, c)}, ColumnsOperand<T>{matrix(weight, c, to.pixels)},
        product_place<Shape>(to.rows, to.pixels), to.rows, to.pixels, 0, (c + Shape::kTileK - 1) / Shape::kTileK,
        NothingBesides{}, [&](int row, int column, float (&values)[4]) {
            const int64_t first = to.row_offset(row);
            UNROLL
            for (int i = 0; i < 4; ++i) {
                if (column + i >= to.pixels) break;
                const int64_t pixel = first + to.pixel_offset(column + i);
                dimages[pixel] = addend ? addend[pixel] + values[i] : values[i];
            }
        });
}

#define PATCH_PRODUCTS(Size, suffix, T) \
    extern "C" __global__ void PRODUCT_BOUNDS(PatchShapes<T>::Size) patch_embed_forward##suffix( \
        T* y, const float* images, const T* weight, const float* bias, const T* position, int batch, int colours, int height, \
        int width, int patch, int c) { \
        patch_embed_forward<PatchShapes<T>::Size>(y, images, weight, bias, position, batch, colours, height, width, patch, c); \
    } \
    KERNEL(patch_embed_forward##suffix, PatchShapes<T>::Size::kThreads, \
           ProductStorage<PatchShapes<T>::Size, PatchesByRow, RowsOperand<T>>) \
    extern "C" __global__ void PRODUCT_BOUNDS(PatchShapes<T>::Size) patch_embed_backward##suffix( \
        float* dw, float* sums, const float* addend, const T* dy, const float* images, int batch, int colours, int height, \
        int width, int patch, int c, int steps) { \
        patch_embed_backward<PatchShapes<T>::Size>(dw, sums, addend, dy, images, batch, colours, height, width, patch, c, \
                                                   steps); \
    } \
    KERNEL(patch_embed_backward##suffix, PatchShapes<T>::Size::kThreads, \
           ProductStorage<PatchShapes<T>::Size, ColumnsOperand<T>, PatchesByPixel>) \
    extern "C" __global__ void PRODUCT_BOUNDS(PatchShapes<T>::Size) patch_embed_backward_image##suffix( \
        float* dimages, const T* dy, const T* weight, const float* addend, int batch, int colours, int height, int width, \
        int patch, int c) { \
        patch_embed_backward_image<PatchShapes<T>::Size>(dimages, dy, weight, addend, batch, colours, height, width, patch, c); \
    } \
    KERNEL(patch_embed_backward_image##suffix, PatchShapes<T>::Size::kThreads, \
           ProductStorage<PatchShapes<T>::Size, RowsOperand<T>, ColumnsOperand<T>>)

PATCH_PRODUCTS(Large, _f32, float)
PATCH_PRODUCTS(Large, _bf16, bf16)
PATCH_PRODUCTS(Small, _small_f32, float)
PATCH_PRODUCTS(Small, _small_bf16, bf16)

HOST_CONSTANT int kPatchThreads = 256;

// patch_embed_backward_image_rest: the gradient of pixels that belong to no patch, at the right and at the bottom.
// Math     : dimages = addend, or 0, where line >= covered_height or place >= covered_width
// Tensors  : dimages, addend f32 [planes,height,width]; addend may be null or dimages itself
// Grid     : ⌈planes·height·width / 256⌉ blocks      Block: 256 threads
// Smem     : none
// Work     : writes the rest·4 B, reads as much of the addend     bound: launch
// Accuracy : exact
// Ragged   : any sizes
// Order    : every element by one thread
// Source   : -
extern "C" __global__ void __launch_bounds__(kPatchThreads) patch_embed_backward_image_rest_f32(
    float* dimages, const float* addend, int64_t count, int height, int width, int covered_height, int covered_width) {
    const int64_t pixel = int64_t(blockIdx.x) * kPatchThreads + threadIdx.x;
    if (pixel >= count) return;
    const int place = int(pixel % width), line = int(pixel / width % height);
    if (line >= covered_height || place >= covered_width) dimages[pixel] = addend ? addend[pixel] : 0.0f;
}
KERNEL(patch_embed_backward_image_rest_f32, kPatchThreads)

// patch_embed_backward_position: the sum of dy over the batch.
// Math     : dposition(t,c) = Σ over b of dy(b,t,c)
// Tensors  : dy elem [B,count] | dposition f32 [count], count = T·C
// Grid     : ⌈count / (256 · 16 bytes)⌉ blocks      Block: 256 threads
// Smem     : none
// Work     : B·count flop; reads B·count·e, writes count·4     bound: memory
// Accuracy : f32 sums
// Ragged   : any B, count
// Order    : deterministic, samples ascending
// Source   : -
template <class T>
DEVICE void patch_embed_backward_position(float* dposition, const T* dy, int batch, int64_t count) {
    constexpr int kWidth = kVector<T>;
    const int64_t first = (int64_t(blockIdx.x) * kPatchThreads + threadIdx.x) * kWidth;
    if (first >= count) return;
    const int left = int(min(count - first, int64_t(kWidth)));
    const bool vectors = count % kWidth == 0 && has_vectors(dy, kWidth);
    float sums[kWidth] = {};
    for (int sample = 0; sample < batch; ++sample) {
        float values[kWidth];
        load_columns(values, dy + sample * count + first, 0, left, vectors);
        UNROLL
        for (int i = 0; i < kWidth; ++i) sums[i] += values[i];
    }
    UNROLL
    for (int i = 0; i < kWidth; ++i)
        if (i < left) dposition[first + i] = sums[i];
}
extern "C" __global__ void __launch_bounds__(kPatchThreads) patch_embed_backward_position_f32(float* dposition, const float* dy,
                                                                                             int batch, int64_t count) {
    patch_embed_backward_position(dposition, dy, batch, count);
}
KERNEL(patch_embed_backward_position_f32, kPatchThreads)
extern "C" __global__ void __launch_bounds__(kPatchThreads) patch_embed_backward_position_bf16(float* dposition, const bf16* dy,
                                                                                              int batch, int64_t count) {
    patch_embed_backward_position(dposition, dy, batch, count);
}
KERNEL(patch_embed_backward_position_bf16, kPatchThreads)
