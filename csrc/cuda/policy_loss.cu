// policy_loss and its gradient in two launches: first the sums behind log r, then the loss and d loss / d v.
//
// A ratio is known only after the whole row has been read, unless the policy has not changed, as in the first update on
// a rollout: then it is 1. So the first launch also writes the gradient for ratios of 1, and the second launch keeps it
// in rows where nothing has changed. The data of those rows are read once.
//
// Rows of a changed policy are read twice. The second launch takes the rows in the opposite order: what the first launch
// read last is still in the L2 cache, so rows that fit in the cache come from memory only once. Each block of the second
// launch adds up the partial sums of its row (a few KB), which saves a third launch between the two.
#include "device.h"

namespace tempflow::cuda {
namespace {

constexpr int kGroup = 32;                 // branches whose weights are in shared memory at a time: one per lane
constexpr int kBlocksPerMultiprocessor = 4;   // bounds a kernel to 64 registers; ptxas alone aims at 48 and spills

// Guided velocity, rounded to its dtype: bit for bit the velocity_old that the same policy stored.
template <class T>
__device__ __forceinline__ void read_policy_velocity(float (&v)[kLanes<T>], const Tile<T>& tile, const LossArgs& args) {
  tile.read(v, args.velocity);
  if (!args.velocity.uncond.data) return;
#pragma unroll
  for (int i = 0; i < kLanes<T>; ++i) v[i] = rounded<T>(v[i]);
}

template <class T>
__device__ __forceinline__ const T* branch_of(const LossArgs& args, int64_t row, int64_t k) {
  return static_cast<const T*>(args.branches) + row * args.branch_row_stride + k * args.branch_stride;
}

__device__ __forceinline__ int group_size(const LossArgs& args, int64_t first) {
  return args.k - first < kGroup ? static_cast<int>(args.k - first) : kGroup;
}

// The partial sums of branch k of a row, one per block. k = K: those of (v - v_ref)^2. k = K + 1: the number of threads
// that found a change in the policy.
__device__ __forceinline__ float* partial_of(const LossArgs& args, int64_t row, int64_t k, uint32_t blocks) {
  return args.partial + (row * (args.k + 2) + k) * blocks;
}

// The factor of x' - m in the gradient, up to the derivative of a branch's surrogate with respect to log r.
__device__ __forceinline__ double gradient_factor(const LossArgs& args, const Step& step) {
  return step.noise_weight / static_cast<double>(args.n * args.k) * step.ratio_factor(args.d);
}

// The factor of v - v_ref in the gradient.
__device__ __forceinline__ float kl_weight_of(const LossArgs& args, const Step& step) {
  return static_cast<float>(args.beta / static_cast<double>(args.n) * step.b * step.velocity_factor(args.d));
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) loss_sums_kernel(LossArgs args, Grid grid) {
  constexpr int lanes = kLanes<T>;
  __shared__ float weights[kGroup];
  __shared__ float kl_weight;
  const Tile<T> tile(grid, blockIdx.x);
  const Step step = step_of(args.step, tile.row);
  if (blockIdx.x == 0 && threadIdx.x == 0) *args.finished = 0;
  // Computed before the rows are read, because divisions in double need registers.
  const double factor = threadIdx.x < kGroup ? gradient_factor(args, step) : 0;
  if (threadIdx.x == 0) kl_weight = kl_weight_of(args, step);
  // b (v - v_old). If nothing has changed, that is 0, and `kept` holds the gradient for ratios of 1 instead.
  float kept[lanes];
  float v[lanes], old[lanes], x[lanes], centre[lanes];
  bool same = args.gradient != nullptr;
  read_policy_velocity(v, tile, args);
  tile.read(old, args.velocity_old);
  tile.read(x, args.latents);
#pragma unroll
  for (int i = 0; i < lanes; ++i) {
    kept[i] = step.shift(v[i], old[i]);
    centre[i] = step.centre(kept[i], x[i], old[i]);    // -m if nothing has changed
    same &= kept[i] == 0;
  }
  if (args.velocity_ref.data) {
    float ref[lanes];
    tile.read(ref, args.velocity_ref);
    block_sums(partial_of(args, tile.row, args.k, grid.blocks) + tile.block, 1, 1, [&](int64_t) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < lanes; ++i) sum = fma1(v[i] - ref[i], v[i] - ref[i], sum);
      return sum;
    });
#pragma unroll
    for (int i = 0; i < lanes; ++i) kept[i] = same ? kl_weight * (v[i] - ref[i]) : kept[i];
  }
  bool changed = !same;                    // a NaN among the samples counts, too
  for (int64_t first = 0; first < args.k; first += kGroup) {
    const int thread = static_cast<int>(threadIdx.x), size = group_size(args, first);
    if (thread < size) {
      const double advantage = static_cast<double>(args.advantages[tile.row * args.k + first + thread]);
      weights[thread] = static_cast<float>(factor * Surrogate(0, advantage, args.clip).derivative);
    }
    __syncthreads();
    block_sums(partial_of(args, tile.row, first, grid.blocks) + tile.block, grid.blocks, size, [&](int64_t k) {
      float next[lanes], sum = 0;
      tile.read(next, branch_of<T>(args, tile.row, first + k));
#pragma unroll
      for (int i = 0; i < lanes; ++i) {
        const float residual = next[i] + centre[i];
        sum = fma1(same ? 0.0f : kept[i], residual, sum);
        if (same) kept[i] = fma1(weights[k], residual, kept[i]);
      }
      changed |= sum != 0;
      return sum;
    });
  }
  block_sums(partial_of(args, tile.row, args.k + 1, grid.blocks) + tile.block, 1, 1,
             [&](int64_t) { return changed ? 1.0f : 0.0f; });
  if (!changed) tile.write(args.gradient + tile.row * args.d, kept);
}

// Results for a group of branches of a row, which the warps leave for the block.
struct GroupTerms {
  float weight[kGroup];                    // the factor of x' - m in the gradient
  double loss[kGroup];
  bool clipped[kGroup];
};

// One warp per branch; `first` is the first branch of the group.
__device__ __forceinline__ void form_terms(GroupTerms& terms, const LossArgs& args, const Step& step, int64_t row,
                                           int64_t first, int size, uint32_t blocks, bool leader) {
  for (int i = threadIdx.x / kWarpSize; i < size; i += kWarps) {
    const double log_ratio = step.log_ratio(sum_of(partial_of(args, row, first + i, blocks), blocks), args.d);
    if (threadIdx.x % kWarpSize) continue;
    const int64_t branch = row * args.k + first + i;
    const Surrogate surrogate(log_ratio, static_cast<double>(args.advantages[branch]), args.clip);
    terms.weight[i] = static_cast<float>(gradient_factor(args, step) * surrogate.derivative);
    terms.loss[i] = step.noise_weight / static_cast<double>(args.n * args.k) * surrogate.value;
    terms.clipped[i] = surrogate.clipped;
    if (leader) args.log_ratio[branch] = static_cast<float>(log_ratio);
  }
}

// The row that finishes last adds up all rows, in their order. Called by the first block of each row.
__device__ __forceinline__ void finish_row(const LossArgs& args, int64_t row, const RowStatistics& statistics) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    args.rows[row] = statistics;
    __threadfence();                       // before the count, so that the block that counts to R sees all rows
    last = atomicAdd(args.finished, 1u) == static_cast<uint32_t>(args.n) - 1;
    __threadfence();
  }
  __syncthreads();
  if (!last || threadIdx.x >= kWarpSize) return;
  RowStatistics sum{};
#pragma unroll 1
  for (int64_t r = threadIdx.x; r < args.n; r += kWarpSize) {
    const volatile RowStatistics& other = args.rows[r];
    sum.loss += other.loss;
    sum.kl += other.kl;
    sum.num_clipped += other.num_clipped;
  }
  sum = {warp_sum(sum.loss), warp_sum(sum.kl), warp_sum(sum.num_clipped)};
  if (threadIdx.x) return;
  *args.loss = static_cast<float>(sum.loss + args.beta * sum.kl);
  *args.kl = static_cast<float>(sum.kl);
  *args.clip_fraction = static_cast<float>(sum.num_clipped / static_cast<double>(args.n * (args.k ? args.k : 1)));
}

// `blocks` is the number of blocks per row of the first launch; without a gradient, this launch has one block per row.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    loss_gradient_kernel(LossArgs args, Grid grid, uint32_t blocks) {
  constexpr int lanes = kLanes<T>;
  __shared__ GroupTerms terms;
  __shared__ float kl_weight;
  const Tile<T> tile(grid, static_cast<uint32_t>(grid.size() - 1) - blockIdx.x);
  const Step step = step_of(args.step, tile.row);
  const bool leader = tile.block == 0;
  const bool done = !args.gradient || sum_of(partial_of(args, tile.row, args.k + 1, blocks), blocks) == 0;
  if (done && !leader) return;             // the whole block returns, so no barrier waits for it
  if (threadIdx.x == 0) kl_weight = kl_weight_of(args, step);
  __syncthreads();

  float mean[lanes]{}, gradient[lanes]{};
  if (!done) {
    float v[lanes], x[lanes];
    read_policy_velocity(v, tile, args);
    tile.read(x, args.latents);
    if (args.velocity_ref.data) tile.read(gradient, args.velocity_ref);
#pragma unroll
    for (int i = 0; i < lanes; ++i) gradient[i] = args.velocity_ref.data ? kl_weight * (v[i] - gradient[i]) : 0.0f;
    if (step.ratio_norm) tile.read(v, args.velocity_old);
#pragma unroll
    for (int i = 0; i < lanes; ++i) mean[i] = step.mean(x[i], v[i]);
  }
  RowStatistics statistics{};              // of the first thread
  for (int64_t first = 0; first < args.k; first += kGroup) {
    const int size = group_size(args, first);
    form_terms(terms, args, step, tile.row, first, size, blocks, leader);
    __syncthreads();
    for (int i = 0; !done && i < size; ++i) {
      float next[lanes];
      tile.read(next, branch_of<T>(args, tile.row, first + i));
#pragma unroll
      for (int j = 0; j < lanes; ++j) gradient[j] = fma1(terms.weight[i], next[j] - mean[j], gradient[j]);
    }
    for (int i = 0; leader && threadIdx.x == 0 && i < size; ++i) {
      statistics.loss += terms.loss[i];
      statistics.num_clipped += terms.clipped[i];
    }
    __syncthreads();
  }
  if (!done) tile.write(args.gradient + tile.row * args.d, gradient);
  if (!leader) return;
  if (args.velocity_ref.data)
    statistics.kl =
        step.kl(sum_of(partial_of(args, tile.row, args.k, blocks), blocks), args.d) / static_cast<double>(args.n);
  finish_row(args, tile.row, statistics);
}

}  // namespace

const char* policy_loss(Dtype dtype, const LossArgs& args, void* stream) {
  return by_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const Rows branches{args.branches, args.branch_stride}, branch_rows{args.branches, args.branch_row_stride};
    const Grid grid = grid_of<T>(args.n, args.d, args.velocity.cond, args.velocity.uncond, args.latents,
                                 args.velocity_old, args.velocity_ref, branches, branch_rows,
                                 Rows{args.gradient, args.d});
    const char* error = launch(loss_sums_kernel<T>, grid.size(), kThreads, stream, args, grid);
    Grid second = grid;
    if (!args.gradient) second.blocks = 1;
    return error ? error : launch(loss_gradient_kernel<T>, second.size(), kThreads, stream, args, second, grid.blocks);
  });
}

}  // namespace tempflow::cuda
