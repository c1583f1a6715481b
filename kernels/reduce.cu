// Sums over rows, in two steps whose order shape and alignment decide: blocks of rows first, then their partial sums.
#include <common.cuh>

// Adds the numbers of `rows` rows of threads, `width` threads each, in the order of the rows; the sum is of use in the
// first row. Shared memory: a float for each thread. Every thread has to come here.
__device__ inline float sum_rows(float x, int width, int rows) {
    float* sums = shared_memory<float>();
    __syncthreads();  // They may still be in use by an earlier sum.
    sums[threadIdx.x] = x;
    __syncthreads();
    if (threadIdx.x >= width) return x;
    for (int row = 1; row < rows; ++row) x += sums[row * width + threadIdx.x];
    return x;
}

// The sums of `tile` packs of N channels, a power of two, over some rows; each thread takes a pack of every
// `blockDim.x / tile`-th row.
template <int N, class T>
__device__ void column_sums(const T* x, float* partial, int start, int end, int c, int tile) {
    const int channel = (blockIdx.x * tile + threadIdx.x % tile) * N, lanes = blockDim.x / tile;
    float sum[N] = {};
    if (channel < c) {
#pragma unroll 4
        for (int row = start + threadIdx.x / tile; row < end; row += lanes) {
            float v[N];
            load(x + static_cast<size_t>(row) * c + channel, v);
#pragma unroll
            for (int j = 0; j < N; ++j) sum[j] += v[j];
        }
    }
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const float total = sum_rows(sum[j], tile, lanes);
        if (threadIdx.x < tile && channel < c) partial[channel + j] = total;
    }
}

// x (S, rows, C) -> partial (S, blocks, C): the sums of `rows_per_block` rows. Grid: tiles of channels, blocks of rows,
// streams. `lanes` is the channels of a pack: what 16 bytes hold if C is a multiple of that and x aligned to it, or 1.
template <class T>
__device__ void column_sums(const T* x, float* partial, int rows, int rows_per_block, int c, int tile, int lanes) {
    const int start = blockIdx.y * rows_per_block, end = min(rows, start + rows_per_block);
    x += static_cast<size_t>(blockIdx.z) * rows * c;
    partial += (static_cast<size_t>(blockIdx.z) * gridDim.y + blockIdx.y) * c;
    if (lanes > 1) {
        column_sums<kLanes<T>>(x, partial, start, end, c, tile);
    } else {
        column_sums<1>(x, partial, start, end, c, tile);
    }
}

// partial (groups, parts, width) -> y (groups, width): the sum over the parts, times `scale`. `lanes` threads share a sum,
// and a block has as many sums side by side as it has threads for.
template <class T>
__device__ void sum_partials(const float* partial, T* y, int groups, int parts, int width, int lanes, float scale) {
    const int columns = blockDim.x / lanes, lane = threadIdx.x / columns;
    const size_t i = blockIdx.x * static_cast<size_t>(columns) + threadIdx.x % columns;
    const bool inside = i < static_cast<size_t>(groups) * width;
    float sum = 0.0f;
    if (inside) {
        const float* from = partial + i / width * parts * width + i % width;
#pragma unroll 8
        for (int part = lane; part < parts; part += lanes) sum += from[static_cast<size_t>(part) * width];
    }
    if (lanes > 1) sum = sum_rows(sum, columns, lanes);
    if (inside && lane == 0) y[i] = from_float<T>(sum * scale);
}

#define KERNELS(T, t)                                                                                            \
    extern "C" __global__ void column_sums_##t(const T* x, float* partial, int rows, int rows_per_block, int c,  \
                                               int tile, int lanes) {                                            \
        column_sums(x, partial, rows, rows_per_block, c, tile, lanes);                                           \
    }                                                                                                            \
    extern "C" __global__ void sum_partials_##t(const float* partial, T* y, int groups, int parts, int width,    \
                                                int lanes, float scale) {                                        \
        sum_partials(partial, y, groups, parts, width, lanes, scale);                                            \
    }
FOR_TYPES(KERNELS)
