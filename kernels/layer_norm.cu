// y = (x − μ)/√(σ² + eps)·w + b over the channels of each row.
//
// A warp takes a row. Rows of up to 512 channels stay in registers between the passes, so x is read once; wider rows
// are read again, from the cache. Backward gives dx, and for each block of rows partial sums of dw and db, which
// `sum_partials` adds up.
#include <common.cuh>

// Numbers of a row that a lane holds.
constexpr int kHeld = 16;
// Channels that a warp holds.
constexpr int kTile = kHeld * kWarp;

// f(i, v) for every group of N numbers of a row that is this lane's: v are the numbers from channel i on.
template <int N, class T, class F>
__device__ inline void for_row(const T* x, int c, F f) {
    for (int i = threadIdx.x % kWarp * N; i < c; i += kWarp * N) {
        float v[N];
        load(x + i, v);
        f(i, v);
    }
}

template <int N, class T>
__device__ void forward_row(const T* x, const float* weight, const float* bias, T* y, float* statistics,
                            int c, float eps) {
    float sum = 0.0f, square = 0.0f, mean, rstd;
    const auto normalize = [&](int i, float(&v)[N]) {
#pragma unroll
        for (int j = 0; j < N; ++j) v[j] = (v[j] - mean) * rstd * weight[i + j] + bias[i + j];
        store(y + i, v);
    };
    if (c <= kTile) {
        constexpr int kSteps = kHeld / N;
        const int lane = threadIdx.x % kWarp;
        float held[kSteps][N];
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            const int i = (step * kWarp + lane) * N;
            if (i >= c) continue;
            load(x + i, held[step]);
#pragma unroll
            for (int j = 0; j < N; ++j) sum += held[step][j];
        }
        mean = warp_sum(sum) / c;
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            if ((step * kWarp + lane) * N >= c) continue;
#pragma unroll
            for (int j = 0; j < N; ++j) square += (held[step][j] - mean) * (held[step][j] - mean);
        }
        rstd = 1.0f / sqrtf(warp_sum(square) / c + eps);
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            const int i = (step * kWarp + lane) * N;
            if (i < c) normalize(i, held[step]);
        }
    } else {
        for_row<N>(x, c, [&](int, float(&v)[N]) {
            for (int j = 0; j < N; ++j) sum += v[j];
        });
        mean = warp_sum(sum) / c;
        for_row<N>(x, c, [&](int, float(&v)[N]) {
            for (int j = 0; j < N; ++j) square += (v[j] - mean) * (v[j] - mean);
        });
        rstd = 1.0f / sqrtf(warp_sum(square) / c + eps);
        for_row<N>(x, c, normalize);
    }
    if (statistics && threadIdx.x % kWarp == 0) {
        statistics[0] = mean;
        statistics[1] = rstd;
    }
}

// x, y (S·rows, C); weight, bias (S, C); statistics (S·rows, 2), or null: μ and 1/√(σ² + eps). A warp for each row.
template <class T>
__device__ void forward(const T* x, const float* weight, const float* bias, T* y, float* statistics,
                        int total_rows, int rows, int c, float eps) {
    const int row = blockIdx.x * (blockDim.x / kWarp) + threadIdx.x / kWarp;
    if (row >= total_rows) return;
    const size_t at = static_cast<size_t>(row) * c, stream = static_cast<size_t>(row / rows) * c;
    if (statistics) statistics += 2 * static_cast<size_t>(row);
    if (aligned<T>(c, x, y)) {
        forward_row<kLanes<T>>(x + at, weight + stream, bias + stream, y + at, statistics, c, eps);
    } else {
        forward_row<1>(x + at, weight + stream, bias + stream, y + at, statistics, c, eps);
    }
}

// With g = dy·w and x̂ the normalised x: dx = (g − mean(g) − x̂·mean(g·x̂))·rstd, dw = Σ dy·x̂, db = Σ dy.
template <int N, class T>
__device__ void backward_rows(const T* dy, const T* x, const float* weight, const float* statistics, T* dx,
                              float (&dw)[kHeld], float (&db)[kHeld], int first, int end, int c) {
    const int lane = threadIdx.x % kWarp, tile = blockIdx.y * kTile;
    for (int row = first; row < end; row += blockDim.x / kWarp) {
        const size_t at = static_cast<size_t>(row) * c;
        const float mean = statistics[2 * row], rstd = statistics[2 * row + 1];
        float sum = 0.0f, dot = 0.0f;
        for_row<N>(dy + at, c, [&](int i, float(&g)[N]) {
            float v[N];
            load(x + at + i, v);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                sum += g[j] * weight[i + j];
                dot += g[j] * weight[i + j] * ((v[j] - mean) * rstd);
            }
        });
        sum = warp_sum(sum) / c;
        dot = warp_sum(dot) / c;
#pragma unroll
        for (int step = 0; step < kHeld / N; ++step) {
            const int i = tile + (step * kWarp + lane) * N;
            if (i >= c) continue;
            float g[N], v[N];
            load(dy + at + i, g);
            load(x + at + i, v);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                const float normal = (v[j] - mean) * rstd;
                dw[step * N + j] += g[j] * normal;
                db[step * N + j] += g[j];
                g[j] = rstd * (g[j] * weight[i + j] - sum - normal * dot);
            }
            store(dx + at + i, g);
        }
    }
}

// Adds the sums of the block's warps, in their order, and writes them to `partial`.
template <int N>
__device__ void write_partial(const float (&sums)[kHeld], float* scratch, float* partial, int c) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    const int tile = blockIdx.y * kTile, width = min(kTile, c - tile);
    __syncthreads();
#pragma unroll
    for (int step = 0; step < kHeld / N; ++step) {
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const int i = (step * kWarp + lane) * N + j;
            if (i < width) scratch[warp * width + i] = sums[step * N + j];
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = 0.0f;
        for (int w = 0; w < warps; ++w) sum += scratch[w * width + i];
        partial[tile + i] = sum;
    }
}

// dy, x, dx (S·rows, C). Grid: blocks of `rows_per_block` rows of one stream, tiles of 512 channels, streams.
// partial (2, S, blocks, C): dw, then db. Shared memory: a float for each warp and channel of a tile.
template <class T>
__device__ void backward(const T* dy, const T* x, const float* weight, const float* statistics, T* dx,
                         float* partial, int rows, int rows_per_block, int c) {
    const size_t stream = blockIdx.z;
    weight += stream * c;
    const int warp = threadIdx.x / kWarp, start = blockIdx.x * rows_per_block;
    const int end = stream * rows + min(rows, start + rows_per_block), first = stream * rows + start + warp;
    partial += (stream * gridDim.x + blockIdx.x) * c;
    float* partial_db = partial + static_cast<size_t>(gridDim.z) * gridDim.x * c;
    float dw[kHeld] = {}, db[kHeld] = {};
    float* scratch = shared_memory<float>();
    if (aligned<T>(c, dy, x, dx)) {
        backward_rows<kLanes<T>>(dy, x, weight, statistics, dx, dw, db, first, end, c);
        write_partial<kLanes<T>>(dw, scratch, partial, c);
        write_partial<kLanes<T>>(db, scratch, partial_db, c);
    } else {
        backward_rows<1>(dy, x, weight, statistics, dx, dw, db, first, end, c);
        write_partial<1>(dw, scratch, partial, c);
        write_partial<1>(db, scratch, partial_db, c);
    }
}

#define KERNELS(T, t)                                                                                            \
    extern "C" __global__ void layer_norm_##t(const T* x, const float* weight, const float* bias, T* y,          \
                                              float* statistics, int total_rows, int rows, int c, float eps) {   \
        forward(x, weight, bias, y, statistics, total_rows, rows, c, eps);                                       \
    }                                                                                                            \
    extern "C" __global__ void layer_norm_backward_##t(const T* dy, const T* x, const float* weight,             \
                                                       const float* statistics, T* dx, float* partial, int rows, \
                                                       int rows_per_block, int c) {                              \
        backward(dy, x, weight, statistics, dx, partial, rows, rows_per_block, c);                               \
    }
FOR_TYPES(KERNELS)
