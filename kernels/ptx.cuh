// Everything that is written in PTX. The emulator of the tests has a file of this name with the same functions.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

// d += a·b for a 16×16, b 16×8 and d 16×8, spread over a warp as the PTX manual draws mma.m16n8k16; the last
// argument says what the numbers in a and b are. Every lane has to come here, as to the loads below.
__device__ inline void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], __half) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ inline void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], __nv_bfloat16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Two such products side by side: the first 8 columns of b and d, then the others.
template <class T>
__device__ inline void mma_m16n16k16(float (&left)[4], float (&right)[4], const unsigned (&a)[4],
                                     const unsigned (&b)[2][2], T type) {
    mma_m16n8k16(left, a, b[0], type);
    mma_m16n8k16(right, a, b[1], type);
}

__device__ inline unsigned shared_address(const void* shared) {
    return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

// Loads four 8×8 matrices of 16-bit numbers from shared memory. Lane i gives the address of row i % 8 of matrix i / 8,
// a multiple of 16, and gets in r[m] the numbers (i / 4, i % 4 · 2) and the next of matrix m, or of its transpose.
__device__ inline void ldmatrix_x4(unsigned (&r)[4], const void* shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
}
__device__ inline void ldmatrix_x4_trans(unsigned (&r)[4], const void* shared_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
}

// Starts a copy of 16 bytes, or writes zeros where not `valid`; both addresses are multiples of 16. `global` is not
// read where not `valid`, but has to be an address of global memory.
__device__ inline void cp_async_16(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
                 : "memory");
}
// Closes a group: the copies since the last one.
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for all groups of this thread but the latest N; what other threads have copied needs a barrier after it.
template <int N> __device__ inline void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Loads 2, 4, 8 or 16 bytes of global memory that the kernel does not write, or zeros where not `valid`; `global` is
// not read then. There is neither a branch nor a choice between two values, so nothing waits for the memory until the
// words are used.
__device__ inline void load_words(unsigned short (&words)[1], const void* global, bool valid) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %2, 0; mov.b16 %0, 0; @p ld.global.nc.b16 %0, [%1];}"
                 : "=&h"(words[0])
                 : "l"(__cvta_generic_to_global(global)), "r"(static_cast<int>(valid)));
}
__device__ inline void load_words(unsigned (&words)[1], const void* global, bool valid) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %2, 0; mov.b32 %0, 0; @p ld.global.nc.b32 %0, [%1];}"
                 : "=&r"(words[0])
                 : "l"(__cvta_generic_to_global(global)), "r"(static_cast<int>(valid)));
}
__device__ inline void load_words(unsigned (&words)[2], const void* global, bool valid) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %3, 0; mov.b32 %0, 0; mov.b32 %1, 0; @p ld.global.nc.v2.b32 {%0, %1}, [%2];}"
        : "=&r"(words[0]), "=&r"(words[1])
        : "l"(__cvta_generic_to_global(global)), "r"(static_cast<int>(valid)));
}
__device__ inline void load_words(unsigned (&words)[4], const void* global, bool valid) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0; "
        "@p ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];}"
        : "=&r"(words[0]), "=&r"(words[1]), "=&r"(words[2]), "=&r"(words[3])
        : "l"(__cvta_generic_to_global(global)), "r"(static_cast<int>(valid)));
}

// 2^x to about 2 units in the last place; numbers below 2⁻¹²⁶ are zeros.
__device__ inline float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1/x to 1 unit in the last place; zero for x above 2¹²⁶. Shorter than __fdividef, which also scales its arguments.
__device__ inline float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
