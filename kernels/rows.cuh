// Rows of K numbers, one for each pixel, with a thread for each row.
//
// The rows of a tile lie one after another, so a block copies the tile to shared memory by 16 bytes and each thread
// walks along its row there; a gradient goes the same way back. Where K is odd, as in the data sets' numbers of classes,
// a step of a warp meets no bank of shared memory twice.
#pragma once
#include <common.cuh>

// Bytes of a tile of `n` numbers, so that another one can follow.
template <class T> __device__ inline size_t tile_bytes(int n) {
    return (n * sizeof(T) + 15) / 16 * 16;
}

// Copies n numbers with all threads of a block, by 16 bytes where both addresses allow it.
template <class T> __device__ inline void copy(const T* from, T* to, int n) {
    using Group = Pack<T, kLanes<T>>;
    int done = 0;
    if (aligned<T>(0, from, to)) {
        const int groups = n / kLanes<T>;
        for (int i = threadIdx.x; i < groups; i += blockDim.x) {
            reinterpret_cast<Group*>(to)[i] = reinterpret_cast<const Group*>(from)[i];
        }
        done = groups * kLanes<T>;
    }
    for (int i = done + threadIdx.x; i < n; i += blockDim.x) to[i] = from[i];
}

// f(first, n) for each tile of `tile_rows` rows that is this block's: rows first, first + 1, ..., n of them. Every
// thread comes to each f, and what f leaves in shared memory is done with before the next.
template <class F> __device__ inline void for_tiles(int rows, int tile_rows, F f) {
    const long long step = static_cast<long long>(gridDim.x) * tile_rows;
    for (long long first = static_cast<long long>(blockIdx.x) * tile_rows; first < rows; first += step) {
        f(static_cast<int>(first), static_cast<int>(min(static_cast<long long>(tile_rows), rows - first)));
        __syncthreads();
    }
}

// f(i, row) for each row i of x, which has k numbers and is in shared memory then. Shared memory: a tile.
template <class T, class F>
__device__ inline void for_rows(const T* x, T* tile, int rows, int k, int tile_rows, F f) {
    for_tiles(rows, tile_rows, [&](int first, int n) {
        copy(x + static_cast<size_t>(first) * k, tile, n * k);
        __syncthreads();
        const int row = threadIdx.x;
        if (row < n) f(first + row, tile + row * k);
    });
}

// The rows of x as f(i, row) leaves them in shared memory, to y. Shared memory: a tile.
template <class T, class F>
__device__ inline void map_rows(const T* x, T* y, T* tile, int rows, int k, int tile_rows, F f) {
    for_tiles(rows, tile_rows, [&](int first, int n) {
        const size_t at = static_cast<size_t>(first) * k;
        copy(x + at, tile, n * k);
        __syncthreads();
        const int row = threadIdx.x;
        if (row < n) f(first + row, tile + row * k);
        __syncthreads();
        copy(tile, y + at, n * k);
    });
}

// The largest number of a row of k; NaN is passed over.
template <class T> __device__ inline float row_max(const T* x, int k) {
    float max = to_float(x[0]);
    for (int i = 1; i < k; ++i) max = fmaxf(max, to_float(x[i]));
    return max;
}

// Σ e^(x − max) over a row of k.
template <class T> __device__ inline float row_exponentials(const T* x, int k, float max) {
    float sum = 0.0f;
    for (int i = 0; i < k; ++i) sum += expf(to_float(x[i]) - max);
    return sum;
}
