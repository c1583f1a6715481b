// Which thread is running, as kernels see it, and what matrix instructions do.
#include <emulated.h>

namespace {
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

constexpr int kLanes = 32;

// mma.sync.aligned.m16n8k16.row.col. Words: 4 of d, 4 of a, 2 of b.
template <class T> void multiply(unsigned* const* words) {
    float a[16][16], b[16][8], d[16][8];
    for (int lane = 0; lane < kLanes; ++lane) {
        const int group = lane / 4, member = lane % 4 * 2;
        T pairs[6][2];
        __builtin_memcpy(pairs, words[lane] + 4, sizeof pairs);
        for (int i = 0; i < 2; ++i) {
            for (int j = 0; j < 2; ++j) {
                a[group + 8 * i][member + j] = pairs[i][j];
                a[group + 8 * i][member + 8 + j] = pairs[2 + i][j];
                b[member + 8 * i + j][group] = pairs[4 + i][j];
            }
            __builtin_memcpy(&d[group + 8 * i][member], words[lane] + 2 * i, 8);
        }
    }
    for (int row = 0; row < 16; ++row) {
        for (int k = 0; k < 16; ++k) {
            for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
        }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
        for (int i = 0; i < 2; ++i) __builtin_memcpy(words[lane] + 2 * i, &d[lane / 4 + 8 * i][lane % 4 * 2], 8);
    }
}

}  // namespace

extern "C" {
__thread EmulatedThread emulated_thread;

EmulatedThread* emulated_thread_address() { return &emulated_thread; }

void emulated_mma_f16(unsigned* const* words) { multiply<__half>(words); }
void emulated_mma_bf16(unsigned* const* words) { multiply<__nv_bfloat16>(words); }

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
