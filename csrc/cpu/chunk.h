// What a task sees of its row, and a sum that has the same bits on every instruction set.
#pragma once
#include "kernels.h"
#include "philox_simd.h"

namespace tempflow::cpu {
namespace {

struct Chunk {
  int64_t row, index, first, size;
  Chunk(int64_t task, int64_t d) {
    const int64_t chunks = chunks_of(d);
    row = task / chunks;
    index = task % chunks;
    first = index * kChunk;
    size = d - first < kChunk ? d - first : kChunk;
  }
  template <class T>
  const T* in(const Rows& rows) const {
    return rows.data ? static_cast<const T*>(rows.data) + row * rows.stride + first : nullptr;
  }
};

// One vector register; the vector type keeps sums in registers where compilers leave an array of floats in memory.
#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
typedef float Vector __attribute__((vector_size(kWidth * sizeof(float)), aligned(alignof(float)), may_alias));
constexpr int kRunning = 32, kVectors = kRunning / kWidth;

// The sum of a (b + c) over a chunk: 32 running sums whatever the width, so all instruction sets give the same bits.
// c may be null.
TF_HD double dot(const float* a, const float* b, const float* c, int64_t size) {
  Vector sums[kVectors] = {};
  int64_t i = 0;
  for (; i + kRunning <= size; i += kRunning)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      Vector factor = reinterpret_cast<const Vector*>(b + i)[v];
      if (c) factor += reinterpret_cast<const Vector*>(c + i)[v];
      sums[v] += reinterpret_cast<const Vector*>(a + i)[v] * factor;
    }
  float running[kRunning];
  memcpy(running, sums, sizeof(running));
  double sum = 0;
  for (int lane = 0; lane < kRunning; ++lane) sum += static_cast<double>(running[lane]);
  for (; i < size; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(c ? b[i] + c[i] : b[i]);
  return sum;
}

TF_HD double sum_of_squares(const float* a, int64_t size) { return dot(a, a, nullptr, size); }

}  // namespace
}  // namespace tempflow::cpu
