// Bilinear resizing with half-pixel centres, and its transpose.
//
// A thread has one column and as many channels as 16 bytes hold, and walks down a strip of rows. Forward keeps the two
// rows of x that it blends, already blended along the columns, so enlarging reads a row of x once for all the rows
// that lie between it and the next. Backward sums each row of dy along the columns once and shares it between the two
// rows of dx that it belongs to; neighbouring columns read the same dy, which the cache holds. The order of every sum
// is the order of the positions.
#include <bilinear.cuh>
#include <common.cuh>

template <int N, class T>
__device__ void forward_strip(const T* x, T* y, Axis rows, Axis columns, int first, int end, int c) {
    const int groups = c / N, i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= columns.output * groups) return;
    const int column = i / groups, channel = i % groups * N;
    const Tap across = tap_of(columns, column);
    x += static_cast<size_t>(blockIdx.z) * rows.input * columns.input * c + channel;
    y += (static_cast<size_t>(blockIdx.z) * rows.output * columns.output + column) * c + channel;
    // Rows `held` and `held` + 1.
    float near[N] = {}, far[N] = {};
    int held = -2;
    for (int row = first; row < end; ++row) {
        const Tap down = tap_of(rows, row);
        for (held = max(held, down.near - 2); held < down.near; ++held) {
            const T* from = x + static_cast<size_t>(min(held + 2, rows.input - 1)) * columns.input * c;
            float left[N], right[N];
            load(from + static_cast<size_t>(across.near) * c, left);
            load(from + static_cast<size_t>(across.far) * c, right);
#pragma unroll
            for (int j = 0; j < N; ++j) {
                near[j] = far[j];
                far[j] = (1.0f - across.weight) * left[j] + across.weight * right[j];
            }
        }
        float blended[N];
#pragma unroll
        for (int j = 0; j < N; ++j) blended[j] = (1.0f - down.weight) * near[j] + down.weight * far[j];
        store(y + static_cast<size_t>(row) * columns.output * c, blended);
    }
}

// x (images, h, w, C) -> y (images, height, width, C). Grid: groups of channels of a row of y, strips of `strip` rows
// of y, images. `vector`: by 16 bytes, for which C and the addresses have to be right.
template <class T>
__device__ void forward(const T* x, T* y, int h, int w, int height, int width, int c, int strip, int vector) {
    const int first = blockIdx.y * strip, end = min(height, first + strip);
    const Axis rows(h, height), columns(w, width);
    if (vector) {
        forward_strip<kLanes<T>>(x, y, rows, columns, first, end, c);
    } else {
        forward_strip<1>(x, y, rows, columns, first, end, c);
    }
}

template <int N, class T>
__device__ void backward_strip(const T* dy, T* dx, Axis rows, Axis columns, int first, int end, int c) {
    const int groups = c / N, i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= columns.input * groups) return;
    const int column = i / groups, channel = i % groups * N;
    const int left = first_near(columns, column - 1), right = first_near(columns, column + 1);
    dy += static_cast<size_t>(blockIdx.z) * rows.output * columns.output * c + channel;
    dx += (static_cast<size_t>(blockIdx.z) * rows.input * columns.input + column) * c + channel;
    // The sums of rows `held` and `held` + 1.
    float near[N] = {}, far[N] = {};
    int held = first - 1;
    const auto advance = [&] {
        if (held >= first) store(dx + static_cast<size_t>(held) * columns.input * c, near);
        ++held;
#pragma unroll
        for (int j = 0; j < N; ++j) {
            near[j] = far[j];
            far[j] = 0.0f;
        }
    };
    const int last = first_near(rows, end);
    for (int row = first_near(rows, first - 1); row < last; ++row) {
        const Tap down = tap_of(rows, row);
        while (held < down.near) advance();
        const T* from = dy + static_cast<size_t>(row) * columns.output * c;
        float sum[N] = {};
#pragma unroll 4
        for (int k = left; k < right; ++k) {
            const float weight = weight_of(columns, k, column);
            float v[N];
            load(from + static_cast<size_t>(k) * c, v);
#pragma unroll
            for (int j = 0; j < N; ++j) sum[j] += weight * v[j];
        }
        // The last row of dx is both.
        const bool same = down.near == down.far;
#pragma unroll
        for (int j = 0; j < N; ++j) {
            near[j] += same ? sum[j] : (1.0f - down.weight) * sum[j];
            far[j] += same ? 0.0f : down.weight * sum[j];
        }
    }
    while (held < end) advance();
}

// dy (images, height, width, C) -> dx (images, h, w, C). Grid: groups of channels of a row of dx, strips of `strip`
// rows of dx, images.
template <class T>
__device__ void backward(const T* dy, T* dx, int h, int w, int height, int width, int c, int strip, int vector) {
    const int first = blockIdx.y * strip, end = min(h, first + strip);
    const Axis rows(h, height), columns(w, width);
    if (vector) {
        backward_strip<kLanes<T>>(dy, dx, rows, columns, first, end, c);
    } else {
        backward_strip<1>(dy, dx, rows, columns, first, end, c);
    }
}

#define KERNELS(T, t)                                                                                          \
    extern "C" __global__ void resize_##t(const T* __restrict__ x, T* __restrict__ y, int h, int w, int height, \
                                          int width, int c, int strip, int vector) {                           \
        forward(x, y, h, w, height, width, c, strip, vector);                                                  \
    }                                                                                                          \
    extern "C" __global__ void resize_backward_##t(const T* __restrict__ dy, T* __restrict__ dx, int h, int w,  \
                                                   int height, int width, int c, int strip, int vector) {      \
        backward(dy, dx, h, w, height, width, c, strip, vector);                                               \
    }
FOR_TYPES(KERNELS)
