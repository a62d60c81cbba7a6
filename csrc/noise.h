// Counter-based N(0, 1) noise: Philox4x32-10 (Salmon et al., SC11) and Box-Muller. Every target with fma gives the
// same bits.
//
//   key     = seed low, seed high
//   counter = element / 4,  branch | step << 16,  trajectory id low,  trajectory id high
//
// Output word `element % 4` belongs to the element. tempflow_fast/ops/noise.py is the same function in PyTorch.
#pragma once
#include "scalar.h"

namespace tempflow {

constexpr uint32_t kInitialNoiseStep = 0xffff;   // no schedule has a step of this number
constexpr int64_t kMaxBranches = 0x10000;        // a branch has 16 bits of the counter

struct Counter {                                 // all but the element: constant along a row
  uint32_t branch_step, id_low, id_high, key_low, key_high;
};

TF_HD Counter make_counter(uint64_t seed, uint64_t trajectory_id, uint32_t branch, uint32_t step) {
  return {branch | step << 16, static_cast<uint32_t>(trajectory_id), static_cast<uint32_t>(trajectory_id >> 32),
          static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
}

// The constants of Philox4x32-10 as published: rounds, multipliers, and what the key grows by in every round.
constexpr int kRounds = 10;
constexpr uint32_t kMultiply0 = 0xD2511F53u, kMultiply1 = 0xCD9E8D57u, kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;

TF_HD uint32_t multiply_high(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  return __umulhi(a, b);
#else
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
#endif
}

TF_HD void philox(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint32_t k0, uint32_t k1) {
#if defined(__CUDACC__)
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < kRounds; ++round) {
    const uint32_t high0 = multiply_high(kMultiply0, c0), low0 = kMultiply0 * c0;
    const uint32_t high1 = multiply_high(kMultiply1, c2), low1 = kMultiply1 * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
}

constexpr uint32_t kSqrtHalfBits = 0x3f3504f3u;                      // the bits of sqrt(1/2) as a float
constexpr float kLn2 = 0.693147180559945f;
constexpr float kTwoPiOver2To32 = 1.4629180792671596e-9f;            // radians per unit of a 32-bit word
constexpr float k2ToMinus31 = 4.656612873077393e-10f, k2ToMinus32 = 2.3283064365386963e-10f;

// -2 ln u for u in (0, 1]: u = 2^e (1 + m) with 1 + m in [sqrt(1/2), sqrt(2)), and the polynomial of Cephes's logf for
// ln(1 + m). It computes 2 ln u, which the last fma negates: a factor of 2 in the coefficients is exact and free.
TF_HD float minus_two_log(float u) {
  const uint32_t bits = as_bits(u) - kSqrtHalfBits;
  const uint32_t exponent = bits & 0xff800000u;                      // 2^23 e
  const float e = static_cast<float>(static_cast<int32_t>(exponent));
  const float m = as_float(as_bits(u) - exponent) - 1.0f;
  const float m2 = m * m;
  float p = fma1(2 * 7.0376836292e-2f, m, 2 * -1.1514610310e-1f);
  p = fma1(p, m, 2 * 1.1676998740e-1f);
  p = fma1(p, m, 2 * -1.2420140846e-1f);
  p = fma1(p, m, 2 * 1.4249322787e-1f);
  p = fma1(p, m, 2 * -1.6668057665e-1f);
  p = fma1(p, m, 2 * 2.0000714765e-1f);
  p = fma1(p, m, 2 * -2.4999993993e-1f);
  p = fma1(p, m, 2 * 3.3333331174e-1f);
  return fma1(-e, kLn2 / (1 << 22), -fma1(2.0f, m, fma1(m * m2, p, -m2)));   // 2 ln 2 / 2^23, since e holds 2^23 e
}

// sin and cos of 2 pi t / 2^32. The nearest quarter turn is subtracted in integers, without error; the rest, within
// pi / 4 of 0, goes into the polynomials of Cephes's sinf and cosf.
TF_HD void sincos_turn(uint32_t t, float& sine, float& cosine) {
  const float f = static_cast<float>(static_cast<int32_t>(t << 2)) * (kTwoPiOver2To32 / 4);
  const float f2 = f * f;
  float s = fma1(-1.9515295891e-4f, f2, 8.3321608736e-3f);
  s = fma1(s, f2, -1.6666654611e-1f);
  s = fma1(s * f2, f, f);
  float c = fma1(2.443315711809948e-5f, f2, -1.388731625493765e-3f);
  c = fma1(c, f2, 4.166664568298827e-2f);
  c = fma1(c * f2, f2, fma1(-0.5f, f2, 1.0f));
  const uint32_t quarter = t + 0x20000000u;                          // rounded; its two highest bits count quarters
  const bool odd = quarter & 0x40000000u;
  sine = as_float(as_bits(odd ? c : s) ^ (quarter & 0x80000000u));
  cosine = as_float(as_bits(odd ? s : c) ^ ((quarter + 0x40000000u) & 0x80000000u));
}

TF_HD void box_muller(uint32_t radius_word, uint32_t angle_word, float& n0, float& n1) {
  // 31 bits make the conversion a signed one, which is one instruction everywhere; the added half unit keeps u above 0.
  const float u = fma1(static_cast<float>(static_cast<int32_t>(radius_word >> 1)), k2ToMinus31, k2ToMinus32);
  const float radius = sqrtf(minus_two_log(u));
  float sine, cosine;
  sincos_turn(angle_word, sine, cosine);
  n0 = radius * cosine;
  n1 = radius * sine;
}

// The normals of elements 4 quad .. 4 quad + 3.
TF_HD void normal4(uint32_t quad, const Counter& counter, float (&n)[4]) {
  uint32_t a = quad, b = counter.branch_step, c = counter.id_low, d = counter.id_high;
  philox(a, b, c, d, counter.key_low, counter.key_high);
  box_muller(a, b, n[0], n[1]);
  box_muller(c, d, n[2], n[3]);
}

}  // namespace tempflow
