// y = GELU(z), z = b + the depthwise 3×3 convolution of x with padding 1.
//
// A thread has one column and 4 channels (8 or 16 bytes), and walks down a strip of rows with the 3×3 pixels around it
// in registers, the rows to come already on their way (two of them, one in backward): x comes from memory once (and
// from the caches three times, by the neighbouring columns), y goes there once. What is on its way is kept in whole
// words until its turn: numbers of 16 bits would be taken out of them on arrival, and each row would wait for memory.
// Backward takes two passes: the first reads x and dy and writes dz = dy·GELU′(z), with z computed again, and from the
// same registers sums dw and db; the second reads dz and writes dx, by the forward's kernel with the weight turned by
// 180°. These are five tensors moved. A single pass would move three, but compute dz again in a margin around each
// tile, and the derivative of GELU is what the first pass spends most instructions on.
#include <common.cuh>
#include <math.cuh>
#include <ptx.cuh>

// Threads of a block along the channels, and how many columns it walks side by side.
constexpr int kAcross = 16;
constexpr int kColumns = 8;
constexpr int kThreads = kAcross * kColumns;
// Channels of a thread.
constexpr int kGroup = 4;

// Numbers of a pixel as they are stored, in words that nobody has looked into yet.
template <int kBytes> struct Words { unsigned words[kBytes / 4]; };
template <> struct Words<2> { unsigned short words[1]; };
template <int N, class T> struct Pixel : Words<static_cast<int>(sizeof(T)) * N> {};

template <int N, class T> __device__ inline void unpack(const Pixel<N, T>& pixel, float (&v)[N]) {
    Pack<T, N> pack;
    memcpy(&pack, pixel.words, sizeof pack);
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = to_float(pack.v[j]);
}
template <int N, class T> __device__ inline void unpack(const Pixel<N, T> (&row)[3], float (&v)[3][N]) {
#pragma unroll
    for (int k = 0; k < 3; ++k) unpack(row[k], v[k]);
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
    __device__ ptrdiff_t line() const { return static_cast<ptrdiff_t>(width) * c; }
};

// Reads the strip `first .. last` of x from the row above it to the row below it, at one column and beside it.
template <int N, class T> struct Rows {
    const Place& place;
    const T* from;  // The column's pixel in the row to read next.
    int last;
    bool left, right;  // Whether there is a column beside it.

    __device__ Rows(const T* image, const Place& place, int column, int first, int last)
        : place(place),
          from(image + (first - 1) * place.line() + static_cast<ptrdiff_t>(column) * place.c),
          last(last),
          left(column > 0),
          right(column + 1 < place.width) {}

    // The pixels (row, column − 1), (row, column), (row, column + 1) of the next row; zeros outside of the image, and
    // for rows that the strip does not need. The number of the row is the caller's: registers are scarce.
    __device__ void next(int row, Pixel<N, T> (&pixels)[3]) {
        const bool inside = row >= 0 && row < place.height && row <= last;
        load_words(pixels[0].words, from - place.c, inside && left);
        load_words(pixels[1].words, from, inside);
        load_words(pixels[2].words, from + place.c, inside && right);
        from += place.line();
    }
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

// A row of x is added to the sums of the three rows that it belongs to, of which the first is complete then. After six
// rows the three sums and the two rows ahead are in their first places again.
template <int N, bool kForward, class T>
__device__ void convolve_items(const T* x, const T* weight, const T* bias, T* y, int begin, int end,
                               const Place& place) {
    const int c = place.c, channel = (blockIdx.y * kAcross + threadIdx.x % kAcross) * N;
    if (channel >= c) return;
    float w[9][N], b[N] = {};
    load_weight(weight + channel, w, c, !kForward);
    if (kForward) load(bias + channel, b);
    place.each(begin, end, [&](int image, int column, int first, int last) {
        const size_t at = image * place.image() + channel;
        Rows<N, T> rows(x + at, place, column, first, last);
        T* to = y + (at + first * place.line() + static_cast<size_t>(column) * c);
        float sums[3][N];
        Pixel<N, T> ahead[2][3];
        const auto step = [&](int row, Pixel<N, T>(&next)[3], float(&above)[N], float(&here)[N],
                              float(&below)[N]) {
            if (row > last) return;
            float v[3][N];
            unpack(next, v);
            rows.next(row + 2, next);
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
            store(to, above);
            to += place.line();
        };
        rows.next(first - 1, ahead[0]);
        rows.next(first, ahead[1]);
#pragma unroll
        for (int j = 0; j < N; ++j) sums[0][j] = sums[1][j] = b[j];
        for (int row = first - 1; row <= last; row += 6) {
#pragma unroll
            for (int k = 0; k < 6; ++k) {
                step(row + k, ahead[k % 2], sums[k % 3], sums[(k + 1) % 3], sums[(k + 2) % 3]);
            }
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
            Rows<N, T> rows(x + at, place, column, first, last);
            size_t offset = at + first * place.line() + static_cast<size_t>(column) * c;
            float v[3][3][N];
            Pixel<N, T> ahead[3], dy_ahead;
            const auto step = [&](int row, float(&above)[3][N], float(&here)[3][N], float(&below)[3][N]) {
                if (row >= last) return;
                float g[N], z[N];
                unpack(dy_ahead, g);
                load_words(dy_ahead.words, dy + (offset + place.line()), row + 1 < last);
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
                offset += place.line();
                unpack(ahead, above);  // It is the next row's `below`.
                rows.next(row + 3, ahead);
            };
#pragma unroll
            for (int k = 0; k < 3; ++k) {
                rows.next(first - 1 + k, ahead);
                unpack(ahead, v[k]);
            }
            rows.next(first + 2, ahead);
            load_words(dy_ahead.words, dy + offset, true);
            for (int row = first; row < last; row += 3) {
                step(row, v[0], v[1], v[2]);
                step(row + 1, v[1], v[2], v[0]);
                step(row + 2, v[2], v[0], v[1]);
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
