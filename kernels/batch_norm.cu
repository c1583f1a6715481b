// y = max((x − μ)/√(σ² + eps)·w + b, 0) over rows of C channels, μ and σ² for each channel of each stream.
//
// A thread keeps to N neighbouring channels and walks down the rows; the threads of a block lie side by side over
// whole rows, so a block reads contiguous memory whatever C is. Statistics are Welford's, of x less the stream's first
// row, so that a large mean costs no digits: a block's threads and then the blocks are merged in an order that the
// shape alone decides. x is read once for them, once for y, and with dy twice for the gradients: the first time for
// dw and db, which dx needs. The ReLU's mask is computed again from x, by the same instructions.
#include <common.cuh>

// N numbers as they are stored.
template <int N, class T>
__device__ inline Pack<T, N> pack(const T* from) { return *reinterpret_cast<const Pack<T, N>*>(from); }

// Where a thread is: its first channel, its row among the `down` that the block walks side by side.
template <int N>
struct Place {
    int across, down, channel, row;
    bool active;

    __device__ explicit Place(int c) {
        const int columns = c / N, thread = threadIdx.x;
        across = min(columns, static_cast<int>(blockDim.x));
        down = blockDim.x / across;
        const int column = blockIdx.y * across + thread % across;
        channel = column * N;
        row = thread / across;
        active = row < down && column < columns;
    }
};

// use(r, row) for each of the thread's rows, after fetch(r, row) for up to R of them: their loads are under way together.
template <int R, int N, class Fetch, class Use>
__device__ void for_rows(const Place<N>& at, int start, int end, Fetch fetch, Use use) {
    for (int first = start + at.row; first < end; first += R * at.down) {
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const int row = first + r * at.down;
            if (row < end) fetch(r, row);
        }
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const int row = first + r * at.down;
            if (row < end) use(r, row);
        }
    }
}

// Merges the K numbers of the threads of a column into those of its first: merge(v, other) adds the other's. Every
// thread has to come here; `scratch` holds K floats for each.
template <int K, int N, class F>
__device__ void fold(float (&v)[K], const Place<N>& at, float* scratch, F merge) {
    const int threads = blockDim.x, thread = threadIdx.x;
    for (int width = at.down; width > 1;) {
        const int half = (width + 1) / 2;
        if (at.active && at.row >= half && at.row < width) {
#pragma unroll
            for (int k = 0; k < K; ++k) scratch[k * threads + thread] = v[k];
        }
        __syncthreads();
        if (at.active && at.row + half < width) {
            float other[K];
#pragma unroll
            for (int k = 0; k < K; ++k) other[k] = scratch[k * threads + thread + half * at.across];
            merge(v, other);
        }
        __syncthreads();
        width = half;
    }
}

// x (S, rows, C) -> partial (S, blocks, 2, C): the mean of `rows_per_block` rows, less the stream's first row, and the
// sum of squares about it. Grid: blocks of rows, tiles of channels, streams. Shared memory: 2·N + 1 floats a thread.
template <int N, class T>
__device__ void statistics(const T* x, float* partial, int rows, int rows_per_block, int c) {
    const Place<N> at(c);
    const int start = blockIdx.x * rows_per_block, end = min(rows, start + rows_per_block);
    x += static_cast<size_t>(blockIdx.z) * rows * c + at.channel;
    // N means, N sums of squares, and of how many rows they are.
    float v[2 * N + 1] = {};
    if (at.active) {
        constexpr int R = 4;
        float first[N];
        load(x, first);
        Pack<T, N> held[R];
        const auto fetch = [&](int r, int row) { held[r] = pack<N>(x + static_cast<size_t>(row) * c); };
        for_rows<R>(at, start, end, fetch, [&](int r, int) {
            v[2 * N] += 1.0f;
            const float share = 1.0f / v[2 * N];
#pragma unroll
            for (int j = 0; j < N; ++j) {
                const float value = to_float(held[r].v[j]) - first[j], delta = value - v[j];
                v[j] += delta * share;
                v[N + j] += delta * (value - v[j]);
            }
        });
    }
    fold(v, at, shared_memory<float>(), [](float(&a)[2 * N + 1], const float(&b)[2 * N + 1]) {
        if (b[2 * N] == 0.0f) return;
        const float count = a[2 * N] + b[2 * N], share = b[2 * N] / count;
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const float delta = b[j] - a[j];
            a[j] += delta * share;
            a[N + j] += b[N + j] + delta * delta * (a[2 * N] * share);
        }
        a[2 * N] = count;
    });
    if (at.active && at.row == 0) {
        partial += (static_cast<size_t>(blockIdx.z) * gridDim.x + blockIdx.x) * 2 * c + at.channel;
#pragma unroll
        for (int j = 0; j < N; ++j) {
            partial[j] = v[j];
            partial[c + j] = v[N + j];
        }
    }
}

// partial (S, parts, 2, C) -> mean, biased and unbiased variance, each (S, C). A warp for each.
template <class T>
__device__ void merge(const T* x, const float* partial, float* mean, float* variance, float* unbiased, int channels,
                      int rows, int rows_per_part, int parts, int c) {
    const int i = blockIdx.x * (blockDim.x / kWarp) + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    if (i >= channels) return;
    const size_t stream = i / c, channel = i % c;
    partial += stream * parts * 2 * c + channel;
    const auto count = [&](int part) { return static_cast<float>(min(rows_per_part, rows - part * rows_per_part)); };
    float sum = 0.0f, square = 0.0f;
    for (int part = lane; part < parts; part += kWarp) sum += count(part) * partial[static_cast<size_t>(2 * part) * c];
    const float center = warp_sum(sum) / rows;
    for (int part = lane; part < parts; part += kWarp) {
        const float* of_part = partial + static_cast<size_t>(2 * part) * c;
        const float delta = of_part[0] - center;
        square += of_part[c] + count(part) * delta * delta;
    }
    square = warp_sum(square);
    if (lane == 0) {
        mean[i] = to_float(x[stream * rows * c + channel]) + center;
        variance[i] = square / rows;
        unbiased[i] = square / (rows - 1);
    }
}

// What normalises N channels. Forward and backward share `affine`, so they agree on every sign.
template <int N>
struct Normalization {
    float mean[N], rstd[N], scale[N], bias[N];

    __device__ Normalization(const float* means, const float* variances, const float* weights, const float* biases,
                             float eps, int i) {
#pragma unroll
        for (int j = 0; j < N; ++j) {
            mean[j] = means[i + j];
            rstd[j] = rsqrtf(variances[i + j] + eps);
            scale[j] = rstd[j] * weights[i + j];
            bias[j] = biases[i + j];
        }
    }

    __device__ float affine(int j, float x) const { return fmaf(x - mean[j], scale[j], bias[j]); }
};

// x, y (S, rows, C); the rest (S, C). Grid: blocks of rows, tiles of channels, streams.
template <int N, class T>
__device__ void forward(const T* __restrict__ x, const float* mean, const float* variance, const float* weight,
                        const float* bias, T* __restrict__ y, float eps, int rows, int rows_per_block, int c) {
    const Place<N> at(c);
    if (!at.active) return;
    const Normalization<N> channels(mean, variance, weight, bias, eps, blockIdx.z * c + at.channel);
    const int start = blockIdx.x * rows_per_block, end = min(rows, start + rows_per_block);
    const size_t from = static_cast<size_t>(blockIdx.z) * rows * c + at.channel;
    constexpr int R = 4;
    Pack<T, N> held[R];
    const auto fetch = [&](int r, int row) { held[r] = pack<N>(x + from + static_cast<size_t>(row) * c); };
    for_rows<R>(at, start, end, fetch, [&](int r, int row) {
        float v[N];
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const float z = channels.affine(j, to_float(held[r].v[j]));
            v[j] = z < 0.0f ? 0.0f : z;  // NaN passes through.
        }
        store(y + from + static_cast<size_t>(row) * c, v);
    });
}

// dy, x (S, rows, C) -> partial (2, S, blocks, C): dw = Σ dz·(x − μ)·rstd and db = Σ dz over `rows_per_block` rows, with
// dz = dy where the ReLU let something through. Grid as in `forward`. Shared memory: 2·N floats a thread.
template <int N, class T>
__device__ void sums(const T* dy, const T* x, const float* mean, const float* variance, const float* weight,
                     const float* bias, float* partial, float eps, int rows, int rows_per_block, int c) {
    const Place<N> at(c);
    const int start = blockIdx.x * rows_per_block, end = min(rows, start + rows_per_block);
    const size_t from = static_cast<size_t>(blockIdx.z) * rows * c + at.channel;
    float v[2 * N] = {};
    if (at.active) {
        const Normalization<N> channels(mean, variance, weight, bias, eps, blockIdx.z * c + at.channel);
        constexpr int R = 4;
        Pack<T, N> held[R], gradient[R];
        const auto fetch = [&](int r, int row) {
            gradient[r] = pack<N>(dy + from + static_cast<size_t>(row) * c);
            held[r] = pack<N>(x + from + static_cast<size_t>(row) * c);
        };
        for_rows<R>(at, start, end, fetch, [&](int r, int) {
#pragma unroll
            for (int j = 0; j < N; ++j) {
                const float value = to_float(held[r].v[j]);
                const float dz = channels.affine(j, value) > 0.0f ? to_float(gradient[r].v[j]) : 0.0f;
                v[j] += dz * (value - channels.mean[j]);
                v[N + j] += dz;
            }
        });
#pragma unroll
        for (int j = 0; j < N; ++j) v[j] *= channels.rstd[j];
    }
    fold(v, at, shared_memory<float>(), [](float(&a)[2 * N], const float(&b)[2 * N]) {
#pragma unroll
        for (int k = 0; k < 2 * N; ++k) a[k] += b[k];
    });
    if (at.active && at.row == 0) {
        float* dw = partial + (static_cast<size_t>(blockIdx.z) * gridDim.x + blockIdx.x) * c + at.channel;
        float* db = dw + static_cast<size_t>(gridDim.z) * gridDim.x * c;
#pragma unroll
        for (int j = 0; j < N; ++j) {
            dw[j] = v[j];
            db[j] = v[N + j];
        }
    }
}

// dx = scale·(dz − db/rows − (x − μ)·rstd·dw/rows), or scale·dz alone when `per_row`, which is 1/rows for statistics of
// x itself, is 0. gradients (2, S, C): dw, then db. Grid as in `forward`.
template <int N, class T>
__device__ void backward(const T* __restrict__ dy, const T* __restrict__ x, const float* mean, const float* variance,
                         const float* weight, const float* bias, const float* gradients, T* __restrict__ dx, float eps,
                         float per_row, int rows, int rows_per_block, int c) {
    const Place<N> at(c);
    if (!at.active) return;
    const int first = blockIdx.z * c + at.channel;
    const Normalization<N> channels(mean, variance, weight, bias, eps, first);
    float slope[N], shift[N];
#pragma unroll
    for (int j = 0; j < N; ++j) {
        slope[j] = gradients[first + j] * channels.rstd[j] * per_row;
        shift[j] = gradients[gridDim.z * c + first + j] * per_row;
    }
    const int start = blockIdx.x * rows_per_block, end = min(rows, start + rows_per_block);
    const size_t from = static_cast<size_t>(blockIdx.z) * rows * c + at.channel;
    constexpr int R = 2;
    Pack<T, N> held[R], gradient[R];
    const auto fetch = [&](int r, int row) {
        gradient[r] = pack<N>(dy + from + static_cast<size_t>(row) * c);
        held[r] = pack<N>(x + from + static_cast<size_t>(row) * c);
    };
    for_rows<R>(at, start, end, fetch, [&](int r, int row) {
        float v[N];
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const float value = to_float(held[r].v[j]);
            const float dz = channels.affine(j, value) > 0.0f ? to_float(gradient[r].v[j]) : 0.0f;
            v[j] = channels.scale[j] * (dz - shift[j] - (value - channels.mean[j]) * slope[j]);
        }
        store(dx + from + static_cast<size_t>(row) * c, v);
    });
}

// running += momentum·(batch − running).
extern "C" __global__ void batch_norm_running(float* running, const float* batch, float momentum, int len) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < len) running[i] += momentum * (batch[i] - running[i]);
}

// `lanes` is how many numbers a thread takes at once: those of 16 bytes, or 1.
#define KERNELS(T, t)                                                                                               \
    extern "C" __global__ void batch_norm_statistics_##t(const T* x, float* partial, int rows, int rows_per_block,  \
                                                         int c, int lanes) {                                        \
        if (lanes == 1) {                                                                                           \
            statistics<1>(x, partial, rows, rows_per_block, c);                                                     \
        } else {                                                                                                    \
            statistics<kLanes<T>>(x, partial, rows, rows_per_block, c);                                             \
        }                                                                                                           \
    }                                                                                                               \
    extern "C" __global__ void batch_norm_merge_##t(const T* x, const float* partial, float* mean, float* variance, \
                                                    float* unbiased, int channels, int rows, int rows_per_part,     \
                                                    int parts, int c) {                                             \
        merge(x, partial, mean, variance, unbiased, channels, rows, rows_per_part, parts, c);                       \
    }                                                                                                               \
    extern "C" __global__ void batch_norm_##t(const T* x, const float* mean, const float* variance,                 \
                                              const float* weight, const float* bias, T* y, float eps, int rows,    \
                                              int rows_per_block, int c, int lanes) {                               \
        if (lanes == 1) {                                                                                           \
            forward<1>(x, mean, variance, weight, bias, y, eps, rows, rows_per_block, c);                           \
        } else {                                                                                                    \
            forward<kLanes<T>>(x, mean, variance, weight, bias, y, eps, rows, rows_per_block, c);                   \
        }                                                                                                           \
    }                                                                                                               \
    extern "C" __global__ void batch_norm_sums_##t(const T* dy, const T* x, const float* mean,                      \
                                                   const float* variance, const float* weight, const float* bias,   \
                                                   float* partial, float eps, int rows, int rows_per_block, int c,  \
                                                   int lanes) {                                                     \
        if (lanes == 1) {                                                                                           \
            sums<1>(dy, x, mean, variance, weight, bias, partial, eps, rows, rows_per_block, c);                    \
        } else {                                                                                                    \
            sums<kLanes<T>>(dy, x, mean, variance, weight, bias, partial, eps, rows, rows_per_block, c);            \
        }                                                                                                           \
    }                                                                                                               \
    extern "C" __global__ void batch_norm_backward_##t(                                                             \
        const T* dy, const T* x, const float* mean, const float* variance, const float* weight, const float* bias,  \
        const float* gradients, T* dx, float eps, float per_row, int rows, int rows_per_block, int c, int lanes) {  \
        if (lanes == 1) {                                                                                           \
            backward<1>(dy, x, mean, variance, weight, bias, gradients, dx, eps, per_row, rows, rows_per_block, c); \
        } else {                                                                                                    \
            backward<kLanes<T>>(dy, x, mean, variance, weight, bias, gradients, dx, eps, per_row, rows,             \
                                rows_per_block, c);                                                                 \
        }                                                                                                           \
    }
FOR_TYPES(KERNELS)
