// Copies of rows of numbers between places that are regular in three axes: channels side by side or apart, channels
// picked, a weight rearranged. Nothing is computed.
#include <common.cuh>

using u64 = unsigned long long;

// N numbers of a row for each thread: to[a·to_a + b·to_b + row·to_row + i] = from[a·from_a + b·from_b + row·from_row + i]
// for i below `width`, of which N is a divisor. Grid: `threads` = rows·width/N threads, b, a.
template <int N, class T>
__device__ void copy_rows(const T* from, T* to, int threads, int width, u64 from_start, u64 from_a, u64 from_b,
                          u64 from_row, u64 to_start, u64 to_a, u64 to_b, u64 to_row) {
    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x, per_row = width / N;
    if (thread >= static_cast<unsigned>(threads)) return;
    const u64 row = thread / per_row, i = static_cast<u64>(thread % per_row) * N, a = blockIdx.z, b = blockIdx.y;
    from += from_start + a * from_a + b * from_b + row * from_row + i;
    to += to_start + a * to_a + b * to_b + row * to_row + i;
    *reinterpret_cast<Pack<T, N>*>(to) = *reinterpret_cast<const Pack<T, N>*>(from);
}

// `lanes` is how many numbers a thread copies: those of 16 bytes, or 1.
#define KERNELS(T, t)                                                                                                  \
    extern "C" __global__ void copy_rows_##t(const T* from, T* to, int threads, int width, int lanes, u64 from_start,  \
                                             u64 from_a, u64 from_b, u64 from_row, u64 to_start, u64 to_a, u64 to_b,   \
                                             u64 to_row) {                                                             \
        if (lanes == 1) {                                                                                              \
            copy_rows<1>(from, to, threads, width, from_start, from_a, from_b, from_row, to_start, to_a, to_b,         \
                         to_row);                                                                                      \
        } else {                                                                                                       \
            copy_rows<kLanes<T>>(from, to, threads, width, from_start, from_a, from_b, from_row, to_start, to_a, to_b, \
                                 to_row);                                                                              \
        }                                                                                                              \
    }
FOR_TYPES(KERNELS)
