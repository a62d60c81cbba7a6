// The steps of a rollout: guidance, Euler step, branches with their noise, initial noise. Part of kernels.cpp.
#pragma once
#include "chunk.h"

namespace tempflow::cpu {
namespace {

// Elements whose noise is completed together. The arithmetic of other blocks hides the stores of one.
constexpr int kBlock = 4 * kQuadStep;

// The random words of a chunk, ready for Box-Muller.
struct NoiseWords {
  alignas(64) uint32_t radius[kChunk / 2], angle[kChunk / 2];

  NoiseWords(const Chunk& chunk, const Counter& counter) {
    const int quads = static_cast<int>((chunk.size + kBlock - 1) / kBlock) * kQuadStep;
    philox_words(radius, angle, static_cast<uint32_t>(chunk.first / 4), quads, counter);
  }

  // The normals of the block that begins at element `first` of the chunk.
  TF_HD void normals(float* __restrict out, int64_t first) const {
    const uint32_t *r = radius + first / 2, *a = angle + first / 2;
#pragma omp simd
    for (int i = 0; i < kBlock / 2; ++i) box_muller(r[i], a[i], out[2 * i], out[2 * i + 1]);
  }
};

TF_HD int64_t block_size(const Chunk& chunk, int64_t first) {
  return chunk.size - first < kBlock ? chunk.size - first : kBlock;
}

// A row's elements as floats: in place if they are floats, otherwise in the buffer.
TF_HD const float* as_floats(const float* values, float*, int64_t) { return values; }
template <class T>
const float* as_floats(const T* values, float* __restrict buffer, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) buffer[i] = load(values[i]);
  return buffer;
}

template <class T>
struct Velocity {                                       // of a chunk; guided if there is an unconditional one
  const T *cond, *uncond;
  float scale;
  TF_HD float operator[](int64_t i) const {
    return uncond ? guide(load(cond[i]), load(uncond[i]), scale) : load(cond[i]);
  }
};

template <class T>
void guided_velocity(const GuideArgs& args, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const Chunk chunk(task, args.d);
    const T* cond = chunk.in<T>(args.velocity);
    const T* uncond = chunk.in<T>(args.velocity_uncond);
    T* out = static_cast<T*>(args.out) + chunk.row * args.d + chunk.first;
#pragma omp simd
    for (int64_t i = 0; i < chunk.size; ++i) store(out[i], guide(load(cond[i]), load(uncond[i]), args.guidance_scale));
  }
}

// One branch of a chunk: mean + s eps. Returns the sum of eps^2, where eps belongs to the sample as stored.
template <class T>
double emit_branch(T* __restrict out, const float* __restrict mean, float s, const Chunk& chunk, const Counter& counter) {
  const NoiseWords words(chunk, counter);
  const float inverse = 1.0f / s;
  alignas(64) float eps[kBlock];
  Sum sum;
  for (int64_t first = 0; first < chunk.size; first += kBlock) {
    const int64_t size = block_size(chunk, first);
    words.normals(eps, first);
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      store(out[first + i], fma1(s, eps[i], mean[first + i]));
      if (sizeof(T) < sizeof(float)) eps[i] = (load(out[first + i]) - mean[first + i]) * inverse;
    }
    sum.add_squares(eps, size);
  }
  return sum.total();
}

template <class T>
void sample(const SampleArgs& args, int64_t begin, int64_t end) {
  alignas(64) float mean[kChunk];
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
      const Counter counter = make_counter(args.seed, id, static_cast<uint32_t>(k), args.step);
      args.sum_squares[branch * chunks + chunk.index] = emit_branch(out, mean, step.s32, chunk, counter);
    }
  }
}

void initial_noise(const NoiseArgs& args, int64_t begin, int64_t end) {
  alignas(64) float eps[kBlock];
  for (int64_t task = begin; task < end; ++task) {
    const Chunk chunk(task, args.d);
    const uint64_t id = static_cast<uint64_t>(args.trajectory_ids[chunk.row]);
    const NoiseWords words(chunk, make_counter(args.seed, id, 0, kInitialNoiseStep));
    float* out = args.out + chunk.row * args.d + chunk.first;
    for (int64_t first = 0; first < chunk.size; first += kBlock) {
      words.normals(eps, first);
      memcpy(out + first, eps, static_cast<size_t>(block_size(chunk, first)) * sizeof(float));
    }
  }
}

}  // namespace
}  // namespace tempflow::cpu
