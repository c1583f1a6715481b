// Which thread is running, as kernels see it, and what matrix instructions do.
#include <emulated.h>

namespace {
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

constexpr int kLanes = 32;

// A row of 8 numbers.
typedef float Row __attribute__((vector_size(32)));

inline void convert(const __half* from, float* to, int n) {
#ifdef __F16C__
    for (int i = 0; i < n; i += 8) {
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
    }
#else
    for (int i = 0; i < n; ++i) to[i] = from[i];
#endif
}
inline void convert(const __nv_bfloat16* from, float* to, int n) {
    for (int i = 0; i < n; ++i) to[i] = from[i];
}

// mma.sync.aligned.m16n8k16.row.col with one factor a. Words: 4 of a, 4 of d for each product, 2 of b for each.
template <class T> void multiply(unsigned* const* words, unsigned products) {
    T narrow_a[16][16];
    for (int lane = 0; lane < kLanes; ++lane) {
        for (int i = 0; i < 4; ++i) {
            const int row = lane / 4 + i % 2 * 8, column = lane % 4 * 2 + i / 2 * 8;
            __builtin_memcpy(&narrow_a[row][column], words[lane] + i, 4);
        }
    }
    float a[16][16];
    convert(narrow_a[0], a[0], 256);
    for (unsigned product = 0; product < products; ++product) {
        const unsigned at_d = 4 + 4 * product, at_b = 4 + 4 * products + 2 * product;
        T narrow_b[16][8];
        float d[16][8];
        for (int lane = 0; lane < kLanes; ++lane) {
            const int group = lane / 4, member = lane % 4 * 2;
            for (int i = 0; i < 2; ++i) {
                T pair[2];
                __builtin_memcpy(pair, words[lane] + at_b + i, 4);
                narrow_b[member + 8 * i][group] = pair[0];
                narrow_b[member + 8 * i + 1][group] = pair[1];
                __builtin_memcpy(&d[group + 8 * i][member], words[lane] + at_d + 2 * i, 8);
            }
        }
        Row b[16];
        convert(narrow_b[0], reinterpret_cast<float*>(b), 128);
        for (int row = 0; row < 16; row += 4) {
            Row sums[4];
            __builtin_memcpy(sums, d[row], sizeof sums);
            for (int k = 0; k < 16; ++k) {
                for (int i = 0; i < 4; ++i) sums[i] += a[row + i][k] * b[k];
            }
            __builtin_memcpy(d[row], sums, sizeof sums);
        }
        for (int lane = 0; lane < kLanes; ++lane) {
            for (int i = 0; i < 2; ++i) {
                __builtin_memcpy(words[lane] + at_d + 2 * i, &d[lane / 4 + 8 * i][lane % 4 * 2], 8);
            }
        }
    }
}

}  // namespace

extern "C" {
__thread EmulatedThread emulated_thread;

EmulatedThread* emulated_thread_address() { return &emulated_thread; }

void emulated_mma_f16(unsigned* const* words, unsigned products) { multiply<__half>(words, products); }
void emulated_mma_bf16(unsigned* const* words, unsigned products) { multiply<__nv_bfloat16>(words, products); }

// ldmatrix.x4. Words: before, the address of a row of 8 numbers of 16 bits; after, a register of each matrix.
void emulated_ldmatrix(unsigned* const* words, bool transposed) {
    unsigned short rows[kLanes][8];
    for (int lane = 0; lane < kLanes; ++lane) {
        const void* row;
        __builtin_memcpy(&row, words[lane], sizeof row);
        __builtin_memcpy(rows[lane], row, sizeof rows[lane]);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
        const int row = lane / 4, column = lane % 4 * 2;
        for (int matrix = 0; matrix < 4; ++matrix) {
            const auto& numbers = rows + 8 * matrix;
            const unsigned short pair[2] = {transposed ? numbers[column][row] : numbers[row][column],
                                            transposed ? numbers[column + 1][row] : numbers[row][column + 1]};
            __builtin_memcpy(words[lane] + matrix, pair, sizeof pair);
        }
    }
}
}
