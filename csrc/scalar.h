// Scalar maths shared by host and device: bit casts, fma with one rounding, narrow floats, guidance.
//
// Every rounding step is explicit and contraction is off (-ffp-contract=off, nvcc -fmad=false), so all targets with fma
// give the same bits.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define TF_HD __host__ __device__ __forceinline__
#else
#define TF_HD inline __attribute__((always_inline))
#endif

namespace tempflow {

TF_HD float as_float(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
TF_HD uint32_t as_bits(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }

// One rounding wherever the target has fma. x86 before 2013 rounds twice, which changes only the last bit.
TF_HD float fma1(float a, float b, float c) {
#if defined(__CUDA_ARCH__) || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

struct bf16 { uint16_t bits; };
struct fp16 { uint16_t bits; };

TF_HD float load(float v) { return v; }
TF_HD void store(float& out, float v) { out = v; }
TF_HD float load(bf16 v) { return as_float(static_cast<uint32_t>(v.bits) << 16); }

#if defined(__CUDA_ARCH__)

// The GPU's own conversions, one instruction each. Stores round to nearest even, as PyTorch does.
TF_HD float load(fp16 v) { float wide; asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v.bits)); return wide; }
TF_HD void store(bf16& out, float v) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(v)); }
TF_HD void store(fp16& out, float v) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(v)); }

#else

// A float has 23 bits of mantissa and an exponent biased by 127, a half 10 bits and a bias of 15.
constexpr uint32_t kHalfShift = 23 - 10;                             // aligns the mantissas
constexpr uint32_t kHalfBias = (127u - 15u) << 23;                   // turns a half's exponent into a float's
constexpr float kSmallestNormalHalf = 6.103515625e-05f;              // 2^-14

// Re-biases the exponent with integer adds; the float subtraction normalises a subnormal half. There are no branches,
// and the processor's flush-to-zero mode does not matter.
TF_HD float load(fp16 v) {
  const uint32_t magnitude = v.bits & 0x7fffu, wide = (magnitude << kHalfShift) + kHalfBias;
  const float subnormal = as_float(wide + (1u << 23)) - kSmallestNormalHalf;
  const uint32_t special = magnitude >= 0x7c00u ? wide + kHalfBias : wide;   // infinity, NaN: an exponent of all ones
  const uint32_t bits = magnitude < 0x0400u ? as_bits(subnormal) : special;
  return as_float(bits | (static_cast<uint32_t>(v.bits & 0x8000u) << 16));
}

// Round to nearest even, as PyTorch does: before the low bits are cut off, half a unit of the last kept place is added,
// less one if that place is even. Every NaN becomes the same quiet NaN.
TF_HD void store(bf16& out, float v) {
  const uint32_t bits = as_bits(v), rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
TF_HD void store(fp16& out, float v) {
  const uint32_t bits = as_bits(v), magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - kHalfBias + 0xfffu + ((magnitude >> kHalfShift) & 1u)) >> kHalfShift;
  const uint32_t subnormal = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u;   // 0.5 makes the sum round at 2^-24
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;           // NaN, or infinity
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;           // 2^-14
  const uint32_t half = magnitude >= 0x47800000u ? special : finite;              // 2^16
  out.bits = static_cast<uint16_t>(half | ((bits >> 16) & 0x8000u));
}

#endif

template <class T>
TF_HD float rounded(float v) {
  T narrow;
  store(narrow, v);
  return load(narrow);
}

// Classifier-free guidance: v_uncond + scale (v_cond - v_uncond).
TF_HD float guide(float cond, float uncond, float scale) { return fma1(scale, cond - uncond, uncond); }

}  // namespace tempflow
