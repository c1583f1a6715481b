// IEEE half precision: storage, and conversions that round to nearest, ties to even.
#pragma once

#ifdef __F16C__
inline unsigned short emulated_to_half(float f) {
    return f != f ? 0x7fff : _cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT);  // The device has one NaN.
}
inline float emulated_from_half(unsigned short h) { return _cvtsh_ss(h); }
#else
inline unsigned short emulated_to_half(float f) {
    unsigned x = __float_as_uint(f);
    const unsigned sign = x >> 16 & 0x8000u;
    x &= 0x7fffffffu;
    if (x > 0x7f800000u) return 0x7fff;                // The device has one NaN.
    if (x >= 0x477ff000u) return sign | 0x7c00u;       // 65520 and more
    // Below 2⁻¹⁴ the spacing is 2⁻²⁴, as that of floats from 0.5 on: the addition rounds.
    if (x < 0x38800000u) return sign | (__float_as_uint(__uint_as_float(x) + 0.5f) - 0x3f000000u);
    return sign | (x - 0x38000000u + 0xfffu + (x >> 13 & 1u)) >> 13;
}

inline float emulated_from_half(unsigned short h) {
    const unsigned sign = (h & 0x8000u) << 16, x = h & 0x7fffu;
    if (x >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (x & 0x3ffu) << 13);
    if (x < 0x400u) return __uint_as_float(sign | __float_as_uint(static_cast<float>(x) * 0x1p-24f));
    return __uint_as_float(sign | ((x << 13) + 0x38000000u));
}
#endif

struct __half {
    unsigned short bits;
    __half() = default;
    __half(float x) : bits(emulated_to_half(x)) {}
    operator float() const { return emulated_from_half(bits); }
};
struct alignas(4) __half2 { __half x, y; };
using half = __half;
using half2 = __half2;

inline __half __float2half_rn(float x) { return __half(x); }
inline __half __float2half(float x) { return __half(x); }
inline float __half2float(__half x) { return emulated_from_half(x.bits); }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline __half2 __float22half2_rn(float2 x) { return {__half(x.x), __half(x.y)}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline float2 __half22float2(__half2 x) { return {__half2float(x.x), __half2float(x.y)}; }
inline float __low2float(__half2 x) { return __half2float(x.x); }
inline float __high2float(__half2 x) { return __half2float(x.y); }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short bits) { __half x; x.bits = bits; return x; }
