// What a convolution needs beside the matrix product: its patches as rows, their transpose, and the weight in other
// orders.
//
// In x (S, B, H, W, I) each row of a patch is kw·I numbers that stand side by side, so a patch is kh copies. A row of
// patches has `row` ≥ kh·kw·I numbers, zeros from there on; `row` is a multiple of what 16 bytes hold. Pictures are
// gathered from bytes, of which 255 is 1, or from floats.
#include <common.cuh>
#include <picture.cuh>

// The numbers of an image and of the windows on it.
struct Windows {
    int height, width, inputs, kh, kw, out_height, out_width, stride, padding, row;
};

// Patches of one row of windows, a thread for each 16 bytes. With kVector, 16 bytes are of one pixel.
template <bool kVector, class X, class T>
__device__ void gather_line(const X* image, T* patches, int oy, const Windows& l) {
    constexpr int N = kLanes<T>;
    const int groups = l.row / N, run = l.kw * l.inputs, length = l.width * l.inputs;
    for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < l.out_width * groups; i += gridDim.y * blockDim.x) {
        const int ox = i / groups, first = i % groups * N;
        int ky = first / run, within = first % run;
        // The window begins at this number of a row of the image.
        const int left = (ox * l.stride - l.padding) * l.inputs;
        Pack<T, N> pack;
#pragma unroll
        for (int j = 0; j < N; j += kVector ? N : 1) {
            const int iy = oy * l.stride + ky - l.padding, at = left + within;
            const bool inside = ky < l.kh && iy >= 0 && iy < l.height && at >= 0 && at < length;
            const X* from = image + static_cast<ptrdiff_t>(iy) * length + at;
            if constexpr (kVector) {
                if (inside) {
                    pack = *reinterpret_cast<const Pack<T, N>*>(from);
                } else {
#pragma unroll
                    for (int k = 0; k < N; ++k) pack.v[k] = from_float<T>(0.0f);
                }
            } else {
                pack.v[j] = from_float<T>(inside ? number(*from) : 0.0f);
                if (++within == run) {
                    within = 0;
                    ++ky;
                }
            }
        }
        *reinterpret_cast<Pack<T, N>*>(patches + static_cast<size_t>(ox) * l.row + first) = pack;
    }
}

// x (S, B, H, W, I) -> patches (S, lines, W', row) of the rows of windows first_line .. of all images of each stream.
// Grid: lines, blocks that share a line, streams.
template <class X, class T>
__device__ void gather(const X* x, T* patches, int batch, int first_line, const Windows& l) {
    const int line = first_line + blockIdx.x, sample = line / l.out_height, oy = line % l.out_height;
    const size_t image = blockIdx.z * static_cast<size_t>(batch) + sample;
    const size_t to = blockIdx.z * static_cast<size_t>(gridDim.x) + blockIdx.x;
    x += image * l.height * l.width * l.inputs;
    patches += to * l.out_width * l.row;
    if constexpr (sizeof(X) == sizeof(T)) {
        if (aligned<T>(l.inputs, x)) return gather_line<true>(x, patches, oy, l);
    }
    gather_line<false>(x, patches, oy, l);
}

// A row of dx: each number is the sum over the windows that cover it, by rows of the kernel, then columns.
template <int N, class T>
__device__ void scatter_line(const T* patches, T* dx, int iy, const Windows& l) {
    const int groups = l.inputs / N;
    for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < l.width * groups; i += gridDim.y * blockDim.x) {
        const int ix = i / groups, channel = i % groups * N;
        float sum[N] = {};
        for (int ky = (iy + l.padding) % l.stride; ky < l.kh && ky <= iy + l.padding; ky += l.stride) {
            const int oy = (iy + l.padding - ky) / l.stride;
            if (oy >= l.out_height) continue;
            for (int kx = (ix + l.padding) % l.stride; kx < l.kw && kx <= ix + l.padding; kx += l.stride) {
                const int ox = (ix + l.padding - kx) / l.stride;
                if (ox >= l.out_width) continue;
                const size_t window = static_cast<size_t>(oy) * l.out_width + ox;
                float v[N];
                load(patches + window * l.row + (ky * l.kw + kx) * l.inputs + channel, v);
#pragma unroll
                for (int j = 0; j < N; ++j) sum[j] += v[j];
            }
        }
        store(dx + static_cast<size_t>(ix) * l.inputs + channel, sum);
    }
}

// The gradients of patches (S, samples, H', W', row) -> those images of dx (S, B, H, W, I), from `sample` on. Grid:
// rows of the images, blocks that share one, streams.
template <class T>
__device__ void scatter(const T* patches, T* dx, int batch, int sample, const Windows& l) {
    const int iy = blockIdx.x % l.height, image = blockIdx.x / l.height, samples = gridDim.x / l.height;
    const size_t from = blockIdx.z * static_cast<size_t>(samples) + image;
    const size_t to = blockIdx.z * static_cast<size_t>(batch) + sample + image;
    patches += from * l.out_height * l.out_width * l.row;
    dx += (to * l.height + iy) * l.width * l.inputs;
    if (aligned<T>(l.inputs, dx)) {
        scatter_line<kLanes<T>>(patches, dx, iy, l);
    } else {
        scatter_line<1>(patches, dx, iy, l);
    }
}

// x (rows, from) -> y (rows, to): cut off, or filled up with zeros.
template <class T> __device__ void resize_rows(const T* x, T* y, int len, int from, int to) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= len) return;
    const int row = i / to, column = i % to;
    y[i] = column < from ? x[static_cast<size_t>(row) * from + column] : from_float<T>(0.0f);
}

// weight (S, O, taps, I) -> (S, I, taps, O) with the taps in reverse: the kernel turned by 180°.
template <class T> __device__ void turn(const T* weight, T* y, int len, int outputs, int taps, int inputs) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= len) return;
    const int output = i % outputs, tap = taps - 1 - i / outputs % taps;
    const int input = i / (outputs * taps) % inputs, stream = i / (outputs * taps * inputs);
    y[i] = weight[((static_cast<size_t>(stream) * outputs + output) * taps + tap) * inputs + input];
}

#define KERNELS(T, t)                                                                                               \
    extern "C" __global__ void conv_gather_##t(const T* __restrict__ x, T* __restrict__ patches, int batch,         \
                                               int first_line, int height, int width, int inputs, int kh, int kw,   \
                                               int out_height, int out_width, int stride, int padding, int row) {   \
        gather(x, patches, batch, first_line,                                                                       \
               {height, width, inputs, kh, kw, out_height, out_width, stride, padding, row});                       \
    }                                                                                                               \
    extern "C" __global__ void conv_gather_bytes_##t(                                                               \
        const unsigned char* __restrict__ x, T* __restrict__ patches, int batch, int first_line, int height,        \
        int width, int inputs, int kh, int kw, int out_height, int out_width, int stride, int padding, int row) {   \
        gather(x, patches, batch, first_line,                                                                       \
               {height, width, inputs, kh, kw, out_height, out_width, stride, padding, row});                       \
    }                                                                                                               \
    extern "C" __global__ void conv_gather_floats_##t(                                                              \
        const float* __restrict__ x, T* __restrict__ patches, int batch, int first_line, int height, int width,     \
        int inputs, int kh, int kw, int out_height, int out_width, int stride, int padding, int row) {              \
        gather(x, patches, batch, first_line,                                                                       \
               {height, width, inputs, kh, kw, out_height, out_width, stride, padding, row});                       \
    }                                                                                                               \
    extern "C" __global__ void conv_scatter_##t(const T* __restrict__ patches, T* __restrict__ dx, int batch,       \
                                                int sample, int height, int width, int inputs, int kh, int kw,      \
                                                int out_height, int out_width, int stride, int padding, int row) {  \
        scatter(patches, dx, batch, sample,                                                                         \
                {height, width, inputs, kh, kw, out_height, out_width, stride, padding, row});                      \
    }                                                                                                               \
    extern "C" __global__ void conv_resize_rows_##t(const T* x, T* y, int len, int from, int to) {                  \
        resize_rows(x, y, len, from, to);                                                                           \
    }                                                                                                               \
    extern "C" __global__ void conv_turn_##t(const T* weight, T* y, int len, int outputs, int taps, int inputs) {   \
        turn(weight, y, len, outputs, taps, inputs);                                                                \
    }
FOR_TYPES(KERNELS)
