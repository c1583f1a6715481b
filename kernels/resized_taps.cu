// base + the sum over four maps (2, B, h, w, 9·O), their two streams and the nine taps (ky, kx) of group 3·ky + kx of
// the map, resized bilinearly to the size of the base (1, B, H, W, O) and read at (y + ky − 1, x + kx − 1); and the
// gradients of the maps.
//
// Forward: `walk_taps`; the base is read and written once.
//
// Backward: for each pixel of a map, all outputs that read it, the transpose of the sum above; each gradient is read
// for all nine taps at once. The rows of these outputs are divided among `parts` threads, because a pixel of the
// smallest map has thousands of them; their sums are added in the order of the parts. Both streams get the same.
#include <resized_taps.cuh>

template <int N, class T>
__device__ void forward_strip(const T* base, T* y, const Map<T> (&maps)[kMaps], int height, int width, int o,
                              int strip) {
    const size_t image = static_cast<size_t>(blockIdx.z) * height * width * o;
    const auto place = [&](int line, int column, int channel) {
        return image + (static_cast<size_t>(line) * width + column) * o + channel;
    };
    const auto begin = [&](int line, int column, int channel, float(&sum)[N]) {
        load(base + place(line, column, channel), sum);
    };
    const auto end = [&](int line, int column, int channel, const float(&sum)[N], bool inside) {
        if (inside) store(y + place(line, column, channel), sum);
    };
    walk_taps<N, 2>(maps, height, width, o, strip, blockDim.x, shared_memory<Blend>(), begin, end);
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
