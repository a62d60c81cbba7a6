// Scalar maths shared by host and device: bit casts, one-rounding fma, narrow floats, guidance.
//
// Every rounding step is spelled out and contraction is off (-ffp-contract=off, nvcc -fmad=false), so all targets that
// have fma give the same bits.
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

// One rounding wherever the target has fma; x86 before 2013 rounds twice (differences in the last bit only).
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

// The GPU's own conversions, one instruction each; stores round to nearest even, as PyTorch does.
TF_HD float load(fp16 v) { float wide; asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v.bits)); return wide; }
TF_HD void store(bf16& out, float v) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(v)); }
TF_HD void store(fp16& out, float v) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(v)); }

#else

// Re-biases the exponent with integer adds; a subnormal half becomes normal by the float subtraction. No branches, and
// independent of the processor's flush-to-zero mode.
TF_HD float load(fp16 v) {
  const uint32_t magnitude = v.bits & 0x7fffu, wide = (magnitude << 13) + (112u << 23);
  const float subnormal = as_float(wide + (1u << 23)) - 6.103515625e-05f;               // 2^-14
  const uint32_t special = magnitude >= 0x7c00u ? wide + (112u << 23) : wide;           // infinity, nan
  const uint32_t bits = magnitude < 0x0400u ? as_bits(subnormal) : special;
  return as_float(bits | (static_cast<uint32_t>(v.bits & 0x8000u) << 16));
}

// Round to nearest even, as PyTorch does.
TF_HD void store(bf16& out, float v) {
  const uint32_t bits = as_bits(v), rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
TF_HD void store(fp16& out, float v) {
  const uint32_t bits = as_bits(v), magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t subnormal = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u;         // the sum rounds at 2^-24
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;                 // 2^-14
  const uint32_t half = magnitude >= 0x47800000u ? special : finite;                    // 2^16
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
