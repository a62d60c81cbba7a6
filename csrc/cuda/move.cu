// guided_velocity, euler_step and initial_noise, each in one pass over the data.
#include "device.h"

namespace tempflow::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads) guided_velocity_kernel(GuideArgs args, Grid grid) {
  const Tile<T> tile(grid, blockIdx.x);
  float v[kLanes<T>];
  tile.read(v, args.velocity);
  tile.write(row_of<T>(args.out, tile.row, args.d), v);
}

template <class T>
__global__ void __launch_bounds__(kThreads) euler_step_kernel(EulerArgs args, Grid grid) {
  const Tile<T> tile(grid, blockIdx.x);
  const Step step(args.step_row);
  float x[kLanes<T>], v[kLanes<T>];
  tile.read(x, args.latents);
  tile.read(v, args.velocity);
#pragma unroll
  for (int i = 0; i < kLanes<T>; ++i) x[i] = step.euler(x[i], v[i]);
  tile.write(row_of<T>(args.latents_next, tile.row, args.d), x);
}

__global__ void __launch_bounds__(kThreads) initial_noise_kernel(NoiseArgs args, Grid grid) {
  const Tile<float> tile(grid, blockIdx.x);
  const uint64_t seed = static_cast<uint64_t>(*args.noise.seed);
  const uint64_t id = static_cast<uint64_t>(args.noise.trajectory_ids[tile.row]);
  float eps[kLanes<float>];
  normal4(static_cast<uint32_t>(tile.first >> 2), make_counter(seed, id, 0, kInitialNoiseStep), eps);
  tile.write(row_of<float>(args.out, tile.row, args.d), eps);
}

}  // namespace

const char* guided_velocity(Dtype dtype, const GuideArgs& args, void* stream) {
  return by_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const Grid grid = grid_of<T>(args.n, args.d, args.velocity.cond, args.velocity.uncond, Rows{args.out, args.d});
    return launch(guided_velocity_kernel<T>, grid.size(), kThreads, stream, args, grid);
  });
}

const char* euler_step(Dtype dtype, const EulerArgs& args, void* stream) {
  return by_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const Grid grid = grid_of<T>(args.n, args.d, args.latents, args.velocity.cond, args.velocity.uncond,
                                 Rows{args.latents_next, args.d});
    return launch(euler_step_kernel<T>, grid.size(), kThreads, stream, args, grid);
  });
}

const char* initial_noise(const NoiseArgs& args, void* stream) {
  const Grid grid = grid_of<float>(args.n, args.d, Rows{args.out, args.d});
  return launch(initial_noise_kernel, grid.size(), kThreads, stream, args, grid);
}

}  // namespace tempflow::cuda
