// branch_step: the trunk's Euler step and K branches with their noise and log-densities, in one pass over the data.
#include "log_density.h"

namespace tempflow::cuda {
namespace {

// The normals of the elements of a tile.
template <int lanes>
__device__ __forceinline__ void normals(float (&eps)[lanes], int64_t first, const Counter& counter) {
#pragma unroll
  for (int at = 0; at < lanes; at += 4) {
    float four[4];
    normal4(static_cast<uint32_t>((first + at) >> 2), counter, four);
#pragma unroll
    for (int i = 0; i < 4; ++i) eps[at + i] = four[i];
  }
}

// A thread computes its means once and draws K branches from them.
template <class T>
__global__ void __launch_bounds__(kThreads) branch_step_kernel(BranchArgs args, Grid grid) {
  constexpr int lanes = kLanes<T>;
  const Tile<T> tile(grid, blockIdx.x);
  const Step step(args.step_row);
  float x[lanes], v[lanes], mean[lanes];
  tile.read(x, args.latents);
  tile.read(v, args.velocity);
#pragma unroll
  for (int i = 0; i < lanes; ++i) {
    mean[i] = step.mean(x[i], v[i]);
    x[i] = step.euler(x[i], v[i]);
  }
  tile.write(row_of<T>(args.latents_next, tile.row, args.d), x);

  const uint64_t seed = static_cast<uint64_t>(*args.noise.seed);
  const uint64_t id = static_cast<uint64_t>(args.noise.trajectory_ids[tile.row]);
  const float inverse = 1.0f / step.s32;
  const int64_t branch = tile.row * args.k;
  block_sums(args.partial + branch * grid.blocks + tile.block, grid.blocks, args.k, [&](int64_t k) {
    float eps[lanes], sample[lanes], sum = 0;
    normals(eps, tile.first, make_counter(seed, id, static_cast<uint32_t>(k), args.step));
#pragma unroll
    for (int i = 0; i < lanes; ++i) sample[i] = fma1(step.s32, eps[i], mean[i]);
    const Pack stored = packed<T>(sample);
    tile.write(row_of<T>(args.branches, branch + k, args.d), stored);
    if constexpr (sizeof(T) < sizeof(float)) {   // the density is that of the rounded value
#pragma unroll
      for (int i = 0; i < lanes; ++i) eps[i] = (load(element<T>(stored, i)) - mean[i]) * inverse;
    }
    if (tile.count == lanes) {
#pragma unroll
      for (int i = 0; i < lanes; ++i) sum = fma1(eps[i], eps[i], sum);
    } else {
      for (int i = 0; i < lanes; ++i) sum = i < tile.count ? fma1(eps[i], eps[i], sum) : sum;
    }
    return sum;
  });
}

}  // namespace

const char* branch_step(Dtype dtype, const BranchArgs& args, void* stream) {
  return by_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const Grid grid = grid_of<T>(args.n, args.d, args.latents, args.velocity.cond, args.velocity.uncond,
                                 Rows{args.latents_next, args.d}, Rows{args.branches, args.d});
    const char* error = launch(branch_step_kernel<T>, grid.size(), kThreads, stream, args, grid);
    const StepOfRow one_step{args.step_row, 1, nullptr};
    return error ? error : launch_log_density(args.partial, grid, one_step, args.n * args.k, args.log_prob, stream);
  });
}

}  // namespace tempflow::cuda
