// y = GELU(z), z = b + the depthwise 3×3 convolution of x with padding 1.
//
// A thread has one column and 4 channels (8 or 16 bytes), and walks down a strip of rows with the 3×3 pixels around it
// in registers, the next row already on its way: x comes from memory once (and from the caches three times, by the
// neighbouring columns), y goes there once.
// Backward takes two passes: the first reads x and dy and writes dz = dy·GELU′(z), with z computed again, and from the
// same registers sums dw and db; the second reads dz and writes dx, by the forward's kernel with the weight turned by
// 180°. These are five tensors moved. A single pass would move three, but compute dz again in a margin around each
// tile, and the derivative of GELU is what the first pass spends most instructions on.
#include <common.cuh>
#include <math.cuh>

// Threads of a block along the channels, and how many columns it walks side by side.
constexpr int kAcross = 16;
constexpr int kColumns = 8;
constexpr int kThreads = kAcross * kColumns;
// Channels of a thread.
constexpr int kGroup = 4;

// The pixels (y, column − 1), (y, column), (y, column + 1), as they are stored; zeros outside of the image.
template <int N, class T>
__device__ inline void fetch(const T* image, int y, int column, int height, int width, int c, Pack<T, N> (&row)[3]) {
    const T* from = image + (static_cast<ptrdiff_t>(y) * width + column - 1) * c;
    const bool inside = y >= 0 && y < height;
#pragma unroll
    for (int k = 0; k < 3; ++k) {
        if (inside && column + k >= 1 && column + k <= width) {
            row[k] = *reinterpret_cast<const Pack<T, N>*>(from + static_cast<ptrdiff_t>(k) * c);
        } else {
#pragma unroll
            for (int j = 0; j < N; ++j) row[k].v[j] = from_float<T>(0.0f);
        }
    }
}

template <int N, class T> __device__ inline void unpack(const Pack<T, N> (&row)[3], float (&v)[3][N]) {
#pragma unroll
    for (int k = 0; k < 3; ++k) {
#pragma unroll
        for (int j = 0; j < N; ++j) v[k][j] = to_float(row[k].v[j]);
    }
}

// What a thread works on: strips of `rows` rows, numbered by image, strip and column, and a group of channels.
struct Place {
    int height, width, c, rows, strips;

    // f(image, column, first row, end row) for the thread's strips among `begin .. end`.
    template <class F> __device__ void each(int begin, int end, F f) const {
        for (int item = begin + static_cast<int>(threadIdx.x) / kAcross; item < end; item += kColumns) {
            const int column = item % width, strip = item / width % strips, image = item / width / strips;
            f(image, column, strip * rows, min(height, strip * rows + rows));
        }
    }
    __device__ size_t image() const { return static_cast<size_t>(height) * width * c; }
};

// The nine weights of N channels, in the order of the sum.
template <int N, class T>
__device__ inline void load_weight(const T* weight, float (&w)[9][N], int c, bool turned) {
#pragma unroll
    for (int tap = 0; tap < 9; ++tap) load(weight + static_cast<size_t>(turned ? 8 - tap : tap) * c, w[tap]);
}

// sum += a row of the kernel times a row of pixels.
template <int N>
__device__ inline void add_row(float (&sum)[N], const float (&w)[9][N], int first, const float (&row)[3][N]) {
#pragma unroll
    for (int k = 0; k < 3; ++k) {
#pragma unroll
        for (int j = 0; j < N; ++j) sum[j] += w[first + k][j] * row[k][j];
    }
}

// A row of x is added to the sums of the three rows that it belongs to, of which the first is complete then.
template <int N, bool kForward, class T>
__device__ void convolve_items(const T* x, const T* weight, const T* bias, T* y, int begin, int end,
                               const Place& place) {
    const int c = place.c, channel = (blockIdx.y * kAcross + threadIdx.x % kAcross) * N;
    if (channel >= c) return;
    float w[9][N], b[N] = {};
    load_weight(weight + channel, w, c, !kForward);
    if (kForward) load(bias + channel, b);
    place.each(begin, end, [&](int image, int column, int first, int last) {
        const T* from = x + image * place.image() + channel;
        T* to = y + (image * place.image() + channel + static_cast<size_t>(column) * c);
        float sums[3][N];
        Pack<T, N> next[3];
        fetch(from, first - 1, column, place.height, place.width, c, next);
        const auto step = [&](int row, float(&above)[N], float(&here)[N], float(&below)[N]) {
            if (row > last) return;
            float v[3][N];
            unpack(next, v);
            if (row < last) fetch(from, row + 1, column, place.height, place.width, c, next);
#pragma unroll
            for (int j = 0; j < N; ++j) below[j] = b[j];
            add_row(above, w, 6, v);
            add_row(here, w, 3, v);
            add_row(below, w, 0, v);
            if (row <= first) return;
            if (kForward) {
#pragma unroll
                for (int j = 0; j < N; ++j) above[j] = gelu(above[j]);
            }
            store(to + static_cast<size_t>(row - 1) * place.width * c, above);
        };
#pragma unroll
        for (int j = 0; j < N; ++j) sums[0][j] = sums[1][j] = b[j];
        for (int row = first - 1; row <= last; row += 3) {
            step(row, sums[0], sums[1], sums[2]);
            step(row + 1, sums[1], sums[2], sums[0]);
            step(row + 2, sums[2], sums[0], sums[1]);
        }
    });
}

// x, y (S, B, H, W, C); weight (S, 3, 3, C); bias (S, C). Grid: blocks of `items` strips of one stream, tiles of
// channels, streams. Without kForward the weight is turned, and there is neither bias nor GELU.
template <bool kForward, class T>
__device__ void convolve(const T* x, const T* weight, const T* bias, T* y, int batch, const Place& place, int items,
                         int vector) {
    const size_t stream = blockIdx.z, at = stream * batch * place.image();
    const int begin = blockIdx.x * items, end = min(begin + items, batch * place.strips * place.width);
    x += at;
    y += at;
    weight += stream * 9 * place.c;
    if (kForward) bias += stream * place.c;
    if (vector) {
        convolve_items<kGroup, kForward>(x, weight, bias, y, begin, end, place);
    } else {
        convolve_items<1, kForward>(x, weight, bias, y, begin, end, place);
    }
}

template <int N, class T>
__device__ void backward_items(const T* dy, const T* x, const T* weight, const T* bias, T* dz, float* partial_dw,
                               float* partial_db, int begin, int end, const Place& place) {
    const int c = place.c, lane = threadIdx.x % kAcross, worker = threadIdx.x / kAcross;
    const int tile = blockIdx.y * kAcross * N, channel = tile + lane * N;
    float w[9][N], dw[9][N] = {}, db[N] = {};
    if (channel < c) {
        load_weight(weight + channel, w, c, false);
        place.each(begin, end, [&](int image, int column, int first, int last) {
            const size_t at = image * place.image() + channel;
            const T* from = x + at;
            float rows[3][3][N];
            Pack<T, N> next[3];
            const auto step = [&](int row, float(&above)[3][N], float(&here)[3][N], float(&below)[3][N]) {
                if (row >= last) return;
                unpack(next, below);
                if (row + 1 < last) fetch(from, row + 2, column, place.height, place.width, c, next);
                const size_t offset = at + (static_cast<size_t>(row) * place.width + column) * c;
                float g[N], z[N];
                load(dy + offset, g);
                load(bias + channel, z);  // Again, from the cache: registers are scarce here.
                add_row(z, w, 0, above);
                add_row(z, w, 3, here);
                add_row(z, w, 6, below);
#pragma unroll
                for (int j = 0; j < N; ++j) {
                    g[j] *= gelu_derivative(z[j]);
                    db[j] += g[j];
#pragma unroll
                    for (int k = 0; k < 3; ++k) {
                        dw[k][j] += g[j] * above[k][j];
                        dw[3 + k][j] += g[j] * here[k][j];
                        dw[6 + k][j] += g[j] * below[k][j];
                    }
                }
                store(dz + offset, g);
            };
            fetch(from, first - 1, column, place.height, place.width, c, next);
            unpack(next, rows[0]);
            fetch(from, first, column, place.height, place.width, c, next);
            unpack(next, rows[1]);
            fetch(from, first + 1, column, place.height, place.width, c, next);
            for (int row = first; row < last; row += 3) {
                step(row, rows[0], rows[1], rows[2]);
                step(row + 1, rows[1], rows[2], rows[0]);
                step(row + 2, rows[2], rows[0], rows[1]);
            }
        });
    }
    // The sums of the block's columns, one after the other; the bias is the tenth tap.
    constexpr int kWidth = kAcross * N;
    float* sums = shared_memory<float>();
#pragma unroll
    for (int tap = 0; tap < 10; ++tap) {
#pragma unroll
        for (int j = 0; j < N; ++j) {
            sums[(tap * kColumns + worker) * kWidth + lane * N + j] = tap < 9 ? dw[min(tap, 8)][j] : db[j];
        }
    }
    __syncthreads();
    const size_t part = static_cast<size_t>(blockIdx.z) * gridDim.x + blockIdx.x;
    for (int i = threadIdx.x; i < 10 * kWidth; i += kThreads) {
        const int tap = i / kWidth, within = i % kWidth;
        if (tile + within >= c) continue;
        float sum = 0.0f;
        for (int k = 0; k < kColumns; ++k) sum += sums[(tap * kColumns + k) * kWidth + within];
        if (tap < 9) {
            partial_dw[(9 * part + tap) * c + tile + within] = sum;
        } else {
            partial_db[part * c + tile + within] = sum;
        }
    }
}

// The first pass. Grid as for `convolve`; partial_dw (S, blocks, 9, C), partial_db (S, blocks, C). Shared memory: 10
// floats for each channel of a thread and each thread.
template <class T>
__device__ void backward(const T* dy, const T* x, const T* weight, const T* bias, T* dz, float* partial_dw,
                         float* partial_db, int batch, const Place& place, int items, int vector) {
    const size_t stream = blockIdx.z, at = stream * batch * place.image();
    const int begin = blockIdx.x * items, end = min(begin + items, batch * place.strips * place.width);
    weight += stream * 9 * place.c;
    bias += stream * place.c;
    if (vector) {
        backward_items<kGroup>(dy + at, x + at, weight, bias, dz + at, partial_dw, partial_db, begin, end, place);
    } else {
        backward_items<1>(dy + at, x + at, weight, bias, dz + at, partial_dw, partial_db, begin, end, place);
    }
}

#define KERNELS(T, t)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(kThreads, 4)                                                         \
        depthwise_##t(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,              \
                      T* __restrict__ y, int batch, int height, int width, int c, int rows, int strips, int items,    \
                      int vector) {                                                                                   \
        convolve<true>(x, weight, bias, y, batch, {height, width, c, rows, strips}, items, vector);                   \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(kThreads, 4)                                                         \
        depthwise_turned_##t(const T* __restrict__ dz, const T* __restrict__ weight, T* __restrict__ dx, int batch,   \
                             int height, int width, int c, int rows, int strips, int items, int vector) {             \
        convolve<false>(dz, weight, static_cast<const T*>(nullptr), dx, batch, {height, width, c, rows, strips},      \
                        items, vector);                                                                               \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(kThreads, 3)                                                         \
        depthwise_backward_##t(const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ weight,       \
                               const T* __restrict__ bias, T* __restrict__ dz, float* __restrict__ partial_dw,        \
                               float* __restrict__ partial_db, int batch, int height, int width, int c, int rows,     \
                               int strips, int items, int vector) {                                                   \
        backward(dy, x, weight, bias, dz, partial_dw, partial_db, batch, {height, width, c, rows, strips}, items,     \
                 vector);                                                                                             \
    }
FOR_TYPES(KERNELS)
