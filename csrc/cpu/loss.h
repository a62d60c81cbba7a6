// Log-densities, the policy loss and their gradients. Part of kernels.cpp.
#pragma once
#include "sample.h"

namespace tempflow::cpu {
namespace {

constexpr int kGroup = 4;                               // branches handled together: shared values are loaded once

TF_HD Step step_of(const double* coefficients, int64_t step) { return Step(coefficients + step * kColumns); }

template <class T>
void log_prob(const LogProbArgs& args, int64_t begin, int64_t end) {
  alignas(64) float residual[kChunk];
  for (int64_t task = begin; task < end; ++task) {
    const Chunk chunk(task, args.d);
    const Step step = step_of(args.coefficients, args.steps[chunk.row]);
    const T *next = chunk.in<T>(args.latents_next), *x = chunk.in<T>(args.latents), *v = chunk.in<T>(args.velocity);
#pragma omp simd
    for (int64_t i = 0; i < chunk.size; ++i)
      residual[i] = load(next[i]) - step.mean(load(x[i]), load(v[i]));
    args.sum_squares[task] = sum_of_squares(residual, chunk.size);
  }
}

template <class T>
void log_prob_backward(const LogProbArgs& args, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const Chunk chunk(task, args.d);
    const Step step = step_of(args.coefficients, args.steps[chunk.row]);
    const T *next = chunk.in<T>(args.latents_next), *x = chunk.in<T>(args.latents), *v = chunk.in<T>(args.velocity);
    T* out = static_cast<T*>(args.grad_velocity) + chunk.row * args.d + chunk.first;
    const float factor = static_cast<float>(args.grad[chunk.row] * step.velocity_factor(args.d));
#pragma omp simd
    for (int64_t i = 0; i < chunk.size; ++i)
      store(out[i], factor * (load(next[i]) - step.mean(load(x[i]), load(v[i]))));
  }
}

// Guided velocity, rounded to its dtype: bit for bit the velocity_old that the same policy stored.
template <class T>
const float* policy_velocity(float* __restrict buffer, const LossArgs& args, const Chunk& chunk) {
  const T *cond = chunk.in<T>(args.velocity), *uncond = chunk.in<T>(args.velocity_uncond);
  if (!uncond) return as_floats(cond, buffer, chunk.size);
#pragma omp simd
  for (int64_t i = 0; i < chunk.size; ++i)
    buffer[i] = rounded<T>(guide(load(cond[i]), load(uncond[i]), args.guidance_scale));
  return buffer;
}

template <class T>
const T* branch_of(const LossArgs& args, const Chunk& chunk, int64_t k) {
  return static_cast<const T*>(args.branches) + chunk.row * args.branch_row_stride + k * args.branch_stride + chunk.first;
}

// The sums of shift (x' + centre) of branches k .. k + G - 1; shift and centre are loaded once.
template <int G, class T>
TF_HD void sum_products(const LossArgs& args, const Chunk& chunk, int64_t k, const float* shift, const float* centre) {
  Sum sums[G];
  alignas(64) float buffer[kRunning];
  int64_t i = 0;
  for (; i + kRunning <= chunk.size; i += kRunning)
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      const float* branch = as_floats(branch_of<T>(args, chunk, k + g) + i, buffer, kRunning);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v)
        sums[g].running[v] += vector_at(shift + i, v) * (vector_at(branch, v) + vector_at(centre + i, v));
    }
  for (int g = 0; g < G; ++g) {
    const T* branch = branch_of<T>(args, chunk, k + g);
    for (int64_t j = i; j < chunk.size; ++j)
      sums[g].rest += static_cast<double>(shift[j]) * static_cast<double>(load(branch[j]) + centre[j]);
    args.products[(chunk.row * args.k + k + g) * chunks_of(args.d) + chunk.index] = sums[g].total();
  }
}

// Pass 1: the sums behind log r and the KL.
template <class T>
void chunk_products(const LossArgs& args, int64_t task) {
  alignas(64) float buffer[kChunk], shift[kChunk], centre[kChunk];
  const Chunk chunk(task, args.d);
  const Step step = step_of(args.coefficients, args.steps[chunk.row]);
  const T *x = chunk.in<T>(args.latents), *old = chunk.in<T>(args.velocity_old), *ref = chunk.in<T>(args.velocity_ref);
  const float* velocity = policy_velocity<T>(buffer, args, chunk);
#pragma omp simd
  for (int64_t i = 0; i < chunk.size; ++i) {
    const float v_old = load(old[i]);
    shift[i] = step.shift(velocity[i], v_old);
    centre[i] = step.centre(shift[i], load(x[i]), v_old);
  }
  int64_t k = 0;
  for (; k + kGroup <= args.k; k += kGroup) sum_products<kGroup, T>(args, chunk, k, shift, centre);
  for (; k + 2 <= args.k; k += 2) sum_products<2, T>(args, chunk, k, shift, centre);
  if (k < args.k) sum_products<1, T>(args, chunk, k, shift, centre);
  if (!ref) return;
#pragma omp simd
  for (int64_t i = 0; i < chunk.size; ++i) shift[i] = velocity[i] - load(ref[i]);
  args.sum_squares_ref[task] = sum_of_squares(shift, chunk.size);
}

// Adds weight (x' - mean) of each of G branches to sum.
template <int G, class T>
TF_HD void add_residuals(float* __restrict sum, const T* const* branches, const float* weights, const float* __restrict mean,
                         int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    float total = sum[i];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) total = fma1(weights[g], load(branches[g][i]) - mean[i], total);
    sum[i] = total;
  }
}

// Adds the branches of a chunk in groups of kGroup, then of 2 and 1. A branch whose ratio is clipped has a weight of 0
// and is not read, unless it may hold an infinity, which times 0 is NaN in every body.
template <class T>
void add_branches(float* sum, const LossArgs& args, const Chunk& chunk, double factor, const float* mean) {
  const T* waiting[kGroup];
  float weights[kGroup];
  int count = 0;
  for (int64_t k = 0; k < args.k; ++k) {
    const int64_t branch = chunk.row * args.k + k;
    weights[count] = static_cast<float>(args.log_ratio_grad[branch] * factor);
    waiting[count] = branch_of<T>(args, chunk, k);
    const bool finite = args.log_ratio[branch] - args.log_ratio[branch] == 0;
    if ((weights[count] != 0 || !finite) && ++count == kGroup) {
      add_residuals<kGroup>(sum, waiting, weights, mean, chunk.size);
      count = 0;
    }
  }
  if (count & 2) add_residuals<2>(sum, waiting, weights, mean, chunk.size);
  if (count & 1) add_residuals<1>(sum, waiting + (count & 2), weights + (count & 2), mean, chunk.size);
}

// Pass 2: d loss / d v = sum over k of (d loss / d log r) ratio_factor (x' - m), plus the gradient of the KL.
template <class T>
void chunk_gradient(const LossArgs& args, int64_t task) {
  alignas(64) float buffer[kChunk], old[kChunk], mean[kChunk], sum[kChunk];
  const Chunk chunk(task, args.d);
  const Step step = step_of(args.coefficients, args.steps[chunk.row]);
  const T *x = chunk.in<T>(args.latents), *ref = chunk.in<T>(args.velocity_ref);
  const float* velocity = policy_velocity<T>(buffer, args, chunk);
  const float* point = step.ratio_norm ? as_floats(chunk.in<T>(args.velocity_old), old, chunk.size) : velocity;
  const float kl = static_cast<float>(args.kl_factor * step.b * step.velocity_factor(args.d));
#pragma omp simd
  for (int64_t i = 0; i < chunk.size; ++i) {
    mean[i] = step.mean(load(x[i]), point[i]);
    sum[i] = ref ? kl * (velocity[i] - load(ref[i])) : 0.0f;
  }
  add_branches<T>(sum, args, chunk, step.ratio_factor(args.d), mean);
  memcpy(args.gradient + chunk.row * args.d + chunk.first, sum, static_cast<size_t>(chunk.size) * sizeof(float));
}

template <class T>
void loss_products(const LossArgs& args, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) chunk_products<T>(args, task);
}

template <class T>
void loss_gradient(const LossArgs& args, int64_t begin, int64_t end) {
  for (int64_t task = end - 1; task >= begin; --task)   // backwards: the last chunks of pass 1 are still in the cache
    chunk_gradient<T>(args, task);
}

// Both passes in one, for derivatives that are known in advance: each chunk is read from memory once.
template <class T>
void loss_at_once(const LossArgs& args, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    chunk_products<T>(args, task);
    chunk_gradient<T>(args, task);
  }
}

}  // namespace
}  // namespace tempflow::cpu
