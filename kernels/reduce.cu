// Sums over rows, in two steps whose order the shape alone decides: blocks of rows first, then their partial sums.
#include <common.cuh>

// Channels of one block of `column_sums`, and the rows that it walks side by side.
constexpr int kChannels = 32;
constexpr int kRows = 8;

// x (S, rows, C) -> partial (S, blocks, C): the sums of `rows_per_block` rows. Grid: tiles of 32 channels, blocks of
// rows, streams; blocks of 256 threads. Shared memory: 256 floats.
template <class T>
__device__ void column_sums(const T* x, float* partial, int rows, int rows_per_block, int c) {
    const int channel = blockIdx.x * kChannels + threadIdx.x % kChannels, lane = threadIdx.x / kChannels;
    const int start = blockIdx.y * rows_per_block, end = min(rows, start + rows_per_block);
    x += static_cast<size_t>(blockIdx.z) * rows * c;
    float sum = 0.0f;
    if (channel < c) {
        for (int row = start + lane; row < end; row += kRows) {
            sum += to_float(x[static_cast<size_t>(row) * c + channel]);
        }
    }
    float* sums = shared_memory<float>();
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (lane == 0 && channel < c) {
        for (int row = 1; row < kRows; ++row) sum += sums[row * kChannels + threadIdx.x];
        partial[(static_cast<size_t>(blockIdx.z) * gridDim.y + blockIdx.y) * c + channel] = sum;
    }
}

// partial (groups, parts, width) -> y (groups, width): the sum over the parts, times `scale`. A thread for each.
template <class T>
__device__ void sum_partials(const float* partial, T* y, int groups, int parts, int width, float scale) {
    const size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x;
    if (i >= static_cast<size_t>(groups) * width) return;
    const float* from = partial + i / width * parts * width + i % width;
    float sum = 0.0f;
    for (int part = 0; part < parts; ++part) sum += from[static_cast<size_t>(part) * width];
    y[i] = from_float<T>(sum * scale);
}

#define KERNELS(T, t)                                                                                         \
    extern "C" __global__ void column_sums_##t(const T* x, float* partial, int rows, int rows_per_block, int c) { \
        column_sums(x, partial, rows, rows_per_block, c);                                                     \
    }                                                                                                         \
    extern "C" __global__ void sum_partials_##t(const float* partial, T* y, int groups, int parts, int width,  \
                                                float scale) {                                                \
        sum_partials(partial, y, groups, parts, width, scale);                                                \
    }
FOR_TYPES(KERNELS)
