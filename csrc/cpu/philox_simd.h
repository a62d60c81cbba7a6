// Philox words for a run of quads: out[j * quads + i] is word j of quad first + i.
//
// Compilers do not find the fast form of the 32 x 32 -> 64 bit products by themselves, so it is written with intrinsics:
// words live in 64-bit lanes whose upper halves may hold junk (the multiply reads lower halves only), and a round is two
// multiplies, two shifts and two three-way xors. Everything else in the kernels is plain loops.
#pragma once
#include "../noise.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace tempflow::cpu {
namespace {

constexpr int kQuadStep = 32;   // the number of quads is a multiple of this

#if defined(__AVX512F__)
using Words = __m512i;
constexpr int kWordLanes = 8;
TF_HD Words splat(uint32_t v) { return _mm512_set1_epi64(v); }
TF_HD Words iota() { return _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0); }
TF_HD Words add(Words a, Words b) { return _mm512_add_epi64(a, b); }
TF_HD Words multiply(Words a, Words b) { return _mm512_mul_epu32(a, b); }
TF_HD Words high(Words a) { return _mm512_srli_epi64(a, 32); }
TF_HD Words xor3(Words a, Words b, Words c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
TF_HD void put(uint32_t* p, Words a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi64_epi32(a)); }
#elif defined(__AVX2__)
using Words = __m256i;
constexpr int kWordLanes = 4;
TF_HD Words splat(uint32_t v) { return _mm256_set1_epi64x(v); }
TF_HD Words iota() { return _mm256_set_epi64x(3, 2, 1, 0); }
TF_HD Words add(Words a, Words b) { return _mm256_add_epi64(a, b); }
TF_HD Words multiply(Words a, Words b) { return _mm256_mul_epu32(a, b); }
TF_HD Words high(Words a) { return _mm256_srli_epi64(a, 32); }
TF_HD Words xor3(Words a, Words b, Words c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
TF_HD void put(uint32_t* p, Words a) {
  const __m256i low = _mm256_permutevar8x32_epi32(a, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(low));
}
#endif

#if defined(__AVX2__)
void philox_words(uint32_t* __restrict out, uint32_t first, int quads, const Counter& counter) {
  constexpr int kChains = 4;    // independent, to hide the latency of the multiply
  const Words multiply0 = splat(kMultiply0), multiply1 = splat(kMultiply1);
  for (int i = 0; i < quads; i += kChains * kWordLanes) {
    Words a[kChains], b[kChains], c[kChains], d[kChains];
    for (int u = 0; u < kChains; ++u) {
      a[u] = add(iota(), splat(first + static_cast<uint32_t>(i + u * kWordLanes)));
      b[u] = splat(counter.branch_step);
      c[u] = splat(counter.id_low);
      d[u] = splat(counter.id_high);
    }
    uint32_t k0 = counter.key_low, k1 = counter.key_high;
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round, k0 += kWeyl0, k1 += kWeyl1) {
      const Words key0 = splat(k0), key1 = splat(k1);
#pragma GCC unroll 4
      for (int u = 0; u < kChains; ++u) {
        const Words product0 = multiply(a[u], multiply0), product1 = multiply(c[u], multiply1);
        a[u] = xor3(high(product1), b[u], key0);
        b[u] = product1;
        c[u] = xor3(high(product0), d[u], key1);
        d[u] = product0;
      }
    }
    for (int u = 0; u < kChains; ++u) {
      uint32_t* o = out + i + u * kWordLanes;
      put(o, a[u]);
      put(o + quads, b[u]);
      put(o + 2 * quads, c[u]);
      put(o + 3 * quads, d[u]);
    }
  }
}
#else
void philox_words(uint32_t* __restrict out, uint32_t first, int quads, const Counter& counter) {
#pragma omp simd
  for (int i = 0; i < quads; ++i) {
    uint32_t a = first + static_cast<uint32_t>(i), b = counter.branch_step, c = counter.id_low, d = counter.id_high;
    philox(a, b, c, d, counter.key_low, counter.key_high);
    out[i] = a;
    out[quads + i] = b;
    out[2 * quads + i] = c;
    out[3 * quads + i] = d;
  }
}
#endif

}  // namespace
}  // namespace tempflow::cpu
