// Log-densities, the policy loss and their gradients. Part of kernels.cpp.
#pragma once
#include "sample.h"

namespace tempflow::cpu {
namespace {

TF_HD Step step_of(const double* table, int64_t step) { return Step(table + step * kColumns); }

template <class T>
void log_prob(const LogProbArgs& args, int64_t begin, int64_t end) {
  alignas(64) float residual[kChunk];
  for (int64_t task = begin; task < end; ++task) {
    const Chunk chunk(task, args.d);
    const Step step = step_of(args.table, args.steps[chunk.row]);
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
    const Step step = step_of(args.table, args.steps[chunk.row]);
    const T *next = chunk.in<T>(args.latents_next), *x = chunk.in<T>(args.latents), *v = chunk.in<T>(args.velocity);
    T* out = static_cast<T*>(args.grad_velocity) + chunk.row * args.d + chunk.first;
    const float factor = static_cast<float>(args.grad[chunk.row] * step.velocity_factor(args.d));
#pragma omp simd
    for (int64_t i = 0; i < chunk.size; ++i)
      store(out[i], factor * (load(next[i]) - step.mean(load(x[i]), load(v[i]))));
  }
}

// Guided velocity rounded to its dtype: a stored velocity_old of the same policy is then equal to it, bit for bit.
template <class T>
void load_policy_velocity(float* __restrict out, const LossArgs& args, const Chunk& chunk) {
  load_guided(out, chunk.in<T>(args.velocity), chunk.in<T>(args.velocity_uncond), args.guidance_scale, chunk.size);
  if (sizeof(T) == sizeof(float) || !args.velocity_uncond.data) return;
#pragma omp simd
  for (int64_t i = 0; i < chunk.size; ++i) out[i] = rounded<T>(out[i]);
}

template <class T>
const T* branch_of(const LossArgs& args, const Chunk& chunk, int64_t k) {
  return static_cast<const T*>(args.branches) + chunk.row * args.branch_row_stride + k * args.branch_stride + chunk.first;
}

// Pass 1: the sums behind log r and the KL.
template <class T>
void chunk_products(const LossArgs& args, int64_t task) {
  alignas(64) float velocity[kChunk], shift[kChunk], centre[kChunk], buffer[kChunk];
  const Chunk chunk(task, args.d);
  const int64_t chunks = chunks_of(args.d);
  const Step step = step_of(args.table, args.steps[chunk.row]);
  const T *x = chunk.in<T>(args.latents), *old = chunk.in<T>(args.velocity_old), *ref = chunk.in<T>(args.velocity_ref);
  load_policy_velocity<T>(velocity, args, chunk);
#pragma omp simd
  for (int64_t i = 0; i < chunk.size; ++i) {
    const float v_old = load(old[i]);
    shift[i] = step.shift(velocity[i], v_old);
    centre[i] = step.centre(shift[i], load(x[i]), v_old);
  }
  for (int64_t k = 0; k < args.k; ++k)
    args.products[(chunk.row * args.k + k) * chunks + chunk.index] =
        dot(shift, as_floats(branch_of<T>(args, chunk, k), buffer, chunk.size), centre, chunk.size);
  if (!ref) return;
#pragma omp simd
  for (int64_t i = 0; i < chunk.size; ++i) velocity[i] -= load(ref[i]);
  args.sum_squares_ref[task] = sum_of_squares(velocity, chunk.size);
}

// Pass 2: d loss / d v = sum over k of (d loss / d log r) velocity_factor (x' - m), and the KL's share.
template <class T>
void chunk_gradient(const LossArgs& args, int64_t task) {
  alignas(64) float velocity[kChunk], mean[kChunk];
  const Chunk chunk(task, args.d);
  const Step step = step_of(args.table, args.steps[chunk.row]);
  const double factor = step.velocity_factor(args.d);
  const T *x = chunk.in<T>(args.latents), *ref = chunk.in<T>(args.velocity_ref);
  float* __restrict out = args.gradient + chunk.row * args.d + chunk.first;
  load_policy_velocity<T>(velocity, args, chunk);
  const float kl = static_cast<float>(args.kl_factor * step.b * factor);
#pragma omp simd
  for (int64_t i = 0; i < chunk.size; ++i) {
    mean[i] = step.mean(load(x[i]), velocity[i]);
    out[i] = ref ? kl * (velocity[i] - load(ref[i])) : 0.0f;
  }
  for (int64_t k = 0; k < args.k; ++k) {
    const T* branch = branch_of<T>(args, chunk, k);
    const float weight = static_cast<float>(args.log_ratio_grad[chunk.row * args.k + k] * factor);
#pragma omp simd
    for (int64_t i = 0; i < chunk.size; ++i) out[i] = fma1(weight, load(branch[i]) - mean[i], out[i]);
  }
}

template <class T>
void loss_products(const LossArgs& args, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) chunk_products<T>(args, task);
}

template <class T>
void loss_gradient(const LossArgs& args, int64_t begin, int64_t end) {
  for (int64_t task = end - 1; task >= begin; --task)   // backwards: the last chunks of pass 1 are still in cache
    chunk_gradient<T>(args, task);
}

// Both passes over memory in one, for derivatives that are known beforehand.
template <class T>
void loss_at_once(const LossArgs& args, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    chunk_products<T>(args, task);
    chunk_gradient<T>(args, task);
  }
}

}  // namespace
}  // namespace tempflow::cpu
