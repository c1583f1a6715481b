// Losses of the segmentation: cross entropy, dice, consistency; and the weighted sum of losses.
//
// Logits are rows of K numbers, one for each pixel, in tiles in shared memory with a thread for each row. A forward
// gives partial sums for each block, in double precision, which a block of its own adds up in their order. A backward
// computes the softmax again. Losses, and the gradients dy that come back to them, are numbers in device memory.
//
// Labels are not trusted: one that is no class is ignored as 255 is.
#include <rows.cuh>
#include <sums.cuh>

__device__ inline bool counts(int label, int k) { return label != 255 && label < k; }

// As in the published training, dice counts ignored pixels as class 0.
__device__ inline int dice_class(int label, int k) { return counts(label, k) ? label : 0; }

// dy / pixels, 0 for none.
__device__ inline float share(const float* dy, const float* pixels) { return *pixels > 0.0f ? *dy / *pixels : 0.0f; }

// Writes a block's sum and count to partial (blocks, 2). The shared memory, a double for each thread, may be a tile's.
__device__ inline void write_partial(double* partial, double sum, int count) {
    double* scratch = shared_memory<double>();
    sum = block_total(sum, scratch);
    const double total = block_total(count, scratch);
    if (threadIdx.x == 0) {
        partial[2 * blockIdx.x] = sum;
        partial[2 * blockIdx.x + 1] = total;
    }
}

// −log softmax(x)[label] of each row that counts. Shared memory: a tile of T, at least a double for each thread.
template <class T>
__device__ void cross_entropy(const T* x, const unsigned char* labels, double* partial, int rows, int k,
                              int tile_rows) {
    double total = 0.0;
    int count = 0;
    for_rows(x, shared_memory<T>(), rows, k, tile_rows, [&](int row, const T* from) {
        const int label = labels[row];
        if (!counts(label, k)) return;
        const float max = row_max(from, k);
        total += logf(row_exponentials(from, k, max)) + (max - to_float(from[label]));
        ++count;
    });
    write_partial(partial, total, count);
}

// dx = (softmax(x) − onehot) · dy / pixels, 0 for a row that does not count. Shared memory: a tile of T.
template <class T>
__device__ void cross_entropy_backward(const float* dy, const float* pixels, const T* x, const unsigned char* labels,
                                       T* dx, int rows, int k, int tile_rows) {
    const float scale = share(dy, pixels);
    map_rows(x, dx, shared_memory<T>(), rows, k, tile_rows, [&](int row, T* own) {
        const int label = labels[row];
        if (counts(label, k)) {
            const float max = row_max(own, k), inverse = 1.0f / row_exponentials(own, k, max);
            for (int i = 0; i < k; ++i) {
                const float p = expf(to_float(own[i]) - max) * inverse;
                own[i] = from_float<T>((i == label ? p - 1.0f : p) * scale);
            }
        } else {
            for (int i = 0; i < k; ++i) own[i] = from_float<T>(0.0f);
        }
    });
}

// −Σ softmax(t)·log softmax(x) of each row that counts. Shared memory: two tiles of T, at least a double for each
// thread.
template <class T>
__device__ void consistency(const T* x, const T* t, const unsigned char* labels, double* partial, int rows, int k,
                            int tile_rows) {
    T* tile = shared_memory<T>();
    T* target = reinterpret_cast<T*>(shared_memory<unsigned char>() + tile_bytes<T>(tile_rows * k));
    double total = 0.0;
    int count = 0;
    for_tiles(rows, tile_rows, [&](int first, int n) {
        const size_t at = static_cast<size_t>(first) * k;
        copy(x + at, tile, n * k);
        copy(t + at, target, n * k);
        __syncthreads();
        const int row = threadIdx.x;
        if (row >= n || !counts(labels[first + row], k)) return;
        const T *from = tile + row * k, *soft = target + row * k;
        const float max = row_max(from, k), log_sum = logf(row_exponentials(from, k, max)) + max;
        const float soft_max = row_max(soft, k);
        float sum = 0.0f, dot = 0.0f;
        for (int i = 0; i < k; ++i) {
            const float e = expf(to_float(soft[i]) - soft_max);
            sum += e;
            dot += e * (log_sum - to_float(from[i]));
        }
        total += dot / sum;
        ++count;
    });
    write_partial(partial, total, count);
}

// dx = (softmax(x) − softmax(t)) · dy / pixels, 0 for a row that does not count. Shared memory: two tiles of T.
template <class T>
__device__ void consistency_backward(const float* dy, const float* pixels, const T* x, const T* t,
                                     const unsigned char* labels, T* dx, int rows, int k, int tile_rows) {
    T* tile = shared_memory<T>();
    T* target = reinterpret_cast<T*>(shared_memory<unsigned char>() + tile_bytes<T>(tile_rows * k));
    const float scale = share(dy, pixels);
    for_tiles(rows, tile_rows, [&](int first, int n) {
        const size_t at = static_cast<size_t>(first) * k;
        copy(x + at, tile, n * k);
        copy(t + at, target, n * k);
        __syncthreads();
        const int row = threadIdx.x;
        if (row < n) {
            T *own = tile + row * k, *soft = target + row * k;
            if (counts(labels[first + row], k)) {
                const float max = row_max(own, k), inverse = 1.0f / row_exponentials(own, k, max);
                const float soft_max = row_max(soft, k), soft_inverse = 1.0f / row_exponentials(soft, k, soft_max);
                for (int i = 0; i < k; ++i) {
                    const float p = expf(to_float(own[i]) - max) * inverse;
                    const float q = expf(to_float(soft[i]) - soft_max) * soft_inverse;
                    own[i] = from_float<T>((p - q) * scale);
                }
            } else {
                for (int i = 0; i < k; ++i) own[i] = from_float<T>(0.0f);
            }
        }
        __syncthreads();
        copy(tile, dx + at, n * k);
    });
}

// The mean from partial (parts, 2), sums and counts, and how many pixels count; 0 without any. A block; shared memory:
// a double for each thread.
extern "C" __global__ void __launch_bounds__(1024)
    loss_mean(const double* partial, float* loss, float* pixels, int parts) {
    double* scratch = shared_memory<double>();
    const double sum = total_of(partial, parts, 2, scratch), count = total_of(partial + 1, parts, 2, scratch);
    if (threadIdx.x == 0) {
        *loss = count > 0.0 ? static_cast<float>(sum / count) : 0.0f;
        *pixels = static_cast<float>(count);
    }
}

constexpr double kSmooth = 1e-5;

// partial (blocks, 2, K): Σ pₖ over the rows of class k, and Σ pₖ over all rows + the number of rows of class k. A
// thread takes a row to compute its exponentials, then a class and every so many of the rows.
// Shared memory: a tile of T, a tile of floats, and for each row its 1 / Σ e^x and its class; at least two floats for
// each thread. K may not exceed the number of threads.
template <class T>
__device__ void dice(const T* x, const unsigned char* labels, double* partial, int rows, int k, int tile_rows) {
    T* tile = shared_memory<T>();
    float* exponentials = reinterpret_cast<float*>(shared_memory<unsigned char>() + tile_bytes<T>(tile_rows * k));
    float* inverse = exponentials + tile_rows * k;
    int* classes = reinterpret_cast<int*>(inverse + tile_rows);
    const int walkers = blockDim.x / k, walker = threadIdx.x / k, column = threadIdx.x % k;
    float hit = 0.0f, every = 0.0f;
    for_tiles(rows, tile_rows, [&](int first, int n) {
        copy(x + static_cast<size_t>(first) * k, tile, n * k);
        __syncthreads();
        const int row = threadIdx.x;
        if (row < n) {
            const float max = row_max(tile + row * k, k);
            float sum = 0.0f;
            for (int i = 0; i < k; ++i) {
                const float e = expf(to_float(tile[row * k + i]) - max);
                exponentials[row * k + i] = e;
                sum += e;
            }
            inverse[row] = 1.0f / sum;
            classes[row] = dice_class(labels[first + row], k);
        }
        __syncthreads();
        if (walker >= walkers) return;
        for (int row = walker; row < n; row += walkers) {
            const float p = exponentials[row * k + column] * inverse[row];
            const bool own = classes[row] == column;
            hit += own ? p : 0.0f;
            every += own ? p + 1.0f : p;
        }
    });
    float* sums = shared_memory<float>();
    sums[threadIdx.x] = hit;
    sums[blockDim.x + threadIdx.x] = every;
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * k; i += blockDim.x) {
        const float* from = sums + (i < k ? 0 : blockDim.x) + i % k;
        double sum = 0.0;
        for (int w = 0; w < walkers; ++w) sum += from[w * k];
        partial[static_cast<size_t>(blockIdx.x) * 2 * k + i] = sum;
    }
}

// The loss 1 − meanₖ (2Iₖ + s)/Tₖ from partial (parts, 2, K), and coefficients (2, K): −2/(K·Tₖ) and
// (2Iₖ + s)/(K·Tₖ²), of which the gradient with respect to the probabilities is made. A block; shared memory: a double
// for each thread. 2K may not exceed the number of threads.
extern "C" __global__ void __launch_bounds__(1024)
    dice_combine(const double* partial, float* loss, float* coefficients, int parts, int k) {
    double* sums = shared_memory<double>();
    const int width = 2 * k, walkers = blockDim.x / width, walker = threadIdx.x / width;
    double sum = 0.0;
    if (walker < walkers) {
        for (int part = walker; part < parts; part += walkers) {
            sum += partial[static_cast<size_t>(part) * width + threadIdx.x % width];
        }
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x < width) {
        for (int w = 1; w < walkers; ++w) sum += sums[w * width + threadIdx.x];
    }
    __syncthreads();
    if (threadIdx.x < width) sums[threadIdx.x] = sum;
    __syncthreads();
    double ratio = 0.0;
    if (threadIdx.x < k) {
        const double overlap = 2.0 * sums[threadIdx.x] + kSmooth, total = sums[k + threadIdx.x] + kSmooth;
        ratio = overlap / total;
        coefficients[threadIdx.x] = static_cast<float>(-2.0 / (k * total));
        coefficients[k + threadIdx.x] = static_cast<float>(ratio / (k * total));
    }
    ratio = block_total(ratio, sums);
    if (threadIdx.x == 0) *loss = static_cast<float>(1.0 - ratio / k);
}

// With ∂ₖ from the coefficients, through the softmax: dxₖ = pₖ(∂ₖ − Σⱼ pⱼ∂ⱼ)·dy. Shared memory: a tile of T, 2K floats.
template <class T>
__device__ void dice_backward(const float* dy, const float* coefficients, const T* x, const unsigned char* labels,
                              T* dx, int rows, int k, int tile_rows) {
    T* tile = shared_memory<T>();
    float* hit = reinterpret_cast<float*>(shared_memory<unsigned char>() + tile_bytes<T>(tile_rows * k));
    const float* every = hit + k;
    for (int i = threadIdx.x; i < 2 * k; i += blockDim.x) hit[i] = coefficients[i] * *dy;
    map_rows(x, dx, tile, rows, k, tile_rows, [&](int row, T* own) {
        const int label = dice_class(labels[row], k);
        const float max = row_max(own, k);
        float sum = 0.0f, dot = 0.0f;
        for (int i = 0; i < k; ++i) {
            const float e = expf(to_float(own[i]) - max);
            sum += e;
            dot += e * every[i];
        }
        const float inverse = 1.0f / sum;
        const float extra = expf(to_float(own[label]) - max) * inverse * hit[label];
        const float mean = dot * inverse + extra;
        for (int i = 0; i < k; ++i) {
            const float p = expf(to_float(own[i]) - max) * inverse;
            const float d = p * (every[i] - mean);
            own[i] = from_float<T>(i == label ? d + extra : d);
        }
    });
}

// sum = first + Σ weight · term; a null pointer has no term. One thread.
extern "C" __global__ void weighted_sum(float* sum, const float* first, const float* t0, float w0, const float* t1,
                                        float w1, const float* t2, float w2, const float* t3, float w3,
                                        const float* t4, float w4, const float* t5, float w5, const float* t6,
                                        float w6, const float* t7, float w7) {
    const float* terms[] = {t0, t1, t2, t3, t4, t5, t6, t7};
    const float weights[] = {w0, w1, w2, w3, w4, w5, w6, w7};
    float x = first ? *first : 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        if (terms[i]) x = __fadd_rn(x, __fmul_rn(weights[i], *terms[i]));
    }
    *sum = x;
}

// y = factor · x. One thread.
extern "C" __global__ void scale_number(const float* x, float* y, float factor) { *y = factor * *x; }

#define KERNELS(T, t)                                                                                                  \
    extern "C" __global__ void cross_entropy_##t(const T* x, const unsigned char* labels, double* partial, int rows,   \
                                                 int k, int tile_rows) {                                               \
        cross_entropy(x, labels, partial, rows, k, tile_rows);                                                         \
    }                                                                                                                  \
    extern "C" __global__ void cross_entropy_backward_##t(const float* dy, const float* pixels, const T* x,            \
                                                          const unsigned char* labels, T* dx, int rows, int k,         \
                                                          int tile_rows) {                                             \
        cross_entropy_backward(dy, pixels, x, labels, dx, rows, k, tile_rows);                                         \
    }                                                                                                                  \
    extern "C" __global__ void consistency_##t(const T* x, const T* target, const unsigned char* labels,               \
                                               double* partial, int rows, int k, int tile_rows) {                      \
        consistency(x, target, labels, partial, rows, k, tile_rows);                                                   \
    }                                                                                                                  \
    extern "C" __global__ void consistency_backward_##t(const float* dy, const float* pixels, const T* x,              \
                                                        const T* target, const unsigned char* labels, T* dx,           \
                                                        int rows, int k, int tile_rows) {                              \
        consistency_backward(dy, pixels, x, target, labels, dx, rows, k, tile_rows);                                   \
    }                                                                                                                  \
    extern "C" __global__ void dice_##t(const T* x, const unsigned char* labels, double* partial, int rows, int k,     \
                                        int tile_rows) {                                                               \
        dice(x, labels, partial, rows, k, tile_rows);                                                                  \
    }                                                                                                                  \
    extern "C" __global__ void dice_backward_##t(const float* dy, const float* coefficients, const T* x,               \
                                                 const unsigned char* labels, T* dx, int rows, int k, int tile_rows) { \
        dice_backward(dy, coefficients, x, labels, dx, rows, k, tile_rows);                                            \
    }
FOR_TYPES(KERNELS)
