// What a kernel's file needs from outside of its unnamed namespace: the standard headers, and the emulator's functions.
#pragma once

#include <algorithm>
#include <array>
#include <cassert>
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __F16C__
#include <immintrin.h>
#endif

#ifndef EMULATED_GLOBAL
#define EMULATED_GLOBAL
#endif

struct EmulatedDim { unsigned x, y, z; };

// The thread that is running; written by the emulator whenever it resumes one.
struct EmulatedThread {
    EmulatedDim thread, block, block_dim, grid_dim;
    unsigned char* shared;
    unsigned lane;
};

extern "C" {
extern __thread EmulatedThread emulated_thread;

void emulated_block_barrier();
// Waits until every lane of `mask` is here with an operation of the same kind, which the last one of them does:
// it reads and replaces the words of each. The kinds are those of collective.rs.
void emulated_warp(unsigned kind, unsigned mask, unsigned* words);
unsigned emulated_atomic_add(unsigned* to, unsigned x);
void emulated_copy_async(void* shared, const void* global, int valid);
void emulated_copy_commit();
void emulated_copy_wait(unsigned groups);
// memcpy and memset with checks.
void* __tsan_memcpy(void* to, const void* from, size_t bytes);
void* __tsan_memset(void* to, int byte, size_t bytes);
}

// One kernel: its name, the function that takes what cuLaunchKernel takes, and a letter for each parameter.
struct EmulatedEntry {
    const char* name;
    void (*call)(void** args);
    const char* parameters;
};

namespace {

template <class P> constexpr char emulated_kind() {
    constexpr bool whole = std::is_integral<P>::value && !std::is_same<P, bool>::value;
    static_assert(std::is_pointer<P>::value || std::is_same<P, float>::value ||
                      (whole && (sizeof(P) == 4 || sizeof(P) == 8)),
                  "a kernel's parameters are pointers, int, unsigned long long and float");
    return std::is_pointer<P>::value ? 'p' : !whole ? 'f' : sizeof(P) == 4 ? 'i' : 'u';
}

template <auto Kernel> struct EmulatedCall;
template <class... P, void (*Kernel)(P...)> struct EmulatedCall<Kernel> {
    template <size_t... I> static void call(void** args, std::index_sequence<I...>) {
        (void)args;
        Kernel(*static_cast<typename std::remove_const<P>::type*>(args[I])...);
    }
    static void call(void** args) { call(args, std::index_sequence_for<P...>{}); }
    static constexpr char parameters[] = {emulated_kind<P>()..., 0};
};

template <auto Kernel> constexpr EmulatedEntry emulated_entry(const char* name) {
    return {name, &EmulatedCall<Kernel>::call, EmulatedCall<Kernel>::parameters};
}

}  // namespace
