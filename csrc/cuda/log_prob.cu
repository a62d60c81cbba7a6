// log_prob and its gradient, each in one pass over the data. The forward adds its blocks' sums in a second launch.
#include "log_density.h"

namespace tempflow::cuda {
namespace {

// x' - m of the elements of a tile; 0 beyond the end of the row.
template <class T>
__device__ __forceinline__ void residuals(float (&out)[kLanes<T>], const Tile<T>& tile, const LogProbArgs& args,
                                          const Step& step) {
  float next[kLanes<T>], x[kLanes<T>], v[kLanes<T>];
  tile.read(next, args.latents_next);
  tile.read(x, args.latents);
  tile.read(v, args.velocity);
#pragma unroll
  for (int i = 0; i < kLanes<T>; ++i) out[i] = next[i] - step.mean(x[i], v[i]);
}

template <class T>
__global__ void __launch_bounds__(kThreads) log_prob_kernel(LogProbArgs args, Grid grid) {
  const Tile<T> tile(grid, blockIdx.x);
  const Step step = step_of(args.step, tile.row);
  float residual[kLanes<T>], sum = 0;
  residuals(residual, tile, args, step);
  const float inverse = 1.0f / step.s32;
#pragma unroll
  for (int i = 0; i < kLanes<T>; ++i) {
    const float z = residual[i] * inverse;
    sum = fma1(z, z, sum);
  }
  block_sums(args.partial + tile.row * grid.blocks + tile.block, 1, 1, [&](int64_t) { return sum; });
}

template <class T>
__global__ void __launch_bounds__(kThreads) log_prob_backward_kernel(LogProbArgs args, Grid grid) {
  __shared__ float factor;
  const Tile<T> tile(grid, blockIdx.x);
  const Step step = step_of(args.step, tile.row);
  if (threadIdx.x == 0) factor = static_cast<float>(args.grad[tile.row] * step.velocity_factor(args.d));
  float residual[kLanes<T>];
  residuals(residual, tile, args, step);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kLanes<T>; ++i) residual[i] *= factor;
  tile.write(row_of<T>(args.grad_velocity, tile.row, args.d), residual);
}

}  // namespace

const char* log_prob(Dtype dtype, const LogProbArgs& args, void* stream) {
  return by_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const Grid grid = grid_of<T>(args.n, args.d, args.latents_next, args.latents, args.velocity);
    const char* error = launch(log_prob_kernel<T>, grid.size(), kThreads, stream, args, grid);
    return error ? error : launch_log_density(args.partial, grid, args.step, args.n, args.log_prob, stream);
  });
}

const char* log_prob_backward(Dtype dtype, const LogProbArgs& args, void* stream) {
  return by_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const Grid grid = grid_of<T>(args.n, args.d, args.latents_next, args.latents, args.velocity,
                                 Rows{args.grad_velocity, args.d});
    return launch(log_prob_backward_kernel<T>, grid.size(), kThreads, stream, args, grid);
  });
}

}  // namespace tempflow::cuda
