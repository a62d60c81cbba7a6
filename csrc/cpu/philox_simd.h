// Philox words for consecutive quads, in the order that Box-Muller reads: words 0 and 2 of quad first + i are
// radius[2 i] and radius[2 i + 1], words 1 and 3 are angle[2 i] and angle[2 i + 1].
//
// Compilers do not find the fast form of the 32 x 32 -> 64 bit products, so it is written with intrinsics: words are in
// 64-bit lanes whose upper halves may hold junk (the multiply reads only the lower halves), and a round is two
// multiplies, two shifts and two three-way xors. Half of rounds 1 and 2 is constant along a row and therefore scalar.
// Everything else in the kernels is plain loops.
#pragma once
#include "../noise.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace tempflow::cpu {
namespace {

constexpr int kQuadStep = 32;   // the number of quads is a multiple of this: kChains registers of the widest kWordLanes

#if defined(__AVX512F__)
using Words = __m512i;
constexpr int kWordLanes = 8;
TF_HD Words splat(uint64_t v) { return _mm512_set1_epi64(static_cast<int64_t>(v)); }
TF_HD Words iota() { return _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0); }
TF_HD Words add(Words a, Words b) { return _mm512_add_epi64(a, b); }
TF_HD Words multiply(Words a, Words b) { return _mm512_mul_epu32(a, b); }
TF_HD Words high(Words a) { return _mm512_srli_epi64(a, 32); }
TF_HD Words xor2(Words a, Words b) { return _mm512_xor_si512(a, b); }
constexpr int kXor = 0x96;   // the truth table of a ^ b ^ c
TF_HD Words xor3(Words a, Words b, Words c) { return _mm512_ternarylogic_epi64(a, b, c, kXor); }
// In every 64-bit lane, the lower (upper) half of a, then that of b.
TF_HD Words lows(Words a, Words b) { return _mm512_mask_shuffle_epi32(a, 0xAAAA, b, _MM_PERM_CCAA); }
TF_HD Words highs(Words a, Words b) { return _mm512_mask_shuffle_epi32(b, 0x5555, a, _MM_PERM_DDBB); }
TF_HD void put(uint32_t* p, Words a) { _mm512_storeu_si512(p, a); }
#elif defined(__AVX2__)
using Words = __m256i;
constexpr int kWordLanes = 4;
TF_HD Words splat(uint64_t v) { return _mm256_set1_epi64x(static_cast<int64_t>(v)); }
TF_HD Words iota() { return _mm256_set_epi64x(3, 2, 1, 0); }
TF_HD Words add(Words a, Words b) { return _mm256_add_epi64(a, b); }
TF_HD Words multiply(Words a, Words b) { return _mm256_mul_epu32(a, b); }
TF_HD Words high(Words a) { return _mm256_srli_epi64(a, 32); }
TF_HD Words xor2(Words a, Words b) { return _mm256_xor_si256(a, b); }
TF_HD Words xor3(Words a, Words b, Words c) { return xor2(xor2(a, b), c); }
TF_HD Words lows(Words a, Words b) { return _mm256_blend_epi32(a, _mm256_slli_epi64(b, 32), 0xAA); }
TF_HD Words highs(Words a, Words b) { return _mm256_blend_epi32(high(a), b, 0xAA); }
TF_HD void put(uint32_t* p, Words a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
#endif

#if defined(__AVX2__)
void philox_words(uint32_t* __restrict radius, uint32_t* __restrict angle, uint32_t first, int quads,
                  const Counter& counter) {
  constexpr int kChains = 4;    // independent chains of products, to hide the latency of the multiply
  const Words multiply0 = splat(kMultiply0), multiply1 = splat(kMultiply1);
  // The scalar halves: c * multiply1 of round 1 gives a and b, a * multiply0 of round 2 gives parts of c and d.
  uint32_t k0 = counter.key_low, k1 = counter.key_high;
  const uint32_t a1 = multiply_high(kMultiply1, counter.id_low) ^ counter.branch_step ^ k0, b1 = kMultiply1 * counter.id_low;
  const Words mix_c1 = splat(counter.id_high ^ k1), mix_a2 = splat(b1 ^ (k0 + kWeyl0));
  const Words mix_c2 = splat(multiply_high(kMultiply0, a1) ^ (k1 + kWeyl1)), d2 = splat(kMultiply0 * a1);
  k0 += 2 * kWeyl0;
  k1 += 2 * kWeyl1;
  for (int i = 0; i < quads; i += kChains * kWordLanes) {
    Words a[kChains], b[kChains], c[kChains], d[kChains];
#pragma GCC unroll 4
    for (int u = 0; u < kChains; ++u) {
      const Words product0 = multiply(add(iota(), splat(first + static_cast<uint32_t>(i + u * kWordLanes))), multiply0);
      b[u] = multiply(xor2(high(product0), mix_c1), multiply1);
      a[u] = xor2(high(b[u]), mix_a2);
      c[u] = xor2(product0, mix_c2);
      d[u] = d2;
    }
    uint32_t key0 = k0, key1 = k1;
#pragma GCC unroll 7
    for (int round = 3; round < kRounds; ++round, key0 += kWeyl0, key1 += kWeyl1) {
      const Words mix0 = splat(key0), mix1 = splat(key1);
#pragma GCC unroll 4
      for (int u = 0; u < kChains; ++u) {
        const Words product0 = multiply(a[u], multiply0), product1 = multiply(c[u], multiply1);
        a[u] = xor3(high(product1), b[u], mix0);
        b[u] = product1;
        c[u] = xor3(high(product0), d[u], mix1);
        d[u] = product0;
      }
    }
    // The last round works on pairs of words, as they are stored.
    const Words mix = splat(static_cast<uint64_t>(key1) << 32 | key0);
#pragma GCC unroll 4
    for (int u = 0; u < kChains; ++u) {
      const Words product0 = multiply(a[u], multiply0), product1 = multiply(c[u], multiply1);
      put(radius + 2 * (i + u * kWordLanes), xor3(highs(product1, product0), lows(b[u], d[u]), mix));
      put(angle + 2 * (i + u * kWordLanes), lows(product1, product0));
    }
  }
}
#else
void philox_words(uint32_t* __restrict radius, uint32_t* __restrict angle, uint32_t first, int quads,
                  const Counter& counter) {
#pragma omp simd
  for (int i = 0; i < quads; ++i) {
    uint32_t a = first + static_cast<uint32_t>(i), b = counter.branch_step, c = counter.id_low, d = counter.id_high;
    philox(a, b, c, d, counter.key_low, counter.key_high);
    radius[2 * i] = a;
    angle[2 * i] = b;
    radius[2 * i + 1] = c;
    angle[2 * i + 1] = d;
  }
}
#endif

}  // namespace
}  // namespace tempflow::cpu
