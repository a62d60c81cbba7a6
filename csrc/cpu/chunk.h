// The part of a row that a task handles, and a sum that has the same bits on every instruction set.
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

// The floats of one vector register. The vector type keeps sums in registers; compilers leave an array in memory.
#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
typedef float Vector __attribute__((vector_size(kWidth * sizeof(float)), aligned(alignof(float)), may_alias));
constexpr int kRunning = 32;                  // running sums of a Sum: two of the widest registers, to hide latency
constexpr int kVectors = kRunning / kWidth;

TF_HD Vector vector_at(const float* values, int v) { return reinterpret_cast<const Vector*>(values)[v]; }

// A sum over a chunk: kRunning running sums at any width, so all instruction sets give the same bits. Elements after
// the last whole group of kRunning go to `rest`.
struct Sum {
  Vector running[kVectors] = {};
  double rest = 0;

  TF_HD void add_squares(const float* values, int64_t size) {
    int64_t i = 0;
    for (; i + kRunning <= size; i += kRunning)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) running[v] += vector_at(values + i, v) * vector_at(values + i, v);
    for (; i < size; ++i) rest += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  }

  TF_HD double total() const {
    constexpr int kHalf = kRunning / 2;
    float lanes[kRunning];
    double sums[kHalf];
    memcpy(lanes, running, sizeof(lanes));
    for (int i = 0; i < kHalf; ++i) sums[i] = static_cast<double>(lanes[i]) + static_cast<double>(lanes[kHalf + i]);
#pragma GCC unroll 4
    for (int half = kHalf / 2; half; half /= 2)
      for (int i = 0; i < half; ++i) sums[i] += sums[half + i];
    return sums[0] + rest;
  }
};

TF_HD double sum_of_squares(const float* values, int64_t size) {
  Sum sum;
  sum.add_squares(values, size);
  return sum.total();
}

}  // namespace
}  // namespace tempflow::cpu
