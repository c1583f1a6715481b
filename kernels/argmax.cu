// From logits to classes and to probabilities: rows of K logits, one for each pixel, in tiles in shared memory.
#include <rows.cuh>

// x (rows, K) -> the first class of largest value; NaN is never the largest. Shared memory: a tile of T.
template <class T>
__device__ void argmax(const T* x, unsigned char* classes, int rows, int k, int tile_rows) {
    for_rows(x, shared_memory<T>(), rows, k, tile_rows, [&](int row, const T* from) {
        int best = 0;
        float max = -INFINITY;
        for (int i = 0; i < k; ++i) {
            const float v = to_float(from[i]);
            if (v > max) {
                best = i;
                max = v;
            }
        }
        classes[row] = static_cast<unsigned char>(best);
    });
}

// x (rows, K) -> softmax, always float. Shared memory: a tile of T and one of floats.
template <class T>
__device__ void probabilities(const T* x, float* y, int rows, int k, int tile_rows) {
    T* tile = shared_memory<T>();
    float* out = reinterpret_cast<float*>(shared_memory<unsigned char>() + tile_bytes<T>(tile_rows * k));
    for_tiles(rows, tile_rows, [&](int first, int n) {
        const size_t at = static_cast<size_t>(first) * k;
        copy(x + at, tile, n * k);
        __syncthreads();
        const int row = threadIdx.x;
        if (row < n) {
            const T* from = tile + row * k;
            float* to = out + row * k;
            const float max = row_max(from, k);
            float sum = 0.0f;
            for (int i = 0; i < k; ++i) {
                to[i] = expf(to_float(from[i]) - max);
                sum += to[i];
            }
            const float scale = 1.0f / sum;
            for (int i = 0; i < k; ++i) to[i] *= scale;
        }
        __syncthreads();
        copy(out, y + at, n * k);
    });
}

#define KERNELS(T, t)                                                                                               \
    extern "C" __global__ void argmax_##t(const T* x, unsigned char* classes, int rows, int k, int tile_rows) {     \
        argmax(x, classes, rows, k, tile_rows);                                                                     \
    }                                                                                                               \
    extern "C" __global__ void probabilities_##t(const T* x, float* y, int rows, int k, int tile_rows) {            \
        probabilities(x, y, rows, k, tile_rows);                                                                    \
    }
FOR_TYPES(KERNELS)
