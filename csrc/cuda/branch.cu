// branch_step: the trunk's Euler move, K branches with their noise and log-densities, in one pass over the data.
#include "device.h"
#include "kernels.h"

namespace tempflow::cuda {
namespace {

// Four neighbouring elements of a row; `count` of them exist.
template <class T>
__device__ __forceinline__ void load_quad(float (&out)[4], const Rows& rows, int64_t row, int64_t first, int count, bool quads) {
  const T* data = static_cast<const T*>(rows.data) + row * rows.stride + first;
  Quad<T> quad{};
  if (quads && count == 4) {
    quad = *reinterpret_cast<const Quad<T>*>(data);
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (j < count) quad.v[j] = data[j];
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) out[j] = load(quad.v[j]);
}

template <class T>
__device__ __forceinline__ void store_quad(void* out, int64_t at, const Quad<T>& quad, int count, bool quads) {
  T* data = static_cast<T*>(out) + at;
  if (quads && count == 4) {
    *reinterpret_cast<Quad<T>*>(data) = quad;
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (j < count) data[j] = quad.v[j];
  }
}

// Block (row, block of D). A thread owns four neighbouring elements: the mean is formed once, then K branches leave it.
template <class T>
__global__ void __launch_bounds__(kThreads) branch_kernel(BranchArgs args, int64_t blocks) {
  float* sums = dynamic_shared();                                    // [K, kWarps]
  const int64_t row = blockIdx.x / blocks, block = blockIdx.x % blocks;
  const int64_t first = (block * kThreads + threadIdx.x) * 4, left = args.d - first;
  const int count = left >= 4 ? 4 : left > 0 ? static_cast<int>(left) : 0;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const float dt = static_cast<float>(args.step_row[0]), a = static_cast<float>(args.step_row[1]);
  const float b = static_cast<float>(args.step_row[2]), s = static_cast<float>(args.step_row[3]);
  const float inverse = 1.0f / s;

  float x[4], v[4], mean[4];
  load_quad<T>(x, args.latents, row, first, count, args.quads);
  load_quad<T>(v, args.velocity, row, first, count, args.quads);
  if (args.velocity_uncond.data) {
    float u[4];
    load_quad<T>(u, args.velocity_uncond, row, first, count, args.quads);
#pragma unroll
    for (int j = 0; j < 4; ++j) v[j] = guide(v[j], u[j], args.guidance_scale);
  }
  Quad<T> out;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    mean[j] = fma1(a, x[j], b * v[j]);
    store(out.v[j], fma1(dt, v[j], x[j]));
  }
  store_quad<T>(args.latents_next, row * args.d + first, out, count, args.quads);

  const uint64_t seed = static_cast<uint64_t>(*args.seed), id = static_cast<uint64_t>(args.trajectory_ids[row]);
  for (int64_t k = 0; k < args.k; ++k) {
    float eps[4], sum = 0;
    normal4(static_cast<uint32_t>(first >> 2), make_counter(seed, id, static_cast<uint32_t>(k), args.step), eps);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      store(out.v[j], fma1(s, eps[j], mean[j]));
      const float z = sizeof(T) == sizeof(float) ? eps[j] : (load(out.v[j]) - mean[j]) * inverse;
      if (j < count) sum = fma1(z, z, sum);
    }
    store_quad<T>(args.branches, (row * args.k + k) * args.d + first, out, count, args.quads);
    sum = warp_sum(sum);
    if (lane == 0) sums[k * kWarps + warp] = sum;
  }
  __syncthreads();
  for (int64_t k = threadIdx.x; k < args.k; k += kThreads) {         // one thread per branch: a fixed order
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += sums[k * kWarps + w];
    args.partial[(row * args.k + k) * blocks + block] = sum;
  }
}

// One warp per (row, branch); the order of the sum is fixed.
__global__ void log_prob_kernel(BranchArgs args, int64_t blocks) {
  const int64_t branch = blockIdx.x;
  float sum = 0;
  for (int64_t block = threadIdx.x; block < blocks; block += 32) sum += args.partial[branch * blocks + block];
  sum = warp_sum(sum);
  const float log_s = logf(static_cast<float>(args.step_row[3]));
  if (threadIdx.x == 0) args.log_prob[branch] = -0.5f * sum / static_cast<float>(args.d) - log_s - 0.91893853320467274f;
}

template <class T>
const char* run(const BranchArgs& args, void* stream) {
  const int64_t blocks = branch_blocks(args.d);
  const size_t shared = args.k * kWarps * sizeof(float);
  const char* error = launch(branch_kernel<T>, blocks * args.n, kThreads, shared, stream, args, blocks);
  return error ? error : launch(log_prob_kernel, args.n * args.k, 32, 0, stream, args, blocks);
}

}  // namespace

const char* branch_step(Dtype dtype, const BranchArgs& args, void* stream) {
  switch (dtype) {
    case kFloat: return run<float>(args, stream);
    case kBfloat16: return run<bf16>(args, stream);
    default: return run<fp16>(args, stream);
  }
}

}  // namespace tempflow::cuda
