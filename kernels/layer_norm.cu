// y = (x − μ)/√(σ² + eps)·w + b over the channels of each row.
//
// Forward: one warp for a row. The row stays in registers between the passes when it has at most 1024 channels, so x
// is read once; wider rows are read three times, from the cache.
// Backward: one warp for a row gives dx; blocks of rows give partial sums of dw and db, which `sum_rows` adds up.
#include <common.cuh>

// Numbers of one row that a lane holds: 8 for each of up to 4 steps.
template <class T, int N>
__device__ void forward(const T* x, const float* weight, const float* bias, T* y, float* statistics,
                        int row, int c, float eps) {
    const int lane = threadIdx.x % kWarp;
    x += static_cast<size_t>(row) * c;
    y += static_cast<size_t>(row) * c;
    float sum = 0.0f;
    for (int i = lane * N; i < c; i += kWarp * N) {
        float v[N];
        load(x + i, v);
#pragma unroll
        for (int j = 0; j < N; ++j) sum += v[j];
    }
    const float mean = warp_sum(sum) / c;
    float square = 0.0f;
    for (int i = lane * N; i < c; i += kWarp * N) {
        float v[N];
        load(x + i, v);
#pragma unroll
        for (int j = 0; j < N; ++j) square += (v[j] - mean) * (v[j] - mean);
    }
    const float rstd = 1.0f / sqrtf(warp_sum(square) / c + eps);
    if (lane == 0) {
        statistics[2 * static_cast<size_t>(row)] = mean;
        statistics[2 * static_cast<size_t>(row) + 1] = rstd;
    }
    for (int i = lane * N; i < c; i += kWarp * N) {
        float v[N];
        load(x + i, v);
#pragma unroll
        for (int j = 0; j < N; ++j) v[j] = (v[j] - mean) * rstd * weight[i + j] + bias[i + j];
        store(y + i, v);
    }
}

// x, y (S, rows, C), weight and bias f32 (S, C), statistics f32 (S·rows, 2): μ and 1/√(σ² + eps).
// Blocks of 4 warps, a row each.
template <class T>
__device__ void forward(const T* x, const float* weight, const float* bias, T* y, float* statistics,
                        int total_rows, int rows, int c, float eps) {
    const int row = blockIdx.x * (blockDim.x / kWarp) + threadIdx.x / kWarp;
    if (row >= total_rows) return;
    weight += static_cast<size_t>(row / rows) * c;
    bias += static_cast<size_t>(row / rows) * c;
    if (aligned<T>(c, x, y)) {
        forward<T, kLanes<T>>(x, weight, bias, y, statistics, row, c, eps);
    } else {
        forward<T, 1>(x, weight, bias, y, statistics, row, c, eps);
    }
}
