// The fused picture: σ of the last layer of ReLU of the fusion head's 3×3 convolution, of which the two pictures are read
// here and the aligned maps come as the products of its taps (resized_taps.cuh).
//
// A thread has one column and a few channels; the threads of a pixel add up the last layer in shared memory. For the
// convolution of the pictures threads are dealt out anew: those of a warp have neighbouring columns and the same
// channels, so that a load of weights is one for all of them. Its sums for the next row come between the two barriers
// that the last layer needs anyway. Each number of the pictures is read and converted once for each block that needs it
// and waits in shared memory, zeros where it is outside.
//
// Reads the pictures and the maps once (again from the cache), writes three bytes a pixel.
#include <common.cuh>
#include <math.cuh>
#include <picture.cuh>
#include <resized_taps.cuh>

// Numbers of a pixel of both pictures, and those that the convolution reads for a pixel: its nine taps.
constexpr int kPixel = 6, kPatch = 9 * kPixel;
// Rows of the pictures in shared memory: three that the convolution reads, and the one that is written meanwhile.
constexpr int kRows = 4;
// Floats between the sums of neighbouring columns beyond those in use: so they fall into different banks.
constexpr int kPadding = 4;

// To the nearest of 0 .. 255; NaN becomes 0.
__device__ inline unsigned char to_byte(float x) {
    return static_cast<unsigned char>(fminf(fmaxf(roundf(255.0f * x), 0.0f), 255.0f));
}

// Numbers rounded up to 16 bytes of floats.
__device__ inline int rounded(int numbers) { return (numbers + 3) / 4 * 4; }

template <int N, class X, class T>
__device__ void fuse_strip(const X* pictures, const Map<T> (&maps)[kMaps], const float* weights, unsigned char* fused,
                           float* image, int height, int width, int o, int strip) {
    const int groups = o / N, columns = min(blockDim.x / groups, blockDim.x / 2 - 2);
    const int start = blockIdx.x * columns, first = blockIdx.y * strip, end_line = min(height, first + strip);
    const int numbers = (kPatch + 1 + 3) * o + 3, wide = columns + 2, stride = o + kPadding;
    // The weights of the convolution are (groups, 54, N), those of a group one after the other.
    float* const shared = shared_memory<float>();
    float* const partial = shared + rounded(numbers);
    float* const rows = partial + 3 * blockDim.x;
    float* const sums = rows + kRows * wide * kPixel;
    Blend* const tables = reinterpret_cast<Blend*>(sums + rounded(columns * stride));
    const float* const bias = shared + kPatch * o;
    const float* const last = bias + o;
    const size_t plane = static_cast<size_t>(height) * width * 3, stream = gridDim.z * plane;

    // The pixel of one of the pictures that this thread brings into shared memory from each row.
    const int at = threadIdx.x / 2, of = threadIdx.x % 2, x = start + at - 1;
    const bool brings = at < wide, visible = brings && x >= 0 && x < width;
    const X* const picture = pictures + of * stream + blockIdx.z * plane;
    const auto row = [&](int line) { return rows + (line + 1) % kRows * wide * kPixel; };
    const auto read = [&](int line, X(&pixel)[3]) {
        const bool there = visible && line >= 0 && line < height;
#pragma unroll
        for (int k = 0; k < 3; ++k) pixel[k] = there ? picture[(static_cast<size_t>(line) * width + x) * 3 + k] : X(0);
    };
    const auto keep = [&](int line, const X(&pixel)[3]) {
        if (!brings) return;
#pragma unroll
        for (int k = 0; k < 3; ++k) row(line)[at * kPixel + of * 3 + k] = number(pixel[k]);
    };
    // The sums of a line for all pixels of the block, from rows line − 1 .. line + 1.
    const auto convolve = [&](int line) {
        const int column = threadIdx.x % columns, group = threadIdx.x / columns;
        if (group >= groups) return;
        float sum[N];
        load(bias + group * N, sum);
        const float* weight = shared + group * kPatch * N;
#pragma unroll 1
        for (int ky = 0; ky < 3; ++ky) {
            const float* const pixel = row(line + ky - 1) + column * kPixel;
#pragma unroll
            for (int k = 0; k < 3 * kPixel; k += 2) {
                float v[2], w[2][N];
                load(pixel + k, v);
                load(weight + k * N, w[0]);
                load(weight + (k + 1) * N, w[1]);
#pragma unroll
                for (int j = 0; j < N; ++j) sum[j] += v[0] * w[0][j];
#pragma unroll
                for (int j = 0; j < N; ++j) sum[j] += v[1] * w[1][j];
            }
            weight += 3 * kPixel * N;
        }
        store(sums + column * stride + group * N, sum);
    };

    X upper[kRows][3];
#pragma unroll
    for (int i = 0; i < kRows; ++i) read(first - 1 + i, upper[i]);
    for (int i = threadIdx.x; i < numbers; i += blockDim.x) {
        const int channel = i % o, place = (channel / N * kPatch + i / o) * N + channel % N;
        shared[i < kPatch * o ? place : i] = weights[i];
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) keep(first - 1 + i, upper[i]);
    __syncthreads();
    convolve(first);

    const auto begin = [&](int, int column, int channel, float(&sum)[N]) {
        load(sums + (column - start) * stride + channel, sum);
    };
    const auto end = [&](int line, int, int channel, const float(&sum)[N], bool inside) {
        // Of the row below those of the next line; it takes the place of row line − 1.
        X pixel[3];
        read(line + kRows - 1, pixel);
        if (inside) {
#pragma unroll
            for (int colour = 0; colour < 3; ++colour) {
                float dot = 0.0f, w[N];
                load(last + colour * o + channel, w);
#pragma unroll
                for (int j = 0; j < N; ++j) dot += (sum[j] < 0.0f ? 0.0f : sum[j]) * w[j];
                partial[3 * threadIdx.x + colour] = dot;
            }
        }
        __syncthreads();
        const int pixels = min(columns, width - start);
        for (int i = threadIdx.x; i < 3 * pixels; i += blockDim.x) {
            float sum = last[3 * o + i % 3];
            for (int group = 0; group < groups; ++group) sum += partial[3 * (i / 3 * groups + group) + i % 3];
            const float y = sigmoid(sum);
            const size_t to = blockIdx.z * plane + (static_cast<size_t>(line) * width + start) * 3 + i;
            fused[to] = to_byte(y);
            if (image) image[to] = y;
        }
        if (line + 1 < end_line) convolve(line + 1);
        keep(line + kRows - 1, pixel);
        __syncthreads();
    };
    walk_taps<N, 1>(maps, height, width, o, strip, columns * groups, tables, begin, end);
}

// pictures (2, B, H, W, 3), the maps (B, h, w, 9·O) -> fused (B, H, W, 3), and image, floats of its shape, or null.
// weights: (54, O), where 54 is (ky, kx, stream, colour), the bias (O), the last layer (3, O) and its bias (3).
// Grid: columns of a row, blockDim.x / (groups of channels) to a block, but at most blockDim.x / 2 − 2, because a
// thread brings one pixel of one picture; strips of rows; images. blockDim.x is a multiple of 4. Shared memory, in
// floats: the weights, 3 for each thread, 24 for each column and for one more on either side, O + 4 for each column, of
// which the first and the last are rounded up to 16 bytes; then what `walk_taps` needs.
template <class X, class T>
__device__ void fuse(const X* pictures, const Map<T> (&maps)[kMaps], const float* weights, unsigned char* fused,
                     float* image, int height, int width, int o, int strip, int vector) {
    if (vector) {
        fuse_strip<kGroup>(pictures, maps, weights, fused, image, height, width, o, strip);
    } else {
        fuse_strip<1>(pictures, maps, weights, fused, image, height, width, o, strip);
    }
}

#define KERNEL(X, x, T, t)                                                                                           \
    extern "C" __global__ void __launch_bounds__(128, sizeof(T) == 4 ? 2 : 3) fuse_##x##_##t(                        \
        const X* __restrict__ pictures, const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ c,   \
        const T* __restrict__ d, const float* __restrict__ weights, unsigned char* fused, float* image, int ah,      \
        int aw, int bh, int bw, int ch, int cw, int dh, int dw, int height, int width, int o, int strip,             \
        int vector) {                                                                                                \
        const Map<T> maps[kMaps] = {{a, ah, aw}, {b, bh, bw}, {c, ch, cw}, {d, dh, dw}};                             \
        fuse(pictures, maps, weights, fused, image, height, width, o, strip, vector);                                \
    }
#define KERNELS(T, t) KERNEL(unsigned char, bytes, T, t) KERNEL(float, floats, T, t)
FOR_TYPES(KERNELS)
