// base + the sum over four maps (2, B, h, w, 9·O), their two streams and the nine taps (ky, kx) of group 3·ky + kx of
// the map, resized bilinearly to the size of the base (1, B, H, W, O) and read at (y + ky − 1, x + kx − 1); and the
// gradients of the maps.
//
// Forward: a thread has one column and a few channels and walks down a strip of rows. For each map and ky it holds two
// neighbouring rows of the map, already blended along the columns and summed over streams and kx; a row is read once
// for all rows of the strip that lie between it and the next. The base is read and written once. Where taps fall is in
// tables in shared memory, one for the strip's rows and one for the block's columns.
//
// Backward: for each pixel of a map, all outputs that read it, the transpose of the sum above; each gradient is read
// for all nine taps at once. The rows of these outputs are divided among `parts` threads, because a pixel of the
// smallest map has thousands of them; their sums are added in the order of the parts. Both streams get the same.
#include <bilinear.cuh>
#include <common.cuh>

constexpr int kMaps = 4;
// Channels of a thread of the forward.
constexpr int kGroup = 4;

// keep·near + weight·far; near < 0 outside of the picture.
struct alignas(16) Blend {
    int near, far;
    float keep, weight;
};

__device__ inline Blend blend_of(const Axis& axis, int i) {
    if (i < 0 || i >= axis.output) return {-1, -1, 0.0f, 0.0f};
    const Tap tap = tap_of(axis, i);
    return {tap.near, tap.far, 1.0f - tap.weight, tap.weight};
}

template <class T> struct Map {
    const T* data;
    int h, w;
};

// Row `row` of one map at the column whose taps are `columns`, for taps (ky, 0 .. 2): both streams, blended and summed.
template <int N, class T>
__device__ inline void across(const Map<T>& map, int row, int ky, const Blend* columns, int channel, int o,
                              float (&sum)[N]) {
    const size_t stream = static_cast<size_t>(gridDim.z) * map.h * map.w * 9 * o;
    const T* from = map.data + (static_cast<size_t>(blockIdx.z) * map.h + row) * map.w * 9 * o + channel;
#pragma unroll
    for (int j = 0; j < N; ++j) sum[j] = 0.0f;
#pragma unroll
    for (int kx = 0; kx < 3; ++kx) {
        const Blend blend = columns[kx];
        if (blend.near < 0) continue;
        const T* near = from + static_cast<size_t>(blend.near * 9 + ky * 3 + kx) * o;
        const T* far = from + static_cast<size_t>(blend.far * 9 + ky * 3 + kx) * o;
        float a[N], b[N], c[N], d[N];
        load(near, a);
        load(near + stream, b);
        load(far, c);
        load(far + stream, d);
#pragma unroll
        for (int j = 0; j < N; ++j) sum[j] += blend.keep * (a[j] + b[j]) + blend.weight * (c[j] + d[j]);
    }
}

template <int N, class T>
__device__ void forward_strip(const T* base, T* y, const Map<T> (&maps)[kMaps], int height, int width, int o,
                              int strip) {
    const int groups = o / N, first = blockIdx.y * strip, end = min(height, first + strip);
    const int start = blockIdx.x * blockDim.x, i = start + threadIdx.x;
    // Rows first − 1 .. end, then the block's columns with one more on each side; for each map.
    const int rows = end - first + 2, first_column = start / groups;
    const int last_column = (min(start + static_cast<int>(blockDim.x), width * groups) - 1) / groups;
    const int columns = last_column - first_column + 3;
    Blend* tables = shared_memory<Blend>();
#pragma unroll
    for (int m = 0; m < kMaps; ++m) {
        const Axis down(maps[m].h, height), across(maps[m].w, width);
        Blend* table = tables + m * (rows + columns);
        for (int k = threadIdx.x; k < rows; k += blockDim.x) table[k] = blend_of(down, first - 1 + k);
        for (int k = threadIdx.x; k < columns; k += blockDim.x) {
            table[rows + k] = blend_of(across, first_column - 1 + k);
        }
    }
    __syncthreads();
    if (i >= width * groups) return;
    const int column = i / groups, channel = i % groups * N;
    const size_t image = static_cast<size_t>(blockIdx.z) * height * width * o;
    base += image + static_cast<size_t>(column) * o + channel;
    y += image + static_cast<size_t>(column) * o + channel;
    // The rows of each map that the line before has blended.
    float near[kMaps][3][N] = {}, far[kMaps][3][N] = {};
    for (int line = first; line < end; ++line) {
        float sum[N];
        load(base + static_cast<size_t>(line) * width * o, sum);
#pragma unroll
        for (int m = 0; m < kMaps; ++m) {
            const Blend* table = tables + m * (rows + columns);
#pragma unroll
            for (int ky = 0; ky < 3; ++ky) {
                const Blend down = table[line - first + ky];
                if (down.near < 0) continue;
                const int before = line > first ? table[line - first + ky - 1].near : -1;
                for (int row = max(before < 0 ? -2 : before, down.near - 2); row < down.near; ++row) {
#pragma unroll
                    for (int j = 0; j < N; ++j) near[m][ky][j] = far[m][ky][j];
                    across(maps[m], min(row + 2, maps[m].h - 1), ky, table + rows + column - first_column,
                           channel, o, far[m][ky]);
                }
#pragma unroll
                for (int j = 0; j < N; ++j) sum[j] += down.keep * near[m][ky][j] + down.weight * far[m][ky][j];
            }
        }
        store(y + static_cast<size_t>(line) * width * o, sum);
    }
}

// base, y (1, B, H, W, O), which may be the same; the maps (2, B, h, w, 9·O). Grid: groups of channels of a row, strips
// of `strip` rows, images. Shared memory: 16 bytes for each map and each of the strip's rows and the block's columns,
// two more of each. `vector`: 4 channels at once.
template <class T>
__device__ void forward(const T* base, T* y, const Map<T> (&maps)[kMaps], int height, int width, int o, int strip,
                        int vector) {
    if (vector) {
        forward_strip<kGroup>(base, y, maps, height, width, o, strip);
    } else {
        forward_strip<1>(base, y, maps, height, width, o, strip);
    }
}

template <int N, class T>
__device__ void backward_pixels(const T* dy, T* dx, int h, int w, int height, int width, int o, int parts) {
    const int groups = o / N, items = blockDim.x / parts, row = blockIdx.y;
    const int part = threadIdx.x / items, i = blockIdx.x * items + threadIdx.x % items;
    const Axis rows(h, height), columns(w, width);
    float sums[3][3][N] = {};
    if (i < w * groups) {
        const int column = i / groups, channel = i % groups * N;
        dy += static_cast<size_t>(blockIdx.z) * height * width * o + channel;
        // Outputs of the resized map that read this pixel, and one more on each side for the taps.
        const int left = max(first_near(columns, column - 1) - 1, 0);
        const int right = min(first_near(columns, column + 1) + 1, width);
        const int top = max(first_near(rows, row - 1) - 1, 0), bottom = min(first_near(rows, row + 1) + 1, height);
        const int share = (bottom - top + parts - 1) / parts, first = top + part * share;
        for (int y = first; y < min(bottom, first + share); ++y) {
            const T* line = dy + static_cast<size_t>(y) * width * o;
            float across[3][N] = {};
            float w0 = weight_of(columns, left - 1, column), w1 = weight_of(columns, left, column);
#pragma unroll 2
            for (int x = left; x < right; ++x) {
                const float w2 = weight_of(columns, x + 1, column);
                float g[N];
                load(line + static_cast<size_t>(x) * o, g);
#pragma unroll
                for (int j = 0; j < N; ++j) {
                    across[0][j] += w0 * g[j];
                    across[1][j] += w1 * g[j];
                    across[2][j] += w2 * g[j];
                }
                w0 = w1;
                w1 = w2;
            }
#pragma unroll
            for (int ky = 0; ky < 3; ++ky) {
                const float weight = weight_of(rows, y + ky - 1, row);
#pragma unroll
                for (int kx = 0; kx < 3; ++kx) {
#pragma unroll
                    for (int j = 0; j < N; ++j) sums[ky][kx][j] += weight * across[kx][j];
                }
            }
        }
    }
    float* shared = shared_memory<float>();
#pragma unroll
    for (int tap = 0; tap < 9; ++tap) store(shared + (threadIdx.x * 9 + tap) * N, sums[tap / 3][tap % 3]);
    __syncthreads();
    const size_t stream = static_cast<size_t>(gridDim.z) * h * w * 9 * o;
    dx += (static_cast<size_t>(blockIdx.z) * h + row) * w * 9 * o;
    for (int k = threadIdx.x; k < items * 9; k += blockDim.x) {
        const int item = k / 9, tap = k % 9, i = blockIdx.x * items + item;
        if (i >= w * groups) continue;
        float sum[N] = {};
        for (int p = 0; p < parts; ++p) {
            float v[N];
            load(shared + ((p * items + item) * 9 + tap) * N, v);
#pragma unroll
            for (int j = 0; j < N; ++j) sum[j] += v[j];
        }
        T* to = dx + static_cast<size_t>(i / groups * 9 + tap) * o + i % groups * N;
        store(to, sum);
        store(to + stream, sum);
    }
}

// dy (1, B, H, W, O) -> dx (2, B, h, w, 9·O). Grid: pixels and groups of channels of a row of dx, a block for as many as
// it has threads for `parts` each; rows of dx; images. Shared memory: 9 floats for each channel of each thread.
template <class T>
__device__ void backward(const T* dy, T* dx, int h, int w, int height, int width, int o, int parts, int vector) {
    if (vector) {
        backward_pixels<kLanes<T>>(dy, dx, h, w, height, width, o, parts);
    } else {
        backward_pixels<1>(dy, dx, h, w, height, width, o, parts);
    }
}

#define KERNELS(T, t)                                                                                               \
    extern "C" __global__ void __launch_bounds__(128, sizeof(T) == 4 ? 2 : 3)                                       \
        resized_taps_##t(const T* base, T* y, const T* __restrict__ a, const T* __restrict__ b,                     \
                         const T* __restrict__ c, const T* __restrict__ d, int ah, int aw, int bh, int bw, int ch,  \
                         int cw, int dh, int dw, int height, int width, int o, int strip, int vector) {             \
        const Map<T> maps[kMaps] = {{a, ah, aw}, {b, bh, bw}, {c, ch, cw}, {d, dh, dw}};                            \
        forward(base, y, maps, height, width, o, strip, vector);                                                    \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(128)                                                               \
        resized_taps_backward_##t(const T* __restrict__ dy, T* __restrict__ dx, int h, int w, int height,           \
                                  int width, int o, int parts, int vector) {                                        \
        backward(dy, dx, h, w, height, width, o, parts, vector);                                                    \
    }
FOR_TYPES(KERNELS)
