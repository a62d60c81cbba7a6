// The moves of a rollout: guidance, Euler step, branches with their noise, initial noise. Part of kernels.cpp.
#pragma once
#include "chunk.h"

namespace tempflow::cpu {
namespace {

// Normals of elements first .. first + size - 1 (first a multiple of 4; out has room for whole groups of kQuadStep quads).
void fill_normals(float* __restrict out, int64_t first, int64_t size, const Counter& counter) {
  alignas(64) uint32_t radius[kChunk / 2], angle[kChunk / 2];
  const int64_t step = 4 * kQuadStep;
  const int quads = static_cast<int>((size + step - 1) / step) * kQuadStep;
  philox_words(radius, angle, static_cast<uint32_t>(first / 4), quads, counter);
#pragma omp simd
  for (int i = 0; i < 2 * quads; ++i) box_muller(radius[i], angle[i], out[2 * i], out[2 * i + 1]);
}

// A row's elements as floats: in place where they are, in the buffer otherwise.
TF_HD const float* as_floats(const float* values, float*, int64_t) { return values; }
template <class T>
const float* as_floats(const T* values, float* __restrict buffer, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) buffer[i] = load(values[i]);
  return buffer;
}

template <class T>
struct Velocity {                                       // of a chunk, guided where there is an unconditional one
  const T *cond, *uncond;
  float scale;
  TF_HD float operator[](int64_t i) const {
    return uncond ? guide(load(cond[i]), load(uncond[i]), scale) : load(cond[i]);
  }
};

template <class T>
void guide_rows(const GuideArgs& args, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const Chunk chunk(task, args.d);
    const T* cond = chunk.in<T>(args.velocity);
    const T* uncond = chunk.in<T>(args.velocity_uncond);
    T* out = static_cast<T*>(args.out) + chunk.row * args.d + chunk.first;
#pragma omp simd
    for (int64_t i = 0; i < chunk.size; ++i) store(out[i], guide(load(cond[i]), load(uncond[i]), args.guidance_scale));
  }
}

// One branch of a chunk: mean + s eps. Returns the sum of eps^2, eps being that of the sample as stored.
template <class T>
double emit_branch(T* __restrict out, const float* __restrict mean, float* __restrict eps, float s, int64_t size) {
  const float inverse = 1.0f / s;
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    store(out[i], fma1(s, eps[i], mean[i]));
    if (sizeof(T) < sizeof(float)) eps[i] = (load(out[i]) - mean[i]) * inverse;
  }
  return sum_of_squares(eps, size);
}

template <class T>
void sample(const SampleArgs& args, int64_t begin, int64_t end) {
  alignas(64) float mean[kChunk], eps[kChunk];
  const Step step(args.step_row);
  const int64_t chunks = chunks_of(args.d);
  for (int64_t task = begin; task < end; ++task) {
    const Chunk chunk(task, args.d);
    const T* latents = chunk.in<T>(args.latents);
    const Velocity<T> velocity{chunk.in<T>(args.velocity), chunk.in<T>(args.velocity_uncond), args.guidance_scale};
    T* __restrict next = static_cast<T*>(args.latents_next) + chunk.row * args.d + chunk.first;
#pragma omp simd
    for (int64_t i = 0; i < chunk.size; ++i) store(next[i], step.euler(load(latents[i]), velocity[i]));
    if (!args.k) continue;
#pragma omp simd
    for (int64_t i = 0; i < chunk.size; ++i) mean[i] = step.mean(load(latents[i]), velocity[i]);
    for (int64_t k = 0; k < args.k; ++k) {
      const int64_t branch = chunk.row * args.k + k;
      T* out = static_cast<T*>(args.branches) + branch * args.d + chunk.first;
      const uint64_t id = static_cast<uint64_t>(args.trajectory_ids[chunk.row]);
      fill_normals(eps, chunk.first, chunk.size, make_counter(args.seed, id, static_cast<uint32_t>(k), args.step));
      args.sum_squares[branch * chunks + chunk.index] = emit_branch(out, mean, eps, step.s32, chunk.size);
    }
  }
}

void initial_noise(const NoiseArgs& args, int64_t begin, int64_t end) {
  alignas(64) float eps[kChunk];
  for (int64_t task = begin; task < end; ++task) {
    const Chunk chunk(task, args.d);
    const uint64_t id = static_cast<uint64_t>(args.trajectory_ids[chunk.row]);
    fill_normals(eps, chunk.first, chunk.size, make_counter(args.seed, id, 0, kInitialNoiseStep));
    memcpy(args.out + chunk.row * args.d + chunk.first, eps, static_cast<size_t>(chunk.size) * sizeof(float));
  }
}

}  // namespace
}  // namespace tempflow::cpu
