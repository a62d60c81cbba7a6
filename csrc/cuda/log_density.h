// The second stage of branch_step and log_prob: from partial sums of ((x' - m) / s)^2 to log-densities.
#pragma once
#include "device.h"

namespace tempflow::cuda {
namespace {

// One warp per row.
__global__ void log_density_kernel(const float* partial, uint32_t blocks, StepOfRow rows, int64_t d, float* out) {
  const int64_t row = blockIdx.x;
  const double sum = sum_of(partial + row * blocks, blocks);
  if (threadIdx.x == 0) out[row] = static_cast<float>(step_of(rows, row).log_density(sum / static_cast<double>(d)));
}

const char* launch_log_density(const float* partial, const Grid& grid, const StepOfRow& rows, int64_t num_rows,
                               float* out, void* stream) {
  return launch(log_density_kernel, num_rows, kWarpSize, stream, partial, grid.blocks, rows, grid.d, out);
}

}  // namespace
}  // namespace tempflow::cuda
