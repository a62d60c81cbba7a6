// Building blocks of the kernels: the elements of a thread, sums over a block, the step of a row.
//
// Rules for kernels: every thread reaches every barrier (mask work, never return early); shuffles take the full mask;
// what exists once per row is computed in double by few threads, what exists once per element in float.
#pragma once
#include <type_traits>

#include "../noise.h"
#include "launch.h"

namespace tempflow::cuda {

template <class T>
constexpr int kLanes = kAccess / sizeof(T);

// kLanes elements as they are in memory.
struct alignas(kAccess) [[gnu::may_alias]] Pack { uint32_t words[kAccess / 4]; };

// One access of 128 bits; nvcc turns an assignment into four. No kernel reads back what it writes this way.
__device__ __forceinline__ void write_pack(void* to, const Pack& pack) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(pack.words[0]),
               "r"(pack.words[1]), "r"(pack.words[2]), "r"(pack.words[3]));
#else
  *static_cast<Pack*>(to) = pack;
#endif
}

template <class T>
__device__ __forceinline__ T element(const Pack& pack, int i) {
  if constexpr (sizeof(T) == 4) return as_float(pack.words[i]);
  else return T{static_cast<uint16_t>(pack.words[i / 2] >> (16 * (i % 2)))};
}

// Two narrow floats in a word, the first in its low half.
template <class T>
__device__ __forceinline__ uint32_t pair(float first, float second) {
#if defined(__CUDA_ARCH__)
  uint32_t word;
  if constexpr (std::is_same_v<T, bf16>) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
#else
  T low, high;
  store(low, first);
  store(high, second);
  return low.bits | static_cast<uint32_t>(high.bits) << 16;
#endif
}

template <class T>
__device__ __forceinline__ Pack packed(const float* values) {
  Pack pack;
#pragma unroll
  for (int i = 0; i < kAccess / 4; ++i) {
    if constexpr (sizeof(T) == 4) pack.words[i] = as_bits(values[i]);
    else pack.words[i] = pair<T>(values[2 * i], values[2 * i + 1]);
  }
  return pack;
}

// The blocks of a launch: `blocks` for each row, in the order of the rows.
struct Grid {
  int64_t n, d;
  uint32_t blocks;
  bool packed;                             // rows may be accessed kAccess bytes at a time
  TF_HD int64_t size() const { return n * blocks; }
};

// Whether each of these rows begins at a multiple of kAccess bytes and consists of whole packs.
template <class T, class... More>
bool packable(int64_t d, const More&... rows) {
  return d % kLanes<T> == 0 &&
         ((rows.stride % kLanes<T> == 0 && reinterpret_cast<uintptr_t>(rows.data) % kAccess == 0) && ...);
}

template <class T, class... More>
Grid grid_of(int64_t n, int64_t d, const More&... rows) {
  constexpr int64_t elements = kThreads * kLanes<T>;
  return {n, d, static_cast<uint32_t>((d + elements - 1) / elements), packable<T>(d, rows...)};
}

// The elements of one thread: kLanes neighbours in a row, of which `count` exist. The others read as 0.
template <class T>
struct Tile {
  int64_t row, first;
  uint32_t block;
  int count;
  bool whole_packs;

  __device__ __forceinline__ Tile(const Grid& grid, uint32_t index) : whole_packs(grid.packed) {
    const uint32_t quotient = index / grid.blocks;
    row = quotient;
    block = index - quotient * grid.blocks;
    first = (static_cast<int64_t>(block) * kThreads + threadIdx.x) * kLanes<T>;
    const int64_t left = grid.d - first;
    count = left >= kLanes<T> ? kLanes<T> : left > 0 ? static_cast<int>(left) : 0;
  }

  __device__ __forceinline__ void read(float (&out)[kLanes<T>], const T* row_start) const {
    const T* data = row_start + first;
    if (whole_packs) {
      Pack pack{};
      if (count) pack = *reinterpret_cast<const Pack*>(data);
#pragma unroll
      for (int i = 0; i < kLanes<T>; ++i) out[i] = load(element<T>(pack, i));
    } else {
#pragma unroll
      for (int i = 0; i < kLanes<T>; ++i) out[i] = i < count ? load(data[i]) : 0.0f;
    }
  }

  __device__ __forceinline__ void read(float (&out)[kLanes<T>], const Rows& rows) const {
    read(out, static_cast<const T*>(rows.data) + row * rows.stride);
  }

  __device__ __forceinline__ void read(float (&out)[kLanes<T>], const Guided& velocity) const {
    read(out, velocity.cond);
    if (!velocity.uncond.data) return;
    float uncond[kLanes<T>];
    read(uncond, velocity.uncond);
#pragma unroll
    for (int i = 0; i < kLanes<T>; ++i) out[i] = guide(out[i], uncond[i], velocity.scale);
  }

  // Elements `at` .. of the tile, in a row of Out.
  template <class Out>
  __device__ __forceinline__ void write(Out* row_start, const Pack& pack, int at = 0) const {
    Out* data = row_start + first + at;
    if (whole_packs) {
      if (count) write_pack(data, pack);
    } else {
#pragma unroll
      for (int i = 0; i < kLanes<Out>; ++i)
        if (at + i < count) data[i] = element<Out>(pack, i);
    }
  }

  // Out is T, or float in a kernel that reads a narrower type.
  template <class Out>
  __device__ __forceinline__ void write(Out* row_start, const float (&values)[kLanes<T>]) const {
#pragma unroll
    for (int at = 0; at < kLanes<T>; at += kLanes<Out>) write(row_start, packed<Out>(values + at), at);
  }
};

// A row of a contiguous tensor [*, d] of type T.
template <class T>
__device__ __forceinline__ T* row_of(void* data, int64_t row, int64_t d) {
  return static_cast<T*>(data) + row * d;
}

constexpr uint32_t kNanBits = 0x7fc00000u;   // a quiet NaN

// The step of a row; NaN, with no access out of bounds, if `coefficients` has no such step.
__device__ __forceinline__ Step step_of(const StepOfRow& rows, int64_t row) {
  const int64_t index = rows.steps ? rows.steps[row] : 0;
  const bool known = index >= 0 && index < rows.num_steps;
  Step step(rows.coefficients + (known ? index : 0) * kColumns);
  if (!known) {
    step.a32 = step.b32 = step.s32 = as_float(kNanBits);
    step.b = step.s = step.unit = static_cast<double>(step.b32);
  }
  return step;
}

constexpr unsigned kAllLanes = 0xffffffffu;  // the mask of a full warp

template <class V>
__device__ __forceinline__ V warp_sum(V v) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset >>= 1) v += __shfl_xor_sync(kAllLanes, v, offset);
  return v;
}

// The sum of the partial sums of one row's blocks, in all lanes of the calling warp.
__device__ __forceinline__ double sum_of(const float* partial, uint32_t blocks) {
  double sum = 0;
  for (uint32_t i = threadIdx.x % kWarpSize; i < blocks; i += kWarpSize) sum += static_cast<double>(partial[i]);
  return warp_sum(sum);
}

// out[i * stride] = the sum of value(i) over the threads of the block, for i = 0 .. count - 1. The order is fixed.
template <class Value>
__device__ __forceinline__ void block_sums(float* out, int64_t stride, int64_t count, Value value) {
  constexpr int kGroup = 32;                 // sums between two barriers; one thread adds up one of them
  __shared__ float sums[kGroup][kWarps];
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t first = 0; first < count; first += kGroup) {
    const int size = count - first < kGroup ? static_cast<int>(count - first) : kGroup;
    for (int i = 0; i < size; ++i) {
      const float sum = warp_sum(value(first + i));
      if (thread % kWarpSize == 0) sums[i][thread / kWarpSize] = sum;
    }
    __syncthreads();
    if (thread < size) {
      float sum = 0;
      for (int warp = 0; warp < kWarps; ++warp) sum += sums[thread][warp];
      out[(first + thread) * stride] = sum;
    }
    __syncthreads();
  }
}

}  // namespace tempflow::cuda
