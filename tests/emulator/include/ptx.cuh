// The functions of kernels/ptx.cuh without PTX: the emulator does what the instructions do.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

constexpr unsigned emulated_mma(__half) { return kEmulatedMmaF16; }
constexpr unsigned emulated_mma(__nv_bfloat16) { return kEmulatedMmaBf16; }

// d += a·b for a 16×16, b 16×8 and d 16×8, spread over a warp as mma.sync.aligned.m16n8k16.row.col has them.
template <class T>
inline void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], T type) {
    alignas(16) unsigned words[10];
    __builtin_memcpy(words, a, 16);
    __builtin_memcpy(words + 4, d, 16);
    __builtin_memcpy(words + 8, b, 8);
    emulated_warp(emulated_mma(type) | 1u << 8, 0xffffffffu, words);
    __builtin_memcpy(d, words + 4, 16);
}

// Two such products side by side.
template <class T>
inline void mma_m16n16k16(float (&left)[4], float (&right)[4], const unsigned (&a)[4], const unsigned (&b)[2][2],
                          T type) {
    alignas(16) unsigned words[16];
    __builtin_memcpy(words, a, 16);
    __builtin_memcpy(words + 4, left, 16);
    __builtin_memcpy(words + 8, right, 16);
    __builtin_memcpy(words + 12, b, 16);
    emulated_warp(emulated_mma(type) | 2u << 8, 0xffffffffu, words);
    __builtin_memcpy(left, words + 4, 16);
    __builtin_memcpy(right, words + 8, 16);
}

// Four 8×8 matrices of 16-bit numbers; lane i gives the address of row i % 8 of matrix i / 8.
inline void emulated_ldmatrix(unsigned kind, unsigned (&r)[4], const void* row) {
    unsigned words[4] = {};
    __builtin_memcpy(words, &row, sizeof row);
    emulated_warp(kind, 0xffffffffu, words);
    __builtin_memcpy(r, words, 16);
}
inline void ldmatrix_x4(unsigned (&r)[4], const void* shared_row) {
    emulated_ldmatrix(kEmulatedMatrices, r, shared_row);
}
inline void ldmatrix_x4_trans(unsigned (&r)[4], const void* shared_row) {
    emulated_ldmatrix(kEmulatedTransposed, r, shared_row);
}

// 16 bytes, or zeros where not `valid`; they arrive by the time cp_async_wait says so, and not before.
inline void cp_async_16(void* shared, const void* global, bool valid) { emulated_copy_async(shared, global, valid); }
inline void cp_async_commit() { emulated_copy_commit(); }
// Waits for all groups but the latest N.
template <int N> inline void cp_async_wait() { emulated_copy_wait(N); }

// 2, 4, 8 or 16 bytes, or zeros where not `valid`: one access of that size.
template <class Word, int N> inline void load_words(Word (&words)[N], const void* global, bool valid) {
    struct alignas(sizeof(Word) * N) All { Word words[N]; } all = {};
    if (valid) all = *static_cast<const All*>(global);
    __builtin_memcpy(words, all.words, sizeof words);
}

// 2^x, zero below 2⁻¹²⁶.
inline float exp2_approx(float x) { return x < -126.0f ? 0.0f : ::exp2f(x); }

// 1/x, zero above 2¹²⁶.
inline float reciprocal_approx(float x) { return ::fabsf(x) > 0x1p126f ? ::copysignf(0.0f, x) : 1.0f / x; }
