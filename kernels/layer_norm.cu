// y = (x − μ)/√(σ² + eps)·w + b over the channels of each row.
//
// Rows of up to 512 channels that can be moved by 16 bytes are read once: a group of lanes takes a row, each lane up to
// 16 numbers of it (4 lanes take 64 channels, a warp more than 256), and walks along the rows with its weights in
// registers. Of other rows a warp takes one, and reads it again, from the cache. Forward can write the rows in the order
// of windows. Backward gives dx, and for each block partial sums of dw and db, which `sum_partials` adds up.
#include <pixels.cuh>
#include <windows.cuh>

// Numbers of a row that a lane holds.
constexpr int kHeld = 16;
template <int N> constexpr int kPacks = kHeld / N;
// Channels that a warp holds.
constexpr int kTile = kHeld * kWarp;

// Whether a group loads its next row before it works on this one: where numbers of 16 bits leave the registers for it.
template <int N> constexpr bool kAhead = N == 8;

// What a lane holds of a row: as stored, by words, so that nothing waits for the loads; and as numbers.
template <int N> using Raw = Pack<unsigned, 4>[kPacks<N>];
template <int N> using Held = float[kPacks<N>][N];

// A warp as a group.
template <int N> __device__ inline Group<N> whole_warp() { return Group<N>(kTile, kPacks<N>); }

// f(k, i) for each pack that a lane holds: its number and its first channel, which may lie beyond the row.
template <int N, class F> __device__ inline void for_packs(const Group<N>& group, F f) {
#pragma unroll
    for (int k = 0; k < kPacks<N>; ++k) f(k, group.start + k * group.step);
}

// What this lane holds of a row of c numbers, and zeros beyond them.
template <int N, class T> __device__ inline void load_row(const T* row, const Group<N>& group, int c, Raw<N>& to) {
    for_packs(group, [&](int k, int i) {
        to[k] = i < c ? load_pack<4>(reinterpret_cast<const unsigned*>(row + i)) : Pack<unsigned, 4>{};
    });
}

// The numbers of 16 bytes.
template <class T> __device__ inline Pack<T, kLanes<T>> numbers(const Pack<unsigned, 4>& words) {
    Pack<T, kLanes<T>> pack;
    memcpy(&pack, &words, sizeof pack);
    return pack;
}

// f(i, v) for each pack of a row of c numbers that is this lane's: v are the numbers from channel i on.
template <int N, class T, class F>
__device__ inline void for_row(const T* x, const Group<N>& group, int c, F f) {
#pragma unroll 1
    for (int i = group.start; i < c; i += group.step) {
        float v[N];
        load(x + i, v);
        f(i, v);
    }
}

// N numbers, by 16 bytes from a multiple of 16 on where N is more than one.
template <int N> __device__ inline void load_floats(const float* from, float (&x)[N]) {
    constexpr int kOnce = N < 4 ? N : 4;
#pragma unroll
    for (int i = 0; i < N; i += kOnce) {
        const Pack<float, kOnce> pack = load_pack<kOnce>(from + i);
#pragma unroll
        for (int j = 0; j < kOnce; ++j) x[i + j] = pack.v[j];
    }
}

// Rows of at most kTile channels, by 16 bytes.
template <int N, class T>
__device__ void forward_held(const T* x, const float* weight, const float* bias, T* y, float* statistics, int rows,
                             int c, float eps, Windows windows) {
    const Group<N> group(c, kPacks<N>);
    const float inverse = 1.0f / c;
    Raw<N> raw;
    // A group without a row takes no channels.
    const auto fetch = [&](long long row) { load_row(x + row * c, group, row < rows ? c : 0, raw); };
    if (kAhead<N>) fetch(group.first + group.group);
    Held<N> w, b;
    for_packs(group, [&](int k, int i) {
        if (i >= c) return;
        load_floats(weight + i, w[k]);
        load_floats(bias + i, b[k]);
    });
#pragma unroll 1
    for (long long base = group.first; base < rows; base += group.stride) {
        const long long row = base + group.group;
        if (!kAhead<N>) fetch(row);
        const int place = windows.place(static_cast<int>(row));
        Held<N> v;
        float sum = 0.0f, square = 0.0f;
        for_packs(group, [&](int k, int) {
            const Pack<T, N> pack = numbers<T>(raw[k]);
#pragma unroll
            for (int j = 0; j < N; ++j) sum += v[k][j] = to_float(pack.v[j]);
        });
        if (kAhead<N>) fetch(row + group.stride);
        const float mean = group_sum(sum, group.width) * inverse;
        for_packs(group, [&](int k, int i) {
#pragma unroll
            for (int j = 0; j < N; ++j) {
                v[k][j] = i < c ? v[k][j] - mean : 0.0f;
                square += v[k][j] * v[k][j];
            }
        });
        const float rstd = rsqrtf(group_sum(square, group.width) * inverse + eps);
        if (row >= rows) continue;
        T* to = y + static_cast<size_t>(place) * c;
        for_packs(group, [&](int k, int i) {
            if (i >= c) return;
#pragma unroll
            for (int j = 0; j < N; ++j) v[k][j] = v[k][j] * rstd * w[k][j] + b[k][j];
            store(to + i, v[k]);
        });
        if (statistics && group.start == 0) {
            statistics[2 * row] = mean;
            statistics[2 * row + 1] = rstd;
        }
    }
}

// Any rows.
template <int N, class T>
__device__ void forward_read(const T* x, const float* weight, const float* bias, T* y, float* statistics, int rows,
                             int c, float eps, Windows windows) {
    const Group<N> group = whole_warp<N>();
#pragma unroll 1
    for (long long row = group.first; row < rows; row += group.stride) {
        const T* from = x + row * c;
        float sum = 0.0f, square = 0.0f;
        for_row(from, group, c, [&](int, float(&v)[N]) {
#pragma unroll
            for (int j = 0; j < N; ++j) sum += v[j];
        });
        const float mean = warp_sum(sum) / c;
        for_row(from, group, c, [&](int, float(&v)[N]) {
#pragma unroll
            for (int j = 0; j < N; ++j) square += (v[j] - mean) * (v[j] - mean);
        });
        const float rstd = rsqrtf(warp_sum(square) / c + eps);
        T* to = y + static_cast<size_t>(windows.place(static_cast<int>(row))) * c;
        for_row(from, group, c, [&](int i, float(&v)[N]) {
            float w[N], b[N];
            load_floats(weight + i, w);
            load_floats(bias + i, b);
#pragma unroll
            for (int j = 0; j < N; ++j) v[j] = (v[j] - mean) * rstd * w[j] + b[j];
            store(to + i, v);
        });
        if (statistics && group.start == 0) {
            statistics[2 * row] = mean;
            statistics[2 * row + 1] = rstd;
        }
    }
}

// x, y (S, rows, C), of which y is in the order of `windows`; weight, bias (S, C); statistics (S, rows, 2), or null: μ and
// 1/√(σ² + eps). Grid: any number of blocks, streams.
template <class T>
__device__ void forward(const T* x, const float* weight, const float* bias, T* y, float* statistics, int rows, int c,
                        float eps, Windows windows) {
    const bool vectors = aligned<T>(c, x, y) && aligned<float>(c, weight, bias);
    const size_t stream = blockIdx.y, at = stream * rows * c;
    x += at;
    y += at;
    weight += stream * c;
    bias += stream * c;
    if (statistics) statistics += 2 * stream * rows;
    if (vectors && c <= kTile) {
        forward_held<kLanes<T>>(x, weight, bias, y, statistics, rows, c, eps, windows);
    } else if (vectors) {
        forward_read<kLanes<T>>(x, weight, bias, y, statistics, rows, c, eps, windows);
    } else {
        forward_read<1>(x, weight, bias, y, statistics, rows, c, eps, windows);
    }
}

// With g = dy·w and x̂ the normalised x: dx = (g − mean(g) − x̂·mean(g·x̂))·rstd + `more`, if there is that; dw = Σ dy·x̂,
// db = Σ dy. Rows of at most kTile channels, by 16 bytes.
template <int N, class T>
__device__ void backward_held(const Group<N>& group, const T* dy, const T* x, const float* weight,
                              const float* statistics, const T* more, T* dx, Held<N>& dw, Held<N>& db, int rows,
                              int c) {
    const float inverse = 1.0f / c;
    Raw<N> raw_dy, raw_x;
    float next_mean = 0.0f, next_rstd = 0.0f;
    const auto fetch = [&](long long row) {
        const int end = row < rows ? c : 0;
        load_row(dy + row * c, group, end, raw_dy);
        load_row(x + row * c, group, end, raw_x);
        if (row >= rows) return;
        next_mean = statistics[2 * row];
        next_rstd = statistics[2 * row + 1];
    };
    if (kAhead<N>) fetch(group.first + group.group);
    Held<N> w = {};
    for_packs(group, [&](int k, int i) {
        if (i < c) load_floats(weight + i, w[k]);
    });
#pragma unroll 1
    for (long long base = group.first; base < rows; base += group.stride) {
        const long long row = base + group.group;
        if (!kAhead<N>) fetch(row);
        const float mean = next_mean, rstd = next_rstd;
        Held<N> g, normal;
        float sum = 0.0f, dot = 0.0f;
        for_packs(group, [&](int k, int) {
            const Pack<T, N> d = numbers<T>(raw_dy[k]), v = numbers<T>(raw_x[k]);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                g[k][j] = to_float(d.v[j]);
                normal[k][j] = (to_float(v.v[j]) - mean) * rstd;
                dw[k][j] += g[k][j] * normal[k][j];
                db[k][j] += g[k][j];
                g[k][j] *= w[k][j];
                sum += g[k][j];
                dot += g[k][j] * normal[k][j];
            }
        });
        if (kAhead<N>) fetch(row + group.stride);
        sum = group_sum(sum, group.width) * inverse;
        dot = group_sum(dot, group.width) * inverse;
        for_packs(group, [&](int k, int i) {
            if (row >= rows || i >= c) return;
            float add[N] = {};
            if (more) load(more + row * c + i, add);
#pragma unroll
            for (int j = 0; j < N; ++j) g[k][j] = rstd * (g[k][j] - sum - normal[k][j] * dot) + add[j];
            store(dx + row * c + i, g[k]);
        });
    }
}

// The same for any rows: of a tile of channels, from `tile` on.
template <int N, class T>
__device__ void backward_read(const Group<N>& group, const T* dy, const T* x, const float* weight,
                              const float* statistics, const T* more, T* dx, Held<N>& dw, Held<N>& db, int rows,
                              int c, int tile) {
#pragma unroll 1
    for (long long row = group.first; row < rows; row += group.stride) {
        const size_t at = row * c;
        const float mean = statistics[2 * row], rstd = statistics[2 * row + 1];
        float sum = 0.0f, dot = 0.0f;
        for_row(dy + at, group, c, [&](int i, float(&g)[N]) {
            float v[N], w[N];
            load(x + at + i, v);
            load_floats(weight + i, w);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                sum += g[j] * w[j];
                dot += g[j] * w[j] * ((v[j] - mean) * rstd);
            }
        });
        sum = warp_sum(sum) / c;
        dot = warp_sum(dot) / c;
        for_packs(group, [&](int k, int i) {
            i += tile;
            if (i >= c) return;
            float g[N], v[N], w[N], add[N] = {};
            load(dy + at + i, g);
            load(x + at + i, v);
            load_floats(weight + i, w);
            if (more) load(more + at + i, add);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                const float normal = (v[j] - mean) * rstd;
                dw[k][j] += g[j] * normal;
                db[k][j] += g[j];
                // Rounded as in the sum, so that a channel alone, whose gradient is zero, leaves no rounding behind.
                g[j] = rstd * (__fmul_rn(g[j], w[j]) - sum - normal * dot) + add[j];
            }
            store(dx + at + i, g);
        });
    }
}

// Adds the sums of the block's groups, in an order of their own, and writes `width` of them to `partial`.
template <int N>
__device__ void write_partial(const Group<N>& group, const Held<N>& sums, float* scratch, float* partial, int width) {
    const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    __syncthreads();
    for_packs(group, [&](int k, int i) {
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const float sum = groups_sum(sums[k][j], group.width);
            if (group.group == 0 && i < width) scratch[warp * width + i + j] = sum;
        }
    });
    __syncthreads();
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = 0.0f;
        for (int w = 0; w < warps; ++w) sum += scratch[w * width + i];
        partial[i] = sum;
    }
}

template <int N, class T>
__device__ void backward_tile(const T* dy, const T* x, const float* weight, const float* statistics,
                              const T* more, T* dx, float* partial_dw, float* partial_db, int rows, int c) {
    const int tile = blockIdx.y * kTile, width = min(kTile, c - tile);
    Held<N> dw = {}, db = {};
    const auto write = [&](const Group<N>& group) {
        write_partial(group, dw, shared_memory<float>(), partial_dw + tile, width);
        write_partial(group, db, shared_memory<float>(), partial_db + tile, width);
    };
    if constexpr (N > 1) {
        if (c <= kTile) {
            const Group<N> group(c, kPacks<N>);
            backward_held(group, dy, x, weight, statistics, more, dx, dw, db, rows, c);
            return write(group);
        }
    }
    const Group<N> group = whole_warp<N>();
    backward_read(group, dy, x, weight, statistics, more, dx, dw, db, rows, c, tile);
    write(group);
}

// dy, x, dx (S, rows, C), and `more` or null. Grid: any number of blocks, tiles of 512 channels, streams. partial
// (2, S, blocks, C): dw, then db. Shared memory: a float for each warp and channel of a tile.
template <class T>
__device__ void backward(const T* dy, const T* x, const float* weight, const float* statistics, const T* more, T* dx,
                         float* partial, int rows, int c) {
    const bool vectors = aligned<T>(c, dy, x, more, dx) && aligned<float>(c, weight);
    const size_t stream = blockIdx.z, at = stream * rows * c;
    dy += at;
    x += at;
    if (more) more += at;
    dx += at;
    weight += stream * c;
    statistics += 2 * stream * rows;
    partial += (stream * gridDim.x + blockIdx.x) * c;
    float* partial_db = partial + static_cast<size_t>(gridDim.z) * gridDim.x * c;
    if (vectors) {
        backward_tile<kLanes<T>>(dy, x, weight, statistics, more, dx, partial, partial_db, rows, c);
    } else {
        backward_tile<1>(dy, x, weight, statistics, more, dx, partial, partial_db, rows, c);
    }
}

#define KERNELS(T, t)                                                                                               \
    extern "C" __global__ void __launch_bounds__(kThreads, 3)                                                       \
        layer_norm_##t(const T* x, const float* weight, const float* bias, T* y, float* statistics, int rows,       \
                       int c, float eps, int width, int side) {                                                     \
        forward(x, weight, bias, y, statistics, rows, c, eps, {width, side});                                       \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(kThreads, 2)                                                       \
        layer_norm_backward_##t(const T* dy, const T* x, const float* weight, const float* statistics,              \
                                const T* more, T* dx, float* partial, int rows, int c) {                            \
        backward(dy, x, weight, statistics, more, dx, partial, rows, c);                                            \
    }
FOR_TYPES(KERNELS)
